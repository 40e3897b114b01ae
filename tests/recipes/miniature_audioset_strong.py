"""A miniature of AudioSet-Strong: the released lists, and some audio."""

import numpy as np
from miniature_desed import write_clip, write_table

HEAD = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
NAMES = {"/m/01": "Cat", "/m/02": "Dog", "/m/03": "Speech"}
RARE = {"/m/04": "Clarinet"}


def make(folder, seconds=1.0):
    """Write lists and audio into a folder; gives the folder."""
    rng = np.random.default_rng(0)
    write_table(
        folder / "lists/mid_to_display_name.tsv", [*{**NAMES, **RARE}.items()]
    )
    for part, count in (("train", 12), ("eval", 6)):
        lines = [HEAD]
        for number in range(count):
            video = f"{part[0]}-{number:09d}"
            mid = list(NAMES)[number % 3]
            event = 0.2, 0.6, NAMES[mid]
            lines.append((f"{video}_30000", *event[:2], mid))
            # The video of the first clip has vanished.
            if number > 0:
                audio = folder / "audio" / f"Y{video}.wav"
                write_clip(audio, seconds, [event], rng)
        if part == "eval":
            lines.append((f"{video}_30000", 0.1, 0.3, "/m/04"))
        write_table(folder / f"lists/audioset_{part}_strong.tsv", lines)
    return folder
