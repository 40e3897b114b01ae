"""Checkpoints: whole or not at all, wherever a run is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssast_lobes.checkpointer import AtomicCheckpointer, CheckpointError

# What the processes of these tests share: two recoverables that always hold
# the same number, and a saver that can be caught with half a file written.
PREAMBLE = """
import os, pathlib, signal, sys, tempfile
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader, mark_as_saver, register_checkpoint_hooks,
)
from ssast_lobes.checkpointer import AtomicCheckpointer

@register_checkpoint_hooks
class Slow:
    def __init__(self, value):
        self.value = value

    @mark_as_saver
    def save(self, path):
        with open(path, "w") as file:
            file.write(f"{self.value}\\n")
            file.flush()
            sys.audit("half.written")
            file.write("end\\n")

    @mark_as_loader
    def load(self, path, end_of_epoch):
        value, end = open(path).read().split()
        assert end == "end"
        self.value = int(value)

def build(folder, value):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    slow = Slow(value)
    recoverables = {"model": model, "slow": slow, "weights": model}
    return AtomicCheckpointer(folder, recoverables), model, slow

def hidden(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]
"""

# Dies at the n-th file operation of a save, for every n until a save is
# over sooner; then looks at what can be resumed.
KILL_EVERYWHERE = """
OPERATIONS = ("open", "os.", "shutil.", "half.")

def die_at(count):
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event.startswith(OPERATIONS):
            seen += 1
            if seen == count + 1:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)

def save(checkpointer, name):
    checkpointer.save_and_keep_only(name=name)

def survives(count, folder, name):
    child = os.fork()
    if child == 0:
        checkpointer, _, _ = build(folder, 2)
        die_at(count)
        save(checkpointer, name)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code == 0

for name in (None, "best"):
    found, left = [], 0
    for count in range(10_000):
        folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
        save(build(folder, 1)[0], name)
        finished = survives(count, folder, name)
        left += len(hidden(folder))
        checkpointer, model, slow = build(folder, 0)
        assert checkpointer.recover_if_possible() is not None
        assert slow.value == model.weight.item()
        found.append(slow.value)
        save(build(folder, 3)[0], name)
        assert hidden(folder) == []
        assert len(list(folder.iterdir())) == 1
        if finished:
            break
    assert set(found) == {1, 2}, found
    assert found == sorted(found), found
    assert found[-1] == 2
    print(name, len(found), left)
    assert len(found) > 20 and left > 5
"""

DISTRIBUTED = """
import torch.distributed as dist
folder = pathlib.Path(sys.argv[1])
rank = int(os.environ["RANK"])
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
)

def everywhere(obj, path):
    assert path.parent.is_dir()
    pathlib.Path(f"{path}.{rank}").write_text("here")

