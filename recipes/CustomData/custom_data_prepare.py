"""Prepares anybody's audio: manifests are read, checked and split.

The result is one JSON file of rows by split, which every process reads.
"""

from pathlib import Path

from ssast_lobes.data.manifest import (
    SPLITS,
    ManifestError,
    folder_rows,
    held_out,
    prepare,
    read_manifest,
)
from ssast_lobes.data.splits import hash_shares, write_splits


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
        Where ``splits.json`` goes, and the list of unreadable audio.
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
        Path of the JSON file, see `data.splits.write_splits`.

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
    places = hash_shares([row["id"] for row in usable])
    # At least one, of a small corpus too.
    share = max(valid_share, min(places)) if valid_share > 0 else -1
    splits = {"train": [], "valid": []}
    for row, place in zip(usable, places, strict=True):
        splits["valid" if place <= share else "train"].append(row)
    return write_splits(splits, output_folder, str(audio), labelled=False)


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
        Where ``splits.json`` goes, and the list of unreadable audio.
    label_column, split_column : str
        Names of the two columns.
    multi_label : bool
        Whether a label cell holds several labels.
    min_seconds, max_unreadable : float
        See `prepare_pretraining`.

    Returns
    -------
    str
        Path of the JSON file, see `data.splits.write_splits`.

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
    splits = {
        name: [row for row in rows if row["split"] == name] for name in SPLITS
    }
    return write_splits(
        splits,
        output_folder,
        corpus=str(manifest),
        multi_label=multi_label,
        min_seconds=min_seconds,
        max_unreadable=max_unreadable,
    )


def _rows_of(source):
    if Path(source).expanduser().is_dir():
        return folder_rows(source)
    return read_manifest(source)
