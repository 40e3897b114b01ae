"""Probe frozen encoders and four baselines on any number of tasks."""

import json
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from ssast_lobes.dataio.tables import SPLITS
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.evaluation.probing.classifiers import (
    Fit,
    logistic_regression,
    nearest_neighbors,
)
from ssast_lobes.evaluation.probing.embeddings import (
    LAYERS,
    POOLINGS,
    VARIANTS,
    ClipDuration,
    LogMelStatistics,
    PooledEncoder,
    Readout,
    cached_vectors,
)
from ssast_lobes.evaluation.probing.intervals import bootstrap, interval
from ssast_lobes.evaluation.probing.tasks import SCORES

PROBES = {"linear": logistic_regression, "k-NN": nearest_neighbors}

# With this choice, the validation split decides.
BEST = "best"
MAJORITY, DURATION = "majority class", "duration"
LOG_MEL, UNTRAINED = "log-mel", "untrained"


class Result(NamedTuple):
    """The scores of one system on one task, by one probe.

    Scores are fractions, 0 to 1. Intervals contain 95 % of the scores when the
    groups of the test split are bootstrapped.

    Arguments
    ---------
    task, metric : str
        Name of the task, and its metric.
    system : str
        Name of the model or the baseline.
    baseline : bool
        Whether the system is a baseline.
    probe : str
        ``"linear"`` or ``"k-NN"``.
    score, low, high : float
        Score on the test split, with its interval.
    gain, gain_low, gain_high : float or None
        Gain over an untrained encoder of the same architecture, with the
        interval of the paired difference; None for baselines.
    valid_score : float
        Score on the validation split.
    setting : float or None
        Penalty or number of neighbors, chosen on the validation split.
    pooling, layers : str or None
        Pooling and layers of the clip vectors; None for baselines without
        pooling.
    """

    task: str
    metric: str
    system: str
    baseline: bool
    probe: str
    score: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    valid_score: float
    setting: float
    pooling: str
    layers: str


class _System(NamedTuple):
    """A system to probe, with the name of its untrained twin."""

    name: str
    open: object
    twin: str = None
    baseline: bool = False


def probe(
    models,
    tasks,
    cache_folder,
    pooling="best",
    layers="best",
    device="cpu",
    batch_size=16,
    unreadable=None,
):
    """Measure how well simple classifiers work on frozen encoders.

    The test split is used only for the scores. Features are standardized on
    train. The penalty, the number of neighbors and, for ``"best"``, the pooling
    are chosen on valid, by the metric and then by the cross-entropy. The four
    baselines are the most frequent class, the duration of the clip, the mean
    and standard deviation of the log-mel energies over time, and each
    architecture with random weights.

    Arguments
    ---------
    models : list or dict
        Exported folders or official ``.pth`` files. `short_names` names the
        models of a list. The keys of a dict are the names in tables.
    tasks : list of Task
        From `read_task`.
    cache_folder : str or path
        Folder that keeps the vectors of the clips for the next run.
    pooling : str
        ``"mean"`` of the tokens, ``"class"`` tokens, ``"statistics"`` (mean and
        standard deviation of the tokens), ``"dynamics"`` (the statistics, and
        how much the tokens change over one and two time steps) or ``"best"``
        (the best for each model). A single pooling for all models may reverse
        their ranking.
    layers : str
        ``"last"``, ``"all-mean"`` (the mean of the outputs of all blocks),
        ``"all"`` (concatenated, for statistics and dynamics) or ``"best"``.
    device : str
        Device that computes the encoders. Probes are computed on the CPU.
    batch_size : int
        Windows of audio computed at once.
    unreadable : list, optional
        Collects (path, reason) of unreadable files, which are skipped for all
        systems. Without a list, the first such file is an error.

    Returns
    -------
    list of Result
        Task by task: first the baselines, then the models in their order.

    Raises
    ------
    ValueError
        If a choice is unknown, or two tasks or models have the same name.
    WeightsError
        If a model does not load.

    Example
    -------
    >>> probe([], tasks=[], cache_folder="nowhere")
    Traceback (most recent call last):
    ...
    ValueError: there is no task: name at least one
    """
    variants = variants_of(pooling, layers)
    if not isinstance(models, dict):
        models = short_names(models)
    _check_names(models, tasks)
    systems = _systems(models, variants, device, batch_size)
    vectors, missing = _all_vectors(systems, tasks, cache_folder)
    if missing and unreadable is None:
        raise UnreadableAudio("{}: {}".format(*next(iter(missing.items()))))
    if missing:
        unreadable.extend(missing.items())
        tasks = [task.without(missing.keys()) for task in tasks]
    results = []
    n_fits = len(tasks) * len(systems) * len(PROBES)
    with tqdm(total=n_fits, desc="Probing", unit="probe") as bar:
        for task in tasks:
            results += _probe_task(task, systems, vectors, variants, bar)
    return results


