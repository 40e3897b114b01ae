"""Read tasks from CSVs: labeled clips in three splits."""

import os
import re
from typing import NamedTuple

import torch
from sklearn.metrics import accuracy_score

from ssast_lobes.dataio.splits import warn_of_shared_groups
from ssast_lobes.dataio.tables import (
    SPLITS,
    ManifestError,
    all_alike,
    read_manifest,
)
from ssast_lobes.utils.metrics import unweighted_average_recall

# Use the first of these columns that a table contains. `ssast-lobes manifest`
# writes the second.
_GROUP_COLUMNS = ("speaker", "group")
_KEYS = ("label", "split", "group", "metric")

# Metrics of a task.
SCORES = {"accuracy": accuracy_score, "uar": unweighted_average_recall}


class Task(NamedTuple):
    """Clips with one label each, in a training, validation and test split.

    Arguments
    ---------
    name : str
        Name in tables.
    metric : str
        ``"accuracy"`` or ``"uar"``.
    rows : dict
        Rows (dicts with ``id``, ``path``, ``label`` and ``group``) by split.
    grouped : bool
        Whether a column states the groups. Otherwise each clip is a group.
    """

    name: str
    metric: str
    rows: dict
    grouped: bool

    @property
    def labels(self):
        """Classes: the sorted labels of the training split."""
        return sorted({row["label"] for row in self.rows["train"]})

    @property
    def n_groups(self):
        """Number of groups in the test split."""
        return len({row["group"] for row in self.rows["test"]})

    def paths(self, split=None):
        """Return the files of a split, or of all splits, as a list of str."""
        parts = self.rows.values() if split is None else [self.rows[split]]
        return [row["path"] for part in parts for row in part]

    def targets(self, split):
        """Return the class indices of a split, int64 (N,)."""
        index = {label: number for number, label in enumerate(self.labels)}
        return torch.tensor([index[row["label"]] for row in self.rows[split]])

    def stacked(self, vectors):
        """Stack vectors by path into tensors (N, ...) by split."""
        return {
            split: torch.stack([vectors[path] for path in self.paths(split)])
            for split in self.rows
        }

    def groups(self):
        """Return group indices of the test split, int64 (M,), without gaps."""
        names = [row["group"] for row in self.rows["test"]]
        index = {
            name: number for number, name in enumerate(dict.fromkeys(names))
        }
        return torch.tensor([index[name] for name in names])

    def without(self, paths):
        """Return the task without some files; check it again.

        Arguments
        ---------
        paths : set of str
            The files.

        Returns
        -------
        Task

        Raises
        ------
        ManifestError
            If a split is then empty, valid or test contains a class that does
            not occur in train, or train contains only one class.
        """
        rows = {
            split: [row for row in part if row["path"] not in paths]
            for split, part in self.rows.items()
        }
        _check(f"{self.name}, without the unreadable files", rows)
        return self._replace(rows=rows)


def read_task(
    csv_path,
    name=None,
    label="label",
    split="split",
    group=None,
    metric="accuracy",
):
    """Read a task from a CSV in the format of the classification recipe.

    Arguments
    ---------
    csv_path : str or path
        Each row has a path, a label and a split (train, valid or test).
    name : str, optional
        Name in tables. By default the name of the file, or of its folder if the
        file is called ``manifest.csv``.
    label, split : str
        Columns of the class and of the split. If a column has another name than
        "label" or "split", rows with an empty cell in it are skipped.
    group : str, optional
        Column of the groups that the intervals resample. By default "speaker"
        or "group", if there is such a column. A clip with an empty cell is its
        own group.
    metric : str
        ``"accuracy"`` or ``"uar"`` (unweighted average recall).

    Returns
    -------
    Task

    Raises
    ------
    ManifestError
        If rows are bad, a split is empty, labels of valid or test do not occur
        in train, or all clips of train have the same label.
    ValueError
        If the metric is unknown.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> lines = ["path,label,split", "0.wav,cat,train"]
    >>> for number, split in enumerate(("train", "valid", "test")):
    ...     lines.append(f"{number + 1}.wav,dog,{split}")
    >>> for number in range(4):
    ...     folder.join(f"{number}.wav").write("")
    >>> folder.join("animals.csv").write("\\n".join(lines))
    >>> task = read_task(folder.join("animals.csv"))
    >>> task.name, task.labels, task.targets("test")
    ('animals', ['cat', 'dog'], tensor([1]))
    """
    if metric not in SCORES:
        raise ValueError(
            f"metric must be one of {tuple(SCORES)}, got '{metric}'"
        )
    columns = {"label": label, "split": split}
    # A column of another name belongs to a table of several tasks, where cells
    # may be empty.
    needs = [role for role, column in columns.items() if role == column]
    if group is not None:
        columns["group"] = group
    found = read_manifest(csv_path, ["path", *needs], columns=columns)
    known = [name for name in _GROUP_COLUMNS if name in found[0]]
    column = "group" if group is not None else (known or _GROUP_COLUMNS)[0]
    rows = {name: [] for name in SPLITS}
    for row in found:
        if row["label"] and row["split"]:
            kept = {key: row[key] for key in ("id", "path", "label")}
            kept["group"] = row.get(column) or row["path"]
            rows[row["split"]].append(kept)
    _check(csv_path, rows)
    if label != (group or column):
        warn_of_shared_groups(csv_path, rows, "group")
    return Task(name or table_name(csv_path), metric, rows, column in found[0])


