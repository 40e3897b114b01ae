"""Views: crops, resizing and mixing, clip by clip against plain PyTorch."""

import math

import pytest
import torch
from torchaudio.functional import create_dct

from ssast_lobes.objectives.views import (
    Background,
    LogMixup,
    RandomChannel,
    RandomCrop,
    RandomResizedCrop,
    draw_whole,
    resize_part,
)
from ssast_lobes.utils.random import RandomSource


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(lengths=(60, 41, 7, 1), n_mels=16, seed=0):
    feats = torch.zeros(len(lengths), max(lengths), n_mels)
    draw = seeded(seed)
    for row, length in zip(feats, lengths, strict=True):
        row[:length] = torch.randn(length, n_mels, generator=draw)
    return feats, torch.tensor(lengths)


def rand_of(feats, keys=None, seed=0):
    return RandomSource(len(feats), feats.device, seeded(seed), keys)


def test_whole_numbers_stay_below_their_bound():
    largest = torch.tensor([1 - 2**-24])
    for bound in (1, 3, 1000, 2**20 + 1):
        assert draw_whole(largest, bound).item() == bound - 1


@pytest.mark.parametrize("fraction", [0.6, 0.13, 1.0])
def test_a_crop_is_a_stretch_of_its_clip(fraction):
    feats, n_frames = batch()
    crops, counts = RandomCrop(fraction)(feats, n_frames, rand_of(feats))
    assert crops.shape[1] == max(1, round(fraction * 60))
    for crop, clip, count, length in zip(
        crops, feats, counts.tolist(), n_frames.tolist(), strict=True
    ):
        assert count == max(1, round(fraction * length))
        assert (crop[count:] == 0).all()
        starts = range(length - count + 1)
        assert any(
            torch.equal(crop[:count], clip[s : s + count]) for s in starts
        )


def test_crops_of_any_length():
    feats = torch.arange(100.0)[None, :, None].expand(3000, -1, -1)
    n_frames = torch.full((3000,), 100)
    crops, counts = RandomCrop((0.5, 1.0))(feats, n_frames, rand_of(feats))
    assert crops.shape == feats.shape
    assert counts.min() == 50 and counts.max() == 100
    assert abs(counts.double().mean() - 75) < 1
    first = crops[:, 0, 0].long()
    assert (first + counts <= 100).all()
    last = crops[torch.arange(3000), counts - 1, 0].long()
    assert torch.equal(last - first, counts - 1)
    with pytest.raises(ValueError, match="crop must be a fraction above 0"):
        RandomCrop((0.7, 0.5))


def test_crops_begin_everywhere():
    feats = torch.arange(10.0)[None, :, None].expand(2000, -1, -1)
    n_frames = torch.full((2000,), 10)
    crops, _ = RandomCrop(0.8)(feats, n_frames, rand_of(feats))
    shares = torch.bincount(crops[:, 0, 0].long()) / 2000
    assert len(shares) == 3 and (shares - 1 / 3).abs().max() < 0.04


@pytest.mark.parametrize("fraction", [0, 1.5])
def test_impossible_crops_are_refused(fraction):
    with pytest.raises(ValueError, match="crop must be a"):
        RandomCrop(fraction)


def by_interpolate(clip, canvas, size, first):
    """One clip (L, C): its part of the canvas by PyTorch's own bicubic."""
    length = len(clip)
    wide = torch.zeros(canvas, clip.shape[1])
    margin = (canvas - length) // 2
    wide[margin : margin + length] = clip
    part = wide[first : first + size][None, None]
    return torch.nn.functional.interpolate(
        part, (length, clip.shape[1]), mode="bicubic", align_corners=True
    )[0, 0]


def test_resizing_is_bicubic():
    lengths, canvas = [40, 40, 23, 40, 9], [40, 60, 34, 60, 9]
    size, first = [25, 60, 20, 1, 9], [15, 0, 14, 59, 0]
    feats, n_frames = batch(lengths)
    resized = resize_part(
        feats, n_frames, *(torch.tensor(x) for x in (canvas, size, first))
    )
    for row, clip, length, *part in zip(
        resized, feats, lengths, canvas, size, first, strict=True
    ):
        expected = by_interpolate(clip[:length], *part)
        assert torch.allclose(row[:length], expected, atol=1e-5)
        assert (row[length:] == 0).all()


