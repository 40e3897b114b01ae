"""Soundscapes are what they say, and a detector learns from them."""

import csv
import importlib.util
import json
import sys

import numpy as np
import pytest
import soundfile
import torch
from miniature_soundscapes import LABELS, ROOT, load_script, make, make_clips
from peer_kit import tiny, wrapped

from ssast_lobes.checkpoints.convert import convert
from ssast_lobes.dataio.event_tables import read_event_table
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.inference import EventDetector
from ssast_lobes.training import EventBrain

DETECT = ROOT / "recipes" / "Soundscapes" / "detect"


@pytest.fixture(scope="module")
def script():
    return load_script()


@pytest.fixture(scope="module")
def soundscapes(tmp_path_factory):
    return make(tmp_path_factory.mktemp("soundscapes"))


# The active parts ---------------------------------------------------------


def test_active_parts_are_cut_joined_and_split(script):
    wav = np.zeros(64000, dtype=np.float32)
    tone = 0.3 * np.sin(np.arange(16000) * 0.3).astype(np.float32)
    wav[8000:16000] = tone[:8000]  # 0.5 to 1.0 s
    wav[22400:28800] = tone[:6400]  # 1.4 to 1.8 s: a silence of 0.4 s
    wav[41600:48000] = tone[:6400]  # 2.6 to 3.0 s: a silence of 0.8 s
    wav[52000:60000] = 0.001 * tone[:8000]  # 50 dB below: not active
    parts = np.array(script.active_parts(wav)) / 16000
    wanted = [[0.5, 1.8], [2.6, 3.0]]
    assert parts == pytest.approx(np.array(wanted), abs=0.015)
    assert script.active_parts(np.zeros(16000, np.float32)) == []
    whole = script.active_parts(tone)
    assert whole == [(0, 16000)]


# Soundscapes --------------------------------------------------------------


def test_same_arguments_same_bytes(soundscapes, tmp_path):
    again = make(tmp_path / "again")
    for path in sorted(soundscapes.glob("audio/*/*.flac")):
        other = again / path.relative_to(soundscapes)
        assert other.read_bytes() == path.read_bytes()
    table = (soundscapes / "events.csv").read_text()
    assert (again / "events.csv").read_text() == table


