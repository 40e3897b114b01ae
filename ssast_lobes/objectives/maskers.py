"""Maskers, which draw masks over the tokens of clips.

A mask is boolean (B, F', T'), True where a token is masked. In each clip,
maskers mask only valid tokens, and exactly the requested number of them.

A masker is an argument of an objective. `Masker.config` describes it by strings
and numbers, from which `make_masker` rebuilds it.
"""

import torch
from torch import nn

from ssast_lobes.utils.checks import ArgumentError, real, require, whole
from ssast_lobes.utils.random import RandomSource


class Masker(nn.Module):
    """Base class of maskers, which mask the tokens with the lowest scores.

    A subclass gives each token a score.

    Arguments
    ---------
    ratio : float, optional
        Fraction of a clip's valid tokens to mask.
    count : int, optional
        Number of tokens to mask, at most all but one. Give either `ratio` or
        `count`.

    Raises
    ------
    ValueError
        If not exactly one of `ratio` and `count` is given, or it is out of
        range.
    """

    def __init__(self, ratio=None, count=None):
        super().__init__()
        if (ratio is None) == (count is None):
            raise ArgumentError(
                f"a masker takes either ratio or count, got ratio={ratio!r} "
                f"and count={count!r}"
            )
        if ratio is not None:
            real("mask ratio", ratio, 0, 1, inside=True)
        self.ratio = ratio
        self.count = whole("count", count, null=True)

    @property
    def config(self):
        """Return the name and the arguments, for `make_masker`."""
        return {
            "name": type(self).__name__,
            "ratio": self.ratio,
            "count": self.count,
        }

    def n_masked(self, n_tokens):
        """Return how many tokens to mask: at least one, at most all but one.

        Arguments
        ---------
        n_tokens : int or torch.Tensor
            Valid tokens, a number or (B,) int64.

        Returns
        -------
        int or torch.Tensor
            0 for a clip of a single token.

        Example
        -------
        >>> masker = RandomMasker(ratio=0.75)
        >>> [masker.n_masked(n) for n in (1, 2, 512)]
        [0, 1, 384]
        """
        if not isinstance(n_tokens, torch.Tensor):
            # Make no tensor: reading it back would split a compiled graph.
            wanted = self.count or round(self.ratio * n_tokens)
            return max(0, min(max(1, wanted), n_tokens - 1))
        if self.count is not None:
            wanted = torch.full_like(n_tokens, self.count)
        else:
            wanted = (self.ratio * n_tokens.double()).round().long()
        return torch.minimum(wanted.clamp(min=1), n_tokens - 1).clamp(min=0)

    def max_masked(self, n_freq, n_time):
        """Return the number of masked tokens that losses allocate for a clip.

        A subclass that overrides `draw` may have to override this method too:
        the loss ignores masked tokens beyond this number.

        Arguments
        ---------
        n_freq, n_time : int
            F' and T' of the clip.

        Returns
        -------
        int

        Example
        -------
        >>> RandomMasker(ratio=0.75).max_masked(8, 64)
        384
        """
        return self.n_masked(n_freq * n_time)

    def forward(self, n_time, n_freq, max_time, generator=None, clip_keys=None):
        """Draw a mask for each clip.

        Arguments
        ---------
        n_time : torch.Tensor
            Valid patches along time of each clip, (B,) int64.
        n_freq : int
            F'.
        max_time : int
            T' of the batch.
        generator : torch.Generator, optional
            Source of the draws, on the device of `n_time`.
        clip_keys : torch.Tensor, optional
            (B,) int64, for validation: the mask of a clip is then a function
            of its key alone.

        Returns
        -------
        torch.Tensor
            Boolean (B, F', T').
        """
        rand = RandomSource(len(n_time), n_time.device, generator, clip_keys)
        return self.draw(rand, n_time, n_freq, max_time)

    def draw(self, rand, n_time, n_freq, max_time):
        """Draw a mask for each clip from a random source.

        Arguments
        ---------
        rand : RandomSource
            Source of the draws. Another call returns another mask.
        n_time, n_freq, max_time
            As in `forward`.

        Returns
        -------
        torch.Tensor
            Boolean (B, F', T').
        """
        scores = self.scores(rand, n_time, n_freq, max_time)
        return lowest(scores, n_time, self.n_masked(n_time * n_freq))

    def draw_targets(self, rand, n_time, n_freq, max_time):
        """Draw a mask for each clip, and groups of its tokens to predict.

        Arguments
        ---------
        rand, n_time, n_freq, max_time
            As in `draw`.

        Returns
        -------
        mask : torch.Tensor
            The mask that `draw` returns for the same random source.
        targets : torch.Tensor
            Boolean (B, M, F', T'): M groups of masked tokens. By default there
            is one group, the whole mask.
        """
        mask = self.draw(rand, n_time, n_freq, max_time)
        return mask, mask[:, None]

    def scores(self, rand, n_time, n_freq, max_time):
        """Return scores of the tokens; the lowest are masked.

        Arguments
        ---------
        rand : RandomSource
            ``rand(rows, columns)`` returns uniform draws (B, rows, columns).
        n_time, n_freq, max_time
            As in `forward`.

        Returns
        -------
        torch.Tensor
            (B, F', T').
        """
        raise NotImplementedError


