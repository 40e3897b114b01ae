"""Group corruption: areas, places and what is put there."""

import pytest
import torch

from ssast_lobes import Grid
from ssast_lobes.objectives.corruption import GroupCorruption
from ssast_lobes.utils.lengths import length_to_mask
from ssast_lobes.utils.random import RandomSource


def corruption(align=(1, 1), paste_probability=0.5):
    return GroupCorruption((0.5, 0.7), 0.3, paste_probability, 0.3, align)


def rand_of(feats, keys=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return RandomSource(len(feats), feats.device, generator, keys)


@pytest.mark.parametrize("align", [(1, 1), (16, 16), (64, 4)])
def test_blocks_cover_the_wanted_area(align):
    lengths = torch.tensor([592, 300, 97, 592] * 8)
    feats = torch.ones(32, 592, 128)
    _, hidden = corruption(align)(feats, lengths, rand_of(feats))
    valid = length_to_mask(lengths, 592)[:, :, None]
    assert not (hidden & ~valid).any()
    area = hidden.sum((1, 2)) / (lengths * 128)
    # At most one block too much: a third of either axis, rounded up.
    block = (0.3 * 128 + align[0]) * (0.3 * lengths + align[1])
    assert area.min() >= 0.5
    assert (area - 0.7 <= block / (lengths * 128)).all()


def test_corruption_is_as_measured_of_the_released_code():
    feats, lengths = torch.ones(48, 592, 128), torch.full((48,), 592)
    # 300 draws of it: 61 % of the pixels; with alignment 1 31 % of the patches
    # whole and 54 % in part, with alignment 16 62 % and none.
    for align, whole, part in (((1, 1), 0.31, 0.54), ((16, 16), 0.62, 0.0)):
        _, hidden = corruption(align)(feats, lengths, rand_of(feats))
        assert hidden.float().mean().item() == pytest.approx(0.61, abs=0.03)
        share = Grid().unfold(hidden.float()).mean(2)
        partial = (share > 0) & (share < 1)
        assert (share == 1).float().mean().item() == pytest.approx(
            whole, abs=0.05
        )
        assert partial.float().mean().item() == pytest.approx(part, abs=0.05)


def test_every_pixel_is_hidden_equally_often():
    lengths = torch.tensor([40, 20] * 1000)
    feats = torch.ones(2000, 40, 32)
    _, hidden = corruption()(feats, lengths, rand_of(feats))
    for parity, length in ((0, 40), (1, 20)):
        share = hidden[parity::2, :length].float().mean(0)
        for axis in (0, 1):
            profile = share.mean(axis)
            assert (profile - share.mean()).abs().max() < 0.04


def test_dropped_pixels_are_zero_and_the_rest_is_as_it_was():
    feats = 1 + torch.rand(4, 80, 32)
    lengths = torch.tensor([80, 40, 80, 3])
    corrupted, hidden = corruption()(feats, lengths, rand_of(feats))
    assert torch.equal(corrupted, feats.masked_fill(hidden, 0.0))


def test_pasted_pixels_are_those_of_another_clip():
    clips = 64
    lengths = torch.tensor([80, 40] * (clips // 2))
    feats = torch.arange(1.0, clips + 1)[:, None, None].expand(-1, 80, 32)
    feats = feats * length_to_mask(lengths, 80)[:, :, None]
    corrupted, hidden = corruption()(feats, lengths, rand_of(feats), paste=True)
    assert torch.equal(corrupted[~hidden], feats[~hidden])
    pasted = 0
    for clip in range(clips):
        filled = corrupted[clip][hidden[clip]]
        if not filled.any():
            continue
        pasted += 1
        other = int(filled.max()) - 1
        assert other != clip
        # Beyond the other clip's end there is silence.
        assert torch.equal(filled, feats[other][hidden[clip]])
        area = hidden[clip].sum() / (lengths[clip] * 32)
        assert 0.3 <= area < 0.45
    assert pasted / clips == pytest.approx(0.5, abs=0.15)


def test_a_clip_alone_has_nothing_to_paste():
    feats, lengths = torch.ones(1, 80, 32), torch.tensor([80])
    always = corruption(paste_probability=1.0)
    corrupted, hidden = always(feats, lengths, rand_of(feats), paste=True)
    assert torch.equal(corrupted, feats.masked_fill(hidden, 0.0))
    assert hidden.float().mean() >= 0.5


def test_corruption_does_not_depend_on_the_neighbors():
    feats = torch.rand(3, 80, 32)
    lengths, keys = torch.tensor([80, 33, 1]), torch.tensor([3, 1, 4])
    _, together = corruption()(feats, lengths, rand_of(feats, keys))
    for row, count in enumerate(lengths.tolist()):
        only = slice(row, row + 1)
        clip = feats[only, :count]
        _, alone = corruption()(clip, lengths[only], rand_of(clip, keys[only]))
        assert torch.equal(together[row, :count], alone[0])
