#!/usr/bin/env python3
"""Synthetic spoken commands: a corpus made on the spot, without download.

eSpeak NG (PyPI wheel `espeakng-loader`, library and voices included) says
the ten words of Speech Commands in many voices. Every clip is one second at
16 kHz: a word at a random place, a room, background noise, a channel and a
level of its own. The voices of valid and test are heard nowhere else, and
most of the corpus is unlabelled, for self-supervised pretraining.

To make the corpus from the command line:
> python synthetic_commands_prepare.py OUTPUT_FOLDER
"""

import argparse
import csv
import importlib.util
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from espeak import (
    ACCENTS,
    Clip,
    Synthesizer,
    draw_speaker,
    say_word,
    voice_folder,
    voice_variants,
)
from sounds import make_clip, write_flac
from tqdm import tqdm

logger = logging.getLogger(__name__)

WORDS = (
    *("yes", "no", "up", "down", "left"),
    *("right", "on", "off", "stop", "go"),
)

# Shares of the voices that only the test part and only the valid part hear.
TEST_VOICES, VALID_VOICES = 0.2, 0.15

# Speech behind the speech; none of the ten words, so that a clip has one
# right answer.
BABBLE = (
    "The children were playing beside the river all afternoon.",
    "Please remember to water the plants while we are travelling.",
    "My sister bought seven oranges and a loaf of bread.",
    "Heavy rain is expected across the northern hills this evening.",
    "He carefully opened the letter and began reading it aloud.",
    "Our train leaves at quarter past nine from another platform.",
    "She has always wanted a small house near the sea.",
    "Nobody believed that the old engine could be repaired.",
)


SCRIPT = os.path.abspath(__file__)
WORKSHOP = ".unfinished-"
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


def prepare_synthetic_commands(
    output_folder,
    n_unlabelled=4000,
    n_train_per_word=20,
    n_valid_per_word=25,
    n_test_per_word=50,
    seed=0,
    skip_prep=False,
):
    """Make the synthetic spoken-command corpus, or find it made.

    Writes 16-bit mono FLAC clips of one second at 16 kHz below
    `output_folder`/audio, and two manifests whose paths are relative to
    `output_folder`, so that the folder can be moved:

    - `unlabelled.csv`: path, speaker
    - `labelled.csv`: path, label, split (train, valid or test), speaker

    The same arguments give the same bytes on the same machine, however many
    processes work on it. A complete corpus is reused, and one that was
    interrupted is completed.

    Arguments
    ---------
    output_folder : str or Path
        Where the corpus goes. It must be new, or hold a corpus made with
        the same arguments.
    n_unlabelled : int
        Number of clips without label, of `n_unlabelled / 20` speakers.
    n_train_per_word : int
        Labelled training clips of each word; as many speakers, each saying
        every word once. So are valid and test.
    n_valid_per_word : int
        Validation clips of each word. No other part has their voices.
    n_test_per_word : int
        Test clips of each word. No other part has their voices.
    seed : int
        Another seed gives other speakers and other clips.
    skip_prep : bool
        True: make nothing, only say where the manifests are.

    Returns
    -------
    manifests : dict
        `"unlabelled"` and `"labelled"`: the absolute path of each CSV (str).

    Raises
    ------
    ValueError
        If `output_folder` holds a corpus made with other arguments, or a
        size or the seed is negative.
    ModuleNotFoundError
        If `espeakng-loader` is not installed.
    RuntimeError
        If the synthesis fails.

    Example
    -------
    >>> folder = getfixture("tmpdir").join("commands")
    >>> sizes = {f"n_{s}_per_word": 1 for s in ("train", "valid", "test")}
    >>> manifests = prepare_synthetic_commands(folder, n_unlabelled=5, **sizes)
    >>> with open(manifests["labelled"]) as file:
    ...     rows = list(csv.DictReader(file))
    >>> len(rows), rows[0]["label"], rows[0]["split"]
    (30, 'yes', 'train')
    """
    output_folder = Path(output_folder).absolute()
    manifests = {
        name: str(output_folder / f"{name}.csv")
        for name in ("unlabelled", "labelled")
    }
    if skip_prep:
        return manifests
    settings = Settings(
        n_unlabelled=n_unlabelled,
        n_train_per_word=n_train_per_word,
        n_valid_per_word=n_valid_per_word,
        n_test_per_word=n_test_per_word,
        seed=seed,
    )
    if min(asdict(settings).values()) < 0:
        raise ValueError(f"Sizes and seed must not be negative: {settings}")
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ModuleNotFoundError(
            "The synthetic corpus is spoken by eSpeak NG: "
            "run `pip install espeakng-loader`"
        )
    claim(output_folder, asdict(settings))
    shards = plan_corpus(settings)
    missing = [s for s in shards if not _is_whole(s, output_folder)]
    if missing:
        _make_shards(missing, settings, output_folder)
    if missing or not all(os.path.isfile(path) for path in manifests.values()):
        _write_manifests(shards, manifests)
        logger.info("Synthetic commands are in %s", output_folder)
    else:
        logger.info("Synthetic commands found in %s", output_folder)
    return manifests


def claim(output_folder, wanted):
    """Write the settings, or check that they are the ones there.

    Arguments
    ---------
    output_folder : Path
        Of a corpus; made if it is not there.
    wanted : dict
        All that decides what the corpus contains.

    Raises
    ------
    ValueError
        If the corpus that is there was made with other settings.
    """
    path = output_folder / "settings.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found != wanted:
            raise ValueError(
                f"{output_folder} holds a synthetic corpus made with {found}, "
                f"not {wanted}: choose another folder, or delete that one"
            )
        return
    output_folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(wanted, indent=2) + "\n")


