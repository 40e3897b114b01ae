"""Events from scores: rules by hand, parts and windows that do not show."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch

from ssast_lobes import (
    FrontEnd,
    Grid,
    KaldiFbank,
    SpectrogramDetector,
    SpectrogramEncoder,
)
from ssast_lobes.checkpoints.folder import (
    export_detector,
    export_encoder,
    label_encoder_of,
)
from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.frame_heads import FrameHead, write_frame_head
from ssast_lobes.cli import main
from ssast_lobes.dataio.event_tables import read_event_table, read_label_track
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.inference import (
    AudioClassifier,
    AudioEncoder,
    EventDetector,
    EventRule,
)
from ssast_lobes.inference.events import (
    EventTracker,
    ScoreMerger,
    find_events,
    median_filter,
    read_rules,
)
from ssast_lobes.models.event_head import FrameTiming

TIMING = FrameTiming(Grid(128, (128, 4)), KaldiFbank())
GRID = Grid(32, (32, 4))
FEATURES = {"statistics": {"mean": -6.0, "std": 6.0}, "n_mels": 32}


# Rules --------------------------------------------------------------------


def found(column, **rule):
    scores = np.array(column, dtype=np.float32)[:, None]
    rules = {"dog": EventRule(0.5, **rule)}
    events = find_events(scores, len(column) * 0.04, rules, TIMING)
    starts = [0.0, *(TIMING.edge(n) for n in range(1, len(column)))]
    return [
        (starts.index(e.onset), round((e.offset - 0.0075) / 0.04), e.score)
        for e in events
    ]


def test_rules_by_hand():
    column = [0, 1, 1, 0, 1, 0, 0, 0, 0.8, 0, 0]
    assert found(column) == [(1, 3, 1), (4, 5, 1), (8, 9, 0.8)]
    # A median of three frames drops single ones, and closes single gaps.
    assert found(column, median_seconds=0.12) == [(1, 4, 1)]
    assert found(column, gap_seconds=0.04) == [(1, 5, 1), (8, 9, 0.8)]
    joined = pytest.approx(3.8 / 4)
    assert found(column, gap_seconds=0.12) == [(1, 9, joined)]
    assert found(column, min_seconds=0.08) == [(1, 3, 1)]
    # Gaps are closed first: what they join is long enough.
    both = {"gap_seconds": 0.12, "min_seconds": 0.3}
    assert found(column, **both) == [(1, 9, joined)]


def test_parts_make_no_difference():
    rng = np.random.default_rng(0)
    scores = rng.random((400, 3)).astype(np.float32)
    scores = median_filter(scores, [5, 5, 5])
    rules = {
        "a": EventRule(0.5, 0.2, 0.08, 0.12),
        "b": EventRule(0.4, 0.04, 0.0, 0.5),
        "c": EventRule(0.6, 1.0),
    }
    whole = find_events(scores, 16.0, rules, TIMING)
    assert len(whole) > 20
    for _ in range(5):
        tracker, events = EventTracker(rules, TIMING), []
        cuts = np.sort(rng.integers(0, 400, 30))
        for part in np.split(scores, cuts):
            events += tracker.add(part)
        events += tracker.finish(16.0)
        assert [e[:3] for e in sorted(events)] == [e[:3] for e in whole]
        assert [e.score for e in sorted(events)] == pytest.approx(
            [e.score for e in whole], abs=1e-5
        )


def test_median_filter_is_scipy_s():
    from scipy.ndimage import median_filter as reference

    scores = np.random.default_rng(0).random((50, 2))
    ours = median_filter(scores, [7, 3])
    assert np.array_equal(
        ours[:, 0], reference(scores[:, 0], 7, mode="nearest")
    )
    assert np.array_equal(
        ours[:, 1], reference(scores[:, 1], 3, mode="nearest")
    )


def test_windows_that_agree_are_joined_exactly():
    scores = np.random.default_rng(0).random((100, 2))
    merger = ScoreMerger()
    parts = [merger.add(n, scores[n : n + 30]) for n in range(0, 85, 15)]
    joined = np.concatenate([*parts, merger.finish()])
    assert np.allclose(joined, scores)


# The detector -------------------------------------------------------------


def sound(*tones, seconds):
    """Quiet noise, with tones from, to, pitch (Hz)."""
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * 16000)) / 16000
    wav = 0.003 * rng.standard_normal(len(time))
    for onset, offset, pitch in tones:
        on = (time >= onset) & (time < offset)
        wav += on * 0.2 * np.sin(2 * np.pi * pitch * time)
    return torch.tensor(wav, dtype=torch.float32)


@pytest.fixture(scope="module")
def model():
    """A detector of two tones, fitted in closed form."""
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        GRID, dim=32, depth=1, heads=2, table_frames=200
    )
    model = SpectrogramDetector(encoder.eval(), 2)
    features = FrontEnd(**FEATURES)
    tones = [(1, 3, 500), (4.2, 4.8, 500), (2, 4, 3000), (6, 7, 3000)]
    wav = sound(*tones, seconds=8)
    timing = FrameTiming(GRID, features.fbank)
    events = [(a, b, int(pitch > 1000)) for a, b, pitch in tones]
    with torch.no_grad():
        pieces = wav.split(32000)
        frames = [
            model.head.norm(encoder(*features(piece[None])).frames[0])
            for piece in pieces
        ]
        kept = [
            timing.targets(
                [(a - 2 * n, b - 2 * n, c) for a, b, c in events], 32000, 2
            )
            for n in range(4)
        ]
        x, y = torch.cat(frames), torch.cat(kept) * 12 - 6
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        solved = torch.linalg.lstsq(x, y).solution
        model.head.linear.weight.copy_(solved[:-1].T)
        model.head.linear.bias.copy_(solved[-1])
    return model.eval(), features


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    rules = {"low": {"threshold": 0.5, "median_seconds": 0.2}}
    rules["high"] = {"threshold": 0.4, "min_seconds": 0.1}
    return export_detector(
        tmp_path_factory.mktemp("detector") / "export",
        *model,
        label_encoder_of(["low", "high"]),
        rules,
        card={"metrics": {"event_f1": 0.5}},
        least_window=2.0,
    )


def test_wrong_rules_are_refused():
    rule = {"threshold": 0.5}
    with pytest.raises(ValueError, match="no rule for high"):
        read_rules(["low", "high"], {"low": rule})
    with pytest.raises(ValueError, match="threshold of low"):
        read_rules(["low"], {"low": {"threshold": None}})


# Longer than four windows of two seconds, and across many of their borders.
LONG = [(1.5, 9.3, 500), (5.0, 5.6, 3000), (11.0, 12.1, 3000)]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("audio") / "long.wav")
    soundfile.write(path, sound(*LONG, seconds=13).numpy(), 16000)
    return path


def test_an_event_across_windows_is_one_event(folder, recording):
    detector = EventDetector.from_hparams(folder, batch_size=2)
    assert detector.window_seconds < 2.1
    result = detector.detect_file(recording)
    assert result.seconds == pytest.approx(13.0)
    assert [e.label for e in result.events] == ["low", "high", "high"]
    for event, (onset, offset, _) in zip(result.events, LONG, strict=True):
        assert event.onset == pytest.approx(onset, abs=0.1)
        assert event.offset == pytest.approx(offset, abs=0.1)


def times(events):
    return [(e.label, round(e.onset, 4), round(e.offset, 4)) for e in events]


def test_files_batches_and_streams_agree(folder, recording, tmp_path):
    detector = EventDetector.from_hparams(folder)
    result = detector.detect_file(recording)
    wav = sound(*LONG, seconds=13)
    for size in (1000, 50000):
        stream = sorted(detector.detect_stream(wav.split(size)))
        assert times(stream) == times(result.events)
    wavs = torch.nn.utils.rnn.pad_sequence([wav[:48000], wav], True)
    lengths = torch.tensor([48000 / len(wav), 1.0])
    short, long = detector.detect_batch(wavs, lengths)
    assert times(long.events) == times(result.events)
    [alone] = detector.detect_batch(wav[:48000])
    assert times(short.events) == times(alone.events)
    assert (short.seconds, len(short.events)) == (3.0, 1)
    # The scores behind it are those of the whole clip.
    scores = detector.clip_scores(wav)
    assert len(scores) == detector.timing.n_time(len(wav))
    found = find_events(scores, 13.0, detector.rules, detector.timing)
    assert times(found) == times(result.events)
    # The first event comes out long before the stream ends.
    pieces = iter(wav.split(8000))
    next(detector.detect_stream(pieces))
    assert len(list(pieces)) > 3


def test_a_short_stream_is_as_long_as_a_short_file_may_be(model, tmp_path):
    """Centered frames need less than a window."""
    fbank = {"kind": "centered"}
    folder = export_detector(
        tmp_path / "export",
        model[0],
        FrontEnd(n_mels=GRID.n_mels, fbank=fbank),
        label_encoder_of(["low", "high"]),
        {label: {"threshold": 0.0} for label in ("low", "high")},
        card={},
        least_window=2.0,
    )
    detector = EventDetector.from_hparams(folder)
    wav = torch.zeros(detector.fbank.least_samples + 50)
    assert len(wav) < detector.fbank.window_samples
    [whole] = detector.detect_batch(wav)
    assert len(whole.events) == 2
    assert times(detector.detect_stream([wav])) == times(whole.events)


def test_unreadable_files_are_left_out(folder, recording, tmp_path):
    detector = EventDetector.from_hparams(folder)
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    unreadable = []
    results = list(detector.detect_files([bad, recording], unreadable))
    assert [result.path for result in results] == [recording]
    assert unreadable[0][0] == str(bad)
    with pytest.raises(UnreadableAudio, match="bad.wav"):
        detector.detect_file(bad)


def test_rules_and_labels_are_in_the_export(folder):
    detector = EventDetector.from_hparams(folder)
    assert detector.labels == ["low", "high"]
    assert detector.rules["low"] == EventRule(0.5, 0.2)
    card = (folder / "README.md").read_text()
    assert "scores every 40 ms: low, high" in card
    assert "EventDetector.from_hparams" in card
    # It is an encoder too, and no classifier.
    assert AudioEncoder.from_hparams(folder).output_size == 32
    with pytest.raises(WeightsError, match="use EventDetector"):
        AudioClassifier.from_hparams(folder)


def test_speechbrain_loads_the_export(folder):
    from hyperpyyaml import load_hyperpyyaml

    with open(folder / "hyperparams.yaml") as file:
        hparams = load_hyperpyyaml(file)
    hparams["pretrainer"].collect_files(default_source=str(folder))
    hparams["pretrainer"].load_collected()
    weights = EventDetector.from_hparams(folder).head.linear.weight
    assert torch.equal(
        hparams["modules"]["frame_classifier"].linear.weight, weights
    )
    assert hparams["label_encoder"].decode_ndim(1) == "high"


@pytest.mark.parametrize(
    "change, message",
    [
        ('"threshold": 0.5', "config.json: damaged"),
        ('"low": {', "config.json: damaged"),
    ],
)
def test_damaged_rules_are_named(folder, tmp_path, change, message):
    copy = tmp_path / "export"
    shutil.copytree(folder, copy)
    text = (copy / "config.json").read_text()
    assert change in text
    other = {'"low": {': '"cow": {', '"threshold": 0.5': '"threshold": "x"'}
    (copy / "config.json").write_text(text.replace(change, other[change]))
    with pytest.raises(WeightsError, match=message):
        EventDetector.from_hparams(copy)


def test_change_points_need_their_package(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sebbs", None)
    shutil.copytree(folder, tmp_path / "export")
    path = tmp_path / "export" / "config.json"
    config = json.loads(path.read_text())
    rule = {"threshold": 0.5, "step_seconds": 0.48, "merge_relative": 2.0}
    config["rules"] = {"low": rule, "high": rule}
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"ssast_lobes\[sebbs\]"):
        EventDetector.from_hparams(path.parent)


def test_a_head_next_to_a_frozen_encoder(model, folder, recording, tmp_path):
    detector, features = model
    export_encoder(
        tmp_path / "encoder", detector.encoder, features, {}, least_window=2.0
    )
    with pytest.raises(WeightsError, match="finds no events: train a detector"):
        EventDetector.from_hparams(tmp_path / "encoder")
    config = {
        "pooling": detector.pooling.config,
        "head": detector.head.config,
        "labels": ["low", "high"],
        "rules": {
            "low": {"threshold": 0.5, "median_seconds": 0.2},
            "high": {"threshold": 0.4, "min_seconds": 0.1},
        },
    }
    state = {f"head.{k}": v for k, v in detector.head.state_dict().items()}
    write_frame_head(tmp_path / "encoder", "tones", FrameHead(state, config))
    wanted = EventDetector.from_hparams(folder).detect_file(recording)
    for task in (None, "tones"):
        other = EventDetector.from_hparams(tmp_path / "encoder", task=task)
        assert times(other.detect_file(recording).events) == times(
            wanted.events
        )
    with pytest.raises(WeightsError, match="named 'cats'; there are: tones"):
        EventDetector.from_hparams(tmp_path / "encoder", task="cats")


# The command --------------------------------------------------------------


def test_command_writes_all_formats_and_pictures(
    folder, recording, tmp_path, capsys
):
    short = str(tmp_path / "short.wav")
    soundfile.write(short, sound((0.5, 1.5, 500), seconds=2).numpy(), 16000)
    table, pictures = tmp_path / "events.csv", tmp_path / "pictures"
    files = [recording, short]
    assert main(["events", str(folder), *files, "--output", str(table)]) == 0
    assert "4 events of 2 files" in capsys.readouterr().out
    rows = {row["path"]: row["events"] for row in read_event_table(table)}
    assert [e.label for e in rows[recording]] == ["low", "high", "high"]
    assert main(["events", str(folder), short]) == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[2] == "low" and float(line[0]) == pytest.approx(0.5, abs=0.1)
    tracks = ["--format", "audacity", "--output", str(tmp_path / "tracks")]
    plots = ["--plot", str(pictures), "--truth", str(table)]
    assert main(["events", str(folder), *files, *tracks, *plots]) == 0
    [track] = (tmp_path / "tracks").glob("*short.txt")
    assert read_label_track(track) == rows[short]
    assert len(list(pictures.glob("*.png"))) == 2
    assert main(["events", str(folder), short, "--truth", str(table)]) == 2
    assert "--truth is for pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "audacity", "--output", "tracks"],
        ["--format", "tsv", "--output", "events.tsv"],
        ["--plot", "pictures"],
    ],
    ids=lambda words: words[1],
)
def test_files_of_one_name_do_not_replace_each_other(
    folder, tmp_path, monkeypatch, capsys, words
):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "a.wav"
        soundfile.write(path, sound(seconds=1).numpy(), 16000)
    assert main(["events", str(folder), "one", "two", *words]) == 2
    error = capsys.readouterr().err
    assert "one/a.wav and" in error and "would both be called 'a" in error
    assert main(["events", str(folder), ".", *words]) == 0


def test_command_names_what_finds_no_events(recording, tmp_path, capsys):
    encoder = SpectrogramEncoder(GRID, dim=32, depth=1, heads=2)
    features = FrontEnd(**FEATURES)
    export_encoder(tmp_path / "encoder", encoder, features, {})
    assert main(["events", str(tmp_path / "encoder"), recording]) == 2
    assert "finds no events: train a detector" in capsys.readouterr().err


def test_the_bundled_model_finds_rain(capsys):
    """White noise is the rain of most generators, and of this head."""
    detector = EventDetector.from_hparams()
    assert len(detector.labels) == 10
    wav = sound(seconds=12)
    wav[48000:144000] *= 30
    wav[:48000] = wav[144000:] = 0.0
    [clip] = detector.detect_batch(wav)
    rain = [event for event in clip.events if event.label == "rain"]
    longest = max(rain, key=lambda event: event.offset - event.onset)
    assert longest.onset == pytest.approx(3.0, abs=0.3)
    assert longest.offset == pytest.approx(9.0, abs=0.3)
    assert main(["models"]) == 0
    assert "sounds" in capsys.readouterr().out
