#!/usr/bin/env python3
"""Train every recipe and every objective small; print what they end in.

> python tests/recipes/fingerprints.py [PART OF A NAME ...]

Run it on two commits, on one machine and in one environment, and compare the
lines: each has a row of the tables next to this file, or an objective, and a
hash of all tensors of its exports, whatever the tensors are called.
"""

import csv
import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

from conftest import make_tones  # noqa: E402
from test_dataset_recipes import Miniatures  # noqa: E402

PRETRAIN = "recipes/CustomData/pretrain"
OBJECTIVE = """--audio={{corpus}} --objective={word} --model_size=micro
    --crop_seconds=0.6 --batch_size=4 --valid_fraction=0.2 --number_of_epochs=2
    --num_workers=0"""
# Its 400 patches do not fit into clips so short.
LEFT_OUT = "mspm_reference"


def experiments():
    """Name, script, YAML and flags of each."""
    for table in sorted(HERE.glob("*.csv")):
        with open(table, newline="") as file:
            for row in csv.DictReader(file):
                script, flags = row["Script_file"], row["test_debug_flags"]
                if not re.search("compare|transfer|quickstart", script):
                    name = f"{row['Dataset']}: {row['Task']}"
                    yield name, script, row["Hparam_file"], flags
    for path in sorted((ROOT / "hparams" / "objective").glob("*.yaml")):
        if path.stem == LEFT_OUT:
            continue
        yield (
            f"objective: {path.stem}",
            f"{PRETRAIN}/train.py",
            f"{PRETRAIN}/hparams/pretrain.yaml",
            OBJECTIVE.format(word=path.stem),
        )


def fingerprint(folder):
    """Hash of the bytes of all tensors of all exports in a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("export/model.safetensors")):
        tensors = load_file(path).values()
        hashes = sorted(hashlib.sha256(t.tobytes()).digest() for t in tensors)
        total.update(b"".join(hashes))
    return total.hexdigest()[:24]


def main(wanted):
    """Run the experiments whose names have any of the parts in them."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        miniatures = Miniatures(folder)
        (folder / "tones").mkdir()
        miniatures["corpus"] = make_tones(folder / "tones").folder
        for number, (name, script, yaml, flags) in enumerate(experiments()):
            if wanted and not any(part in name for part in wanted):
                continue
            out = folder / f"{number}"
            result = subprocess.run(
                [sys.executable, ROOT / script, ROOT / yaml]
                + shlex.split(flags.format_map(miniatures))
                + [f"--output_folder={out}", "--device=cpu"]
                + ["--noprogressbar"],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            found = fingerprint(out)
            if result.returncode != 0:
                found = result.stderr.strip().splitlines()[-1]
            print(f"{name}\t{found}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
