"""Prepare Speech Commands: V2 with 35 words, V1 with SUPERB's 12 classes.

Layout of the official archives (Warden, "Speech Commands: A Dataset for
Limited-Vocabulary Speech Recognition", 2018), each in a folder of its name:

    speech_commands_v0.02/yes/0a7c2a8d_nohash_0.wav    word, speaker, take
    speech_commands_v0.02/validation_list.txt          yes/..., a line each
    speech_commands_v0.02/testing_list.txt
    speech_commands_v0.01/...                          the same, 30 words
    speech_commands_v0.01/_background_noise_/running_tap.wav
    speech_commands_test_set_v0.01/yes/0a7c2a8d_nohash_0.wav
    speech_commands_test_set_v0.01/_unknown_/bed_0c40e715_nohash_0.wav.wav
    speech_commands_test_set_v0.01/_silence_/0.wav

In the first two archives, clips that are in neither list are for training.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ssast_lobes.dataio.archives import unpack
from ssast_lobes.dataio.corpus_checks import check_counts, check_layout, tally
from ssast_lobes.dataio.download import download
from ssast_lobes.dataio.splits import write_splits
from ssast_lobes.dataio.tables import ManifestError

PAGE = "https://arxiv.org/abs/1804.03209"
URL = "https://storage.googleapis.com/download.tensorflow.org/data"
V1, V2 = "speech_commands_v0.01", "speech_commands_v0.02"
V1_TEST = "speech_commands_test_set_v0.01"
# Checksums from torchaudio.datasets.SPEECHCOMMANDS. None is published for the
# test set: a damaged archive does not unpack, and its clips are counted.
SHA256 = {
    V1: "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
    V2: "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
}
NOISE = "_background_noise_"
# The classes of SUPERB's keyword spotting.
KEYWORDS = "yes no up down left right on off stop go".split()
UNKNOWN, SILENCE = "_unknown_", "_silence_"
CLASSES = [*KEYWORDS, UNKNOWN, SILENCE]
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
LAYOUTS = {
    V1: [*LISTS.values(), NOISE],
    V2: [*LISTS.values()],
    V1_TEST: CLASSES,
}


def prepare_speech_commands(
    data_folder,
    output_folder,
    protocol,
    allow_download=False,
    require_counts=True,
    max_unreadable=0.01,
):
    """Prepare Speech Commands for one of the protocols.

    Arguments
    ---------
    data_folder : str
        Folder that contains or will contain the unpacked archives, each under
        its name. For "v2-35" also the folder of the archive, with any name.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    protocol : str
        "v2-35": the 35 words of V2, in the parts of its lists. "superb-12": 12
        classes of V1; see `superb_splits`.
    allow_download : bool
        Whether to download missing archives (V2 2.4 GB, V1 1.6 GB).
    require_counts : bool
        Whether incomplete archives are an error.
    max_unreadable : float
        Largest accepted fraction of unreadable files.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`.

    Raises
    ------
    ManifestError
        If the data cannot be used, or there is no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise ManifestError(
            f"protocol must be one of {', '.join(PROTOCOLS)}, got '{protocol}'"
        )
    chosen = PROTOCOLS[protocol]
    splits = chosen.splits(
        *(find(data_folder, name, allow_download) for name in chosen.archives)
    )
    if require_counts:
        # Silence has many rows for one file.
        found = {
            part: len({row["path"] for row in rows})
            for part, rows in splits.items()
        }
        rows = [row for part in splits.values() for row in part]
        found |= tally(rows, classes="label")
        check_counts(found, chosen.published, chosen.source)
    return write_splits(
        splits,
        output_folder,
        corpus=chosen.corpus,
        classes=chosen.classes,
        max_unreadable=max_unreadable,
    )


def find(data_folder, name, allow_download):
    """Find an unpacked archive, or download it; check its layout.

    Arguments
    ---------
    data_folder, allow_download
        See `prepare_speech_commands`.
    name : str
        Name of the archive, `speech_commands_v0.02` for example.

    Returns
    -------
    pathlib.Path
        The folder with the words.
    """
    data_folder = Path(data_folder).expanduser().absolute()
    parent = data_folder.parent if data_folder.name == name else data_folder
    layout = LAYOUTS[name]
    for folder in (parent / name, data_folder):
        if all((folder / part).exists() for part in layout):
            return folder
    folder = parent / name
    if allow_download:
        archive = parent / f"{name}.tar.gz"
        download(f"{URL}/{archive.name}", archive, SHA256.get(name))
        unpack(archive, folder)
    page = f"{URL}/{name}.tar.gz ({PAGE}), which --allow_download True fetches"
    check_layout(folder, layout, page)
    return folder


def list_splits(folder):
    """Return the words in the parts of the two official lists.

    Arguments
    ---------
    folder : pathlib.Path
        Of an unpacked archive.

    Returns
    -------
    dict of str to list of dict
        Rows of train, valid and test, with id, path, label and speaker. Files
        in a list have a row even if they are missing.
    """
    listed = {}
    for part, name in LISTS.items():
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        listed[part] = [line.strip() for line in lines if line.strip()]
    held_out = {clip for clips in listed.values() for clip in clips}
    there = (
        f"{path.parent.name}/{path.name}"
        for path in sorted(folder.glob("[!._]*/[!.]*.wav"))
    )
    clips = {"train": [clip for clip in there if clip not in held_out]}
    return {
        part: [make_row(folder, clip) for clip in names]
        for part, names in (clips | listed).items()
    }


def superb_splits(folder, test_folder):
    """Return the parts and classes of SUPERB's keyword spotting.

    They are those of s3prl (s3prl 099ce80,
    downstream/speech_commands/dataset.py and expert.py). Words other than the
    ten keywords are `_unknown_`. Silence is a random second of one of the long
    noises; train and valid have the same noises. The clips of the testing list
    are left out, and the official test archive is the test set. s3prl uses a
    hash of the speaker's name, which gives the same parts as the lists.

    Arguments
    ---------
    folder, test_folder : pathlib.Path
        Folders of the two archives.

    Returns
    -------
    dict of str to list of dict
        Rows of train, valid and test, with id, path, label and speaker.
    """
    words = list_splits(folder)
    splits = {}
    for part in ("train", "valid"):
        for row in words[part]:
            row["word"] = row["label"]
            if row["word"] not in KEYWORDS:
                row["label"] = UNKNOWN
        splits[part] = words[part] + silence_rows(folder, words[part], part)
    clips = sorted(test_folder.glob("[!.]*/[!.]*.wav"))
    splits["test"] = [
        make_row(test_folder, f"{path.parent.name}/{path.name}")
        for path in clips
    ]
    return splits


def silence_rows(folder, words, part):
    """Return the rows of silence, as many as a keyword has clips on average.

    s3prl has one row for each noise, draws it hundreds of times in an epoch,
    and cuts out another second each time. Here a crop is a function of the
    epoch and the id, so each noise has many ids.

    Arguments
    ---------
    folder : pathlib.Path
        Folder of the archive with the noises.
    words : list of dict
        Rows of the words of this part.
    part : str
        Name of the part, which makes its ids unique.

    Returns
    -------
    list of dict
        The rows; those of one noise have the same path.
    """
    noises = sorted((folder / NOISE).glob("[!.]*.wav"))
    clips = sum(row["label"] in KEYWORDS for row in words) / len(KEYWORDS)
    each = math.ceil(clips / max(1, len(noises)))
    return [
        make_row(folder, f"{NOISE}/{path.name}")
        | {"id": f"{NOISE}/{path.name}#{part}{number}", "label": SILENCE}
        for path in noises
        for number in range(each)
    ]


def make_row(folder, clip):
    """Return the row of a clip.

    Arguments
    ---------
    folder : pathlib.Path
        Of the unpacked archive.
    clip : str
        Path word/file; the name of the file contains the speaker.

    Returns
    -------
    dict of str to str
    """
    speaker = re.search(r"([0-9a-f]+)_nohash_", clip)
    return {
        "id": clip,
        "path": str(folder / clip),
        "label": clip.partition("/")[0],
        "speaker": speaker[1] if speaker else "none",
    }


class Protocol(NamedTuple):
    """A protocol: its archives, parts, classes and counts."""

    corpus: str
    archives: tuple
    splits: Callable
    classes: list | None
    published: dict
    source: str


PROTOCOLS = {
    "v2-35": Protocol(
        "Speech Commands V2, 35 words",
        (V2,),
        list_splits,
        None,
        {"train": 84843, "valid": 9981, "test": 11005, "classes": 35},
        # The sum is 105,829, as in the paper of the dataset.
        "Gong et al., AST, Interspeech 2021",
    ),
    "superb-12": Protocol(
        "Speech Commands V1, 12 classes of SUPERB",
        (V1, V1_TEST),
        superb_splits,
        CLASSES,
        # Train and valid each contain six noises. The card has 51,094, 6,798
        # and 3,081: it counts valid without the noises, but s3prl uses them.
        {"train": 51094, "valid": 6804, "test": 3081, "classes": 12},
        "https://huggingface.co/datasets/s3prl/superb",
    ),
}
