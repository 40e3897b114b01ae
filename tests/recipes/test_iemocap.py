"""IEMOCAP is prepared session by session, and errors name the cause."""

import importlib.util
import shutil
from pathlib import Path

import miniature_iemocap
import pytest

from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.dataio.tables import ManifestError

SCRIPT = (
    Path(__file__).parents[2] / "recipes" / "IEMOCAP" / "iemocap_prepare.py"
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("iemocap_prepare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archive(tmp_path):
    """Folder that has `IEMOCAP_full_release`, of 100 clips of the task."""
    return miniature_iemocap.make(tmp_path / "data", seconds=0.05)


@pytest.fixture
def release(archive):
    return archive / "IEMOCAP_full_release"


@pytest.fixture
def prepare(script, archive, tmp_path):
    """The script with what the miniature needs; gives the parts."""

    def run(fold=1, **more):
        settings = {"require_counts": False, **more}
        folder = settings.pop("data_folder", archive)
        return read_splits(
            script.prepare_iemocap(folder, tmp_path / "out", fold, **settings)
        )

    return run


def table_of(release, dialogue):
    session = f"Session{dialogue[4]}"
    folder = release / session / "dialog" / "EmoEvaluation"
    return folder / f"{dialogue}.txt"


def values(part, key):
    return {row[key] for row in part.values()}


@pytest.mark.parametrize("fold", [1, 5])
def test_one_session_left_out(prepare, fold):
    parts = prepare(fold)
    assert parts["corpus"] == f"IEMOCAP, test session {fold}"
    assert parts["labels"] == ["angry", "happy", "neutral", "sad"]
    names = ("train", "valid", "test")
    assert [len(parts[name]) for name in names] == [60, 20, 20]
    assert values(parts["test"], "session") == {str(fold)}
    for key, number in (("speaker", 10), ("session", 5), ("dialogue", 10)):
        found = [values(parts[name], key) for name in names]
        assert sum(map(len, found)) == len(set.union(*found)) == number


def test_labels_and_speakers(prepare, release):
    test = prepare(2, data_folder=release)["test"]
    labels = {name[-3:]: row["label"] for name, row in test.items()}
    assert labels == {
        "000": "angry",
        "001": "happy",
        "002": "happy",
        "003": "neutral",
        "004": "sad",
    }
    # Of the names' two letters the second tells who speaks.
    row = test["Ses02M_script01_1b_F003"]
    assert (row["speaker"], row["dialogue"]) == ("Ses02F", "Ses02M_script01_1b")
    wav = release / "Session2" / "sentences" / "wav" / "Ses02M_script01_1b"
    assert row["path"] == str(wav / "Ses02M_script01_1b_F003.wav")


@pytest.mark.parametrize(
    ("group", "shared"), [("speaker", "dialogue"), ("dialogue", "speaker")]
)
def test_other_groups_for_validation(prepare, group, shared):
    parts = prepare(3, valid_group=group)
    train, valid = parts["train"], parts["valid"]
    assert values(train, group).isdisjoint(values(valid, group))
    assert values(train, shared) & values(valid, shared)
    assert values(parts["test"], "session") == {"3"}


def test_single_utterances_for_validation(prepare, caplog):
    parts = prepare(3, valid_group="id", valid_fraction=0.25)
    assert 17 <= len(parts["valid"]) <= 23
    assert "speakers of valid are in train too" in caplog.text
    with pytest.raises(ManifestError, match="dialogue, id, got 'label'"):
        prepare(3, valid_group="label")


def test_epoch_chosen_on_test(prepare):
    parts = prepare(4, valid_is_test=True)
    assert parts["valid"] == parts["test"]
    assert len(parts["train"]) == 80


def test_counts_of_a_part_of_the_archive(prepare):
    with pytest.raises(ManifestError) as error:
        prepare(require_counts=True)
    told = str(error.value)
    assert "utterances: 100, published 5531; angry: 20, published 1103" in told
    assert "session 5: 20, published 1241" in told


def test_published_counts_agree(script):
    counts = script.PUBLISHED
    total = counts["utterances"]
    assert sum(counts[name] for name in script.CLASSES) == total
    assert sum(counts[f"session {fold}"] for fold in script.FOLDS) == total


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ("Session3", "Session3/dialog/EmoEvaluation, Session3/sentences/wav"),
        ("Session5/sentences", "Session5/sentences/wav"),
    ],
)
def test_missing_part_of_the_archive(prepare, release, gone, missing):
    shutil.rmtree(release / gone)
    with pytest.raises(ManifestError) as error:
        prepare()
    assert f"missing there: {missing}. " in str(error.value)
    assert "sail.usc.edu/iemocap, which gives it on request" in str(error.value)


def test_labelled_files_that_are_not_there(prepare, release):
    wav = release / "Session4" / "sentences" / "wav" / "Ses04F_impro01"
    shutil.rmtree(wav)
    with pytest.raises(ManifestError, match="10 problems") as error:
        prepare()
    assert f"no such file: {wav / 'Ses04F_impro01_M002.wav'}" in str(
        error.value
    )


def test_utterance_that_is_labelled_twice(prepare, release):
    table = table_of(release, "Ses01F_impro01")
    again = "[9.0000 - 9.5000]\tSes01F_impro01_F000\tneu\t[2.5, 2.5, 2.5]\n"
    table.write_text(table.read_text() + again)
    with pytest.raises(ManifestError, match="the id Ses01F_impro01_F000"):
        prepare()


def test_line_of_another_kind(prepare, release):
    table = table_of(release, "Ses02F_impro01")
    table.write_text("[6.2901 - 8.2357] Ses02F_impro01_F000 neu\n")
    with pytest.raises(ManifestError) as error:
        prepare()
    assert f"{table}: line 1 is not a time" in str(error.value)


def test_emotion_without_training_clips(prepare, release):
    for table in release.glob("Session[2-5]/dialog/EmoEvaluation/S*.txt"):
        table.write_text(table.read_text().replace("\tsad\t", "\tfru\t"))
    with pytest.raises(ManifestError, match="train has the label sad"):
        prepare(1)


def test_truncated_audio(prepare, release):
    [path] = release.rglob("Ses02F_impro01_F003.wav")
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ManifestError, match="1 of 100 .*unreadable.csv"):
        prepare(2, max_unreadable=0.001)
    parts = prepare(2)
    assert len(parts["test"]) == 19
    assert path.stem not in parts["test"]
