"""Read manifests, and check them before training starts.

A manifest is a CSV with a column `path` and, if a task needs them, `label`,
`split` (train, valid or test) and `speaker`. One `ManifestError` lists all
problems with it.
"""

import csv
import os
import unicodedata

from speechbrain.dataio.encoder import CategoricalEncoder
from tqdm import tqdm

from ssast_lobes.dataio.addresses import file_of
from ssast_lobes.utils.files import absolute

SPLITS = ("train", "valid", "test")
_SHOWN_PROBLEMS = 20
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"


class ManifestError(ValueError):
    """The data cannot be used; the message names what to fix."""


def read_manifest(csv_path, needs=("path",), root=None, columns=None):
    """Read and check a manifest.

    The first line names the columns, in upper or lower case and in any order.
    Unknown columns are kept, with lower-case names. If several columns differ
    only in case, the exact name is used. Columns without a name are left out.
    If only paths are needed, the file may consist of one path per line, without
    a line of column names. All values stay text.

    Arguments
    ---------
    csv_path : str or os.PathLike
        CSV in UTF-8, separated by commas, with any line endings.
    needs : sequence of str
        Columns in which every row must have a value.
    root : str or os.PathLike, optional
        Folder that relative paths start from; by default that of the CSV.
    columns : dict, optional
        Names of columns in the file that differ from the keys, for example
        `{"label": "speaker", "split": "split_spkid"}`. A column that is named
        here but not in `needs` may be blank in some rows. A name that YAML
        reads as a number becomes text.

    Returns
    -------
    list of dict
        One dict of str for each row: `path`, absolute; `id`, unique and the
        same on every machine; the other columns. Without a column `id`, the id
        is the path as written. It is the path relative to the common folder if
        all paths are absolute.

    Raises
    ------
    ManifestError
        If the file or a needed column is missing, a column occurs twice, or
        any row is bad. A row is bad if it has too few or too many cells, a
        missing audio file, a repeated file or id, an unknown split, or a label
        that cannot be saved. The message gives the number of bad lines and
        lists the first 20. It also names files and columns that exist under
        another spelling.

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
    csv_path = absolute(csv_path)
    root = os.path.dirname(csv_path) if root is None else absolute(root)
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
        row["path"] = written and absolute(written, root)
        problem = _problem(row, len(cells), width, needs, source, seen)
        if problem is None and not os.path.isfile(file_of(row["path"])):
            problem = f"no such file: {row['path']}"
            # Other spellings are searched only for problems that are shown.
            if len(problems) < _SHOWN_PROBLEMS:
                problem += _other_spelling(written, root)
        if problem:
            problems.append(f"line {line}: {problem}")
            continue
        seen[row["path"]] = seen["id", row["id"]] = line
        rows.append(row)
    raise_problems(csv_path, problems, "bad line{}")
    if "id" not in places and all(os.path.isabs(row["id"]) for row in rows):
        relative = relative_paths([row["path"] for row in rows])
        for row, path in zip(rows, relative, strict=True):
            row["id"] = path
    return rows


def raise_problems(source, problems, name="problem{} with the data"):
    """Raise if there is any problem with the data; list the first ones.

    Arguments
    ---------
    source : str or os.PathLike
        Name of the data with the problems.
    problems : list of str
        One line for each problem.
    name : str
        Words for the problems. The braces stand for the plural s.

    Raises
    ------
    ManifestError
        If the list is not empty.

    Example
    -------
    >>> raise_problems("tones.csv", ["a.wav is in train and test"])
    Traceback (most recent call last):
    ...
    ssast_lobes...ManifestError: tones.csv: 1 problem with the data
      a.wav is in train and test
    """
    if not problems:
        return
    shown = problems[:_SHOWN_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    name = name.format("" if len(problems) == 1 else "s")
    head = f"{source}: {len(problems)} {name}"
    raise ManifestError("\n  ".join([head, *shown]))


def relative_paths(paths):
    """Return paths relative to their common folder.

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


def index_rows(rows):
    """Index rows by their id, for datasets.

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
    """Split a cell with several labels at the semicolons.

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
        Any text, also a cell with several labels.

    Returns
    -------
    str or None
        A text that names the label and the fix.

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
    """Return the problem if all training clips have the same labels, or None.

    Arguments
    ---------
    targets : iterable of set of str
        The labels of each clip.

    Returns
    -------
    str or None
        A text that names the labels.

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


def _named_lines(csv_path, source):
    """Return places of columns by key, the number of columns, and the lines.

    A line is (line number, cells).
    """
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
        if "split" in missing:
            hint += "; split has train, valid or test for each clip"
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
    """Return the places of each column by key: one, none, or several."""
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
    """Return a hint if another separator yields the missing columns."""
    for mark, name in (("\t", "tabs"), (";", "semicolons")):
        found = {_bare(cell) for cell in ",".join(first).split(mark)}
        if len(first) == 1 and found.issuperset(map(_bare, missing)):
            return f"; here they are separated by {name}"
    return ""


def _other_names(first, missing, source):
    """Return a hint to columns that a missing name may mean."""
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
    """Strip a name of differences in case, quotes, blanks and Unicode form."""
    bare = unicodedata.normalize("NFC", name).strip(f"{_QUOTES} \t")
    return bare.casefold()


def _other_spelling(written, root):
    """Return why a file that exists under another spelling is not found."""
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
        path = file_of(absolute(other, root))
        if other not in ("", written) and os.path.isfile(path):
            return f" ({reason})"
    return ""


def _numbered_lines(csv_path):
    """Return the number and the stripped cells of each nonblank line."""
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
    """Return the problem with a row, or None; its file is not checked."""
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
