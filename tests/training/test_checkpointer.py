"""Checkpoints: whole or not at all, wherever a run is killed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from full_disk import full_disk
from speechbrain.utils.checkpoints import (
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from ssast_lobes.training.checkpointer import (
    AtomicCheckpointer,
    CheckpointError,
)

# What the processes of these tests share: two recoverables that always hold
# the same number, and a saver that can be caught with half a file written.
PREAMBLE = """
import os, pathlib, signal, sys, tempfile
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader, mark_as_saver, register_checkpoint_hooks,
)
from ssast_lobes.training.checkpointer import AtomicCheckpointer

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
    "CKPT.yaml", "SHA256SUMS", "both.ckpt.0", "both.ckpt.1", "model.ckpt",
    "slow.ckpt", "weights.ckpt",
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
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wide(value):
    model = torch.nn.Linear(1000, 100, bias=False)
    torch.nn.init.constant_(model.weight, value)
    return model


def _linear(value):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    return model


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_run_killed_anywhere_in_a_save_resumes(tmp_path):
    process = _start(KILL_EVERYWHERE, tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


@pytest.mark.slow
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


def test_state_that_does_not_fit_names_folder_and_way_out(tmp_path):
    saved = AtomicCheckpointer(tmp_path, {"m": _linear(1.0)}).save_checkpoint()
    model = torch.nn.Linear(3, 1, bias=False)
    with pytest.raises(CheckpointError, match="delete this one") as info:
        AtomicCheckpointer(tmp_path, {"m": model}).recover_if_possible()
    assert str(saved.path) in str(info.value)
    assert saved.path.is_dir()


# Damage -------------------------------------------------------------------


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {
    "flipped": (lambda p: _flip(p / "m.ckpt"), "m.ckpt, .* is not as it was"),
    "truncated": (lambda p: _cut(p / "m.ckpt"), "m.ckpt, .* is not as it was"),
    "empty file": (
        lambda p: (p / "m.ckpt").write_bytes(b""),
        "m.ckpt, 0 bytes, is not as it was",
    ),
    "lost file": (lambda p: (p / "m.ckpt").unlink(), "m.ckpt is missing"),
    "lost meta": (
        lambda p: (p / "CKPT.yaml").unlink(),
        "CKPT.yaml is missing",
    ),
    "empty folder": (
        lambda p: [file.unlink() for file in p.iterdir()],
        "CKPT.yaml is missing",
    ),
    "garbage meta": (
        lambda p: (p / "CKPT.yaml").write_bytes(b"\xff: [{"),
        "CKPT.yaml, 5 bytes, is not as it was",
    ),
    "cut sums": (
        lambda p: (p / "SHA256SUMS").write_text(
            (p / "SHA256SUMS").read_text().splitlines(True)[0]
        ),
        "SHA256SUMS does not have m.ckpt",
    ),
    "no sums, garbage meta": (
        lambda p: [
            (p / "SHA256SUMS").unlink(),
            (p / "CKPT.yaml").write_text("{: ["),
        ],
        "CKPT.yaml is unreadable",
    ),
    "no sums, other meta": (
        lambda p: [
            (p / "SHA256SUMS").unlink(),
            (p / "CKPT.yaml").write_text("- 1"),
        ],
        "CKPT.yaml is not that of a checkpoint",
    ),
}


@pytest.mark.parametrize("case", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("key", [None, "accuracy"])
def test_damaged_checkpoint_is_passed_over(tmp_path, caplog, key, case):
    spoil, told = case
    model = _linear(1.0)
    checkpointer = AtomicCheckpointer(tmp_path, {"m": model})
    checkpointer.save_checkpoint({"accuracy": 0.5}, name="a")
    model.weight.data.fill_(2.0)
    damaged = checkpointer.save_checkpoint({"accuracy": 0.9}, name="b").path
    spoil(damaged)

    model.weight.data.fill_(3.0)
    again = AtomicCheckpointer(tmp_path, {"m": model})
    assert again.recover_if_possible(max_key=key).meta["accuracy"] == 0.5
    assert model.weight.item() == 1.0
    [message] = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert re.search(f"{re.escape(str(damaged))} is damaged .*{told}", message)
    assert not damaged.exists()
    # The next save takes the name, and told is once.
    again.save_and_keep_only({"accuracy": 0.7}, name="b", max_keys=["accuracy"])
    assert again.recover_if_possible().path == damaged
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"CKPT+b", "damaged-CKPT+b"}
    assert sum(r.levelname == "WARNING" for r in caplog.records) == 1


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(tmp_path):
    model = _linear(1.0)
    checkpointer = AtomicCheckpointer(tmp_path, {"m": model})
    for name in "ab":
        _cut(checkpointer.save_checkpoint(name=name).paramfiles["m"])
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no checkpoint is") as info:
            checkpointer.recover_if_possible()
        for name in "ab":
            folder = tmp_path / f"damaged-CKPT+{name}"
            assert f"{folder}: m.ckpt, " in str(info.value)


def test_checkpoint_of_speechbrain_s_own_checkpointer_loads(tmp_path):
    Checkpointer(tmp_path, {"m": _linear(1.0)}).save_checkpoint()
    model = _linear(2.0)
    AtomicCheckpointer(tmp_path, {"m": model}).recover_if_possible()
    assert model.weight.item() == 1.0


def test_sha256sum_reads_the_checksums(tmp_path):
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum")
    saved = AtomicCheckpointer(tmp_path, {"m": _linear(1.0)}).save_checkpoint()
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    result = subprocess.run(check, cwd=saved.path, capture_output=True)
    assert result.stdout == b"CKPT.yaml: OK\nm.ckpt: OK\n"


# A disk that is full ------------------------------------------------------


@register_checkpoint_hooks
class Text:
    """A recoverable that is written as a long text."""

    def __init__(self, value):
        self.value = value

    @mark_as_saver
    def save(self, path):
        path.write_text(f"{self.value}" + 100_000 * " ")

    @mark_as_loader
    def load(self, path, end_of_epoch):
        self.value = int(path.read_text())


@pytest.mark.parametrize("kind", ["tensors", "text"])
def test_full_disk_leaves_the_checkpoint_before(tmp_path, kind):
    def build(value):
        recoverables = {"model": _linear(value), "text": Text(value)}
        if kind == "tensors":
            recoverables = {"model": _linear(value), "big": _wide(value)}
        return AtomicCheckpointer(tmp_path, recoverables)

    def values(checkpointer):
        found = checkpointer.recoverables.values()
        return [
            one.value if isinstance(one, Text) else one.weight.mean().item()
            for one in found
        ]

    build(1).save_and_keep_only()
    before = sorted(tmp_path.iterdir())
    with full_disk(50_000):
        with pytest.raises(CheckpointError, match="Free disk space") as info:
            build(2).save_and_keep_only()
        assert str(tmp_path) in str(info.value)
        assert "MiB are free there" in str(info.value)
        assert len(str(info.value).splitlines()) == 1
        assert sorted(tmp_path.iterdir()) == before
        again = build(0)
        again.recover_if_possible()
        assert values(again) == [1, 1]
    build(3).save_and_keep_only()
    again.recover_if_possible()
    assert values(again) == [3, 3]
