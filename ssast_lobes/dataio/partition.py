"""Split the rows of corpora by groups, by hash or by folds."""

import re
from collections import Counter

from speechbrain.utils.logger import get_logger

from ssast_lobes.dataio.tables import SPLITS, ManifestError, raise_problems
from ssast_lobes.utils.random import clip_keys

logger = get_logger(__name__)

_SHOWN_LABELS = 20


def hash_fractions(ids):
    """Return a number from 0 to 1 for each clip, equal in every run.

    Arguments
    ---------
    ids : list of str
        Clip ids, or names of groups.

    Returns
    -------
    list of float
        To hold out a fraction, take the clips whose number is below it. A clip
        then stays in its split, even if other clips are added or removed.

    Example
    -------
    >>> one, two, three = hash_fractions(["a", "b", "a"])
    >>> one == three, 0 <= one < 1, one == two
    (True, True, False)
    """
    return (clip_keys(ids).double() / 2**63).tolist()


def rows_from_names(paths, pattern, page):
    """Make rows of files from their names.

    Arguments
    ---------
    paths : list of pathlib.Path
        The files.
    pattern : str
        Regular expression of a whole name, without its extension. Its named
        groups become keys of the row.
    page : str
        Page that explains the names.

    Returns
    -------
    list of dict
        With `id`, the name without its extension; `path`, absolute; and the
        named groups of the pattern.

    Raises
    ------
    ManifestError
        If names do not match the pattern; the message lists them.

    Example
    -------
    >>> from pathlib import Path
    >>> [row] = rows_from_names(
    ...     [Path("/data/03a01Fa.wav")], r"(?P<speaker>..).*", "the page"
    ... )
    >>> row["id"], row["speaker"]
    ('03a01Fa', '03')
    """
    matches = [re.fullmatch(pattern, path.stem) for path in paths]
    strange = [
        f"not a name that {page} explains: {path}"
        for path, match in zip(paths, matches, strict=True)
        if match is None
    ]
    raise_problems("file names", strange)
    return [
        {"id": path.stem, "path": str(path.absolute()), **match.groupdict()}
        for path, match in zip(paths, matches, strict=True)
    ]


def hold_out(rows, fraction, group, salt="", keep=0):
    """Split rows in two, by whole groups and with similar labels.

    The groups are tried in an order that depends only on their names. A group
    is held out if this brings the number of held-out clips of its labels closer
    to the fraction.

    Arguments
    ---------
    rows : list of dict
        With the keys `label` and `group`.
    fraction : float
        Fraction of each label's clips to hold out, 0 to 1.
    group : str
        Key of the group of a clip, such as its speaker or recording. Groups are
        not divided.
    salt : str
        Text that also determines the order of the groups.
    keep : int
        Minimum number of groups of each label that are kept. If it is not 0,
        at least one group is held out for each label, whatever the fraction,
        as far as other labels allow it.

    Returns
    -------
    kept, held : list of dict
        Kept and held-out rows, in their order. Both lists have rows, unless
        `keep` allows no group to be held out.

    Raises
    ------
    ManifestError
        If all rows are of one group.

    Example
    -------
    >>> rows = [{"label": i % 2, "speaker": str(i // 10)} for i in range(40)]
    >>> kept, held = hold_out(rows, fraction=0.25, group="speaker")
    >>> len(kept), len({row["speaker"] for row in held})
    (30, 1)
    """
    members = {}
    for row in rows:
        members.setdefault(row[group], Counter())[row["label"]] += 1
    if len(members) < 2:
        raise ManifestError(
            f"a part of {len(rows)} clips cannot be held out for validation: "
            f"all have the same {group}"
        )
    wanted = Counter(row["label"] for row in rows)
    wanted = {label: fraction * count for label, count in wanted.items()}
    held, chosen = Counter(), set()
    left = Counter(label for counts in members.values() for label in counts)

    def misfit(name):
        """Return the change of the distance from the wanted labels."""
        return sum(
            abs(held[label] + count - wanted[label])
            - abs(held[label] - wanted[label])
            for label, count in members[name].items()
        )

    def is_free(name):
        """Return whether enough groups are kept without this group."""
        return len(chosen) < len(members) - 1 and all(
            left[label] > keep for label in members[name]
        )

    def take(name):
        held.update(members[name])
        left.subtract(members[name].keys())
        chosen.add(name)

    places = hash_fractions([salt + name for name in members])
    places = dict(zip(members, places, strict=True))
    order = sorted(members, key=places.get)
    for name in order:
        if misfit(name) < 0 and is_free(name):
            take(name)
    if keep:
        for label in wanted:
            if not held[label]:
                able = [n for n in order if label in members[n] and is_free(n)]
                if able:
                    take(min(able, key=misfit))
    elif not chosen:
        # Every group has more clips than wanted: take the one that fits best.
        take(min(sorted(members), key=misfit))
    return (
        [row for row in rows if row[group] not in chosen],
        [row for row in rows if row[group] in chosen],
    )


