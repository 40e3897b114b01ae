"""Write results of the interfaces to files."""

import csv
import json
import math
import os

from ssast_lobes.utils.files import atomic_write


def write_results(results, path, windows=False, min_score=-math.inf):
    """Write results of the interfaces to a file, which appears when complete.

    Arguments
    ---------
    results : list of Classification or list of Verification
        The results.
    path : str or path
        A ``.json`` file contains everything, with windows and their times. A
        ``.csv`` file contains a row for each clip; see `Classification.rows`.
    windows : bool
        Whether a CSV contains a row for each window instead of each clip.
    min_score : float
        Lowest score of the rows of a CSV. Other rows are dropped.

    Raises
    ------
    ValueError
        If the file has another extension.

    Example
    -------
    >>> from ssast_lobes.inference import Verification
    >>> path = getfixture("tmpdir") / "results.csv"
    >>> write_results([Verification("a.wav", "b.wav", 0.5, True)], path)
    >>> print(path.read_text("utf-8"))
    path_a,path_b,score,same_speaker
    a.wav,b.wav,0.5,True
    <BLANKLINE>
    """
    path = os.fspath(path)
    kind = os.path.splitext(path)[1].lower()
    if kind not in (".csv", ".json"):
        raise ValueError(f"{path}: results are written as .csv or .json")
    with atomic_write(path) as file:
        if kind == ".json":
            records = [_rounded(result.as_dict()) for result in results]
            json.dump(records, file, indent=2, ensure_ascii=False)
            file.write("\n")
        else:
            rows = [
                _rounded(row)
                for result in results
                for row in result.rows(windows)
            ]
            writer = csv.DictWriter(
                file, rows[0] if rows else [], lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(row for row in rows if row["score"] >= min_score)


def _rounded(value):
    """Round to six significant digits below 1, and to six decimals above."""
    if isinstance(value, float):
        return round(value, 6) if value >= 1 else float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
