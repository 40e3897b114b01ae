"""Finds LibriSpeech: 960 hours of read English speech, to pretrain on.

Layout of the official archives (Panayotov et al., "Librispeech: an ASR corpus
based on public domain audio books", ICASSP 2015; https://www.openslr.org/12;
CC BY 4.0):

    LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac
                                speaker, chapter, utterance
"""

from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ssast_lobes.data.archives import (
    check_counts,
    check_layout,
    download,
    unpack,
)
from ssast_lobes.data.manifest import ManifestError

PAGE = "https://www.openslr.org/12"
URL = "https://www.openslr.org/resources/12"
NAME = "LibriSpeech"


class Part(NamedTuple):
    """Utterances of a part, and the checksum of its archive."""

    utterances: int
    sha256: str


# Counts: huggingface.co/datasets/openslr/librispeech_asr (num_examples).
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
}


def read_librispeech(
    librispeech_folder, parts, allow_download=False, require_counts=True
):
    """Rows of the utterances of training parts.

    Arguments
    ---------
    librispeech_folder : str
        `LibriSpeech`, or the folder that has it or shall get it.
    parts : list of str
        Names of parts, see `PARTS`.
    allow_download : bool
        Whether to fetch the archives (6, 23 and 30 GB) that are not there.
    require_counts : bool
        Whether a part that is not whole is an error.

    Returns
    -------
    list of dict
        With id, path and speaker.

    Raises
    ------
    ManifestError
        If there is no such part, or it is missing or not whole.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ManifestError(
            f"librispeech_parts must be of {', '.join(PARTS)}, got "
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
    """Find the unpacked parts, or fetch them.

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
    check_layout(folder, parts, f"{PAGE}, which --allow_download True fetches")
    return folder


def _fetch(part, folder):
    name = f"{part}.tar.gz"
    if (folder / part).is_dir():
        return
    archive = folder.parent / name
    download(f"{URL}/{name}", archive, sha256=PARTS[part].sha256)
    unpack(archive, folder.parent)


def _rows(folder):
    paths = tqdm(folder.glob("*/*/*.flac"), f"Finding {folder.name}", delay=2)
    return [
        {"id": path.stem, "path": str(path), "speaker": path.parts[-3]}
        for path in sorted(paths)
    ]
