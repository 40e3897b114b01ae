"""eSpeak NG by its library: voices, speakers, and words as they say them."""

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sounds import CLIP_SAMPLES, resample, trim

ACCENTS = (
    *("en", "en-us", "en-us-nyc", "en-029", "en-gb-scotland"),
    *("en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
)

# Sound effects and monotone robots rather than voices.
NOT_VOICES = re.compile("Demonic|UniRobot|anika.*|robosoft.*|croak|fast")

# How eSpeak NG speaks: 0 to 99, and words a minute.
PITCH, RATE = (25, 75), (130, 200)


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


class Synthesizer:
    """eSpeak NG through its C interface, one for each process.

    Raises
    ------
    RuntimeError
        If the library does not start or does not know a voice.

    Example
    -------
    >>> synthesizer = Synthesizer()
    >>> speaker = Speaker("f2", "en-us+f2", pitch=50, rate=160, tract=1.0)
    >>> 0.2 < len(synthesizer.say("stop", speaker)) / SAMPLE_RATE < 0.7
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


def say_word(synthesizer, clip, rng):
    """Say the word of a clip, never twice in quite the same way.

    Arguments
    ---------
    synthesizer : Synthesizer
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
        audio = synthesizer.say(text, varied, pitch_range)
        if len(audio) < 0.95 * CLIP_SAMPLES:
            return audio
        rate *= 1.2
