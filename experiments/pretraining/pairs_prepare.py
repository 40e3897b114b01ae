#!/usr/bin/env python3
"""Make positive pairs of recordings of the same words by different people.

> python pairs_prepare.py MANIFEST FOLDER

The recordings of a group (column `group` of the manifest) have the same words.
A clip of FOLDER is two of them, a second of each, as `contrastive_mspm` takes
positive pairs. Each recording is in about four clips.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.utils.files import write_csv

RATE = 16000
# Each clip has two, so a recording is in four on average.
CLIPS_PER_RECORDING = 2
FADE = 160


def loudest_second(wav):
    """Return the second with the most energy, faded at both ends."""
    wav = np.pad(wav, (0, max(0, RATE - len(wav))))
    energy = np.concatenate([[0], np.cumsum(wav**2)])
    start = int(np.argmax(energy[RATE:] - energy[:-RATE]))
    second = wav[start : start + RATE].copy()
    fade = np.linspace(0, 1, FADE)
    second[:FADE] *= fade
    second[-FADE:] *= fade[::-1]
    return second


def main():
    """Write the clips and their manifest."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    groups = {}
    with open(options.manifest, encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["group"]:
                path = options.manifest.parent / row["path"]
                groups.setdefault(row["group"], []).append(path)
    (options.folder / "audio").mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for paths in tqdm(groups.values(), "Groups"):
        takes = [loudest_second(read_audio(path).numpy()) for path in paths]
        for _ in range(CLIPS_PER_RECORDING * len(takes)):
            pair = rng.choice(len(takes), 2, replace=False)
            name = f"audio/{len(rows):05}.wav"
            clip = np.concatenate([takes[place] for place in pair])
            soundfile.write(options.folder / name, clip, RATE, "PCM_16")
            rows.append((name, 2))
    write_csv(options.folder / "manifest.csv", [("path", "takes"), *rows])


if __name__ == "__main__":
    main()
