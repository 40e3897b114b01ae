"""Parts of a dataset: by whole groups, checked, written down."""

import csv
import logging
from collections import Counter

import numpy as np
import pytest
import soundfile

from ssast_lobes.dataio.held_out import without_held_out
from ssast_lobes.dataio.partition import (
    draw_splits,
    fold_splits,
    hash_fractions,
    hold_out,
)
from ssast_lobes.dataio.splits import (
    OtherClips,
    prepare_folds,
    read_splits,
    write_splits,
)
from ssast_lobes.dataio.tables import SPLITS, ManifestError, read_manifest
from ssast_lobes.utils.files import atomic_write


def many_rows(seed=0, n=600):
    """Clips of six labels and of groups of one to five clips."""
    rng = np.random.default_rng(seed)
    rows, group = [], 0
    while len(rows) < n:
        group += 1
        label = f"label{rng.integers(6)}"
        for _ in range(rng.integers(1, 6)):
            rows.append(
                {
                    "id": f"{len(rows)}",
                    "label": label,
                    "recording": f"r{group}",
                    "fold": str(group % 5 + 1),
                }
            )
    return rows


def groups(rows, key="recording"):
    return {row[key] for row in rows}


def test_hash_fractions_are_even():
    fractions = hash_fractions([f"clip{number}" for number in range(4000)])
    counts, _ = np.histogram(fractions, bins=10, range=(0, 1))
    assert counts.min() > 300


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_hold_out_is_by_group_and_alike_in_labels(fraction):
    rows = many_rows()
    kept, held = hold_out(rows, fraction, "recording")
    assert len(kept) + len(held) == len(rows)
    assert not groups(kept) & groups(held)
    labels = Counter(row["label"] for row in rows)
    for label, count in Counter(row["label"] for row in held).items():
        assert abs(count - fraction * labels[label]) <= 3


def test_hold_out_does_not_depend_on_the_order():
    rows = many_rows()
    _, held = hold_out(rows, 0.2, "recording")
    _, other = hold_out(rows[::-1], 0.2, "recording")
    assert held == other[::-1]


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.2, 1), (0.01, 1), (0.9, 3)]
)
def test_hold_out_of_four_speakers(fraction, expected):
    rows = [
        {"label": label, "speaker": speaker}
        for speaker in "abcd"
        for label in "xyz"
    ]
    kept, held = hold_out(rows, fraction, "speaker")
    assert len(groups(held, "speaker")) == expected
    assert kept


def test_hold_out_of_one_speaker():
    rows = [{"label": "x", "speaker": "a"}] * 3
    with pytest.raises(ManifestError, match="all have the same speaker"):
        hold_out(rows, 0.2, "speaker")


def test_every_clip_is_tested_once():
    rows = many_rows()
    tested = []
    for fold in range(1, 6):
        parts = fold_splits(rows, fold, 0.2, "recording")
        assert [len(groups(parts["test"], "fold")), *parts] == [1, *SPLITS]
        together = [row["id"] for part in parts.values() for row in part]
        assert sorted(together) == sorted(row["id"] for row in rows)
        for one, other in (("train", "valid"), ("train", "test")):
            assert not groups(parts[one]) & groups(parts[other])
        tested += parts["test"]
    assert sorted(row["id"] for row in tested) == sorted(
        row["id"] for row in rows
    )


def test_valid_may_be_test():
    parts = fold_splits(many_rows(), "2", 0.2, "recording", valid_is_test=True)
    assert parts["valid"] is parts["test"]
    assert groups(parts["train"], "fold") == set("1345")


def test_no_such_fold():
    with pytest.raises(ManifestError, match="fold 6.* clips of 1, 2, 3, 4, 5"):
        fold_splits(many_rows(), 6, 0.2, "recording")


# Writing ------------------------------------------------------------------


@pytest.fixture
def splits(tones):
    """Rows of the corpus of tones by split."""
    rows = read_manifest(tones.manifest, ("path", "label", "split"))
    return {
        name: [dict(row) for row in rows if row["split"] == name]
        for name in SPLITS
    }