def short_names(sources):
    """Name models by the components of their paths that differ.

    Arguments
    ---------
    sources : list of str or path
        Folders or files.

    Returns
    -------
    dict of str to str or path
        Sources by name.

    Example
    -------
    >>> list(short_names(["runs/mspm/export", "runs/atst/export"]))
    ['mspm', 'atst']
    >>> list(short_names(["runs/mspm/export"]))
    ['mspm']
    """
    parts = [Path(os.path.abspath(source)).parts for source in sources]
    if len(set(parts)) < len(parts):
        raise ValueError("a model is named twice")
    if len(parts) == 1:
        *_, folder, name = ["", *parts[0]]
        return {folder if name == "export" else name: sources[0]}
    shortest = min(map(len, parts), default=1)
    first = min(_n_common(parts), shortest - 1)
    last = _n_common([path[::-1] for path in parts])
    last = min(last, shortest - 1 - first)
    names = ["/".join(path[first : len(path) - last]) for path in parts]
    return dict(zip(names, sources, strict=True))


def _n_common(paths):
    """Count the leading components that all paths share."""
    columns = list(zip(*paths, strict=False))
    return next(
        (n for n, column in enumerate(columns) if len(set(column)) > 1),
        len(columns),
    )


def variants_of(pooling, layers):
    """Return the `VARIANTS` allowed by two choices.

    Arguments
    ---------
    pooling, layers : str
        See `probe`.

    Returns
    -------
    list of tuple

    Raises
    ------
    ValueError
        If a choice is unknown, or `VARIANTS` lacks the pair.

    Example
    -------
    >>> variants_of("statistics", "best")
    [('statistics', 'last'), ('statistics', 'all')]
    """
    choices = {"pooling": (pooling, POOLINGS), "layers": (layers, LAYERS)}
    for name, (choice, known) in choices.items():
        if choice not in (*known, BEST):
            raise ValueError(
                f"{name} must be one of {(*known, BEST)}, got '{choice}'"
            )
    found = [
        (own_pooling, own_layers)
        for own_pooling, own_layers in VARIANTS
        if pooling in (own_pooling, BEST) and layers in (own_layers, BEST)
    ]
    if not found:
        known = ", ".join(" of ".join(variant) for variant in VARIANTS)
        raise ValueError(
            f"no pooling '{pooling}' of '{layers}' layers; choose from: {known}"
        )
    return found


def _check_names(models, tasks):
    if not tasks:
        raise ValueError("there is no task: name at least one")
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"two tasks are called {twice[0]}: give them names of their own"
        )
    taken = sorted({MAJORITY, DURATION, LOG_MEL} & models.keys())
    taken += [name for name in models if name.startswith(UNTRAINED)]
    if taken:
        raise ValueError(f"'{taken[0]}' is a baseline: rename the model")


def _systems(models, variants, device, batch_size):
    """Return baselines, then models. Load every model to check it."""
    twins, systems = {}, []
    fbank = {}
    for name, source in models.items():
        open_model = partial(PooledEncoder, source, device, batch_size)
        opened = open_model()
        opened.check_variants(variants)
        architecture = opened.architecture
        fbank = fbank or architecture["features"]
        twin = twins.setdefault(json.dumps(architecture), (name, open_model))
        systems.append((name, open_model, twin[0]))
    named = {
        first: UNTRAINED if len(twins) == 1 else f"{UNTRAINED} ({first})"
        for first, _ in twins.values()
    }
    settings = {k: fbank[k] for k in ("sample_rate", "n_mels") if fbank}
    open_log_mel = partial(LogMelStatistics, **settings)
    return [
        _System(DURATION, ClipDuration, None, True),
        _System(LOG_MEL, open_log_mel, None, True),
        *(
            _System(named[first], partial(_untrained, open_model), None, True)
            for first, open_model in twins.values()
        ),
        *(_System(name, open, named[first]) for name, open, first in systems),
    ]


def _untrained(open_model):
    return open_model().untrained()


def _all_vectors(systems, tasks, cache_folder):
    """Return vectors by system and path, and reasons by unreadable file."""
    paths = [path for task in tasks for path in task.paths()]
    vectors, missing = {}, {}
    for system in systems:
        unreadable = []
        vectors[system.name] = cached_vectors(
            system.open(), system.name, paths, cache_folder, unreadable
        )
        missing |= dict(unreadable)
    return vectors, missing


