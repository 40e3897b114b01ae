"""One run at a time in an output folder."""

import os
import signal
import subprocess
import sys

import pytest

from ssast_lobes.training.errors import SettingsError
from ssast_lobes.training.lock import folder_lock

# Holds the lock, with a child that outlives it.
HOLDER = """
import os, sys, time
from ssast_lobes.training.lock import folder_lock
with folder_lock(sys.argv[1]):
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(20)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_run_is_refused(holder, tmp_path):
    with pytest.raises(SettingsError, match=f"process {holder.pid} on "):
        with folder_lock(tmp_path):
            pass


@pytest.mark.slow
def test_the_lock_of_a_dead_process_is_taken_over(holder, tmp_path, caplog):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with caplog.at_level("INFO"), folder_lock(tmp_path):
        pass
    assert f"Process {holder.pid} on " in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"), folder_lock(tmp_path):
        pass
    assert caplog.text == ""
