"""Prepares ESC-50 and ESC-10: environmental sounds in five official folds.

Layout of the official archive (Piczak, "ESC: Dataset for environmental sound
classification", 2015; https://github.com/karolpiczak/ESC-50):

    ESC-50-master/audio/1-100032-A-0.wav      fold, recording, take, class
    ESC-50-master/meta/esc50.csv              filename, fold, category, ...
"""

from collections import Counter
from pathlib import Path

from ssast_lobes.data.archives import (
    check_counts,
    check_layout,
    download,
    unpack,
)
from ssast_lobes.data.manifest import read_manifest
from ssast_lobes.data.splits import fold_splits, write_splits

FOLDS = (1, 2, 3, 4, 5)
PAGE = "https://github.com/karolpiczak/ESC-50"
# The newest state: it has no fixed checksum. A damaged archive does not
# unpack (each member has a checksum), and an incomplete one is counted.
URL = f"{PAGE}/archive/master.zip"
NAME = "ESC-50-master"
LAYOUT = ["audio", "meta/esc50.csv"]
# Columns of meta/esc50.csv; one recording (of Freesound) gave several clips.
COLUMNS = {"path": "filename", "label": "category", "recording": "src_file"}
CLIPS_PER_CLASS = 40


def prepare_esc50(
    data_folder,
    output_folder,
    fold,
    esc10=False,
    valid_share=0.2,
    valid_is_test=False,
    allow_download=False,
    require_counts=True,
    max_unreadable=0.01,
):
    """Make one fold of ESC-50 or ESC-10 ready.

    Arguments
    ---------
    data_folder : str
        `ESC-50-master`, or the folder that has it or shall get it.
    output_folder : str
        Of the experiment; see `data.splits.write_splits`.
    fold : int
        The fold to test on, 1 to 5.
    esc10 : bool
        Only the ten classes of ESC-10.
    valid_share : float
        Share of the other folds that chooses the epoch: whole recordings,
        each class alike.
    valid_is_test : bool
        True: choose the epoch on the test fold, see `data.splits.fold_splits`.
    allow_download : bool
        Whether to fetch the archive (600 MB) if it is not there.
    require_counts : bool
        Whether a part of the archive is an error.
    max_unreadable : float
        Largest share of unreadable files that is let pass.

    Returns
    -------
    str
        Path of the JSON file, see `data.splits.write_splits`.

    Raises
    ------
    ManifestError
        If the data cannot be used; says what to mend.
    """
    folder = find_esc50(data_folder, allow_download)
    rows = read_rows(folder)
    if esc10:
        rows = [row for row in rows if row["esc10"] == "True"]
    if require_counts:
        published = published_counts(10 if esc10 else 50)
        check_counts(count(rows), published, f"the README of {PAGE}")
    splits = fold_splits(rows, fold, valid_share, "recording", valid_is_test)
    return write_splits(
        splits,
        output_folder,
        corpus=f"ESC-{10 if esc10 else 50}, test fold {fold}",
        group="recording",
        max_unreadable=max_unreadable,
    )


def find_esc50(data_folder, allow_download):
    """Find the unpacked archive, or fetch it; checks its layout.

    Arguments
    ---------
    data_folder, allow_download
        See `prepare_esc50`.

    Returns
    -------
    pathlib.Path
        The folder `ESC-50-master`.
    """
    data_folder = Path(data_folder).expanduser()
    for folder in (data_folder, data_folder / NAME):
        if (folder / "meta").is_dir():
            check_layout(folder, LAYOUT, PAGE)
            return folder
    if allow_download:
        archive = download(URL, data_folder / f"{NAME}.zip")
        unpack(archive, data_folder)
    page = f"{PAGE}, which --allow_download True fetches"
    check_layout(data_folder / NAME, LAYOUT, page)
    return data_folder / NAME


def read_rows(folder):
    """Rows of the clips that the official table lists.

    Arguments
    ---------
    folder : pathlib.Path
        `ESC-50-master`.

    Returns
    -------
    list of dict
        With id, path, label, recording, fold and esc10 ("True" or "False").

    Raises
    ------
    ManifestError
        If clips are missing or listed twice; names the lines.
    """
    keys = ("path", "label", "recording", "fold", "esc10")
    table = folder / "meta" / "esc50.csv"
    rows = read_manifest(table, keys, folder / "audio", COLUMNS)
    return [{key: row[key] for key in ("id", *keys)} for row in rows]


def count(rows):
    """Clips in all and of each fold, and classes.

    Arguments
    ---------
    rows : list of dict
        See `read_rows`.

    Returns
    -------
    dict of str to int
    """
    folds = Counter(f"fold {row['fold']}" for row in rows)
    classes = len({row["label"] for row in rows})
    return {"clips": len(rows), "classes": classes, **folds}


def published_counts(classes):
    """Counts of the whole ESC-50 or ESC-10: 40 clips a class, 8 in each fold.

    Arguments
    ---------
    classes : int
        50 or 10.

    Returns
    -------
    dict of str to int
    """
    clips = classes * CLIPS_PER_CLASS
    folds = {f"fold {fold}": clips // len(FOLDS) for fold in FOLDS}
    return {"clips": clips, "classes": classes, **folds}
