"""Augmentation: its statistics, its padding, its seeds, and no waiting."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ssast_lobes.augment.augmentation import (
    Mixup,
    NoiseAndRoll,
    SpectrogramMasking,
)

LENGTHS = torch.tensor([100, 60, 1, 33])
SPECTROGRAM_AUGMENTATIONS = [SpectrogramMasking(8, 40), NoiseAndRoll()]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def spectrograms(n_frames=LENGTHS, mels=16):
    frames = int(n_frames.max())
    feats = torch.randn(len(n_frames), frames, mels, generator=seeded(9))
    valid = torch.arange(frames) < n_frames[:, None]
    return feats * valid[:, :, None], valid


def clips(batch=6, samples=400):
    lens = torch.linspace(0.3, 1.0, batch)
    wav = torch.randn(batch, samples, generator=seeded(8)) + 0.5
    valid = torch.arange(samples) < (lens * samples).round()[:, None]
    return wav * valid, lens, torch.eye(batch), valid


# Mixup


def shares(alpha, rounds=12, batch=512):
    """First clips' shares in mixtures of two different clips."""
    mixup = Mixup(alpha, probability=1.0)
    wav, lens = torch.ones(batch, 2), torch.ones(batch)
    found = []
    for seed in range(rounds):
        _, _, soft = mixup(wav, lens, torch.eye(batch), seeded(seed))
        found.append(soft.diag()[soft.diag() < 0.9999])
    return torch.cat(found).double()


def test_mixup_share_is_beta_10_10():
    found = shares(10.0).sort().values
    n = len(found)
    assert n > 6000
    assert found.mean().item() == pytest.approx(0.5, abs=0.005)
    # Variance of Beta(a, a): 1 / (4 (2a + 1)).
    assert found.var().item() == pytest.approx(1 / 84, rel=0.06)
    # Its distribution function is a binomial tail; Kolmogorov-Smirnov.
    tail = sum(
        math.comb(19, k) * found**k * (1 - found) ** (19 - k)
        for k in range(10, 20)
    )
    distance = (tail - torch.arange(n) / n).abs().max().item()
    assert distance < 1.63 / math.sqrt(n)


def test_mixup_share_takes_any_alpha():
    found = shares(0.4)
    assert found.mean().item() == pytest.approx(0.5, abs=0.015)
    assert found.var().item() == pytest.approx(1 / 7.2, rel=0.06)


def test_mixup_mixes_the_asked_share_of_clips():
    wav, lens = torch.randn(4000, 3), torch.ones(4000)
    targets = torch.randn(4000, 1)
    mixed, _, soft = Mixup(probability=0.3)(wav, lens, targets, seeded(0))
    changed = (mixed != wav).any(dim=1)
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(mixed[~changed], wav[~changed])
    assert torch.equal(soft[~changed], targets[~changed])


def test_mixup_is_the_official_mixture_clip_by_clip():
    wav, lens, targets, valid = clips()
    mixed, new_lens, soft = Mixup(probability=1.0)(
        wav, lens, targets, seeded(3)
    )
    assert torch.equal(new_lens, lens)
    pairs = 0
    for clip in range(len(wav)):
        share = soft[clip, clip]
        other = soft[clip].index_fill(0, torch.tensor(clip), 0.0).argmax()
        pairs += bool(share < 0.999)
        n_first, n_second = valid[clip].sum(), valid[other].sum()
        first = wav[clip, :n_first] - wav[clip, :n_first].mean()
        second = wav[other, :n_second] - wav[other, :n_second].mean()
        padded = torch.zeros(n_first)
        n_both = min(n_first, n_second)
        padded[:n_both] = second[:n_both]
        expected = share * first + (1 - share) * padded
        expected = expected - expected.mean()
        if share < 0.999:
            torch.testing.assert_close(
                mixed[clip, :n_first], expected, atol=1e-5, rtol=0
            )
        assert mixed[clip, n_first:].abs().sum() == 0
    assert pairs >= 4


def test_mixup_never_reads_the_padding():
    wav, lens, targets, valid = clips()
    mixup = Mixup(probability=1.0)
    clean = mixup(wav, lens, targets, seeded(1))
    dirty = mixup(wav.masked_fill(~valid, 1e6), lens, targets, seeded(1))
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


