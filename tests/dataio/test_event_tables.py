"""Tables of events: every format, and an answer to everything odd."""

import logging

import numpy as np
import pytest
import soundfile
import torch

from ssast_lobes import ClipReader, Grid, KaldiFbank
from ssast_lobes.checkpoints.folder import label_encoder_of
from ssast_lobes.dataio.event_dataset import make_event_dataset
from ssast_lobes.dataio.event_tables import (
    Event,
    fit_events,
    label_track_rows,
    read_event_table,
    read_label_track,
    row_events,
    write_events,
)
from ssast_lobes.dataio.splits import read_splits, write_splits
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.models.event_head import FrameTiming

TIMING = FrameTiming(Grid(128, (128, 4)), KaldiFbank())


def table(folder, text, name="events.csv"):
    path = folder / name
    path.write_text(text.replace(" | ", "\t"), "utf-8")
    return path


def events_of(rows):
    return {row["id"]: row["events"] for row in rows}


# Formats ------------------------------------------------------------------


def test_quotes_in_a_label_track_are_letters(tmp_path):
    text = '0.000\t1.000\t"5\n1.000\t2.000\t"Dog" barks\n'
    track = table(tmp_path, text, "a.txt")
    events = read_label_track(track)
    assert [event.label for event in events] == ['"5', '"Dog" barks']
    write_events(tmp_path / "b.txt", [("a.wav", events)], "audacity")
    assert (tmp_path / "b.txt").read_text("utf-8") == text


STRONG = {"a.wav": [Event(0.5, 2.0, "Dog"), Event(1.0, 3.0, "Cat")]}


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "desed.tsv",
            "filename | onset | offset | event_label\n"
            "a.wav | 0.500 | 2.000 | Dog\na.wav | 1 | 3 | Cat\n",
        ),
        (
            "audioset_strong.tsv",
            "segment_id | start_time_seconds | end_time_seconds | label\n"
            "a.wav | 0.5 | 2.0 | Dog\na.wav | 1.0 | 3.0 | Cat\n",
        ),
        (
            "ours.csv",
            "path,label,onset,offset,split,score\n"
            "a.wav,Dog,.5,2,train,0.9\na.wav,Cat,1,3,train,0.8\n",
        ),
    ],
)
def test_strong_tables(tmp_path, name, text):
    [row] = read_event_table(table(tmp_path, text, name))
    assert {row["id"]: row["events"]} == STRONG
    assert row["path"] == str(tmp_path / "a.wav")
    # What differs from line to line tells of events, not of the clip.
    assert row.get("split") == ("train" if name == "ours.csv" else None)
    assert "score" not in row


def test_a_timed_label_may_hold_several(tmp_path):
    text = "path,label,onset,offset\na.wav,dog; big,1,2\n"
    rows = read_event_table(table(tmp_path, text))
    assert events_of(rows)["a.wav"] == [Event(1, 2, "dog"), Event(1, 2, "big")]


def test_weak_and_negative_clips(tmp_path):
    text = "filename | event_labels\nb.wav | Dog,Cat\nc.wav |  \n"
    rows = read_event_table(table(tmp_path, text, "weak.tsv"), "/audio")
    assert rows[0]["path"] == "/audio/b.wav"
    assert events_of(rows) == {
        "b.wav": [Event(None, None, "Dog"), Event(None, None, "Cat")],
        "c.wav": [],
    }


def test_label_tracks(tmp_path):
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(800), 16000)
    table(tmp_path, "0.5 | 2.0 | Dog\n\\ | 100 | 900\n", "a.txt")
    table(tmp_path, "", "b.txt")
    rows = label_track_rows(tmp_path)
    assert events_of(rows) == {"a.wav": [Event(0.5, 2.0, "Dog")], "b.wav": []}


@pytest.mark.parametrize("layout", ["csv", "tsv"])
def test_what_is_written_is_read(tmp_path, layout):
    path = tmp_path / f"events.{layout}"
    write_events(path, [*STRONG.items(), ("none.wav", [])], layout)
    assert events_of(read_event_table(path)) == {**STRONG, "none.wav": []}


def test_a_written_label_track_is_read(tmp_path):
    write_events(tmp_path / "a.txt", [*STRONG.items()], "audacity")
    assert read_label_track(tmp_path / "a.txt") == STRONG["a.wav"]
    with pytest.raises(ValueError, match="a label track holds one clip, not 2"):
        write_events(tmp_path / "b.txt", [*STRONG.items()] * 2, "audacity")


# Bad lines ----------------------------------------------------------------


def test_bad_lines_are_named_all_at_once(tmp_path):
    text = (
        "path,label,onset,offset,split\n"
        "a.wav,dog,2,1,train\n"
        "a.wav,dog,-1,1,train\n"
        "a.wav,dog,x,1,train\n"
        "a.wav,dog,1,,train\n"
        "a.wav,,1,2,train\n"
        ",dog,1,2,train\n"
        "a.wav,dog,1,2,valid\n"
        "a.wav,dog, big,1,2,train\n"
    )
    with pytest.raises(ManifestError) as caught:
        read_event_table(table(tmp_path, text))
    lines = str(caught.value).splitlines()
    assert "8 bad lines" in lines[0]
    reasons = [
        "line 2: dog ends at 1 s, before it begins at 2 s",
        "line 3: -1 s is no time in a clip",
        'line 4: "x" is not a number of seconds',
        "line 5: an onset without an offset",
        "line 6: times without a label",
        "line 7: the file name is empty",
        'line 8: a.wav has the split "valid" here and "train" above',
        "line 9: 6 cells under 5 columns (text with commas must stand in",
    ]
    for line, reason in zip(lines[1:], reasons, strict=True):
        assert reason in line


