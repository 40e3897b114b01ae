"""Recipes that are killed at random moments end as if they never were."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_recipes import (
    RECIPES,
    TORCHRUN,
    exported,
    flags_of,
    log_of,
    same,
    yaml_of,
)

SCRIPT = Path(__file__).with_name("kill_anywhere.py")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs fork and /proc"
)


@pytest.mark.parametrize(
    "task, kills, saves, workers",
    [
        ("pretrain", 3, 1, 0),
        ("pretrain", 20, 6, 1),
        ("classify", 10, 3, 1),
    ],
)
@pytest.mark.slow
def test_run_killed_at_random_moments(
    task, kills, saves, workers, tones, tmp_path
):
    result = subprocess.run(
        [sys.executable, SCRIPT, task, str(kills), "1", str(workers)]
        + [tmp_path, tones.folder, tones.manifest],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    pattern = r"kills: (\d+), of these in a checkpoint write: (\d+)"
    made, in_saves = map(int, re.search(pattern, result.stdout).groups())
    assert made >= kills
    assert in_saves >= saves


def started(folder, tones):
    """Start a pretraining in two processes."""
    flags = flags_of("pretrain", tones, folder, "--ckpt_interval_steps=1")
    return subprocess.Popen(
        [sys.executable, *TORCHRUN.split(), "train.py", yaml_of("pretrain")]
        + [*flags, "--distributed_backend=gloo"],
        cwd=RECIPES / "pretrain",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def workers_of(launcher):
    """Process ids by rank of the processes that torchrun has started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    found = {}
    for pid in children.read_text().split():
        values = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        rank = [x for x in values if x.startswith(b"RANK=")]
        if rank:
            found[int(rank[0].removeprefix(b"RANK="))] = int(pid)
    return found


def runs(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module")
def whole(tones, tmp_path_factory):
    """Folder of a run in two processes that nobody kills."""
    folder = tmp_path_factory.mktemp("whole")
    process = started(folder, tones)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_of_two_is_killed(rank, whole, tones, tmp_path):
    folder = tmp_path / "killed"
    process = started(folder, tones)
    while not list((folder / "save").glob("CKPT+*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    workers = workers_of(process)
    os.kill(workers[rank], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0, output
    assert "SIGKILL" in output
    assert not any(runs(pid) for pid in workers.values())
    assert not (folder / "export").exists()

    process = started(folder, tones)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert same(exported(folder), exported(whole))
    assert log_of(folder) == log_of(whole)
