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
import ctypes
import importlib.util
import io
import json
import logging
import os
import re
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
import soundfile
from tqdm import tqdm

logger = logging.getLogger(__name__)

WORDS = (
    *("yes", "no", "up", "down", "left"),
    *("right", "on", "off", "stop", "go"),
)
SAMPLE_RATE = 16000
CLIP_SAMPLES = SAMPLE_RATE

ACCENTS = (
    *("en", "en-us", "en-us-nyc", "en-029", "en-gb-scotland"),
    *("en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
)
# Sound effects and monotone robots rather than voices.
NOT_VOICES = re.compile("Demonic|UniRobot|anika.*|robosoft.*|croak|fast")
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
# How eSpeak NG speaks: 0 to 99, and words a minute.
PITCH, RATE = (25, 75), (130, 200)
NOISES = ("white", "pink", "brown", "babble", "hum")

SNR_DB = (5.0, 25.0)
RT60_SECONDS = (0.1, 0.5)
DIRECT_TO_REVERBERANT_DB = (3.0, 18.0)
TILT_DB_PER_OCTAVE = (-3.0, 3.0)
PEAK_DB = (-20.0, -1.0)

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
class Speaker:
    """An eSpeak NG voice with a pitch, a rate and a vocal tract."""

    name: str
    voice: str
    pitch: float  # 0 to 99, eSpeak's scale
    rate: float  # words per minute
    tract: float  # all frequencies are multiplied by this


@dataclass(frozen=True)
class Clip:
    """One utterance, known by its number within the split."""

    number: int
    word: str
    speaker: Speaker


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


def write_flac(path, audio):
    """Write 16-bit FLAC.

    Arguments
    ---------
    path : Path
        Where to.
    audio : numpy.ndarray
        (samples,) at 16 kHz, within -1 and 1.
    """
    # Through memory: soundfile waits for the disk after every file.
    flac = io.BytesIO()
    soundfile.write(flac, audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    path.write_bytes(flac.getvalue())


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


def voice_folder():
    """Return where eSpeak NG has the voice variants (Path), a file each."""
    import espeakng_loader

    return Path(espeakng_loader.get_data_path(), "voices", "!v")


def voice_variants():
    """Return names (list of str) of the variants that are voices, in order."""
    names = sorted(path.name for path in voice_folder().iterdir())
    return [name for name in names if not NOT_VOICES.fullmatch(name)]


def draw_speaker(name, voice, rng, pitch=PITCH, rate=RATE):
    """Draw how somebody speaks.

    Arguments
    ---------
    name : str
        What the speaker is called.
    voice : str
        Voice of eSpeak NG, such as "en-us+f2".
    rng : numpy.random.Generator
        Draws pitch, rate and vocal tract.
    pitch, rate : tuple of float
        The least and the greatest, in eSpeak NG's units.

    Returns
    -------
    Speaker
    """
    return Speaker(
        name=name,
        voice=voice,
        pitch=rng.uniform(*pitch),
        rate=rng.uniform(*rate),
        tract=rng.uniform(0.93, 1.08),
    )


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
    synthesiser = Synthesiser()
    rng = _generator(settings, shard.folder)
    babble = [
        synthesiser.say(sentence, draw_speaker("", voice, rng))
        for sentence in BABBLE
        for voice in rng.choice(shard.voices, 2)
    ]
    for clip in shard.clips:
        rng = _generator(settings, shard.split, clip.number)
        word = say_word(synthesiser, clip, rng)
        audio = make_clip(word, babble, rng)
        write_flac(folder / Path(shard.path(clip)).name, audio)
        print(flush=True)


# ---------------------------------------------------------------------------
# Speech
# ---------------------------------------------------------------------------


class Synthesiser:
    """eSpeak NG through its C interface, one for each process.

    Raises
    ------
    RuntimeError
        If the library does not start or does not know a voice.

    Example
    -------
    >>> synthesiser = Synthesiser()
    >>> speaker = Speaker("f2", "en-us+f2", pitch=50, rate=160, tract=1.0)
    >>> 0.2 < len(synthesiser.say("stop", speaker)) / SAMPLE_RATE < 0.7
    True
    """

    # Constants of speak_lib.h.
    _SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
    _RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
    # eSpeak NG cuts the path of its data off at 160 characters.
    _LONGEST_PATH = 150

    def __init__(self):
        import espeakng_loader

        self._library = espeakng_loader.load_library()
        home = espeakng_loader.get_data_path()
        if len(home) > self._LONGEST_PATH:
            home = os.path.relpath(home)
        self._sample_rate = self._library.espeak_Initialize(
            self._SYNCHRONOUS, 0, os.fsencode(home), self._DONT_EXIT
        )
        if self._sample_rate <= 0:
            raise RuntimeError(
                f"eSpeak NG cannot read its voices in {home}: reinstall "
                "espeakng-loader, in a folder with a shorter path"
            )
        # Otherwise eSpeak NG seeds its noises with the time of day.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._pieces = []
        callback = ctypes.CFUNCTYPE(
            ctypes.c_int,
            ctypes.POINTER(ctypes.c_short),
            ctypes.c_int,
            ctypes.c_void_p,
        )
        # Kept, or Python would free what the library still calls.
        self._callback = callback(self._receive)

    def _receive(self, samples, n_samples, events):
        if samples and n_samples > 0:
            array = np.ctypeslib.as_array(samples, (n_samples,))
            self._pieces.append(array.copy())
        return 0

    def say(self, text, speaker, pitch_range=50):
        """Speak a text.

        Arguments
        ---------
        text : str
            What to say.
        speaker : Speaker
            Who says it.
        pitch_range : float
            Liveliness, 0 (monotone) to 100.

        Returns
        -------
        audio : numpy.ndarray
            (samples,) float64 at 16 kHz, without silence around it, with
            peak 1.
        """
        library = self._library
        if library.espeak_SetVoiceByName(speaker.voice.encode()) != 0:
            raise RuntimeError(f"eSpeak NG has no voice {speaker.voice}")
        for parameter, value in (
            (self._RATE, speaker.rate),
            (self._PITCH, speaker.pitch),
            (self._RANGE, pitch_range),
            # Half the default: some voices clip at their full volume.
            (self._VOLUME, 50),
        ):
            library.espeak_SetParameter(parameter, round(value), 0)
        self._pieces.clear()
        library.espeak_SetSynthCallback(self._callback)
        encoded = text.encode()
        library.espeak_Synth(
            *(encoded, len(encoded) + 1, 0, 1, 0, self._UTF8, None, None)
        )
        if not self._pieces:
            raise RuntimeError(f"eSpeak NG said nothing for {text!r}")
        audio = np.concatenate(self._pieces).astype(np.float64)
        rate = self._sample_rate * speaker.tract
        audio = resample(trim(audio, self._sample_rate), rate)
        return audio / np.abs(audio).max()


def say_word(synthesiser, clip, rng):
    """Say the word of a clip, never twice in quite the same way.

    Arguments
    ---------
    synthesiser : Synthesiser
        The voice.
    clip : Clip
        The word and its speaker.
    rng : numpy.random.Generator
        Source of the variation.

    Returns
    -------
    audio : numpy.ndarray
        (samples,) at 16 kHz, shorter than a clip.
    """
    speaker = clip.speaker
    text = clip.word + rng.choice(["", ".", "!", "?", ","])
    pitch = np.clip(speaker.pitch + rng.normal(0, 5), 0, 99)
    rate = speaker.rate * rng.uniform(0.9, 1.1)
    pitch_range = rng.uniform(20, 80)
    while True:
        varied = Speaker(
            *(speaker.name, speaker.voice, pitch, rate, speaker.tract)
        )
        audio = synthesiser.say(text, varied, pitch_range)
        if len(audio) < 0.95 * CLIP_SAMPLES:
            return audio
        rate *= 1.2


def trim(audio, sample_rate, threshold_db=-50.0, margin=0.01):
    """Cut the silence before and after, and fade the cuts.

    Arguments
    ---------
    audio : numpy.ndarray
        (samples,)
    sample_rate : int
        In Hz.
    threshold_db : float
        What is quieter than this, relative to the peak, is silence.
    margin : float
        Seconds that are left of the silence at each end.

    Returns
    -------
    audio : numpy.ndarray
        (fewer samples,)

    Example
    -------
    >>> len(trim(np.r_[np.zeros(900), np.ones(50), np.zeros(900)], 1000))
    70
    """
    level = np.abs(audio)
    loud = np.flatnonzero(level > level.max() * 10 ** (threshold_db / 20))
    margin = round(margin * sample_rate)
    audio = np.pad(audio, margin)[loud[0] : loud[-1] + 1 + 2 * margin].copy()
    ramp = np.linspace(0, 1, margin, endpoint=False)
    audio[:margin] *= ramp
    audio[-margin:] *= ramp[::-1]
    return audio


def resample(audio, sample_rate):
    """Bring audio that is silent at both ends to 16 kHz.

    Arguments
    ---------
    audio : numpy.ndarray
        (samples,)
    sample_rate : float
        Of `audio` in Hz; where it is lower the uppermost part stays empty.

    Returns
    -------
    audio : numpy.ndarray
        (samples * 16000 / sample_rate,)

    Example
    -------
    >>> t = np.arange(2205) / 22050
    >>> tone = np.hanning(2205) * np.sin(2 * np.pi * 440 * t)
    >>> t = np.arange(1600) / 16000
    >>> same = np.interp(t, np.arange(2205) / 22050, tone)
    >>> bool(np.abs(resample(tone, 22050) - same).max() < 0.01)
    True
    """
    n_samples = round(len(audio) * SAMPLE_RATE / sample_rate)
    spectrum = np.fft.rfft(audio)[: n_samples // 2 + 1]
    return np.fft.irfft(spectrum, n_samples) * (n_samples / len(audio))


# ---------------------------------------------------------------------------
# Everything around the speech
# ---------------------------------------------------------------------------


def make_clip(word, babble, rng, snr_db=SNR_DB):
    """Put a word into a second of sound.

    Arguments
    ---------
    word : numpy.ndarray
        (samples,) at 16 kHz, shorter than a clip.
    babble : list of numpy.ndarray
        Speech at 16 kHz for the background, each longer than a clip.
    rng : numpy.random.Generator
        Source of all that is random.
    snr_db : tuple of float
        The least and the greatest level of the word over the noise.

    Returns
    -------
    audio : numpy.ndarray
        (16000,) within -1 and 1.
    """
    start = rng.integers(CLIP_SAMPLES - len(word) + 1)
    speech = np.zeros(CLIP_SAMPLES)
    speech[start : start + len(word)] = word
    speech = reverberate(speech, rng)
    noise = make_noise(rng.choice(NOISES), babble, rng)
    # The power of the word itself: silence around it does not count.
    power = np.mean(speech[start : start + len(word)] ** 2)
    noise_power = power / 10 ** (rng.uniform(*snr_db) / 10)
    noise *= np.sqrt(noise_power / np.mean(noise**2))
    audio = tilt(speech + noise, rng.uniform(*TILT_DB_PER_OCTAVE))
    peak = 10 ** (rng.uniform(*PEAK_DB) / 20)
    return audio * (peak / np.abs(audio).max())


def reverberate(audio, rng):
    """Play audio in a random room.

    The impulse response is the direct sound and exponentially decaying
    noise (Polack's model); the part that outlasts the clip is cut.

    Arguments
    ---------
    audio : numpy.ndarray
        (samples,) at 16 kHz.
    rng : numpy.random.Generator
        Draws reverberation time, distance and response.

    Returns
    -------
    audio : numpy.ndarray
        (samples,)
    """
    rt60 = rng.uniform(*RT60_SECONDS)
    seconds = np.arange(round(rt60 * SAMPLE_RATE)) / SAMPLE_RATE
    decay = 10 ** (-3 * seconds / rt60)
    response = rng.standard_normal(len(seconds)) * decay
    response[seconds < 0.002] = 0.0
    ratio = 10 ** (rng.uniform(*DIRECT_TO_REVERBERANT_DB) / 10)
    response /= np.sqrt(ratio * np.sum(response**2))
    response[0] = 1.0
    n_fft = 1 << (len(audio) + len(response) - 1).bit_length()
    spectrum = np.fft.rfft(audio, n_fft) * np.fft.rfft(response, n_fft)
    return np.fft.irfft(spectrum, n_fft)[: len(audio)]


def make_noise(kind, babble, rng):
    """Make a second of background noise.

    Arguments
    ---------
    kind : str
        "white", "pink", "brown" (power falling by 0, 3, 6 dB an octave),
        "babble" (several people talking) or "hum" (of the mains).
    babble : list of numpy.ndarray
        Speech at 16 kHz, each longer than a clip.
    rng : numpy.random.Generator
        Source of the noise.

    Returns
    -------
    noise : numpy.ndarray
        (16000,) of any power.
    """
    if kind == "babble":
        noise = np.zeros(CLIP_SAMPLES)
        for i in rng.choice(len(babble), rng.integers(4, 8), replace=False):
            start = rng.integers(len(babble[i]) - CLIP_SAMPLES + 1)
            noise += babble[i][start : start + CLIP_SAMPLES]
        return noise
    noise = rng.standard_normal(CLIP_SAMPLES)
    if kind == "hum":
        phase = 2 * np.pi * rng.choice([50.0, 60.0]) / SAMPLE_RATE
        phase = phase * np.arange(CLIP_SAMPLES)
        for harmonic in range(1, 16):
            amplitude = rng.exponential() * 10 / harmonic
            shift = rng.uniform(0, 2 * np.pi)
            noise += amplitude * np.sin(harmonic * phase + shift)
        return noise
    return tilt(noise, {"white": 0.0, "pink": -3.0, "brown": -6.0}[kind])


def tilt(audio, db_per_octave):
    """Turn the spectrum about 1 kHz; level below 60 Hz.

    Arguments
    ---------
    audio : numpy.ndarray
        (samples,) at 16 kHz.
    db_per_octave : float
        Positive: brighter.

    Returns
    -------
    audio : numpy.ndarray
        (samples,)
    """
    frequency = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
    octaves = np.log2(np.maximum(frequency, 60.0) / 1000)
    gain = 10 ** (db_per_octave * octaves / 20)
    return np.fft.irfft(np.fft.rfft(audio) * gain, len(audio))


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
