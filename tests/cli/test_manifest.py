"""Class folders are labels: the table of them, and training from them."""

import csv
import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssast_lobes.cli import main
from ssast_lobes.dataio.class_folders import class_rows
from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.dataio.tables import ManifestError, read_manifest

RECIPE = Path(__file__).parents[2] / "recipes" / "CustomData"
BY_SPEAKER = ["--group", r"(s\d+)_"]


def add_clip(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(800), 16000)


@pytest.fixture
def folder(tmp_path):
    """Three classes of 30, 20 and 6 clips, of speakers with one to three."""
    root = tmp_path / "sounds"
    for label, n_clips in {"dog": 30, "cat": 20, "owl": 6}.items():
        for number in range(n_clips):
            speaker = number * 10 // 21
            add_clip(root / label / f"{label[0]}s{speaker}_{number}.wav")
    return root


def written(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def splits_of(path):
    return {row["path"]: row["split"] for row in written(path)}


def make(*words):
    return main(["manifest", *map(str, words)])


@pytest.fixture
def told(folder, capsys):
    """Function of options: the error of the command, which writes nothing."""

    def error(*options):
        before = sorted(folder.parent.rglob("*"))
        assert make(folder, *options) == 2
        assert sorted(folder.parent.rglob("*")) == before
        return capsys.readouterr().err

    return error


def test_the_user_learns_how_the_splits_are_drawn(folder, capsys):
    assert make(folder) == 0
    assert "drawn clip by clip" in capsys.readouterr().out
    assert make(folder, "--overwrite", *BY_SPEAKER) == 0
    shown = capsys.readouterr().out
    assert "clip by clip" not in shown and "check --group" not in shown
    assert make(folder, "--overwrite", "--group", "(.*)") == 0
    assert "Each file is a group of its own" in capsys.readouterr().out


def test_a_damaged_file_moves_no_other(folder):
    assert make(folder) == 0
    before = splits_of(folder / "manifest.csv")
    name, _ = before.popitem()
    (folder / name).write_bytes(b"no audio")
    assert make(folder, "--overwrite") == 0
    assert splits_of(folder / "manifest.csv") == before


def test_table_of_class_folders(folder, capsys):
    assert make(folder) == 0
    rows = written(folder / "manifest.csv")
    assert list(rows[0]) == ["path", "label", "split"]
    assert len(rows) == 56
    assert all(row["path"].split("/")[0] == row["label"] for row in rows)
    counts = Counter((row["label"], row["split"]) for row in rows)
    assert [counts["dog", x] for x in ("train", "valid", "test")] == [21, 3, 6]
    assert [counts["cat", x] for x in ("train", "valid", "test")] == [14, 2, 4]
    assert [counts["owl", x] for x in ("train", "valid", "test")] == [4, 1, 1]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:5] == [
        ["label", "train", "valid", "test"],
        ["cat", "14", "2", "4"],
        ["dog", "21", "3", "6"],
        ["owl", "4", "1", "1"],
        ["(all)", "39", "6", "11"],
    ]
    # What reads tables reads this one.
    found = read_manifest(folder / "manifest.csv", ("path", "label", "split"))
    assert len(found) == 56


def test_groups_stay_together_and_each_label_is_everywhere(folder, capsys):
    assert make(folder, *BY_SPEAKER, "--splits", "0.6,0.2,0.2") == 0
    rows = written(folder / "manifest.csv")
    assert list(rows[0]) == ["path", "label", "split", "group"]
    splits, labels = defaultdict(set), defaultdict(set)
    for row in rows:
        assert f"{row['group']}_" in row["path"]
        splits[row["group"]].add(row["split"])
        labels[row["split"]].add(row["label"])
    # A speaker of two classes is one group.
    assert {"s0", "s1", "s2"} <= set(splits)
    assert all(len(names) == 1 for names in splits.values())
    everything = {"dog", "cat", "owl"}
    assert all(labels[x] == everything for x in ("train", "valid", "test"))
    assert "label  groups  train" in capsys.readouterr().out


