"""Find audio files, and read their headers before training."""

import csv
import os
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from ssast_lobes.dataio.addresses import stamp_of
from ssast_lobes.dataio.audio import audio_info
from ssast_lobes.dataio.codec import CODEC_EXTENSIONS, files_in_need, kind_of
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.utils.files import absolute, read_csv, write_csv

logger = get_logger(__name__)

AUDIO_EXTENSIONS = CODEC_EXTENSIONS.union(
    ".wav .wave .flac .ogg .oga .opus .mp2 .mp3 .aif .aiff .aifc .au .snd "
    ".caf .w64 .rf64 .sph .nist .voc".split()
)
_DURATIONS = os.path.join("save", "durations.csv")


def find_audio(folder):
    """List the audio files of a folder and all its subfolders.

    The list includes formats that need the extra `codec`, even if it is not
    installed. Hidden files and folders (names with a leading dot) are left out.
    Links to folders are followed; each folder is visited once.

    Arguments
    ---------
    folder : str or os.PathLike
        Where to look; `~` is the home folder.

    Returns
    -------
    list of str
        Absolute paths, sorted.

    Raises
    ------
    ManifestError
        If there is no such folder or no audio in it.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> folder.join("b.flac").write("")
    >>> folder.mkdir("deep").join("a.WAV").write("")
    >>> folder.join("notes.txt").write("")
    >>> [os.path.basename(path) for path in find_audio(folder)]
    ['b.flac', 'a.WAV']
    """
    folder = absolute(folder)
    if not os.path.isdir(folder):
        raise ManifestError(f"{folder}: no such folder")
    found, visited = [], set()
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in visited:
            subfolders.clear()
            continue
        visited.add(os.path.realpath(parent))
        subfolders[:] = [name for name in subfolders if name[0] != "."]
        found += [
            os.path.join(parent, name) for name in names if _is_audio(name)
        ]
    if not found:
        kinds = " ".join(sorted(AUDIO_EXTENSIONS))
        raise ManifestError(f"{folder}: no audio files in it ({kinds})")
    return sorted(found)


def folder_rows(folder):
    """Return rows for every audio file of a folder.

    Arguments
    ---------
    folder : str or os.PathLike
        Where to look, see `find_audio`.

    Returns
    -------
    list of dict
        `id`, the path relative to the folder, and `path`, the absolute one.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> folder.mkdir("deep").join("a.wav").write("")
    >>> folder_rows(folder)[0]["id"]
    'deep/a.wav'
    """
    folder = absolute(folder)
    return [
        {"id": os.path.relpath(path, folder), "path": path}
        for path in find_audio(folder)
    ]


class AudioScan(NamedTuple):
    """The result of `scan_audio`.

    Arguments
    ---------
    rows : list of dict
        The usable rows in their order, each with a float `duration` (seconds).
    unreadable : list of tuple
        (path, reason) of each unreadable file.
    n_files : int
        Number of rows before the scan.
    n_short : int
        Number of files shorter than `min_seconds`.
    min_seconds : float
        Shortest accepted duration.
    folder : str
        Folder that `write` writes the lists to.
    cache : dict
        Path -> (size, time of change, duration) of each file read so far.
    """

    rows: list
    unreadable: list
    n_files: int
    n_short: int
    min_seconds: float
    folder: str
    cache: dict

    def write(self, max_unreadable=0.01):
        """Write the lists, and raise if too little audio is left.

        `<folder>/unreadable.csv` (path, reason) lists the unreadable files.
        `<folder>/save/durations.csv` keeps the durations for the next scan.

        Arguments
        ---------
        max_unreadable : float
            Largest accepted fraction of unreadable files, 0 to 1.

        Raises
        ------
        ManifestError
            If the fraction of unreadable files is larger, or no row is left.
        """
        _write_durations(self.folder, self.cache)
        listed = os.path.join(self.folder, "unreadable.csv")
        write_csv(listed, [("path", "reason"), *self.unreadable])
        check_unreadable(listed, self.n_files, max_unreadable)
        need = files_in_need(self.unreadable)
        if not self.rows:
            raise ManifestError(
                f"no audio is left of {self.n_files} files: "
                f"{len(self.unreadable)} are unreadable (see {listed}), "
                f"{self.n_short} are shorter than {self.min_seconds:g} s"
                + (f"; {need}" if need else "")
            )
        if need:
            logger.warning(f"left out {need}")
        hours = sum(row["duration"] for row in self.rows) / 3600
        left_out = []
        if self.n_short:
            limit = f"{self.min_seconds:g} s"
            left_out.append(f"{self.n_short} shorter than {limit}")
        if self.unreadable:
            n = len(self.unreadable)
            left_out.append(f"{n} unreadable ones (listed in {listed})")
        logger.info(
            f"{len(self.rows)} files, {hours:.2f} hours"
            + ("; left out " if left_out else "")
            + " and ".join(left_out)
        )


