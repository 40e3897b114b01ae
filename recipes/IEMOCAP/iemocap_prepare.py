"""Prepare IEMOCAP: four emotions; each fold leaves out one of five sessions.

Layout of the official archive (Busso et al., "IEMOCAP: interactive emotional
dyadic motion capture database", Language Resources and Evaluation, 2008;
https://sail.usc.edu/iemocap):

    IEMOCAP_full_release/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt
    IEMOCAP_full_release/Session1/sentences/wav/Ses01F_impro01/
        Ses01F_impro01_F000.wav           dialogue, speaker (F or M) and turn

In the first file, a line that starts with a bracket has the emotion on which
most listeners of the turn agreed, separated by tabs:

    [6.2901 - 8.2357]   Ses01F_impro01_F000   neu   [2.5000, 2.5000, 2.5000]
"""

from ssast_lobes.dataio.archives import find_archive
from ssast_lobes.dataio.corpus_checks import tally
from ssast_lobes.dataio.splits import prepare_folds
from ssast_lobes.dataio.tables import ManifestError

FOLDS = (1, 2, 3, 4, 5)
PAGE = "https://sail.usc.edu/iemocap"
NAME = "IEMOCAP_full_release"
PARTS = ("dialog/EmoEvaluation", "sentences/wav")
LAYOUT = [f"Session{number}/{part}" for number in FOLDS for part in PARTS]
# The protocol is SUPERB's (s3prl, downstream/emotion): excitement counts as
# happiness, and turns with other emotions or without agreement are left out.
EMOTIONS = {
    "ang": "angry",
    "exc": "happy",
    "hap": "happy",
    "neu": "neutral",
    "sad": "sad",
}
CLASSES = sorted(set(EMOTIONS.values()))
# Counts by session are from the code of emotion2vec (ddlBoJack/emotion2vec,
# iemocap_downstream). Counts by emotion are from FlagEval's description of the
# corpus (595 happy and 1,041 excited turns). Both sums are 5,531.
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
SOURCE = "emotion2vec, iemocap_downstream, and FlagEval's audio benchmark"
GROUPS = ("session", "speaker", "dialogue", "id")


def prepare_iemocap(
    data_folder, output_folder, fold, valid_group="session", **settings
):
    """Prepare one fold of IEMOCAP.

    Arguments
    ---------
    data_folder : str
        `IEMOCAP_full_release`, or the folder that has it.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    fold : int
        The session to test on, 1 to 5.
    valid_group : str
        Unit that is held out whole for validation: "session", "speaker",
        "dialogue", or "id" for single utterances, as in SUPERB.
    **settings
        See `dataio.splits.prepare_folds`.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`.

    Raises
    ------
    ManifestError
        If the data cannot be used; the message says what to fix.
    """
    if valid_group not in GROUPS:
        raise ManifestError(
            f"valid_group must be one of {', '.join(GROUPS)}, got "
            f"'{valid_group}'"
        )
    folder = find_archive(
        data_folder, LAYOUT, f"{PAGE}, which gives it on request", [NAME]
    )
    rows = read_rows(folder)
    return prepare_folds(
        rows,
        output_folder,
        fold,
        corpus="IEMOCAP, test session",
        found=tally(rows, "utterances", "{label}", "session {session}"),
        published=PUBLISHED,
        source=SOURCE,
        valid_group=valid_group,
        classes=CLASSES,
        **settings,
    )


def read_rows(folder):
    """Return the rows of the utterances with one of the four emotions.

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
        If a line is malformed; the message names it.
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
    """Read the pairs of an utterance and its emotion from one dialogue.

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
                    "Unpack the archive again"
                )
            pairs.append((cells[1], cells[2]))
    return pairs


def _row(utterance, emotion, session, folder):
    dialogue, _, turn = utterance.rpartition("_")
    return {
        "id": utterance,
        "path": str(folder / dialogue / f"{utterance}.wav"),
        "label": EMOTIONS[emotion],
        # The letter in a dialogue's name is not the speaker: it tells whose
        # motion was captured while both speak.
        "speaker": f"Ses{session:02}{turn[0]}",
        "dialogue": dialogue,
        "session": str(session),
        "fold": str(session),
    }
