"""Pretrained interfaces: any audio, any length, and nothing taken on trust."""

import csv
import json
import os

import numpy as np
import pytest
import soundfile
import torch

from ssast_lobes import (
    FrontEnd,
    Grid,
    SpectrogramClassifier,
    SpectrogramEncoder,
)
from ssast_lobes.checkpoints.folder import (
    export_classifier,
    export_pretrained,
    label_encoder_of,
)
from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.official import to_official
from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.dataio.waveforms import UnreadableAudio, to_float
from ssast_lobes.inference import (
    AudioClassifier,
    AudioEncoder,
    SpeakerVerifier,
    interface,
    write_results,
)
from ssast_lobes.inference.audio import read_blocks
from ssast_lobes.inference.classifier import Classification, WindowScores
from ssast_lobes.objectives import MSPM

LABELS = ["cat", "dog", "rain"]
FEATURES = {"statistics": {"mean": -6.5, "std": 5.25}, "n_mels": 32}
# 64 frames: windows of 0.655 s that start every 0.32 s.
TABLE_FRAMES = 64
WINDOW = 63 * 160 + 400
HOP = 4 * 8 * 160
GRIDS = {
    "patch": Grid(32, (8, 8)),
    "frame": Grid(32, (32, 2)),
    "overlapping": Grid(32, (8, 8), (4, 5)),
    "short table": Grid(32, (16, 64)),
}