def test_a_seed_decides_the_splits(folder, tmp_path):
    outputs = [tmp_path / f"{name}.csv" for name in "abc"]
    for output, seed in zip(outputs, (1, 1, 2), strict=True):
        assert make(folder, "--output", output, "--seed", seed) == 0
    texts = [output.read_text() for output in outputs]
    assert texts[0] == texts[1] != texts[2]


def test_paths_are_relative_below_the_table_only(folder, tmp_path):
    above, below = tmp_path / "all.csv", tmp_path / "tables" / "all.csv"
    assert make(folder, "--output", above) == 0
    assert written(above)[0]["path"].startswith("sounds/cat/")
    assert make(folder, "--output", below) == 0
    assert written(below)[0]["path"].startswith(f"{folder}/cat/")
    assert len(read_manifest(below)) == 56


def test_an_older_table_is_kept_unless_told_otherwise(folder, told):
    output = folder / "manifest.csv"
    output.write_text("mine")
    assert "--overwrite replaces it" in told()
    assert output.read_text() == "mine"
    assert make(folder, "--overwrite") == 0
    assert len(written(output)) == 56


def test_a_class_with_fewer_groups_than_splits_is_named(folder, caplog):
    add_clip(folder / "emu" / "s90_0.wav")
    for number in range(2):
        add_clip(folder / "yak" / f"s9{number + 1}_0.wav")
    assert make(folder, *BY_SPEAKER) == 0
    split = splits_of(folder / "manifest.csv")
    assert split["emu/s90_0.wav"] == "train"
    yaks = sorted(split[f"yak/s9{number}_0.wav"] for number in (1, 2))
    assert yaks == ["test", "train"]
    assert caplog.messages == [
        "valid has no clip of 2 of 5 labels: emu (1 group), yak (2 groups)",
        "test has no clip of 1 of 5 labels: emu (1 group)",
    ]


def test_one_clip_a_class_stays_in_train(folder, caplog):
    for label in ("dog", "cat", "owl"):
        for path in sorted((folder / label).glob("*.wav"))[1:]:
            path.unlink()
    assert make(folder) == 0
    assert set(splits_of(folder / "manifest.csv").values()) == {"train"}
    said = "no clip of 3 of 3 labels: cat (1 clip), dog (1 clip), owl (1 clip)"
    assert caplog.messages == [f"valid has {said}", f"test has {said}"]


def test_one_group_only_is_an_error(folder, told):
    assert "all have the same group" in told("--group", r"\.(wav)")


def test_a_part_of_zero_is_not_drawn(folder):
    assert make(folder, "--splits", "0.8,0.2,0") == 0
    counts = Counter(splits_of(folder / "manifest.csv").values())
    assert counts["test"] == 0 and counts["valid"] == 11


def test_files_in_no_class_folder_are_listed(folder, told):
    add_clip(folder / "stray.wav")
    add_clip(folder / "other.wav")
    error = told()
    assert "2 problems with the data" in error
    assert "in no class folder: stray.wav" in error


def test_a_folder_without_class_folders_is_one_line(tmp_path, capsys):
    for number in range(3):
        add_clip(tmp_path / f"{number}.wav")
    assert make(tmp_path) == 2
    error = capsys.readouterr().err
    assert "all audio lies in no class folder" in error
    assert "0.wav" not in error and str(tmp_path / "LABEL") in error


def test_paths_without_a_group_are_listed(folder, told):
    add_clip(folder / "dog" / "anonymous.wav")
    error = told(*BY_SPEAKER)
    assert "1 problem with the data" in error
    assert r"(s\d+)_ is not found in dog/anonymous.wav" in error
    # Parentheses that may be without a match are no group either.
    assert "56 problems" in told("--group", r"_\d+|anonymou(s)")


