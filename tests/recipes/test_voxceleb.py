"""VoxCeleb1 is prepared in its official parts, and errors name the cause."""

import importlib.util
import json
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import miniature_voxceleb
import pytest

from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.inference import AudioClassifier

RECIPE = Path(__file__).parents[2] / "recipes" / "VoxCeleb"
SCRIPT = RECIPE / "voxceleb_prepare.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("voxceleb_prepare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archive(tmp_path):
    """Folder of 40 clips of four speakers, in dev and test."""
    return miniature_voxceleb.make(tmp_path / "data", seconds=0.05)


@pytest.fixture
def prepare(script, archive, tmp_path):
    """The script with what the miniature needs; gives the parts."""

    def run(**more):
        settings = {"require_counts": False, **more}
        path = script.prepare_voxceleb(archive, tmp_path / "out", **settings)
        return read_splits(path)

    return run


@pytest.fixture
def voxceleb(tmp_path, monkeypatch):
    """Function of further flags: runs the recipe on a miniature."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("SB_GLOBAL_SEED", "0")
    monkeypatch.syspath_prepend(str(RECIPE))
    path = RECIPE / "classify" / "train.py"
    spec = importlib.util.spec_from_file_location("train_voxceleb", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    corpus = miniature_voxceleb.make(tmp_path / "corpus")
    flags = f"--data_folder={corpus} --require_counts=False --device=cpu "
    flags += "--model_size=micro --batch_size=8 --num_workers=0 "
    flags += "--noprogressbar"

    def run(folder, *more, n_epochs=1, crop_seconds=0.4):
        hparams = path.parent / "hparams" / "voxceleb1.yaml"
        own = [f"--output_folder={folder}", f"--crop_seconds={crop_seconds}"]
        own += [f"--number_of_epochs={n_epochs}", *more]
        script.main([str(hparams), *flags.split(), *own])
        return folder

    return run


def change_list(archive, change):
    """Rewrite the official list, its lines changed by a function."""
    path = archive / "iden_split.txt"
    lines = change(path.read_text().splitlines())
    path.write_text("".join(f"{line}\n" for line in lines))


def test_official_parts(prepare, archive, caplog):
    parts = prepare()
    assert parts["corpus"] == "VoxCeleb1 identification"
    speakers = ["id10001", "id10002", "id10270", "id11251"]
    assert parts["labels"] == speakers
    names = ("train", "valid", "test")
    assert [len(parts[name]) for name in names] == [24, 8, 8]
    videos = {}
    for name in names:
        rows = parts[name].values()
        assert {row["speaker"] for row in rows} == {*speakers}
        videos[name] = {row["video"].split("/")[1] for row in rows}
    assert videos["test"] == {"1zcIwhmdeo4"}
    assert videos["valid"] == {"J9lHsKG98U8"}
    assert videos["train"] == {"7gWzIy6yIIk", "-Y8hIVOBuel", "_utA4gj5A8k"}
    row = parts["test"]["id10270/1zcIwhmdeo4/00002.wav"]
    place = archive / "test" / "wav" / "id10270" / "1zcIwhmdeo4"
    assert row["path"] == str(place / "00002.wav")
    # All speakers are in all parts: that is the task, not a mistake.
    assert "in train too" not in caplog.text


def test_one_folder_for_both_archives(prepare, archive):
    there = prepare()
    shutil.move(archive / "dev" / "wav", archive / "wav")
    shutil.move(archive / "test" / "wav" / "id10270", archive / "wav")
    parts = prepare()
    assert [*parts["train"]] == [*there["train"]]
    for row in parts["test"].values():
        assert Path(row["path"]).is_relative_to(archive / "wav")


def test_counts_of_a_part_of_the_list(prepare):
    with pytest.raises(ManifestError) as error:
        prepare(require_counts=True)
    told = str(error.value)
    assert "speakers: 4, published 1251" in told
    assert "train: 24, published 138361" in told
    assert "valid: 8, published 6904; test: 8, published 8251" in told


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        (["iden_split.txt"], "iden_split.txt"),
        (["dev", "test"], "wav"),
        (["dev", "test", "iden_split.txt"], "wav, iden_split.txt"),
    ],
)
def test_missing_list_or_audio(prepare, archive, gone, missing):
    for name in gone:
        shutil.move(archive / name, archive.parent / name)
    with pytest.raises(ManifestError) as error:
        prepare()
    told = str(error.value)
    assert f"missing there: {missing}. " in told
    assert "mm.kaist.ac.kr/datasets/voxceleb, which gives" in told


def test_missing_archive(prepare, archive):
    shutil.rmtree(archive / "test")
    with pytest.raises(ManifestError) as error:
        prepare()
    told = str(error.value)
    assert "no audio of 1 speakers of iden_split.txt (id10270)" in told
    assert "vox1_test_wav.zip" in told


def test_listed_files_that_are_not_there(prepare, archive):
    video = archive / "dev" / "wav" / "id10002" / "J9lHsKG98U8"
    shutil.rmtree(video)
    with pytest.raises(ManifestError, match="2 problems") as error:
        prepare()
    assert f"no such file: {video / '00001.wav'}" in str(error.value)
    assert f"no such file: {video / '00002.wav'}" in str(error.value)


def test_clip_that_is_listed_twice(prepare, archive):
    clip = "id10001/1zcIwhmdeo4/00001.wav"
    change_list(archive, lambda lines: [*lines, f"1 {clip}"])
    with pytest.raises(ManifestError) as error:
        prepare()
    assert f"the id {clip}: in train and test" in str(error.value)


@pytest.mark.parametrize(
    "line", ["4 id10001/1zcIwhmdeo4/00001.wav", "<html>", "1 id10001/a.wav"]
)
def test_line_of_another_kind(prepare, archive, line):
    change_list(archive, lambda lines: [*lines, "", line])
    with pytest.raises(ManifestError, match="line 42 is not a part"):
        prepare()


def test_speaker_without_training_clips(prepare, archive):
    def only_to_test_on(lines):
        return [
            line
            for line in lines
            if "id10002" not in line or line.startswith("3")
        ]

    change_list(archive, only_to_test_on)
    with pytest.raises(ManifestError, match="train does not have: id10002"):
        prepare()


def test_truncated_audio(prepare, archive):
    [path] = archive.glob("dev/wav/id11251/7gWzIy6yIIk/00001.wav")
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ManifestError, match="1 of 40 .*unreadable.csv"):
        prepare()
    parts = prepare(max_unreadable=0.1)
    assert len(parts["train"]) == 23
    assert "id11251/7gWzIy6yIIk/00001.wav" not in parts["train"]


def test_list_is_fetched(prepare, script, archive, tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    shutil.move(archive / "iden_split.txt", tmp_path / "served")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/iden_split.txt"
        monkeypatch.setattr(script, "URL", url)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        parts = prepare(allow_download=True)
        server.shutdown()
        thread.join()
    assert len(parts["test"]) == 8
    # There is no server any more, and no need of one.
    assert prepare() == parts


@pytest.mark.slow
def test_margin_between_the_voices(voxceleb, tmp_path):
    """AAM-softmax by its word trains, and its head comes with the export."""
    folder = voxceleb(
        tmp_path / "out",
        "--compute_cost=aam_softmax",
        "--grad_accumulation_factor=1",
        n_epochs=3,
        crop_seconds=0.5,
    )
    log = (folder / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train_loss"] for line in log]
    assert losses[-1] < losses[0]
    result = json.loads((folder / "test_result.json").read_text())
    assert result["compute_cost"] == "aam_softmax(margin=0.2, scale=30.0)"
    card = (folder / "export" / "README.md").read_text()
    assert "aam_softmax(margin=0.2, scale=30.0)" in card
    config = json.loads((folder / "export" / "config.json").read_text())
    assert config["head"] == {"projection": 256, "cosine_scale": 30.0}
    # Read again, it finds what the test wrote down.
    lines = (folder / "test_predictions.csv").read_text().splitlines()
    clip, _, predicted, *shares = lines[1].split(",")
    classifier = AudioClassifier.from_hparams(folder / "export")
    found = classifier.classify_file(tmp_path / "corpus/dev/wav" / clip)
    assert found.label == predicted
    assert list(found.scores.values()) == pytest.approx(
        [float(share) for share in shares], abs=1e-4
    )
