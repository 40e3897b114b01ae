"""Drop clips that a table holds out from training."""

from ssast_lobes.dataio.tables import SPLITS, ManifestError


def held_out(row):
    """Return whether any split of a row holds it out from training.

    Every column whose name starts with "split" counts: a table for several
    tasks may have one for each task.

    Arguments
    ---------
    row : dict
        From `read_manifest` or `folder_rows`.

    Returns
    -------
    bool
        True if one of these columns says valid or test.

    Raises
    ------
    ManifestError
        If one of these columns says anything but train, valid, test or nothing.
        The message names the row's id, the column and the value.

    Example
    -------
    >>> held_out({"id": "a.wav", "split": "train", "split_speaker": "test"})
    True
    >>> held_out({"id": "a.wav"})
    False
    """
    splits = {k: v for k, v in row.items() if k.startswith("split")}
    for column, value in splits.items():
        if value not in ("", *SPLITS):
            raise ManifestError(
                f'{row["id"]}: "{value}" in column {column}; use train, '
                "valid or test"
            )
    return not {"valid", "test"}.isdisjoint(splits.values())


def without_held_out(rows, others=()):
    """Return the rows that no table holds out, each clip once.

    A folder, or shards of it, may hold files that a table assigns to valid or
    test.

    Arguments
    ---------
    rows : list of dict
        Rows of any sources, with `path`, and `source_path` if they are in
        shards.
    others : list of dict
        Rows of further tables that hold clips out.

    Returns
    -------
    list of dict
        Rows whose file no row of `rows` or `others` holds out.

    Raises
    ------
    ManifestError
        If a split is unknown; see `held_out`.

    Example
    -------
    >>> folder = [{"id": name, "path": f"/{name}"} for name in ("a", "b")]
    >>> table = [{"id": "a", "path": "/a", "split": "test"}]
    >>> without_held_out(folder, table)
    [{'id': 'b', 'path': '/b'}]
    """
    left_out = {
        path
        for row in [*rows, *others]
        if held_out(row)
        for path in _places(row)
    }
    kept = {
        row.get("source_path", row["path"]): row
        for row in rows
        if left_out.isdisjoint(_places(row))
    }
    return list(kept.values())


def _places(row):
    """Return the path of a clip, and its original path if it is in a shard."""
    return {row["path"], row.get("source_path", row["path"])}
