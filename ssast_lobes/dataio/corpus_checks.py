"""Compare a corpus on disk with its published layout and counts."""

from collections import Counter
from pathlib import Path

from speechbrain.utils.logger import get_logger

from ssast_lobes.dataio.tables import ManifestError

logger = get_logger(__name__)


def check_layout(folder, expected, page):
    """Raise unless a folder has the layout of an official archive.

    Arguments
    ---------
    folder : str or os.PathLike
        Where the unpacked archive should be.
    expected : list of str
        Files and folders in the archive.
    page : str
        Page from which people get the archive, perhaps with instructions.

    Raises
    ------
    ManifestError
        If any is missing. The message lists all missing ones, and names the
        page.

    Example
    -------
    >>> check_layout(getfixture("tmpdir"), ["meta"], "https://example.org")
    Traceback (most recent call last):
    ...
    ssast_lobes...ManifestError: ...: missing there: meta...
    """
    folder = Path(folder).expanduser().absolute()
    missing = [name for name in expected if not (folder / name).exists()]
    if missing:
        raise ManifestError(
            f"{folder}: missing there: {', '.join(missing)}. Expected are "
            f"{', '.join(expected)}, as in the archive of {page}"
        )


def tally(rows, *names, **distinct):
    """Count rows, to compare with published counts.

    Arguments
    ---------
    rows : list of dict
        The clips.
    *names : str
        What to count, with keys of the rows in braces: "clips" counts all
        clips, "fold {fold}" counts the clips of each fold.
    **distinct : str
        Key whose distinct values are counted: ``speakers="speaker"``.

    Returns
    -------
    dict of str to int

    Example
    -------
    >>> rows = [{"label": "cat", "take": 1}, {"label": "dog", "take": 1}]
    >>> tally(rows, "clips", "{label}", takes="take")
    {'clips': 2, 'cat': 1, 'dog': 1, 'takes': 1}
    """
    counts = Counter(name.format_map(row) for name in names for row in rows)
    values = {
        name: len({row[key] for row in rows}) for name, key in distinct.items()
    }
    return {**counts, **values}


def check_counts(found, published, source):
    """Raise unless the counts of an archive equal the published ones.

    Arguments
    ---------
    found, published : dict of str to int
        Counts by name; see `tally`.
    source : str
        Publication that states the counts `published`.

    Raises
    ------
    ManifestError
        If a count differs; the message states found and published counts.

    Example
    -------
    >>> check_counts({"clips": 3}, {"clips": 4}, "the paper")
    Traceback (most recent call last):
    ...
    ssast_lobes...ManifestError: ... clips: 3, published 4 ...
    """
    differing = [
        f"{name}: {found.get(name, 0)}, published {count}"
        for name, count in published.items()
        if found.get(name, 0) != count
    ]
    if differing:
        raise ManifestError(
            f"the data are incomplete: {'; '.join(differing)} ({source}). Get "
            "the missing files, or continue with a part by --require_counts "
            "False"
        )
    logger.info(f"All counts are as published by {source}")
