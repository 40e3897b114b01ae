"""Speech Commands is prepared from its archives, and errors name the cause."""

import hashlib
import importlib.util
import shutil
import tarfile
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import miniature_speech_commands as miniature
import pytest
import torch

from ssast_lobes.dataio.dataset import ClipReader
from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.dataio.tables import ManifestError

ROOT = Path(__file__).parents[2] / "recipes" / "SpeechCommands"
SCRIPT = ROOT / "speech_commands_prepare.py"
V1, V2 = "speech_commands_v0.01", "speech_commands_v0.02"
TEST = "speech_commands_test_set_v0.01"
PARTS = ("train", "valid", "test")
# Clip of the speaker that the validation list names.
VALIDATION_CLIP = f"yes/{miniature.VALIDATION}_nohash_0.wav"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("speech_commands", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archive(tmp_path):
    """Folder that has the three unpacked archives."""
    return miniature.make(tmp_path / "data", seconds=0.05)


@pytest.fixture
def prepare(script, archive, tmp_path):
    """The script with what the miniature needs; gives the parts."""

    def run(protocol="v2-35", **more):
        settings = {"require_counts": False, "protocol": protocol, **more}
        folder = settings.pop("data_folder", archive)
        return read_splits(
            script.prepare_speech_commands(folder, tmp_path / "out", **settings)
        )

    return run


def speakers(part):
    return {row["speaker"] for row in part.values()} - {"none"}


def add_line(path, line):
    path.write_text(f"{path.read_text()}{line}\n")


def test_parts_of_the_official_lists(prepare):
    parts = prepare()
    assert parts["corpus"] == "Speech Commands V2, 35 words"
    assert parts["labels"] == sorted(miniature.V2_WORDS)
    assert [len(parts[name]) for name in PARTS] == [16, 4, 4]
    assert speakers(parts["train"]) == set(miniature.TRAINING)
    assert speakers(parts["valid"]) == {miniature.VALIDATION}
    assert speakers(parts["test"]) == {miniature.TESTING}
    assert parts["valid"][VALIDATION_CLIP]["label"] == "yes"


@pytest.mark.parametrize("name", [V2, "elsewhere"])
def test_folder_of_the_archive_itself(prepare, archive, name):
    (archive / V2).rename(archive / name)
    assert len(prepare(data_folder=archive / name)["train"]) == 16


def test_superb_has_twelve_classes(prepare):
    parts = prepare("superb-12")
    classes = {*miniature.KEYWORDS, "_unknown_", "_silence_"}
    assert parts["labels"] == sorted(classes)
    counts = [
        Counter(row["label"] for row in parts[name].values()) for name in PARTS
    ]
    # Three of the words are none of the keywords; silence has as many rows
    # as a keyword, and at least one for each noise.
    assert counts[0] == dict.fromkeys(classes, 4) | {"_unknown_": 12}
    assert counts[1] == dict.fromkeys(classes, 1) | {
        "_unknown_": 3,
        "_silence_": 2,
    }
    assert counts[2] == counts[1]
    assert {k for part in PARTS for k in speakers(parts[part])} == {
        *miniature.TRAINING,
        miniature.VALIDATION,
        miniature.TESTING,
    }
    assert speakers(parts["test"]) == {miniature.TESTING}
    row = parts["train"]["bed/0a7c2a8d_nohash_0.wav"]
    assert (row["label"], row["word"]) == ("_unknown_", "bed")


def test_superb_tests_on_the_test_archive_alone(prepare, archive):
    parts = prepare("superb-12")
    for row in parts["test"].values():
        assert Path(row["path"]).is_relative_to(archive / TEST)
    # The clips of the testing list are in no part.
    for name in ("train", "valid"):
        assert miniature.TESTING not in speakers(parts[name])


def test_silence_is_another_second_for_each_id_and_epoch(prepare):
    parts = prepare("superb-12")
    silence = {
        clip: row
        for clip, row in parts["train"].items()
        if row["label"] == "_silence_"
    }
    assert len({row["path"] for row in silence.values()}) == 2
    reader = ClipReader(1.0, random_crop=True)
    crops = [
        reader(r["path"], r["duration"], clip) for clip, r in silence.items()
    ]
    assert all(crop.shape == (16000,) for crop in crops)
    assert not torch.equal(*crops[:2])
    first, row = next(iter(silence.items()))
    reader.epoch = 2
    again = reader(row["path"], row["duration"], first)
    assert not torch.equal(again, crops[0])


def test_counts_of_a_part_of_the_archive(prepare):
    with pytest.raises(ManifestError) as error:
        prepare(require_counts=True)
    told = str(error.value)
    assert "train: 16, published 84843; valid: 4, published 9981" in told
    assert "test: 4, published 11005; classes: 4, published 35" in told
    with pytest.raises(ManifestError, match="train: 54, published 51094"):
        prepare("superb-12", require_counts=True)


@pytest.mark.parametrize(
    ("protocol", "part", "missing"),
    [
        ("v2-35", f"{V2}/testing_list.txt", "testing_list.txt"),
        ("superb-12", f"{V1}/_background_noise_", "_background_noise_"),
        ("superb-12", f"{TEST}/_silence_", "_silence_"),
        ("superb-12", f"{TEST}/left", "left"),
    ],
)
def test_missing_part_of_an_archive(prepare, archive, protocol, part, missing):
    part = archive / part
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    with pytest.raises(ManifestError) as error:
        prepare(protocol)
    told = str(error.value)
    assert f"{part.parent}: missing there: {missing}. " in told
    assert f"download.tensorflow.org/data/{part.parent.name}.tar.gz" in told


def test_listed_file_that_is_not_there(prepare, archive):
    (archive / V2 / VALIDATION_CLIP).unlink()
    add_line(archive / V2 / "testing_list.txt", "no/ffffffff_nohash_0.wav")
    with pytest.raises(ManifestError, match="2 problems") as error:
        prepare()
    assert f"no such file: {archive / V2 / VALIDATION_CLIP}" in str(error.value)
    assert "no/ffffffff_nohash_0.wav" in str(error.value)


def test_clip_that_is_listed_twice(prepare, archive):
    add_line(archive / V2 / "validation_list.txt", VALIDATION_CLIP)
    with pytest.raises(ManifestError, match="valid and valid"):
        prepare()


def test_clip_of_both_lists(prepare, archive):
    add_line(archive / V2 / "testing_list.txt", VALIDATION_CLIP)
    with pytest.raises(ManifestError, match="valid and test"):
        prepare()


def test_test_clip_that_is_in_train_too(prepare, archive):
    clip = f"yes/{miniature.TRAINING[0]}_nohash_0.wav"
    shutil.copy(archive / V1 / clip, archive / TEST / clip)
    with pytest.raises(ManifestError, match="train and test"):
        prepare("superb-12")


@pytest.mark.parametrize(
    ("protocol", "name", "word", "told"),
    [
        ("v2-35", V2, "visual", "train does not have: visual"),
        ("superb-12", V1, "stop", "no clip of train has the label stop"),
        (
            "superb-12",
            V1,
            "_background_noise_",
            "no clip of train has the label _silence_",
        ),
    ],
)
def test_class_without_training_clips(
    prepare, archive, protocol, name, word, told
):
    held_out = (miniature.VALIDATION, miniature.TESTING)
    for path in (archive / name / word).glob("*.wav"):
        if not path.name.startswith(held_out):
            path.unlink()
    with pytest.raises(ManifestError, match=told):
        prepare(protocol)


def test_truncated_audio(prepare, archive):
    path = archive / V2 / "yes" / f"{miniature.TRAINING[0]}_nohash_0.wav"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ManifestError, match="1 of 24 .*unreadable.csv"):
        prepare()
    parts = prepare(max_unreadable=0.1)
    assert len(parts["train"]) == 15


def test_unknown_protocol(prepare):
    with pytest.raises(ManifestError, match="one of v2-35, superb-12"):
        prepare("v1-30")


def test_download(prepare, script, archive, tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    for name in (V1, TEST):
        # Without a folder of its own, as the official ones are.
        with tarfile.open(served / f"{name}.tar.gz", "w:gz") as file:
            file.add(archive / name, ".")
    digest = hashlib.sha256((served / f"{V1}.tar.gz").read_bytes())
    monkeypatch.setattr(script, "SHA256", {V1: digest.hexdigest()})
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(script, "URL", url)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        new = {"data_folder": tmp_path / "new", "allow_download": True}
        parts = prepare("superb-12", **new)
        server.shutdown()
        thread.join()
    assert [len(parts[name]) for name in PARTS] == [56, 15, 15]
    # There is no server any more, and no need of one.
    assert prepare("superb-12", **new) == parts
