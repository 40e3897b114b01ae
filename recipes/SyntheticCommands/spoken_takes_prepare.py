#!/usr/bin/env python3
"""Spoken takes: words of many languages, each in two voices, to pretrain on.

eSpeak NG says a word twice, with another voice, pitch, rate and vocal tract, in
another room with another noise. A clip is 2 s long, and each half is one take;
the column `takes` of the manifest says so. With the objective
`contrastive_mspm`, the encoder learns what the two takes have in common. There
are no labels. The words of Speech Commands and of spoken-digit sets are left
out. Flite, whose voices were recorded, can say some of the English words.

To make the corpus from the command line:
> pip install espeakng-loader wordfreq
> python spoken_takes_prepare.py OUTPUT_FOLDER

With Flite, a package of Debian and others:
> apt install flite
> python spoken_takes_prepare.py OUTPUT_FOLDER --flite-fraction 0.83
"""

import argparse
import csv
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from espeak import (
    ACCENTS,
    Clip,
    Synthesizer,
    draw_speaker,
    say_word,
    voice_folder,
    voice_variants,
)
from sounds import (
    CLIP_SAMPLES,
    SAMPLE_RATE,
    make_clip,
    resample,
    trim,
    write_flac,
)
from synthetic_commands_prepare import as_csv, claim, write_whole
from tqdm import tqdm
from workers import BABBLE, n_processors

logger = logging.getLogger(__name__)

# Fractions of the languages, by their names in eSpeak NG and wordfreq.
LANGUAGES = {
    **{"en": 60, "de": 10, "es": 4, "fr": 4, "it": 3, "pt": 3, "nl": 3},
    **{"pl": 3, "sv": 2, "tr": 2, "ru": 2, "fi": 1, "cs": 1, "hu": 1, "id": 1},
}
# The labels of Speech Commands and of sets of spoken digits.
NOT_WORDS = frozenset(
    "yes no up down left right on off stop go zero one two three four five six "
    "seven eight nine bed bird cat dog happy house marvin sheila tree wow "
    "backward forward follow learn visual".split()
)
WORDS_PER_LANGUAGE = 5000
# Longer words do not fit into a second.
LONGEST_WORD = 12
CLIPS_PER_SHARD = 250
SCRIPT = os.path.abspath(__file__)
COLUMNS = ("path", "takes", "language", "word", "voices")
# One of the settings of a corpus; raise it whenever the audio changes.
GENERATOR_VERSION = 2
# Voices differ more, and are less noisy, than in the corpus of commands: two
# takes should have only the word in common, and it should be audible.
VARIED = {"pitch": (10, 90), "rate": (100, 220)}
SNR_DB = (10.0, 60.0)
# Fraction of Flite's takes in the clips that have at least one.
FLITE_TAKES = 0.6
FLITE_VOICES = ("kal16", "awb", "rms", "slt")


