"""A miniature of RAVDESS in the layout and naming of the official archive.

All 24 actors say one sentence with each of the eight emotions; one of them
sings as well.
"""

from acted_speech import write_clip


def make(folder, seconds=0.3):
    """Write `Actor_01` and so on into a folder; gives the folder."""
    for actor in range(1, 25):
        own = folder / f"Actor_{actor:02}"
        for emotion in range(1, 9):
            path = own / f"03-01-{emotion:02}-01-01-01-{actor:02}.wav"
            write_clip(path, emotion, actor, 48000, seconds)
    song = folder / "Actor_05" / "03-02-03-01-01-01-05.wav"
    write_clip(song, 3, 5, 48000, seconds)
    return folder
