"""Prepare CREMA-D: acted emotions in English; folds leave out actors.

Layout of the official repository (Cao et al., "CREMA-D: Crowd-sourced
Emotional Multimodal Actors Dataset", IEEE Transactions on Affective Computing
2014; https://github.com/CheyneyComputerScience/CREMA-D; Open Database License):

    AudioWAV/1001_DFA_ANG_XX.wav         actor, sentence, emotion, level
"""

from ssast_lobes.dataio.archives import find_archive
from ssast_lobes.dataio.corpus_checks import tally
from ssast_lobes.dataio.partition import rows_from_names
from ssast_lobes.dataio.splits import prepare_folds
from ssast_lobes.dataio.tables import ManifestError

PAGE = "https://github.com/CheyneyComputerScience/CREMA-D"
LAYOUT = ["AudioWAV"]
EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
NAME = (
    r"(?P<speaker>10\d\d)_(?P<sentence>[A-Z]{3})_"
    rf"(?P<emotion>{'|'.join(EMOTIONS)})_(?P<level>[A-Z]{{1,2}})"
)
# The page has the sum, 7,442, and the number of actors, but no counts by
# emotion. Those are from users who counted the files.
COUNTS = {
    **dict.fromkeys(EMOTIONS.values(), 1271),
    "neutral": 1087,
    "actors": 91,
}
# The corpus has no official folds: actors, numbered from 1001, are assigned to
# the folds in turn.
N_FOLDS = 5
# According to the authors, the sound of 1076_MTI_SAD_XX is missing.
MIN_SECONDS = 0.1
POINTER = b"version https://git-lfs"


def prepare_crema_d(data_folder, output_folder, fold, **settings):
    """Prepare one fold of CREMA-D: test on a fifth of the actors.

    Arguments
    ---------
    data_folder : str
        The folder that has `AudioWAV`.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    fold : int
        The fold to test on, 1 to 5: the actors 1001, 1006, ... are fold 1.
    **settings
        See `dataio.splits.prepare_folds`.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`.
    """
    folder = find_archive(data_folder, LAYOUT, f"{PAGE} (git lfs clone)")
    rows = read_rows(folder)
    check_pointers(rows)
    return prepare_folds(
        rows,
        output_folder,
        fold,
        corpus="CREMA-D, test fold",
        found=tally(rows, "{label}", actors="speaker"),
        published=COUNTS,
        source=f"users of {PAGE}",
        min_seconds=MIN_SECONDS,
        **settings,
    )


def read_rows(folder):
    """Return the rows of the clips in a folder `AudioWAV`.

    Arguments
    ---------
    folder : pathlib.Path
        Path of `AudioWAV`.

    Returns
    -------
    list of dict
        With id, path, label, speaker, sentence, level and fold.

    Raises
    ------
    ManifestError
        If a file has another name.
    """
    paths = sorted((folder / "AudioWAV").glob("[!.]*.wav"))
    rows = rows_from_names(paths, NAME, PAGE)
    for row in rows:
        row["label"] = EMOTIONS[row.pop("emotion")]
        row["fold"] = 1 + (int(row["speaker"]) - 1001) % N_FOLDS
    return rows


def check_pointers(rows):
    """Raise if git has fetched pointers instead of the files.

    Arguments
    ---------
    rows : list of dict
        See `read_rows`.

    Raises
    ------
    ManifestError
        If there are pointers; the message says how many, and how to get the
        files.
    """
    pointers = [row["path"] for row in rows if _is_pointer(row["path"])]
    if pointers:
        raise ManifestError(
            f"{len(pointers)} of {len(rows)} files are not audio but notes "
            f"where git lfs finds it, such as {pointers[0]}; install git-lfs "
            "and run `git lfs pull` in the repository"
        )


def _is_pointer(path):
    with open(path, "rb") as file:
        return file.read(len(POINTER)) == POINTER
