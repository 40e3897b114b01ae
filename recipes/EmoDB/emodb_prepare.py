"""Prepares EmoDB: acted emotions in German, leaving one speaker out.

Layout of the official archive (Burkhardt et al., "A database of German
emotional speech", Interspeech 2005; http://emodb.bilderbar.info):

    wav/03a01Fa.wav         speaker, sentence, emotion, version
"""

from collections import Counter
from pathlib import Path

from ssast_lobes.data.archives import (
    check_counts,
    check_layout,
    download,
    unpack,
)
from ssast_lobes.data.splits import fold_splits, rows_from_names, write_splits

PAGE = "http://emodb.bilderbar.info/docu"
# No checksum is published. A damaged archive does not unpack (each member has
# a checksum), and an incomplete one is counted.
URL = "http://emodb.bilderbar.info/download/download.zip"
LAYOUT = ["wav"]
NAME = r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[WLEAFTN])[a-z]"
# First letters of the German words.
EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
# Counted in the archive; their sum, 535, is in its documentation.
COUNTS = {
    "anger": 127,
    "boredom": 81,
    "disgust": 46,
    "fear": 69,
    "happiness": 71,
    "sadness": 62,
    "neutral": 79,
    "speakers": 10,
}


def prepare_emodb(
    data_folder,
    output_folder,
    fold,
    valid_share=0.2,
    valid_is_test=False,
    allow_download=False,
    require_counts=True,
    max_unreadable=0.01,
):
    """Make one fold of EmoDB ready: one speaker to test on.

    Arguments
    ---------
    data_folder : str
        The folder that has `wav`, or shall get it.
    output_folder : str
        Of the experiment; see `data.splits.write_splits`.
    fold : int
        The speaker to test on: 3, 8, 9, 10, 11, 12, 13, 14, 15 or 16.
    valid_share : float
        Share of the other speakers' clips that chooses the epoch: whole
        speakers.
    valid_is_test : bool
        True: choose the epoch on the test fold, see `data.splits.fold_splits`.
    allow_download : bool
        Whether to fetch the archive (40 MB) if it is not there.
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
    data_folder = Path(data_folder).expanduser()
    if allow_download and not (data_folder / "wav").is_dir():
        unpack(download(URL, data_folder / "download.zip"), data_folder)
    page = f"{PAGE}, which --allow_download True fetches"
    check_layout(data_folder, LAYOUT, page)
    rows = read_rows(data_folder)
    if require_counts:
        check_counts(count(rows), COUNTS, PAGE)
    return write_splits(
        fold_splits(rows, fold, valid_share, "speaker", valid_is_test),
        output_folder,
        corpus=f"EmoDB, test speaker {fold}",
        max_unreadable=max_unreadable,
    )


def read_rows(folder):
    """Rows of the clips in a folder `wav`.

    Arguments
    ---------
    folder : pathlib.Path
        Where it is.

    Returns
    -------
    list of dict
        With id, path, label, speaker, sentence and fold (the speaker).

    Raises
    ------
    ManifestError
        If a file has another name.
    """
    paths = sorted((folder / "wav").glob("*.wav"))
    rows = rows_from_names(paths, NAME, PAGE)
    for row in rows:
        row["label"] = EMOTIONS[row.pop("emotion")]
        row["fold"] = int(row["speaker"])
    return rows


def count(rows):
    """Clips of each emotion, and speakers.

    Arguments
    ---------
    rows : list of dict
        See `read_rows`.

    Returns
    -------
    dict of str to int
    """
    speakers = len({row["speaker"] for row in rows})
    return {"speakers": speakers, **Counter(row["label"] for row in rows)}
