#!/usr/bin/env python3
"""Measure how closely we reproduce the official codes of other labs.

> python benchmarks/peer_parity.py

It runs the comparisons of ``tests/checkpoints/test_golden_peer.py`` with whole
models, and writes the largest difference of each kind of output of a family to
``results/peer_parity.json``. The files of more sizes than the tests have can be
named by SSAST_GOLDEN, as there.
"""

import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from ssast_lobes.utils.files import write_json

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "checkpoints")]


def kind_of(name):
    """Return the column of an array in the table; None for what has none."""
    if name.endswith("_normalised"):
        return "features"
    if name.startswith(("wave_", "long_wave_", "padded_")):
        return "waveform"
    if name.endswith(("_mean", "_clip", "_logits", "_z")):
        per_token = name.endswith(("first_mean", "layer_mean", "ffn_mean"))
        return "tokens" if per_token else "clip"
    return "tokens" if name.startswith("case") else None


def main():
    """Compare all families, and write the file of results."""
    from test_golden_peer import FILES, check_everything, check_features

    rows = {}
    for path in tqdm(FILES, unit="model"):
        with tempfile.TemporaryDirectory() as folder:
            case = check_everything(path, Path(folder))
        found = {**check_features(path).checked, **case.checked}
        row = rows.setdefault(case.family, {"family": case.family})
        row.setdefault("models", []).append(path.stem)
        for name, difference in found.items():
            kind = kind_of(name)
            if kind is not None:
                row[kind] = max(row.get(kind, 0.0), difference)
    file = ROOT / "benchmarks" / "results" / "peer_parity.json"
    write_json(file, [*rows.values()])
    print(f"Written to {file}")


if __name__ == "__main__":
    main()
