"""A miniature of AudioSet and one of LibriSpeech, as people have them.

The lists are written as the official ones are, with their heads; the audio
has the folders and names of three download scripts. One segment in each list
has no audio, as videos vanish.
"""

import csv
import itertools

import numpy as np
import soundfile

SAMPLE_RATE = 16000
CLASSES = {
    "/m/09x0r": "Speech",
    "/m/05zppz": "Male speech, man speaking",
    "/m/04rlf": "Music",
    "/m/0bt9lr": "Dog",
}
HEAD = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids={n}, num_segs={n}, num_unique_labels=4, "
    "num_positive_labels=99\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)
# Labels of one segment after the other: a frequent class and rare ones.
LABELS = [
    ("/m/04rlf",),
    ("/m/04rlf", "/m/0bt9lr"),
    ("/m/09x0r", "/m/05zppz"),
    ("/m/04rlf",),
]
# Segments of each list, and where its audio is.
SEGMENTS = {"balanced_train": 21, "unbalanced_train": 25, "eval": 9}
FILES = {
    "balanced_train": "audio/bal_train/{video}.flac",
    "unbalanced_train": "audios/unbalanced_train_segments/"
    "unbalanced_train_segments_part00/Y{video}.wav",
    "eval": "eval/{video}_30.000_40.000.wav",
}
UTTERANCES = {
    "train-clean-100": 4,
    "train-clean-360": 4,
    "train-other-500": 4,
}


def make(folder, seconds=0.4):
    """Write `AudioSet` and `LibriSpeech` into a folder; gives the folder."""
    rng = np.random.default_rng(0)
    audioset(folder / "AudioSet", seconds, rng)
    librispeech(folder / "LibriSpeech", seconds, rng)
    return folder


def videos(name):
    """Ids of the segments of a list, 11 characters as those of YouTube."""
    start = {"balanced_train": "--", "unbalanced_train": "Y_", "eval": "0-"}
    count = SEGMENTS[name]
    return [f"{start[name]}abcdef{number:02d}-" for number in range(count)]


def audioset(root, seconds, rng):
    (root / "metadata").mkdir(parents=True)
    path = root / "metadata" / "class_labels_indices.csv"
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["index", "mid", "display_name"])
        for index, (mid, name) in enumerate(CLASSES.items()):
            table.writerow([index, mid, name])
    for name in SEGMENTS:
        listed = list(zip(videos(name), itertools.cycle(LABELS), strict=False))
        with open(root / "metadata" / f"{name}_segments.csv", "w") as file:
            file.write(HEAD.format(n=len(listed)))
            for video, mids in listed:
                cell = ",".join(mids)
                file.write(f'{video}, 30.000, 40.000, "{cell}"\n')
        for video, mids in listed[:-1]:
            path = root / FILES[name].format(video=video)
            path.parent.mkdir(parents=True, exist_ok=True)
            pitches = [400 + 300 * list(CLASSES).index(mid) for mid in mids]
            write(path, seconds, pitches, rng)


def librispeech(root, seconds, rng):
    for speaker, (part, count) in enumerate(UTTERANCES.items()):
        for number in range(count):
            reader = 100 + 10 * speaker + number % 2
            stem = f"{reader}-1240-{number:04d}"
            path = root / part / f"{reader}" / "1240" / f"{stem}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, seconds, [200 + 30 * number], rng)


def write(path, seconds, pitches, rng):
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    clip = 0.02 * rng.standard_normal(time.size)
    for pitch in pitches:
        clip += 0.2 * np.sin(2 * np.pi * pitch * time)
    soundfile.write(path, clip, SAMPLE_RATE)
