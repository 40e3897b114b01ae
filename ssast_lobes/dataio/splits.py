"""Write the rows of a dataset as splits: train, valid and test.

A prepare script reads the official lists of its dataset into rows (dicts with
`id`, `path`, `label` and any other keys), and assigns the rows to splits.
`write_splits` checks the splits, leaves out unreadable audio, and writes one
JSON file for the experiment and one CSV for people. For protocols with folds,
`prepare_folds` makes the splits and writes them.
"""

import csv
import json
import os
from pathlib import Path

from speechbrain.utils.logger import get_logger

from ssast_lobes.dataio.addresses import file_of
from ssast_lobes.dataio.corpus_checks import check_counts
from ssast_lobes.dataio.event_tables import fit_events
from ssast_lobes.dataio.partition import fold_splits, hold_out_by_hash
from ssast_lobes.dataio.scan import scan_audio
from ssast_lobes.dataio.shards import read_from_shards
from ssast_lobes.dataio.tables import (
    SPLITS,
    ManifestError,
    all_alike,
    index_rows,
    label_problem,
    raise_problems,
    relative_paths,
    split_labels,
)
from ssast_lobes.utils.files import atomic_write

logger = get_logger(__name__)

_FIRST_COLUMNS = ("id", "path", "label", "split")


class OtherClips(ManifestError):
    """The clips differ from those of the experiment in this folder."""


def write_splits(
    splits,
    output_folder,
    corpus,
    labeled=True,
    multi_label=False,
    classes=None,
    group="speaker",
    min_seconds=0.0,
    max_unreadable=0.01,
    valid_fraction=0.0,
):
    """Check the splits of a dataset and write them for the experiment.

    The function writes `<output_folder>/save/splits.json`, which `read_splits`
    reads. Next to this file it writes `manifest.csv`, for people and other
    recipes, with the columns id, path, label, split, any other keys of the
    rows, and duration in seconds. See `dataio.scan.AudioScan.write` for further
    files. A second call is fast.

    If a model was trained in the folder, the clips must be those of the first
    start: the same ids, labels, events, takes, splits, durations, and paths
    relative to their common folder. The common folder may change.

    Arguments
    ---------
    splits : dict of str to list of dict
        Rows of train, valid and test. A row has `id`, unique; `path`,
        absolute; `label`, or `events` (list of `Event`), whose labels are then
        used; and any other keys, which are kept. Valid and test may be the
        same list.
    output_folder : str or os.PathLike
        Output folder of the experiment.
    corpus : str
        Name of the data, for messages and model cards: "ESC-50, fold 1".
    labeled : bool
        False for pretraining: labels do not matter, valid may be empty, and
        test may be missing.
    multi_label : bool
        Whether a label cell holds several labels, separated by semicolons.
    classes : list of str, optional
        All expected labels; by default those of train.
    group : str
        Key of the group of a clip, such as its speaker. A warning is logged if
        groups are in both train and another split, unless the group of each
        clip is its label.
    min_seconds, max_unreadable : float
        Shortest accepted duration, and largest accepted fraction of unreadable
        files.
    valid_fraction : float
        Fraction of the usable training clips to move to valid, chosen by a hash
        of the id. With 0 no clip is moved, otherwise at least one.

    Returns
    -------
    str
        Path of the JSON file.

    Raises
    ------
    ManifestError
        If ids occur twice, files are missing, a split or a class is empty,
        labels are unknown or cannot be saved, or all training clips have the
        same label. The message lists all problems.
    OtherClips
        If a model was trained in the folder on other clips. The message names
        the first clip that differs. The folder does not change.

    Example
    -------
    >>> import numpy, soundfile
    >>> folder = getfixture("tmpdir")
    >>> def row(name):
    ...     path = str(folder.join(f"{name}.wav"))
    ...     soundfile.write(path, numpy.zeros(800), 16000)
    ...     return {"id": name, "path": path, "label": name[:-1]}
    >>> splits = {
    ...     "train": [row("rain1"), row("wind1")],
    ...     "valid": [row("rain2")],
    ...     "test": [row("wind3")],
    ... }
    >>> path = write_splits(splits, folder, "Weather")
    >>> rows = read_splits(path)
    >>> rows["labels"], rows["test"]["wind3"]["duration"]
    (['rain', 'wind'], 0.05)
    """
    multi_label = multi_label and labeled
    if valid_fraction > 0 and splits.get("valid"):
        raise ValueError("valid_fraction needs splits without valid clips")
    raise_problems(corpus, _repeated(splits) + _missing(splits))
    rows = {row["id"]: row for part in splits.values() for row in part}
    scan = scan_audio(list(rows.values()), output_folder, min_seconds)
    usable = {row["id"]: row for row in fit_events(corpus, scan.rows)}
    splits = {
        name: [usable[row["id"]] for row in part if row["id"] in usable]
        for name, part in splits.items()
    }
    if valid_fraction > 0:
        parts = hold_out_by_hash(splits["train"], valid_fraction)
        splits["train"], splits["valid"] = parts
    elif not labeled:
        splits.setdefault("valid", [])
    content = {"corpus": corpus}
    if labeled:
        labels = {
            name: _labels(splits.get(name, []), multi_label) for name in SPLITS
        }
        content["labels"] = sorted(labels["train"])
    content |= {name: index_rows(part) for name, part in splits.items()}
    path = os.path.join(output_folder, "save", "splits.json")
    if has_begun(output_folder) and os.path.isfile(path):
        _require_same_clips(output_folder, read_splits(path), content)
    scan.write(max_unreadable)
    if labeled:
        unfit = _unfit(splits, labels, multi_label)
        raise_problems(corpus, _label_problems(labels, classes) + unfit)
        warn_of_shared_groups(corpus, splits, group)
    elif not splits["train"]:
        raise ManifestError(f"{corpus}: no clip is left to train on")
    _write_table(Path(path).with_name("manifest.csv"), splits)
    with atomic_write(path) as file:
        json.dump(content, file)
    return path


