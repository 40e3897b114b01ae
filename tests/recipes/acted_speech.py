"""Clips for the miniatures of corpora of acted emotions."""

import numpy as np
import soundfile


def write_clip(path, emotion, speaker, sample_rate, seconds):
    """Write a clip: an emotion has its rhythm, a speaker a pitch (counted)."""
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    rhythm = 1 + np.sin(2 * np.pi * (4 + 6 * emotion) * time)
    voice = np.sin(2 * np.pi * (150 + 10 * speaker) * time)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.2 * rhythm * voice, sample_rate)