checkpointer, model, slow = build(folder / "save", rank)
checkpointer.add_recoverable("both", slow, custom_save_hook=everywhere)
saved = checkpointer.save_checkpoint(meta={"epoch": 4})
assert (saved is not None) == (rank == 0)
found = checkpointer.find_checkpoint()
assert found.meta["epoch"] == 4
names = sorted(p.name for p in found.path.iterdir())
assert names == [
    "CKPT.yaml", "both.ckpt.0", "both.ckpt.1", "model.ckpt", "slow.ckpt",
    "weights.ckpt",
], names
del checkpointer.recoverables["both"]
checkpointer.recover_if_possible()
assert slow.value == model.weight.item() == 0
checkpointer.save_and_keep_only()
assert [c.path for c in checkpointer.list_checkpoints()] != [found.path]
assert len(checkpointer.list_checkpoints()) == 1
dist.barrier()
dist.destroy_process_group()
"""


def _start(script, folder, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, str(folder)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _linear(value):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    return model


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_run_killed_anywhere_in_a_save_resumes(tmp_path):
    process = _start(KILL_EVERYWHERE, tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def test_processes_share_one_checkpoint(tmp_path):
    processes = [
        _start(DISTRIBUTED, tmp_path, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output


def test_saved_checkpoint_is_where_it_says(tmp_path):
    checkpointer = AtomicCheckpointer(tmp_path, {"m": _linear(1.0)})
    saved = checkpointer.save_checkpoint(
        meta={"loss": 0.25}, end_of_epoch=False, name="first"
    )
    assert saved.path == tmp_path / "CKPT+first"
    assert saved.paramfiles["m"].is_file()
    assert saved.meta["loss"] == 0.25
    assert saved.meta["end-of-epoch"] is False
    assert checkpointer.list_checkpoints() == [saved]


def test_checkpoints_of_one_second_get_different_names(tmp_path):
    checkpointer = AtomicCheckpointer(tmp_path, {"m": _linear(1.0)})
    paths = {checkpointer.save_checkpoint().path for _ in range(3)}
    assert len(paths) == len(checkpointer.list_checkpoints()) == 3


def test_best_and_newest_are_kept(tmp_path):
    checkpointer = AtomicCheckpointer(tmp_path, {"m": _linear(1.0)})
    for accuracy in (0.5, 0.9, 0.7, 0.6):
        checkpointer.save_and_keep_only(
            meta={"accuracy": accuracy}, max_keys=["accuracy"]
        )
    kept = {c.meta["accuracy"] for c in checkpointer.list_checkpoints()}
    assert kept == {0.9, 0.6}
    # Not heeded by the parent once it has kept a recent one.
    checkpointer.save_and_keep_only(
        meta={"accuracy": 0.8}, max_keys=["accuracy"], keep_recent=False
    )
    kept = {c.meta["accuracy"] for c in checkpointer.list_checkpoints()}
    assert kept == {0.9}


def test_half_deleted_checkpoint_goes_at_the_next_save(tmp_path):
    wreck = tmp_path / "CKPT+2020-01-01+00-00-00+00"
    wreck.mkdir()
    (wreck / "m.ckpt").write_bytes(b"?")
    others = tmp_path / "notes"
    others.mkdir()
    checkpointer = AtomicCheckpointer(tmp_path, {"m": _linear(1.0)})
    assert checkpointer.recover_if_possible() is None
    checkpointer.save_checkpoint()
    assert not wreck.exists()
    assert others.exists()


def test_new_recoverable_is_named_with_the_way_out(tmp_path):
    AtomicCheckpointer(tmp_path, {"m": _linear(1.0)}).save_checkpoint(name="a")
    model = _linear(2.0)
    extended = AtomicCheckpointer(tmp_path, {"m": model, "new": _linear(0.0)})
    with pytest.raises(CheckpointError, match=r"CKPT\+a .*for new\.") as info:
        extended.recover_if_possible()
    assert "output_folder" in str(info.value)
    assert model.weight.item() == 2.0

    extended.allow_partial_load = True
    extended.recover_if_possible()
    assert model.weight.item() == 1.0


def test_optional_recoverable_may_be_missing(tmp_path):
    AtomicCheckpointer(tmp_path, {"m": _linear(1.0)}).save_checkpoint()
    model = _linear(2.0)
    checkpointer = AtomicCheckpointer(tmp_path, {"m": model})
    checkpointer.add_recoverable("scaler", _linear(0.0), optional_load=True)
    with pytest.warns(UserWarning, match="optional"):
        checkpointer.recover_if_possible()
    assert model.weight.item() == 1.0


@pytest.mark.parametrize("damage", ["other size", "truncated"])
def test_state_that_does_not_fit_names_folder_and_way_out(tmp_path, damage):
    saved = AtomicCheckpointer(tmp_path, {"m": _linear(1.0)}).save_checkpoint()
    model = _linear(2.0)
    if damage == "other size":
        model = torch.nn.Linear(3, 1, bias=False)
    else:
        file = saved.paramfiles["m"]
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="delete this one") as info:
        AtomicCheckpointer(tmp_path, {"m": model}).recover_if_possible()
    assert str(saved.path) in str(info.value)
