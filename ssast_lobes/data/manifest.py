"""Finds the audio, reads manifests and checks both before training starts.

A manifest is a CSV with a column `path` and, where a task needs them,
`label`, `split` (train, valid or test) and `speaker`. All that is wrong with
it is told in one `ManifestError`. `scan_audio` reads the header of every file,
sets aside what cannot be read, and remembers the durations for the next run.
"""

import csv
import os
import unicodedata
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from ssast_lobes.data.addresses import file_of, stamp_of
from ssast_lobes.data.audio import UnreadableAudio, audio_info

logger = get_logger(__name__)

AUDIO_EXTENSIONS = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf "
    ".w64 .rf64 .sph .nist .voc".split()
)
SPLITS = ("train", "valid", "test")
_SHOWN_PROBLEMS = 20
_DURATIONS = "durations.csv"
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"


class ManifestError(ValueError):
    """The data cannot be used as it is; the message says what to mend."""


def find_audio(folder):
    """Lists the audio files of a folder and all its subfolders.

    Hidden files and folders (names with a leading dot) are left out; links to
    folders are followed, each folder is visited once.

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
    folder = _absolute(folder)
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
    """Rows for every audio file of a folder.

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
    folder = _absolute(folder)
    return [
        {"id": os.path.relpath(path, folder), "path": path}
        for path in find_audio(folder)
    ]


def read_manifest(csv_path, needs=("path",), root=None, columns=None):
    """Reads and checks a manifest.

    The first line names the columns, in any case and order; others than the
    known ones are passed on, under their names in lower case. Of columns that
    differ only in case, the one that is written as it is asked for is taken.
    Columns without a name are left out. A file without that line, with one
    path a line, will do where no more than the path is needed. All values
    stay text.

    Arguments
    ---------
    csv_path : str or os.PathLike
        UTF-8 CSV, separated by commas, any line ends.
    needs : sequence of str
        Columns in which every row must have a value.
    root : str or os.PathLike, optional
        Folder that relative paths start from; that of the CSV by default.
    columns : dict, optional
        Where the file names a column otherwise: for example
        `{"label": "speaker", "split": "split_spkid"}`. A column that stands
        here and not in `needs` may be blank in some rows. A name that a YAML
        reads as a number is taken as text.

    Returns
    -------
    list of dict
        One dict of str a row: `path`, absolute; `id`, unique and the same on
        every machine (column `id`, else the path as written, from the common
        folder on where all are absolute); the other columns.

    Raises
    ------
    ManifestError
        If the file or a needed column is missing, a column is there twice, or
        any row is bad: cells missing or surplus, no such audio file, a file or
        id twice, an unknown split, a label that cannot be saved. Lists the
        line numbers, the first 20 and how many there are. Names the reason
        where a file or column is there under another spelling.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> folder.join("a.wav").write("")
    >>> table = folder.join("table.csv")
    >>> table.write("path,label\\na.wav,dog\\n")
    >>> [row] = read_manifest(table, needs=("path", "label"))
    >>> row["id"], row["label"], os.path.isabs(row["path"])
    ('a.wav', 'dog', True)
    """
    csv_path = _absolute(csv_path)
    root = os.path.dirname(csv_path) if root is None else _absolute(root)
    source = {name: name for name in ("path", *needs)} | (columns or {})
    places, width, lines = _named_lines(csv_path, source)
    rows, problems, seen = [], [], {}
    for line, cells in tqdm(lines, "Checking the manifest", delay=2):
        row = {
            key: cells[place] if place < len(cells) else ""
            for key, place in places.items()
        }
        written = row["path"]
        row["id"] = row.get("id") or written
        row["path"] = written and _absolute(written, root)
        problem = _problem(row, len(cells), width, needs, source, seen)
        if problem is None and not os.path.isfile(file_of(row["path"])):
            problem = f"no such file: {row['path']}"
            # What is not shown is not worth looking for.
            if len(problems) < _SHOWN_PROBLEMS:
                problem += _other_spelling(written, root)
        if problem:
            problems.append(f"line {line}: {problem}")
            continue
        seen[row["path"]] = seen["id", row["id"]] = line
        rows.append(row)
    if problems:
        raise ManifestError(_report(csv_path, problems))
    if "id" not in places and all(os.path.isabs(row["id"]) for row in rows):
        relative = relative_paths([row["path"] for row in rows])
        for row, path in zip(rows, relative, strict=True):
            row["id"] = path
    return rows


