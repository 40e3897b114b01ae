"""Prepare a data set of your own. Adapt it to how your labels are written."""

import csv
from pathlib import Path

from ssast_lobes.dataio.splits import write_splits


def prepare_my_data(table, output_folder, max_unreadable):
    """Write the parts of the data for the experiment.

    Arguments
    ---------
    table : str
        CSV with the columns path (from its folder on), label, speaker, split.
    output_folder : str
        Gets ``splits.json``, which train.py reads, and ``manifest.csv``.
    max_unreadable : float
        Largest accepted fraction of unreadable files.

    Raises
    ------
    ManifestError
        If files are missing, or a class is not in train; says what to mend.
    """
    folder = Path(table).absolute().parent
    splits = {"train": [], "valid": [], "test": []}
    with open(table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            splits[row["split"]].append(
                {
                    "id": row["path"],  # anything that is unique
                    "path": str(folder / row["path"]),
                    "label": row["label"],
                    # `write_splits` warns of a speaker in both train and test.
                    "speaker": row["speaker"],
                }
            )
    write_splits(
        splits, output_folder, "My data", max_unreadable=max_unreadable
    )
