"""The README's blocks run as printed, after a quickstart of a few clips."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(bash|yaml|python)\n(.*?)^```$", re.M | re.S)
SET_UP = "make quickstart"


def readme_blocks():
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = [match.groups() for match in BLOCK.finditer(text)]
    return [(kind, code) for kind, code in blocks if SET_UP not in code]


def small_quickstart(folder):
    path = ROOT / "recipes/SyntheticCommands/hparams/quickstart.yaml"
    settings = yaml.safe_load(path.read_text("utf-8"))
    settings["corpus"].update(
        n_unlabelled=60,
        n_train_per_word=2,
        n_valid_per_word=1,
        n_test_per_word=2,
    )
    settings["pretrain"].update(number_of_epochs=1)
    settings["classify"].update(number_of_epochs=1)
    settings["fine_tuning_seeds"] = [1, 2]
    small = folder / "small.yaml"
    small.write_text(yaml.safe_dump(settings), "utf-8")
    return small


def run(command, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (
        f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


@pytest.mark.slow
def test_quickstart_and_readme_blocks(tmp_path):
    for name in ("recipes", "hparams"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("results", "__pycache__"),
        )
    script = "recipes/SyntheticCommands/quickstart.py"
    small = small_quickstart(tmp_path)
    shown = run([sys.executable, script, small], tmp_path)
    assert "points over training from scratch" in shown
    assert "and the model hears" in shown
    for picture in (
        "comparison.png",
        "pretrain/curves.png",
        "pretrain/reconstruction.png",
        "pretrained/1/confusion_matrix.png",
    ):
        written = tmp_path / "results" / "quickstart" / picture
        assert written.stat().st_size > 10000

    kinds = [kind for kind, _ in readme_blocks()]
    assert {"bash", "yaml", "python"} <= set(kinds)
    for kind, code in readme_blocks():
        if kind == "yaml":
            # The first line names the file.
            (tmp_path / code.split()[1]).write_text(code, "utf-8")
        elif kind == "python":
            run([sys.executable, "-c", code], tmp_path)
        else:
            run(["bash", "-euc", code], tmp_path)
    assert (tmp_path / "results" / "scores.csv").stat().st_size > 0