def relative_paths(paths):
    """Return paths from their common folder on.

    Arguments
    ---------
    paths : list of str
        Absolute paths.

    Returns
    -------
    list of str

    Example
    -------
    >>> relative_paths(["/data/a/1.wav", "/data/b/2.wav"])
    ['a/1.wav', 'b/2.wav']
    """
    if not paths:
        return []
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, root) for path in paths]


def held_out(row):
    """Whether a row is held out from training, by any of its splits.

    Every column whose name starts with "split" counts: a table for several
    tasks may have one for each.

    Arguments
    ---------
    row : dict
        From `read_manifest` or `folder_rows`.

    Returns
    -------
    bool
        True if one of these columns says valid or test.

    Raises
    ------
    ManifestError
        If one says anything else than train, valid, test or nothing; names
        the row's id, the column and the value.

    Example
    -------
    >>> held_out({"id": "a.wav", "split": "train", "split_speaker": "test"})
    True
    >>> held_out({"id": "a.wav"})
    False
    """
    splits = {k: v for k, v in row.items() if k.startswith("split")}
    for column, value in splits.items():
        if value not in ("", *SPLITS):
            raise ManifestError(
                f'{row["id"]}: "{value}" in column {column}; use train, '
                "valid or test"
            )
    return not {"valid", "test"}.isdisjoint(splits.values())


def without_held_out(rows, others=()):
    """The rows of clips that no table holds out, each clip once.

    A folder, or shards of it, may hold the files of a table that says what is
    held out.

    Arguments
    ---------
    rows : list of dict
        Of any sources, with `path`, and `source_path` if they are in shards.
    others : list of dict
        Of tables that hold clips out too.

    Returns
    -------
    list of dict
        Rows whose file is held out by none of `rows` and `others`.

    Raises
    ------
    ManifestError
        See `held_out`.

    Example
    -------
    >>> folder = [{"id": name, "path": f"/{name}"} for name in ("a", "b")]
    >>> table = [{"id": "a", "path": "/a", "split": "test"}]
    >>> without_held_out(folder, table)
    [{'id': 'b', 'path': '/b'}]
    """
    left_out = {
        path
        for row in [*rows, *others]
        if held_out(row)
        for path in _places(row)
    }
    kept = {
        row["path"]: row for row in rows if left_out.isdisjoint(_places(row))
    }
    return list(kept.values())


def _places(row):
    """Where a clip lies, and where it came from if it was put into a shard."""
    return {row["path"], row.get("source_path", row["path"])}


