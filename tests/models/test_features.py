"""Front end against torchaudio's Kaldi and numpy, clip by clip."""

import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi

from ssast_lobes.models.features import FrontEnd, KaldiFbank
from ssast_lobes.models.normalization import RunningStatistics, SpectrogramNorm
from ssast_lobes.utils.lengths import length_to_mask, sample_counts

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device"
)


def kaldi_features(clip, sample_rate=16000, n_mels=128):
    """What SSAST computes of one clip (samples,), or None if too short."""
    if len(clip) < int(sample_rate * 0.025):
        return None
    return kaldi.fbank(
        (clip - clip.mean())[None],
        htk_compat=True,
        sample_frequency=sample_rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=n_mels,
        dither=0.0,
        frame_shift=10,
    )


def noise(samples, seed=0, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(samples, generator=generator)


def padded(clips, garbage=0.0, extra=0):
    """Clips of any length as (B, S) and relative lengths (B,) float32."""
    longest = max(len(clip) for clip in clips) + extra
    wav = torch.full((len(clips), longest), garbage)
    for row, clip in zip(wav, clips, strict=True):
        row[: len(clip)] = clip
    return wav, torch.tensor([len(clip) / longest for clip in clips])


def assert_like_kaldi(fbank, clips, **padding):
    """Every clip of the batch equals Kaldi's features of that clip alone."""
    wav, lengths = padded(clips, **padding)
    feats, n_frames = fbank(wav, lengths)
    assert feats.dtype == torch.float32 and n_frames.dtype == torch.int64
    for row, count, clip in zip(feats, n_frames.tolist(), clips, strict=True):
        expected = kaldi_features(clip, fbank.sample_rate, fbank.n_mels)
        assert count == (0 if expected is None else len(expected))
        if count:
            torch.testing.assert_close(row[:count], expected, atol=1e-4, rtol=0)
        assert (row[count:] == 0).all()


LENGTHS = [16000, 399, 400, 559, 560, 561, 23456, 7, 12345, 8000]


def test_equals_kaldi_at_every_length():
    clips = [noise(length, seed) for seed, length in enumerate(LENGTHS)]
    assert_like_kaldi(KaldiFbank(), clips, garbage=float("nan"))


@pytest.mark.parametrize("seed", range(5))
def test_equals_kaldi_in_random_batches(seed):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(400, 30000, (6,), generator=draw).tolist()
    clips = [noise(n, 10 * seed + i) for i, n in enumerate(lengths)]
    assert_like_kaldi(KaldiFbank(), clips, garbage=9.0, extra=seed * 100)


def test_equals_kaldi_on_silence_offset_and_tones():
    time = torch.arange(16000) / 16000
    tone = 0.5 * torch.sin(2 * torch.pi * 440 * time)
    clips = [
        torch.zeros(9000),
        torch.full((5000,), 0.25),
        noise(16000) + 0.7,
        tone,
        tone - 0.9,
        noise(16000, scale=1e-4),
        torch.cat([torch.zeros(4000), noise(4000), torch.zeros(4000)]),
        noise(8000).clamp(-0.05, 0.05),
    ]
    assert_like_kaldi(KaldiFbank(), clips)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("n_mels", [64, 80, 128])
def test_equals_kaldi_at_other_rates_and_sizes(sample_rate, n_mels):
    fbank = KaldiFbank(sample_rate, n_mels)
    lengths = (sample_rate, sample_rate // 2 + 1, sample_rate // 50)
    clips = [noise(length, seed) for seed, length in enumerate(lengths)]
    assert_like_kaldi(fbank, clips)


def test_a_clip_does_not_depend_on_its_neighbors():
    clip, fbank = noise(12345), KaldiFbank()
    alone = fbank(clip[None])[0][0]
    for seed in range(3):
        wav, lengths = padded([noise(30000, seed + 1, 5.0), clip], garbage=3.0)
        together = fbank(wav, lengths)[0][1]
        torch.testing.assert_close(
            together[: len(alone)], alone, atol=1e-5, rtol=0
        )


def test_counts_are_exact_where_a_relative_length_is_rounded():
    longest = 160033
    samples = torch.arange(400, longest, 37)
    lengths = samples.float() / longest
    counts = sample_counts(
        torch.empty(1, 1).expand(len(samples), longest), lengths
    )
    assert torch.equal(counts, samples)


# Lengths of two clips, and what the error says.
WRONG_LENGTHS = {
    "in samples": ([16000, 8000], "divide lengths in samples.*got 16000"),
    "too long": ([1.0, 1.001], "at most 1.*got 1.001"),
    "none": ([1.0, 0.0], "above 0.*got 0"),
    "negative": ([1.0, -0.5], "above 0.*got -0.5"),
    "NaN": ([float("nan"), 1.0], "above 0.*got nan"),
    "too few": ([1.0], r"2 clips, but lengths of shape \(1,\)"),
    "a column": ([[1.0], [0.5]], r"2 clips, but lengths of shape \(2, 1\)"),
}


@pytest.mark.parametrize("case", WRONG_LENGTHS)
def test_wrong_lengths_are_an_error(case):
    lengths, message = WRONG_LENGTHS[case]
    for features in (KaldiFbank(), FrontEnd(), FrontEnd(pad_frames=64)):
        with pytest.raises(ValueError, match=message):
            features(torch.zeros(2, 16000), torch.tensor(lengths))


def test_rounding_noise_of_a_length_is_none():
    fbank, wav = KaldiFbank(), noise(16000)[None]
    expected = fbank(wav)[0]
    assert torch.equal(fbank(wav, torch.tensor([1 + 5e-7]))[0], expected)
    assert torch.equal(fbank(wav, torch.tensor([1]))[0], expected)


def test_wrong_lengths_are_found_in_compiled_code():
    compiled = torch.compile(sample_counts, backend="eager", fullgraph=True)
    wav = torch.zeros(2, 16000)
    counts = compiled(wav, torch.tensor([1.0, 0.5]))
    assert counts.tolist() == [16000, 8000]
    with pytest.raises(RuntimeError, match="divide lengths in samples"):
        compiled(wav, torch.tensor([16000.0, 8000.0]))


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 559, 560, 16000])
def test_frames_of_agrees_for_numbers_and_tensors(samples):
    fbank = KaldiFbank()
    expected = 0 if samples < 400 else 1 + (samples - 400) // 160
    assert fbank.frames_of(samples) == expected
    assert fbank.frames_of(torch.tensor([samples])).tolist() == [expected]


