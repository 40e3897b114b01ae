"""Report the gains of pretraining: scores, baselines, tables, a plot.

The input is the predictions of every system on every task by seed. Scores are
fractions, 0 to 1, with mean and deviation over seeds; intervals hold 95 % of
bootstraps over the test part, in which all systems and seeds share the draws.
"""

import os
import statistics
from pathlib import Path
from typing import NamedTuple

import torch

from ssast_lobes.evaluation.probing.intervals import bootstrap, interval
from ssast_lobes.evaluation.probing.tasks import SCORES
from ssast_lobes.utils.files import atomic_write, write_json
from ssast_lobes.utils.plots import plot_intervals

SCRATCH, FINE_TUNED = "scratch", "fine_tuned"
_METRIC_NAMES = {"accuracy": "accuracy", "uar": "UAR"}


class System(NamedTuple):
    """Something that classifies the clips of every task.

    Arguments
    ---------
    name : str
        Baseline or pretraining.
    how : str
        ``"linear"`` and ``"k-NN"`` on frozen features, ``"trained"`` from
        scratch, or ``"fine-tuned"``.
    baseline : System, optional
        What it has to be better than: the same without pretraining.
    """

    name: str
    how: str
    baseline: tuple = None


class Score(NamedTuple):
    """How one system does on one task.

    Arguments
    ---------
    seeds : list of float
        The score of each seed.
    draws : torch.Tensor
        Mean over the seeds in each bootstrap (R,).
    """

    seeds: list
    draws: torch.Tensor

    @property
    def mean(self):
        """Mean over the seeds."""
        return statistics.mean(self.seeds)

    @property
    def sd(self):
        """Deviation of a sample of seeds (n - 1); None of one seed."""
        if len(self.seeds) < 2:
            return None
        return statistics.stdev(self.seeds)


class Gain(NamedTuple):
    """What a system gains over its baseline; None where that is undefined.

    Arguments
    ---------
    relative : float
        Score over the baseline's score, less 1: the figure that SSAST (Gong
        et al., AAAI 2022) gives as 60.9 % on average over tasks.
    error_reduction : float
        Fraction of the baseline's errors that is gone.
    low, high : float
        Interval of `error_reduction`.
    draws : torch.Tensor
        `error_reduction` in each bootstrap (R,).
    """

    relative: float
    error_reduction: float
    low: float
    high: float
    draws: torch.Tensor


def gain(own, baseline):
    """Return the gain of one score over another, paired.

    Arguments
    ---------
    own, baseline : Score
        Of one task.

    Returns
    -------
    Gain
    """
    relative = error_reduction = None
    if baseline.mean > 0:
        relative = own.mean / baseline.mean - 1
    if baseline.mean < 1:
        error_reduction = 1 - (1 - own.mean) / (1 - baseline.mean)
    draws = 1 - (1 - own.draws) / (1 - baseline.draws)
    return Gain(relative, error_reduction, *_interval(draws), draws)


def average(gains):
    """Return the mean of gains over tasks.

    Arguments
    ---------
    gains : list of Gain
        One a task.

    Returns
    -------
    Gain
        Undefined where a task's is.
    """
    relative, reduction = (
        None if None in values else statistics.mean(values)
        for values in (
            [one.relative for one in gains],
            [one.error_reduction for one in gains],
        )
    )
    draws = torch.stack([one.draws for one in gains]).mean(0)
    return Gain(relative, reduction, *_interval(draws), draws)


def _interval(draws):
    """Return the interval over draws in which the baseline errs."""
    draws = draws[draws.isfinite()]
    return interval(draws) if len(draws) else (None, None)


def scores(task, predictions, draw_seed=0):
    """Return the scores of systems on one task.

    Arguments
    ---------
    task : Task
        For its test part and its metric.
    predictions : dict of System to list of dict
        Predicted label by clip id, a dict a seed. A clip that one of them
        lacks, because it was unreadable, is left out for all.
    draw_seed : int
        Of the bootstrap; another one for each task.

    Returns
    -------
    scores : dict of System to Score
        In the order of `predictions`.
    n_clips : int
        Test clips that were counted.

    Raises
    ------
    ValueError
        If no clip is left.
    """
    runs = [run for own in predictions.values() for run in own]
    known = set.intersection(*(set(run) for run in runs))
    rows = [row for row in task.rows["test"] if row["id"] in known]
    if not rows:
        raise ValueError(f"{task.name}: no test clip has all predictions")
    kept = task._replace(rows={**task.rows, "test": rows})
    target, groups = kept.targets("test"), kept.groups()
    index = {label: number for number, label in enumerate(task.labels)}
    found = {}
    for system, own in predictions.items():
        classes = [
            torch.tensor([index[run[row["id"]]] for row in rows]) for run in own
        ]
        draws = [
            bootstrap(predicted, target, groups, task.metric, draw_seed)
            for predicted in classes
        ]
        metric = SCORES[task.metric]
        found[system] = Score(
            [metric(target, predicted) for predicted in classes],
            torch.stack(draws).mean(0),
        )
    return found, len(rows)


