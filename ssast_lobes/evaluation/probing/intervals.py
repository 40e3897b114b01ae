"""Compute confidence intervals of test scores by a cluster bootstrap.

Clips of one speaker tend to be right or wrong together. So the bootstrap
resamples whole groups of clips, not single clips. Two systems with the same
seed get the same groups, so the differences of their scores are paired.
"""

import torch

REPLICATES = 2000

# Number of draws at a time. All draws at once would need much memory.
_CHUNK = 100


def bootstrap(predicted, target, groups, metric, seed=0):
    """Return bootstrapped scores of the test split.

    Arguments
    ---------
    predicted, target : torch.Tensor
        Class indices (M,), int64.
    groups : torch.Tensor
        Group index of each clip (M,), int64, from 0 without gaps.
    metric : str
        ``"accuracy"`` or ``"uar"``; see `ssast_lobes.utils.metrics`. A class
        that does not occur in the drawn groups is skipped in ``"uar"``.
    seed : int
        Seed of the draws. The draws depend only on the seed and on the number
        of groups.

    Returns
    -------
    torch.Tensor
        Scores (2000,), float64. Each score is that of one draw, with
        replacement, of as many groups as the test split contains.

    Example
    -------
    >>> right = torch.tensor([0, 1, 1, 0])
    >>> scores = bootstrap(right, right, torch.arange(4), "accuracy")
    >>> scores.shape, scores.min().item()
    (torch.Size([2000]), 1.0)
    """
    n_groups, n_classes = int(groups.max()) + 1, int(target.max()) + 1
    cell = groups * n_classes + target
    shape = (n_groups, n_classes)
    hits = torch.bincount(cell, predicted == target, n_groups * n_classes)
    totals = torch.bincount(cell, minlength=n_groups * n_classes).double()
    hits, totals = hits.double().view(shape), totals.view(shape)
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(0, REPLICATES, _CHUNK):
        drawn = torch.randint(n_groups, (_CHUNK, n_groups), generator=generator)
        times = hits.new_zeros(_CHUNK, n_groups)
        times.scatter_add_(1, drawn, torch.ones_like(times))
        scores.append(_scores(times @ hits, times @ totals, metric))
    return torch.cat(scores)


def interval(scores):
    """Return the middle 95 % of bootstrapped scores or differences.

    Arguments
    ---------
    scores : torch.Tensor
        Values (R,).

    Returns
    -------
    tuple of float
        The 2.5th and the 97.5th percentile.

    Example
    -------
    >>> [round(edge, 3) for edge in interval(torch.linspace(0, 1, 1001))]
    [0.025, 0.975]
    """
    low, high = scores.quantile(scores.new_tensor([0.025, 0.975])).tolist()
    return low, high


def _scores(hits, totals, metric):
    """Return scores (R,) from hits and clips by class, both (R, C)."""
    if metric == "accuracy":
        return hits.sum(1) / totals.sum(1)
    # A class without clips gives 0 / 0 = NaN, which the mean skips.
    return (hits / totals).nanmean(1)