def lines_of(folder):
    with open(folder / "events.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_table_tells_all(soundscapes):
    lines = lines_of(soundscapes)
    assert {line["label"] for line in lines} == {"", *LABELS}
    assert any(not line["onset"] for line in lines)
    for line in lines:
        # Clips of a part are heard in that part alone.
        assert line["source"].startswith(line["split"]) or not line["label"]
    rows = read_event_table(soundscapes / "events.csv")
    assert len(rows) == 40
    for row in rows:
        for label in LABELS:
            own = sorted(e[:2] for e in row["events"] if e.label == label)
            for (_, stop), (start, _) in zip(own, own[1:], strict=False):
                assert start - stop >= 0.5 - 1e-3
        times = np.arange(0, 4, 0.01)
        sounding = sum((e[0] < times) & (times < e[1]) for e in row["events"])
        assert np.max(sounding) <= 2


def test_snr_and_times_are_true(script, tmp_path):
    clips, backgrounds = make_clips(tmp_path / "clips")
    settings = {"events_per_minute": 25.0, "max_overlap": 1, "negatives": 0.0}
    table = script.make_soundscapes(
        clips,
        tmp_path,
        backgrounds,
        (0, 0, 9),
        4.0,
        snr=(6.0, 20.0),
        **settings,
    )
    ratios = {(r["path"], r["onset"]): r["snr"] for r in lines_of(tmp_path)}
    checked = 0
    for row in read_event_table(table):
        power = np.square(soundfile.read(row["path"])[0])
        quiet = np.ones(len(power), bool)
        spans = [
            slice(*(round(t * 16000) for t in e[:2])) for e in row["events"]
        ]
        for span in spans:
            quiet[span] = False
        # The background is steady noise: as loud under an event as elsewhere.
        under = power[quiet].mean()
        for event, span in zip(row["events"], spans, strict=True):
            snr = 10 * np.log10(power[span].mean() / under - 1)
            wanted = float(ratios[row["id"], f"{event.onset:.4f}"])
            assert snr == pytest.approx(wanted, abs=0.5)
            # The sounds last half a second in clips of one second.
            assert event.offset - event.onset == pytest.approx(0.5, abs=0.03)
            checked += 1
    assert checked > 5


def test_no_event_is_over_digital_silence(script, tmp_path):
    clips, backgrounds = make_clips(tmp_path / "clips")
    for path in backgrounds.parent.glob("*background.wav"):
        wav, rate = soundfile.read(path)
        wav[rate // 2 :] = 0
        soundfile.write(path, wav, rate)
    settings = {"events_per_minute": 60.0, "negatives": 0.0}
    counts = (0, 0, 9)
    table = script.make_soundscapes(
        clips, tmp_path, backgrounds, counts, 4.0, **settings
    )
    for row in read_event_table(table):
        wav, rate = soundfile.read(row["path"])
        for onset, offset, _ in row["events"]:
            assert wav[round(onset * rate) : round(offset * rate)].any()


def test_parts_without_clips_are_named(script, tmp_path):
    clips, backgrounds = make_clips(tmp_path / "clips")
    text = backgrounds.read_text().replace("test_background.wav,test\n", "")
    backgrounds.write_text(text)
    with pytest.raises(ManifestError, match="no backgrounds are test"):
        script.make_soundscapes(clips, tmp_path, backgrounds, (1, 1, 1), 4.0)


# The recipe ---------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe():
    """The module of the recipe's script."""
    path = DETECT / "train.py"
    sys.path.insert(0, str(DETECT))
    spec = importlib.util.spec_from_file_location("soundscapes_train", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(DETECT))
    sys.modules.pop("soundscapes_prepare", None)


@pytest.fixture(scope="module")
def train(recipe, soundscapes, tmp_path_factory):
    pytest.importorskip(
        "sed_scores_eval", reason="metrics of events need the extra `events`"
    )

    def run(*flags):
        folder = tmp_path_factory.mktemp("run") / "out"
        stats = recipe.main(
            [str(DETECT / "hparams" / "soundscapes.yaml")]
            + [f"--manifest={soundscapes}/events.csv", "--num_workers=0"]
            + [f"--output_folder={folder}", "--device=cpu", "--noprogressbar"]
            + ["--batch_size=4", *flags]
        )
        return folder, stats

    return run


@pytest.mark.slow
def test_a_detector_learns_and_is_exported(train, soundscapes):
    flags = "--number_of_epochs=5 --lr=0.01 --augment=null --crop_seconds=4.0"
    frozen = ["--source=ssast-lobes-micro-1", "--freeze_encoder=True"]
    folder, stats = train(*flags.split(), *frozen, "--layers=all")
    result = json.loads((folder / "test_result.json").read_text())
    assert result["metrics"] == stats
    assert stats["frame_mAP"] > 0.8
    assert stats["segment_f1"] > 0.7
    detector = EventDetector.from_hparams(folder / "export")
    assert detector.labels == list(LABELS)
    check_events(detector, folder, soundscapes)


def check_events(detector, folder, soundscapes):
    """The rules of the export find the events that the test has found."""
    found = read_event_table(folder / "test_events.csv")
    assert any(row["events"] for row in found)
    for row in found[:3]:
        clip = soundscapes / row["id"]
        events = detector.detect_file(clip).events
        assert [e.label for e in events] == [e.label for e in row["events"]]
        for one, other in zip(events, row["events"], strict=True):
            assert one[:2] == pytest.approx(other[:2], abs=0.05)


@pytest.mark.slow
def test_a_released_checkpoint_of_another_rate(train, soundscapes, tmp_path):
    torch.save(wrapped("maskspec", tiny("maskspec")), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "source", family="maskspec")
    flags = "--number_of_epochs=3 --lr=0.003 --augment=null --crop_seconds=4.0"
    folder, _ = train(*flags.split(), f"--source={tmp_path / 'source'}")
    detector = EventDetector.from_hparams(folder / "export")
    assert detector.sample_rate == 32000
    check_events(detector, folder, soundscapes)


@pytest.mark.slow
def test_the_package_s_brain_does_the_same(train, recipe, monkeypatch):
    flags = ["--number_of_epochs=1", "--crop_seconds=2.0"]
    flags += ["--model_size=micro", "--geometry=[128, 16]"]
    _, shown = train(*flags)
    assert {"compute_forward", "compute_objectives"} <= vars(
        recipe.SSASTBrain
    ).keys()
    monkeypatch.setattr(recipe, "SSASTBrain", EventBrain)
    _, packaged = train(*flags)
    assert packaged == shown
