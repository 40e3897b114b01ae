"""The quickstart leaves processor time to others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "SyntheticCommands" / "quickstart.py"


@pytest.mark.skipif(sys.platform != "linux", reason="needs GNU OpenMP")
@pytest.mark.slow
@pytest.mark.parametrize(
    "given, spins",
    [
        ({}, "0"),
        ({"OMP_WAIT_POLICY": "active"}, "30000000000"),
    ],
    ids=["default", "active"],
)
def test_threads_wait_asleep_unless_told_otherwise(given, spins):
    inherited = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    # OpenMP itself says what it has read when PyTorch was imported.
    done = subprocess.run(
        [sys.executable, QUICKSTART, "--help"],
        capture_output=True,
        text=True,
        env={**inherited, "OMP_DISPLAY_ENV": "verbose", **given},
    )
    assert done.returncode == 0, done.stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