class _Measured(NamedTuple):
    """The best fit of one system, its readout, and its bootstrap."""

    fit: Fit
    readout: Readout
    score: float
    draws: torch.Tensor


def _probe_task(task, systems, vectors, variants, bar):
    """Return the results of one task."""
    y = {split: task.targets(split) for split in SPLITS}
    groups, metric = task.groups(), SCORES[task.metric]

    def measured(fit, readout):
        return _Measured(
            fit,
            readout,
            metric(y["test"], fit.predictions),
            bootstrap(fit.predictions, y["test"], groups, task.metric),
        )

    found = {}
    for probe_name, classify in PROBES.items():
        fit = _majority(y, metric)
        found[MAJORITY, probe_name] = measured(fit, Readout())
        for system in systems:
            x = task.stacked(vectors[system.name])
            readouts = readouts_of(x["train"], variants)
            fit, readout = best_fit(classify, x, y, task, readouts)
            found[system.name, probe_name] = measured(fit, readout)
            bar.update()
    return [
        _result(task, system, probe_name, found)
        for system in [_System(MAJORITY, None, None, True), *systems]
        for probe_name in PROBES
    ]


def _majority(y, metric):
    """Return a fit that predicts the most frequent class of train."""
    label = y["train"].bincount().argmax()
    valid, test = (torch.full_like(y[s], label) for s in ("valid", "test"))
    return Fit(test, None, metric(y["valid"], valid), None)


def readouts_of(vectors, variants):
    """Return the readouts of vectors: variants, or none to choose from.

    Arguments
    ---------
    vectors : torch.Tensor
        (N, R, D); see `PooledEncoder.vectors`. Baselines have one vector for
        each clip, R = 1.
    variants : list of tuple
        Items of `VARIANTS`.

    Returns
    -------
    list of Readout

    Example
    -------
    >>> readouts_of(torch.zeros(3, 1, 2), VARIANTS)
    [Readout(pooling=None, layers=None, projection=None)]
    """
    if vectors.shape[1] == 1:
        return [Readout()]
    return [Readout(*variant) for variant in variants]


def best_fit(classify, x, y, task, readouts):
    """Return the fit that ranks first on valid, and its readout.

    Arguments
    ---------
    classify : callable
        One of `PROBES`.
    x : dict of str to torch.Tensor
        Vectors (N, R, D) by split, with R vectors of each clip; see
        `PooledEncoder.vectors`.
    y : dict of str to torch.Tensor
        Class indices (N,) by split. The indices of test are not used.
    task : Task
        The task, which states the metric.
    readouts : list of Readout
        The readouts to choose from.

    Returns
    -------
    fit : Fit
        See `ssast_lobes.evaluation.probing.classifiers`.
    readout : Readout
        Among equal ranks, the first.

    Example
    -------
    >>> from ssast_lobes.evaluation.probing import Task, nearest_neighbors
    >>> rows = [{"path": f"{n}.wav", "label": f"{n % 2}"} for n in range(4)]
    >>> task = Task("parity", "accuracy", dict.fromkeys(SPLITS, rows), False)
    >>> x = dict.fromkeys(SPLITS, torch.tensor([[[0.0]], [[1.0]]] * 2))
    >>> y = {split: task.targets(split) for split in SPLITS}
    >>> fit, _ = best_fit(nearest_neighbors, x, y, task, [Readout()])
    >>> fit.predictions.tolist()
    [0, 1, 0, 1]
    """
    metric, best = SCORES[task.metric], None
    for readout in readouts:
        own = {split: readout(part) for split, part in x.items()}
        fit = classify(
            own["train"],
            y["train"],
            own["valid"],
            y["valid"],
            own["test"],
            metric=metric,
        )
        if best is None or fit.rank > best[0].rank:
            best = fit, readout
    return best


def _result(task, system, probe_name, found):
    own = found[system.name, probe_name]
    gain = gain_low = gain_high = None
    if system.twin is not None:
        twin = found[system.twin, probe_name]
        gain = own.score - twin.score
        gain_low, gain_high = interval(own.draws - twin.draws)
    return Result(
        task.name,
        task.metric,
        system.name,
        system.baseline,
        probe_name,
        own.score,
        *interval(own.draws),
        gain,
        gain_low,
        gain_high,
        own.fit.valid_score,
        own.fit.setting,
        own.readout.pooling,
        own.readout.layers,
    )
