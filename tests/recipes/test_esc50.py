"""ESC-50 is prepared from its archive, and errors name the cause."""

import csv
import importlib.util
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import miniature_esc50
import pytest

from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.dataio.tables import ManifestError

SCRIPT = Path(__file__).parents[2] / "recipes" / "ESC50" / "esc50_prepare.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("esc50_prepare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archive(tmp_path):
    """Folder that has `ESC-50-master`, of 45 clips."""
    return miniature_esc50.make(tmp_path / "data", seconds=0.05)


@pytest.fixture
def prepare(script, archive, tmp_path):
    """The script with what the miniature needs; gives the parts."""

    def run(fold=1, **more):
        settings = {"require_counts": False, "valid_fraction": 0.3, **more}
        folder = settings.pop("data_folder", archive)
        return read_splits(
            script.prepare_esc50(folder, tmp_path / "out", fold, **settings)
        )

    return run


def change_table(archive, change):
    """Rewrite the official table, its rows changed by a function."""
    path = archive / "ESC-50-master" / "meta" / "esc50.csv"
    with open(path, newline="") as file:
        head, *rows = csv.reader(file)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *change(rows)])


def recordings(part):
    return {row["recording"] for row in part.values()}


@pytest.mark.parametrize("fold", [1, 5])
def test_one_fold(prepare, fold):
    parts = prepare(fold)
    assert parts["corpus"] == f"ESC-50, test fold {fold}"
    assert parts["labels"] == ["cow", "dog", "rooster"]
    assert {row["fold"] for row in parts["test"].values()} == {str(fold)}
    assert [len(parts[name]) for name in ("train", "test")] == [24, 9]
    assert {row["label"] for row in parts["valid"].values()} == {
        *parts["labels"]
    }
    found = [recordings(parts[name]) for name in ("train", "valid", "test")]
    assert len(set.union(*found)) == sum(map(len, found)) == 30
    row = parts["test"][f"{fold}-{fold}00001-A-0.wav"]
    assert (row["label"], row["recording"]) == ("dog", f"{fold}00001")


def test_esc10_from_the_folder_itself(prepare, archive):
    parts = prepare(2, esc10=True, data_folder=archive / "ESC-50-master")
    assert parts["corpus"] == "ESC-10, test fold 2"
    assert parts["labels"] == ["dog", "rooster"]
    assert len(parts["test"]) == 6


def test_official_selection(prepare):
    parts = prepare(3, valid_is_test=True)
    assert parts["valid"] == parts["test"]
    assert len(parts["train"]) == 36


def test_counts_of_a_part_of_the_archive(prepare):
    with pytest.raises(ManifestError) as error:
        prepare(require_counts=True)
    told = str(error.value)
    assert "clips: 45, published 2000; classes: 3, published 50" in told
    assert "fold 5: 9, published 400" in told


@pytest.mark.parametrize(
    ("name", "missing"),
    [("meta/esc50.csv", "meta/esc50.csv"), ("meta", "audio, meta/esc50.csv")],
)
def test_missing_part_of_the_archive(prepare, archive, name, missing):
    part = archive / "ESC-50-master" / name
    if name == "meta":
        shutil.rmtree(archive / "ESC-50-master")
    else:
        part.unlink()
    with pytest.raises(ManifestError) as error:
        prepare()
    assert f"missing there: {missing}. " in str(error.value)
    assert "github.com/karolpiczak/ESC-50" in str(error.value)


def test_listed_files_that_are_not_there(prepare, archive):
    audio = archive / "ESC-50-master" / "audio"
    for name in ("1-100001-A-0.wav", "5-500002-A-0.wav"):
        (audio / name).unlink()
    with pytest.raises(ManifestError, match="2 bad lines") as error:
        prepare()
    assert f"no such file: {audio / '1-100001-A-0.wav'}" in str(error.value)
    assert f"no such file: {audio / '5-500002-A-0.wav'}" in str(error.value)


def test_clip_that_is_listed_twice(prepare, archive):
    change_table(archive, lambda rows: [*rows, rows[0]])
    with pytest.raises(ManifestError, match="line 47: same file as line 2"):
        prepare()


def test_class_without_training_clips(prepare, archive):
    def only_in_fold_one(rows):
        return [row for row in rows if row[3] != "cow" or row[1] == "1"]

    change_table(archive, only_in_fold_one)
    with pytest.raises(ManifestError, match="train does not have: cow"):
        prepare(1)


def test_truncated_audio(prepare, archive):
    path = archive / "ESC-50-master" / "audio" / "2-200001-A-0.wav"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ManifestError, match="1 of 45 .*unreadable.csv"):
        prepare(1)
    parts = prepare(1, max_unreadable=0.1)
    kept = {**parts["train"], **parts["valid"], **parts["test"]}
    assert len(kept) == 44
    assert path.name not in kept


def test_download(prepare, script, archive, tmp_path, monkeypatch):
    served = tmp_path / "served"
    shutil.make_archive(served / "master", "zip", archive)
    with pytest.raises(ManifestError, match="--allow_download True"):
        prepare(data_folder=tmp_path / "new")
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/master.zip"
        monkeypatch.setattr(script, "URL", url)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        parts = prepare(data_folder=tmp_path / "new", allow_download=True)
        server.shutdown()
        thread.join()
    assert len(parts["test"]) == 9
    # There is no server any more, and no need of one.
    again = prepare(data_folder=tmp_path / "new", allow_download=True)
    assert again == parts
