"""Prepare ASVspoof 2019 LA: real, or synthesized and converted speech.

Layout of the official archive of logical access (Wang et al., "ASVspoof 2019:
A large-scale public database of synthesized, converted and replayed speech",
Computer Speech and Language 2020; https://datashare.ed.ac.uk/handle/10283/3336;
ODC-BY):

    LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.train.trn.txt
        LA_0079 LA_T_1138215 - - bonafide
        speaker, file, -, attack, key
    LA/ASVspoof2019_LA_train/flac/LA_T_1138215.flac
"""

from ssast_lobes.dataio.archives import find_archive
from ssast_lobes.dataio.corpus_checks import check_counts, tally
from ssast_lobes.dataio.splits import write_splits
from ssast_lobes.dataio.tables import ManifestError

PAGE = "https://datashare.ed.ac.uk/handle/10283/3336"
# 7.1 GB. We know of no published checksum, but each member of the archive has
# one, and the clips are counted.
URL = "https://datashare.ed.ac.uk/bitstream/handle/10283/3336/LA.zip"
NAME = "LA"
LABELS = ["bonafide", "spoof"]
PROTOCOLS = "ASVspoof2019_LA_cm_protocols"
# Our name of the part, the official name, and the end of its protocol file.
PARTS = {
    "train": ("train", "train.trn"),
    "valid": ("dev", "dev.trl"),
    "test": ("eval", "eval.trl"),
}
LAYOUT = [
    PROTOCOLS,
    *(f"ASVspoof2019_LA_{part}/flac" for part, _ in PARTS.values()),
]
# Counts of the protocol files, as many users report them: 25,380, 24,844 and
# 71,237 clips in all.
COUNTS = {
    "train bonafide": 2580,
    "train spoof": 22800,
    "dev bonafide": 2548,
    "dev spoof": 22296,
    "eval bonafide": 7355,
    "eval spoof": 63882,
}


def prepare_asvspoof2019(
    data_folder,
    output_folder,
    allow_download=False,
    require_counts=True,
    max_unreadable=0.01,
):
    """Prepare ASVspoof 2019 LA with the parts of its protocol files.

    Arguments
    ---------
    data_folder : str
        `LA`, or the folder that contains or will contain it.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    allow_download : bool
        Whether to download the archive (7.1 GB) if it is missing.
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
    folder = find_archive(
        data_folder,
        LAYOUT,
        f"{PAGE} (LA.zip)",
        [NAME],
        url=URL,
        file=f"{NAME}.zip",
        allow_download=allow_download,
    )
    splits = {
        name: read_protocol(folder, part, ending)
        for name, (part, ending) in PARTS.items()
    }
    if require_counts:
        found = {
            f"{PARTS[name][0]} {label}": count
            for name, rows in splits.items()
            for label, count in tally(rows, "{label}").items()
        }
        check_counts(found, COUNTS, f"users of the protocols of {PAGE}")
    return write_splits(
        splits,
        output_folder,
        corpus="ASVspoof 2019 LA",
        classes=LABELS,
        max_unreadable=max_unreadable,
    )


def read_protocol(folder, part, ending):
    """Read the rows of the clips in a protocol file of countermeasures.

    Arguments
    ---------
    folder : pathlib.Path
        `LA`.
    part : str
        Official name of the part: train, dev or eval.
    ending : str
        End of the name of its protocol file: train.trn, dev.trl or eval.trl.

    Returns
    -------
    list of dict
        With id, path, label (bonafide or spoof), speaker and attack (A01 to
        A19, or none).

    Raises
    ------
    ManifestError
        If the file is missing, or a line of it is malformed.
    """
    protocol = folder / PROTOCOLS / f"ASVspoof2019.LA.cm.{ending}.txt"
    if not protocol.is_file():
        raise ManifestError(f"{protocol}: no such protocol file; see {PAGE}")
    audio = folder / f"ASVspoof2019_LA_{part}" / "flac"
    rows = []
    lines = protocol.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        cells = line.split()
        if len(cells) != 5 or cells[4] not in LABELS:
            raise ManifestError(
                f'{protocol}, line {number}: "{line}" is not a speaker, a '
                "file, -, an attack and bonafide or spoof"
            )
        speaker, name, _, attack, key = cells
        rows.append(
            {
                "id": name,
                "path": str(audio / f"{name}.flac"),
                "label": key,
                "speaker": speaker,
                "attack": "none" if attack == "-" else attack,
            }
        )
    return rows
