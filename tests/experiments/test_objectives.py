"""The comparison of objectives at equal CPU time."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "objectives" / "compare.py"


@pytest.mark.slow
def test_no_timing_resumes_an_earlier_one(tmp_path):
    spec = importlib.util.spec_from_file_location("compare_objectives", SCRIPT)
    compare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare)
    folder = tmp_path / "work" / "mspm_1"
    checkpoint = folder / "timing_0" / "save" / "CKPT"
    checkpoint.mkdir(parents=True)
    # The first run fails, so that the test need not train.
    with pytest.raises(SystemExit, match="the run failed"):
        compare.steps_in(60, folder, {"audio": "nowhere"})
    assert (folder / "timing_0" / "stdout.txt").exists()
    assert not checkpoint.exists()