def test_all_clips_are_full_without_lengths():
    wav = torch.stack([noise(16000), noise(16000, 1)])
    feats, n_frames = KaldiFbank()(wav)
    again, counts = KaldiFbank()(wav, torch.ones(2))
    assert torch.equal(feats, again) and torch.equal(n_frames, counts)


def test_many_clips_are_those_of_few_and_have_gradients():
    # More frames than are worked on at once.
    wav = torch.stack([noise(16000, seed=seed) for seed in range(25)])
    lengths = torch.linspace(0.1, 1, 25)
    wav.requires_grad_()
    feats, n_frames = KaldiFbank()(wav, lengths)
    for n in range(25):
        alone, count = KaldiFbank()(wav[n : n + 1], lengths[n : n + 1])
        assert torch.equal(count[0], n_frames[n])
        torch.testing.assert_close(feats[n], alone[0], atol=1e-5, rtol=0)
    feats.square().mean().backward()
    heard = wav.grad.ne(0).any(0)
    assert wav.grad.isfinite().all() and heard.float().mean() > 0.9
    assert not wav.grad[0, 1600:].any()


def test_float32_under_bf16_autocast():
    fbank, wav = KaldiFbank(), noise(16000)[None]
    expected = fbank(wav)[0]
    with torch.autocast("cpu", torch.bfloat16):
        inside = fbank(wav)[0]
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_float32_whatever_the_waveform_is(dtype):
    fbank, wav = KaldiFbank(), noise(8000)[None].to(dtype)
    assert torch.equal(fbank(wav)[0], fbank(wav.float())[0])


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.int64])
def test_integers_are_refused_with_the_way_to_convert_them(dtype):
    wav = torch.ones(1, 16000, dtype=dtype)
    with pytest.raises(ValueError, match=f"{dtype}: .*ssast_lobes.to_float"):
        KaldiFbank()(wav)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_a_cast_module_keeps_its_filterbank(cast):
    wav, lengths = padded([noise(16000), noise(5000, 1)])
    expected = FrontEnd()(wav, lengths)[0]
    module = getattr(FrontEnd(), cast)()
    found = module(wav, lengths)[0]
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert torch.equal(module.to(torch.float32)(wav, lengths)[0], expected)
    empty = FrontEnd().to("meta").half()
    assert empty.fbank.mel_filters.device.type == "meta"
    assert empty.to_empty(device="cpu").fbank.mel_filters.dtype == torch.float32


