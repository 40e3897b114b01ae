"""Soundscapes of synthetic clips: tones, chirps and bursts of noise."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "Soundscapes" / "soundscapes_prepare.py"
LABELS = ("burst", "chirp", "tone")


def load_script():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_clips(folder):
    """Write labeled clips with silences, and backgrounds; give the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows, beds = [], []
    for part in ("train", "valid", "test"):
        for number, label in enumerate(LABELS * 2):
            time = np.arange(8000) / 16000
            pitch = rng.uniform(400, 700)
            wav = {
                "tone": np.sin(2 * np.pi * pitch * time),
                "chirp": np.sin(2 * np.pi * pitch * time * (1 + 4 * time)),
                "burst": rng.uniform(-1, 1, 8000),
            }[label]
            silence = np.zeros(4000)
            wav = np.concatenate([silence, 0.3 * wav, silence])
            name = f"{part}_{label}_{number}.wav"
            soundfile.write(folder / name, wav, 16000)
            rows.append((name, label, part))
        name = f"{part}_background.wav"
        noise = 0.01 * rng.standard_normal(24000)
        soundfile.write(folder / name, noise, 16000)
        beds.append((name, part))
    for name, head, lines in (
        ("clips.csv", ("path", "label", "split"), rows),
        ("backgrounds.csv", ("path", "split"), beds),
    ):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows([head, *lines])
    return folder / "clips.csv", folder / "backgrounds.csv"


def make(folder):
    """Write soundscapes of four seconds; gives the folder."""
    clips, backgrounds = make_clips(folder / "clips")
    load_script().make_soundscapes(
        clips,
        folder,
        backgrounds,
        counts=(24, 8, 8),
        seconds=4.0,
        events_per_minute=45.0,
        snr=(15.0, 25.0),
    )
    return folder
