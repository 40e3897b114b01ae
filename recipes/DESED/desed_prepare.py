"""Prepare DESED: sound events at home, from DCASE task 4.

The official data (Turpault et al., "Sound event detection in domestic
environments with weakly labeled data and soundscape synthesis", DCASE 2019;
https://github.com/turpaultn/DESED) has this layout, once the recorded,
synthetic and public evaluation sets are merged:

    metadata/train/synthetic21_train/soundscapes.tsv           strong
    audio/train/synthetic21_train/soundscapes/10.wav
    metadata/train/weak.tsv                                    weak
    audio/train/weak/Y--a1b2c3d4e_30.000_40.000.wav
    metadata/train/audioset_strong.tsv                         strong
    audio/train/strong_label_real/
    audio/train/unlabel_in_domain/                             no labels
    metadata/validation/synthetic21_validation/soundscapes.tsv strong
    audio/validation/synthetic21_validation/soundscapes/
    metadata/validation/validation.tsv                         strong
    audio/validation/validation/                      (or audio/validation/)
    metadata/eval/public.tsv                                   strong
    audio/eval/public/

Each may be in `data_folder`, or in `dataset`, `dcase_synth` or
`dataset/dcase_synth` in it. Names of audio folders may end in `_16k`.
"""

import os
from contextlib import suppress
from pathlib import Path

from speechbrain.utils.logger import get_logger

from ssast_lobes.dataio.corpus_checks import check_counts
from ssast_lobes.dataio.event_tables import read_event_table
from ssast_lobes.dataio.scan import find_audio
from ssast_lobes.dataio.splits import write_splits
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.utils.files import write_csv

logger = get_logger(__name__)

PAGE = "https://github.com/turpaultn/DESED"
ROOTS = ("", "dataset", "dcase_synth", "dataset/dcase_synth")
# Table and audio folders of each set.
SETS = {
    "synthetic": (
        "metadata/train/synthetic21_train/soundscapes.tsv",
        ["audio/train/synthetic21_train/soundscapes"],
    ),
    "weak": ("metadata/train/weak.tsv", ["audio/train/weak"]),
    "strong": (
        "metadata/train/audioset_strong.tsv",
        ["audio/train/strong_label_real"],
    ),
    "synthetic_validation": (
        "metadata/validation/synthetic21_validation/soundscapes.tsv",
        ["audio/validation/synthetic21_validation/soundscapes"],
    ),
    "validation": (
        "metadata/validation/validation.tsv",
        ["audio/validation/validation", "audio/validation"],
    ),
    "public": ("metadata/eval/public.tsv", ["audio/eval/public"]),
}
UNLABELED = "audio/train/unlabel_in_domain"
TRAIN_SETS = ("synthetic", "weak", "strong")
TEST_SETS = ("validation", "public")
# Counts from the page. Those of the synthetic sets depend on their version.
PUBLISHED = {"weak": 1578, "validation": 1168, "public": 692}
# Videos disappear, but if much less is found, some audio is in another folder.
MIN_AVAILABLE = 0.75
CLASSES = [
    "Alarm_bell_ringing",
    "Blender",
    "Cat",
    "Dishes",
    "Dog",
    "Electric_shaver_toothbrush",
    "Frying",
    "Running_water",
    "Speech",
    "Vacuum_cleaner",
]


def prepare_desed(
    data_folder,
    output_folder,
    train_sets=("synthetic", "weak"),
    test_set="validation",
    require_counts=True,
    max_unreadable=0.01,
):
    """Prepare DESED, and list the audio without labels.

    The synthetic validation set chooses the epoch, and how scores become
    events. ``<output_folder>/unlabeled.csv`` lists the audio without labels,
    for pretraining. It is not written if there is none.

    Arguments
    ---------
    data_folder : str
        See the top of this file.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    train_sets : list of str
        Sets to train on: any of "synthetic", "weak" and "strong".
    test_set : str
        "validation", the recorded validation set, or "public", the public
        evaluation set.
    require_counts : bool
        Whether incomplete data is an error.
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
    unknown = set(train_sets) - set(TRAIN_SETS)
    if unknown or not train_sets:
        raise ManifestError(
            f"train_sets must be some of {', '.join(TRAIN_SETS)}, got "
            f"{', '.join(sorted(unknown)) or 'none'}"
        )
    if test_set not in TEST_SETS:
        raise ManifestError(
            f"test_set must be one of {', '.join(TEST_SETS)}, got {test_set}"
        )
    folder = Path(data_folder).expanduser().absolute()
    splits = {
        "train": [
            row
            for name in train_sets
            for row in read_rows(folder, name, require_counts)
        ],
        "valid": read_rows(folder, "synthetic_validation", require_counts),
        "test": read_rows(folder, test_set, require_counts),
    }
    path = write_splits(
        splits,
        output_folder,
        corpus=f"DESED ({', '.join(train_sets)}), test {test_set}",
        multi_label=True,
        classes=CLASSES if require_counts else None,
        max_unreadable=max_unreadable,
    )
    unlabeled = _find(folder, UNLABELED)
    if unlabeled is not None:
        # The folder may be empty, since training does not need this audio.
        with suppress(ManifestError):
            rows = [[audio] for audio in find_audio(unlabeled)]
            write_csv(Path(output_folder, "unlabeled.csv"), [["path"], *rows])
    return path


def read_rows(folder, name, require_counts=True):
    """Return the rows of one set that has audio.

    Arguments
    ---------
    folder : pathlib.Path
        See the top of this file.
    name : str
        Key of `SETS`.
    require_counts : bool
        Whether an incomplete set is an error.

    Returns
    -------
    list of dict
        With id (which begins with the name of the set), path and events.

    Raises
    ------
    ManifestError
        If the table or the audio is missing, or the table is bad.
    """
    table_name, audio_names = SETS[name]
    table = _find(folder, table_name)
    audio = next(filter(None, (_find(folder, n) for n in audio_names)), None)
    if table is None or audio is None:
        missing = table_name if table is None else audio_names[0]
        raise ManifestError(
            f"{folder}: {missing} is missing there, and in the folders "
            f"{', '.join(ROOTS[1:])} below. See {PAGE} for the data"
        )
    rows = read_event_table(table, audio)
    if require_counts and name in PUBLISHED:
        check_counts({name: len(rows)}, {name: PUBLISHED[name]}, PAGE)
    there = [row for row in rows if os.path.isfile(row["path"])]
    least = MIN_AVAILABLE * len(rows) if require_counts else 1
    if len(there) < least:
        raise ManifestError(
            f"{audio}: audio of {len(there)} of the {len(rows)} clips of "
            f"{table_name}, and {MIN_AVAILABLE:.0%} should be there; "
            "--require_counts False continues with a part"
        )
    if len(there) < len(rows):
        logger.warning(
            f"{name}: {len(rows) - len(there)} of {len(rows)} clips have no "
            "audio and are left out"
        )
    return [row | {"id": f"{name}/{row['id']}"} for row in there]


def _find(folder, name):
    """Return a file or folder from one of its possible places, or None."""
    for root in ROOTS:
        for ending in ("", "_16k"):
            path = folder / root / f"{name}{ending}"
            if path.exists():
                return path
    return None