# Rate, mel bins, dead ones, and the largest number without any.
DEAD_BINS = [(16000, 256, 25, 126), (8000, 128, 4, 95), (48000, 256, 1, 250)]


@pytest.mark.parametrize("rate, n_mels, dead, fitting", DEAD_BINS)
def test_mel_bins_that_nothing_reaches_are_told(
    rate, n_mels, dead, fitting, caplog
):
    feats, _ = KaldiFbank(rate, n_mels)(noise(2 * rate)[None])
    assert feats.std(1).eq(0).sum() == dead
    [told] = [record.getMessage() for record in caplog.records]
    assert f"{dead} of {n_mels} mel bins are constant at {rate} Hz" in told
    assert f"n_mels={fitting} " in told
    caplog.clear()
    feats, _ = KaldiFbank(rate, fitting)(noise(2 * rate)[None])
    assert (feats.std(1) > 0).all() and not caplog.records
    KaldiFbank(rate, fitting + 1)
    assert len(caplog.records) == 1


def test_the_published_filterbank_is_built_in_silence(caplog):
    # Its first bin is dead, too.
    feats, _ = KaldiFbank()(noise(32000)[None])
    assert feats.std(1).eq(0).sum() == 1 and not caplog.records


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 1, 16000\)"):
        KaldiFbank()(torch.zeros(1, 1, 16000))


def test_normalization_by_hand_and_zero_padding():
    feats = torch.arange(12.0).view(1, 4, 3)
    out = SpectrogramNorm(mean=2.0, std=0.5)(feats, torch.tensor([3]))
    expected = np.arange(12.0).reshape(1, 4, 3) - 2.0
    expected[:, 3:] = 0
    np.testing.assert_allclose(out.numpy(), expected)


@pytest.mark.parametrize(
    "name, silence",
    [("audioset", 0.467), ("esc50", 0.618), ("speechcommands", 0.615)],
)
def test_official_padding_value(name, silence):
    norm = SpectrogramNorm.from_preset(name)
    assert norm.silence == pytest.approx(silence, abs=5e-4)
    assert norm(torch.zeros(1, 1, 1)).item() == pytest.approx(norm.silence)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_a_spread_that_is_not_positive_is_refused(std):
    with pytest.raises(ValueError, match="std must be a number above 0"):
        SpectrogramNorm(0.0, std)


def test_front_end_is_filterbank_then_norm_and_builds_again():
    front = FrontEnd({"mean": -3.0, "std": 4.0}, 8000, 80)
    wav, lengths = padded([noise(8000), noise(3000, 1), noise(50, 2)])
    feats, n_frames = front(wav, lengths)
    raw, counts = KaldiFbank(8000, 80)(wav, lengths)
    assert torch.equal(n_frames, counts)
    valid = length_to_mask(counts, raw.shape[1])[:, :, None]
    torch.testing.assert_close(feats, (raw + 3.0) / 8.0 * valid)
    again = FrontEnd(**front.config)
    assert torch.equal(again(wav, lengths)[0], feats)