def export(folder, grid="patch", multi_label=False, **arguments):
    encoder = SpectrogramEncoder(
        GRIDS[grid], dim=32, depth=2, heads=2, table_frames=TABLE_FRAMES
    )
    model = SpectrogramClassifier(encoder, len(LABELS), **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    labels, features = label_encoder_of(LABELS), FrontEnd(**FEATURES)
    return export_classifier(folder, model, features, labels, multi_label, {})


def write(path, seconds, sample_rate=16000, channels=1, **arguments):
    """Noise with a level that changes, so that no two windows are alike."""
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    clip = rng.standard_normal((len(time), channels)) * 0.1
    clip *= 0.1 + np.abs(np.sin(2 * time))[:, None]
    soundfile.write(path, clip, sample_rate, **arguments)
    return path


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def folder(tmp_path):
    return export(tmp_path / "export")


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def stacked(results):
    return torch.tensor([list(result.scores.values()) for result in results])


@pytest.mark.parametrize("output", ["clip", "frames", "patches"])
@pytest.mark.parametrize("grid", GRIDS)
def test_clip_in_a_batch_is_as_alone(tmp_path, grid, output):
    encoder = AudioEncoder.from_hparams(export(tmp_path / "export", grid))
    lengths = [30000, 400, 9000, WINDOW, WINDOW + 159, WINDOW + 160]
    clips = [torch.randn(n) / 9 for n in lengths]
    wavs = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    wavs += (wavs == 0) * 0.7  # whatever stands at padding
    wav_lens = torch.tensor(lengths) / wavs.shape[1]
    together = encoder.encode_batch(wavs, wav_lens, output)
    for clip, row, length in zip(clips, together, lengths, strict=True):
        alone = encoder.encode_batch(clip, output=output)[0]
        if output == "clip":
            close(row, alone)
            continue
        if output == "patches":
            row, alone = row.transpose(0, 1), alone.transpose(0, 1)
        steps = encoder.n_time(length)
        assert len(alone) == steps
        close(row[:steps], alone)
        assert not row[steps:].any()


def windows_of(wav):
    """The windows of a clip, cut by hand: (start, samples)."""
    starts = [0]
    # A few samples more make no frame more, and so no window.
    while starts[-1] + WINDOW + 159 < len(wav):
        starts.append(starts[-1] + HOP)
    return [(start, wav[start : start + WINDOW]) for start in starts]


def test_long_audio_is_the_mean_of_its_windows(tmp_path, folder):
    path = write(tmp_path / "long.wav", 2.83)
    wav = read_audio(path)
    encoder = AudioEncoder.from_hparams(folder)
    classifier = AudioClassifier.from_hparams(folder)
    parts = windows_of(wav)
    assert 6 < len(parts) and WINDOW / 2 < len(parts[-1][1]) < WINDOW
    share = torch.tensor([len(part) for _, part in parts]) / 1.0
    share /= share.sum()

    clips = torch.cat([encoder.encode_batch(part) for _, part in parts])
    close(encoder.encode_file(path), share @ clips)

    scores = stacked([classifier.classify_batch(part)[0] for _, part in parts])
    assert scores.std(0).max() > 1e-3
    result = classifier.classify_file(path)
    close(stacked(result.windows), scores)
    close(stacked([result])[0], share @ scores)
    times = [(window.start, window.end) for window in result.windows]
    assert times == [
        (start / 16000, (start + len(part)) / 16000) for start, part in parts
    ]
    assert times[-1][1] == result.seconds == 2.83
    assert result.label == LABELS[(share @ scores).argmax()]


@pytest.mark.parametrize("grid", ["patch", "frame", "overlapping"])
def test_frames_come_from_the_window_with_the_nearest_center(tmp_path, grid):
    encoder = AudioEncoder.from_hparams(export(tmp_path / "export", grid))
    wav = torch.randn(50000) / 9
    frames = encoder.encode_batch(wav, output="frames")[0]
    assert len(frames) == encoder.n_time(50000)
    hop, step = encoder._windowing.hop, round(encoder.step_seconds * 16000)
    starts = range(0, 50000 - WINDOW + hop, hop)
    parts = [wav[start : start + WINDOW] for start in starts]
    assert sum(map(len, parts)) > 1.7 * len(wav)
    taken = []
    for index, frame in enumerate(frames):
        # Middle of the window in steps, less that of the frame.
        away = [
            abs(start // step + encoder.n_time(len(part)) / 2 - index - 0.5)
            for start, part in zip(starts, parts, strict=True)
        ]
        if len(taken) > 1 and sorted(away)[1] - sorted(away)[0] < 1.5:
            continue  # as near to two; the cut may fall on either side
        nearest = away.index(min(away))
        taken.append(nearest)
        own = encoder.encode_batch(parts[nearest], output="frames")[0]
        close(frame, own[index - starts[nearest] // step])
    assert set(taken) == set(range(len(parts)))
    patches = encoder.encode_batch(wav, output="patches")
    close(patches.mean(1)[0], frames)


@pytest.mark.parametrize("output", ["clip", "frames", "patches"])
def test_batch_size_changes_nothing(tmp_path, monkeypatch, folder, output):
    # Long files are read in several blocks.
    monkeypatch.setattr(interface, "_BLOCK_SECONDS", 1)
    paths = [
        write(tmp_path / f"{seconds}.wav", seconds, rate, channels=2)
        for seconds, rate in [(0.2, 8000), (4.7, 44100), (1.3, 16000)]
    ]
    whole = [
        AudioEncoder.from_hparams(folder).encode_batch(
            read_audio(path), output=output
        )[0]
        for path in paths
    ]
    for batch_size in (1, 4, 100):
        encoder = AudioEncoder.from_hparams(folder, batch_size=batch_size)
        found = dict(encoder.encode_files(paths, output))
        assert list(found) == [str(path) for path in paths]
        for path, expected in zip(paths, whole, strict=True):
            close(found[str(path)], expected, 2e-5)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 22255])
def test_blocks_are_parts_of_the_whole_file(tmp_path, rate):
    path = write(tmp_path / "a.wav", 3.3, rate)
    whole = read_audio(path)
    # Off by a source sample or less where the rate fits no common grid.
    atol = 1e-5 if rate != 22255 else 0.2
    end = 0
    for start, wav in read_blocks(path, 16000, length=16160, hop=16000):
        assert start in (0, 16000, 32000, 48000)
        close(wav, whole[start : start + 16160], atol)
        end = start + len(wav)
    assert end == len(whole)


def test_blocks_of_a_short_file_are_the_file(tmp_path):
    path = write(tmp_path / "a.wav", 1.0)
    [(start, wav)] = read_blocks(path, 16000, length=16000, hop=100)
    assert start == 0
    assert torch.equal(wav, read_audio(path))


AUDIO = {
    "telephone.wav": {"sample_rate": 8000, "subtype": "ULAW"},
    "stereo.flac": {"sample_rate": 44100, "channels": 2},
    "lossy.mp3": {"sample_rate": 22050, "channels": 2},
    "lossy.ogg": {"sample_rate": 48000},
    "deep.aiff": {"sample_rate": 96000, "subtype": "PCM_24"},
}


@pytest.mark.parametrize("name", AUDIO)
def test_files_of_any_kind(tmp_path, folder, name):
    path = write(tmp_path / name, 1.5, **AUDIO[name])
    encoder = AudioEncoder.from_hparams(folder)
    expected = encoder.encode_batch(read_audio(path))[0]
    close(encoder.encode_file(path), expected)
    classifier = AudioClassifier.from_hparams(folder)
    result = classifier.classify_file(path)
    assert result.path == str(path)
    assert sum(result.scores.values()) == pytest.approx(1, abs=1e-5)


def test_too_short_audio_is_an_error_that_names_it(tmp_path, folder):
    encoder = AudioEncoder.from_hparams(folder)
    short = write(tmp_path / "short.wav", 399 / 16000)
    with pytest.raises(UnreadableAudio, match="short.wav: 24.9 ms.*25 ms"):
        encoder.encode_file(short)
    empty = write(tmp_path / "empty.wav", 0)
    with pytest.raises(UnreadableAudio, match="empty.wav: .*no samples"):
        AudioClassifier.from_hparams(folder).classify_file(empty)
    wavs = torch.randn(2, 4000)
    with pytest.raises(UnreadableAudio, match="clip 1 of the batch"):
        encoder.encode_batch(wavs, torch.tensor([1.0, 0.09]))
    enough = write(tmp_path / "enough.wav", 400 / 16000)
    assert encoder.encode_file(enough, "frames").shape == (1, 32)
    assert encoder.encode_file(enough).isfinite().all()


def test_samples_and_channels_in_place_of_a_batch_are_told(folder):
    encoder = AudioEncoder.from_hparams(folder)
    with pytest.raises(UnreadableAudio, match="8000 clips x 2 samples: .* ms"):
        encoder.encode_batch(np.zeros((8000, 2)))


PCM = {
    np.dtype("uint8"): "PCM_U8",
    np.dtype("int8"): "PCM_S8",
    np.dtype("int16"): "PCM_16",
    np.dtype(">i2"): "PCM_16",
    np.dtype("int32"): "PCM_32",
}


@pytest.mark.parametrize("kind", PCM, ids=str)
def test_integers_are_scaled_as_in_a_file(tmp_path, folder, kind):
    path = tmp_path / ("a.aiff" if kind == np.int8 else "a.wav")
    write(path, 0.5, subtype=PCM[kind])
    expected, _ = soundfile.read(path, dtype="float64")
    full = 2.0 ** (8 * kind.itemsize - 1)
    center = 128 if kind == np.uint8 else 0
    samples = (expected * full + center).astype(kind)
    found = to_float(samples)
    assert found.dtype == torch.float32
    assert torch.equal(found, read_audio(path))
    encoder = AudioEncoder.from_hparams(folder)
    alone = encoder.encode_file(path)
    close(encoder.encode_batch(samples)[0], alone)
    native = torch.from_numpy(samples.astype(kind.newbyteorder("=")))
    close(encoder.encode_batch(native)[0], alone)
    classifier = AudioClassifier.from_hparams(folder)
    both = classifier.classify_batch(samples), [classifier.classify_file(path)]
    close(*map(stacked, both))


@pytest.mark.parametrize(
    "value, message",
    [
        (float("nan"), "NaN or infinite"),
        (float("-inf"), "NaN or infinite"),
        (1e16, r"up to 1e\+16"),
    ],
)
def test_bad_samples_are_an_error_that_names_the_clip(folder, value, message):
    wavs = torch.randn(2, 9000)
    wavs[1, 5000] = value
    encoder = AudioEncoder.from_hparams(folder)
    classifier = AudioClassifier.from_hparams(folder)
    for run in (encoder.encode_batch, classifier.classify_batch):
        with pytest.raises(UnreadableAudio, match=f"^clip 1 .*{message}"):
            run(wavs)
        run(wavs, torch.tensor([1.0, 0.5]))  # there it is padding


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_cast_models_give_nearly_the_same_results(folder, cast):
    wavs, lens = torch.randn(2, 20000) / 9, torch.tensor([1.0, 0.4])
    classifier = AudioClassifier.from_hparams(folder)
    encoder = AudioEncoder.from_hparams(folder)
    clips = encoder.encode_batch(wavs, lens)
    scores = stacked(classifier.classify_batch(wavs, lens))
    for module in (encoder.lobe, classifier.lobe, classifier.head):
        getattr(module, cast)()
    atol = {"half": 0.01, "bfloat16": 0.1, "double": 1e-5}[cast]
    found = encoder.encode_batch(wavs, lens)
    assert found.dtype == torch.float32
    close(found, clips, atol)
    close(stacked(classifier.classify_batch(wavs, lens)), scores, atol)


def test_silence_is_defined(folder):
    encoder = AudioEncoder.from_hparams(folder)
    assert encoder.encode_batch(torch.zeros(16000)).isfinite().all()


def test_unreadable_files_are_left_out_and_told(tmp_path, folder):
    good = [write(tmp_path / f"{i}.wav", 0.5 + i) for i in range(3)]
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF, but no more")
    # Opens, and breaks off in its second block.
    broken = write(tmp_path / "broken.flac", 200)
    os.truncate(broken, broken.stat().st_size * 3 // 4)
    paths = [good[0], bad, broken, good[1], tmp_path / "none.wav", good[2]]
    classifier = AudioClassifier.from_hparams(folder, batch_size=2)
    unreadable = []
    results = classifier.classify_files(paths, unreadable=unreadable)
    assert [result.path for result in results] == [str(p) for p in good]
    names = [os.path.basename(path) for path, _ in unreadable]
    assert names == ["bad.wav", "broken.flac", "none.wav"]
    assert all(reason and "/" not in reason for _, reason in unreadable)
    for result in results:
        alone = classifier.classify_file(result.path)
        close(stacked([result]), stacked([alone]))
    with pytest.raises(UnreadableAudio, match="bad.wav"):
        classifier.classify_files(paths)


def test_multi_label_scores_and_threshold(tmp_path):
    folder = export(tmp_path / "export", multi_label=True)
    classifier = AudioClassifier.from_hparams(folder)
    wav = torch.randn(1, WINDOW)
    [result] = classifier.classify_batch(wav, threshold=0.0)
    scores = result.scores
    assert result.labels == sorted(LABELS, key=scores.get, reverse=True)
    middle = sorted(scores.values())[1]
    [result] = classifier.classify_batch(wav, threshold=middle)
    assert len(result.labels) == 2 and result.label == max(
        scores, key=scores.get
    )
    [result] = classifier.classify_batch(wav, threshold=1.0)
    assert result.labels == [] and result.label is None
    # Scores of single labels, not shares of one.
    probe = logits_by_hand(folder, wav)
    close(stacked([result])[0], probe.sigmoid())


def logits_by_hand(folder, wav):
    """Logits from the tensors of an export, put together by hand."""
    weights = load_weights(folder)
    encoder = SpectrogramEncoder(**weights.config["encoder"])
    model = SpectrogramClassifier(encoder, len(LABELS))
    model.load_state_dict(weights.state)
    clip = AudioEncoder.from_hparams(folder).encode_batch(wav)
    with torch.no_grad():
        return model.head(clip)[0]


def test_clip_is_what_the_classifier_sees(tmp_path):
    folder = export(tmp_path / "a", layers="weighted", pooling="class")
    classifier = AudioClassifier.from_hparams(folder)
    wav = torch.randn(1, 10000)
    clip = AudioEncoder.from_hparams(folder).encode_batch(wav)
    with torch.no_grad():
        expected = classifier.head(clip).softmax(1)
    close(stacked(classifier.classify_batch(wav)), expected)


def export_objective(folder):
    encoder = SpectrogramEncoder(
        GRIDS["patch"], dim=64, depth=1, heads=1, table_frames=TABLE_FRAMES
    )
    return export_pretrained(folder, MSPM(encoder), FrontEnd(**FEATURES), {})


def test_pretrained_export_encodes_but_does_not_classify(tmp_path):
    folder = export_objective(tmp_path / "export")
    encoder = AudioEncoder.from_hparams(folder)
    assert encoder.encode_batch(torch.randn(2, 16000)).shape == (2, 64)
    with pytest.raises(WeightsError, match="export.*no classes.*AudioEnc"):
        AudioClassifier.from_hparams(folder)


def test_official_checkpoint_has_to_be_converted_first(tmp_path):
    state = to_official(load_weights(export_objective(tmp_path / "export")))
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="ssast-lobes convert .*model.pth"):
        AudioEncoder.from_hparams(tmp_path / "model.pth")


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


CONFIGS = {
    "no encoder": lambda config: config.pop("encoder"),
    "other depth": lambda config: config["encoder"].update(depth=3),
    "other table": lambda config: config["encoder"].update(table=[4, 9]),
    "odd argument": lambda config: config["encoder"].update(color="red"),
    "bad statistics": lambda c: c["features"]["statistics"].update(std=0),
    "no window": lambda config: config.pop("window_seconds"),
    "fewer labels": lambda config: config["labels"].pop(),
    "other version": lambda config: config.update(format_version=3),
    "no version": lambda config: config.pop("format_version"),
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_wrong_configuration_raises(folder, change):
    change_config(folder, change)
    with pytest.raises(WeightsError, match="/export"):
        AudioClassifier.from_hparams(folder)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{"])
def test_damaged_configuration_raises(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match="config.json: damaged"):
        AudioEncoder.from_hparams(folder)


def test_nothing_but_config_and_weights_is_read(folder):
    for name in ("hyperparams.yaml", "label_encoder.txt", "README.md"):
        (folder / name).write_text("!apply:os.abort []")
    assert AudioClassifier.from_hparams(folder).labels == LABELS


def test_verification(tmp_path, folder):
    one = write(tmp_path / "one.wav", 1.0)
    two = write(tmp_path / "two.wav", 2.0, 8000, channels=2)
    verifier = SpeakerVerifier.from_hparams(folder)
    a, b = verifier.encode_file(one), verifier.encode_file(two)
    result = verifier.verify_files(one, two)
    assert result.score == pytest.approx(
        (a @ b / a.norm() / b.norm()).item(), abs=1e-6
    )
    assert result.same_speaker is None
    assert (result.path_a, result.path_b) == (str(one), str(two))
    assert verifier.verify_files(one, two, result.score - 0.01).same_speaker
    assert (
        verifier.verify_files(one, two, result.score + 0.01).same_speaker
        is False
    )


def test_results_as_csv_and_json(tmp_path, folder):
    paths = [
        write(tmp_path / "a, b.wav", 0.5),
        write(tmp_path / "é.wav", 1.4),
    ]
    classifier = AudioClassifier.from_hparams(folder)
    results = classifier.classify_files(paths)
    write_results(results, tmp_path / "all.json")
    records = json.loads((tmp_path / "all.json").read_text("utf-8"))
    assert [record["path"] for record in records] == [str(p) for p in paths]
    for record, result in zip(records, results, strict=True):
        assert record["labels"] == result.labels
        assert record["scores"] == pytest.approx(result.scores, rel=1e-5)
        windows = [(w["start"], w["end"]) for w in record["windows"]]
        assert windows == [(w.start, w.end) for w in result.windows]

    write_results(results, tmp_path / "all.csv")
    rows = list(csv.DictReader(open(tmp_path / "all.csv", encoding="utf-8")))
    assert [row["path"] for row in rows] == [str(p) for p in paths]
    assert list(rows[0]) == [
        *("path", "start", "end", "labels", "score"),
        *(f"score:{label}" for label in LABELS),
    ]
    assert float(rows[1]["end"]) == 1.4
    assert float(rows[1]["score"]) == pytest.approx(
        max(results[1].scores.values()), rel=1e-5
    )

    write_results(results, tmp_path / "windows.csv", windows=True)
    text = (tmp_path / "windows.csv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == sum(len(result.windows) for result in results) == 5
    with pytest.raises(ValueError, match="all.txt"):
        write_results(results, tmp_path / "all.txt")

    scores = sorted(max(result.scores.values()) for result in results)
    write_results(results, tmp_path / "some.csv", min_score=sum(scores) / 2)
    write_results(results, tmp_path / "none.csv", min_score=1.1)
    some, none = (
        list(csv.reader(open(tmp_path / f"{name}.csv", encoding="utf-8")))
        for name in ("some", "none")
    )
    assert len(some) == 2 and none == some[:1]
    assert float(some[1][4]) == pytest.approx(scores[1], rel=1e-5)


def test_times_of_many_hours_are_exact(tmp_path):
    windows = [WindowScores(40004.48, 40009.645, ["a"], {"a": 1 / 3})]
    result = Classification("a.wav", ["a"], {"a": 1 / 3}, windows)
    write_results([result], tmp_path / "day.csv", windows=True)
    [row] = csv.DictReader(open(tmp_path / "day.csv", encoding="utf-8"))
    assert (row["start"], row["end"]) == ("40004.48", "40009.645")
    assert row["score"] == "0.333333"


@pytest.mark.parametrize("multi_label", [False, True])
def test_windows_of_a_chosen_length_are_clips_of_their_own(
    tmp_path, multi_label
):
    folder = export(tmp_path / "export", multi_label=multi_label)
    path = write(tmp_path / "long.wav", 2.0)
    step = 8 * 160
    classifier = AudioClassifier.from_hparams(
        folder, window_seconds=0.4, hop_seconds=0.25
    )
    result = classifier.classify_file(path)
    # 0.25 s are three patches of 0.08 s, and a part of one.
    starts = range(0, 2 * 16000 - 6400 + 3 * step, 3 * step)
    times = [(s / 16000, min(s + 6400, 32000) / 16000) for s in starts]
    assert [(w.start, w.end) for w in result.windows] == times
    wav, plain = read_audio(path), AudioClassifier.from_hparams(folder)
    for window, start in zip(result.windows, starts, strict=True):
        [alone] = plain.classify_batch(wav[start : start + 6400 + 159])
        assert alone.scores == pytest.approx(window.scores, abs=1e-5)
    lengths = torch.tensor([end - start for start, end in times])
    mean = (lengths @ stacked(result.windows)) / lengths.sum()
    close(stacked([result])[0], mean)
    assert plain.window_seconds == plain.fitted_seconds == WINDOW / 16000


def test_the_last_window_is_never_too_short_for_a_frame(folder):
    classifier = AudioClassifier.from_hparams(
        folder, window_seconds=0.4, hop_seconds=0.4
    )
    for samples, count in ((6799, 1), (6800, 2), (13199, 2), (13200, 3)):
        [result] = classifier.classify_batch(torch.randn(1, samples))
        assert len(result.windows) == count
        last = result.windows[-1]
        assert last.end == samples / 16000
        assert round(last.end - last.start, 6) >= 0.025


@pytest.mark.parametrize(
    ("window", "hop", "told"),
    [
        (0.07, None, "0.07 s: this model takes 0.08 to 0.655 s"),
        (0.7, None, "0.7 s: this model takes 0.08 to 0.655 s"),
        (0.4, 0.5, "hop of 0.5 s.* 0 to 0.4 s"),
        (None, 0.0, "hop of 0 s.* 0 to 0.655 s"),
    ],
)
def test_wrong_windows_are_clear_errors(folder, window, hop, told):
    with pytest.raises(ValueError, match=told):
        AudioClassifier(folder, window_seconds=window, hop_seconds=hop)


def test_results_of_many_labels_and_windows_fit_a_line(tmp_path):
    names = [f"label_{number}" for number in range(109)]
    scores = {name: 1 / (number + 2) for number, name in enumerate(names)}
    window = WindowScores(0.0, 1.0, names[:1], scores)
    shown = "label_0 0.50, label_1 0.33, label_2 0.25, ..."
    assert repr(window) == f"<0.00 to 1.00 s: {shown}>"
    windows = [window._replace(end=60.0)] * 100
    result = Classification("a.wav", names[:1], scores, windows)
    assert repr(result) == f"<a.wav, 60.00 s in 100 windows: {shown}>"
    two = dict(list(scores.items())[:2])
    result = Classification(None, [], two, [window])
    assert repr(result) == (
        "<a clip, 1.00 s in 1 window: label_0 0.50, label_1 0.33>"
    )


def test_bf16_is_close_and_leaves_features_alone(folder):
    wav = torch.randn(2, 30000) / 9
    exact = AudioEncoder.from_hparams(folder).encode_batch(wav)
    rough = AudioEncoder.from_hparams(folder, precision="bf16")
    found = rough.encode_batch(wav)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    close(found, exact, 0.05)


def test_embeddings_may_train_a_head(tmp_path, folder):
    encoder = AudioEncoder.from_hparams(folder)
    path = write(tmp_path / "a.wav", 0.5)
    for output in ("clip", "frames", "patches"):
        batch = encoder.encode_batch(torch.randn(2, 9000), output=output)
        for found in (batch, encoder.encode_file(path, output)):
            assert not found.requires_grad
            torch.nn.Linear(32, 1)(found).sum().backward()


def test_the_model_never_leaves_evaluation(folder):
    classifier = AudioClassifier.from_hparams(folder)
    assert not classifier.lobe.training and not classifier.head.training


def test_wrong_arguments_are_told(folder):
    encoder = AudioEncoder.from_hparams(folder)
    with pytest.raises(ValueError, match="output must be one of"):
        encoder.encode_batch(torch.randn(1, 9000), output="words")
    for dtype in (torch.int64, torch.bool):
        with pytest.raises(ValueError, match=f"int16, .* got {dtype}"):
            encoder.encode_batch(torch.zeros(1, 9000, dtype=dtype))
    with pytest.raises(ValueError, match=r"mono, .*\(1, 2, 9000\)"):
        encoder.encode_batch(torch.randn(1, 2, 9000))
    with pytest.raises(ValueError, match=r"2 clips, .* shape \(1,\)"):
        encoder.encode_batch(torch.randn(2, 9000), torch.ones(1))
    with pytest.raises(ValueError, match="divide lengths in samples"):
        encoder.encode_batch(torch.randn(2, 9000), torch.tensor([9000, 900]))
    with pytest.raises(ValueError, match="batch_size"):
        AudioEncoder.from_hparams(folder, batch_size=0)
    with pytest.raises(WeightsError, match="nowhere: no such"):
        AudioEncoder.from_hparams("nowhere")
