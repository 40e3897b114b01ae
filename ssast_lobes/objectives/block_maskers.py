"""Maskers of EAT, ATST-Frame and AudioMosaic: blocks, spans, rows, chunks."""

import torch

from ssast_lobes.objectives.maskers import Masker, square_scores
from ssast_lobes.utils.checks import whole


class InverseBlockMasker(Masker):
    """Mask all tokens outside some square blocks, as EAT does.

    The visible tokens are whole blocks, and a part of one more block if the
    count requires it. As in `ClusterMasker`, a block that crosses an edge of
    the clip continues at the opposite edge, so that every token is visible
    equally often. The official code cuts such a block at the edge, and then
    adds or removes single tokens until the count is right. See Chen et al.,
    "EAT: Self-Supervised Pre-Training with Efficient Audio Transformer", IJCAI
    2024, section 3.2.

    Arguments
    ---------
    ratio, count
        See `Masker`. Both refer to masked tokens, not to visible tokens.
    block_size : int
        Tokens along each side of a block.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> masker = InverseBlockMasker(ratio=0.8, block_size=5)
    >>> (~masker(torch.tensor([64]), n_freq=8, max_time=64)).sum().item()
    102
    """

    def __init__(self, ratio=None, count=None, *, block_size):
        super().__init__(ratio, count)
        self.block_size = whole("block_size", block_size)

    @property
    def config(self):
        """Return the name and the arguments; see `Masker.config`."""
        return {**super().config, "block_size": self.block_size}

    def scores(self, rand, n_time, n_freq, max_time):
        """Return scores that are highest in blocks; see `Masker.scores`."""
        return -square_scores(
            (self.block_size,), rand, n_time, n_freq, max_time
        )


class TimeMasker(Masker):
    """Base class of maskers of whole time steps.

    A subclass scores the time steps, as if the grid had a single frequency.

    Arguments
    ---------
    ratio, count
        See `Masker`. Both refer to time steps. All tokens of a drawn time step
        are masked.
    """

    def max_masked(self, n_freq, n_time):
        """Return how many tokens are masked; see `Masker.max_masked`."""
        return n_freq * self.n_masked(n_time)

    def draw(self, rand, n_time, n_freq, max_time):
        """Draw time steps, and mask all their tokens; see `Masker.draw`."""
        masked = super().draw(rand, n_time, 1, max_time)
        return masked.expand(-1, n_freq, -1)


class SpanMasker(TimeMasker):
    """Mask spans of time over all frequencies, as ATST-Frame does.

    Exactly the requested number of time steps is masked; the last span is cut
    short if the number requires it. The official code uses
    `compute_mask_indices` of fairseq, which counts overlaps of spans twice. So
    its setting of 0.65 masks half of a clip. Spans wrap at the clip's own
    edges, so that every time step is masked equally often. See Li, Shao and Li,
    "Self-Supervised Audio Teacher-Student Transformer for Both Clip-Level and
    Frame-Level Tasks", TASLP 2024.

    Arguments
    ---------
    ratio, count
        See `Masker`. Both refer to time steps. All tokens of a drawn time step
        are masked.
    span : int
        Length of a span in time steps.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> masker = SpanMasker(ratio=0.5, span=5)
    >>> mask = masker(torch.tensor([20, 10]), n_freq=2, max_time=20)
    >>> mask.sum((1, 2)).tolist(), torch.equal(mask[:, 0], mask[:, 1])
    ([20, 10], True)
    """

    def __init__(self, ratio=None, count=None, *, span):
        super().__init__(ratio, count)
        self.span = whole("span", span)

    @property
    def config(self):
        """Return the name and the arguments; see `Masker.config`."""
        return {**super().config, "span": self.span}

    def scores(self, rand, n_time, n_freq, max_time):
        """Return the lowest draw of each step's spans; see `Masker.scores`."""
        seeds = rand(1, max_time)
        time = torch.arange(max_time + self.span - 1, device=seeds.device)
        time = (time % n_time[:, None])[:, None]
        spans = seeds.gather(2, time).unfold(2, self.span, 1)
        # Time steps of one span would get equal scores. Small offsets along the
        # span make sure that a span that is cut short stays in one piece.
        within = torch.arange(self.span, device=seeds.device)
        return (spans + 1e-6 * within).amin(3)