def report(folder, items, results, tuning, costs):
    """Write the tables, the plot and all the numbers.

    Arguments
    ---------
    folder : pathlib.Path
        Gets ``transfer.md``, ``transfer.json`` and ``transfer.png``.
    items : list of Item
        The tasks.
    results : dict
        Of each ``(task, System)`` the result of each seed; ``"predicted"``
        has the labels by clip id, ``"valid"`` the score on valid.
    tuning : dict
        Of each method of each task the ``"settings"`` that were chosen, and
        those ``"tried"``.
    costs : dict
        Of each stage and pretraining its steps, clips and hours of audio.

    Returns
    -------
    dict
        What ``transfer.json`` has.
    """
    systems = list(dict.fromkeys(system for _, system in results))
    found, n_clips = {}, {}
    for number, item in enumerate(items):
        name = item.task.name
        found[name], n_clips[name] = scores(
            item.task,
            {
                system: [
                    run["predicted"] for run in results[name, system].values()
                ]
                for system in systems
            },
            draw_seed=number,
        )
    gains = _gains(systems, found)
    text = "\n".join(
        [
            "# Transfer",
            "",
            *_task_table(items, n_clips),
            "",
            *_score_table(systems, items, found),
            "",
            *_gain_table(items, gains),
            "",
            *tuning_table(tuning),
            *_cost_table(costs),
        ]
    )
    with atomic_write(folder / "transfer.md") as file:
        file.write(text + "\n")
    content = _plain(items, n_clips, results, found, gains)
    content |= {"tuning": tuning, "pretraining": costs}
    write_json(folder / "transfer.json", content)
    _plot(items, found, folder / "transfer.png")
    print(text)
    return content


def _gains(systems, found):
    """Return gains by system and task; under None the average over tasks."""
    gains = {}
    for system in systems:
        if system.baseline is not None:
            own = {
                task: gain(by_system[system], by_system[system.baseline])
                for task, by_system in found.items()
            }
            gains[system] = {**own, None: average(list(own.values()))}
    return gains


def title(item):
    """Return what tables call a task: few labels are named as such.

    Arguments
    ---------
    item : Item
        The task.

    Returns
    -------
    str
    """
    metric = _METRIC_NAMES[item.task.metric]
    few = item.labels_per_class
    few = "" if few is None else f", {few} labels per class"
    return f"{item.task.name} ({metric}{few})"


def _label(system):
    return f"{system.name}, {system.how}"


def _table(rows):
    """Return the lines of a Markdown table; the first row is the header."""
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    header, *rows = [f"| {' | '.join(row)} |" for row in rows]
    return [header, "|---" * (header.count(" | ") + 1) + "|", *rows]


def _task_table(items, n_clips):
    lines = [("task", "metric", "classes", "train", "valid", "test", "drawn")]
    for item in items:
        task = item.task
        seed_free = len(task.rows["train"])
        few = item.labels_per_class
        train = seed_free if few is None else f"{few} a class of {seed_free}"
        lines.append(
            (
                *(task.name, _METRIC_NAMES[task.metric], len(task.labels)),
                *(train, len(task.rows["valid"]), n_clips[task.name]),
                f"{task.n_groups} groups" if task.grouped else "clips",
            )
        )
    return _table(lines)


def _score_table(systems, items, found):
    lines = [("system", *map(title, items))]
    for system in systems:
        cells = (_cell(found[item.task.name][system]) for item in items)
        lines.append((_label(system), *cells))
    return [
        "Test scores in %, mean and sample deviation over seeds; without a "
        "deviation nothing is random. Everything is chosen on the validation "
        "part.",
        "",
        *_table(lines),
    ]


