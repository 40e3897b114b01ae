"""Prepare FSDD: digits of unheard speakers, and speaker identification.

Layout of the official archive (Jackson et al., "Free Spoken Digit Dataset",
https://github.com/Jakobovski/free-spoken-digit-dataset), 8 kHz:

    free-spoken-digit-dataset-1.0.10/recordings/7_jackson_32.wav

The name has the digit, the speaker and the take, 0 to 49.
"""

from ssast_lobes.dataio.archives import find_archive
from ssast_lobes.dataio.corpus_checks import check_counts, tally
from ssast_lobes.dataio.partition import rows_from_names
from ssast_lobes.dataio.splits import prepare_folds, write_splits

# Each fold is a speaker.
FOLDS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
PAGE = "https://github.com/Jakobovski/free-spoken-digit-dataset"
# GitHub rebuilds the archive of a tag, so it has no fixed checksum. A damaged
# archive does not unpack (each member has a checksum), and files are counted.
URL = f"{PAGE}/archive/refs/tags/v1.0.10.zip"
NAME = "free-spoken-digit-dataset"
FOLDERS = (f"{NAME}-1.0.10", NAME, f"{NAME}-master")
LAYOUT = ["recordings"]
FILE_NAME = r"(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)"
DIGITS, TAKES = 10, 50  # of each speaker, of each digit: README of v1.0.10
SOURCE = f"README of {PAGE}"
COUNTED = ("recordings", "{speaker}", "digit {digit}")
PUBLISHED = {
    "recordings": len(FOLDS) * DIGITS * TAKES,
    **dict.fromkeys(FOLDS, DIGITS * TAKES),
    **{f"digit {digit}": len(FOLDS) * TAKES for digit in range(DIGITS)},
}
# Takes 0 to 4 are the official test set, and all others the training set; its
# first five takes choose the epoch.
TEST_TAKES, VALID_TAKES = range(0, 5), range(5, 10)


def prepare_digits(
    data_folder, output_folder, fold, allow_download=False, **settings
):
    """Prepare one fold of the digits: test on one speaker.

    Arguments
    ---------
    data_folder : str
        The unpacked archive, or the folder that contains or will contain it.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    fold : str
        The speaker to test on, one of `FOLDS`.
    allow_download : bool
        Whether to download the archive (16 MB) if it is missing.
    **settings
        See `dataio.splits.prepare_folds`.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`.
    """
    rows = read_rows(data_folder, allow_download)
    return prepare_folds(
        [row | {"label": row["digit"], "fold": row["speaker"]} for row in rows],
        output_folder,
        fold,
        corpus="FSDD, digits, test speaker",
        found=tally(rows, *COUNTED),
        published=PUBLISHED,
        source=SOURCE,
        **settings,
    )


def prepare_speakers(
    data_folder,
    output_folder,
    allow_download=False,
    require_counts=True,
    max_unreadable=0.01,
):
    """Prepare speaker identification, with the official parts by take.

    Arguments
    ---------
    data_folder, output_folder, allow_download
        See `prepare_digits`.
    require_counts : bool
        Whether an incomplete archive is an error.
    max_unreadable : float
        Largest accepted fraction of unreadable files.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`.

    Raises
    ------
    ManifestError
        If the data cannot be used; the message says what to fix.
    """
    rows = read_rows(data_folder, allow_download)
    if require_counts:
        check_counts(tally(rows, *COUNTED), PUBLISHED, SOURCE)
    splits = {"train": [], "valid": [], "test": []}
    for row in rows:
        splits[part_of(int(row["take"]))].append(
            row | {"label": row["speaker"]}
        )
    return write_splits(
        splits,
        output_folder,
        corpus="FSDD, speakers",
        max_unreadable=max_unreadable,
    )


def part_of(take):
    """Return the part of a take in speaker identification.

    Arguments
    ---------
    take : int
        Number of the take.

    Returns
    -------
    str
        train, valid or test.
    """
    if take in TEST_TAKES:
        return "test"
    return "valid" if take in VALID_TAKES else "train"


def read_rows(data_folder, allow_download):
    """Return the rows of the recordings, from their names.

    Arguments
    ---------
    data_folder, allow_download
        See `prepare_digits`.

    Returns
    -------
    list of dict
        With id, path, digit, speaker and take.

    Raises
    ------
    ManifestError
        If there are none, or a name does not have the official form.
    """
    folder = find_archive(
        data_folder,
        LAYOUT,
        PAGE,
        FOLDERS,
        url=URL,
        file=f"{FOLDERS[0]}.zip",
        allow_download=allow_download,
    )
    paths = sorted((folder / "recordings").glob("[!.]*.wav"))
    rows = rows_from_names(paths, FILE_NAME, PAGE)
    for row in rows:
        row["id"] += ".wav"
    return rows
