"""Degradation: what each step does to the sound, and to whom."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ssast_lobes.augment.degradation import (
    AddedNoise,
    BandLimit,
    Clipping,
    Companding,
    Degradation,
    TransformCoding,
)

RATE = 16000
STEPS = [
    AddedNoise(),
    Clipping(),
    BandLimit(),
    Companding(),
    TransformCoding(),
]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def clips(batch=4, samples=4000):
    """Waveforms below 1, their lengths, and where they are audio."""
    lens = torch.linspace(0.3, 1.0, batch)
    wav = 0.1 * torch.randn(batch, samples, generator=seeded(8))
    valid = torch.arange(samples) < (lens * samples).round()[:, None]
    return wav * valid, lens, valid


def tone(hertz, samples=RATE, loud=0.5):
    time = torch.arange(samples) / RATE
    wav = loud * torch.sin(2 * math.pi * hertz * time)[None]
    return wav, torch.ones_like(wav, dtype=torch.bool)


def power(wav, valid):
    return (wav.square() * valid).sum(1) / valid.sum(1)


def decibels(ratio):
    return 10 * math.log10(ratio)


@pytest.mark.parametrize("step", STEPS, ids=lambda s: type(s).__name__)
def test_a_step_changes_all_clips_and_no_padding(step):
    wav, lens, valid = clips()
    before = wav.clone()
    degraded = Degradation([step], probability=1.0)(wav, lens, seeded(0))
    assert torch.equal(wav, before)
    assert degraded.shape == wav.shape and degraded.dtype == wav.dtype
    assert degraded.isfinite().all()
    assert torch.equal(degraded[~valid], wav[~valid])
    assert ((degraded != wav).sum(1) > 0.001 * valid.sum(1)).all()
    again = Degradation([step], probability=1.0)(wav, lens, seeded(0))
    assert torch.equal(again, degraded)
    other = Degradation([step], probability=1.0)(wav, lens, seeded(1))
    assert not torch.equal(other, degraded)


@pytest.mark.parametrize("step", STEPS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("samples", [1, 10, 257])
def test_short_and_silent_clips(step, samples):
    lens = torch.ones(2)
    for wav in (torch.zeros(2, samples), 0.3 * torch.ones(2, samples)):
        degraded = Degradation([step], probability=1.0)(wav, lens, seeded(0))
        assert degraded.shape == wav.shape
        assert degraded.isfinite().all()
        assert degraded.abs().max() < 1.5
        if wav.abs().max() == 0:
            assert degraded.abs().max() < 1e-2


def test_chance_of_a_step_is_each_clips_own():
    wav, lens = torch.randn(4000, 8), torch.ones(4000)
    clipping = Clipping(level=(0.5, 0.5))
    once = Degradation([clipping], probability=0.3)(wav, lens, seeded(0))
    changed = (once != wav).any(dim=1)
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.03)
    never = Degradation(STEPS, probability=0.0)(wav, lens, seeded(0))
    assert torch.equal(never, wav)


@pytest.mark.parametrize("snr", [0.0, 20.0])
def test_noise_has_the_ratio_of_the_clips_own_samples(snr):
    wav, lens, valid = clips()
    noise = AddedNoise(snr_db=(snr, snr))(wav, valid, seeded(0)) - wav
    for own, added in zip(power(wav, valid), power(noise, valid), strict=True):
        assert decibels(own / added) == pytest.approx(snr, abs=0.01)


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_noise_has_the_color(slope):
    wav, valid = tone(100, samples=1 << 17)
    step = AddedNoise(snr_db=(0.0, 0.0), slope=(slope, slope))
    noise = step(wav, valid, seeded(0)) - wav
    spectrum = torch.fft.rfft(noise[0]).abs().square()
    low, high = spectrum[2000:4000].mean(), spectrum[16000:32000].mean()
    # Three octaves.
    assert decibels(low / high) == pytest.approx(9.03 * slope, abs=0.5)


def test_clipping_is_of_the_clips_own_peak():
    wav = torch.tensor([[0.2, -0.1, 0.05, 9.0], [0.4, 0.8, -0.8, 0.1]])
    valid = torch.tensor([[True, True, True, False], [True] * 4])
    clipped = Clipping(level=(0.5, 0.5))(wav, valid)
    assert clipped[0, :3].tolist() == pytest.approx([0.1, -0.1, 0.05])
    assert clipped[1].tolist() == pytest.approx([0.4, 0.4, -0.4, 0.1])


@pytest.mark.parametrize(
    ("hertz", "loss"), [(50, 40), (300, 3), (1000, 0), (3400, 3), (6000, 38)]
)
def test_band_limit(hertz, loss):
    step = BandLimit((300.0, 300.0), (3400.0, 3400.0), order=8)
    wav, valid = tone(hertz)
    limited = step(wav, valid)
    lost = decibels(power(wav, valid) / power(limited, valid))
    if loss < 10:
        assert lost == pytest.approx(loss, abs=0.05)
    else:
        assert lost > loss
    # Without a shift of phase.
    assert (wav * limited).sum() > 0


def test_companding_is_as_good_for_quiet_sounds():
    step = Companding(bits=(8.0, 8.0))
    for loud in (0.9, 0.05):
        wav, valid = tone(440, loud=loud)
        coded = step(wav, valid)
        assert len(coded.unique()) <= 256
        ratio = power(wav, valid) / power(coded - wav, valid)
        # G.711: about 38 dB over a range of 40 dB of levels.
        assert decibels(ratio) == pytest.approx(37, abs=3)


def test_fewer_bits_are_worse():
    wav, _, valid = clips()
    errors = [
        power(Companding(bits=(b, b))(wav, valid) - wav, valid).mean()
        for b in (8.0, 6.5, 5.0)
    ]
    assert errors[0] * 5 < errors[1] and errors[1] * 5 < errors[2]


def test_transform_coding_keeps_peaks_and_leaves_holes():
    strong, valid = tone(1000)
    weak, _ = tone(1080, loud=0.002)
    coded = TransformCoding(step=(2.0, 2.0))(strong + weak, valid)
    spectrum = torch.fft.rfft(coded[0]).abs()
    assert spectrum[1000] > 0.9 * torch.fft.rfft(strong[0])[1000].abs()
    # A step close to nothing changes nothing: analysis and synthesis agree.
    exact = TransformCoding(step=(1e-4, 1e-4))(strong + weak, valid)
    assert torch.allclose(exact, strong + weak, atol=1e-4)
    noise = 0.1 * torch.randn(1, RATE, generator=seeded(0))
    errors = [
        power(TransformCoding(step=(s, s))(noise, valid) - noise, valid)
        for s in (0.5, 1.5, 3.0)
    ]
    assert errors[0] < errors[1] < errors[2]


class NoHostSynchronisation(TorchDispatchMode):
    """Refuses what would make the host wait for an accelerator."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.WAITING, func
        return func(*args, **(kwargs or {}))


def test_no_host_synchronisation():
    wav, lens, _ = clips()
    with NoHostSynchronisation():
        Degradation(STEPS, probability=0.5)(wav, lens, seeded(0))
        with pytest.raises(AssertionError):
            lens[0].item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_does_not_wait():
    wav, lens, _ = (x.cuda() for x in clips())
    degradation = Degradation(STEPS, probability=0.5).cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    degradation(wav, lens, generator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        degraded = degradation(wav, lens, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert degraded.isfinite().all()


def test_precision_is_not_lowered():
    wav, lens, _ = clips()
    degradation = Degradation(STEPS, probability=1.0)
    expected = degradation(wav, lens, seeded(0))
    with torch.autocast("cpu", torch.bfloat16):
        degraded = degradation(wav, lens, seeded(0))
    assert degraded.dtype == torch.float32
    assert torch.equal(degraded, expected)
