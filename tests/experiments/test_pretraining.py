"""Pretrainings with equal CPU time: measured, resumed, chosen, tested."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).parents[2] / "experiments/pretraining/compare.py"
TASKS = ("sounds", "people")


@pytest.fixture
def compare(tones, tmp_path):
    """Function of flags: runs the smallest comparison, returns its JSON."""
    shutil.copytree(tones.folder, tmp_path / "data/tones")
    plan = {
        "minutes": 0.01,
        "audio": ["tones"],
        "tasks": [{"name": name, "set": "tones"} for name in TASKS],
        "models": {"bundled": "ssast-lobes-micro-1"},
        "before": [{"output": "ready", "run": "touch ready"}],
        "settings": {
            **{"objective": "mspm_small_data", "model_size": "micro"},
            **{"geometry": [128, 4], "crop_seconds": 0.6, "batch_size": 4},
            # It ends a run whose time of a step came out too short.
            **{"number_of_epochs": 30, "num_workers": 0, "lr": 0.001},
        },
        "rows": {"one": None, "other": {"lr": 0.002}},
        "averages": {"both": ["one", "other"]},
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))

    def run(*flags):
        command = [sys.executable, SCRIPT, path, "--data", tmp_path / "data"]
        command += ["--work", tmp_path / "work", "--processes", "1", *flags]
        subprocess.run(list(map(str, command)), check=True)
        return json.loads(path.with_suffix(".json").read_text())

    return run


@pytest.mark.slow
def test_rows_are_pretrained_scored_and_tested(compare, tmp_path):
    results = compare("--rows", "one")
    assert (tmp_path / "work/ready").is_file()
    assert results[0]["row"] == "one" and results[0]["steps"] >= 1
    assert set(results[0]["scores"]) == set(TASKS)
    names = {"one", "log-mel", "MFCC", "bundled", "untrained"}
    assert {result["row"] for result in results} == names
    # A rerun keeps the rows that are there, and adds the others.
    more = compare()
    assert more[: len(results)] == results
    assert [result["row"] for result in more[len(results) :]] == [
        "other",
        "both",
    ]
    ranked = sorted(
        (more[0], more[len(results)]),
        key=lambda result: -sum(result["scores"].values()),
    )
    again = compare("--best", "1", "--seeds", "2", "--test")
    added = again[len(more)]
    assert (added["row"], added["seed"]) == (ranked[0]["row"], 2)
    assert added["steps"] == ranked[0]["steps"]
    # The seed that chose the row is not tested.
    tested = {
        (result["row"], result["seed"]): set(result["test"])
        for result in again
        if "test" in result
    }
    baselines = [("log-mel", 0), ("MFCC", 0), ("bundled", 0)]
    baselines += [("untrained", seed) for seed in (1, 2, 3)]
    assert tested == dict.fromkeys(
        [*baselines, (ranked[0]["row"], 2)], set(TASKS)
    )
    # Rows made elsewhere need no export here.
    shutil.rmtree(tmp_path / "work/one_1/run/export")
    assert compare("--best", "1", "--seeds", "2", "--test") == again


@pytest.mark.slow
def test_no_timing_resumes_an_earlier_one(tmp_path):
    spec = importlib.util.spec_from_file_location("compare_runs", SCRIPT)
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