def test_mixup_targets_serve_both_losses():
    wav, lens, one_hot, _ = clips()
    logits = torch.randn(one_hot.shape)
    _, _, soft = Mixup()(wav, lens, one_hot, seeded(0))
    torch.testing.assert_close(soft.sum(1), torch.ones(len(wav)))
    assert torch.nn.functional.cross_entropy(logits, soft).isfinite()

    multi_hot = one_hot.clone()
    multi_hot[:, 0] = 1.0
    _, _, soft = Mixup(probability=1.0)(wav, lens, multi_hot, seeded(0))
    torch.testing.assert_close(soft[:, 0], torch.ones(len(wav)))
    assert soft.min() >= 0 and soft.max() <= 1
    assert torch.nn.functional.binary_cross_entropy_with_logits(
        logits, soft
    ).isfinite()


def test_mixup_refuses_class_indices():
    wav, lens, _, _ = clips()
    with pytest.raises(ValueError, match="one-hot"):
        Mixup()(wav, lens, torch.arange(len(wav)))


# Spectrogram masking


def test_mask_widths_and_places_are_uniform():
    batch, frames, mels, width = 8000, 30, 20, 8
    feats = torch.ones(batch, frames, mels)
    n_frames = torch.full((batch,), frames)
    out = SpectrogramMasking(width, 0)(feats, n_frames, seeded(0))
    hidden = out[:, 0] == 0
    assert torch.equal(out == 0, hidden[:, None, :].expand_as(out))
    widths = hidden.sum(1)
    counts = torch.bincount(widths, minlength=width + 1)
    assert counts[width] == 0
    expected = batch / width
    chi_squared = ((counts[:width] - expected) ** 2 / expected).sum()
    assert chi_squared < 24.3  # 7 degrees of freedom, p = 0.001
    edges = torch.diff(hidden.int(), dim=1, prepend=torch.zeros(batch, 1))
    assert (edges == 1).sum(1).max() == 1
    # Bands of 5 bins fit in 16 places, the last one included.
    starts = hidden[widths == 5].int().argmax(1)
    counts = torch.bincount(starts, minlength=16)
    assert len(counts) == 16
    expected = len(starts) / 16
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 37.7  # 15 degrees of freedom, p = 0.001


def test_time_masks_lie_within_each_clip():
    n_frames = torch.tensor([90, 30, 5, 0]).repeat_interleave(3000)
    feats = torch.ones(len(n_frames), 90, 2)
    out = SpectrogramMasking(0, 24)(feats, n_frames, seeded(0))
    hidden = (out[:, :, 0] == 0).view(4, 3000, 90)
    for clip, size in enumerate([90, 30, 5, 0]):
        assert not hidden[clip, :, size:].any()
    widths = hidden.sum(2).double()
    # Uniform over 0..23: mean 11.5; the clip's own length is the limit.
    assert widths[0].mean().item() == pytest.approx(11.5, abs=0.5)
    assert widths[1].mean().item() == pytest.approx(11.5, abs=0.5)
    assert widths[2].max() == 5
    # The last valid frame of a clip is as often hidden as its first.
    ends = hidden[1].float().mean(0)
    assert ends[29].item() == pytest.approx(ends[0].item(), abs=0.03)
    assert ends[29] > 0.01


def test_clips_of_a_batch_get_their_own_masks():
    feats, n_frames = torch.ones(16, 80, 32), torch.full((16,), 80)
    out = SpectrogramMasking(16, 40)(feats, n_frames, seeded(0))
    assert len({tuple(clip.flatten().tolist()) for clip in out}) == 16


def test_masking_can_be_switched_off():
    feats, _ = spectrograms()
    assert torch.equal(SpectrogramMasking(0, 0)(feats, LENGTHS), feats)


# Noise and roll


def test_roll_is_torchs_roll_of_the_valid_frames():
    feats, _ = spectrograms()
    seen = set()
    for seed in range(40):
        out = NoiseAndRoll(noise=0.0, shift=3)(feats, LENGTHS, seeded(seed))
        for clip, size in enumerate(LENGTHS.tolist()):
            audio = feats[clip, :size]
            shifts = [
                shift
                for shift in range(-3, 3)
                if torch.equal(out[clip, :size], audio.roll(shift, 0))
            ]
            assert shifts
            if size > 6:
                seen.update(shifts)
    assert seen == {-3, -2, -1, 0, 1, 2}


