"""Corruption of spectrograms by groups of pixels, not by tokens.

Group masked model learning hides blocks of any position and size. Blocks are
drawn for the whole batch at once, within each clip's own length, without
waiting for the device. All draws come from a given `RandomSource`.
"""

import torch
from torch import nn

from ssast_lobes.objectives.views import draw_whole
from ssast_lobes.utils.checks import real, reals, whole
from ssast_lobes.utils.lengths import length_to_mask

# Number of blocks to draw. If the greatest block size is a third of each axis,
# all blocks together cover nine tenths of a clip. Only as many blocks are used
# as the wanted area needs.
_BLOCKS = 128


class GroupCorruption(nn.Module):
    """Hide blocks of a clip, or paste blocks of another clip over it.

    This is the group masked model learning of SiT and ASiT (Atito et al.).
    Blocks are added until they cover the wanted area of the clip's own pixels.
    In some clips, the pixels of another clip of the batch fill the blocks, with
    zeros after the end of that clip. In the other clips, the blocks are set to
    zero. Blocks may cross the edges of the clip, so that every pixel is hidden
    equally often. In the released code they may not.

    Arguments
    ---------
    drop_area : tuple of float
        Least and greatest fraction of the pixels to set to zero.
    paste_area : float
        Fraction of the pixels to paste.
    paste_probability : float
        Fraction of the clips with pasted blocks instead of zeros.
    block : float
        Greatest size of a block along either axis, as a fraction of the axis.
    align : tuple of int
        Blocks begin and end at multiples of these numbers of mel bins and
        frames. With (1, 1), most patches are hidden only in part. With the
        patch size, whole patches are hidden.

    Example
    -------
    >>> from ssast_lobes.utils.random import RandomSource
    >>> corrupt = GroupCorruption((0.5, 0.7), 0.3, 0.5, 0.3, align=(16, 16))
    >>> feats, n_frames = torch.ones(2, 160, 128), torch.tensor([160, 80])
    >>> corrupted, hidden = corrupt(
    ...     feats, n_frames, RandomSource(2, feats.device)
    ... )
    >>> bool((corrupted == 0)[hidden].all()), bool(hidden[1, 80:].any())
    (True, False)
    """

    def __init__(self, drop_area, paste_area, paste_probability, block, align):
        super().__init__()
        reals("drop_area", drop_area, 0, 1)
        real("paste_area", paste_area, 0, 1)
        real("paste_probability", paste_probability, 0, 1)
        real("block", block, 0, 1)
        for size in align:
            whole("each of align", size)
        self.drop_area = tuple(drop_area)
        self.paste_area = paste_area
        self.paste_probability = paste_probability
        self.block = block
        self.align = tuple(align)

    def forward(self, feats, n_frames, rand, paste=False):
        """Corrupt a batch.

        Arguments
        ---------
        feats : torch.Tensor
            (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        rand : RandomSource
            Source of the draws.
        paste : bool
            Whether to paste too. The result then depends on the other clips.

        Returns
        -------
        corrupted : torch.Tensor
            (B, T, n_mels).
        hidden : torch.Tensor
            Boolean (B, T, n_mels), True where corrupted.
        """
        draws = rand(1, 3)[:, 0]
        least, greatest = self.drop_area
        area = least + (greatest - least) * draws[:, 0]
        filling = torch.zeros_like(feats)
        if paste and len(feats) > 1:
            pasted = draws[:, 1] < self.paste_probability
            area = torch.where(pasted, self.paste_area, area)
            others = draw_whole(draws[:, 2], len(feats) - 1) + 1
            own = torch.arange(len(feats), device=feats.device)
            other = feats[(own + others) % len(feats)]
            filling = torch.where(pasted[:, None, None], other, filling)
        hidden = self.blocks(rand, n_frames, *feats.shape[1:], area)
        return torch.where(hidden, filling, feats), hidden

    @torch.no_grad()
    def blocks(self, rand, n_frames, frames, n_mels, area):
        """Draw blocks until they cover a fraction of each clip.

        Arguments
        ---------
        rand : RandomSource
            Source of the draws.
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        frames, n_mels : int
            Numbers of frames T and of mel bins.
        area : torch.Tensor
            Wanted fraction of each clip's pixels, (B,).

        Returns
        -------
        torch.Tensor
            Boolean (B, T, n_mels), True within the blocks.
        """
        draws = rand(4, _BLOCKS)
        mels = torch.full_like(n_frames, n_mels)
        rows = self._sides(draws[:, :2], mels, n_mels, self.align[0])
        columns = self._sides(draws[:, 2:], n_frames, frames, self.align[1])
        columns = columns & length_to_mask(n_frames, frames)[:, None]
        rows, columns = rows.float(), columns.float().transpose(1, 2)
        number = torch.arange(_BLOCKS, device=n_frames.device)

        def union(count):
            some = columns * (number < count[:, None])[:, None]
            return some @ rows > 0.5

        wanted = area * n_frames * n_mels
        low, high = torch.zeros_like(mels), torch.full_like(mels, _BLOCKS)
        # Find the fewest blocks that cover the wanted area, by bisection.
        for _ in range(_BLOCKS.bit_length()):
            middle = (low + high) // 2
            enough = union(middle).sum((1, 2)) >= wanted
            high = torch.where(enough, middle, high)
            low = torch.where(enough, low, (middle + 1).minimum(high))
        return union(high)

    def _sides(self, draws, sizes, length, align):
        """Draw each block's extent on an axis, boolean (B, blocks, length)."""
        sizes = sizes[:, None]
        largest = (self.block * sizes.double()).floor().long()
        size = align + draw_whole(draws[:, 0], (largest - align).clamp(min=1))
        size = (size / align).round().long()
        places = (sizes + align - 1) // align
        first = draw_whole(draws[:, 1], places + size - 1) - (size - 1)
        first, last = first[:, :, None] * align, (first + size)[:, :, None]
        place = torch.arange(length, device=draws.device)
        return (place >= first) & (place < last * align)