def test_the_whole_is_resized_to_itself():
    feats, n_frames = batch()
    same = resize_part(feats, n_frames, n_frames, n_frames, 0 * n_frames)
    assert torch.equal(same, feats)


def test_resizing_both_axes_is_bicubic():
    feats, n_frames = batch((40,))
    resize = RandomResizedCrop((0.6, 1.5), (0.6, 1.5), time_canvas=1.5)
    resized = resize(feats, n_frames, rand_of(feats, seed=3))[0]
    # The draws again, as they are made.
    rand = rand_of(feats, seed=3)
    mel, time = rand(1, 2)[0, 0].double(), rand(1, 2)[0, 0].double()
    height = min(16, int((0.6 + 0.9 * mel[0]) * 16))
    width = int((0.6 + 0.9 * time[0]) * 40)
    top, left = int(mel[1] * (17 - height)), int(time[1] * (61 - width))
    wide = torch.zeros(60, 16)
    wide[10:50] = feats[0]
    part = wide[left : left + width, top : top + height][None, None]
    expected = torch.nn.functional.interpolate(
        part, (40, 16), mode="bicubic", align_corners=True
    )[0, 0]
    assert height < 16 and torch.allclose(resized, expected, atol=1e-5)


def test_resizing_frequency_leaves_frames_where_they_are():
    feats, n_frames = batch()
    later = feats.clone()
    later[:, 20] += 1
    resize = RandomResizedCrop((0.6, 1.5))
    one, other = (resize(x, n_frames, rand_of(feats)) for x in (feats, later))
    changed = (one != other).any(2).any(0)
    assert changed.nonzero().flatten().tolist() == [20]


def by_hand(clip, other, ratio):
    """log-mixup-exp of two stretches (L, n_mels)."""
    return ((1 - ratio) * clip.exp() + ratio * other.exp()).log()


def test_mixing_averages_exponentials():
    mixup = LogMixup(ratio=0.4, memory=4, frames=50, n_mels=16)
    old, old_frames = batch((50, 12), seed=1)
    mixup.remember(old, old_frames)
    feats, n_frames = batch()
    mixed = mixup(feats, n_frames, rand_of(feats))
    draws = rand_of(feats)(1, 2)[:, 0]
    for row, clip, length, (which, ratio) in zip(
        mixed, feats, n_frames.tolist(), draws.tolist(), strict=True
    ):
        chosen = int(which * 2)
        both = min(length, old_frames[chosen].item())
        expected = by_hand(clip[:both], old[chosen, :both], 0.4 * ratio)
        assert torch.allclose(row[:both], expected, atol=2e-3)
        # Where the other clip is over, this one is as it was.
        assert torch.equal(row[both:], clip[both:])


def test_the_memory_forgets_the_oldest():
    mixup = LogMixup(ratio=0.4, memory=3, frames=5, n_mels=2)
    for value in range(1, 5):
        mixup.remember(torch.full((1, 9, 2), value), torch.tensor([value + 2]))
    assert mixup.clips[:, 0, 0].tolist() == [4, 2, 3]
    # Longer clips lose their end.
    assert mixup.n_frames.tolist() == [5, 4, 5]
    mixup.remember(
        torch.arange(7.0)[:, None, None].expand(7, 2, 2),
        2 + 0 * torch.arange(7),
    )
    assert sorted(mixup.clips[:, 0, 0].tolist()) == [4, 5, 6]


def test_the_memory_is_saved():
    mixup, again = (LogMixup(0.4, 4, 50, 16) for _ in range(2))
    feats, n_frames = batch()
    mixup.remember(feats, n_frames)
    again.load_state_dict(mixup.state_dict())
    one, other = (x(feats, n_frames, rand_of(feats)) for x in (mixup, again))
    assert torch.equal(one, other) and not torch.equal(one, feats)


