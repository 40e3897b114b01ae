"""Prepare LibriSpeech: 1,000 hours of read English speech.

Layout of the official archives (Panayotov et al., "Librispeech: an ASR corpus
based on public domain audio books", ICASSP 2015; https://www.openslr.org/12;
CC BY 4.0):

    LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac
                                speaker, chapter, utterance
    LibriSpeech/train-clean-100/103/1240/103-1240.trans.txt
        103-1240-0000 CHAPTER ONE MISSUS RACHEL LYNDE IS SURPRISED ...

`read_librispeech` returns the audio, to pretrain on; `prepare_librispeech`
prepares speech recognition, with the transcripts.
"""

from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ssast_lobes.dataio.archives import unpack
from ssast_lobes.dataio.corpus_checks import check_counts, check_layout
from ssast_lobes.dataio.download import download
from ssast_lobes.dataio.splits import read_splits, write_splits
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.utils.files import atomic_write

PAGE = "https://www.openslr.org/12"
URL = "https://www.openslr.org/resources/12"
NAME = "LibriSpeech"


class Part(NamedTuple):
    """Utterances of a part, and the checksum of its archive."""

    utterances: int
    sha256: str


# Counts: huggingface.co/datasets/openslr/librispeech_asr (num_examples), and
# tensorflow.org/datasets/catalog/librispeech.
# Checksums: torchaudio.datasets.librispeech.
PARTS = {
    "train-clean-100": Part(
        28539,
        "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    ),
    "train-clean-360": Part(
        104014,
        "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    ),
    "train-other-500": Part(
        148688,
        "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    ),
    "dev-clean": Part(
        2703,
        "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    ),
    "dev-other": Part(
        2864,
        "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    ),
    "test-clean": Part(
        2620,
        "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    ),
    "test-other": Part(
        2939,
        "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    ),
}
TRAINING_PARTS = ("train-clean-100", "train-clean-360", "train-other-500")


def prepare_librispeech(
    data_folder,
    output_folder,
    train_parts,
    valid_parts,
    test_parts,
    allow_download=False,
    require_counts=True,
    max_unreadable=0.01,
):
    """Prepare LibriSpeech for speech recognition.

    The function also writes `transcripts.txt` next to the JSON file: the words
    of train, one line for each utterance. The tokenizer is trained on it.

    Arguments
    ---------
    data_folder : str
        `LibriSpeech`, or the folder that contains or will contain it.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    train_parts, valid_parts, test_parts : list of str
        Names of parts; see `PARTS`. Each test part is tested separately.
    allow_download : bool
        Whether to download missing archives.
    require_counts : bool
        Whether an incomplete part is an error.
    max_unreadable : float
        Largest accepted fraction of unreadable files.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`. Its parts are
        train, valid and each test part under its own name. The labels are the
        transcripts.

    Raises
    ------
    ManifestError
        If the data cannot be used; the message says what to fix.
    """

    def read(parts):
        found = [data_folder, parts, allow_download, require_counts]
        return add_transcripts(read_librispeech(*found, allowed=PARTS))

    splits = {"train": read(train_parts), "valid": read(valid_parts)}
    splits |= {part: read([part]) for part in test_parts}
    path = write_splits(
        splits,
        output_folder,
        corpus=f"LibriSpeech, {', '.join(train_parts)}",
        labeled=False,
        max_unreadable=max_unreadable,
    )
    with atomic_write(Path(path).with_name("transcripts.txt")) as file:
        for row in read_splits(path)["train"].values():
            file.write(row["label"] + "\n")
    return path


def add_transcripts(rows):
    """Add the transcripts to rows, from files next to the audio.

    Arguments
    ---------
    rows : list of dict
        See `read_librispeech`.

    Returns
    -------
    list of dict
        The rows, each with a `label`: words in capitals.

    Raises
    ------
    ManifestError
        If a file is missing, or lacks an utterance.
    """
    chapters = {}
    for row in rows:
        folder = Path(row["path"]).parent
        if folder not in chapters:
            chapters[folder] = _transcripts(folder)
    said = [chapters[Path(row["path"]).parent].get(row["id"]) for row in rows]
    missing = [
        row["path"] for row, words in zip(rows, said, strict=True) if not words
    ]
    if missing:
        raise ManifestError(
            f"{len(missing)} utterances have no transcript next to them, such "
            f"as {missing[0]}; unpack the archives of {PAGE} again"
        )
    return [
        row | {"label": words} for row, words in zip(rows, said, strict=True)
    ]


def _transcripts(folder):
    """Return the transcripts of a chapter by the ids of its utterances."""
    path = folder / f"{folder.parent.name}-{folder.name}.trans.txt"
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(" ") for line in lines)
    return {clip: words.strip() for clip, _, words in pairs}


def read_librispeech(
    librispeech_folder,
    parts,
    allow_download=False,
    require_counts=True,
    allowed=TRAINING_PARTS,
):
    """Return the rows of the utterances of some parts.

    Arguments
    ---------
    librispeech_folder : str
        `LibriSpeech`, or the folder that contains or will contain it.
    parts : list of str
        Names of parts, see `PARTS`.
    allow_download : bool
        Whether to download missing archives: 6, 23 and 30 GB for training, and
        0.3 GB for each other part.
    require_counts : bool
        Whether an incomplete part is an error.
    allowed : sequence of str
        The parts that may be requested.

    Returns
    -------
    list of dict
        With id, path and speaker.

    Raises
    ------
    ManifestError
        If there is no such part, or it is missing or incomplete.
    """
    unknown = [part for part in parts if part not in allowed]
    if unknown or not parts:
        raise ManifestError(
            f"parts of LibriSpeech must be of {', '.join(allowed)}, got "
            f"{', '.join(unknown) or 'none'}"
        )
    folder = find_librispeech(librispeech_folder, parts, allow_download)
    rows = {part: _rows(folder / part) for part in parts}
    if require_counts:
        check_counts(
            {part: len(own) for part, own in rows.items()},
            {part: PARTS[part].utterances for part in parts},
            PAGE,
        )
    empty = [part for part, own in rows.items() if not own]
    if empty:
        raise ManifestError(
            f"{folder}: no speaker/chapter/*.flac in {', '.join(empty)}"
        )
    return [row for own in rows.values() for row in own]


def find_librispeech(librispeech_folder, parts, allow_download):
    """Find the unpacked parts, or download them.

    Arguments
    ---------
    librispeech_folder, parts, allow_download
        See `read_librispeech`.

    Returns
    -------
    pathlib.Path
        The folder `LibriSpeech`.

    Raises
    ------
    ManifestError
        If a part is missing.
    """
    parent = Path(librispeech_folder).expanduser().absolute()
    here = any((parent / part).is_dir() for part in PARTS)
    folder = parent if here else parent / NAME
    # The archives unpack into a folder of that name.
    if allow_download and folder.name == NAME:
        for part in parts:
            _fetch(part, folder)
    page = f"{PAGE}, which --allow_download True fetches"
    if folder.name != NAME:
        page = f"{PAGE}; parts are fetched only into a folder called {NAME}"
    check_layout(folder, parts, page)
    return folder


def _fetch(part, folder):
    name = f"{part}.tar.gz"
    if (folder / part).is_dir():
        return
    archive = folder.parent / name
    download(f"{URL}/{name}", archive, sha256=PARTS[part].sha256)
    unpack(archive, folder.parent)


def _rows(folder):
    paths = tqdm(
        folder.glob("*/*/[!.]*.flac"), f"Finding {folder.name}", delay=2
    )
    return [
        {"id": path.stem, "path": str(path), "speaker": path.parts[-3]}
        for path in sorted(paths)
    ]