def test_missing_columns_are_named(tmp_path):
    text = "name,onset\na.wav,1\n"
    with pytest.raises(ManifestError, match="no column path or .*, offset or"):
        read_event_table(table(tmp_path, text))


# Events and durations -----------------------------------------------------


def row_of(*events, seconds=4.0):
    return {"id": "a", "duration": seconds, "events": list(events)}


def test_overlaps_ends_and_empty_events(caplog):
    row = row_of(
        Event(1.0, 2.0, "dog"),
        Event(1.5, 3.0, "dog"),
        Event(1.5, 9.0, "cat"),
        Event(2.0, 2.0, "cow"),
    )
    with caplog.at_level(logging.WARNING):
        [fitted] = fit_events("Pets", [row])
    assert fitted["label"] == "cat;dog"
    assert row_events(fitted) == [
        Event(1.0, 3.0, "dog"),
        Event(1.5, 4.0, "cat"),
    ]
    for what in ("cut at the end of", "left out of", "joined in"):
        assert f"Pets: 1 events were {what} their clips" in caplog.text


def test_events_after_the_end_and_mixed_labels_are_errors():
    rows = [
        row_of(Event(4.5, 5.0, "dog")),
        row_of(Event(1.0, 2.0, "dog"), Event(None, None, "cat")),
    ]
    with pytest.raises(ManifestError) as caught:
        fit_events("Pets", rows)
    assert "2 problems with the events" in str(caught.value)
    assert "dog from 4.5 s, and the clip ends at 4 s" in str(caught.value)
    assert "labels with times and without" in str(caught.value)


# Parts and datasets -------------------------------------------------------


@pytest.fixture
def parts(tmp_path):
    """Rows of three clips of two seconds: two with events, one without."""

    def row(name, *events):
        path = str(tmp_path / f"{name}.wav")
        soundfile.write(path, np.zeros(32000), 16000)
        return {"id": name, "path": path, "events": list(events)}

    dog, cat = Event(0.5, 1.0, "dog"), Event(0.8, 1.5, "cat")
    return {
        "train": [row("a", dog, cat), row("none")],
        "valid": [row("b", dog)],
        "test": [row("c", cat)],
    }


def test_parts_know_events_and_negative_clips(parts, tmp_path):
    rows = read_splits(
        write_splits(parts, tmp_path / "out", "Pets", multi_label=True)
    )
    assert rows["labels"] == ["cat", "dog"]
    assert rows["train"]["none"]["label"] == ""
    assert row_events(rows["valid"]["b"]) == [Event(0.5, 1.0, "dog")]
    dataset = make_event_dataset(
        rows["train"], ClipReader(), label_encoder_of(["cat", "dog"]), TIMING
    )
    item = dataset[1]
    assert item["is_strong"] and item["frame_target"].sum() == 0
    assert dataset[0]["target"].tolist() == [1.0, 1.0]


def test_unknown_classes_are_named(parts, tmp_path):
    parts["test"][0]["events"].append(Event(0.1, 0.2, "cow"))
    with pytest.raises(ManifestError, match="test that train .*: cow"):
        write_splits(parts, tmp_path / "out", "Pets", multi_label=True)


def test_targets_move_with_the_crop(parts, tmp_path):
    rows = read_splits(
        write_splits(parts, tmp_path / "out", "Pets", multi_label=True)
    )
    reader = ClipReader(1.0, seed=3, random_crop=True)
    labels = label_encoder_of(["cat", "dog"])
    dataset = make_event_dataset(rows["train"], reader, labels, TIMING)
    seen = set()
    for reader.epoch in range(4):
        item = dataset[0]
        start, _ = reader.crop(2.0, "a")
        shifted = [(0.8 - start, 1.5 - start, 0), (0.5 - start, 1 - start, 1)]
        wanted = TIMING.targets(shifted, 16000, 2)
        assert torch.equal(item["frame_target"], wanted)
        assert torch.equal(item["target"], wanted.amax(0))
        seen.add(start)
    assert len(seen) == 4


def test_weak_clips_must_fit_into_a_crop(parts, tmp_path):
    parts["train"].append({**parts["train"][0], "id": "weak"})
    parts["train"][-1]["events"] = [Event(None, None, "dog")]
    parts["train"].pop(0)
    parts["train"].append(parts["test"][0] | {"id": "d"})
    path = write_splits(parts, tmp_path / "out", "Pets", multi_label=True)
    rows, labels = read_splits(path)["train"], label_encoder_of(["cat", "dog"])
    item = make_event_dataset(rows, ClipReader(), labels, TIMING)[1]
    assert item["id"] == "weak" and not item["is_strong"]
    assert item["target"].tolist() == [0.0, 1.0]
    with pytest.raises(ManifestError, match="weak: labels without times for 2"):
        make_event_dataset(rows, ClipReader(1.0), labels, TIMING)
