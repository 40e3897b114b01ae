"""Prepare UrbanSound8K: sounds of the city in ten official folds.

Layout of the official archive (Salamon et al., "A dataset and taxonomy for
urban sound research", ACM Multimedia 2014;
https://urbansounddataset.weebly.com/urbansound8k.html):

    UrbanSound8K/audio/fold5/100032-3-0-0.wav     recording, class, ...
    UrbanSound8K/metadata/UrbanSound8K.csv        slice_file_name, fsID, ...
"""

import csv

from ssast_lobes.dataio.archives import find_archive
from ssast_lobes.dataio.corpus_checks import tally
from ssast_lobes.dataio.splits import prepare_folds
from ssast_lobes.dataio.tables import ManifestError

FOLDS = tuple(range(1, 11))
PAGE = "https://urbansounddataset.weebly.com/urbansound8k.html"
# Version 1.0; the checksum is that of the record, and of soundata.
URL = "https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz?download=1"
MD5 = "9aa69802bbf37fb986f71ec1483a196e"
NAME = "UrbanSound8K"
TABLE = "metadata/UrbanSound8K.csv"
LAYOUT = [TABLE, *(f"audio/fold{fold}" for fold in FOLDS)]
# Columns of the table; several clips may be from one recording (Freesound).
COLUMNS = {
    "file": "slice_file_name",
    "label": "class",
    "recording": "fsID",
    "fold": "fold",
}
# The page has the sum, 8,732. Users of the table report the same counts for the
# rare classes and for folds 1 and 10; only the sum verifies the other folds.
PER_CLASS = {
    "air_conditioner": 1000,
    "car_horn": 429,
    "children_playing": 1000,
    "dog_bark": 1000,
    "drilling": 1000,
    "engine_idling": 1000,
    "gun_shot": 374,
    "jackhammer": 1000,
    "siren": 929,
    "street_music": 1000,
}
PER_FOLD = (873, 888, 925, 990, 936, 823, 838, 806, 816, 837)
PUBLISHED = {
    "clips": sum(PER_FOLD),
    **PER_CLASS,
    **{f"fold {f}": n for f, n in zip(FOLDS, PER_FOLD, strict=True)},
}
CLASSES = list(PER_CLASS)


def prepare_urbansound8k(
    data_folder,
    output_folder,
    fold,
    valid_fraction=0.1,
    allow_download=False,
    **settings,
):
    """Prepare one fold of UrbanSound8K.

    Arguments
    ---------
    data_folder : str
        `UrbanSound8K`, or the folder that contains or will contain it.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    fold : int
        The fold to test on, 1 to 10.
    valid_fraction : float
        Fraction of the other folds that is held out for validation: whole
        recordings, and about the same fraction of each class.
    allow_download : bool
        Whether to download the archive (6 GB) if it is missing.
    **settings
        See `dataio.splits.prepare_folds`.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`.
    """
    folder = find_archive(
        data_folder,
        LAYOUT,
        PAGE,
        [NAME],
        url=URL,
        file=f"{NAME}.tar.gz",
        md5=MD5,
        allow_download=allow_download,
    )
    rows = read_rows(folder)
    return prepare_folds(
        rows,
        output_folder,
        fold,
        corpus="UrbanSound8K, test fold",
        found=tally(rows, "clips", "{label}", "fold {fold}"),
        published=PUBLISHED,
        source=f"{TABLE} of {PAGE}",
        group="recording",
        valid_fraction=valid_fraction,
        classes=CLASSES,
        **settings,
    )


def read_rows(folder):
    """Return the rows of the clips that the official table lists.

    Arguments
    ---------
    folder : pathlib.Path
        `UrbanSound8K`.

    Returns
    -------
    list of dict
        With id, path, label, recording and fold.

    Raises
    ------
    ManifestError
        If a column or a cell is missing; the message names the line.
    """
    table = folder / TABLE
    rows = []
    with open(table, encoding="utf-8-sig", newline="") as file:
        lines = csv.DictReader(file)
        missing = set(COLUMNS.values()) - set(lines.fieldnames or [])
        if missing:
            raise ManifestError(
                f"{table}: no column {', '.join(sorted(missing))}; get it "
                f"from the archive of {PAGE}"
            )
        for line in lines:
            row = {key: line[column] for key, column in COLUMNS.items()}
            if not all(row.values()):
                raise ManifestError(
                    f"{table}: line {lines.line_num} lacks cells; get the "
                    f"table from the archive of {PAGE}"
                )
            name = row.pop("file")
            audio = folder / "audio" / f"fold{row['fold']}" / name
            rows.append({"id": name, "path": str(audio), **row})
    return rows