class RowMasker(Masker):
    """Mask whole frequency rows, as AudioMosaic's authors describe it.

    It masks nothing if there is only one row.

    Arguments
    ---------
    ratio, count
        See `Masker`. Both refer to rows. All tokens of a drawn row are masked.

    Example
    -------
    >>> mask = RowMasker(ratio=0.5)(torch.tensor([6, 3]), n_freq=4, max_time=6)
    >>> mask.sum(2).sort(1).values.tolist()
    [[0, 0, 6, 6], [0, 0, 3, 3]]
    """

    def max_masked(self, n_freq, n_time):
        """Return how many tokens are masked; see `Masker.max_masked`."""
        return n_time * self.n_masked(n_freq)

    def draw(self, rand, n_time, n_freq, max_time):
        """Draw rows, and mask all their tokens; see `Masker.draw`."""
        rows = super().draw(rand, torch.ones_like(n_time), n_freq, 1)
        time = torch.arange(max_time, device=n_time.device)
        return rows & (time < n_time[:, None])[:, None]

    def scores(self, rand, n_time, n_freq, max_time):
        """Return independent draws; see `Masker.scores`."""
        return rand(n_freq, max_time)


class ChunkMasker(TimeMasker):
    """Mask chunks of time, as in the first view of AudioMosaic's code.

    A clip is cut into chunks of equal length. Some chunks are masked
    completely, and one more is masked in part if the count requires it.

    Arguments
    ---------
    ratio, count
        See `Masker`. Both refer to time steps. All tokens of a drawn time step
        are masked.
    size : int
        Length of a chunk in time steps.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> masker = ChunkMasker(ratio=0.5, size=2)
    >>> mask = masker(torch.tensor([8]), n_freq=1, max_time=8)
    >>> mask.view(4, 2).sum(1).sort().values
    tensor([0, 0, 2, 2])
    """

    def __init__(self, ratio=None, count=None, *, size):
        super().__init__(ratio, count)
        self.size = whole("size", size)

    @property
    def config(self):
        """Return the name and the arguments; see `Masker.config`."""
        return {**super().config, "size": self.size}

    def scores(self, rand, n_time, n_freq, max_time):
        """Return the draw of each step's chunk; see `Masker.scores`."""
        chunks = rand(1, -(-max_time // self.size))
        return chunks.repeat_interleave(self.size, dim=2)[:, :, :max_time]


class PeriodicMasker(Masker):
    """Mask recurring cells, as in the second view of AudioMosaic's code.

    A clip is cut into chunks along time, and all chunks get the same mask,
    which is drawn over frequencies and times. (The released code is meant to
    mask frequencies, but reads a grid of 64 x 8 as one of 8 x 64.)

    Arguments
    ---------
    ratio, count
        See `Masker`.
    period : int
        Length of a chunk in time steps, after which the mask recurs.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> masker = PeriodicMasker(ratio=0.5, period=2)
    >>> mask = masker(torch.tensor([8]), n_freq=2, max_time=8)
    >>> mask.unflatten(2, (4, 2)).sum(2).flatten().sort().values
    tensor([0, 0, 4, 4])
    """

    def __init__(self, ratio=None, count=None, *, period):
        super().__init__(ratio, count)
        self.period = whole("period", period)

    @property
    def config(self):
        """Return the name and the arguments; see `Masker.config`."""
        return {**super().config, "period": self.period}

    def scores(self, rand, n_time, n_freq, max_time):
        """Return the draw of each token's cell; see `Masker.scores`."""
        cells = rand(n_freq, self.period)
        return cells.repeat(1, 1, -(-max_time // self.period))[:, :, :max_time]
