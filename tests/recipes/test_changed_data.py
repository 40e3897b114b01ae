"""A recipe that is started again in its folder, on other data or twice."""

import hashlib
import logging
import os
import shutil

import pytest
from test_recipes import exported, load_script, yaml_of

from ssast_lobes.dataio.splits import OtherClips
from ssast_lobes.training.base import SpectrogramBrain
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.training.lock import folder_lock

SETTINGS = """--model_size=micro --crop_seconds=0.6 --batch_size=4
    --num_workers=0 --device=cpu --noprogressbar""".split()


def train(task, corpus, folder, epochs=1, *more):
    """Run a recipe as in a process of its own: no log is open before it."""
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
    data = {"pretrain": "audio", "classify": "manifest"}[task]
    own = [f"--{data}={corpus}", f"--output_folder={folder}", *SETTINGS]
    own += [f"--number_of_epochs={epochs}", *more]
    load_script(task).main([str(yaml_of(task)), *own])


@pytest.fixture(scope="module", params=["pretrain", "classify"])
def trained(request, tones, tmp_path_factory):
    """Task, its table (its own, of absolute paths) and its folder."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(tones.folder, folder / "audio")
    table = folder / "table.csv"
    head, *lines = tones.manifest.read_text().splitlines()
    if request.param == "pretrain":
        # It would leave out what is valid or test.
        head = head.replace("split", "part")
    rows = [f"{folder}/audio/{line}" for line in lines]
    table.write_text("\n".join([head, *rows]))
    train(request.param, table, folder / "out")
    return request.param, table, folder / "out"


def state_of(folder):
    """Contents and times of change of all files, locks aside."""
    return {
        path: (path.stat().st_mtime_ns, hashlib.md5(path.read_bytes()).digest())
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }


def swap(table, one, other):
    """The text of a table with two words in each other's places."""
    text = table.read_text()
    return text.replace(one, "@").replace(other, one).replace("@", other)


def test_other_labels_and_splits_are_refused(trained):
    task, table, folder = trained
    before, text = state_of(folder), table.read_text()
    first = text.splitlines()[1]
    changes = {text.replace(first + "\n", ""): "tone_0.wav is not there now"}
    if task == "classify":
        changes |= {
            swap(table, ",tone,", ",noise,"): "label noise now, and had tone",
            text.replace(",tone,", ",zebra,"): "label zebra now, and had tone",
            text.replace("speaker7,test", "speaker7,train"): (
                "split train now, and had test"
            ),
        }
    try:
        for changed, message in changes.items():
            table.write_text(changed)
            with pytest.raises(OtherClips, match=message):
                train(task, table, folder)
            assert state_of(folder) == before
    finally:
        table.write_text(text)


def test_other_audio_is_refused(trained):
    task, table, folder = trained
    before = state_of(folder)
    clip, other = (table.parent / "audio" / f"tone_{n}.wav" for n in (0, 1))
    kept = clip.read_bytes()
    clip.write_bytes(other.read_bytes())
    try:
        with pytest.raises(OtherClips, match=r"tone_0.wav has the seconds"):
            train(task, table, folder)
        assert state_of(folder) == before
    finally:
        clip.write_bytes(kept)


@pytest.mark.slow
def test_the_same_clips_in_another_place_are_resumed(trained, tmp_path):
    task, table, folder = trained
    weights = exported(folder)
    moved = tmp_path / "node" / "audio"
    shutil.copytree(table.parent / "audio", moved)
    elsewhere = tmp_path / "elsewhere.csv"
    old = str(table.parent / "audio")
    elsewhere.write_text(table.read_text().replace(old, str(moved)))
    train(task, elsewhere, folder)
    assert exported(folder).keys() == weights.keys()
    assert all(exported(folder)[k].equal(w) for k, w in weights.items())
    assert str(moved) in (folder / "save/splits.json").read_text()
    train(task, elsewhere, folder, epochs=2)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_folder_in_use_is_refused(trained):
    task, table, folder = trained
    before = state_of(folder)
    with folder_lock(folder):
        with pytest.raises(SettingsError, match=f"process {os.getpid()} on "):
            train(task, table, folder)
    assert state_of(folder) == before


@pytest.mark.slow
def test_other_number_of_processes(tones, tmp_path, monkeypatch):
    def stop(brain, batch, should_step):
        if brain.epoch == 2 and brain.step == 3:
            raise KeyboardInterrupt

    def pretend_two(checkpoint):
        """Let a checkpoint be one of two processes."""
        state = checkpoint / "brain.ckpt"
        text = state.read_text()
        assert "n_processes: 1" in text
        state.write_text(text.replace("n_processes: 1", "n_processes: 2"))
        (checkpoint / "SHA256SUMS").unlink()

    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(SpectrogramBrain, "on_fit_batch_start", stop)
        with pytest.raises(KeyboardInterrupt):
            train(
                "classify", tones.manifest, folder, 2, "--ckpt_interval_steps=1"
            )
    whole, amid = sorted((folder / "save").glob("CKPT*"))
    pretend_two(amid)
    with pytest.raises(SettingsError, match="resume with 2 processes, not 1"):
        train("classify", tones.manifest, folder, 2)
    shutil.rmtree(amid)
    pretend_two(whole)
    train("classify", tones.manifest, folder, 2)
    log = (folder / "log.txt").read_text()
    assert "Resuming with 1 processes after 2" in log
