"""Centered mel spectrograms: as torchaudio's for each clip alone."""

import pytest
import torch
from torchaudio.transforms import AmplitudeToDB
from torchaudio.transforms import MelSpectrogram as Theirs

from ssast_lobes import FrontEnd
from ssast_lobes.models.mel_spectrogram import MelSpectrogram

DECIBELS = {
    "fft_size": 512,
    "window_samples": 512,
    "low_hz": 0.0,
    "mel_scale": "htk",
    "top_db": 80.0,
}


def clips(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(n, generator=generator) for n in lengths]


def padded(waves, garbage):
    longest = max(map(len, waves)) + 500
    batch = torch.full((len(waves), longest), garbage)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    return batch, torch.tensor([len(wave) / longest for wave in waves])


def test_a_clip_in_a_batch_has_the_decibels_of_torchaudio():
    waves = clips(16000, 9001, 258)
    # A quiet clip next to loud ones: each has a maximum of its own.
    waves[1] *= 1e-3
    fbank = MelSpectrogram(n_mels=64, **DECIBELS)
    theirs = Theirs(n_fft=512, hop_length=160, n_mels=64, f_max=8000.0)
    feats, n_frames = fbank(*padded(waves, garbage=9.0))
    for own, count, wave in zip(feats, n_frames, waves, strict=True):
        wanted = AmplitudeToDB(top_db=80)(theirs(wave)).T
        assert count == len(wanted) == fbank.frames_of(len(wave))
        assert (own[:count] - wanted).abs().max() < 1e-3
        assert not own[count:].any()


@pytest.mark.parametrize("pre_emphasis", [0.0, 0.97])
def test_counts_of_frames_and_samples_agree(pre_emphasis):
    fbank = MelSpectrogram(pre_emphasis=pre_emphasis)
    lengths = torch.arange(190, 1500)
    counts = fbank.frames_of(lengths)
    assert counts.tolist() == [fbank.frames_of(int(n)) for n in lengths]
    shortest = fbank.least_samples
    assert fbank.frames_of(shortest - 1) == 0 < fbank.frames_of(shortest)
    for n_frames in (3, 4, 9):
        samples = fbank.samples_of(n_frames)
        assert fbank.frames_of(samples) == n_frames
        assert fbank.frames_of(samples - 1) == n_frames - 1
    feats, n_frames = fbank(torch.randn(1, 1000))
    assert feats.shape[1] == int(n_frames) == fbank.frames_of(1000)


def test_a_clip_too_short_has_no_frame_and_stays_finite():
    feats, n_frames = MelSpectrogram()(torch.randn(1, 100))
    assert n_frames.tolist() == [0] and not feats.any()


def test_features_stay_exact_when_the_module_is_cast():
    fbank, (wave,) = MelSpectrogram(n_mels=64, **DECIBELS), clips(8000)
    feats, _ = fbank(wave[None])
    half, _ = fbank.half()(wave[None])
    assert half.dtype == torch.float32 and torch.equal(half, feats)


def test_a_front_end_is_rebuilt_from_its_config():
    statistics = {"mean": [-20.0] * 64, "std": [-5.0, *[7.0] * 63]}
    settings = {"kind": "centered", **DECIBELS}
    front = FrontEnd(statistics, n_mels=64, fbank=settings)
    again = FrontEnd(**front.config)
    assert again.config == front.config
    (wave,) = clips(8000)
    feats, n_frames = front(wave[None])
    assert torch.equal(again(wave[None])[0], feats)
    raw, _ = front.fbank(wave[None])
    assert torch.allclose(feats[0, :, 0], (raw[0, :, 0] + 20) / -10, atol=1e-6)
    assert int(n_frames) == feats.shape[1] == 51


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "gammatone"}, "kind of fbank must be one of kaldi, centered"),
        ({"kind": "centered", "hops": 3}, "fbank of kind centered: .*hops"),
        ({"kind": "centered", "high_hz": 10.0}, "high_hz must be"),
        ({"kind": "kaldi", "window": "blackman"}, "window must be one of"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(ValueError, match=message):
        FrontEnd(fbank=settings)


def test_statistics_must_fit_the_mel_bins():
    with pytest.raises(ValueError, match="statistics of 2 mel bins, the"):
        FrontEnd({"mean": [0.0, 0.0], "std": [1.0, 1.0]})
    with pytest.raises(ValueError, match="std must be a list without 0"):
        FrontEnd({"mean": [0.0] * 8, "std": [0.0] * 8}, n_mels=8)


@pytest.mark.parametrize("pre_emphasis", [0.0, 0.97])
@pytest.mark.parametrize("samples", [0, 1, 2])
def test_hardly_any_samples_are_no_frame(samples, pre_emphasis):
    fbank = MelSpectrogram(pre_emphasis=pre_emphasis)
    feats, n_frames = fbank(torch.ones(1, samples))
    assert feats.shape == (1, 1, 80) and n_frames.tolist() == [0]
    assert not feats.any()
