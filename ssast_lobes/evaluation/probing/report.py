"""Write the report of a probe as Markdown, CSV, JSON and a picture."""

import csv
import os
from pathlib import Path
from statistics import mean

from ssast_lobes.evaluation.probing.comparison import Result
from ssast_lobes.evaluation.probing.intervals import REPLICATES
from ssast_lobes.utils.files import atomic_write, write_json
from ssast_lobes.utils.plots import plot_intervals

_METRIC_NAMES = {"accuracy": "accuracy", "uar": "UAR"}
_PROBE_NAMES = {
    "linear": "Linear probe",
    "k-NN": "Nearest neighbors",
}

# A bootstrap over fewer groups says little, so the report warns of it.
_FEW_GROUPS = 10


def markdown(results, tasks):
    """Return all results as Markdown tables with aligned columns.

    Arguments
    ---------
    results : list of Result
        From `probe`.
    tasks : list of Task
        The tasks of the results.

    Returns
    -------
    str
        Markdown. A table describes the tasks. For each kind of probe, two
        tables show the scores and the gains over the untrained encoder, in
        percent. Models are sorted by their mean validation score. The last line
        names the system to choose.

    Example
    -------
    >>> from ssast_lobes.evaluation.probing import Task
    >>> row = {"path": "a.wav", "label": "dog", "group": "a.wav"}
    >>> parts = {"train": [row], "valid": [row], "test": [row]}
    >>> task = Task("animals", "accuracy", parts, grouped=False)
    >>> markdown([], [task]).splitlines()[4]
    '| animals | accuracy |       1 |     1 |     1 |    1 | 1 clips |'
    """
    lines = ["# Probe of frozen encoders", ""]
    lines += _table([_TASK_HEADER, *map(_task_row, tasks)], left=2)
    lines += ["", _INTRODUCTION]
    few = [task.name for task in tasks if task.n_groups < _FEW_GROUPS]
    if few:
        lines += [
            "",
            f"Fewer than {_FEW_GROUPS} groups in the test part: the intervals "
            f"of {', '.join(few)} say little, and are likely too narrow.",
        ]
    for probe, title in _PROBE_NAMES.items():
        rows = [result for result in results if result.probe == probe]
        if rows:
            lines += ["", f"## {title}", ""]
            lines += _score_table(rows, tasks, "score", "low", "high")
        rows = [result for result in rows if result.gain is not None]
        if rows:
            lines += ["", f"{title}, gain over the untrained encoder:", ""]
            names = ("gain", "gain_low", "gain_high")
            lines += _score_table(rows, tasks, *names, sign="+")
    if results:
        lines += ["", _verdict(results)]
    return "\n".join(lines) + "\n"


_TASK_HEADER = ("task", "metric", "classes", "train", "valid", "test", "groups")
_INTRODUCTION = (
    "Scores are in %, gains in points. In brackets: 95 % intervals of "
    f"{REPLICATES} bootstraps over the groups of the test part; they do not "
    "tell how much another training run would differ. Everything is chosen on "
    "the validation part."
)


def _task_row(task):
    sizes = [len(task.rows[split]) for split in ("train", "valid", "test")]
    kind = "" if task.grouped else " clips"
    metric = _METRIC_NAMES[task.metric]
    cells = [len(task.labels), *sizes, f"{task.n_groups}{kind}"]
    return [task.name, metric, *map(str, cells)]


def _means(rows, value):
    """Return the mean over tasks of each system, the largest first.

    Among equal means, models come before baselines.
    """
    scores, baselines = {}, {row.system for row in rows if row.baseline}
    for row in rows:
        scores.setdefault(row.system, []).append(getattr(row, value))
    means = {system: mean(own) for system, own in scores.items()}

    def rank(pair):
        return -round(pair[1], 9), pair[0] in baselines

    return dict(sorted(means.items(), key=rank))