def test_written_splits_are_read_and_make_a_manifest(splits, tmp_path):
    path = write_splits(splits, tmp_path, "Tones")
    written = read_splits(path)
    assert written["corpus"] == "Tones"
    assert written["labels"] == ["chirp", "noise", "tone"]
    assert [len(written[name]) for name in SPLITS] == [12, 6, 6]
    row = written["train"]["tone_0.wav"]
    assert (row["label"], row["speaker"]) == ("tone", "speaker0")
    assert 0.3 <= row["duration"] <= 1.2
    # People, and other recipes, read it as any manifest.
    rows = read_manifest(
        tmp_path / "save/manifest.csv", ("path", "label", "split")
    )
    assert len(rows) == 24
    with open(path, "rb") as file:
        before = file.read()
    write_splits(splits, tmp_path, "Tones")
    with open(path, "rb") as file:
        assert file.read() == before


def test_folds_are_counted_and_written(splits, tmp_path):
    rows = [
        row | {"fold": name} for name, part in splits.items() for row in part
    ]
    counts = {"found": {"clips": 24}, "published": {"clips": 24}}

    def prepare(**settings):
        given = {"corpus": "Tones, fold", "source": "us", **counts, **settings}
        path = prepare_folds(
            rows, tmp_path, "test", valid_fraction=0.25, **given
        )
        return read_splits(path)

    parts = prepare()
    assert parts["corpus"] == "Tones, fold test"
    assert parts["test"].keys() == {row["id"] for row in splits["test"]}
    speakers = [
        groups(parts[name].values(), "speaker") for name in ("train", "valid")
    ]
    assert speakers[1] and not speakers[0] & speakers[1]
    parts = prepare(valid_group="id")
    shared = groups(parts["train"].values(), "speaker")
    assert groups(parts["valid"].values(), "speaker") & shared
    parts = prepare(valid_is_test=True)
    assert parts["valid"] == parts["test"] and len(parts["train"]) == 18
    with pytest.raises(ManifestError, match="clips: 24, published 25 .*us"):
        prepare(published={"clips": 25})
    prepare(published={"clips": 25}, require_counts=False)


def test_all_problems_are_told_at_once(splits, tmp_path):
    splits["valid"].append(splits["train"][0])
    splits["test"].append(splits["test"][0])
    splits["test"].append({"id": "gone", "path": "/gone.wav", "label": "tone"})
    with pytest.raises(ManifestError) as error:
        write_splits(splits, tmp_path, "Tones")
    first, last = splits["train"][0]["id"], splits["test"][0]["id"]
    assert str(error.value) == (
        "Tones: 3 problems with the data\n"
        f"  more than one clip has the id {first}: in train and valid\n"
        f"  more than one clip has the id {last}: in test and test\n"
        "  no such file: /gone.wav"
    )
    assert not (tmp_path / "save/splits.json").exists()


def test_valid_that_is_test_is_no_problem(splits, tmp_path):
    splits["valid"] = splits["test"]
    written = read_splits(write_splits(splits, tmp_path, "Tones"))
    assert written["valid"] == written["test"]
    with open(tmp_path / "save/manifest.csv", newline="") as file:
        kinds = Counter(row["split"] for row in csv.DictReader(file))
    assert kinds == {"train": 12, "test": 6}


def test_labels_and_parts_that_are_empty_or_unknown(splits, tmp_path):
    def message(**more):
        with pytest.raises(ManifestError) as error:
            write_splits(splits, tmp_path, "Tones", **more)
        return str(error.value)

    classes = ["chirp", "tone", "whistle"]
    told = message(classes=classes)
    assert "no clip of train has the label whistle" in told
    assert "labels of test that are unknown: noise" in told
    splits["train"] = [r for r in splits["train"] if r["label"] != "tone"]
    assert "labels of valid that train does not have: tone" in message()
    assert "has the label tone" in message(classes=["chirp", "noise", "tone"])
    splits["valid"] = []
    assert "no clip is valid" in message()


def test_labels_that_cannot_be_saved_are_told_with_a_clip(splits, tmp_path):
    for part in splits.values():
        for row in part:
            row["label"] = row["label"].replace("tone", "a => tone")
    first = next(r for r in splits["train"] if r["label"] == "a => tone")
    with pytest.raises(ManifestError) as error:
        write_splits(splits, tmp_path, "Tones")
    assert str(error.value) == (
        f'Tones: 1 problem with the data\n  {first["id"]}: label "a => tone" '
        'cannot be saved: replace the " => " in it'
    )
    assert not (tmp_path / "save/splits.json").exists()
    first["label"] = "noise; b => c"
    with pytest.raises(ManifestError, match=f'{first["id"]}: label "b => c"'):
        write_splits(splits, tmp_path, "Tones", multi_label=True)


