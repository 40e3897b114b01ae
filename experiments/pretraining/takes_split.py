#!/usr/bin/env python3
"""Split clips of two takes, for a projection that tells words apart.

> python takes_split.py TAKES/manifest.csv FOLDER
> ssast-lobes heads MODEL --projection words=FOLDER/manifest.csv ...

The recipe SyntheticCommands makes clips whose halves are two takes of a word,
in two voices. Each half becomes a file of FOLDER. The column `label` of its
manifest names language and word.
"""

import argparse
import csv
from pathlib import Path

import soundfile
from tqdm import tqdm

from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.utils.files import write_csv


def main():
    """Write the halves and their manifest."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with open(options.manifest, encoding="utf-8") as file:
        clips = [row for row in csv.DictReader(file) if row["takes"] == "2"]
    rows = [["path", "label"]]
    for number, clip in enumerate(tqdm(clips, "Splitting")):
        wav = read_audio(options.manifest.parent / clip["path"])
        for half, take in enumerate(wav.split(-(-len(wav) // 2))):
            name = f"{number:05}_{half}.wav"
            soundfile.write(options.folder / name, take.numpy(), 16000)
            rows.append([name, f"{clip['language']} {clip['word']}"])
    write_csv(options.folder / "manifest.csv", rows)


if __name__ == "__main__":
    main()