def prepare_spoken_takes(
    output_folder,
    n_clips=16000,
    words=None,
    flite_fraction=0.0,
    seed=0,
    skip_prep=False,
):
    """Make the corpus of spoken takes, or reuse an existing one.

    The function writes 16-bit mono FLAC clips of two seconds at 16 kHz below
    `output_folder`/audio, and `output_folder`/manifest.csv with the columns
    path (relative), takes (2), language, word and voices. The same arguments
    give the same words and voices. An interrupted corpus is completed.

    Arguments
    ---------
    output_folder : str or Path
        Folder for the corpus. It must be new, or contain a corpus made with
        the same arguments.
    n_clips : int
        Number of clips, rounded up to a multiple of 250.
    words : str or Path, optional
        UTF-8 file with a language of eSpeak NG and a word in each line, such
        as "de Haus". All lines are drawn equally often. By default, the words
        are the 5,000 most frequent ones of fifteen languages in the package
        `wordfreq`, and three fifths of the clips are English.
    flite_fraction : float
        Fraction of the clips, 0 to 1, in which Flite says at least one take;
        their words are English. The other take is by another voice of Flite or
        by eSpeak NG.
    seed : int
        Another seed gives other words and voices.
    skip_prep : bool
        True: make nothing, and only return the path of the manifest.

    Returns
    -------
    manifest : str
        Absolute path of the CSV.

    Raises
    ------
    ValueError
        If `output_folder` holds a corpus made with other arguments, a line of
        `words` is not a language and a word, `flite_fraction` is not in 0 to 1,
        or there is no English word for Flite.
    FileNotFoundError
        If Flite is needed, and its program or a voice is missing.
    ModuleNotFoundError
        If `espeakng-loader`, or `wordfreq` where it is needed, is missing.
    RuntimeError
        If eSpeak NG does not know a language, or how to say the words.

    Example
    -------
    >>> prepare_spoken_takes("takes", skip_prep=True).endswith("manifest.csv")
    True
    """
    output_folder = Path(output_folder).absolute()
    manifest = output_folder / "manifest.csv"
    if skip_prep:
        return str(manifest)
    if words is not None:
        words = str(Path(words).absolute())
    languages = _languages(words)
    if not 0 <= flite_fraction <= 1:
        raise ValueError(
            f"flite_fraction must be from 0 to 1, got {flite_fraction}"
        )
    if flite_fraction:
        Flite()
        if not _english(languages):
            raise ValueError(
                f"{words}: Flite says English words, and no line begins with en"
            )
    settings = {
        "n_clips": n_clips,
        "words": hashlib.sha1(repr(languages).encode()).hexdigest(),
        "flite_fraction": flite_fraction,
        "seed": seed,
        "version": GENERATOR_VERSION,
    }
    claim(output_folder, settings)
    shards = [
        output_folder / "audio" / f"{number:04d}"
        for number in range(-(-n_clips // CLIPS_PER_SHARD))
    ]
    missing = [shard for shard in shards if not shard.is_dir()]
    _make(missing, words, flite_fraction, seed)
    rows = []
    for shard in shards:
        with open(shard / "takes.csv", encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file)
    write_whole(manifest, as_csv(COLUMNS, rows))
    logger.info(f"{len(rows)} clips of two takes are in {output_folder}")
    return str(manifest)


def _frequent_words():
    """Return (fraction, [(language, word)]) of each language."""
    try:
        from wordfreq import top_n_list
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The words come from the package wordfreq: run `pip install "
            "wordfreq`, or name a file of your own with --words"
        ) from error
    return [
        (
            share,
            [
                (language, word)
                for word in top_n_list(language, WORDS_PER_LANGUAGE)
                if word.isalpha()
                and 1 < len(word) <= LONGEST_WORD
                and word not in NOT_WORDS
            ],
        )
        for language, share in LANGUAGES.items()
    ]


def _words_of(path):
    lines = Path(path).read_text("utf-8").splitlines()
    pairs = [tuple(line.split(maxsplit=1)) for line in lines]
    bad = [n for n, pair in enumerate(pairs, 1) if len(pair) == 1]
    pairs = [pair for pair in pairs if pair]
    if bad or not pairs:
        raise ValueError(
            f"{path}: line {bad[0] if bad else 1} is not a language and a "
            'word, such as "de Haus"'
        )
    return [(1, pairs)]


def _languages(words):
    return _frequent_words() if words is None else _words_of(words)


def _english(languages):
    """Return all words (list of str) that are English."""
    return [w for _, pairs in languages for lang, w in pairs if lang == "en"]


class Flite:
    """Run the program of Flite, an English synthesizer with recorded voices.

    Raises
    ------
    FileNotFoundError
        If the program, or one of `FLITE_VOICES`, is missing.
    """

    # Range of pitch in Hz; the voice rms keeps its own pitch.
    _PITCH = (75.0, 260.0)
    # Factors on the duration, and on all frequencies.
    _STRETCH, _TRACT = (0.75, 1.35), (0.85, 1.2)

    def __init__(self):
        self._program = shutil.which("flite")
        voices = ""
        if self._program is not None:
            command = [self._program, "-lv"]
            done = subprocess.run(command, capture_output=True, text=True)
            voices = done.stdout
        missing = [v for v in FLITE_VOICES if v not in voices.split()]
        if missing:
            raise FileNotFoundError(
                f"flite, with the voices {', '.join(missing)}: `apt install "
                "flite`, or leave out --flite-fraction"
            )

    def say(self, word, voice, rng):
        """Say a word, with random pitch, rate and vocal tract.

        Arguments
        ---------
        word : str
            An English word.
        voice : str
            One of `FLITE_VOICES`.
        rng : numpy.random.Generator
            Draws pitch, rate and vocal tract.

        Returns
        -------
        audio : numpy.ndarray
            (samples,) float64 at 16 kHz, shorter than a clip, with peak 1.

        Raises
        ------
        IndexError
            If the voice has no sound for the word.
        """
        tract = rng.uniform(*self._TRACT)
        stretch = tract * rng.uniform(*self._STRETCH)
        pitch, lively = rng.uniform(*self._PITCH), rng.uniform(5, 30)
        while True:
            audio = self._run(
                *(word, voice),
                duration_stretch=stretch,
                int_f0_target_mean=pitch,
                int_f0_target_stddev=lively,
            )
            audio = resample(trim(audio, SAMPLE_RATE), SAMPLE_RATE * tract)
            if len(audio) < 0.95 * CLIP_SAMPLES:
                return audio / np.abs(audio).max()
            stretch *= 0.8

    def _run(self, word, voice, **features):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "word.wav")
            flags = [f"{name}={value:.2f}" for name, value in features.items()]
            subprocess.run(
                [
                    *(self._program, "-voice", voice, "-t", word, "-o", path),
                    *(part for flag in flags for part in ("--setf", flag)),
                ],
                check=True,
                capture_output=True,
            )
            audio, _ = soundfile.read(path)
        if not np.abs(audio).max(initial=0.0) > 1e-3:
            raise IndexError(f"{voice} has no sound for {word!r}")
        return audio