def test_unreadable_files_are_left_out_and_listed(folder, capsys):
    (folder / "dog" / "broken.wav").write_text("no audio")
    (folder / "dog" / "notes.txt").write_text("no audio either")
    assert make(folder) == 0
    assert "dog/broken.wav" not in splits_of(folder / "manifest.csv")
    assert "1 of 57 files could not be read" in capsys.readouterr().err
    listed = folder / "manifest.csv.unreadable.csv"
    assert [row["path"] for row in written(listed)] == [
        str(folder / "dog" / "broken.wav")
    ]
    for path in folder.rglob("*.wav"):
        path.write_text("no audio")
    assert make(folder, "--overwrite") == 2
    assert "none of the files could be read" in capsys.readouterr().err


def test_nested_and_hidden_folders(folder):
    add_clip(folder / "dog" / "cat" / "deep" / "1.wav")
    add_clip(folder / ".trash" / "1.wav")
    add_clip(folder / "dog" / ".old" / "1.wav")
    assert make(folder) == 0
    label_of = {r["path"]: r["label"] for r in written(folder / "manifest.csv")}
    assert label_of.pop("dog/cat/deep/1.wav") == "dog"
    assert len(label_of) == 56


def test_labels_that_no_table_can_hold(folder, told):
    (folder / "dog").rename(folder / "dog => cat")
    error = told()
    assert 'label "dog => cat" cannot be saved' in error
    os.rename(folder / "dog => cat", os.fsencode(folder) + b"/d\xf6g")
    assert r"a name that is not UTF-8: 'd\udcf6g/" in told()


def test_a_folder_around_the_classes_is_told(folder, tmp_path, capsys):
    assert make(tmp_path) == 2
    error = capsys.readouterr().err
    assert f"one label only, sounds; did you mean {folder}?" in error


def in_splits(folder, names):
    """Move the classes of a folder into folders of splits."""
    places = {}
    for number, path in enumerate(sorted(folder.rglob("*.wav"))):
        name = names[number % len(names)]
        new = folder / name / path.relative_to(folder)
        new.parent.mkdir(parents=True, exist_ok=True)
        path.rename(new)
        places[new.relative_to(folder).as_posix()] = name
    for label in ("dog", "cat", "owl"):
        (folder / label).rmdir()
    return places


def test_folders_of_splits_give_the_splits(folder, capsys):
    places = in_splits(folder, ["train", "validation", "test"])
    assert make(folder) == 0
    rows = written(folder / "manifest.csv")
    assert {row["label"] for row in rows} == {"dog", "cat", "owl"}
    expected = {path: name[:5] for path, name in places.items()}
    assert splits_of(folder / "manifest.csv") == expected
    assert "drawn clip by clip" not in capsys.readouterr().out


def test_splits_that_are_not_given_are_drawn_from_train(folder):
    places = in_splits(folder, ["train", "test"])
    assert make(folder) == 0
    split = splits_of(folder / "manifest.csv")
    for path, name in places.items():
        assert (
            split[path]
            in {"train": ("train", "valid"), "test": ("test",)}[name]
        )
    # One in eight of each class: 0.1 of 0.7 + 0.1.
    counts = Counter(split.values())
    assert counts["valid"] == 4 and counts["train"] == 24


def test_a_group_in_two_given_splits_is_told(folder, told):
    in_splits(folder, ["train", "valid", "test"])
    error = told(*BY_SPEAKER)
    assert "groups are in more than one of the given splits, such as s" in error


def test_a_class_may_be_called_train(folder):
    (folder / "owl").rename(folder / "train")
    assert make(folder) == 0
    labels = {row["label"] for row in written(folder / "manifest.csv")}
    assert labels == {"dog", "cat", "train"}