def test_shifts_are_uniform():
    feats = torch.arange(50.0)[None, :, None].expand(6000, 50, 1)
    n_frames = torch.full((6000,), 50)
    out = NoiseAndRoll(noise=0.0, shift=10)(feats, n_frames, seeded(0))
    shift = (-out[:, 0, 0]).long()
    shift = torch.where(shift < -25, shift + 50, shift)
    counts = torch.bincount(shift + 10, minlength=20)
    assert counts.sum() == 6000 and len(counts) == 20
    assert ((counts - 300) ** 2 / 300).sum() < 43.8  # 19 degrees, p = 0.001


def test_noise_is_uniform_of_a_uniform_strength():
    feats = torch.zeros(3000, 40, 5)
    n_frames = torch.full((3000,), 40)
    out = NoiseAndRoll(noise=0.2, shift=0)(feats, n_frames, seeded(0)).double()
    assert out.min() >= 0 and out.max() <= 0.2
    assert out.mean().item() == pytest.approx(0.05, rel=0.05)
    strength = out.flatten(1).amax(1)
    assert strength.mean().item() == pytest.approx(0.1, rel=0.05)
    assert strength.var().item() == pytest.approx(0.04 / 12, rel=0.1)
    within = out.flatten(1) / strength[:, None]
    assert within.mean().item() == pytest.approx(0.5, abs=0.01)
    assert within.var().item() == pytest.approx(1 / 12, rel=0.02)


# All of them


@pytest.mark.parametrize("augmentation", SPECTROGRAM_AUGMENTATIONS)
def test_padding_stays_zero_and_input_untouched(augmentation):
    feats, valid = spectrograms()
    before = feats.clone()
    out = augmentation(feats, LENGTHS, seeded(2))
    assert out.shape == feats.shape
    assert not torch.equal(out, feats)
    assert out[~valid].abs().sum() == 0
    assert torch.equal(feats, before)


@pytest.mark.parametrize("augmentation", SPECTROGRAM_AUGMENTATIONS)
def test_padding_never_enters_a_clip(augmentation):
    feats, valid = spectrograms()
    dirty = feats.masked_fill(~valid[:, :, None], 1e6)
    clean = augmentation(feats, LENGTHS, seeded(2))
    assert torch.equal(
        augmentation(dirty, LENGTHS, seeded(2))[valid], clean[valid]
    )


def _run(augmentation, generator):
    if isinstance(augmentation, Mixup):
        wav, lens, targets, _ = clips()
        return torch.cat(augmentation(wav, lens, targets, generator)[::2], 1)
    return augmentation(spectrograms()[0], LENGTHS, generator)


@pytest.mark.parametrize("augmentation", [Mixup(), *SPECTROGRAM_AUGMENTATIONS])
def test_equal_seeds_equal_results(augmentation):
    state = torch.get_rng_state()
    first = _run(augmentation, seeded(5))
    assert torch.equal(first, _run(augmentation, seeded(5)))
    assert not torch.equal(first, _run(augmentation, seeded(6)))
    # With a generator of its own, the global one is left alone.
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(_run(augmentation, None), _run(augmentation, None))


class NoHostSynchronisation(TorchDispatchMode):
    """Refuses what would make the host wait for an accelerator."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.WAITING, func
        if func.overloadpacket.__name__ == "index":
            assert all(i is None or i.dtype != torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("augmentation", [Mixup(), *SPECTROGRAM_AUGMENTATIONS])
def test_no_host_synchronisation(augmentation):
    feats, _ = spectrograms()
    wav, lens, targets, valid = clips()
    with NoHostSynchronisation():
        if isinstance(augmentation, Mixup):
            augmentation(wav, lens, targets, seeded(0))
        else:
            augmentation(feats, LENGTHS, seeded(0))
        with pytest.raises(AssertionError):
            wav[valid]
        with pytest.raises(AssertionError):
            lens[0].item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("augmentation", [Mixup(), *SPECTROGRAM_AUGMENTATIONS])
def test_cuda_generator_and_no_waiting(augmentation):
    wav, lens, targets, _ = (x.cuda() for x in clips())
    feats, n_frames = spectrograms()[0].cuda(), LENGTHS.cuda()
    generator = torch.Generator("cuda")
    results = []
    for _ in range(2):
        generator.manual_seed(4)
        torch.cuda.set_sync_debug_mode("error")
        try:
            if isinstance(augmentation, Mixup):
                results.append(augmentation(wav, lens, targets, generator)[0])
            else:
                results.append(augmentation(feats, n_frames, generator))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(results[0], results[1])