def _verdict(results):
    """Return which system is first on valid, and by how many points."""
    probe, title = next(iter(_PROBE_NAMES.items()))
    rows = [row for row in results if row.probe == probe]
    valid, test = _means(rows, "valid_score"), _means(rows, "score")
    baselines = {row.system for row in rows if row.baseline}
    first, *others = valid
    models = [system for system in others if system not in baselines]
    others = [system for system in others if system in baselines]
    leads = [
        f"{100 * (valid[first] - valid[system]):+.1f} "
        f"({100 * (test[first] - test[system]):+.1f}) over {system}"
        for system in [*models[:1], *others[:1]]
    ]
    kind = "the baseline " if first in baselines else ""
    n_tasks = len({row.task for row in rows})
    over = f", mean of {n_tasks} tasks" if n_tasks > 1 else ""
    return (
        f"Take {kind}{first}: {100 * valid[first]:.1f} % on valid "
        f"({100 * test[first]:.1f} on test) by the {title.lower()}{over}, "
        f"{', '.join(leads)}."
    )


def _score_table(rows, tasks, value, low, high, sign=""):
    """Return the lines of a table; the best score of each task is bold."""
    with_valid = value == "score"
    lines = [["system"]]
    for task in tasks:
        lines[0].append(f"{task.name} ({_METRIC_NAMES[task.metric]})")
        lines[0] += ["valid"] * with_valid
    cells = {(row.system, row.task): row for row in rows}
    best = {}
    for row in rows:
        score = getattr(row, value)
        best[row.task] = max(score, best.get(row.task, score))
    baselines = dict.fromkeys(row.system for row in rows if row.baseline)
    by_valid = _means([row for row in rows if not row.baseline], "valid_score")
    for system in [*baselines, *by_valid]:
        line = [system]
        for task in tasks:
            row = cells[system, task.name]
            number, *edges = (
                f"{100 * getattr(row, name):{sign}.1f}"
                for name in (value, low, high)
            )
            if getattr(row, value) == best[task.name]:
                number = f"**{number}**"
            line.append(f"{number} [{', '.join(edges)}]")
            line += [f"{100 * row.valid_score:.1f}"] * with_valid
        lines.append(line)
    return _table(lines)


def _table(rows, left=1):
    """Return aligned lines of a Markdown table; the first row is the header."""
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width for width in widths]
    rule[left:] = [f"{dashes[1:]}:" for dashes in rule[left:]]
    lines = []
    for row in [rows[0], rule, *rows[1:]]:
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_report(results, tasks, folder):
    """Write all files of the report, each complete or not at all.

    Arguments
    ---------
    results : list of Result
        From `probe`.
    tasks : list of Task
        The tasks of the results.
    folder : str or path
        Where to write ``probe.md``, ``probe.csv`` (a row for each result),
        ``probe.json`` (the same rows, and the tasks) and ``probe.png``.

    Returns
    -------
    str
        The text of ``probe.md``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(results, tasks)
    with atomic_write(folder / "probe.md") as file:
        file.write(text)
    rows = [result._asdict() for result in results]
    with atomic_write(folder / "probe.csv") as file:
        writer = csv.DictWriter(file, Result._fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    described = [
        dict(zip(_TASK_HEADER, _task_row(task), strict=True)) for task in tasks
    ]
    content = {"tasks": described, "results": rows}
    write_json(folder / "probe.json", content)
    picture = folder / f".{os.getpid()}.partial.png"
    plot_results(results, picture)
    os.replace(picture, folder / "probe.png")
    return text


def plot_results(results, path):
    """Draw scores and intervals, with a panel for each task.

    Arguments
    ---------
    results : list of Result
        From `probe`.
    path : str or path
        File to write.

    Returns
    -------
    matplotlib.figure.Figure
    """
    panels = {}
    for row in results:
        title = f"{row.task} ({_METRIC_NAMES[row.metric]}, %)"
        points = panels.setdefault(title, {}).setdefault(row.system, {})
        points[_PROBE_NAMES[row.probe]] = (row.score, row.low, row.high)
    baselines = {row.system for row in results if row.baseline}
    return plot_intervals(panels, path, grey=baselines)