def _cell(score):
    if score.sd is None:
        return f"{100 * score.mean:.1f}"
    return f"{100 * score.mean:.1f} ± {100 * score.sd:.1f}"


def _gain_table(items, gains):
    names = [item.task.name for item in items]
    lines = [("system, over baseline", "", *names, "average")]
    for system, own in gains.items():
        over = f"{_label(system)}, over {_label(system.baseline)}"
        columns = [own[name] for name in (*names, None)]
        relative = [_percent(one.relative) for one in columns]
        reductions = [
            f"{_percent(one.error_reduction)} "
            f"[{_percent(one.low)}, {_percent(one.high)}]"
            for one in columns
        ]
        lines += [
            (over, "relative gain", *relative),
            ("", "errors less", *reductions),
        ]
    return [
        "Relative gain of the score, and fraction of the baseline's errors "
        "that is gone, in %, of the means over seeds; in brackets 95 % of "
        "paired bootstraps over the test part.",
        "",
        *_table(lines),
    ]


def _percent(fraction):
    return "-" if fraction is None else f"{100 * fraction:+.1f}"


def tuning_table(tuning):
    """Return what was tried on the validation part, and what was chosen.

    Arguments
    ---------
    tuning : dict
        See `report`.

    Returns
    -------
    list of str
        Lines of Markdown.
    """
    lines = [("task and method", "configurations tried", "valid", "chosen")]
    for name, own in tuning.items():
        chosen = ", ".join(f"{k} {v}" for k, v in own["settings"].items())
        valid = [
            one["valid"]
            for one in own["tried"]
            if one["settings"] == own["settings"]
        ]
        valid = f"{100 * max(valid):.1f}" if valid else "-"
        lines.append((name, max(1, len(own["tried"])), valid, chosen))
    return [
        "Configurations tried on the validation part, with one seed:",
        "",
        *_table(lines),
    ]


def _cost_table(costs):
    if not costs:
        return []
    lines = [
        ("pretraining", "steps", "clips", "hours", "audio", "settings"),
    ]
    for name, cost in costs.items():
        asked = cost["asked"]
        settings = ", ".join(
            f"{key} {value}" for key, value in asked["settings"].items()
        )
        hours = f"{cost['hours']:.2f}"
        audio = asked["audio"]
        sources = audio if isinstance(audio, list) else [audio]
        # Many corpora have a manifest.csv: the folder's name tells them apart.
        paths = [Path(source) for source in sources]
        shown = ", ".join(f"{p.parent.name}/{p.name}" for p in paths)
        lines.append(
            (name, cost["steps"], cost["clips"], hours, shown, settings)
        )
    return ["", *_table(lines)]


def _plain(items, n_clips, results, found, gains):
    """Return all numbers by name, for JSON."""
    tasks = [
        {
            "name": item.task.name,
            "metric": item.task.metric,
            "labels_per_class": item.labels_per_class,
            "classes": len(item.task.labels),
            "test_clips": n_clips[item.task.name],
        }
        for item in items
    ]
    rows = [
        {
            "task": task,
            "system": system.name,
            "how": system.how,
            "mean": score.mean,
            "sd": score.sd,
            "seeds": dict(
                zip(map(str, results[task, system]), score.seeds, strict=True)
            ),
            "valid": [run["valid"] for run in results[task, system].values()],
            "interval": list(interval(score.draws)),
        }
        for task, by_system in found.items()
        for system, score in by_system.items()
    ]
    differences = [
        {
            "task": task or "average",
            "system": system.name,
            "how": system.how,
            "baseline": _label(system.baseline),
            "relative_gain": one.relative,
            "error_reduction": one.error_reduction,
            "interval": [one.low, one.high],
        }
        for system, own in gains.items()
        for task, one in own.items()
    ]
    return {"tasks": tasks, "scores": rows, "gains": differences}


def _plot(items, found, path):
    panels = {
        title(item): {
            _label(system): {
                "mean over seeds, 95 % of bootstraps over the test part": (
                    score.mean,
                    *interval(score.draws),
                )
            }
            for system, score in found[item.task.name].items()
        }
        for item in items
    }
    simple = {
        _label(system)
        for by_system in found.values()
        for system in by_system
        if system.baseline is None
    }
    partial = path.with_name(f".{os.getpid()}.partial{path.suffix}")
    plot_intervals(panels, partial, grey=simple)
    os.replace(partial, path)
