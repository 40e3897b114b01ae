"""Prepares IEMOCAP: four emotions, one session of five left out.

Layout of the official archive (Busso et al., "IEMOCAP: interactive emotional
dyadic motion capture database", Language Resources and Evaluation, 2008;
https://sail.usc.edu/iemocap):

    IEMOCAP_full_release/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt
    IEMOCAP_full_release/Session1/sentences/wav/Ses01F_impro01/
        Ses01F_impro01_F000.wav           dialogue, speaker (F or M) and turn

A line of the first that starts with a bracket tells the emotion on which most
of those agreed who listened to the turn, separated by tabs:

    [6.2901 - 8.2357]   Ses01F_impro01_F000   neu   [2.5000, 2.5000, 2.5000]
"""

from collections import Counter
from pathlib import Path

from ssast_lobes.data.archives import check_counts, check_layout
from ssast_lobes.data.manifest import ManifestError
from ssast_lobes.data.splits import fold_splits, write_splits

FOLDS = (1, 2, 3, 4, 5)
PAGE = "https://sail.usc.edu/iemocap"
NAME = "IEMOCAP_full_release"
PARTS = ("dialog/EmoEvaluation", "sentences/wav")
LAYOUT = [f"Session{number}/{part}" for number in FOLDS for part in PARTS]
# As SUPERB has it (s3prl, downstream/emotion): excitement counts as happiness,
# and turns of other emotions or without agreement are left out.
EMOTIONS = {
    "ang": "angry",
    "exc": "happy",
    "hap": "happy",
    "neu": "neutral",
    "sad": "sad",
}
CLASSES = sorted(set(EMOTIONS.values()))
PUBLISHED = {
    "utterances": 5531,
    "angry": 1103,
    "happy": 1636,
    "neutral": 1708,
    "sad": 1084,
    "session 1": 1085,
    "session 2": 1023,
    "session 3": 1151,
    "session 4": 1031,
    "session 5": 1241,
}
SOURCE = (
    "SUPERB, s3prl downstream/emotion, and by session emotion2vec, "
    "iemocap_downstream"
)
GROUPS = ("session", "speaker", "dialogue", "id")


def prepare_iemocap(
    data_folder,
    output_folder,
    fold,
    valid_share=0.2,
    valid_group="session",
    valid_is_test=False,
    require_counts=True,
    max_unreadable=0.01,
):
    """Make one fold of IEMOCAP ready.

    Arguments
    ---------
    data_folder : str
        `IEMOCAP_full_release`, or the folder that has it.
    output_folder : str
        Of the experiment; see `data.splits.write_splits`.
    fold : int
        The session to test on, 1 to 5.
    valid_share : float
        Share of the other sessions that chooses the epoch, as near to it as
        whole groups allow.
    valid_group : str
        What these groups are: "session", "speaker", "dialogue", or "id" for
        single utterances, as SUPERB takes them.
    valid_is_test : bool
        True: choose the epoch on the test session, see
        `data.splits.fold_splits`.
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
    if valid_group not in GROUPS:
        raise ManifestError(
            f"valid_group must be one of {', '.join(GROUPS)}, got "
            f"'{valid_group}'"
        )
    rows = read_rows(find_iemocap(data_folder))
    if require_counts:
        check_counts(count(rows), PUBLISHED, SOURCE)
    return write_splits(
        fold_splits(rows, fold, valid_share, valid_group, valid_is_test),
        output_folder,
        corpus=f"IEMOCAP, test session {fold}",
        classes=CLASSES,
        max_unreadable=max_unreadable,
    )


def find_iemocap(data_folder):
    """Find the unpacked archive; checks its layout.

    Arguments
    ---------
    data_folder
        See `prepare_iemocap`.

    Returns
    -------
    pathlib.Path
        The folder `IEMOCAP_full_release`.
    """
    folder = Path(data_folder).expanduser().absolute()
    if (folder / NAME).is_dir():
        folder = folder / NAME
    check_layout(folder, LAYOUT, f"{PAGE}, which gives it on request")
    return folder


def read_rows(folder):
    """Rows of the utterances with one of the four emotions.

    Arguments
    ---------
    folder : pathlib.Path
        `IEMOCAP_full_release`.

    Returns
    -------
    list of dict
        With id, path, label, speaker, dialogue, session and fold.

    Raises
    ------
    ManifestError
        If a line is not as it should be; names it.
    """
    rows = []
    for session in FOLDS:
        part = folder / f"Session{session}"
        for table in sorted((part / PARTS[0]).glob("*.txt")):
            if table.name.startswith("."):  # left behind by macOS
                continue
            rows += [
                _row(utterance, emotion, session, part / PARTS[1])
                for utterance, emotion in read_emotions(table)
                if emotion in EMOTIONS
            ]
    return rows


def read_emotions(table):
    """Pairs of an utterance and its emotion, of one dialogue.

    Arguments
    ---------
    table : pathlib.Path
        A file of `EmoEvaluation`.

    Returns
    -------
    list of tuple of str
    """
    pairs = []
    with open(table, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.startswith("["):
                continue
            cells = line.split("\t")
            if len(cells) < 3 or not all(cells[1:3]):
                raise ManifestError(
                    f"{table}: line {number} is not a time, an utterance and "
                    f"its emotion, separated by tabs: '{line.strip()[:60]}'. "
                    "Unpack the archive anew"
                )
            pairs.append((cells[1], cells[2]))
    return pairs


def _row(utterance, emotion, session, folder):
    dialogue, _, turn = utterance.rpartition("_")
    return {
        "id": utterance,
        "path": str(folder / dialogue / f"{utterance}.wav"),
        "label": EMOTIONS[emotion],
        # The letter in a dialogue's name is another: it tells whose motion was
        # captured, while both speak.
        "speaker": f"Ses{session:02}{turn[0]}",
        "dialogue": dialogue,
        "session": str(session),
        "fold": str(session),
    }


def count(rows):
    """Utterances in all, of each emotion and of each session.

    Arguments
    ---------
    rows : list of dict
        See `read_rows`.

    Returns
    -------
    dict of str to int
    """
    emotions = Counter(row["label"] for row in rows)
    sessions = Counter(f"session {row['session']}" for row in rows)
    return {"utterances": len(rows), **emotions, **sessions}
