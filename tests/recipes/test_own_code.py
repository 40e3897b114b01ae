"""An objective, a mask and a loss of one's own, next to a recipe's script."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "recipes" / "CustomData"
SMALL = """--model_size=micro --crop_seconds=0.6 --batch_size=4 --num_workers=0
    --number_of_epochs=1 --device=cpu --noprogressbar""".split()
OWN = '''
import torch
from ssast_lobes import MSPM, RandomMasker


class MyObjective(MSPM):
    """MSPM that says so in its logs."""

    def forward(self, feats, n_frames, mask=None, **where):
        output = super().forward(feats, n_frames, mask, **where)
        logs = {**output.logs, "mine": output.loss.detach()}
        return output._replace(logs=logs)


class FirstSteps(RandomMasker):
    """Hides what comes first."""

    def scores(self, rand, n_time, n_freq, max_time):
        steps = torch.arange(max_time, device=n_time.device).float()
        return steps.expand(len(n_time), n_freq, max_time)


def my_loss(scores, targets, power=1):
    return ((scores.sigmoid() - targets) ** (2 * power)).mean()
'''
OBJECTIVE = """
mask_ratio: 0.25
cluster_sizes: null
masker: !new:my_own_code.FirstSteps
    ratio: !ref <mask_ratio>
objective: !new:my_own_code.MyObjective
    encoder: !ref <lobe.encoder>
    masker: !ref <masker>
"""


@pytest.fixture
def task(tmp_path):
    """Function of a task: its folder, copied, with code of one's own."""

    def copy(name):
        folder = tmp_path / name
        # Links are followed: the copy needs nothing of the repository.
        shutil.copytree(ROOT / name, folder)
        (folder / "my_own_code.py").write_text(OWN)
        (folder / "my_objective.yaml").write_text(OBJECTIVE)
        return folder

    return copy


def run_here(folder, monkeypatch, *flags):
    """As `run`, in this process, which has imported SpeechBrain already."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("SB_GLOBAL_SEED", "0")
    name = f"own_{folder.name}"
    spec = importlib.util.spec_from_file_location(name, folder / "train.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    yaml = f"hparams/{folder.name}.yaml"
    script.main([yaml, "--output_folder=out", *SMALL, *flags])
    return folder / "out"


def run(folder, *flags):
    yaml = f"hparams/{folder.name}.yaml"
    result = subprocess.run(
        [sys.executable, "train.py", yaml, "--output_folder=out", *SMALL]
        + [*flags],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder / "out"


def test_objective_and_mask(task, tones, monkeypatch):
    out = run_here(
        task("pretrain"),
        monkeypatch,
        f"--audio={tones.folder}",
        "--objective=my_objective.yaml",
    )
    [row] = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert row["train_mine"] == row["train_loss"]
    config = json.loads((out / "export" / "config.json").read_text())
    assert config["objective"]["name"] == "MyObjective"
    assert config["objective"]["masker"]["name"] == "FirstSteps"
    assert config["objective"]["masker"]["ratio"] == 0.25


@pytest.mark.slow
def test_loss(task, tones):
    out = run(
        task("classify"),
        f"--manifest={tones.manifest}",
        "--compute_cost=!name:my_own_code.my_loss {power: 2}",
    )
    result = json.loads((out / "test_result.json").read_text())
    assert result["compute_cost"] == "my_own_code.my_loss(power=2)"
    assert 0 < result["metrics"]["loss"] < 1
    card = (out / "export" / "README.md").read_text()
    assert "| compute_cost | my_own_code.my_loss(power=2) |" in card
    assert "python train.py hparams/classify.yaml --output_folder=out" in card
    assert f"--manifest={tones.manifest.name} " in card
    assert str(tones.folder) not in card
