"""Maskers of EAT and ATST-Frame: visible blocks, and spans of time."""

import torch

from ssast_lobes.objectives.maskers import Masker, square_scores
from ssast_lobes.utils.checks import whole


class InverseBlockMasker(Masker):
    """Keep square blocks of tokens and mask the rest: EAT's masks.

    The visible tokens are whole blocks, and a part of one more where the
    count does not come out even. As in `ClusterMasker` a block that crosses
    an edge of the clip continues at the opposite edge, so that every token is
    visible equally often; the official code cuts it off, and then adds or
    removes single tokens until the count is right. See Chen et al., "EAT:
    Self-Supervised Pre-Training with Efficient Audio Transformer", IJCAI
    2024, section 3.2.

    Arguments
    ---------
    ratio, count
        See `Masker`: tokens to mask, not to keep.
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
        """Return scores, lowest far from blocks; see `Masker.scores`."""
        return -square_scores(
            (self.block_size,), rand, n_time, n_freq, max_time
        )


class SpanMasker(Masker):
    """Mask spans over all frequencies: the masks of ATST-Frame.

    Unlike `compute_mask_indices` of fairseq, which the official code uses, a
    clip masks exactly the ratio asked for: fairseq counts overlaps of spans
    twice, so that its 0.65 masks half of a clip. The last span is cut
    short where the count does not come out even. Spans wrap at the clip's
    own edges, so that every time is masked equally often. Li et al., "ATST:
    Audio Representation Learning with Teacher-Student Transformer", 2023.

    Arguments
    ---------
    ratio, count
        See `Masker`, but of times: all frequencies of a time are masked.
    span : int
        Tokens of a span along time.

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

    def max_masked(self, n_freq, n_time):
        """Return how many tokens are masked; see `Masker.max_masked`."""
        return n_freq * self.n_masked(n_time)

    def draw(self, rand, n_time, n_freq, max_time):
        """Draw times, and mask all their frequencies; see `Masker.draw`."""
        masked = super().draw(rand, n_time, 1, max_time)
        return masked.expand(-1, n_freq, -1)

    def scores(self, rand, n_time, n_freq, max_time):
        """Return the least draw of spans over a time; see `Masker.scores`."""
        seeds = rand(1, max_time)
        time = torch.arange(max_time + self.span - 1, device=seeds.device)
        time = (time % n_time[:, None])[:, None]
        spans = seeds.gather(2, time).unfold(2, self.span, 1)
        # Tokens of one span would tie: those at its end come first, so that a
        # span that is cut short stays in one piece.
        within = torch.arange(self.span, device=seeds.device)
        return (spans + 1e-6 * within).amin(3)
