"""What all tests share: a quiet, exact environment and a tiny corpus.

The environment is set here, before any test imports torch or SpeechBrain,
and the recipes that tests start as processes of their own inherit it.
"""

import csv
import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

# One thread a test process: they run side by side, one a core.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
# SpeechBrain switches TF32 on at import, which is too coarse for parity.
os.environ["SB_DISABLE_QUIRKS"] = "allow_tf32"
os.environ["MPLBACKEND"] = "Agg"
# Whatever would reach for the network fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def environment_described_once():
    """Ask pip for the list of packages once, not in each experiment folder."""
    from speechbrain.utils import logger

    with pytest.MonkeyPatch.context() as patch:
        once = functools.cache(logger.get_environment_description)
        patch.setattr(logger, "get_environment_description", once)
        yield


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    """Write empty pictures, but in tests that look at them, and all tests.

    Runs of recipes would draw for half of their time.
    """
    quick = request.config.option.markexpr == "not slow"
    if quick and request.node.get_closest_marker("draws") is None:
        from matplotlib.figure import Figure

        def write_empty(self, path, **options):
            Path(path).write_bytes(b"")

        monkeypatch.setattr(Figure, "savefig", write_empty)


SPLIT_OF = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2


class Corpus(NamedTuple):
    """A folder of audio and the CSV that describes it."""

    folder: Path
    manifest: Path

    @property
    def held_out(self):
        """Names of the files that are valid or test, a set."""
        with open(self.manifest, newline="") as file:
            rows = list(csv.DictReader(file))
        return {Path(r["path"]).name for r in rows if r["split"] != "train"}


def _sound(label, pitch, seconds, sample_rate, rng):
    """One clip of a class: a steady tone, a rising chirp, or noise bursts."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    if label == "tone":
        clip = np.sin(2 * np.pi * pitch * time)
    elif label == "chirp":
        clip = np.sin(2 * np.pi * pitch * time * (1 + time))
    else:
        bursts = np.sin(2 * np.pi * 8 * time) > 0
        clip = rng.uniform(-1, 1, time.size) * bursts
    return 0.3 * clip + 0.01 * rng.standard_normal(time.size)


@pytest.fixture(scope="session")
def tones(tmp_path_factory):
    """The corpus that `make_tones` makes, for all tests of a process."""
    return make_tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="session")
def rows(tones):
    """The rows of the corpus, by split; see `brain_kit`."""
    # Not at the top: SpeechBrain must find the environment that is set there.
    from brain_kit import corpus_rows

    return corpus_rows(tones.manifest)


def make_tones(folder):
    """24 labelled clips: 8 speakers times the classes tone, chirp and noise.

    Between 0.3 and 1.2 s long, half of them 16 kHz mono and half 8 kHz
    stereo, no speaker in two splits (12 train, 6 valid, 6 test clips).
    `manifest` has the columns path (relative to it), label, speaker, split.
    """
    rng = np.random.default_rng(0)
    rows = []
    for speaker, split in enumerate(SPLIT_OF):
        for index, label in enumerate(["tone", "chirp", "noise"]):
            seconds = rng.uniform(0.3, 1.2)
            stereo = (speaker + index) % 2 == 1
            sample_rate = 8000 if stereo else 16000
            clip = _sound(label, 300 + 60 * speaker, seconds, sample_rate, rng)
            if stereo:
                clip = np.stack([clip, 0.5 * clip], axis=1)
            name = f"{label}_{speaker}.wav"
            soundfile.write(folder / name, clip, sample_rate)
            rows.append([name, label, f"speaker{speaker}", split])
    manifest = folder / "manifest.csv"
    with open(manifest, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "speaker", "split"])
        writer.writerows(rows)
    return Corpus(folder, manifest)