def parse_task(text, **defaults):
    """Read a task from its command-line form.

    Arguments
    ---------
    text : str
        ``[NAME=]CSV[,label=COLUMN][,split=COLUMN][,group=COLUMN]
        [,metric=METRIC]``.
    **defaults
        Arguments of `read_task`. Arguments in the text take precedence.

    Returns
    -------
    Task

    Raises
    ------
    ManifestError, ValueError
        See `read_task`.

    Example
    -------
    >>> parse_task("voices=nowhere.csv,label=speaker,metric=uar")
    Traceback (most recent call last):
    ...
    ssast_lobes...ManifestError: ...nowhere.csv: No such file ...
    """
    name, csv_path, own = split_options(text, _KEYS)
    return read_task(csv_path, **{**defaults, "name": name, **own})


def split_options(text, keys):
    """Split ``[NAME=]PATH[,KEY=VALUE]`` into its parts.

    Arguments
    ---------
    text : str
        A path may contain commas and equals signs too.
    keys : sequence of str
        The known keys.

    Returns
    -------
    name, path
        See `split_name`.
    options : dict of str to str

    Example
    -------
    >>> split_options("words=a,b.csv,group=word", ["group"])
    ('words', 'a,b.csv', {'group': 'word'})
    """
    key = "|".join(keys)
    start, tail = re.fullmatch(rf"(.*?)((?:,(?:{key})=[^,]*)*)", text).groups()
    options = dict(pair.split("=", 1) for pair in tail.split(",")[1:])
    return *split_name(start), options


def split_name(text):
    """Split ``NAME=PATH`` into name and path.

    Arguments
    ---------
    text : str
        ``[NAME=]PATH``. An existing path may contain an equals sign. A name
        contains no slash.

    Returns
    -------
    name : str or None
        None if the text has no name.
    path : str
        The path, whether it exists or not.

    Example
    -------
    >>> split_name("best=runs/lr=0.1/export"), split_name("runs/lr=0.1/export")
    (('best', 'runs/lr=0.1/export'), (None, 'runs/lr=0.1/export'))
    """
    name, equals, path = text.partition("=")
    if not equals or os.path.exists(text) or "/" in name or os.sep in name:
        return None, text
    return name, path


def table_name(csv_path):
    """Return the name of a table in reports.

    Arguments
    ---------
    csv_path : str or path
        The table.

    Returns
    -------
    str
        Name of the file, or of its folder if the file is ``manifest.csv``.

    Example
    -------
    >>> table_name("acted.csv"), table_name("emodb/manifest.csv")
    ('acted', 'emodb')
    """
    folder, file = os.path.split(os.path.abspath(csv_path))
    stem = os.path.splitext(file)[0]
    return os.path.basename(folder) if stem == "manifest" else stem


def _check(source, rows):
    """Raise unless a probe can be trained, validated and tested."""
    empty = [split for split, part in rows.items() if not part]
    if empty:
        raise ManifestError(f"{source}: no usable rows of {' or '.join(empty)}")
    known = {row["label"] for row in rows["train"]}
    for split in ("valid", "test"):
        unknown = sorted({row["label"] for row in rows[split]} - known)
        if unknown:
            raise ManifestError(
                f"{source}: labels of {split} that train does not have: "
                f"{', '.join(unknown[:20])}"
            )
    problem = all_alike({row["label"]} for row in rows["train"])
    if problem:
        raise ManifestError(f"{source}: {problem}")
