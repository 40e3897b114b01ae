"""Streams: windows come when they are full, whatever the pieces are."""

import numpy as np
import pytest
import torch

from ssast_lobes import FrontEnd, SpectrogramClassifier, SpectrogramEncoder
from ssast_lobes.checkpoints.folder import export_classifier, label_encoder_of
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.inference import AudioClassifier
from ssast_lobes.inference.streaming import classify_stream, cut_stream

RATE = 16000


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=1, heads=2, table_frames=64)
    model = SpectrogramClassifier(encoder, n_classes=2)
    with torch.no_grad():
        model.head.linear.weight.normal_()
    folder = tmp_path_factory.mktemp("models") / "export"
    labels = label_encoder_of(["cat", "dog"])
    export_classifier(folder, model, FrontEnd(), labels, False, {})
    return AudioClassifier.from_hparams(folder)


def pieces_of(wav, size):
    for start in range(0, len(wav), size):
        yield wav[start : start + size]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("hop", [1, 4, 7])
@pytest.mark.parametrize("total", [0, 3, 7, 8, 11, 30])
def test_cut_covers_the_stream_as_files_are_cut(size, hop, total):
    wav, window = torch.arange(float(total)), 7
    cut = list(cut_stream(pieces_of(wav, size), window, hop))
    count = 1 + max(0, -(-(total - window) // hop)) if total else 0
    assert [start for start, _ in cut] == [hop * k for k in range(count)]
    for start, part in cut:
        torch.testing.assert_close(part, wav[start : start + window])
    if total:
        assert cut[-1][0] + len(cut[-1][1]) == total


def test_windows_come_as_soon_as_they_are_full(classifier):
    heard = 0

    def microphone():
        nonlocal heard
        for _ in range(20):
            heard += 1600
            yield np.random.default_rng(heard).standard_normal(1600)

    for result in classify_stream(classifier, microphone(), 1.0, 0.25):
        assert 0 <= heard / RATE - result.end < 0.1 + 1e-9
        assert result.labels[0] in ("cat", "dog")
    assert heard == 32000 == result.end * RATE


def test_results_are_those_of_the_windows_alone(classifier):
    wav = 0.1 * torch.randn(3 * RATE + 5000)
    wav *= torch.linspace(0.1, 1, len(wav))
    results = list(classify_stream(classifier, pieces_of(wav, 999)))
    window = round(classifier.window_seconds * RATE)
    scores = []
    for number, result in enumerate(results):
        start = number * (window // 2)
        part = wav[start : start + window]
        assert (result.start, result.end) == (
            start / RATE,
            (start + len(part)) / RATE,
        )
        [expected] = classifier.classify_batch(part)
        assert result.scores == expected.scores
        assert result.labels == expected.labels
        scores.append(result.scores["cat"])
    assert results[-1].end == len(wav) / RATE
    assert max(scores) > min(scores)


def test_a_rest_too_short_for_a_frame_is_left_out(classifier):
    wav = torch.randn(RATE + 399)
    results = list(classify_stream(classifier, [wav], 1.0, 1.0))
    assert [result.end for result in results] == [1.0]
    assert not list(classify_stream(classifier, [wav[:399]], 1.0))


def channels(wav, count, first):
    """A wave in channels of which it is the mean, (C, S) or (S, C)."""
    away = torch.linspace(-0.5, 0.5, count)
    away = (away - away.mean())[:, None]
    both = wav + away * torch.cos(torch.arange(len(wav)))
    return both if first else both.T


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("size", [9, 100, 999])
def test_channels_are_averaged(count, first, size):
    # The last piece has a single sample.
    wav = torch.randn(999 * 3 + 1) / 9
    whole = channels(wav, count, first)
    pieces = [torch.empty(0), *whole.split(size, dim=int(first))]
    [(_, found)] = cut_stream(pieces, 4000, 4000)
    torch.testing.assert_close(found, wav, atol=1e-6, rtol=0)
    [(_, found)] = cut_stream([piece.numpy() for piece in pieces], 4000, 1)
    torch.testing.assert_close(found, wav, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "shapes",
    [
        [(4, 4)],
        [(1, 8)],
        [(9, 1600)],
        [(1600, 9)],
        [(1, 2, 1600)],
        [()],
        [(1600, 2), (2, 1600)],
        [(1600, 2), (1600, 1)],
        [(1, 1600), (1600, 1)],
    ],
    ids=str,
)
def test_shapes_that_are_no_stream_are_told(shapes):
    pieces = [torch.zeros(shape) for shape in shapes]
    number = len(shapes) - 1
    message = f"piece {number} of the stream has the shape .*: pieces must be"
    with pytest.raises(ValueError, match=message):
        list(cut_stream(pieces, 400, 400))


def test_integers_are_scaled_and_bad_samples_are_errors(classifier):
    wav = (3000 * torch.randn(RATE)).short()
    [whole] = classify_stream(classifier, pieces_of(wav.numpy(), 999), 1.0)
    [expected] = classifier.classify_batch(wav / 2**15)
    assert whole.scores == expected.scores
    with pytest.raises(ValueError, match="got torch.int64"):
        list(classify_stream(classifier, [wav.long()]))
    for value, message in (float("nan"), "NaN or inf"), (1e16, "samples up to"):
        bad = torch.zeros(RATE)
        bad[5] = value
        results = classify_stream(classifier, [wav, bad], 1.0, 1.0)
        assert next(results).end == 1.0
        with pytest.raises(UnreadableAudio, match=f"piece 1 .*: {message}"):
            next(results)


def test_windows_that_cannot_be_are_told(classifier):
    wav = torch.randn(RATE)
    with pytest.raises(ValueError, match="too short: .* at least 0.025 s"):
        list(classify_stream(classifier, [wav], 0.02))
    with pytest.raises(ValueError, match="hop must be from 1 to 16000"):
        list(classify_stream(classifier, [wav], 1.0, 1.5))
