#!/usr/bin/env python3
"""Make soundscapes from labeled clips, and prepare tables of events.

> python soundscapes_prepare.py CLIPS.csv FOLDER --backgrounds BACKGROUNDS

CLIPS.csv has the columns path, label and split (train, valid, test);
`ssast-lobes manifest` makes it from class folders. A soundscape uses only clips
of its own part. It has:

- A background: a stretch of an audio file (repeated if the file is shorter),
  scaled to a random level.
- Events: active parts of clips at random positions, each with a known
  signal-to-noise ratio (SNR). This is the mean power of the event over that of
  the background under it. At most `--max-overlap` events sound at one time, and
  events of one class are at least half a second apart.

One rule finds the active parts of a clip, which are the true events. The level
is the power of 20 ms in dB, every 10 ms. A clip is active where its level is
less than `--active-range` dB below the loudest level, and above -60 dB of full
scale. Silences of up to 0.5 s belong to a part; longer silences split it. Parts
of less than 50 ms are left out. Cuts have fades of 5 ms.

The same arguments make the same bytes. FOLDER gets the audio and `events.csv`,
which `detect/train.py --manifest` reads. Its columns are path, onset, offset,
label, split, snr and source.
"""

import argparse
import csv
import os
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.dataio.event_tables import read_event_table
from ssast_lobes.dataio.scan import folder_rows
from ssast_lobes.dataio.splits import write_splits
from ssast_lobes.dataio.tables import SPLITS, ManifestError, read_manifest
from ssast_lobes.utils.files import absolute, atomic_write

SAMPLE_RATE = 16000
LEVEL_HOP, LEVEL_WINDOW = 160, 320  # samples: 10 and 20 ms
LEAST_LEVEL = -60.0  # dB of full scale
JOINED_SILENCE = 0.5  # seconds
LEAST_PART = 0.05
FADE = 80  # samples: 5 ms
BACKGROUND_LEVEL = (-50.0, -35.0)  # dB of full scale
COLUMNS = ("path", "onset", "offset", "label", "split", "snr", "source")


def prepare_events(manifest, output_folder, max_unreadable=0.01):
    """Read a table of events with a column `split`, and check it.

    Arguments
    ---------
    manifest : str
        CSV or TSV with a split (train, valid, test) in each row; see
        `dataio.event_tables.read_event_table`.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    max_unreadable : float
        Largest accepted fraction of unreadable files.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`.

    Raises
    ------
    ManifestError
        If lines are bad, or a clip has no split.
    """
    rows = read_event_table(manifest)
    wrong = [row["id"] for row in rows if row.get("split") not in SPLITS]
    if wrong:
        raise ManifestError(
            f"{manifest}: {len(wrong)} clips without a split, such as "
            f"{wrong[0]}: a column `split` must say {', '.join(SPLITS)}"
        )
    parts = {
        name: [row for row in rows if row["split"] == name] for name in SPLITS
    }
    return write_splits(
        parts,
        output_folder,
        corpus=str(manifest),
        multi_label=True,
        max_unreadable=max_unreadable,
    )


def active_parts(wav, active_range=30.0):
    """Return where a clip is active; see the top of this file.

    Arguments
    ---------
    wav : numpy.ndarray
        Waveform (samples,) at 16 kHz.
    active_range : float
        Range below the loudest level that counts as active, in dB.

    Returns
    -------
    list of tuple of int
        First sample, and the one after the last, of each part.
    """
    if len(wav) < LEVEL_WINDOW:
        return []
    views = np.lib.stride_tricks.sliding_window_view(wav, LEVEL_WINDOW)
    power = np.square(views[::LEVEL_HOP], dtype=np.float64).mean(1)
    level = 10 * np.log10(power + 1e-12)
    lowest = max(level.max() - active_range, LEAST_LEVEL)
    on = np.diff(np.r_[False, level >= lowest, False].astype(int))
    starts, stops = np.flatnonzero(on == 1), np.flatnonzero(on == -1)
    # A window of 20 ms is active where its middle half is.
    margin = (LEVEL_WINDOW - LEVEL_HOP) // 2
    parts = []
    for start, stop in zip(starts, stops, strict=True):
        first, last = start * LEVEL_HOP + margin, stop * LEVEL_HOP + margin
        first = 0 if start == 0 else first
        last = len(wav) if stop == len(level) else last
        if parts and first - parts[-1][1] <= JOINED_SILENCE * SAMPLE_RATE:
            parts[-1] = parts[-1][0], last
        else:
            parts.append((first, last))
    least = LEAST_PART * SAMPLE_RATE
    return [(a, b) for a, b in parts if b - a >= least]