def write_metadata(folder, name="file_name", label="label"):
    """Describe the audio below a folder as `audiofolder` has it."""
    with open(folder / "metadata.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([name, label, "kind"])
        for path in sorted(folder.rglob("*.wav")):
            kind = "bird" if "owl" in path.parts else "mammal"
            lines.writerow([path.relative_to(folder).as_posix(), kind, "x"])


def test_metadata_of_audiofolder_gives_the_labels(folder):
    write_metadata(folder)
    add_clip(folder / "dog" / "not_listed.wav")
    assert make(folder) == 0
    rows = written(folder / "manifest.csv")
    labels = Counter(row["label"] for row in rows)
    assert labels == {"bird": 6, "mammal": 50}
    assert {row["split"] for row in rows} == {"train", "valid", "test"}


@pytest.mark.parametrize("places", ["root", "splits"])
def test_metadata_of_audiofolder_with_splits(folder, places, told):
    expected = in_splits(folder, ["train", "validation", "test"])
    if places == "root":
        write_metadata(folder)
    else:
        for name in ("train", "validation"):
            write_metadata(folder / name)
        assert f"{folder}/test/metadata.csv: No such file" in told()
        write_metadata(folder / "test")
    assert make(folder) == 0
    rows = written(folder / "manifest.csv")
    assert {row["label"] for row in rows} == {"bird", "mammal"}
    found = {row["path"]: row["split"] for row in rows}
    assert found == {path: name[:5] for path, name in expected.items()}


def test_metadata_is_checked(folder, told):
    write_metadata(folder, name="file")
    assert "metadata.csv: no column file_name" in told()
    write_metadata(folder)
    (folder / "owl" / "os0_0.wav").unlink()
    assert "no such file" in told()


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Function of a folder and columns: the splits that CustomData makes."""
    monkeypatch.syspath_prepend(RECIPE)
    monkeypatch.delitem(sys.modules, "custom_data_prepare", raising=False)
    from custom_data_prepare import prepare_classification

    def run(folder, label="label", split="split"):
        path = prepare_classification(
            str(folder), tmp_path / "out", label, split, False, 0.0, 0.0
        )
        return read_splits(path)

    return run


def test_classification_of_a_folder_has_the_splits_of_its_table(
    folder, prepare, tmp_path
):
    table = tmp_path / "table.csv"
    assert make(folder, "--output", table) == 0
    found = prepare(folder)
    assert found["labels"] == ["cat", "dog", "owl"]
    split = {
        f"sounds/{clip}": name
        for name in ("train", "valid", "test")
        for clip in found[name]
    }
    assert split == splits_of(table)


def test_classification_of_a_folder_with_metadata(folder, prepare):
    write_metadata(folder, label="class")
    assert prepare(folder, "class")["labels"] == ["bird", "mammal"]


def test_classification_refuses_what_a_folder_does_not_say(folder, prepare):
    with pytest.raises(ManifestError, match="no column fold"):
        prepare(folder, split="fold")
    with pytest.raises(ManifestError, match="no metadata.csv with a column sp"):
        prepare(folder, "speaker")
    # Its splits may be by speaker; those drawn anew would not be.
    assert make(folder, *BY_SPEAKER) == 0
    with pytest.raises(ManifestError, match=f"mean {folder}/manifest.csv"):
        prepare(folder)


@pytest.mark.slow
def test_a_name_and_class_folders_make_a_classifier(
    folder, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(RECIPE / "classify")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("SB_GLOBAL_SEED", "0")
    from train import main as train

    out = tmp_path / "out"
    train(
        [
            str(RECIPE / "classify" / "hparams" / "classify.yaml"),
            *("--source=ssast-lobes-micro-1", f"--manifest={folder}"),
            *("--crop_seconds=0.1", "--min_seconds=0.01", "--mixup=null"),
            *("--number_of_epochs=1", "--num_workers=0", "--device=cpu"),
            *(f"--output_folder={out}", "--noprogressbar"),
        ]
    )
    config = json.loads((out / "export" / "config.json").read_text())
    assert config["labels"] == ["cat", "dog", "owl"]
    assert config["encoder"]["dim"] == 128


def test_rows_of_a_folder_say_no_more_than_it_does(folder):
    [first, *_] = class_rows(folder)
    assert set(first) == {"id", "path", "label"}
