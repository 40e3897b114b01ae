"""Prepare your own audio: read, check and split manifests.

The result is a JSON file with the rows of each split, which all processes read.
"""

import csv
import json
from pathlib import Path

from ssast_lobes.dataio.class_folders import class_rows
from ssast_lobes.dataio.held_out import without_held_out
from ssast_lobes.dataio.partition import draw_splits
from ssast_lobes.dataio.scan import folder_rows
from ssast_lobes.dataio.splits import write_splits
from ssast_lobes.dataio.tables import SPLITS, ManifestError, read_manifest
from ssast_lobes.evaluation.probing import read_task
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.utils.files import atomic_write


def read_entry(entry):
    """Read an entry of the list of tasks in a YAML.

    Arguments
    ---------
    entry : dict
        Arguments of `ssast_lobes.evaluation.probing.read_task`.

    Returns
    -------
    Task

    Raises
    ------
    ManifestError, SettingsError
        If the table cannot be used, or the entry has an unknown key.
    """
    if "csv_path" not in entry:
        raise SettingsError(f"task {entry}: csv_path, its table, is missing")
    try:
        return read_task(**entry)
    except ManifestError:
        raise
    except (TypeError, ValueError) as error:
        raise SettingsError(f"task {entry}: {error}") from error


def prepare_pretraining(
    audio,
    output_folder,
    valid_fraction,
    min_seconds,
    max_unreadable,
    held_out_of=None,
):
    """Gather unlabeled audio, and hold out a part for validation.

    Arguments
    ---------
    audio : str or list of str
        Folders and CSVs. Clips of a CSV are left out if they are valid or test
        in any column whose name starts with "split".
    output_folder : str
        Folder for ``save/splits.json`` and the list of unreadable audio.
    valid_fraction : float
        Fraction of the clips to hold out, chosen by a hash of the clip's id.
        With 0 no clip is held out, otherwise at least one.
    min_seconds : float
        Shorter clips are left out.
    max_unreadable : float
        Largest accepted fraction of unreadable files.
    held_out_of : str or list of str, optional
        CSVs that are not trained on. Their valid and test clips are left out
        even if they are in a folder or another CSV of `audio`.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`.

    Raises
    ------
    ManifestError
        If the audio cannot be used; the message names the file and the fix.
    """
    sources = [audio] if isinstance(audio, str) else list(audio)
    rows = []
    for number, source in enumerate(sources):
        found = _rows_of(source)
        if len(sources) > 1:
            for row in found:
                row["id"] = f"{number}/{row['id']}"
        rows += found
    tables = [held_out_of] if isinstance(held_out_of, str) else held_out_of
    known = [row for table in tables or () for row in read_manifest(table)]
    usable = without_held_out(rows, known)
    if not usable:
        raise ManifestError(f"{audio}: every clip is valid or test")
    return write_splits(
        {"train": usable},
        output_folder,
        corpus=str(audio),
        labeled=False,
        min_seconds=min_seconds,
        max_unreadable=max_unreadable,
        valid_fraction=valid_fraction,
    )


def write_held_out(tasks, csv_path):
    """Write the held-out clips of some tasks, for `prepare_pretraining`.

    Arguments
    ---------
    tasks : list of ssast_lobes.evaluation.probing.Task
        Their valid and test clips are written.
    csv_path : str or path
        CSV to write, with the columns `path` and `split`.

    Returns
    -------
    str
        `csv_path`.
    """
    with atomic_write(csv_path) as file:
        writer = csv.DictWriter(file, ["path", "split"])
        writer.writeheader()
        writer.writerows(_held_out(tasks))
    return str(csv_path)


def check_held_out(tasks, output_folder):
    """Raise if a pretraining was trained on held-out clips of some tasks.

    Arguments
    ---------
    tasks : list of ssast_lobes.evaluation.probing.Task
        The tasks, which may differ from those that the pretraining knew.
    output_folder : str or path
        Output folder of the pretraining.

    Raises
    ------
    SettingsError
        If there are such clips; the message names one and their number.
    """
    text = (Path(output_folder) / "save/splits.json").read_text("utf-8")
    rows = list(json.loads(text)["train"].values())
    right = {row["path"] for row in without_held_out(rows, _held_out(tasks))}
    wrong = [row["path"] for row in rows if row["path"] not in right]
    if wrong:
        raise SettingsError(
            f"{output_folder} was trained on {len(wrong)} clips that a task "
            f"has in valid or test, such as {wrong[0]}: choose another "
            "output_folder, or remove that one"
        )


def _held_out(tasks):
    """Return a row for each clip that is valid or test in any task."""
    split_of = {
        path: split
        for task in tasks
        for split in ("valid", "test")
        for path in task.paths(split)
    }
    return [{"path": path, "split": split} for path, split in split_of.items()]


def prepare_classification(
    manifest,
    output_folder,
    label_column,
    split_column,
    multi_label,
    min_seconds,
    max_unreadable,
):
    """Read a labeled manifest and split it.

    Arguments
    ---------
    manifest : str
        CSV with a path, a label and a split (train, valid, test) in each row.
        If it also has a speaker, a warning names speakers in more than one
        split. Rows with an empty label or split are left out if the column is
        not called "label" or "split". Or a folder of class folders. It is split
        as `ssast-lobes manifest FOLDER` does it, independently of the seed of
        the training.
    output_folder : str
        Folder for ``save/splits.json`` and the list of unreadable audio.
    label_column, split_column : str
        Names of the two columns.
    multi_label : bool
        Whether a label cell holds several labels.
    min_seconds, max_unreadable : float
        See `prepare_pretraining`.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`.

    Raises
    ------
    ManifestError
        If rows are bad, a split is empty, labels of valid and test do not
        occur in train, or all training clips have the same label.
    """
    read = _class_folders if Path(manifest).expanduser().is_dir() else _table
    return write_splits(
        read(manifest, label_column, split_column),
        output_folder,
        corpus=str(manifest),
        multi_label=multi_label,
        min_seconds=min_seconds,
        max_unreadable=max_unreadable,
    )


def _table(manifest, label_column, split_column):
    """Return the splits of a CSV."""
    columns = {"label": label_column, "split": split_column}
    # A column with another name is from a table for several tasks.
    needs = [name for name, column in columns.items() if name == column]
    rows = read_manifest(manifest, ["path", *needs], columns=columns)
    rows = [row for row in rows if row["label"] and row["split"]]
    return {
        name: [row for row in rows if row["split"] == name] for name in SPLITS
    }


def _class_folders(folder, label_column, split_column):
    """Return the splits of a folder of class folders."""
    table = Path(folder, "manifest.csv")
    if table.expanduser().is_file():
        raise ManifestError(
            f"{folder} is a folder with a table in it: did you mean {table}?"
        )
    if split_column != "split":
        raise ManifestError(
            f"{folder}: a folder has no column {split_column}; name a CSV"
        )
    return draw_splits(class_rows(folder, label_column))


def _rows_of(source):
    if Path(source).expanduser().is_dir():
        return folder_rows(source)
    return read_manifest(source)