@pytest.mark.parametrize("frames", [30, 98, 128])
def test_reference_padding_comes_before_the_normalization(frames):
    wav, lengths = torch.randn(2, 16000), torch.tensor([1.0, 0.4])
    front = FrontEnd("esc50", pad_frames=frames)
    feats, n_frames = front(wav, lengths)
    assert feats.shape == (2, frames, 128)
    assert n_frames.tolist() == [frames, frames]
    for clip, wave, samples in zip(feats, wav, (16000, 6400), strict=True):
        raw, _ = front.fbank(wave[None, :samples])
        kept = min(frames, raw.shape[1])
        wanted = torch.zeros(frames, 128)
        wanted[:kept] = raw[0, :kept]
        torch.testing.assert_close(
            clip, front.norm(wanted[None])[0], atol=1e-5, rtol=0
        )
        assert torch.all(clip[kept:] == torch.tensor(front.norm.silence))


def test_reference_padding_builds_again_and_must_be_positive():
    config = FrontEnd(pad_frames=64).config
    assert FrontEnd(**config).config == config
    assert "pad_frames" not in FrontEnd().config
    with pytest.raises(
        ValueError,
        match="pad_frames must be a whole number of at least 1, .* got 0",
    ):
        FrontEnd(pad_frames=0)


def test_front_end_has_nothing_to_save():
    assert not FrontEnd().state_dict()


def test_statistics_equal_numpy_over_valid_frames():
    stats, valid = RunningStatistics(), []
    draw = torch.Generator().manual_seed(0)
    for counts in ([7, 3, 0], [5, 5, 1]):
        feats = 3 * torch.randn(3, 7, 4, generator=draw) - 5
        stats.update(feats, torch.tensor(counts))
        valid += [
            row[:n].double().numpy()
            for row, n in zip(feats, counts, strict=True)
        ]
    values = np.concatenate(valid)
    assert stats.mean == pytest.approx(values.mean(), rel=1e-12)
    assert stats.std == pytest.approx(values.std(), rel=1e-12)


def test_statistics_ignore_broken_padding():
    stats = RunningStatistics()
    feats = torch.tensor([[[1.0], [3.0], [float("nan")]]])
    stats.update(feats, torch.tensor([2]))
    assert (stats.mean, stats.std) == (2.0, 1.0)


def test_statistics_of_nothing_are_an_error():
    with pytest.raises(ValueError, match="no audio"):
        _ = RunningStatistics().std


@cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_is_as_exact_as_kaldi_on_cuda(compiled):
    # Where a band has hardly any energy torchaudio in float32 is up to 7e-4
    # away from itself in float64, too.
    clips = [noise(length, seed) for seed, length in enumerate(LENGTHS)]
    clips = [clip for clip in clips if kaldi_features(clip) is not None]
    wav, lengths = padded(clips)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        fbank = KaldiFbank().cuda()
        fbank = torch.compile(fbank, dynamic=False) if compiled else fbank
        feats, n_frames = fbank(wav.cuda(), lengths.cuda())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    counts = [len(kaldi_features(clip)) for clip in clips]
    assert n_frames.tolist() == counts
    rows = zip(feats.cpu(), counts, strict=True)
    ours = torch.cat([row[:count] for row, count in rows])
    theirs, exact = (
        torch.cat([kaldi_features(clip.to(kind)) for clip in clips])
        for kind in (torch.float32, torch.float64)
    )
    assert ((ours - theirs).abs() < 1e-4).double().mean() > 0.995
    assert (ours - exact).abs().max() < 2 * (theirs - exact).abs().max()
