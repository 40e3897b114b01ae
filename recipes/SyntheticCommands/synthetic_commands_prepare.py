#!/usr/bin/env python3
"""Make a corpus of synthetic spoken commands, without any download.

eSpeak NG (PyPI wheel `espeakng-loader`, which has the library and the voices)
says the ten words of Speech Commands in many voices. Every clip is one second
at 16 kHz. It has a word at a random position, and its own room, background
noise, channel and level. No other part has the voices of valid and test. Most
of the corpus is unlabeled, for self-supervised pretraining.

To make the corpus from the command line:
> python synthetic_commands_prepare.py OUTPUT_FOLDER
"""

import argparse
import csv
import importlib.util
import io
import json
import logging
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from plan import Settings, plan_corpus
from workers import make_shards

logger = logging.getLogger(__name__)


def prepare_synthetic_commands(
    output_folder,
    n_unlabelled=4000,
    n_train_per_word=20,
    n_valid_per_word=25,
    n_test_per_word=50,
    seed=0,
    skip_prep=False,
):
    """Make the synthetic spoken-command corpus, or reuse an existing one.

    The function writes 16-bit mono FLAC clips of one second at 16 kHz below
    `output_folder`/audio. It also writes two manifests, whose paths are
    relative to `output_folder`, so that the folder can be moved:

    - `unlabelled.csv`: path, speaker
    - `labelled.csv`: path, label, split (train, valid or test), speaker

    The same arguments give the same bytes on the same machine, with any number
    of processes. A complete corpus is reused, and an interrupted one is
    completed.

    Arguments
    ---------
    output_folder : str or Path
        Folder for the corpus. It must be new, or contain a corpus made with
        the same arguments.
    n_unlabelled : int
        Number of clips without label, of `n_unlabelled / 20` speakers.
    n_train_per_word : int
        Labeled training clips of each word. There are as many speakers, and
        each says every word once; valid and test are made in the same way.
    n_valid_per_word : int
        Validation clips of each word. No other part has their voices.
    n_test_per_word : int
        Test clips of each word. No other part has their voices.
    seed : int
        Another seed gives other speakers and other clips.
    skip_prep : bool
        True: make nothing, and only return the paths of the manifests.

    Returns
    -------
    manifests : dict
        `"unlabelled"` and `"labelled"`: the absolute path of each CSV (str).

    Raises
    ------
    ValueError
        If `output_folder` holds a corpus made with other arguments, or a
        size or the seed is negative.
    ModuleNotFoundError
        If `espeakng-loader` is not installed.
    RuntimeError
        If the synthesis fails.

    Example
    -------
    >>> folder = getfixture("tmpdir").join("commands")
    >>> sizes = {f"n_{s}_per_word": 1 for s in ("train", "valid", "test")}
    >>> manifests = prepare_synthetic_commands(folder, n_unlabelled=5, **sizes)
    >>> with open(manifests["labelled"]) as file:
    ...     rows = list(csv.DictReader(file))
    >>> len(rows), rows[0]["label"], rows[0]["split"]
    (30, 'yes', 'train')
    """
    output_folder = Path(output_folder).absolute()
    manifests = {
        name: str(output_folder / f"{name}.csv")
        for name in ("unlabelled", "labelled")
    }
    if skip_prep:
        return manifests
    settings = Settings(
        n_unlabelled=n_unlabelled,
        n_train_per_word=n_train_per_word,
        n_valid_per_word=n_valid_per_word,
        n_test_per_word=n_test_per_word,
        seed=seed,
    )
    if min(asdict(settings).values()) < 0:
        raise ValueError(f"Sizes and seed must not be negative: {settings}")
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ModuleNotFoundError(
            "The synthetic corpus is spoken by eSpeak NG: "
            "run `pip install espeakng-loader`"
        )
    claim(output_folder, asdict(settings))
    shards = plan_corpus(settings)
    missing = [s for s in shards if not s.is_whole(output_folder)]
    if missing:
        make_shards(missing, settings, output_folder)
    if missing or not all(os.path.isfile(path) for path in manifests.values()):
        _write_manifests(shards, manifests)
        logger.info("Synthetic commands are in %s", output_folder)
    else:
        logger.info("Synthetic commands found in %s", output_folder)
    return manifests


def claim(output_folder, wanted):
    """Write the settings of a corpus, or check that they are the same.

    Arguments
    ---------
    output_folder : Path
        Folder of a corpus; made if it does not exist.
    wanted : dict
        All settings that determine the content of the corpus.

    Raises
    ------
    ValueError
        If the existing corpus was made with other settings, or the folder
        contains other files.
    """
    path = output_folder / "settings.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found != wanted:
            raise ValueError(
                f"{output_folder} holds a synthetic corpus made with {found}, "
                f"not {wanted}: choose another folder, or delete that one"
            )
        return
    output_folder.mkdir(parents=True, exist_ok=True)
    # Another run may be writing the settings at this moment.
    others = {item.name for item in output_folder.iterdir()} - {path.name}
    if any(not name.startswith(f".{path.name}.") for name in others):
        raise ValueError(
            f"{output_folder} is not empty and holds no synthetic corpus: "
            "choose another folder"
        )
    write_whole(path, json.dumps(wanted, indent=2) + "\n")


def write_whole(path, text):
    """Write a text file that appears when it is complete."""
    path = Path(path)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def as_csv(columns, rows):
    """Return the text of a CSV.

    Arguments
    ---------
    columns : sequence of str
        Names of the columns.
    rows : list of dict
        A value for each column.

    Returns
    -------
    str
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_manifests(shards, manifests):
    rows = {"unlabelled": [], "labelled": []}
    for shard in shards:
        for clip in shard.clips:
            row = {"path": shard.path(clip), "speaker": clip.speaker.name}
            if shard.split == "unlabelled":
                rows["unlabelled"].append(row)
            else:
                row |= {"label": clip.word, "split": shard.split}
                rows["labelled"].append(row)
    columns = {
        "unlabelled": ("path", "speaker"),
        "labelled": ("path", "label", "split", "speaker"),
    }
    for name, path in manifests.items():
        write_whole(path, as_csv(columns[name], rows[name]))


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Makes the synthetic spoken-command corpus.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("output_folder", help="where the corpus goes")
    for name, default, what in (
        ("n-unlabelled", 4000, "clips without label"),
        ("n-train-per-word", 20, "training clips of each word"),
        ("n-valid-per-word", 25, "validation clips of each word"),
        ("n-test-per-word", 50, "test clips of each word"),
        ("seed", 0, "another seed gives another corpus"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare_synthetic_commands(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
