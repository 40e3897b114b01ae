"""UrbanSound8K is prepared fold by fold, and errors name the cause."""

import csv
import hashlib
import importlib.util
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import miniature_urbansound8k
import pytest

from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.dataio.tables import ManifestError

RECIPE = Path(__file__).parents[2] / "recipes" / "UrbanSound8K"
SCRIPT = RECIPE / "urbansound8k_prepare.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archive(tmp_path):
    """Folder that has `UrbanSound8K`, of 200 clips."""
    return miniature_urbansound8k.make(tmp_path / "data", seconds=0.05)


@pytest.fixture
def prepare(script, archive, tmp_path):
    """The script with what the miniature needs; gives the parts."""

    def run(fold=1, **more):
        settings = {"require_counts": False, **more}
        folder = settings.pop("data_folder", archive)
        out = tmp_path / "out"
        return read_splits(
            script.prepare_urbansound8k(folder, out, fold, **settings)
        )

    return run


def change_table(archive, change):
    """Rewrite the official table, its rows changed by a function."""
    path = archive / "UrbanSound8K" / "metadata" / "UrbanSound8K.csv"
    with open(path, newline="") as file:
        head, *rows = csv.reader(file)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(change(head, rows))


@pytest.mark.parametrize("fold", [1, 10])
def test_one_fold(prepare, fold):
    parts = prepare(fold)
    assert parts["corpus"] == f"UrbanSound8K, test fold {fold}"
    assert parts["labels"] == [*miniature_urbansound8k.CLASSES]
    assert {row["fold"] for row in parts["test"].values()} == {str(fold)}
    names = ("train", "valid", "test")
    assert len(parts["test"]) == 20
    assert 15 <= len(parts["valid"]) <= 25
    assert sum(len(parts[name]) for name in names) == 200
    found = [{row["recording"] for row in parts[n].values()} for n in names]
    assert len(set.union(*found)) == sum(map(len, found)) == 150
    row = parts["test"][f"{fold}0030-3-0-0.wav"]
    assert (row["label"], row["recording"]) == ("dog_bark", f"{fold}0030")


def test_epoch_chosen_on_test_from_the_folder_itself(prepare, archive):
    folder = archive / "UrbanSound8K"
    parts = prepare(3, valid_is_test=True, data_folder=folder)
    assert parts["valid"] == parts["test"]
    assert len(parts["train"]) == 180


def test_counts_of_a_part_of_the_archive(prepare):
    with pytest.raises(ManifestError) as error:
        prepare(require_counts=True)
    told = str(error.value)
    assert "clips: 200, published 8732" in told
    assert "siren: 20, published 929" in told
    assert "fold 10: 20, published 837" in told


def test_published_counts_agree(script):
    assert sum(script.PER_CLASS.values()) == sum(script.PER_FOLD) == 8732


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        (["metadata/UrbanSound8K.csv"], "metadata/UrbanSound8K.csv"),
        (["audio/fold2", "audio/fold10"], "audio/fold2, audio/fold10"),
        (["metadata", "audio"], "metadata/UrbanSound8K.csv, audio/fold1, "),
    ],
)
def test_missing_part_of_the_archive(prepare, archive, gone, missing):
    for name in gone:
        shutil.move(archive / "UrbanSound8K" / name, archive.parent)
    with pytest.raises(ManifestError) as error:
        prepare()
    assert f"missing there: {missing}" in str(error.value)
    assert "urbansounddataset.weebly.com" in str(error.value)


def test_listed_files_that_are_not_there(prepare, archive):
    audio = archive / "UrbanSound8K" / "audio"
    gone = [
        audio / "fold1" / "10000-0-0-0.wav",
        audio / "fold9" / "90090-9-0-1.wav",
    ]
    for path in gone:
        path.unlink()
    with pytest.raises(ManifestError, match="2 problems") as error:
        prepare()
    for path in gone:
        assert f"no such file: {path}" in str(error.value)


def test_clip_that_is_listed_twice(prepare, archive):
    change_table(archive, lambda head, rows: [head, *rows, rows[0]])
    with pytest.raises(ManifestError, match="the id 10000-0-0-0.wav"):
        prepare()


def test_class_without_training_clips(prepare, archive):
    def only_in_fold_one(head, rows):
        return [
            head,
            *(row for row in rows if row[7] != "siren" or row[5] == "1"),
        ]

    change_table(archive, only_in_fold_one)
    with pytest.raises(ManifestError, match="train has the label siren"):
        prepare(1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda head, rows: [head[:-1], *rows], "no column class"),
        (lambda head, rows: [head, *rows, ["a.wav", "1"]], "line 202 lacks"),
    ],
)
def test_damaged_table(prepare, archive, change, told):
    change_table(archive, change)
    with pytest.raises(ManifestError, match=told):
        prepare()


def test_truncated_audio(prepare, archive):
    [path] = archive.rglob("20010-1-0-0.wav")
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ManifestError, match="1 of 200 .*unreadable.csv"):
        prepare(2, max_unreadable=0.001)
    parts = prepare(2)
    assert len(parts["test"]) == 19
    assert path.name not in parts["test"]


def test_download(prepare, script, archive, tmp_path, monkeypatch):
    served = tmp_path / "served"
    name = shutil.make_archive(served / "UrbanSound8K", "gztar", archive)
    md5 = hashlib.md5(Path(name).read_bytes()).hexdigest()
    with pytest.raises(ManifestError, match="--allow_download True"):
        prepare(data_folder=tmp_path / "new")
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/UrbanSound8K.tar.gz"
        monkeypatch.setattr(script, "URL", f"{url}?download=1")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with pytest.raises(ManifestError, match="not the published"):
                prepare(data_folder=tmp_path / "new", allow_download=True)
            monkeypatch.setattr(script, "MD5", md5)
            parts = prepare(data_folder=tmp_path / "new", allow_download=True)
        finally:
            server.shutdown()
            thread.join()
    assert len(parts["test"]) == 20
    # There is no server any more, and no need of one.
    again = prepare(data_folder=tmp_path / "new", allow_download=True)
    assert again == parts
