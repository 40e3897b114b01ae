"""Prepare your own dataset. Adapt this file to the format of your labels."""

from ssast_lobes.dataio.splits import write_splits
from ssast_lobes.dataio.tables import read_manifest


def prepare_my_data(table, output_folder, max_unreadable):
    """Write the parts of the data for the experiment.

    Arguments
    ---------
    table : str
        CSV with the columns path (relative to its folder), label, split (train,
        valid or test) and perhaps speaker.
    output_folder : str
        Folder for ``save/splits.json``, which train.py reads, and a table.
    max_unreadable : float
        Largest accepted fraction of unreadable files.

    Raises
    ------
    ManifestError
        If files are missing, or a class is not in train; the message says what
        to fix.
    """
    splits = {"train": [], "valid": [], "test": []}
    for row in read_manifest(table, needs=("path", "label", "split")):
        splits[row["split"]].append(
            {
                "id": row["id"],  # anything that is unique
                "path": row["path"],
                "label": row["label"],
                # `write_splits` warns if a speaker is in both train and test.
                "speaker": row.get("speaker"),
            }
        )
    write_splits(
        splits, output_folder, "My data", max_unreadable=max_unreadable
    )
