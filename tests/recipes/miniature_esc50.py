"""A miniature of ESC-50 in the layout and naming of the official archive.

Two classes of ESC-10 and one of the others; in each of the five folds three
clips a class, two of them of one recording.
"""

import csv

import numpy as np
import soundfile

SAMPLE_RATE = 44100
CLASSES = {"dog": (0, True), "rooster": (1, True), "cow": (3, False)}
COLUMNS = "filename,fold,target,category,esc10,src_file,take".split(",")


def make(folder, seconds=0.5):
    """Write `ESC-50-master` into a folder; gives the folder."""
    root = folder / "ESC-50-master"
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for fold in range(1, 6):
        for name, (target, esc10) in CLASSES.items():
            for recording, take in ((1, "A"), (1, "B"), (2, "A")):
                source = 100000 * fold + 100 * target + recording
                file = f"{fold}-{source}-{take}-{target}.wav"
                time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
                pitch = 300 * (1 + target) + 20 * fold + 5 * recording
                clip = 0.3 * np.sin(2 * np.pi * pitch * time)
                clip += 0.02 * rng.standard_normal(time.size)
                soundfile.write(root / "audio" / file, clip, SAMPLE_RATE)
                rows.append([file, fold, target, name, esc10, source, take])
    with open(root / "meta" / "esc50.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(rows)
    return folder
