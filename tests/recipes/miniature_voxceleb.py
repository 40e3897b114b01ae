"""A miniature of VoxCeleb1 in the layout and naming of the official archives.

Three speakers of vox1_dev_wav.zip and one of vox1_test_wav.zip, five videos
each: three to train on, one for validation and one to test on.
"""

import numpy as np
import soundfile

SAMPLE_RATE = 16000
SPEAKERS = {
    "dev": ("id10001", "id10002", "id11251"),
    "test": ("id10270",),
}
# Video and its part; their ids are random at YouTube too.
VIDEOS = {
    "1zcIwhmdeo4": 3,
    "7gWzIy6yIIk": 1,
    "J9lHsKG98U8": 2,
    "-Y8hIVOBuel": 1,
    "_utA4gj5A8k": 1,
}
CLIPS = 2


def make(folder, seconds=0.5):
    """Write the audio and `iden_split.txt` into a folder; gives the folder."""
    rng = np.random.default_rng(0)
    lines = []
    for number, (archive, speaker) in enumerate(
        (archive, name) for archive, names in SPEAKERS.items() for name in names
    ):
        for video, part in VIDEOS.items():
            place = folder / archive / "wav" / speaker / video
            place.mkdir(parents=True)
            for clip in range(1, CLIPS + 1):
                time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
                voice = 0.3 * np.sin(2 * np.pi * 150 * (1 + number) * time)
                voice += 0.02 * rng.standard_normal(time.size)
                file = place / f"{clip:05}.wav"
                soundfile.write(file, voice, SAMPLE_RATE)
                lines.append(f"{part} {speaker}/{video}/{file.name}\n")
    (folder / "iden_split.txt").write_text("".join(sorted(lines)))
    return folder
