"""Plan the corpus of commands: who says which word, in which part."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from espeak import ACCENTS, Clip, draw_speaker, voice_variants

WORDS = (
    *("yes", "no", "up", "down", "left"),
    *("right", "on", "off", "stop", "go"),
)

# Fractions of the voices that only the test part and only the valid part have.
TEST_VOICES, VALID_VOICES = 0.2, 0.15

CLIPS_PER_UNLABELLED_SPEAKER = 20
CLIPS_PER_SHARD = 500
# Part of what a corpus is made from; raise it whenever the audio changes.
GENERATOR_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """All that decides what the corpus contains."""

    n_unlabelled: int
    n_train_per_word: int
    n_valid_per_word: int
    n_test_per_word: int
    seed: int
    version: int = GENERATOR_VERSION


@dataclass(frozen=True)
class Shard:
    """Clips that one process makes, in a folder that appears when whole."""

    split: str
    number: int
    clips: tuple[Clip, ...]
    voices: tuple[str, ...]

    @property
    def folder(self):
        """Where the shard goes, relative to the corpus."""
        return f"audio/{self.split}-{self.number:02d}"

    def path(self, clip):
        """Return where a clip of it goes, relative to the corpus."""
        return f"{self.folder}/{clip.number:05d}-{clip.speaker.name}.flac"

    def is_whole(self, output_folder):
        """Return whether all clips of it (bool) are in a corpus."""
        folder = output_folder / self.folder
        if not folder.is_dir():
            return False
        found = set(os.listdir(folder))
        return all(Path(self.path(clip)).name in found for clip in self.clips)


def plan_corpus(settings):
    """Draw the speakers and the words, and divide the work.

    Arguments
    ---------
    settings : Settings
        Sizes and seed.

    Returns
    -------
    shards : list of Shard
        All clips, in manifest order. A function of the settings alone, so
        that every process finds the same plan.
    """
    per_word = {
        "train": settings.n_train_per_word,
        "valid": settings.n_valid_per_word,
        "test": settings.n_test_per_word,
    }
    voices = _split_voices(settings.seed)
    shards = []
    for split in ("unlabelled", "train", "valid", "test"):
        # The list of speakers does not depend on how many are taken; train
        # and unlabelled share it and begin at its two ends.
        rng = generator(settings, split)
        if split == "unlabelled":
            n_clips = settings.n_unlabelled
            n_speakers = -(-n_clips // CLIPS_PER_UNLABELLED_SPEAKER)
            pairs = voices["train"][::-1]
            words = rng.choice(WORDS, n_clips)
        else:
            n_clips = per_word[split] * len(WORDS)
            n_speakers = per_word[split]
            pairs = voices[split]
            words = np.tile(WORDS, n_speakers)
        speakers = [
            draw_speaker(f"{split}{i:04d}", pairs[i % len(pairs)], rng)
            for i in range(n_speakers)
        ]
        clips = [
            Clip(i, str(word), speakers[i * n_speakers // n_clips])
            for i, word in enumerate(words)
        ]
        for start in range(0, n_clips, CLIPS_PER_SHARD):
            part = tuple(clips[start : start + CLIPS_PER_SHARD])
            number = start // CLIPS_PER_SHARD
            shards.append(Shard(split, number, part, tuple(sorted(pairs))))
    return shards


def generator(settings, *place):
    """Make a random generator of the seed and a place in the corpus alone.

    Arguments
    ---------
    settings : Settings
        The seed is taken from here.
    *place : str or int
        Names of the place.

    Returns
    -------
    numpy.random.Generator
    """
    return np.random.default_rng(
        [settings.seed, *"/".join(map(str, place)).encode()]
    )


def _split_voices(seed):
    """Divide the variants, and pair each with every accent.

    A variant is what makes a voice recognizable, so it serves one part only,
    in whatever accent.
    """
    variants = voice_variants()
    rng = np.random.default_rng(seed)
    rng.shuffle(variants)
    n_test = round(TEST_VOICES * len(variants))
    n_valid = round(VALID_VOICES * len(variants))
    parts = {
        "test": variants[:n_test],
        "valid": variants[n_test : n_test + n_valid],
        "train": variants[n_test + n_valid :],
    }
    voices = {}
    for split, names in parts.items():
        voices[split] = [f"{a}+{name}" for a in ACCENTS for name in names]
        rng.shuffle(voices[split])
    return voices