class Soundscapes:
    """Make the soundscapes of one part.

    Arguments
    ---------
    clips : list of dict
        Rows with path and label.
    backgrounds : list of str
        Audio files.
    seed : tuple of int
        Seed of all draws.
    seconds : float
        Length of a soundscape.
    events_per_minute : float
        Mean density; the number in each is drawn (Poisson).
    negatives : float
        Fraction of soundscapes without any event.
    snr : tuple of float
        Lowest and highest SNR in dB.
    max_overlap : int
        Largest number of events at one time.
    max_event_seconds : float
        Longer active parts are cut to this length.
    active_range : float
        See `active_parts`.
    """

    def __init__(
        self,
        clips,
        backgrounds,
        seed,
        seconds,
        events_per_minute,
        negatives,
        snr,
        max_overlap,
        max_event_seconds,
        active_range,
    ):
        self.by_label = {}
        for row in clips:
            self.by_label.setdefault(row["label"], []).append(row["path"])
        self.backgrounds = sorted(backgrounds)
        self.rng = np.random.default_rng(seed)
        self.samples = round(seconds * SAMPLE_RATE)
        self.mean_events = events_per_minute * seconds / 60
        self.negatives = negatives
        self.snr = snr
        self.max_overlap = max_overlap
        self.max_event = round(max_event_seconds * SAMPLE_RATE)
        self.active_range = active_range
        self._cache = {}

    def draw(self):
        """Return a soundscape (samples,), and its events.

        Returns
        -------
        wav : numpy.ndarray
            float32, at most 0.99.
        events : list of tuple
            Onset and offset in seconds, label, SNR in dB, and source file.
        """
        background = self._background()
        mixture, events, load = background.copy(), [], np.zeros(self.samples)
        count = self.rng.poisson(self.mean_events)
        if self.rng.random() < self.negatives:
            count = 0
        for _ in range(count):
            label = self.rng.choice(sorted(self.by_label))
            path, sound = self._sound(label)
            start = self._place(label, len(sound), load, events)
            if start is None:
                continue
            stop = start + len(sound)
            snr = self.rng.uniform(*self.snr)
            under = np.square(background[start:stop]).mean()
            if under == 0:
                continue  # Over digital silence there is no SNR.
            wanted = under * 10 ** (snr / 10)
            gain = np.sqrt(wanted / max(np.square(sound).mean(), 1e-12))
            mixture[start:stop] += gain * sound
            load[start:stop] += 1
            times = start / SAMPLE_RATE, stop / SAMPLE_RATE
            events.append((*times, label, snr, path))
        peak = np.abs(mixture).max()
        # Scale the whole mixture, so that the SNRs do not change.
        mixture *= min(1.0, 0.99 / max(peak, 1e-9))
        return mixture.astype(np.float32), sorted(events)

    def _background(self):
        wav = self._read(self.rng.choice(self.backgrounds))
        wav = np.tile(wav, -(-self.samples // len(wav)))
        start = self.rng.integers(len(wav) - self.samples + 1)
        wav = wav[start : start + self.samples].astype(np.float64)
        power = 10 ** (self.rng.uniform(*BACKGROUND_LEVEL) / 10)
        return wav * np.sqrt(power / max(np.square(wav).mean(), 1e-12))

    def _sound(self, label):
        """Return a file, and an active part of it with fades."""
        path = self.rng.choice(self.by_label[label])
        wav = self._read(path)
        parts = active_parts(wav, self.active_range)
        if not parts:
            raise ManifestError(
                f"{path}: nothing in it is louder than {LEAST_LEVEL:g} dB of "
                "full scale: take it out of the table"
            )
        first, last = parts[self.rng.integers(len(parts))]
        limit = min(self.max_event, self.samples)
        if last - first > limit:
            first += self.rng.integers(last - first - limit + 1)
            last = first + limit
        sound = wav[first:last].astype(np.float64)
        ramp = np.linspace(0, 1, FADE)
        sound[:FADE] *= ramp
        sound[-FADE:] *= ramp[::-1]
        return path, sound

    def _place(self, label, length, load, events):
        """Return a start that obeys the rules, or None after ten draws."""
        apart = JOINED_SILENCE * SAMPLE_RATE
        own = [
            (onset * SAMPLE_RATE - apart, offset * SAMPLE_RATE + apart)
            for onset, offset, name, *_ in events
            if name == label
        ]
        for _ in range(10):
            start = int(self.rng.integers(self.samples - length + 1))
            stop = start + length
            free = all(stop <= first or last <= start for first, last in own)
            if free and load[start:stop].max() < self.max_overlap:
                return start
        return None

    def _read(self, path):
        if path not in self._cache:
            self._cache[path] = read_audio(path, SAMPLE_RATE).numpy()
        return self._cache[path]


def make_soundscapes(
    clips,
    folder,
    backgrounds,
    counts=(400, 80, 80),
    seconds=10.0,
    events_per_minute=15.0,
    negatives=0.1,
    snr=(0.0, 20.0),
    max_overlap=2,
    max_event_seconds=5.0,
    active_range=30.0,
    seed=1986,
):
    """Make soundscapes of all parts, and the table of their events.

    Arguments
    ---------
    clips : str
        CSV with the columns path, label and split.
    folder : str
        Folder for the audio and the table.
    backgrounds : str
        CSV with the columns path and split, or a folder. The files of a folder
        are split in their order: of every ten, the first goes to valid, and the
        second to test.
    counts : tuple of int
        Number of soundscapes in train, valid and test.
    seconds, events_per_minute, negatives, snr, max_overlap
        See `Soundscapes`.
    max_event_seconds, active_range
        See `Soundscapes`.
    seed : int
        Seed of all draws.

    Returns
    -------
    str
        Path of ``events.csv``.

    Raises
    ------
    ManifestError
        If a table is bad, or a part has no clips or backgrounds.
    """
    rows = read_manifest(clips, ("path", "label", "split"))
    beds = _backgrounds(backgrounds)
    lines = []
    for number, (part, count) in enumerate(zip(SPLITS, counts, strict=True)):
        own = [row for row in rows if row["split"] == part]
        under = [row["path"] for row in beds if row["split"] == part]
        if count and not (own and under):
            raise ManifestError(
                f"no {'clips' if under else 'backgrounds'} are {part}: "
                f"{clips if under else backgrounds} must have some"
            )
        maker = Soundscapes(
            own,
            under,
            (seed, number),
            seconds,
            events_per_minute,
            negatives,
            snr,
            max_overlap,
            max_event_seconds,
            active_range,
        )
        audio = Path(folder, "audio", part)
        audio.mkdir(parents=True, exist_ok=True)
        for place in tqdm(range(count), f"Making {part}", delay=2):
            wav, events = maker.draw()
            name = f"audio/{part}/{place:05d}.flac"
            soundfile.write(Path(folder, name), wav, SAMPLE_RATE, "PCM_16")
            for onset, offset, label, ratio, path in events:
                times = f"{onset:.4f}", f"{offset:.4f}"
                more = f"{ratio:.2f}", os.path.basename(path)
                lines.append((name, *times, label, part, *more))
            if not events:
                lines.append((name, "", "", "", part, "", ""))
    table = Path(folder, "events.csv")
    with atomic_write(table) as file:
        csv.writer(file).writerows([COLUMNS, *lines])
    return str(table)


def _backgrounds(source):
    if not Path(source).expanduser().is_dir():
        return read_manifest(source, ("path", "split"))
    part = {0: "valid", 1: "test"}
    return [
        {**row, "split": part.get(number % 10, "train")}
        for number, row in enumerate(folder_rows(absolute(source)))
    ]


def main():
    """Run the command line."""
    head, _, _ = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=head)
    parser.add_argument("clips", help="CSV: path, label, split")
    parser.add_argument("folder", help="where to")
    parser.add_argument(
        "--backgrounds", required=True, help="folder, or CSV: path, split"
    )
    parser.add_argument("--counts", type=int, nargs=3, default=(400, 80, 80))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--events-per-minute", type=float, default=15.0)
    parser.add_argument("--negatives", type=float, default=0.1)
    parser.add_argument("--snr", type=float, nargs=2, default=(0.0, 20.0))
    parser.add_argument("--max-overlap", type=int, default=2)
    parser.add_argument("--max-event-seconds", type=float, default=5.0)
    parser.add_argument("--active-range", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1986)
    print(make_soundscapes(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
