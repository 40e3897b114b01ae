"""The masker of joint-embedding predictive architectures (JEPA)."""

import torch

from ssast_lobes.objectives.maskers import Masker, lowest, square_scores
from ssast_lobes.utils.checks import real, whole


class MultiBlockMasker(Masker):
    """Mask several groups of blocks to predict, and further blocks.

    Each group contains exactly the fraction `target_ratio` of a clip's tokens.
    The tokens of a group form square blocks that wrap at the clip's own edges,
    as in `ClusterMasker`. Groups may overlap. The mask covers the groups, and
    further blocks until exactly the requested fraction of tokens is masked. The
    encoder does not see masked tokens, so some tokens are neither seen nor
    predicted. If the groups together exceed this fraction, some of their tokens
    stay visible and are no targets. The masks follow Assran et al.,
    "Self-Supervised Learning from Images with a Joint-Embedding Predictive
    Architecture", CVPR 2023. The paper uses larger rectangles, WavJEPA uses
    spans.

    Arguments
    ---------
    ratio, count
        See `Masker`. Both refer to all tokens that the encoder does not see.
    n_targets : int
        Number of groups in each clip.
    target_ratio : float
        Fraction of a clip's tokens in each group.
    block_size : int
        Tokens along each side of a block.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> from ssast_lobes.utils.random import RandomSource
    >>> masker = MultiBlockMasker(
    ...     ratio=0.8, n_targets=4, target_ratio=0.2, block_size=3
    ... )
    >>> rand = RandomSource(1, torch.device("cpu"))
    >>> mask, targets = masker.draw_targets(rand, torch.tensor([10]), 8, 10)
    >>> mask.sum().item(), targets.sum((2, 3)).tolist()
    (64, [[16, 16, 16, 16]])
    """

    def __init__(
        self, ratio=None, count=None, *, n_targets, target_ratio, block_size
    ):
        super().__init__(ratio, count)
        self.n_targets = whole("n_targets", n_targets)
        self.target_ratio = real("target_ratio", target_ratio, 0, 1, True)
        self.block_size = whole("block_size", block_size)

    @property
    def config(self):
        """Return the name and the arguments; see `Masker.config`."""
        return {
            **super().config,
            "n_targets": self.n_targets,
            "target_ratio": self.target_ratio,
            "block_size": self.block_size,
        }

    def draw(self, rand, n_time, n_freq, max_time):
        """Draw the tokens that the encoder does not see; see `Masker.draw`."""
        return self.draw_targets(rand, n_time, n_freq, max_time)[0]

    def draw_targets(self, rand, n_time, n_freq, max_time):
        """Draw masks and the groups to predict; see `Masker.draw_targets`."""
        grid = n_time, n_freq, max_time
        n_tokens = n_time * n_freq
        wanted = (self.target_ratio * n_tokens.double()).round().long()
        sizes = (self.block_size,)
        groups = [
            lowest(square_scores(sizes, rand, *grid), n_time, wanted)
            for _ in range(self.n_targets)
        ]
        targets = torch.stack(groups, dim=1)
        # Other scores are below 2, so targets are masked first.
        scores = square_scores(sizes, rand, *grid) - 2.0 * targets.any(1)
        mask = lowest(scores, n_time, self.n_masked(n_tokens))
        return mask, targets & mask[:, None]
