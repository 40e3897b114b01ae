"""Prepare ESC-50 and ESC-10: environmental sounds in five official folds.

Layout of the official archive (Piczak, "ESC: Dataset for environmental sound
classification", 2015; https://github.com/karolpiczak/ESC-50):

    ESC-50-master/audio/1-100032-A-0.wav      fold, recording, take, class
    ESC-50-master/meta/esc50.csv              filename, fold, category, ...
"""

from ssast_lobes.dataio.archives import find_archive
from ssast_lobes.dataio.corpus_checks import tally
from ssast_lobes.dataio.splits import prepare_folds
from ssast_lobes.dataio.tables import read_manifest

FOLDS = (1, 2, 3, 4, 5)
PAGE = "https://github.com/karolpiczak/ESC-50"
# The newest state has no fixed checksum. A damaged archive does not unpack
# (each member has a checksum), and the clips are counted.
URL = f"{PAGE}/archive/master.zip"
NAME = "ESC-50-master"
LAYOUT = ["audio", "meta/esc50.csv"]
# Columns of meta/esc50.csv; several clips may be from one Freesound recording.
COLUMNS = {"path": "filename", "label": "category", "recording": "src_file"}
CLIPS_PER_CLASS = 40


def prepare_esc50(
    data_folder,
    output_folder,
    fold,
    esc10=False,
    allow_download=False,
    **settings,
):
    """Prepare one fold of ESC-50 or ESC-10.

    Arguments
    ---------
    data_folder : str
        `ESC-50-master`, or the folder that contains or will contain it.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    fold : int
        The fold to test on, 1 to 5.
    esc10 : bool
        Whether to use only the ten classes of ESC-10.
    allow_download : bool
        Whether to download the archive (600 MB) if it is missing.
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
        file=f"{NAME}.zip",
        allow_download=allow_download,
    )
    rows = read_rows(folder)
    if esc10:
        rows = [row for row in rows if row["esc10"] == "True"]
    classes = 10 if esc10 else 50
    clips = classes * CLIPS_PER_CLASS
    published = {"clips": clips, "classes": classes}
    published |= {f"fold {fold}": clips // len(FOLDS) for fold in FOLDS}
    return prepare_folds(
        rows,
        output_folder,
        fold,
        corpus=f"ESC-{classes}, test fold",
        found=tally(rows, "clips", "fold {fold}", classes="label"),
        published=published,
        source=f"the README of {PAGE}",
        group="recording",
        **settings,
    )


def read_rows(folder):
    """Return the rows of the clips that the official table lists.

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
        If clips are missing or listed twice; the message names the lines.
    """
    keys = ("path", "label", "recording", "fold", "esc10")
    table = folder / "meta" / "esc50.csv"
    rows = read_manifest(table, keys, folder / "audio", COLUMNS)
    return [{key: row[key] for key in ("id", *keys)} for row in rows]
