"""A miniature of EmoDB in the layout and naming of the official archive.

Ten speakers say one sentence with each of the seven emotions.
"""

from acted_speech import write_clip

SPEAKERS = ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16")
EMOTIONS = "WLEAFTN"


def make(folder, seconds=0.3):
    """Write `wav` into a folder; gives the folder."""
    for number, speaker in enumerate(SPEAKERS):
        for index, emotion in enumerate(EMOTIONS):
            path = folder / "wav" / f"{speaker}a01{emotion}a.wav"
            write_clip(path, index, number, 16000, seconds)
    return folder
