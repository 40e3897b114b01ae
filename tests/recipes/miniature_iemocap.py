"""A miniature of IEMOCAP in the layout and naming of the official archive.

In each of the five sessions two dialogues, in which both speakers say one
sentence in each of seven emotions, two of them not among the four of the task.
"""

import numpy as np
import soundfile

SAMPLE_RATE = 16000
EMOTIONS = ("ang", "exc", "hap", "neu", "sad", "fru", "xxx")
HEAD = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
TURN = (
    "[{start:.4f} - {end:.4f}]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n"
)
LISTENERS = "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"


def make(folder, seconds=0.5):
    """Write `IEMOCAP_full_release` into a folder; gives the folder."""
    rng = np.random.default_rng(0)
    for session in range(1, 6):
        root = folder / "IEMOCAP_full_release" / f"Session{session}"
        tables = root / "dialog" / "EmoEvaluation"
        tables.mkdir(parents=True)
        # The motion of one speaker was captured in each dialogue.
        for dialogue in (
            f"Ses{session:02}F_impro01",
            f"Ses{session:02}M_script01_1b",
        ):
            place = root / "sentences" / "wav" / dialogue
            place.mkdir(parents=True)
            text = HEAD
            for turn, emotion in enumerate(EMOTIONS):
                for speaker in "FM":
                    name = f"{dialogue}_{speaker}{turn:03}"
                    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
                    pitch = (200 if speaker == "F" else 100) * (1 + turn)
                    voice = 0.3 * np.sin(2 * np.pi * pitch * time)
                    voice += 0.02 * rng.standard_normal(time.size)
                    soundfile.write(place / f"{name}.wav", voice, SAMPLE_RATE)
                    text += TURN.format(
                        start=turn, end=turn + 0.5, name=name, emotion=emotion
                    )
                    text += LISTENERS
            (tables / f"{dialogue}.txt").write_text(text)
            # The archive has such files, which macOS left behind.
            (tables / f"._{dialogue}.txt").write_bytes(b"\0\5\26\7\0\2[\xff")
    return folder
