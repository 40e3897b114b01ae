"""A miniature of Speech Commands in the layout of the official archives.

Six speakers say each word once: four for training, one in the validation and
one in the testing list. The test archive of V1 has clips of the latter.
"""

import numpy as np
import soundfile

SAMPLE_RATE = 16000
KEYWORDS = "yes no up down left right on off stop go".split()
V1_WORDS = [*KEYWORDS, "bed", "cat", "marvin"]
V2_WORDS = ["backward", "yes", "no", "visual"]
TRAINING = ("0a7c2a8d", "0b09edd3", "ffd2ba2f", "105a0eea")
VALIDATION, TESTING = "8b775397", "022cd682"
NOISES = ("running_tap", "white_noise")


def make(folder, seconds=0.2):
    """Write the three archives, unpacked; gives the folder they are in."""
    rng = np.random.default_rng(0)
    write_archive(folder / "speech_commands_v0.01", V1_WORDS, seconds, rng)
    write_archive(folder / "speech_commands_v0.02", V2_WORDS, seconds, rng)
    write_test(folder / "speech_commands_test_set_v0.01", seconds, rng)
    return folder


def write_archive(root, words, seconds, rng):
    for number, word in enumerate(words):
        for speaker in (*TRAINING, VALIDATION, TESTING):
            path = root / word / f"{speaker}_nohash_0.wav"
            write(path, 300 + 200 * number, seconds, rng)
    for name in NOISES:
        write(root / "_background_noise_" / f"{name}.wav", 0, 1.5, rng)
    (root / "_background_noise_" / "README.md").write_text("Noises\n")
    (root / "README.md").write_text("Speech Commands\n")
    lists = {"validation": VALIDATION, "testing": TESTING}
    for name, speaker in lists.items():
        lines = [f"{word}/{speaker}_nohash_0.wav\n" for word in words]
        (root / f"{name}_list.txt").write_text("".join(lines))


def write_test(root, seconds, rng):
    for number, word in enumerate(V1_WORDS):
        path = root / word / f"{TESTING}_nohash_0.wav"
        if word not in KEYWORDS:
            name = f"{word}_{TESTING}_nohash_0.wav.wav"
            path = root / "_unknown_" / name
        write(path, 300 + 200 * number, seconds, rng)
    for number in range(2):
        write(root / "_silence_" / f"{number}.wav", 0, 1.0, rng)


def write(path, pitch, seconds, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    clip = 0.3 * np.sin(2 * np.pi * pitch * time)
    clip += 0.02 * rng.standard_normal(time.size)
    soundfile.write(path, clip, SAMPLE_RATE)
