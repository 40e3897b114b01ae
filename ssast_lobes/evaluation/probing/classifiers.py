"""Classifiers on fixed features: logistic regression and nearest neighbors.

Both standardize every feature on the training part, choose their one setting
on the validation part and classify the test part. They compute in float64 on
the CPU, without random numbers.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy, normalize

from ssast_lobes.utils.metrics import accuracy

# Rows of similarities at once: all of them would outgrow the memory.
_CHUNK = 1024


class Fit(NamedTuple):
    """Predictions of a classifier on the test part.

    Arguments
    ---------
    predictions : torch.Tensor
        Class indices (M,), int64.
    setting : float
        The penalty, or the number of neighbors, that was chosen.
    valid_score : float
        The metric on the validation part under this setting.
    """

    predictions: torch.Tensor
    setting: float
    valid_score: float


def logistic_regression(
    train_x,
    train_y,
    valid_x,
    valid_y,
    test_x,
    n_classes,
    penalties=tuple(10.0**k for k in range(1, -6, -1)),
    metric=accuracy,
):
    """Fit a multinomial logistic regression and classify the test part.

    Every feature is brought to mean 0 and deviation 1 on the training part.
    The loss is the mean cross-entropy plus `penalty / 2` times the squared
    weights (not the biases), minimized by L-BFGS. The penalty with the
    highest validation score is taken; of equals, the strongest.

    Arguments
    ---------
    train_x : torch.Tensor
        Features (N, D).
    train_y : torch.Tensor
        Class indices (N,), int64.
    valid_x : torch.Tensor
        Features (V, D) on which the penalty is chosen.
    valid_y : torch.Tensor
        Class indices (V,), int64.
    test_x : torch.Tensor
        Features (M, D) to classify.
    n_classes : int
        Number of classes.
    penalties : iterable of float
        Penalties to choose from.
    metric : callable
        Takes predicted and true classes, gives a score to make large.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        If features are not finite, or `penalties` is empty.

    Example
    -------
    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> y = torch.tensor([0, 0, 1, 1])
    >>> test_x = torch.tensor([[-3.0], [3.0]])
    >>> logistic_regression(x, y, x, y, test_x, 2).predictions.tolist()
    [0, 1]
    """
    penalties = sorted(penalties, reverse=True)
    if not penalties:
        raise ValueError("penalties is empty: name at least one")
    train_x, valid_x, test_x = _standardize(train_x, valid_x, test_x)
    # Along its principal axes the problem is the same and far better
    # conditioned; directions that the training part lacks get no weight.
    axes, variances = _principal_axes(train_x)
    train_x, valid_x, test_x = (x @ axes for x in (train_x, valid_x, test_x))
    weight = train_x.new_zeros(len(variances), n_classes)
    bias = train_x.new_zeros(n_classes)
    best = None
    # From strong to weak, each fit beginning where the last one ended.
    for penalty in penalties:
        weight, bias = _fit(train_x, train_y, weight, bias, penalty, variances)
        score = metric((valid_x @ weight + bias).argmax(-1), valid_y)
        if best is None or score > best.valid_score:
            predictions = (test_x @ weight + bias).argmax(-1)
            best = Fit(predictions, penalty, score)
    return best


def nearest_neighbors(
    train_x,
    train_y,
    valid_x,
    valid_y,
    test_x,
    n_classes,
    counts=(1, 5, 10, 20, 50, 100),
    temperature=0.07,
    metric=accuracy,
):
    """Classify by the most similar training clips.

    The k training clips of the highest cosine similarity s vote for their
    class with weight `exp(s / temperature)`, as in DINO (Caron et al., ICCV
    2021), whose temperature is the default. Here the features are
    standardized on the training part before, since the mean of pooled
    features would make all of them similar. The k with the highest validation
    score is taken; of equals, the largest.

    Arguments
    ---------
    train_x, train_y, valid_x, valid_y, test_x, n_classes, metric
        As in `logistic_regression`.
    counts : iterable of int
        Numbers of neighbors k to choose from; those above the number of
        training clips are skipped.
    temperature : float
        Smaller: the nearest count more.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        If features are not finite, or `counts` has no number that fits.

    Example
    -------
    >>> x = torch.tensor([[-2.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> y = torch.tensor([0, 0, 1, 1])
    >>> test_x = torch.tensor([[-3.0, 1.0], [3.0, 1.0]])
    >>> nearest_neighbors(x, y, x, y, test_x, 2).predictions.tolist()
    [0, 1]
    """
    counts = sorted((k for k in counts if k <= len(train_x)), reverse=True)
    if not counts:
        raise ValueError(
            f"counts: name at least one from 1 to {len(train_x)}, the number "
            "of training clips"
        )
    parts = _standardize(train_x, valid_x, test_x)
    train_x, valid_x, test_x = (normalize(x, dim=1) for x in parts)
    best = None
    valid = _votes(valid_x, train_x, train_y, counts, n_classes, temperature)
    test = _votes(test_x, train_x, train_y, counts, n_classes, temperature)
    for k in counts:
        score = metric(valid[k], valid_y)
        if best is None or score > best.valid_score:
            best = Fit(test[k], k, score)
    return best


def linear_weights(x, y, n_classes, penalty):
    """Fit a logistic regression, and return it as a linear layer.

    As `logistic_regression` with one penalty. The layer takes raw features:
    it contains their standardization.

    Arguments
    ---------
    x : torch.Tensor
        Features (N, D) to learn from.
    y : torch.Tensor
        Class indices (N,), int64.
    n_classes : int
        Number of classes C.
    penalty : float
        Of the squared weights on standardized features.

    Returns
    -------
    weight : torch.Tensor
        (C, D), float64.
    bias : torch.Tensor
        (C,), float64: class scores (logits) are ``x @ weight.T + bias``.

    Raises
    ------
    ValueError
        If features are not finite.

    Example
    -------
    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> weight, bias = linear_weights(x, torch.tensor([0, 0, 1, 1]), 2, 0.1)
    >>> (torch.tensor([[-3.0], [3.0]]).double() @ weight.T + bias).argmax(1)
    tensor([0, 1])
    """
    x = _exact(x, "x")
    mean, scale = _scaling(x)
    standard = (x - mean) * scale
    axes, variances = _principal_axes(standard)
    weight = standard.new_zeros(len(variances), n_classes)
    bias = standard.new_zeros(n_classes)
    weight, bias = _fit(standard @ axes, y, weight, bias, penalty, variances)
    weight = scale[:, None] * (axes @ weight)
    return weight.T, bias - mean @ weight


def _standardize(train_x, valid_x, test_x):
    """Return all features in float64, by mean and deviation of the first."""
    parts = {"train_x": train_x, "valid_x": valid_x, "test_x": test_x}
    parts = [_exact(x, name) for name, x in parts.items()]
    mean, scale = _scaling(parts[0])
    return [(x - mean) * scale for x in parts]


def _exact(x, name):
    """Return features in float64, on the CPU."""
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} has values that are not finite")
    return x.detach().cpu().double()


def _scaling(x):
    """Return the mean (D,), and the factor for a deviation of 1 (D,)."""
    mean = x.mean(0)
    std = x.std(0, correction=0)
    # A constant feature says nothing: only rounding errors are left of it.
    constant = std <= 1e-12 * mean.abs()
    return mean, torch.where(constant, 0.0, 1 / std)


def _principal_axes(x):
    """Return the axes (D, R) with any variance, and their variances (R,)."""
    _, singular, axes = torch.linalg.svd(x, full_matrices=False)
    variances = singular.square() / len(x)
    kept = variances > 1e-12 * variances.max()
    return axes[kept].T, variances[kept]


@torch.enable_grad()
def _fit(x, y, weight, bias, penalty, variances, max_steps=500):
    """Return the optimal weight (R, C) and bias (C,), from a first guess.

    The features have to be uncorrelated, with these `variances`.
    """
    # Steps are taken in units in which the loss at the start is about equally
    # curved in all directions.
    likely = (x @ weight + bias).softmax(1)
    curvature = (likely * (1 - likely)).mean(0).clamp(min=1e-6)
    unit = (variances[:, None] * curvature + penalty).rsqrt()
    unit_bias = curvature.rsqrt()
    scaled = (weight / unit).requires_grad_()
    scaled_bias = (bias / unit_bias).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled, scaled_bias],
        max_iter=max_steps,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(x @ (unit * scaled) + unit_bias * scaled_bias, y)
        loss = loss + penalty / 2 * (unit * scaled).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (unit * scaled).detach(), (unit_bias * scaled_bias).detach()


def _votes(x, train_x, train_y, counts, n_classes, temperature):
    """Return classes (M,) by number of neighbors; `counts` descends."""
    predictions = {k: [] for k in counts}
    for rows in x.split(_CHUNK):
        similarity, index = (rows @ train_x.T).topk(counts[0])
        # Of the weights only the ratios matter: none overflows.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        neighbors = train_y[index]
        for k in counts:
            votes = weight.new_zeros(len(rows), n_classes)
            votes.scatter_add_(1, neighbors[:, :k], weight[:, :k])
            predictions[k].append(votes.argmax(1))
    return {k: torch.cat(parts) for k, parts in predictions.items()}
