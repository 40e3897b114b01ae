"""Prepares anybody's audio: manifests are read, checked and split.

The result is one JSON file of rows by split, which every process reads.
"""

import hashlib
import json
from pathlib import Path

from speechbrain.utils.logger import get_logger

from ssast_lobes.data.manifest import (
    ManifestError,
    folder_rows,
    held_out,
    index_rows,
    prepare,
    read_manifest,
    split_labels,
)

logger = get_logger(__name__)

HELD_OUT = ("valid", "test")


def prepare_pretraining(
    audio, output_folder, valid_share, min_seconds, max_unreadable
):
    """Gather unlabelled audio and hold a part out for watching.

    Arguments
    ---------
    audio : str or list of str
        Folders and CSVs. Clips of a CSV that are valid or test in any column
        whose name starts with "split" are left out.
    output_folder : str
        Where ``pretraining.json`` goes, and the list of unreadable audio.
    valid_share : float
        Share of the clips to hold out, chosen by a hash of the clip's id; at
        least one, none if it is 0.
    min_seconds : float
        Shorter clips are left out.
    max_unreadable : float
        Largest share of unreadable files that is let pass.

    Returns
    -------
    str
        Path of the JSON file: ``{"train": {id: row}, "valid": {id: row}}``.

    Raises
    ------
    ManifestError
        If the audio cannot be used; names the file and what to mend.
    """
    sources = [audio] if isinstance(audio, str) else list(audio)
    rows = []
    for number, source in enumerate(sources):
        found = _rows_of(source)
        if len(sources) > 1:
            for row in found:
                row["id"] = f"{number}/{row['id']}"
        rows += found
    # A folder may hold the files of a table beside it.
    kept_out = {row["path"] for row in rows if held_out(row)}
    usable = {row["path"]: row for row in rows if row["path"] not in kept_out}
    usable = list(usable.values())
    if not usable:
        raise ManifestError(f"{audio}: every clip is valid or test")
    usable, _ = prepare(usable, output_folder, min_seconds, max_unreadable)
    # At least one, of a small corpus too.
    share = max(valid_share, min(_share_of(row["id"]) for row in usable))
    rows = {"train": [], "valid": []}
    for row in usable:
        held = valid_share > 0 and _share_of(row["id"]) <= share
        rows["valid" if held else "train"].append(row)
    if not rows["train"]:
        raise ManifestError(
            f"{audio}: no clip is left to train on; lower valid_share"
        )
    return _write(rows, output_folder, "pretraining.json")


def prepare_classification(
    manifest,
    output_folder,
    label_column,
    split_column,
    multi_label,
    min_seconds,
    max_unreadable,
):
    """Read a labelled manifest and split it.

    Arguments
    ---------
    manifest : str
        CSV with a path, a label and a split (train, valid, test) a row, and
        perhaps a speaker, to be warned of speakers in more than one split; rows
        with an empty label or split are left out where the column has
        another name than "label" and "split".
    output_folder : str
        Where ``classification.json`` goes, and the list of unreadable audio.
    label_column, split_column : str
        Names of the two columns.
    multi_label : bool
        Whether a label cell holds several labels.
    min_seconds, max_unreadable : float
        See `prepare_pretraining`.

    Returns
    -------
    str
        Path of the JSON file: rows by split, and the ``labels`` of train.

    Raises
    ------
    ManifestError
        If rows are bad, a split is empty, or labels of valid and test do not
        occur in train.
    """
    columns = {"label": label_column, "split": split_column}
    # A column of another name belongs to a table of more than one task.
    needs = [name for name, column in columns.items() if name == column]
    rows = read_manifest(manifest, ["path", *needs], columns=columns)
    rows = [row for row in rows if row["label"] and row["split"]]
    rows, _ = prepare(rows, output_folder, min_seconds, max_unreadable)
    splits = {name: [] for name in ("train", *HELD_OUT)}
    for row in rows:
        splits[row["split"]].append(row)
    empty = [name for name, part in splits.items() if not part]
    if empty:
        raise ManifestError(
            f"{manifest}: no row is {' or '.join(empty)} in column "
            f"'{split_column}'"
        )
    _warn_of_shared_speakers(splits, label_column)
    labels = {
        name: {label for row in part for label in _labels(row, multi_label)}
        for name, part in splits.items()
    }
    for name in HELD_OUT:
        unknown = sorted(labels[name] - labels["train"])
        if unknown:
            raise ManifestError(
                f"{manifest}: labels of {name} that train does not have: "
                f"{', '.join(unknown[:20])}"
            )
    return _write(
        splits,
        output_folder,
        "classification.json",
        labels=sorted(labels["train"]),
    )


def load_rows(path):
    """Read the rows that were prepared.

    Arguments
    ---------
    path : str
        JSON file of one of the two functions above.

    Returns
    -------
    dict
        Rows by split.
    """
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _rows_of(source):
    if Path(source).expanduser().is_dir():
        return folder_rows(source)
    return read_manifest(source)


def _share_of(clip_id):
    digest = hashlib.blake2b(clip_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _warn_of_shared_speakers(splits, label_column):
    """A test part with the voices of train measures something else."""
    if label_column == "speaker":
        return
    known = {row.get("speaker") for row in splits["train"]}
    for name in HELD_OUT:
        shared = {row.get("speaker") for row in splits[name]} & known
        shared -= {None, "", "none"}
        if shared:
            logger.warning(
                f"{len(shared)} speakers of {name} are in train too, such as "
                f"{min(shared)}"
            )


def _labels(row, multi_label):
    return split_labels(row["label"]) if multi_label else [row["label"]]


def _write(splits, output_folder, name, **more):
    path = Path(output_folder) / name
    content = {key: index_rows(rows) for key, rows in splits.items()}
    with open(path, "w", encoding="utf-8") as file:
        json.dump({**content, **more}, file)
    return str(path)