def prepare_folds(
    rows,
    output_folder,
    fold,
    corpus,
    found,
    published,
    source,
    group="speaker",
    valid_group=None,
    valid_fraction=0.2,
    valid_is_test=False,
    require_counts=True,
    **writing,
):
    """Check the counts of a corpus, and write the splits of one fold.

    Prepare scripts use this if their protocol has folds.

    Arguments
    ---------
    rows : list of dict
        All clips, with the keys `fold`, `label` and `group`.
    output_folder : str or os.PathLike
        Output folder of the experiment; see `write_splits`.
    fold : int or str
        The fold to test on.
    corpus : str
        Name of the data, to which the fold is appended: "ESC-50, test fold".
    found, published : dict of str to int
        Counts of the clips on disk, and published counts, by name; see
        `dataio.corpus_checks.check_counts`.
    source : str
        Publication that states the counts `published`.
    group : str
        Key of the group of a clip, such as its speaker or recording. All clips
        of a group are in the same split.
    valid_group : str, optional
        Key that is used instead of `group` to separate valid from train; by
        default `group`.
    valid_fraction : float
        Fraction of the other folds that becomes valid; see `hold_out`.
    valid_is_test : bool
        True: choose the epoch on the test fold, see `fold_splits`.
    require_counts : bool
        Whether an incomplete archive is an error.
    **writing
        `classes`, `min_seconds` and `max_unreadable` of `write_splits`.

    Returns
    -------
    str
        Path of the JSON file, see `write_splits`.

    Raises
    ------
    ManifestError
        If the data cannot be used; the message says what to fix.

    Example
    -------
    >>> found, published = {"clips": 1}, {"clips": 2}
    >>> prepare_folds(
    ...     [{"fold": 1}], "out", 1, "Cats, fold", found, published, "a page"
    ... )
    Traceback (most recent call last):
    ...
    ssast_lobes...ManifestError: ... clips: 1, published 2 ...
    """
    if require_counts:
        check_counts(found, published, source)
    splits = fold_splits(
        rows, fold, valid_fraction, valid_group or group, valid_is_test
    )
    return write_splits(
        splits, output_folder, f"{corpus} {fold}", group=group, **writing
    )


def has_begun(folder):
    """Return whether an output folder has checkpoints.

    Arguments
    ---------
    folder : str or os.PathLike
        Output folder of an experiment, with its checkpoints in ``save``.

    Returns
    -------
    bool

    Example
    -------
    >>> has_begun(getfixture("tmpdir"))
    False
    """
    # An incomplete or damaged checkpoint counts too.
    return any(Path(folder, "save").glob("*CKPT+*"))


def read_splits(path, shards=None):
    """Read the splits that `write_splits` wrote.

    Arguments
    ---------
    path : str or os.PathLike
        The JSON file.
    shards : str or os.PathLike, optional
        Folder of shards with the audio. ``ssast-lobes shard`` makes it from the
        ``manifest.csv`` next to the JSON file.

    Returns
    -------
    dict
        `corpus` (str); `labels` (list of str) if the data is labeled; and for
        each split its rows by id.

    Raises
    ------
    ManifestError
        If the shards lack clips.
    """
    with open(path, encoding="utf-8") as file:
        rows = json.load(file)
    if shards is None:
        return rows
    return read_from_shards(rows, shards, Path(path).with_name("manifest.csv"))


