"""Cross-validate: which folds to run, which are done, and their table."""

import json
import statistics
from pathlib import Path

from ssast_lobes.training.card import RESULT_FILE
from ssast_lobes.training.classification import LOWER_IS_BETTER
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.training.logs import read_log
from ssast_lobes.training.report import block
from ssast_lobes.utils.chance import CHANCE
from ssast_lobes.utils.files import write_json
from ssast_lobes.utils.plots import plot_comparison


def chosen_folds(fold, folds, epoch_chosen_on):
    """Return the folds to run: all, or the requested one.

    Arguments
    ---------
    fold : int, str or None
        One of the folds; None asks for all.
    folds : sequence of int or str
        Names of all folds.
    epoch_chosen_on : str
        ``"valid"``, or ``"test"`` as in some official scripts.

    Returns
    -------
    list

    Raises
    ------
    SettingsError
        If there is no such fold, or `epoch_chosen_on` is neither of the two.

    Example
    -------
    >>> chosen_folds(None, [1, 2], "valid"), chosen_folds("2", [1, 2], "test")
    ([1, 2], [2])
    """
    if epoch_chosen_on not in ("valid", "test"):
        raise SettingsError(
            f"epoch_chosen_on must be valid or test, got '{epoch_chosen_on}'"
        )
    if fold is None:
        return list(folds)
    chosen = [one for one in folds if str(one) == str(fold)]
    if not chosen:
        there = ", ".join(str(one) for one in folds)
        raise SettingsError(f"fold must be one of {there}, got '{fold}'")
    return chosen


def finished_result(folder, number_of_epochs):
    """Return the result of a finished experiment, or None.

    Arguments
    ---------
    folder : str or os.PathLike
        Output folder of the experiment.
    number_of_epochs : int
        Requested epochs. The result of another number of epochs does not count,
        nor does that of a debug run.

    Returns
    -------
    dict or None
        The result that `write_result` wrote.
    """
    path = Path(folder) / RESULT_FILE
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    whole = result["number_of_epochs"] == number_of_epochs
    return result if whole and not result["debug"] else None


def report_folds(
    folder, results, folds, selection, epoch_chosen_on, swa_start_epoch=None
):
    """Print the table of the folds; write it when all folds are done.

    If the test folds choose the epoch, all folds are reported at the same
    epoch: the one with the best mean, as in official scripts.

    Arguments
    ---------
    folder : str or os.PathLike
        Folder with ``fold_1`` and so on. ``results.json`` and ``results.png``
        are written to it.
    results : dict of dict
        For each fold, the result that `write_result` wrote.
    folds : sequence of int or str
        Names of all folds.
    selection, epoch_chosen_on, swa_start_epoch
        Settings of the protocol.

    Returns
    -------
    dict of dict
        For each fold the epoch (int) and the statistics (float).
    """
    results = {
        fold: {"epoch": one["epoch"], **one["metrics"]}
        for fold, one in results.items()
    }
    # With a mean of the weights, there is no epoch to choose.
    on_test = epoch_chosen_on == "test" and swa_start_epoch is None
    all_there = len(results) == len(folds)
    if on_test and all_there:
        results = _at_common_epoch(Path(folder), results, selection)
    caveat = ", epoch chosen on test" if on_test else ""
    print(f"\nTest results in %{caveat}")
    print(format_table(results), flush=True)
    if not all_there:
        return results
    mean, spread = _summary(results)
    content = {
        "epoch_chosen_on": epoch_chosen_on,
        "swa_start_epoch": swa_start_epoch,
        "folds": {str(fold): one for fold, one in results.items()},
        "mean": mean,
        "sd": spread,
    }
    table, picture = Path(folder, "results.json"), Path(folder, "results.png")
    write_json(table, content)
    bars = [(f"fold {fold}", r[selection], 0) for fold, r in results.items()]
    plot_comparison(
        [*bars, ("mean", mean[selection], spread[selection])],
        picture,
        label=f"Test {selection} (%), mean and sd over folds{caveat}",
    )
    print(block("All folds", {"table": table, "picture": picture}), flush=True)
    return results


def format_table(results):
    """Return results of folds as text, with mean and standard deviation.

    Arguments
    ---------
    results : dict of dict
        For each fold, the epoch (int) and statistics (float). All but "loss"
        are fractions between 0 and 1. Chance levels are left out.

    Returns
    -------
    str
        Lines with fractions in percent. The standard deviation is that of a
        sample, with the divisor n - 1.

    Example
    -------
    >>> folds = {
    ...     "1": {"epoch": 3, "loss": 0.5, "accuracy": 0.80},
    ...     "2": {"epoch": 4, "loss": 0.7, "accuracy": 0.90},
    ... }
    >>> print(format_table(folds))
    fold   epoch      loss  accuracy
    1          3    0.5000     80.00
    2          4    0.7000     90.00
    mean            0.6000     85.00
    sd              0.1414      7.07
    """
    names = [
        name
        for name in next(iter(results.values()))
        if name != "epoch" and not name.endswith(CHANCE)
    ]
    width = max(6, *(len(f"{fold}") + 2 for fold in results))
    lines = [f"{'fold':<{width}} epoch" + "".join(f"{n:>10}" for n in names)]

    def line(name, epoch, values):
        cells = [
            f"{values[n]:10.4f}" if n == "loss" else f"{100 * values[n]:10.2f}"
            for n in names
        ]
        return f"{name:<{width}}{epoch:>6}" + "".join(cells)

    lines += [line(fold, one["epoch"], one) for fold, one in results.items()]
    if len(results) > 1:
        mean, spread = _summary(results)
        lines += [line("mean", "", mean), line("sd", "", spread)]
    return "\n".join(lines)


def _at_common_epoch(folder, results, selection):
    """Return the results at the epoch with the best mean over test folds."""
    logs = {
        fold: {row["epoch"]: row for row in read_log(folder / f"fold_{fold}")}
        for fold in results
    }
    common = set.intersection(*(set(rows) for rows in logs.values()))

    def mean(epoch):
        return statistics.mean(
            rows[epoch][f"valid_{selection}"] for rows in logs.values()
        )

    choose = min if selection in LOWER_IS_BETTER else max
    best = choose(sorted(common), key=mean)
    return {
        fold: {
            "epoch": best,
            **{
                name: logs[fold][best][f"valid_{name}"]
                for name in result
                if name != "epoch"
            },
        }
        for fold, result in results.items()
    }


def _summary(results):
    """Return mean and standard deviation of each statistic over the folds."""
    names = [name for name in next(iter(results.values())) if name != "epoch"]
    values = {n: [one[n] for one in results.values()] for n in names}
    return (
        {name: statistics.mean(own) for name, own in values.items()},
        {
            name: statistics.stdev(own) if len(own) > 1 else 0.0
            for name, own in values.items()
        },
    )
