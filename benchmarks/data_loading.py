#!/usr/bin/env python3
"""How fast clips of 10 s are read: from files, and from shards.

> python benchmarks/data_loading.py --manifest clips.csv

All contestants take turns, epoch by epoch, with the same clips in the same
order, from the page cache: what is measured is decoding, not the disk. Reading
alone is given by the processor's time of one core; a loader with one worker,
which also makes batches and hands them over, by the clock.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from machine import describe_machine
from speechbrain.dataio.dataloader import make_dataloader
from tqdm import tqdm

from ssast_lobes.dataio.audio import audio_info, read_audio
from ssast_lobes.dataio.dataset import ClipReader, collate, make_dataset
from ssast_lobes.dataio.scan import scan_audio
from ssast_lobes.dataio.shards import pack
from ssast_lobes.dataio.tables import index_rows, read_manifest
from ssast_lobes.utils.files import write_json

SAMPLE_RATE = 16000
CLIP_SECONDS = 10.0
CROP_SECONDS = 1.28
BATCH_SIZE = 32


def _clips(manifest, n_clips):
    """Waveforms of 10 s: of a manifest, over and over, or of colored noise."""
    length = int(CLIP_SECONDS * SAMPLE_RATE)
    if manifest is None:
        rng = np.random.default_rng(0)
        for _ in range(n_clips):
            # Falls by 6 dB an octave, as speech does: FLAC halves it.
            walk = rng.standard_normal(length).cumsum()
            walk -= np.linspace(walk[0], walk[-1], length)
            yield 0.3 * walk / np.abs(walk).max()
        return
    paths = [row["path"] for row in read_manifest(manifest)]
    paths = [p for p in paths if audio_info(p).seconds >= CLIP_SECONDS]
    if not paths:
        raise SystemExit(f"{manifest}: no clip has {CLIP_SECONDS:g} s")
    for number in range(n_clips):
        path = paths[number % len(paths)]
        yield read_audio(path, SAMPLE_RATE, seconds=CLIP_SECONDS).numpy()


def _sources(folder, manifest, n_clips):
    """Rows of each contestant: the same audio, stored in several ways."""
    table = folder / "clips.csv"
    names = [f"{number}.flac" for number in range(n_clips)]
    for name, clip in zip(names, _clips(manifest, n_clips), strict=True):
        soundfile.write(folder / name, clip, SAMPLE_RATE, subtype="PCM_16")
    table.write_text("\n".join(["path", *names]), encoding="utf-8")
    files = read_manifest(table)
    shards = {
        codec: pack(files, folder / codec, codec, shard_bytes=2**25)
        for codec in ("flac", "int16")
    }
    tables = {
        "FLAC files": table,
        "FLAC shards": shards["flac"].manifest,
        "int16 shards": shards["int16"].manifest,
    }
    found = {}
    for name, path in tables.items():
        rows = scan_audio(read_manifest(path), folder / name).rows
        found[name] = index_rows(rows)
    return found


class Contestant:
    """One way to store clips, read whole or in crops."""

    def __init__(self, rows, crop_seconds):
        self.rows = rows
        self.reader = ClipReader(
            crop_seconds, random_crop=crop_seconds is not None
        )
        self.hours = len(rows) * (crop_seconds or CLIP_SECONDS) / 3600
        self.loader = make_dataloader(
            make_dataset(rows, self.reader),
            batch_size=BATCH_SIZE,
            num_workers=1,
            persistent_workers=True,
            collate_fn=collate,
        )

    def read(self):
        """Hours of audio in a second of one core, reading alone."""
        start = time.process_time()
        for clip, row in self.rows.items():
            self.reader(row["path"], row["duration"], clip)
        return self.hours / (time.process_time() - start)

    def load(self):
        """Hours of audio in a second by the clock, as training gets it."""
        start = time.perf_counter()
        for _ in self.loader:
            pass
        return self.hours / (time.perf_counter() - start)


def measure(manifest=None, n_clips=256, rounds=5):
    """Rows of the table.

    Arguments
    ---------
    manifest : str or os.PathLike, optional
        Audio to cut clips of 10 s from; noise by default.
    n_clips : int
        How many clips.
    rounds : int
        Epochs, after one to warm up.

    Returns
    -------
    list of dict
        `source` and `audio`, what is read; `read_hours` (float), hours of
        audio in a second of one core; `load_hours`, in a second by the clock
        from a loader with one worker; `lowest` and `highest` of the latter.
    """
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sources = _sources(Path(folder), manifest, n_clips)
        for crop in (None, CROP_SECONDS):
            contestants = {
                name: Contestant(own, crop) for name, own in sources.items()
            }
            read = {name: [] for name in contestants}
            load = {name: [] for name in contestants}
            what = "whole" if crop is None else f"{crop:g} s of each"
            for number in tqdm(range(rounds + 1), desc=what):
                for name, contestant in contestants.items():
                    contestant.reader.epoch = number
                    read[name].append(contestant.read())
                    load[name].append(contestant.load())
            for name in contestants:
                rows.append(
                    {
                        "source": name,
                        "audio": what,
                        "read_hours": statistics.median(read[name][1:]),
                        "load_hours": statistics.median(load[name][1:]),
                        "lowest": min(load[name][1:]),
                        "highest": max(load[name][1:]),
                    }
                )
    return rows


def table(rows):
    """The rows as a Markdown table."""
    lines = [
        "| clips of 10 s from | read | hours of audio per core-second, reading "
        "alone | hours per second, loader with one worker (range) |",
        "|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['source']} | {row['audio']} | {row['read_hours']:.2f} "
            f"| {row['load_hours']:.2f} ({row['lowest']:.2f} to "
            f"{row['highest']:.2f}) |"
        )
    return "\n".join(lines)


def main(arguments):
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--manifest",
        help="CSV with a column `path`: audio to cut clips from; noise when "
        "left out",
    )
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder of data_loading_cpu.md and .json",
    )
    options = parser.parse_args(arguments)
    rows = measure(options.manifest, options.clips, options.rounds)
    machine = describe_machine(torch.device("cpu"))
    audio = "noise" if options.manifest is None else "real audio"
    text = (
        f"Machine: {machine}. {options.clips} clips of {audio}, "
        f"{options.rounds} rounds, medians, from the page cache.\n\n"
        f"{table(rows)}\n"
    )
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / "data_loading_cpu"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    write_json(stem.with_suffix(".json"), {"machine": machine, "rows": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
