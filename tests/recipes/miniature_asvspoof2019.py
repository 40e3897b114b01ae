"""A miniature of ASVspoof 2019 LA in its official layout and naming.

Real speech is a few harmonics with a tremble; each attack lacks it.
"""

import numpy as np
import soundfile

RATE = 16000
# Letter of the part, its speakers, its attacks.
PARTS = {
    "train": ("T", ("LA_0079", "LA_0080"), ("A01", "A04"), "trn"),
    "dev": ("D", ("LA_0069", "LA_0070"), ("A02", "A06"), "trl"),
    "eval": ("E", ("LA_0001", "LA_0002"), ("A07", "A19"), "trl"),
}


def make(folder, seconds=0.4):
    """Write `LA` into a folder; gives the folder."""
    for part, (letter, speakers, attacks, kind) in PARTS.items():
        lines, number = [], 1000000
        for pitch, speaker in enumerate(speakers):
            for attack in ("-", "-", *attacks, *attacks):
                number += 7
                name = f"LA_{letter}_{number}"
                key = "bonafide" if attack == "-" else "spoof"
                audio = folder / "LA" / f"ASVspoof2019_LA_{part}" / "flac"
                audio.mkdir(parents=True, exist_ok=True)
                clip = _clip(120 + 60 * pitch, key, number, seconds)
                soundfile.write(audio / f"{name}.flac", clip, RATE)
                lines.append(f"{speaker} {name} - {attack} {key}\n")
        protocols = folder / "LA" / "ASVspoof2019_LA_cm_protocols"
        protocols.mkdir(exist_ok=True)
        name = f"ASVspoof2019.LA.cm.{part}.{kind}.txt"
        (protocols / name).write_text("".join(lines))
    return folder


def _clip(pitch, key, seed, seconds):
    time = np.arange(int(seconds * RATE)) / RATE
    tremble = 0.5 * np.sin(2 * np.pi * 9 * time) if key == "bonafide" else 0
    noise = np.random.default_rng(seed).standard_normal(time.size)
    tones = [
        np.sin(2 * np.pi * pitch * k * time + k * tremble) / k
        for k in range(1, 5)
    ]
    return 0.2 * sum(tones) + 0.005 * noise
