"""A miniature of UrbanSound8K in the layout and naming of the archive.

In each of the ten folds two clips of each of the ten classes, in folds with
odd numbers of one recording, in the others of two.
"""

import csv

import numpy as np
import soundfile

SAMPLE_RATE = 8000  # rates and lengths differ in the archive
CLASSES = (
    "air_conditioner",
    "car_horn",
    "children_playing",
    "dog_bark",
    "drilling",
    "engine_idling",
    "gun_shot",
    "jackhammer",
    "siren",
    "street_music",
)
COLUMNS = "slice_file_name,fsID,start,end,salience,fold,classID,class"


def make(folder, seconds=0.5):
    """Write `UrbanSound8K` into a folder; gives the folder."""
    root = folder / "UrbanSound8K"
    (root / "metadata").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for fold in range(1, 11):
        place = root / "audio" / f"fold{fold}"
        place.mkdir(parents=True)
        for number, name in enumerate(CLASSES):
            for piece in range(2):
                # Names of the archive: recording, class, occurrence, slice.
                recording = 10000 * fold + 10 * number + piece * (1 - fold % 2)
                file = f"{recording}-{number}-0-{piece}.wav"
                end = seconds / (1 + piece)
                time = np.arange(int(end * SAMPLE_RATE)) / SAMPLE_RATE
                clip = 0.3 * np.sin(2 * np.pi * 150 * (1 + number) * time)
                clip += 0.02 * rng.standard_normal(time.size)
                soundfile.write(place / file, clip, SAMPLE_RATE)
                rows.append([file, recording, 0.0, end, 1, fold, number, name])
    with open(root / "metadata" / "UrbanSound8K.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS.split(","))
        table.writerows(rows)
    return folder