def hold_out_by_hash(rows, fraction, group="id"):
    """Split rows in two, by a hash of names.

    Arguments
    ---------
    rows : list of dict
        With the key `id`.
    fraction : float
        Fraction to hold out, 0 to 1. With 0 no group is held out, otherwise at
        least one.
    group : str
        Key of the group of a clip. Groups are not divided. A row without this
        key is a group of its own.

    Returns
    -------
    kept, held : list of dict
        Kept and held-out rows, in their order.

    Example
    -------
    >>> rows = [{"id": str(i), "speaker": str(i % 9)} for i in range(90)]
    >>> kept, held = hold_out_by_hash(rows, 0.01, "speaker")
    >>> len(kept), len({row["speaker"] for row in held})
    (80, 1)
    """
    if fraction <= 0 or not rows:
        return rows, []
    places = hash_fractions([row.get(group, row["id"]) for row in rows])
    fraction = max(fraction, min(places))
    pairs = list(zip(rows, places, strict=True))
    return (
        [row for row, place in pairs if place > fraction],
        [row for row, place in pairs if place <= fraction],
    )


def draw_splits(rows, fractions=(0.7, 0.1, 0.2), seed=1986, group="id"):
    """Split labeled rows into train, valid and test, by whole groups.

    Rows that have a split keep it. Empty splits are then drawn from train; see
    `hold_out`. Every label is in every split if it has enough groups. A warning
    names the labels that are missing in a split.

    Arguments
    ---------
    rows : list of dict
        With the keys `label` and `group`, and optionally `split`.
    fractions : sequence of float
        Fractions of the clips for train, valid and test, with a sum of 1. A
        split with the fraction 0 is not drawn.
    seed : int
        Seed of the draw; the result depends on it and the names of the groups.
    group : str
        Key of the group of a clip. All clips of a group are in the same split.

    Returns
    -------
    dict
        Rows of `train`, `valid` and `test`.

    Raises
    ------
    ManifestError
        If all rows are of one group, or a group is in two of the given splits.

    Example
    -------
    >>> rows = [{"id": str(n), "label": "ab"[n % 2]} for n in range(20)]
    >>> {name: len(part) for name, part in draw_splits(rows).items()}
    {'train': 14, 'valid': 2, 'test': 4}
    """
    splits = {
        name: [row for row in rows if (row.get("split") or "train") == name]
        for name in SPLITS
    }
    fraction_of = dict(zip(SPLITS, fractions, strict=True))
    # Labels that are too rare for both valid and test are put into test, which
    # is drawn last: they matter more for the result than for the choice of the
    # epoch.
    drawn = [
        n for n in ("valid", "test") if fraction_of[n] > 0 and not splits[n]
    ]
    whole = fraction_of["train"] + sum(fraction_of[name] for name in drawn)
    for keep, name in zip(range(len(drawn), 0, -1), drawn, strict=True):
        splits["train"], splits[name] = hold_out(
            splits["train"], fraction_of[name] / whole, group, f"{seed} ", keep
        )
        whole -= fraction_of[name]
    parts, groups = {}, {}
    for name, part in splits.items():
        for row in part:
            parts.setdefault(row[group], {})[name] = None
            groups.setdefault(row["label"], set()).add(row[group])
    shared = [key for key, names in parts.items() if len(names) > 1]
    if shared:
        raise ManifestError(
            f"{len(shared)} groups are in more than one of the given splits, "
            f"such as {shared[0]}, in {' and '.join(parts[shared[0]])}"
        )
    unit = "clip" if group == "id" else "group"
    for name, part in splits.items():
        lacking = sorted(set(groups) - {row["label"] for row in part})
        if lacking and (part or name in drawn):
            said = [
                f"{label} ({len(groups[label])} {unit}"
                f"{'s' * (len(groups[label]) > 1)})"
                for label in lacking[:_SHOWN_LABELS]
            ]
            more = ", ..." if len(lacking) > len(said) else ""
            logger.warning(
                f"{name} has no clip of {len(lacking)} of {len(groups)} "
                f"labels: {', '.join(said)}{more}"
            )
    return splits


def fold_splits(rows, fold, valid_fraction, group, valid_is_test=False):
    """Split rows into train, valid and test of one fold.

    Arguments
    ---------
    rows : list of dict
        With the keys `fold`, `label` and `group`.
    fold : int or str
        The fold to test on.
    valid_fraction : float
        Fraction of the other folds that becomes valid; see `hold_out`.
    group : str
        Key of the group of a clip. Groups are not divided between train and
        valid.
    valid_is_test : bool
        True: choose the epoch on the test fold, as some official scripts do,
        and train on all other folds. The result is then too optimistic.

    Returns
    -------
    dict
        Rows of `train`, `valid` and `test`.

    Raises
    ------
    ManifestError
        If there are no clips of this fold, or none of other folds.

    Example
    -------
    >>> rows = [
    ...     {"fold": i % 5, "label": "x", "recording": str(i)}
    ...     for i in range(50)
    ... ]
    >>> parts = fold_splits(rows, 3, valid_fraction=0.1, group="recording")
    >>> {name: len(part) for name, part in parts.items()}
    {'train': 36, 'valid': 4, 'test': 10}
    """
    test = [row for row in rows if str(row["fold"]) == str(fold)]
    others = [row for row in rows if str(row["fold"]) != str(fold)]
    if not test or not others:
        there = ", ".join(sorted({str(row["fold"]) for row in rows}))
        raise ManifestError(
            f"no clips to test on in fold {fold}, or none to train on in "
            f"others; there are clips of {there or 'no fold'}"
        )
    if valid_is_test:
        return {"train": others, "valid": test, "test": test}
    train, valid = hold_out(others, valid_fraction, group)
    return {"train": train, "valid": valid, "test": test}