def test_evaluation_neither_mixes_nor_remembers():
    mixup = LogMixup(0.4, 4, 50, 16)
    feats, n_frames = batch()
    mixup.remember(feats, n_frames)
    before = {key: x.clone() for key, x in mixup.state_dict().items()}
    mixup.eval()
    assert mixup(feats, n_frames, rand_of(feats)) is feats
    mixup.remember(feats, n_frames)
    after = mixup.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    "view",
    [
        lambda *x: RandomCrop(0.6)(*x)[0],
        RandomResizedCrop((0.6, 1.5), (0.6, 1.5), time_canvas=1.5),
    ],
    ids=["crop", "resize"],
)
def test_a_view_does_not_depend_on_the_neighbors(view):
    feats, n_frames = batch()
    keys = torch.tensor([3, 1, 4, 1])
    together = view(feats, n_frames, rand_of(feats, keys))
    for row, count in enumerate(n_frames.tolist()):
        only = slice(row, row + 1)
        alone = view(
            feats[only, :count],
            n_frames[only],
            rand_of(feats[only], keys[only]),
        )[0]
        size = len(alone)
        assert torch.allclose(together[row, :size], alone, atol=1e-6)
        assert (together[row, size:] == 0).all()


def test_backgrounds_add_powers_at_the_level_asked_for():
    lengths = (60, 41, 50)
    feats, n_frames = batch(lengths)
    background = Background(probability=1.0, snr=(10.0, 10.0), scale=3.0)
    mixed = background(feats, n_frames, rand_of(feats))
    for number, length in enumerate(lengths):
        assert (mixed[number, length:] == 0).all()
        clip = feats[number, :length]
        found = []
        for other, other_length in enumerate(lengths):
            if other == number:
                continue
            shared = min(length, other_length)
            noise = feats[other, :other_length]
            # Ten times less power than the clip, as means of logarithms go.
            factor = 3.0 * (clip.mean() - noise.mean()) - math.log(10)
            power = (3.0 * clip).exp()
            power[:shared] += (3.0 * noise[:shared] + factor).exp()
            error = (power.log() / 3.0 - mixed[number, :length]).abs().max()
            found.append(error < 1e-4)
        assert sum(found) == 1


def test_a_clip_alone_gets_no_background():
    feats, n_frames = torch.randn(1, 9, 4), torch.tensor([9])
    background = Background(probability=1.0, snr=(0.0, 0.0), scale=1.0)
    mixed = background(feats, n_frames, rand_of(feats))
    assert torch.equal(mixed, feats)


def test_backgrounds_come_as_often_as_asked_for():
    feats, n_frames = torch.randn(4000, 2, 3), torch.full((4000,), 2)
    background = Background(probability=0.3, snr=(0.0, 20.0), scale=1.0)
    mixed = background(feats, n_frames, rand_of(feats))
    changed = (mixed != feats).flatten(1).any(1)
    assert abs(changed.float().mean() - 0.3) < 0.03
    assert torch.equal(mixed[~changed], feats[~changed])


def test_a_channel_is_one_smooth_curve_a_clip():
    feats, n_frames = batch((60, 41, 7), n_mels=64)
    channel = RandomChannel(level=0.4, tilt=0.2, cosines=4)
    added = channel(feats, n_frames, rand_of(feats)) - feats
    curves = added[:, 0]
    for own, curve, length in zip(added, curves, n_frames, strict=True):
        assert (own[:length] - curve).abs().max() < 1e-6
        assert (own[length:] == 0).all()
    assert (curves[0] - curves[1]).abs().max() > 0.01
    # Nothing but the offset and four cosines.
    spectrum = create_dct(64, 64, norm="ortho").T @ curves.T
    assert spectrum[5:].abs().max() < 1e-5
    most = 0.4 + 0.2 * sum(1 / k for k in range(1, 5))
    assert curves.abs().max() < most


def test_views_of_keyed_draws_repeat():
    feats, n_frames = batch()
    keys = torch.arange(len(feats))
    for view in (Background(1.0, (0.0, 9.0), 2.0), RandomChannel(0.4, 0.2, 3)):
        first, second = (
            view(feats, n_frames, rand_of(feats, keys)) for _ in range(2)
        )
        assert torch.equal(first, second)
