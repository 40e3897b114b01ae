"""FSDD is prepared from its archive, and errors name the cause."""

import importlib.util
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import miniature_fsdd
import pytest

from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.dataio.tables import ManifestError

SCRIPT = Path(__file__).parents[2] / "recipes" / "FSDD" / "fsdd_prepare.py"
NAME = "free-spoken-digit-dataset-1.0.10"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fsdd_prepare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archive(tmp_path):
    """Folder that has the unpacked archive, of 96 recordings."""
    return miniature_fsdd.make(tmp_path / "data", seconds=0.05)


@pytest.fixture
def recordings(archive):
    return archive / NAME / "recordings"


@pytest.fixture
def digits(script, archive, tmp_path):
    """The script with what the miniature needs; gives the parts."""

    def run(fold="theo", **more):
        settings = {"require_counts": False, **more}
        folder = settings.pop("data_folder", archive)
        return read_splits(
            script.prepare_digits(folder, tmp_path / "out", fold, **settings)
        )

    return run


def values(part, key):
    return {row[key] for row in part.values()}


@pytest.mark.parametrize("fold", ["george", "theo"])
def test_digits_of_an_unheard_speaker(digits, fold):
    parts = digits(fold)
    assert parts["corpus"] == f"FSDD, digits, test speaker {fold}"
    assert parts["labels"] == ["0", "1", "7", "9"]
    speakers = [values(parts[k], "speaker") for k in ("train", "valid", "test")]
    assert [len(part) for part in speakers] == [4, 1, 1]
    assert len(set.union(*speakers)) == 6
    assert speakers[2] == {fold}
    assert parts["test"][f"7_{fold}_49.wav"]["label"] == "7"


def test_epoch_chosen_on_test(digits):
    parts = digits("lucas", valid_is_test=True)
    assert parts["valid"] == parts["test"]
    assert len(values(parts["train"], "speaker")) == 5


def test_speakers_in_the_official_takes(script, archive, tmp_path):
    path = script.prepare_speakers(
        archive / NAME, tmp_path / "out", require_counts=False
    )
    parts = read_splits(path)
    assert parts["labels"] == sorted(miniature_fsdd.SPEAKERS)
    takes = [values(parts[k], "take") for k in ("train", "valid", "test")]
    assert takes == [{"10", "49"}, {"5"}, {"0"}]
    assert parts["test"]["9_jackson_0.wav"]["label"] == "jackson"


@pytest.mark.parametrize(
    ("take", "part"),
    [(0, "test"), (4, "test"), (5, "valid"), (9, "valid"), (10, "train")],
)
def test_borders_of_the_parts(script, take, part):
    assert script.part_of(take) == part


def test_published_counts(script):
    published = script.PUBLISHED
    assert published["recordings"] == 3000
    assert published["yweweler"] == 500
    assert published["digit 9"] == 300


def test_counts_of_a_part_of_the_archive(digits, recordings):
    (recordings / "7_theo_10.wav").unlink()
    with pytest.raises(ManifestError) as error:
        digits(require_counts=True)
    told = str(error.value)
    assert "recordings: 95, published 3000; george: 16, published 500" in told
    assert "theo: 15, published 500" in told
    assert "digit 2: 0, published 300" in told


def test_missing_archive(digits, archive):
    shutil.rmtree(archive / NAME)
    with pytest.raises(
        ManifestError, match="missing there: recordings"
    ) as error:
        digits()
    assert "Jakobovski/free-spoken-digit-dataset" in str(error.value)
    assert "--allow_download True" in str(error.value)


def test_clone_of_the_repository(digits, archive):
    (archive / NAME).rename(archive / "free-spoken-digit-dataset")
    assert len(digits()["test"]) == 16


def test_recording_with_another_name(digits, recordings):
    (recordings / "7_theo_10.wav").rename(recordings / "seven_theo_10.wav")
    with pytest.raises(ManifestError, match="explains: .*seven_theo_10.wav"):
        digits()


def test_digit_of_the_test_speaker_alone(digits, recordings):
    for path in recordings.glob("7_*.wav"):
        if "theo" not in path.name:
            path.unlink()
    with pytest.raises(ManifestError, match="train does not have: 7"):
        digits("theo")


def test_speaker_without_recordings(digits, recordings):
    for path in recordings.glob("*_theo_*.wav"):
        path.unlink()
    with pytest.raises(ManifestError, match="in fold theo.*yweweler"):
        digits("theo")


def test_truncated_audio(digits, recordings):
    path = recordings / "0_jackson_0.wav"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ManifestError, match="1 of 96 .*unreadable.csv"):
        digits()
    parts = digits(max_unreadable=0.1)
    kept = {**parts["train"], **parts["valid"], **parts["test"]}
    assert len(kept) == 95
    assert path.name not in kept


def test_download(digits, script, archive, tmp_path, monkeypatch):
    served = tmp_path / "served"
    shutil.make_archive(served / "v1.0.10", "zip", archive)
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/v1.0.10.zip"
        monkeypatch.setattr(script, "URL", url)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        parts = digits(data_folder=tmp_path / "new", allow_download=True)
        server.shutdown()
        thread.join()
    assert len(parts["test"]) == 16
    # There is no server any more, and no need of one.
    again = digits(data_folder=tmp_path / "new", allow_download=True)
    assert again == parts