def scan_audio(rows, output_folder, min_seconds=0.0, workers=16):
    """Read every header; separate unreadable and short files.

    Call it once with the rows of all splits. It reads only files that are new
    or changed since `<output_folder>/save/durations.csv` was written, judged by
    path, size and time of change. The scan writes this file only if it is
    interrupted. A rerun then resumes the scan.

    Arguments
    ---------
    rows : list of dict
        From `read_manifest` or `folder_rows`.
    output_folder : str or os.PathLike
        Folder with the lists of an earlier scan, if there was one.
    min_seconds : float
        Shorter files are left out.
    workers : int
        Threads that read headers.

    Returns
    -------
    AudioScan

    Example
    -------
    >>> import numpy, soundfile
    >>> folder = getfixture("tmpdir")
    >>> soundfile.write(str(folder.join("a.wav")), numpy.zeros(800), 16000)
    >>> folder.join("b.wav").write("not audio")
    >>> scan = scan_audio(folder_rows(folder), folder.join("out"))
    >>> [(row["id"], row["duration"]) for row in scan.rows]
    [('a.wav', 0.05)]
    >>> [os.path.basename(path) for path, reason in scan.unreadable]
    ['b.wav']
    >>> scan.write(max_unreadable=0.5)
    >>> sorted(os.listdir(folder.join("out")))
    ['save', 'unreadable.csv']
    """
    output_folder = absolute(output_folder)
    os.makedirs(os.path.join(output_folder, "save"), exist_ok=True)
    cache = _read_durations(output_folder)
    paths = [row["path"] for row in rows]
    try:
        durations, unreadable = _scan(paths, cache, workers)
    except BaseException:
        _write_durations(output_folder, cache)
        raise
    timed = [
        row | {"duration": durations[row["path"]]}
        for row in rows
        if row["path"] in durations
    ]
    kept = [row for row in timed if row["duration"] >= min_seconds]
    return AudioScan(
        kept,
        unreadable,
        len(rows),
        len(timed) - len(kept),
        min_seconds,
        output_folder,
        cache,
    )


def check_unreadable(unreadable_file, n_files, max_unreadable):
    """Count the unreadable files; raise if there are too many.

    The list grows while training decodes, so call this again after each epoch.

    Arguments
    ---------
    unreadable_file : str or os.PathLike
        CSV (path, reason) that `AudioScan` and `ClipReader` write.
    n_files : int
        Number of all files, readable or not.
    max_unreadable : float
        Largest accepted fraction of unreadable files, 0 to 1.

    Returns
    -------
    int
        Number of different files in the list.

    Raises
    ------
    ManifestError
        If the fraction of unreadable files is above `max_unreadable`.

    Example
    -------
    >>> listed = getfixture("tmpdir").join("unreadable.csv")
    >>> listed.write("path,reason\\na.wav,empty\\n")
    >>> check_unreadable(listed, n_files=200, max_unreadable=0.01)
    1
    """
    listed = {row[0]: row[-1] for row in read_csv(unreadable_file) if row}
    listed.pop("path", None)
    if len(listed) / max(n_files, 1) > max_unreadable:
        need = files_in_need(listed.items())
        name, reason = next(iter(listed.items()))
        raise ManifestError(
            f"{len(listed)} of {n_files} audio files are unreadable, more than "
            f"the accepted fraction of {max_unreadable:g}. The first is {name} "
            f"({reason}), and all are listed in {unreadable_file}. Repair or "
            "remove them, or raise --max_unreadable"
            + (f". {need}" if need else "")
        )
    return len(listed)


def _is_audio(name):
    return name[0] != "." and kind_of(name) in AUDIO_EXTENSIONS


def _scan(paths, cache, workers):
    """Return durations by path, and (path, reason) of unreadable files.

    Durations that are read are added to the cache; see `_read_durations`.
    """
    durations, failed = {}, []

    def scan(path):
        """Return size, time of change, and duration if readable."""
        try:
            stamp = stamp_of(path)
            if path in cache and cache[path][:2] == stamp:
                return cache[path]
            return *stamp, audio_info(path).seconds
        except (OSError, UnreadableAudio):
            return None

    with ThreadPool(workers) as pool:
        scans = tqdm(
            pool.imap(scan, paths, chunksize=16),
            "Reading audio headers",
            total=len(paths),
            unit="file",
        )
        for path, entry in zip(paths, scans, strict=True):
            if entry is None:
                failed.append(path)
            else:
                cache[path] = entry
                durations[path] = entry[2]
    # Read the failed files once more, without threads: all threads share the
    # variable in which libsndfile keeps the reason of a failure.
    unreadable = []
    for path in failed:
        try:
            durations[path] = audio_info(path).seconds
        except UnreadableAudio as error:
            unreadable.append((path, error.reason(path)))
    return durations, unreadable


def _read_durations(folder):
    """Return path -> (size, time of change, seconds) of earlier scans."""
    cache_file = os.path.join(folder, _DURATIONS)
    if not os.path.isfile(cache_file):
        return {}
    try:
        return {
            path: (int(size), int(changed), float(seconds))
            for path, size, changed, seconds in read_csv(cache_file)
        }
    except (ValueError, csv.Error):
        logger.warning(f"{cache_file} is damaged: reading all headers again")
        return {}


def _write_durations(folder, cache):
    rows = ((path, *entry) for path, entry in cache.items())
    write_csv(os.path.join(folder, _DURATIONS), rows)
