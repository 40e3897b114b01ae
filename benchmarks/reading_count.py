#!/usr/bin/env python3
"""Count the code that one reads to follow a step: `reading_count.py`.

Run one step of CustomData/pretrain on a CPU, and list the files with functions
that run in it: from the batch to the optimizer's step, without start, loading,
validation and saving. Lines are those of whole files, without blank lines,
comments and docstrings. Left out of the sum: the encoder and the front end
(models/), the base Brain, and utils/, which are called as torch is.
"""

import runpy
import sys
import tempfile
import tokenize
from pathlib import Path

import numpy as np
import soundfile

from ssast_lobes.training import base

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "CustomData" / "pretrain"
FLAGS = """--model_size=micro --crop_seconds=0.6 --batch_size=4 --num_workers=0
    --number_of_epochs=1 --valid_fraction=0.1 --device=cpu --noprogressbar"""
LEFT_OUT = (
    "ssast_lobes/models/",
    "ssast_lobes/utils/",
    "ssast_lobes/training/base.py",
)
NO_CODE = tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER
LAYOUT = tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING


def code_lines(path):
    """Return the number of lines of a file that hold code."""
    with open(path, "rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    lines, before = set(), tokenize.NEWLINE
    for kind, _, (first, _), (last, _), _ in tokens:
        # A docstring is a string with which a line begins.
        docstring = kind == tokenize.STRING and before in LAYOUT
        if kind not in (*NO_CODE, *LAYOUT) and not docstring:
            lines.update(range(first, last + 1))
        before = before if kind in NO_CODE else kind
    return len(lines)


if __name__ == "__main__":
    found, fit_batch = set(), base.SpectrogramBrain.fit_batch

    def traced(brain, batch):
        """Note the file of each function that a step calls."""
        sys.setprofile(lambda frame, *_: found.add(frame.f_code.co_filename))
        loss = fit_batch(brain, batch)
        sys.setprofile(None)
        return loss

    base.SpectrogramBrain.fit_batch = traced
    with tempfile.TemporaryDirectory() as folder:
        for name in range(8):
            noise = np.random.default_rng(name).normal(0, 0.1, 16000)
            soundfile.write(f"{folder}/{name}.wav", noise, 16000)
        sys.path.insert(0, str(RECIPE))
        sys.argv = [f"{RECIPE}/train.py", f"{RECIPE}/hparams/pretrain.yaml"]
        sys.argv += [f"--audio={folder}", f"--output_folder={folder}/out"]
        sys.argv += FLAGS.split()
        runpy.run_path(sys.argv[0], run_name="__main__")
    total = []
    for name in sorted(path.removeprefix(f"{ROOT}/") for path in found):
        if name.startswith(("recipes/", "ssast_lobes/")):
            left_out, lines = name.startswith(LEFT_OUT), code_lines(ROOT / name)
            total += [] if left_out else [lines]
            print(f"{lines:5} {name}{' (left out)' * left_out}")
    print(f"{sum(total):5} lines in {len(total)} files")
