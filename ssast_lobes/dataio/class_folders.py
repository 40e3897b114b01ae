"""Read labeled audio from a folder for each class, with or without splits.

A `metadata.csv`, as in Hugging Face's layout `audiofolder`, is read as well.
"""

import os
from pathlib import Path

from ssast_lobes.dataio.scan import find_audio
from ssast_lobes.dataio.tables import (
    ManifestError,
    label_problem,
    raise_problems,
    read_manifest,
)
from ssast_lobes.utils.files import absolute

_TABLE = "metadata.csv"
# Names of the folders of splits, here and at Hugging Face.
_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def class_rows(folder, label_column="label", group=None):
    """Return rows for the labeled audio of a folder.

    The label of a file is the name of the folder directly under `folder` that
    contains it, at any depth. If all these folders are named train, valid
    (validation, val, dev) or test, they are the splits, and the folders in them
    are the labels. If there is a `metadata.csv` (in `folder`, or in each folder
    of a split), its columns file_name and label list the files and labels. The
    folders then determine only the splits. Hidden files and folders are left
    out.

    Arguments
    ---------
    folder : str or os.PathLike
        Where to look.
    label_column : str
        Column of `metadata.csv` with the labels.
    group : re.Pattern, optional
        Pattern to search in each path below `folder`, as ``re.search`` does.
        Its first parentheses match the group of the clip, such as its speaker.
        The clips of a group stay together.

    Returns
    -------
    list of dict
        `id`, the path relative to `folder`; `path`, absolute; `label`; and, if
        they are known, `split` (train, valid or test) and `group`.

    Raises
    ------
    ManifestError
        If the folder is missing or has no audio, files have no label or no
        group, a label cannot be saved, or all files have the same label. The
        message lists the problems.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> for label in ("cat", "dog"):
    ...     folder.mkdir(label).join("1.wav").write("")
    >>> [(row["id"], row["label"]) for row in class_rows(folder)]
    [('cat/1.wav', 'cat'), ('dog/1.wav', 'dog')]
    """
    folder = absolute(folder)
    label_of = _listed(folder, label_column)
    if label_of is None and label_column != "label":
        raise ManifestError(
            f"{folder}: no {_TABLE} with a column {label_column}"
        )
    paths = find_audio(folder) if label_of is None else label_of
    ids = {path: Path(os.path.relpath(path, folder)) for path in paths}
    tops = {place.parts[0].lower() for place in ids.values() if place.parts[1:]}
    are_splits = bool(tops) and tops <= set(_SPLIT_OF)
    rows, problems = [], []
    for path, place in ids.items():
        *folders, _ = place.parts
        row = {"id": place.as_posix(), "path": path}
        if are_splits and folders:
            row["split"] = _SPLIT_OF[folders.pop(0).lower()]
        if label_of is None and not folders:
            problems.append(f"in no class folder: {place}")
            continue
        row["label"] = folders[0] if label_of is None else label_of[path]
        found = group and group.search(row["id"])
        if found and found[1] is not None:
            row["group"] = found[1]
        elif group:
            problems.append(f"{group.pattern} is not found in {row['id']}")
        rows.append(row)
    labels = sorted({row["label"] for row in rows})
    problems += filter(None, map(label_problem, labels))
    if paths and not rows and label_of is None:
        raise ManifestError(
            f"{folder}: all audio lies in no class folder: put the clips of "
            f"each class into a folder of its name, {Path(folder, 'LABEL')}"
        )
    raise_problems(folder, problems)
    if len(labels) == 1:
        hint = f"; did you mean {Path(folder, labels[0])}?"
        raise ManifestError(
            f"{folder}: there is one label only, {labels[0]}"
            f"{hint if label_of is None and not are_splits else ''}"
        )
    return rows


def _listed(folder, label_column):
    """Return the label of each path of `metadata.csv`; None without the file.

    The folders of splits may have files of their own. If one of these folders
    has such a file, all of them need one.
    """
    table = os.path.join(folder, _TABLE)
    if os.path.isfile(table):
        tables = [table]
    else:
        tables = [
            os.path.join(entry.path, _TABLE)
            for entry in (os.scandir(folder) if os.path.isdir(folder) else ())
            if entry.is_dir() and entry.name.lower() in _SPLIT_OF
        ]
        if not any(map(os.path.isfile, tables)):
            return None
    columns = {"path": "file_name", "label": label_column}
    return {
        row["path"]: row["label"]
        for table in sorted(tables)
        for row in read_manifest(table, ("path", "label"), columns=columns)
    }