def _make(shards, words, flite_fraction, seed):
    """Make shards on all processors, each in a new process.

    The audio of eSpeak NG depends slightly on what the same process has said
    before. A subprocess, unlike multiprocessing, does not import the caller's
    main script again.
    """

    def make(shard):
        job = {
            "words": words,
            "flite_fraction": flite_fraction,
            "seed": seed,
            "shard": str(shard),
        }
        process = subprocess.run(
            [sys.executable, SCRIPT, "--job", json.dumps(job)],
            # From here, a short relative path leads to the voices.
            cwd=voice_folder().parents[2],
            capture_output=True,
            text=True,
        )
        if process.returncode != 0:
            raise RuntimeError(
                f"Making {shard} failed: {process.stderr.strip()[-2000:]}"
            )

    with ThreadPoolExecutor(n_processors()) as pool:
        made = pool.map(make, shards)
        for _ in tqdm(made, "Speaking", total=len(shards), unit="shard"):
            pass


def _make_shard(words, flite_fraction, seed, shard):
    """Synthesize the clips of a shard; it appears when it is complete."""
    languages, shard = _languages(words), Path(shard)
    synthesizer = Synthesizer()
    flite = Flite() if flite_fraction else None
    english = _english(languages)
    rng = np.random.default_rng([seed, int(shard.name)])
    variants = voice_variants()
    shares = np.array([share for share, _ in languages])
    babble = [
        synthesizer.say(
            text, draw_speaker("", f"en+{rng.choice(variants)}", rng)
        )
        for text in BABBLE
        for _ in range(2)
    ]
    folder = shard.with_name(f".unfinished-{shard.name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows, silent = [], 0
    while len(rows) < CLIPS_PER_SHARD:
        by_flite = np.zeros(2, bool)
        if flite_fraction and rng.random() < flite_fraction:
            by_flite = rng.random(2) < FLITE_TAKES
            if not by_flite.any():
                by_flite[rng.integers(2)] = True
            language, word = "en", english[rng.integers(len(english))]
        else:
            share = rng.choice(len(shares), p=shares / shares.sum())
            _, pairs = languages[share]
            language, word = pairs[rng.integers(len(pairs))]
        speakers = []
        for variant in rng.choice(variants, 2, replace=False):
            accent = rng.choice(ACCENTS) if language == "en" else language
            voice = f"{accent}+{variant}"
            speakers.append(draw_speaker("", voice, rng, **VARIED))
        names = [speaker.voice for speaker in speakers]
        if by_flite.any():
            people = rng.choice(FLITE_VOICES, 2, replace=False)
            names = np.where(by_flite, np.char.add("flite-", people), names)
        try:
            takes = [
                flite.say(word, people[number], rng)
                if by_flite[number]
                else say_word(
                    synthesizer, Clip(len(rows), word, speakers[number]), rng
                )
                for number in (0, 1)
            ]
        except IndexError:  # a voice that has no sound for the word
            silent += 1
            if silent > CLIPS_PER_SHARD:
                raise RuntimeError(
                    f"no voice has a sound for words such as {word!r}"
                ) from None
            continue
        audio = np.concatenate(
            [make_clip(take, babble, rng, SNR_DB) for take in takes]
        )
        name = f"{len(rows):03d}.flac"
        write_flac(folder / name, audio)
        rows.append(
            {
                "path": f"audio/{shard.name}/{name}",
                "takes": 2,
                "language": language,
                "word": word,
                "voices": ";".join(names),
            }
        )
    (folder / "takes.csv").write_text(as_csv(COLUMNS, rows), "utf-8")
    folder.rename(shard)


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Makes clips of a word in two voices, to pretrain on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("output_folder", help="where the corpus goes")
    parser.add_argument(
        "--n-clips", type=int, default=16000, help="clips of two seconds"
    )
    parser.add_argument(
        "--words",
        help="file with a language of eSpeak NG and a word in each line; "
        "else frequent ones of the package wordfreq",
    )
    parser.add_argument(
        "--flite-fraction",
        type=float,
        default=0.0,
        help="fraction of the clips that are an English word of Flite's, in "
        "one take or both; needs the program flite",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed, another corpus"
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare_spoken_takes(**vars(parser.parse_args()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        _make_shard(**json.loads(sys.argv[2]))
    else:
        main()
