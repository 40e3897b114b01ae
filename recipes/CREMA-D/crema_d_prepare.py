"""Prepares CREMA-D: acted emotions in English, actors left out by fifths.

Layout of the official repository (Cao et al., "CREMA-D: Crowd-sourced
Emotional Multimodal Actors Dataset", IEEE Transactions on Affective Computing
2014; https://github.com/CheyneyComputerScience/CREMA-D; Open Database License):

    AudioWAV/1001_DFA_ANG_XX.wav         actor, sentence, emotion, level
"""

from collections import Counter
from pathlib import Path

from ssast_lobes.data.archives import check_counts, check_layout
from ssast_lobes.data.manifest import ManifestError
from ssast_lobes.data.splits import fold_splits, rows_from_names, write_splits

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
# Counted in the archive; 7,442 clips and 91 actors are on the page.
COUNTS = {
    **dict.fromkeys(EMOTIONS.values(), 1271),
    "neutral": 1087,
    "actors": 91,
}
# Actors are numbered from 1001 and dealt out to the folds in turn: the corpus
# has no official folds.
N_FOLDS = 5
# The sound of 1076_MTI_SAD_XX is missing, say the authors.
MIN_SECONDS = 0.1
POINTER = b"version https://git-lfs"


def prepare_crema_d(
    data_folder,
    output_folder,
    fold,
    valid_share=0.2,
    valid_is_test=False,
    require_counts=True,
    max_unreadable=0.01,
):
    """Make one fold of CREMA-D ready: a fifth of the actors to test on.

    Arguments
    ---------
    data_folder : str
        The folder that has `AudioWAV`.
    output_folder : str
        Of the experiment; see `data.splits.write_splits`.
    fold : int
        The fold to test on, 1 to 5: the actors 1001, 1006, ... are fold 1.
    valid_share : float
        Share of the other actors' clips that chooses the epoch: whole actors.
    valid_is_test : bool
        True: choose the epoch on the test fold, see `data.splits.fold_splits`.
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
    folder = Path(data_folder).expanduser()
    check_layout(folder, LAYOUT, f"{PAGE} (git lfs clone)")
    rows = read_rows(folder)
    if require_counts:
        check_counts(count(rows), COUNTS, PAGE)
    check_pointers(rows)
    return write_splits(
        fold_splits(rows, fold, valid_share, "speaker", valid_is_test),
        output_folder,
        corpus=f"CREMA-D, test fold {fold}",
        min_seconds=MIN_SECONDS,
        max_unreadable=max_unreadable,
    )


def read_rows(folder):
    """Rows of the clips in a folder `AudioWAV`.

    Arguments
    ---------
    folder : pathlib.Path
        Where it is.

    Returns
    -------
    list of dict
        With id, path, label, speaker, sentence, level and fold.

    Raises
    ------
    ManifestError
        If a file has another name.
    """
    paths = sorted((folder / "AudioWAV").glob("*.wav"))
    rows = rows_from_names(paths, NAME, PAGE)
    for row in rows:
        row["label"] = EMOTIONS[row.pop("emotion")]
        row["fold"] = 1 + (int(row["speaker"]) - 1001) % N_FOLDS
    return rows


def check_pointers(rows):
    """Raise if git has fetched the names of the files and not the files.

    Arguments
    ---------
    rows : list of dict
        See `read_rows`.

    Raises
    ------
    ManifestError
        Says how many, and how to get them.
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


def count(rows):
    """Clips of each emotion, and actors.

    Arguments
    ---------
    rows : list of dict
        See `read_rows`.

    Returns
    -------
    dict of str to int
    """
    actors = len({row["speaker"] for row in rows})
    return {"actors": actors, **Counter(row["label"] for row in rows)}