def _require_same_clips(folder, then, now):
    """Raise if the clips of an experiment are not those of its first start."""
    then, now = _clips(then), _clips(now)
    for clip in [*then, *(clip for clip in now if clip not in then)]:
        before, after = then.get(clip, {}), now.get(clip, {})
        if before != after:
            break
    else:
        return
    if not before or not after:
        change = "is there now, and was not" if after else "is not there now"
    else:
        change = ", ".join(
            f"has the {name} {after[name]} now, and had {before[name]}"
            for name in after
            if after[name] != before[name]
        )
    raise OtherClips(
        f"{folder} holds an experiment on other data: clip {clip} {change}. "
        "Nothing was changed. Choose another --output_folder, or delete that "
        "one to start anew"
    )


def _clips(content):
    """Return the compared values of each clip: id -> name -> value."""
    parts = [
        (name, clip, row)
        for name, part in content.items()
        if isinstance(part, dict)
        for clip, row in part.items()
    ]
    paths = relative_paths([row["path"] for _, _, row in parts])
    clips = {}
    for (name, clip, row), path in zip(parts, paths, strict=True):
        own = clips.setdefault(clip, {"split": name})
        if own["split"] != name:
            own["split"] += f" and {name}"
        own["label"] = row.get("label", "") if "labels" in content else ""
        own["takes"] = row.get("takes", "")
        own["events"] = row.get("events", "")
        own["seconds"] = row["duration"]
        own["path"] = path
    return clips


def _repeated(splits):
    """Return a problem for each id that several clips have."""
    parts = dict(splits)
    if parts.get("valid") is parts.get("test"):
        parts.pop("valid", None)
    places = {}
    for name, part in parts.items():
        for row in part:
            places.setdefault(row["id"], []).append(name)
    return [
        f"more than one clip has the id {clip}: in {' and '.join(names)}"
        for clip, names in places.items()
        if len(names) > 1
    ]


def _missing(splits):
    rows = {row["path"]: row for part in splits.values() for row in part}
    return [
        f"no such file: {path}"
        for path in rows
        if not os.path.isfile(file_of(path))
    ]


def _labels(rows, multi_label):
    if multi_label:
        return {label for row in rows for label in split_labels(row["label"])}
    return {row["label"] for row in rows}


def _label_problems(labels, classes):
    """List splits and classes without clips, and labels that train lacks."""
    empty = [name for name, part in labels.items() if not part]
    problems = [f"no clip is {name}" for name in empty]
    known = set(classes or labels["train"])
    if not empty:
        problems += [
            f"no clip of train has the label {label}"
            for label in sorted(known - labels["train"])
        ]
    for name, part in labels.items():
        unknown = sorted(part - known)
        if unknown and "train" not in empty:
            kind = "train does not have" if classes is None else "are unknown"
            problems.append(
                f"labels of {name} that {kind}: {', '.join(unknown[:20])}"
            )
    return problems


def _unfit(splits, labels, multi_label):
    """List labels that cannot be saved, or that leave nothing to learn."""
    problems = []
    rows = [row for part in splits.values() for row in part]
    for label in sorted(set().union(*labels.values())):
        problem = label_problem(label)
        if problem:
            holders = (r for r in rows if label in _labels([r], multi_label))
            problems.append(f"{next(holders)['id']}: {problem}")
    alike = all_alike(_labels([r], multi_label) for r in splits["train"])
    return [*problems, alike] if alike else problems


def warn_of_shared_groups(corpus, splits, group):
    """Warn if groups of valid or test are in train too.

    Scores are then too optimistic. There is no warning if the group of each row
    is its label.

    Arguments
    ---------
    corpus : str
        Name of the data, for the warning.
    splits : dict of str to list of dict
        Rows of train, valid and test.
    group : str
        Column of the groups, such as ``"speaker"``.
    """
    rows = [row for part in splits.values() for row in part]
    if all(row.get(group) == row["label"] for row in rows):
        return
    known = {row.get(group) for row in splits["train"]}
    for name in ("valid", "test"):
        shared = {row.get(group) for row in splits[name]} & known
        shared -= {None, "", "none"}
        if shared:
            logger.warning(
                f"{corpus}: {len(shared)} {group}s of {name} are in train "
                f"too, such as {min(shared)}"
            )


def _write_table(path, splits):
    """Write the rows as a CSV that people read."""
    rows = {
        row["id"]: row | {"split": name if name in SPLITS else "test"}
        for name, part in splits.items()
        for row in part
    }
    more = dict.fromkeys(key for row in rows.values() for key in row)
    columns = [*_FIRST_COLUMNS, *(k for k in more if k not in _FIRST_COLUMNS)]
    with atomic_write(path) as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows.values())