def lowest(scores, n_time, counts):
    """Mask the tokens with the lowest scores of each clip.

    Arguments
    ---------
    scores : torch.Tensor
        (B, F', T').
    n_time : torch.Tensor
        Valid patches along time of each clip, (B,) int64.
    counts : torch.Tensor
        Number of tokens to mask in each clip, (B,) int64.

    Returns
    -------
    torch.Tensor
        Boolean (B, F', T').

    Example
    -------
    >>> scores = torch.tensor([[[3.0, 1.0, 0.0]]])
    >>> lowest(scores, torch.tensor([2]), torch.tensor([1]))
    tensor([[[False,  True, False]]])
    """
    time = torch.arange(scores.shape[2], device=n_time.device)
    padding = time >= n_time[:, None]
    flat = scores.masked_fill(padding[:, None, :], torch.inf).flatten(1)
    rank = flat.argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < counts[:, None]).view_as(scores)


class RandomMasker(Masker):
    """Mask single tokens, drawn uniformly, as SSAST masks frames.

    See `Masker` for the arguments.

    Example
    -------
    >>> masker = RandomMasker(ratio=0.5)
    >>> masker(torch.tensor([8, 4]), n_freq=1, max_time=8).sum((1, 2)).tolist()
    [4, 2]
    """

    def scores(self, rand, n_time, n_freq, max_time):
        """Return independent draws; see `Masker.scores`."""
        return rand(n_freq, max_time)


class ClusterMasker(Masker):
    """Mask square clusters of tokens, as SSAST masks patches.

    Each clip draws a cluster size C, and random draws seed the clusters. A
    cluster that crosses an edge of the clip continues at the opposite edge. So
    every token is masked equally often, in clips of any length. (The official
    generator is biased: it masks the lowest mel row half as often as the middle
    rows.) See section 2.2 of SSAST (Gong et al., AAAI 2022).

    On a grid with F' = 1, tokens are masked one by one, as by `RandomMasker`,
    since the paper masks clusters of patches, but single frames.

    Arguments
    ---------
    ratio, count
        See `Masker`.
    cluster_sizes : sequence of int
        Cluster sizes C to draw from.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> masker = ClusterMasker(count=400)
    >>> masker(torch.tensor([64]), n_freq=8, max_time=64).sum().item()
    400
    """

    def __init__(self, ratio=None, count=None, cluster_sizes=(3, 4, 5)):
        super().__init__(ratio, count)
        require(
            isinstance(cluster_sizes, list | tuple) and len(cluster_sizes) > 0,
            "cluster_sizes",
            "a list of at least one size, such as [3, 4, 5]",
            cluster_sizes,
        )
        self.cluster_sizes = tuple(
            whole("each of cluster_sizes", size) for size in cluster_sizes
        )

    @property
    def config(self):
        """Return the name and the arguments; see `Masker.config`."""
        return {**super().config, "cluster_sizes": list(self.cluster_sizes)}

    def scores(self, rand, n_time, n_freq, max_time):
        """Return the least draw in C x C tokens; see `Masker.scores`."""
        if n_freq == 1:
            return rand(n_freq, max_time)
        return square_scores(self.cluster_sizes, rand, n_time, n_freq, max_time)


def square_scores(sizes, rand, n_time, n_freq, max_time):
    """Return scores that are alike within squares of a drawn size.

    Arguments
    ---------
    sizes : tuple of int
        Sides of the squares in tokens. Each clip draws one.
    rand, n_time, n_freq, max_time
        See `Masker.draw`.

    Returns
    -------
    torch.Tensor
        float32 (B, n_freq, max_time).

    Example
    -------
    >>> rand = RandomSource(1, torch.device("cpu"))
    >>> square_scores((3,), rand, torch.tensor([4]), 4, 4).shape
    torch.Size([1, 4, 4])
    """
    # The first column draws the size.
    drawn = rand(n_freq, 1 + max_time)
    choice = (drawn[:, 0, 0] * len(sizes)).long()
    seeds = drawn[:, :, 1:]

    reach = max(sizes) - 1
    freq = torch.arange(n_freq + reach, device=seeds.device) % n_freq
    time = torch.arange(max_time + reach, device=seeds.device)
    time = (time % n_time[:, None])[:, None]
    wrapped = seeds[:, freq].gather(2, time.expand(-1, len(freq), -1))
    scores = 0
    for number, size in enumerate(sizes):
        extended = wrapped[:, : n_freq + size - 1, : max_time + size - 1]
        least = -nn.functional.max_pool2d(-extended, size, stride=1)
        scores = scores + least * (choice == number)[:, None, None]
    # Tokens of one square get equal scores. Let their own draws decide, not
    # their order.
    return scores + 1e-5 * seeds