def write_whole(path, text):
    """Write a text file that is there entirely or not at all."""
    path = Path(path)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def as_csv(columns, rows):
    """Return the text of a CSV.

    Arguments
    ---------
    columns : sequence of str
        Names of the columns.
    rows : list of dict
        A value for each.

    Returns
    -------
    str
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _is_whole(shard, output_folder):
    folder = output_folder / shard.folder
    if not folder.is_dir():
        return False
    found = set(os.listdir(folder))
    return all(Path(shard.path(clip)).name in found for clip in shard.clips)


def _write_manifests(shards, manifests):
    rows = {"unlabelled": [], "labelled": []}
    for shard in shards:
        for clip in shard.clips:
            row = {"path": shard.path(clip), "speaker": clip.speaker.name}
            if shard.split == "unlabelled":
                rows["unlabelled"].append(row)
            else:
                row |= {"label": clip.word, "split": shard.split}
                rows["labelled"].append(row)
    columns = {
        "unlabelled": ("path", "speaker"),
        "labelled": ("path", "label", "split", "speaker"),
    }
    for name, path in manifests.items():
        write_whole(path, as_csv(columns[name], rows[name]))


# ---------------------------------------------------------------------------
# Who says what
# ---------------------------------------------------------------------------


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
        rng = _generator(settings, split)
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


def _generator(settings, *place):
    """Return a random generator that depends on the seed and the place only."""
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


# ---------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------


def _make_shards(shards, settings, output_folder):
    """Make the shards, one fresh process each, on all processors.

    What eSpeak NG says depends a little on all it has said before in the
    same process (phases, flutter, echo). A process for every shard makes
    the bytes independent of who worked on what. A subprocess, unlike
    multiprocessing, does not import the caller's main script again.
    """
    total = sum(len(shard.clips) for shard in shards)
    lock = threading.Lock()
    progress = tqdm(total=total, desc="Synthesising", unit="clip")

    def make(shard, workshop):
        job = {
            "settings": asdict(settings),
            "shard": shard.folder,
            "folder": tempfile.mkdtemp(dir=workshop),
        }
        process = subprocess.Popen(
            [sys.executable, SCRIPT, "--job", json.dumps(job)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # The voices are found by a short relative path from here.
            cwd=voice_folder().parents[2],
        )
        with process:
            for _ in process.stdout:
                with lock:
                    progress.update()
            errors = process.stderr.read()
        if process.returncode != 0:
            raise RuntimeError(
                f"Making {output_folder / shard.folder} failed: "
                f"{errors.strip()[-2000:]}"
            )
        _put_in_place(Path(job["folder"]), shard, output_folder)

    _clear_leftovers(output_folder)
    with (
        tempfile.TemporaryDirectory(
            dir=output_folder, prefix=WORKSHOP
        ) as workshop,
        progress,
        ThreadPoolExecutor(n_processors()) as pool,
    ):
        for _ in pool.map(make, shards, [workshop] * len(shards)):
            pass


def _clear_leftovers(output_folder):
    """Remove what killed runs left behind, and no running one's work."""
    an_hour_ago = time.time() - 3600
    for path in output_folder.glob(f"{WORKSHOP}*"):
        if path.stat().st_mtime < an_hour_ago:
            shutil.rmtree(path, ignore_errors=True)


def _put_in_place(folder, shard, output_folder):
    """Move a finished shard where it belongs, in one step."""
    os.chmod(folder, 0o755)
    target = output_folder / shard.folder
    target.parent.mkdir(exist_ok=True)
    if not _is_whole(shard, output_folder):
        shutil.rmtree(target, ignore_errors=True)
    try:
        os.replace(folder, target)
    except OSError:
        # Another run on the same folder was faster, with the same bytes.
        if not _is_whole(shard, output_folder):
            raise


def n_processors():
    """Return how many processors (int) this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_job(job):
    """Make one shard in this process; print a line for every clip."""
    settings = Settings(**job["settings"])
    shards = {shard.folder: shard for shard in plan_corpus(settings)}
    make_shard(shards[job["shard"]], settings, Path(job["folder"]))


def make_shard(shard, settings, folder):
    """Synthesize the clips of a shard into a folder.

    Arguments
    ---------
    shard : Shard
        What to say, and who says it.
    settings : Settings
        The seed is taken from here.
    folder : Path
        Where the FLAC files go.
    """
    synthesizer = Synthesizer()
    rng = _generator(settings, shard.folder)
    babble = [
        synthesizer.say(sentence, draw_speaker("", voice, rng))
        for sentence in BABBLE
        for voice in rng.choice(shard.voices, 2)
    ]
    for clip in shard.clips:
        rng = _generator(settings, shard.split, clip.number)
        word = say_word(synthesizer, clip, rng)
        audio = make_clip(word, babble, rng)
        write_flac(folder / Path(shard.path(clip)).name, audio)
        print(flush=True)


# ---------------------------------------------------------------------------
# Speech
# ---------------------------------------------------------------------------


# ---------------------------------------------------------------------------
# Everything around the speech
# ---------------------------------------------------------------------------


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Makes the synthetic spoken-command corpus.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("output_folder", help="where the corpus goes")
    for name, default, what in (
        ("n-unlabelled", 4000, "clips without label"),
        ("n-train-per-word", 20, "training clips of each word"),
        ("n-valid-per-word", 25, "validation clips of each word"),
        ("n-test-per-word", 50, "test clips of each word"),
        ("seed", 0, "another seed gives another corpus"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare_synthetic_commands(**vars(parser.parse_args()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        _run_job(json.loads(sys.argv[2]))
    else:
        main()
