"""A miniature of FSDD in the layout and naming of the official archive.

All six speakers say four digits, in takes of each official part.
"""

import numpy as np
import soundfile

SAMPLE_RATE = 8000
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
DIGITS = (0, 1, 7, 9)
TAKES = (0, 5, 10, 49)  # test, valid, train, train


def make(folder, seconds=0.3):
    """Write `free-spoken-digit-dataset-1.0.10`; gives the folder it is in."""
    recordings = folder / "free-spoken-digit-dataset-1.0.10" / "recordings"
    recordings.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, speaker in enumerate(SPEAKERS):
        for digit in DIGITS:
            for take in TAKES:
                time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
                pitch = 300 + 250 * digit + 30 * number + take
                clip = 0.3 * np.sin(2 * np.pi * pitch * time)
                clip += 0.02 * rng.standard_normal(time.size)
                file = recordings / f"{digit}_{speaker}_{take}.wav"
                soundfile.write(file, clip, SAMPLE_RATE)
    return folder
