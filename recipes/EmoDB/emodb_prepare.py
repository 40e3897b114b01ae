"""Prepare EmoDB: acted emotions in German, leaving one speaker out.

Layout of the official archive (Burkhardt et al., "A database of German
emotional speech", Interspeech 2005; http://emodb.bilderbar.info):

    wav/03a01Fa.wav         speaker, sentence, emotion, version
"""

from ssast_lobes.dataio.archives import find_archive
from ssast_lobes.dataio.corpus_checks import tally
from ssast_lobes.dataio.partition import rows_from_names
from ssast_lobes.dataio.splits import prepare_folds

PAGE = "http://emodb.bilderbar.info/docu"
# No checksum is published. A damaged archive does not unpack (each member has
# a checksum), and the clips are counted.
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
# The page has no counts by emotion. These are from users who counted the files;
# their sum is that of the copy at huggingface.co/datasets/renumics/emodb.
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
    data_folder, output_folder, fold, allow_download=False, **settings
):
    """Prepare one fold of EmoDB: test on one speaker.

    Arguments
    ---------
    data_folder : str
        The folder that contains or will contain `wav`.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    fold : int
        The speaker to test on: 3, 8, 9, 10, 11, 12, 13, 14, 15 or 16.
    allow_download : bool
        Whether to download the archive (40 MB) if it is missing.
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
        url=URL,
        file="download.zip",
        allow_download=allow_download,
    )
    rows = read_rows(folder)
    return prepare_folds(
        rows,
        output_folder,
        fold,
        corpus="EmoDB, test speaker",
        found=tally(rows, "{label}", speakers="speaker"),
        published=COUNTS,
        source=f"users of {PAGE}",
        **settings,
    )


def read_rows(folder):
    """Return the rows of the clips in a folder `wav`.

    Arguments
    ---------
    folder : pathlib.Path
        Path of `wav`.

    Returns
    -------
    list of dict
        With id, path, label, speaker, sentence and fold (the speaker).

    Raises
    ------
    ManifestError
        If a file has another name.
    """
    paths = sorted((folder / "wav").glob("[!.]*.wav"))
    rows = rows_from_names(paths, NAME, PAGE)
    for row in rows:
        row["label"] = EMOTIONS[row.pop("emotion")]
        row["fold"] = int(row["speaker"])
    return rows