@pytest.mark.parametrize(
    ("cells", "multi_label", "told"),
    [
        (["tone", "tone"], False, "the label tone: there is nothing to tell"),
        (["tone", "tone"], True, "the label tone: there is nothing to tell"),
        (["a;b", "b; a"], True, "the labels a, b: there is nothing to tell"),
        (["tone", ";"], True, None),
        (["a;b", "b"], True, None),
        (["a", "b"], False, None),
    ],
)
def test_training_clips_of_the_same_labels(
    splits, tmp_path, cells, multi_label, told
):
    for part in splits.values():
        for row, cell in zip(part, cells * 6, strict=False):
            row["label"] = cell
    given = {"corpus": "Tones", "multi_label": multi_label}
    if told is None:
        write_splits(splits, tmp_path, **given)
        return
    with pytest.raises(ManifestError, match=told):
        write_splits(splits, tmp_path, **given)
    # Pretraining does not look at labels.
    write_splits(splits, tmp_path, **given, labeled=False)


def test_unreadable_audio_is_left_out_and_may_empty_a_class(splits, tmp_path):
    broken = tmp_path / "broken.wav"
    soundfile.write(broken, np.zeros(800), 16000)
    broken.write_bytes(broken.read_bytes()[:20])
    row = {"id": "broken", "path": str(broken), "label": "tone"}
    splits["train"].append(row)
    with pytest.raises(ManifestError, match=r"1 of 25 .*unreadable\.csv"):
        write_splits(splits, tmp_path, "Tones")
    path = write_splits(splits, tmp_path, "Tones", max_unreadable=0.1)
    assert "broken" not in read_splits(path)["train"]
    assert str(broken) in (tmp_path / "unreadable.csv").read_text()
    row["label"] = "broken"
    with pytest.raises(ManifestError, match="train has the label broken"):
        write_splits(
            splits,
            tmp_path,
            "Tones",
            classes=["chirp", "noise", "tone", "broken"],
            max_unreadable=0.1,
        )


def test_a_fraction_never_replaces_valid_clips(splits, tmp_path):
    with pytest.raises(ValueError, match="splits without valid clips"):
        write_splits(splits, tmp_path, "Tones", valid_fraction=0.3)


def test_labels_in_a_folder_begun_without_are_told(splits, tmp_path):
    parts = {"train": splits["train"], "valid": []}
    write_splits(parts, tmp_path, "All", labeled=False)
    (tmp_path / "save" / "CKPT+1").mkdir()
    with pytest.raises(OtherClips, match="has the label .* now, and had"):
        write_splits(parts | {"test": []}, tmp_path, "All")


def test_drawn_splits_have_all_rows():
    rows = [{"id": str(n), "label": "ab"[n % 2]} for n in range(20)]
    rows = [row | {"split": ""} for row in rows[:4]] + rows[4:]
    assert sum(map(len, draw_splits(rows).values())) == 20


def test_a_file_in_a_folder_and_in_its_shards_is_one_clip():
    rows = [
        {"id": "a", "path": "/a.wav"},
        {"id": "a", "path": "/x.tar#a.flac", "source_path": "/a.wav"},
    ]
    assert len(without_held_out(rows)) == 1


def test_audio_without_labels(splits, tmp_path):
    for row in splits["train"]:
        del row["label"]
    parts = {"train": splits["train"], "valid": []}
    written = read_splits(write_splits(parts, tmp_path, "All", labeled=False))
    assert set(written) == {"corpus", "train", "valid"}
    parts["train"] = []
    with pytest.raises(ManifestError, match="left"):
        write_splits(parts, tmp_path, "All", labeled=False)


def test_shared_groups_are_told(splits, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    write_splits(splits, tmp_path, "Tones")
    assert "are in train too" not in caplog.text
    splits["valid"][0]["speaker"] = "speaker0"
    write_splits(splits, tmp_path, "Tones")
    assert (
        "Tones: 1 speakers of valid are in train too, such as speaker0"
        in caplog.text
    )


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        with atomic_write(tmp_path / "a.txt") as file:
            file.write("half")
            raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
