"""A miniature of CREMA-D in the layout and naming of the official archive.

Fifteen of the 91 actors say one sentence with each of the six emotions.
"""

from acted_speech import write_clip

EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")


def make(folder, seconds=0.3):
    """Write `AudioWAV` into a folder; gives the folder."""
    for actor in range(1001, 1016):
        for index, emotion in enumerate(EMOTIONS):
            path = folder / "AudioWAV" / f"{actor}_IEO_{emotion}_XX.wav"
            write_clip(path, index, actor - 1000, 16000, seconds)
    return folder