class AudioScan(NamedTuple):
    """What the headers of the files of some rows say; see `scan_audio`.

    Arguments
    ---------
    rows : list of dict
        The usable rows in their order, each with a float `duration` (seconds).
    unreadable : list of tuple
        (path, reason) of each file set aside as unreadable.
    n_files : int
        Rows that there were.
    n_short : int
        Those that are shorter than `min_seconds`.
    min_seconds : float
        The limit.
    folder : str
        Where `write` puts the lists.
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
        """Write what was found, and raise if it is not enough to train on.

        Unreadable files are listed in `<folder>/unreadable.csv` (path,
        reason), durations are kept in `<folder>/durations.csv` for the next
        scan.

        Arguments
        ---------
        max_unreadable : float
            Largest share of unreadable files that is let pass, 0 to 1.

        Raises
        ------
        ManifestError
            If more of the files are unreadable, or no row is left.
        """
        _write_durations(self.folder, self.cache)
        listed = os.path.join(self.folder, "unreadable.csv")
        _write_csv(listed, [("path", "reason"), *self.unreadable])
        check_unreadable(listed, self.n_files, max_unreadable)
        if not self.rows:
            raise ManifestError(
                f"no audio is left of {self.n_files} files: "
                f"{len(self.unreadable)} are unreadable (see {listed}), "
                f"{self.n_short} are shorter than {self.min_seconds:g} s"
            )
        hours = sum(row["duration"] for row in self.rows) / 3600
        logger.info(
            f"{len(self.rows)} files, {hours:.2f} hours; left out "
            f"{self.n_short} shorter than {self.min_seconds:g} s and "
            f"{len(self.unreadable)} unreadable ones (listed in {listed})"
        )


def scan_audio(rows, output_folder, min_seconds=0.0, workers=16):
    """Read every header; set aside what is unreadable or too short.

    Call it once with the rows of all splits. Only files are read whose path,
    size or time of change is not in `<output_folder>/durations.csv`. Nothing
    is written, unless the scan is interrupted: a rerun then resumes it.

    Arguments
    ---------
    rows : list of dict
        From `read_manifest` or `folder_rows`.
    output_folder : str or os.PathLike
        Where the lists of an earlier scan are.
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
    ['durations.csv', 'unreadable.csv']
    """
    output_folder = _absolute(output_folder)
    os.makedirs(output_folder, exist_ok=True)
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


def prepare(
    rows, output_folder, min_seconds=0.0, max_unreadable=0.01, workers=16
):
    """Scan audio, and write the lists; see `scan_audio`, `AudioScan.write`.

    Arguments
    ---------
    rows, output_folder, min_seconds, workers
        As for `scan_audio`.
    max_unreadable : float
        As for `AudioScan.write`.

    Returns
    -------
    rows : list of dict
        The usable rows, each with a float `duration` (seconds).
    unreadable : list of tuple
        (path, reason) of each file set aside as unreadable.

    Raises
    ------
    ManifestError
        If more than `max_unreadable` of the files are unreadable, or no row
        is left.
    """
    scan = scan_audio(rows, output_folder, min_seconds, workers)
    scan.write(max_unreadable)
    return scan.rows, scan.unreadable


def check_unreadable(unreadable_file, n_files, max_unreadable):
    """Counts the unreadable files; too many are an error.

    The list grows while training decodes, so ask again after each epoch.

    Arguments
    ---------
    unreadable_file : str or os.PathLike
        CSV (path, reason) that `AudioScan` and `ClipReader` write.
    n_files : int
        Number of files in all.
    max_unreadable : float
        Largest share of unreadable files that is let pass, 0 to 1.

    Returns
    -------
    int
        Number of different files in the list.

    Raises
    ------
    ManifestError
        If they are more than `max_unreadable` of all files.

    Example
    -------
    >>> listed = getfixture("tmpdir").join("unreadable.csv")
    >>> listed.write("path,reason\\na.wav,empty\\n")
    >>> check_unreadable(listed, n_files=200, max_unreadable=0.01)
    1
    """
    paths = {row[0] for row in _read_csv(unreadable_file) if row} - {"path"}
    if len(paths) / max(n_files, 1) > max_unreadable:
        raise ManifestError(
            f"{len(paths)} of {n_files} audio files are unreadable, more than "
            f"the share of {max_unreadable:g} that is let pass: they are "
            f"listed with reasons in {unreadable_file}; mend or remove them, "
            "or raise max_unreadable"
        )
    return len(paths)


def index_rows(rows):
    """Rows by their id, as datasets want them.

    Arguments
    ---------
    rows : list of dict
        Rows with a unique `id`.

    Returns
    -------
    dict
        id -> the rest of the row.

    Example
    -------
    >>> index_rows([{"id": "a.wav", "path": "/data/a.wav"}])
    {'a.wav': {'path': '/data/a.wav'}}
    """
    return {
        row["id"]: {k: v for k, v in row.items() if k != "id"} for row in rows
    }


def split_labels(cell):
    """Labels of a cell with several, separated by semicolons.

    Arguments
    ---------
    cell : str
        Text of the cell.

    Returns
    -------
    list of str
        The labels, in their order.

    Example
    -------
    >>> split_labels("dog; rain;")
    ['dog', 'rain']
    """
    return [label.strip() for label in cell.split(";") if label.strip()]


def label_problem(label):
    """Return why SpeechBrain's label file cannot hold a label, or None.

    Arguments
    ---------
    label : str
        Any text, also a cell of several labels.

    Returns
    -------
    str or None
        Names the label and what to do.

    Example
    -------
    >>> label_problem("dog")
    >>> label_problem("dog => cat")
    'label "dog => cat" cannot be saved: replace the " => " in it'
    """
    mark = CategoricalEncoder.VALUE_SEPARATOR
    if mark in repr(label):
        return f'label "{label}" cannot be saved: replace the "{mark}" in it'
    return None


def all_alike(targets):
    """Return what is wrong if all training clips have the same labels, or None.

    Arguments
    ---------
    targets : iterable of set of str
        The labels of each clip.

    Returns
    -------
    str or None
        Names the labels.

    Example
    -------
    >>> all_alike([{"dog"}, {"cat"}, {"dog"}])
    >>> all_alike([{"dog"}, {"dog"}])
    'every clip of train has the label dog: there is nothing to tell apart'
    """
    targets = iter(targets)
    first = next(targets, None)
    if not first or any(other != first for other in targets):
        return None
    words = f"label{'s' * (len(first) > 1)} {', '.join(sorted(first))}"
    return (
        f"every clip of train has the {words}: there is nothing to tell apart"
    )


def _absolute(path, root=""):
    return os.path.abspath(os.path.join(root, os.path.expanduser(path)))


def _is_audio(name):
    extension = os.path.splitext(name)[1].lower()
    return name[0] != "." and extension in AUDIO_EXTENSIONS


def _named_lines(csv_path, source):
    """Places of the columns by their keys in rows, how many columns there are,
    and the lines below their names, as (line number, cells)."""
    for key, name in source.items():
        if name in (None, ""):
            raise ManifestError(f"{csv_path}: the column of {key} has no name")
    asked = {key: str(name) for key, name in source.items()}
    lines = _numbered_lines(csv_path)
    first = lines[0][1]
    found = _find_columns(first, asked)
    missing = [
        name
        for name in dict.fromkeys(asked.values())
        if not found[name.casefold()]
    ]
    if missing:
        separator = _separator(first, missing)
        if len(first) == 1 and source == {"path": "path"} and not separator:
            return {"path": 0}, 1, lines
        hint = separator or _other_names(first, missing, source)
        raise ManifestError(
            f"{csv_path}: no column {', '.join(missing)}; the first line has "
            f"{', '.join(first)}. It must name the columns, separated by "
            f"commas{hint}"
        )
    for places in found.values():
        if len(places) > 1:
            said = ", ".join(f"{first[n]} (column {n + 1})" for n in places)
            raise ManifestError(
                f"{csv_path}: columns of the same name: {said}. Rename or "
                "remove all but one"
            )
    if len(lines) == 1:
        raise ManifestError(f"{csv_path}: no rows below the column names")
    places = {key: place for key, (place,) in found.items()}
    return places, len(first), lines[1:]


def _find_columns(first, asked):
    """Places of each column by its key in rows: one, none, or several that
    cannot be told apart."""
    alike = {}
    for place, name in enumerate(first):
        if name:
            alike.setdefault(name.casefold(), []).append(place)
    # Every column has its name in lower case as a key, too.
    wanted = {
        **{key: key for key in alike},
        **{name.casefold(): name for name in asked.values()},
        **asked,
    }
    found = {}
    for key, name in wanted.items():
        places = alike.get(name.casefold(), [])
        exact = [place for place in places if first[place] == name]
        found[key] = exact if len(exact) == 1 else places
    return found


def _separator(first, missing):
    """Say which other separator makes the missing columns of a first line."""
    for mark, name in (("\t", "tabs"), (";", "semicolons")):
        found = {_bare(cell) for cell in ",".join(first).split(mark)}
        if len(first) == 1 and found.issuperset(map(_bare, missing)):
            return f"; here they are separated by {name}"
    return ""


def _other_names(first, missing, source):
    """Say what is near to a missing column but written otherwise."""
    hint = ""
    for name in missing:
        near = [cell for cell in first if _bare(cell) == _bare(name)]
        if near:
            hint += (
                f"; {ascii(near[0])} is not {ascii(name)}: mend the quotes, "
                "blanks or Unicode form of one"
            )
        kinds = [
            type(value).__name__
            for value in source.values()
            if str(value) == name and not isinstance(value, str)
        ]
        if kinds:
            hint += (
                f"; {name} was read as {kinds[0]}: quote a name twice to keep "
                f"it as it is written, \"'...'\""
            )
    return hint


def _bare(name):
    """A name without what is hard to see: case, quotes, blanks and form."""
    bare = unicodedata.normalize("NFC", name).strip(f"{_QUOTES} \t")
    return bare.casefold()


def _other_spelling(written, root):
    """Say why a file is not found that is there under another spelling."""
    spellings = {
        "write / in place of \\": written.replace("\\", "/"),
        "cells must be separated by commas, not tabs": written.split("\t")[0],
        "cells must be separated by commas": written.split(";")[0],
        "leave out the quotes": written.strip(_QUOTES),
        "its name ends with a blank there: rename it": f"{written} ",
        "its name starts with a blank there: rename it": f" {written}",
        "its name there has composed accents (Unicode NFC), the table has "
        "them apart": unicodedata.normalize("NFC", written),
        "its name there has accents apart (Unicode NFD), the table has them "
        "composed": unicodedata.normalize("NFD", written),
    }
    for reason, other in spellings.items():
        path = file_of(_absolute(other, root))
        if other not in ("", written) and os.path.isfile(path):
            return f" ({reason})"
    return ""


def _numbered_lines(csv_path):
    """(line number, stripped cells) of every line that is not blank."""
    try:
        # utf-8-sig drops the byte order mark that spreadsheets write.
        with open(csv_path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            lines = [
                (reader.line_num, [cell.strip() for cell in cells])
                for cells in reader
            ]
    except OSError as error:
        raise ManifestError(f"{csv_path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(
            f"{csv_path}: not a CSV in UTF-8 ({error}); save it as one"
        ) from error
    lines = [(line, cells) for line, cells in lines if any(cells)]
    if not lines:
        raise ManifestError(f"{csv_path}: the manifest is empty")
    return lines


def _problem(row, n_cells, n_columns, needs, source, seen):
    """What is wrong with a row, but for its file; or None."""
    if n_cells != n_columns:
        return (
            f"{n_cells} cells under {n_columns} columns "
            "(text with commas must stand in double quotes)"
        )
    empty = [name for name in needs if not row[name]]
    if empty:
        return f"no {', '.join(empty)}"
    if "split" in source and row["split"] not in ("", *SPLITS):
        return f'split "{row["split"]}" is none of {", ".join(SPLITS)}'
    if row["path"] in seen:
        return f"same file as line {seen[row['path']]}: {row['path']}"
    if ("id", row["id"]) in seen:
        return f"same id as line {seen['id', row['id']]}: {row['id']}"
    return label_problem(row["label"]) if "label" in source else None


def _report(csv_path, problems):
    shown = problems[:_SHOWN_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    bad = "1 bad line" if len(problems) == 1 else f"{len(problems)} bad lines"
    return "\n  ".join([f"{csv_path}: {bad}", *shown])


def _scan(paths, cache, workers):
    """Return durations by path, and (path, reason) of unreadable files.

    Adds what it reads to the cache, see `_read_durations`.
    """
    durations, failed = {}, []

    def scan(path):
        """Size and time of change, and the duration if it can be read."""
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
    # Tried once more, alone: libsndfile keeps the reason of a failure in a
    # variable that all threads share.
    unreadable = []
    for path in failed:
        try:
            durations[path] = audio_info(path).seconds
        except UnreadableAudio as error:
            unreadable.append((path, str(error).removeprefix(f"{path}: ")))
    return durations, unreadable


def _read_durations(folder):
    """Return path -> (size, time of change, seconds) of earlier scans."""
    cache_file = os.path.join(folder, _DURATIONS)
    if not os.path.isfile(cache_file):
        return {}
    try:
        return {
            path: (int(size), int(changed), float(seconds))
            for path, size, changed, seconds in _read_csv(cache_file)
        }
    except (ValueError, csv.Error):
        logger.warning(f"{cache_file} is damaged: reading all headers again")
        return {}


def _write_durations(folder, cache):
    rows = ((path, *entry) for path, entry in cache.items())
    _write_csv(os.path.join(folder, _DURATIONS), rows)


def _read_csv(path):
    with open(
        path, encoding="utf-8", errors="surrogateescape", newline=""
    ) as file:
        return list(csv.reader(file))


@contextmanager
def naming_file(path):
    """Put a file's name into errors of writing it, which lack it.

    Arguments
    ---------
    path : str or os.PathLike
        The file.

    Example
    -------
    >>> with naming_file("full.txt"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    ...
    OSError: [Errno 28] No space left on device: 'full.txt'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            # Its text is all that it has: a file name would garble it.
            error.args = (f"{path}: {error}",)
        elif error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextmanager
def written_whole(path, mode="w"):
    """A file that appears when it is complete.

    Arguments
    ---------
    path : str or os.PathLike
        Where it appears; an older file is replaced.
    mode : str
        ``"w"`` for text, ``"wb"`` for bytes.

    Yields
    ------
    file
        To write to.

    Example
    -------
    >>> path = getfixture("tmpdir").join("result.txt")
    >>> with written_whole(path) as file:
    ...     written = file.write("complete")
    >>> path.read()
    'complete'
    """
    partial = f"{path}.{os.getpid()}.partial"
    # File names on Linux may hold bytes that are not UTF-8.
    text = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    try:
        with (
            naming_file(path),
            open(partial, mode, **(text if mode == "w" else {})) as file,
        ):
            yield file
    except BaseException:
        os.unlink(partial)
        raise
    os.replace(partial, path)


def _write_csv(path, rows):
    with written_whole(path) as file:
        csv.writer(file).writerows(rows)
