"""A miniature of DESED: recorded, synthetic and public sets, merged."""

import csv

import numpy as np
import soundfile

CLASSES = ("Cat", "Dog", "Speech")
PITCH = dict(zip(CLASSES, (300, 900, 2500), strict=True))
STRONG = ("filename", "onset", "offset", "event_label")


def make(folder, seconds=1.0):
    """Write the sets into a folder; gives the folder."""
    rng = np.random.default_rng(0)
    synthetic = "dcase_synth"
    sets = [
        (synthetic, "train/synthetic21_train", "soundscapes", 8),
        (synthetic, "validation/synthetic21_validation", "soundscapes", 5),
        ("dataset", "train", "strong_label_real", 2),
        ("dataset", "validation", "validation", 5),
        ("dataset", "eval", "public", 4),
    ]
    for root, place, name, count in sets:
        audio = folder / root / "audio" / place / name
        # The baseline resamples into folders of this ending.
        audio = audio.with_name(f"{name}_16k") if root == synthetic else audio
        table = "audioset_strong" if name == "strong_label_real" else name
        path = folder / root / "metadata" / place / f"{table}.tsv"
        lines = [STRONG]
        for number in range(count):
            file = f"{number}.wav"
            events = []
            if number != count - 1:
                label = CLASSES[number % len(CLASSES)]
                events = [(0.2, 0.5 + 0.04 * number, label)]
            write_clip(audio / file, seconds, events, rng)
            lines += [(file, *event) for event in events] or [
                (file, "", "", "")
            ]
        write_table(path, lines)
    weak = [("filename", "event_labels")]
    for number, labels in enumerate([("Cat", "Dog"), ("Speech",), ("Dog",)]):
        file = f"Y{number:011d}_30.000_40.000.wav"
        events = [(0.1, 0.9, label) for label in labels]
        audio = folder / "dataset/audio/train/weak" / file
        # Videos vanish.
        if number < 2:
            write_clip(audio, seconds, events, rng)
        weak.append((file, ",".join(labels)))
    write_table(folder / "dataset/metadata/train/weak.tsv", weak)
    unlabeled = folder / "dataset/audio/train/unlabel_in_domain"
    write_clip(unlabeled / "a.wav", seconds, [], rng)
    return folder


def write_clip(path, seconds, events, rng):
    """Write quiet noise with a tone for each event."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * 16000)) / 16000
    wav = 0.01 * rng.standard_normal(len(time))
    for onset, offset, label in events:
        on = (time >= onset) & (time < offset)
        wav += 0.2 * on * np.sin(2 * np.pi * PITCH[label] * time)
    soundfile.write(path, wav, 16000)


def write_table(path, lines):
    """Write a TSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, "excel-tab").writerows(lines)
