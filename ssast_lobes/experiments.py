"""Runs experiments: all that the `train.py` of one recipe shares with others.

A recipe hands over its command line and a function `prepare(hparams)`, which
writes the parts of its dataset with `data.splits.write_splits` and returns
the path. The YAML says what the experiment is. What all experiments have
alike is made here, unless the YAML has a key of that name: `export_folder`,
`use_tensorboard`, `train_reader` (random crops of `crop_seconds`) and
`valid_reader` (centre crops in pretraining, whole clips in classification,
which tests with it too), `train_loader_kwargs`, `valid_loader_kwargs`,
`label_encoder`, `epoch_counter`, `checkpointer`, `train_logger`.

Seven keys are there for the size of a corpus and for what comes of it: `shards`
is a folder that `ssast-lobes shard` made of the experiment's `manifest.csv`, to
read the audio from; `clips_per_evaluation` (pretraining) cuts a pass over the
data into epochs of that many clips, `number_of_epochs` still counting the
passes; `passes_per_epoch` (pretraining) makes epochs of several passes, each
with the same crops, where one is too short to stop after it, and
`number_of_epochs` counts the epochs; where two passes meet, a batch may hold a
clip twice; `cover_long` (pretraining) takes as many crops of a clip a pass as
fit into it, not one; `average_with` (pretraining) lists exported folders of the
same model: what is exported is the mean of their weights and the trained ones;
`balanced_sampling` (classification) draws rare classes as often as frequent
ones; `average_from` (classification) tests the mean of the weights of the
epochs from that one on, in place of one epoch.

`linear_start` (classification) is the penalty of a logistic regression on the
encoder as it is, which the head begins with; it takes clips whole, as tests
do. `window_seconds` is what the export takes at once, where that is to be more
than a crop.

Where clips differ in length, `length_buckets` sorts so many batches of the
training by length, and cuts them again, which leaves little padding;
`pad_seconds` pads each batch to a multiple of it, so that `--compile` meets
few lengths.
"""

import functools
import inspect
import json
import math
import os
import re
import shutil
import statistics
from contextlib import contextmanager, nullcontext
from pathlib import Path

import speechbrain as sb
import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.core import DEFAULT_LOG_CONFIG
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.logger import get_logger, setup_logging
from speechbrain.utils.train_logger import FileTrainLogger

from ssast_lobes.brains import (
    ClassificationBrain,
    PretrainingBrain,
    RecognitionBrain,
)
from ssast_lobes.brains.base import read_log
from ssast_lobes.brains.classification import LOWER_IS_BETTER
from ssast_lobes.brains.errors import (
    SettingsError,
    check_same_experiment,
    check_settings,
    keep_settings,
    loading,
)
from ssast_lobes.checkpointer import AtomicCheckpointer
from ssast_lobes.data.dataset import (
    ClipReader,
    collate,
    make_dataset,
    repeat_long,
)
from ssast_lobes.data.manifest import written_whole
from ssast_lobes.data.samplers import (
    LengthBuckets,
    PartSampler,
    balanced_sampler,
)
from ssast_lobes.data.shards import read_from_shards
from ssast_lobes.data.splits import read_splits
from ssast_lobes.data.vocabulary import Vocabulary
from ssast_lobes.distributed import n_processes
from ssast_lobes.export import (
    check_export_folder,
    export_classifier,
    export_encoder,
    export_pretrained,
    window_seconds,
)
from ssast_lobes.linear_start import start_head
from ssast_lobes.plots import plot_comparison
from ssast_lobes.recognition import SpectrogramRecogniser
from ssast_lobes.training.lock import folder_lock
from ssast_lobes.weights import (
    average_with,
    initialise,
    load_alike,
    load_weights,
)

logger = get_logger(__name__)

RESULT_FILE = "test_result.json"
_NO_LOG_FILE = {"handlers": {"file_handler": {"filename": os.devnull}}}
_PRETRAINING_SETTINGS = ("crop_seconds", "batch_size", "lr", "seed")
_RECOGNITION_SETTINGS = (
    "source",
    "vocabulary_size",
    "batch_size",
    "lr",
    "seed",
)
_CLASSIFICATION_SETTINGS = ("source", "batch_size", "lr", "loss", "seed")
# In the model card where the YAML has them.
_FURTHER_SETTINGS = ("average_from", "average_with", "balanced_sampling")


def pretrain(arguments, prepare):
    """Pretrain an objective, watch it on held-out audio, export the encoder.

    Arguments
    ---------
    arguments : list of str
        The command line: YAML file, overrides and SpeechBrain's run options.
    prepare : callable
        Takes the hyperparameters (dict), makes the data ready, returns the
        path that `data.splits.write_splits` gives. Called on the main process.

    Returns
    -------
    dict
        What was logged of the epoch that is exported.
    """
    hparams_file, run_opts, overrides = _parse(arguments)
    with _opened(hparams_file, overrides, prepare) as (hparams, rows):
        return _pretrain(hparams_file, run_opts, hparams, rows)


def _pretrain(hparams_file, run_opts, hparams, rows):
    """Pretrain and export; gives what was logged of the exported epoch."""
    seconds = hparams["crop_seconds"]
    _complete(hparams, train_seconds=seconds, valid_seconds=seconds)
    clips = rows["train"]
    if hparams.get("cover_long", False):
        clips = repeat_long(clips, seconds)
    train = make_dataset(clips, hparams["train_reader"])
    valid = None
    if rows["valid"]:
        valid = make_dataset(rows["valid"], hparams["valid_reader"])
    hparams["has_valid"] = valid is not None
    sampler = _part_sampler(hparams, len(train))
    lobe = hparams["lobe"]
    objective = hparams["objective"]["objective_class"](lobe.encoder)
    if hparams["source"] is not None:
        weights = load_weights(hparams["source"])
        for line in initialise(lobe.encoder, weights, objective):
            logger.info(line)
    folders = hparams.get("average_with", None) or []
    if isinstance(folders, str):
        folders = [folders]
    others = [
        load_alike(folder, objective, lobe.features) for folder in folders
    ]
    hparams["checkpointer"].add_recoverable("objective", objective)
    brain = PretrainingBrain(
        modules={"features": lobe.features, "objective": objective},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        readers=[hparams["train_reader"]],
        n_files=len(rows["train"]) + len(rows["valid"]),
    )
    _fit(brain, hparams, train, valid, sampler)
    best = brain.finish()
    if if_main_process():
        average_with(objective, others)
        # What was measured is not of the mean.
        metrics = {} if others else best
        export_pretrained(
            hparams["export_folder"],
            objective,
            lobe.features,
            _card(hparams_file, hparams, rows, _PRETRAINING_SETTINGS, metrics),
            least_window=_least_window(hparams, train),
        )
        logger.info(f"Exported to {hparams['export_folder']}")
    return best


def classify(arguments, prepare):
    """Train a classifier, choose its epoch on valid, test it, export it.

    Arguments
    ---------
    arguments, prepare
        See `pretrain`; labels too are needed.

    Returns
    -------
    dict
        Statistics on the test part: loss (float) and the metrics, such as
        accuracy. `test_result.json` in the output folder has them too.
    """
    hparams_file, run_opts, overrides = _parse(arguments)
    with _opened(hparams_file, overrides, prepare) as (hparams, rows):
        return _classify(hparams_file, run_opts, hparams, rows)["metrics"]


def recognise(arguments, prepare):
    """Train a speech recogniser, choose its epoch on valid, test, export it.

    Its folder gets `vocabulary.model`, and of each test part the words that
    were said and heard, `wer_<part>.txt`. The export is the encoder.

    Arguments
    ---------
    arguments, prepare
        See `pretrain`. The labels are what is said; parts beside train and
        valid are tested, each by itself.

    Returns
    -------
    dict of dict
        Of each test part the loss and the word error rate, `wer` (float, 1 is
        100 %). `test_result.json` in the output folder has them too.
    """
    hparams_file, run_opts, overrides = _parse(arguments)
    with _opened(hparams_file, overrides, prepare) as (hparams, rows):
        return _recognise(hparams_file, run_opts, hparams, rows)


def _recognise(hparams_file, run_opts, hparams, rows):
    """Train, test and export a recogniser; gives the test statistics."""
    _complete(hparams)
    folder = Path(hparams["output_folder"])
    hparams["vocabulary"] = _vocabulary(hparams, rows["train"])
    parts = {
        name: make_dataset(
            part, hparams["train_reader" if name == "train" else "valid_reader"]
        )
        for name, part in rows.items()
        if name != "corpus"
    }
    lobe = hparams["lobe"]
    for line in lobe.report:
        logger.info(line)
    model = SpectrogramRecogniser(
        lobe.encoder, n_units=len(hparams["vocabulary"]) + 1
    )
    hparams["checkpointer"].add_recoverable("model", model)
    brain = RecognitionBrain(
        modules={"features": lobe.features, "model": model},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        readers=[hparams["train_reader"]],
        n_files=sum(len(part) for part in parts.values()),
    )
    train, valid = parts.pop("train"), parts.pop("valid")
    _fit(brain, hparams, train, valid, sampler=None)
    for name, part in parts.items():
        brain.part = name
        brain.evaluate(
            part,
            min_key="wer",
            test_loader_kwargs=hparams["valid_loader_kwargs"],
        )
    brain.draw()
    stats = brain.test_stats
    if if_main_process():
        export_encoder(
            hparams["export_folder"],
            model.encoder,
            lobe.features,
            _card(hparams_file, hparams, rows, _RECOGNITION_SETTINGS, stats),
            least_window=_longest(train, math.inf),
        )
        logger.info(f"Exported to {hparams['export_folder']}")
        result = {
            "data": rows["corpus"],
            "clips": {name: len(part) for name, part in parts.items()},
            "epoch": hparams["epoch_counter"].current,
            "number_of_epochs": hparams["number_of_epochs"],
            "debug": brain.debug,
            "metrics": stats,
        }
        _write_json(folder / RESULT_FILE, result)
    return stats


def cross_validate(arguments, prepare, folds=None):
    """Train and test a classifier on each fold of a protocol.

    The YAML has the keys `fold`, which is null for all of them, and
    `epoch_chosen_on`. Fold 1 goes to `<output_folder>/fold_1`, and so on; with
    `--fold=1` that fold alone is run. A command that is given again goes on
    where it was: what is finished is read from `test_result.json`. At the end
    there are a table, `results.json` and `results.png`.

    `epoch_chosen_on` is "valid", or "test" where `prepare` gives the test
    part as valid (`data.splits.fold_splits`): then the results are those of
    the one epoch with the best mean over the folds, as official scripts that
    select on the test folds report it. With `average_from` there is no epoch
    to choose, and each fold trains on all the others.

    Arguments
    ---------
    arguments, prepare
        See `pretrain`; `hparams["fold"]` is the fold to prepare.
    folds : sequence of int or str, optional
        Names of all the folds; those in the YAML's list `folds` by default.

    Returns
    -------
    dict
        Of each fold that was asked for the epoch and the test statistics.

    Raises
    ------
    SettingsError
        If there is no such fold, or `epoch_chosen_on` is something else.
    """
    hparams_file, run_opts, overrides = _parse(arguments)
    settings = _plain_settings(hparams_file, overrides)
    check_settings(settings)
    folds = folds or _listed_folds(settings)
    chosen = _choose(settings["fold"], folds)
    if settings["epoch_chosen_on"] not in ("valid", "test"):
        raise SettingsError(
            "epoch_chosen_on must be valid or test, got "
            f"'{settings['epoch_chosen_on']}'"
        )
    folder = Path(settings["output_folder"])
    results = {}
    for fold in chosen:
        own = {"fold": fold, "output_folder": str(folder / f"fold_{fold}")}
        settings_of_fold = _override(overrides, own)
        with _opened(hparams_file, settings_of_fold, prepare) as opened:
            hparams, rows = opened
            result = run_on_main(_finished, args=[hparams])
            if result is None or run_opts["test_only"]:
                logger.info(f"Fold {fold}")
                result = _classify(hparams_file, run_opts, hparams, rows)
        results[fold] = {"epoch": result["epoch"], **result["metrics"]}
    # A single fold of several has no common epoch.
    if _chosen_on_test(settings) and len(chosen) == len(folds):
        results = run_on_main(
            _at_common_epoch, args=[folder, results, settings["selection"]]
        )
    if if_main_process():
        print(f"\nTest results{_caveat(settings)}")
        print(format_table(results), flush=True)
        if len(chosen) == len(folds):
            _write_results(folder, results, settings)
    return results


def format_table(results):
    """Results of folds as text, with mean and standard deviation.

    Arguments
    ---------
    results : dict of dict
        Of each fold the epoch (int) and statistics (float); shares between 0
        and 1, but for "loss".

    Returns
    -------
    str
        Lines: shares in percent; the deviation is that of a sample (n - 1).

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
    names = [name for name in next(iter(results.values())) if name != "epoch"]
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


# Parts of an experiment ---------------------------------------------------


def check_window(window, least, name="window_seconds"):
    """Raise unless an export can be given a window.

    Arguments
    ---------
    window : float or None
        Seconds that it is to take at once; None asks for nothing.
    least : float
        Seconds of a crop, or of the position table if that spans more.
    name : str
        What the message calls the window.

    Raises
    ------
    SettingsError
        If the window is less, or no finite number.

    Example
    -------
    >>> check_window(10.0, least=2.0)
    >>> check_window(1.0, least=2.0)
    Traceback (most recent call last):
    ...
    ssast_lobes.brains.errors.SettingsError: window_seconds is 1.0: give a ...
    """
    if window is not None and not least <= window < math.inf:
        raise SettingsError(
            f"{name} is {window}: give a number of seconds not below "
            f"{least:g}, which a crop and the position table span, or null"
        )


def _parse(arguments):
    parsed = sb.parse_arguments(arguments)
    options = parsed[1].as_dict()
    # The one number that SpeechBrain leaves as text.
    if (options["optimizer_step_limit"] or "").isdecimal():
        options["optimizer_step_limit"] = int(options["optimizer_step_limit"])
    check_settings(options)
    sb.utils.distributed.ddp_init_group(parsed[1])
    return parsed


@contextmanager
def _opened(hparams_file, overrides, prepare):
    """Load the YAML, make the data ready, and hold the output folder.

    Nothing of a folder changes that holds another experiment. Gives the
    settings, and the parts of the dataset (of shards, if the YAML has any).
    """
    check_settings(_plain_settings(hparams_file, overrides))
    with open(hparams_file, encoding="utf-8") as file, loading(hparams_file):
        hparams = load_hyperpyyaml(file, overrides)
    folder = Path(hparams["output_folder"])
    hparams.setdefault("export_folder", str(folder / "export"))
    check_export_folder(hparams["export_folder"])
    if "crop_seconds" in hparams:
        _check_window(hparams)
    with folder_lock(folder) if if_main_process() else nullcontext():
        run_on_main(check_same_experiment, args=[hparams])
        # Before the folder has its log, this shows the messages all the same.
        setup_logging(DEFAULT_LOG_CONFIG, _NO_LOG_FILE)
        path = run_on_main(prepare, args=[hparams])
        run_on_main(keep_settings, args=[hparams])
        sb.create_experiment_directory(
            experiment_directory=str(folder),
            hyperparams_to_save=hparams_file,
            overrides=overrides,
        )
        if if_main_process():
            (folder / "save").mkdir(exist_ok=True)
            shutil.copy(inspect.getsourcefile(prepare), folder)
        rows = read_splits(path)
        shards = hparams.get("shards", None)
        if shards is not None:
            manifest = Path(path).with_name("manifest.csv")
            rows = read_from_shards(rows, shards, manifest)
        yield hparams, rows


def _complete(hparams, train_seconds=None, valid_seconds=None):
    """Add what experiments have alike; see the top of this file."""
    folder = hparams["output_folder"]
    reading = {"unreadable_file": f"{folder}/unreadable.csv"}
    train_reader = ClipReader(
        train_seconds,
        seed=hparams["seed"],
        random_crop=train_seconds is not None,
        **reading,
    )
    loading = {
        "batch_size": hparams["batch_size"],
        "num_workers": hparams["num_workers"],
        "collate_fn": functools.partial(collate, pad_to=_pad_to(hparams)),
    }
    defaults = {
        "train_reader": train_reader,
        "valid_reader": ClipReader(valid_seconds, **reading),
        "train_loader_kwargs": {**loading, "shuffle": True},
        "valid_loader_kwargs": loading,
        "label_encoder": CategoricalEncoder(),
        "epoch_counter": EpochCounter(hparams["number_of_epochs"]),
        "train_logger": FileTrainLogger(f"{folder}/train_log.txt"),
        "use_tensorboard": False,
    }
    hparams |= {k: v for k, v in defaults.items() if k not in hparams}
    if "checkpointer" not in hparams:
        counter = {"counter": hparams["epoch_counter"]}
        hparams["checkpointer"] = AtomicCheckpointer(f"{folder}/save", counter)


def _pad_to(hparams):
    """Samples that the length of a batch is a multiple of."""
    seconds = hparams.get("pad_seconds", None)
    if seconds is None:
        return 1
    return round(seconds * hparams["lobe"].features.fbank.sample_rate)


def _vocabulary(hparams, rows):
    """That of the training part, found on the main process."""
    path = Path(hparams["output_folder"]) / "vocabulary.model"
    texts = [row["label"] for row in rows.values()]
    run_on_main(
        Vocabulary.train, args=[texts, path, hparams["vocabulary_size"]]
    )
    return Vocabulary(path)


def _part_sampler(hparams, n_clips):
    """Sampler of epochs that are not one pass, or None."""
    passes = hparams.get("passes_per_epoch", 1)
    clips = hparams.get("clips_per_evaluation", None)
    if not isinstance(passes, int) or passes < 1:
        raise SettingsError(
            f"passes_per_epoch is a whole number, at least 1, got {passes}"
        )
    if passes > 1:
        if clips is not None:
            raise SettingsError(
                "passes_per_epoch and clips_per_evaluation both say how long "
                "an epoch is: set one to its default"
            )
        return PartSampler(n_clips, passes * n_clips, hparams["seed"])
    if clips is None or clips >= n_clips:
        return None
    total = hparams["number_of_epochs"] * n_clips
    hparams["epoch_counter"].limit = math.ceil(total / clips)
    return PartSampler(n_clips, clips, hparams["seed"])


def _class_sampler(hparams, clips):
    """Sampler that evens the classes out, or None for each clip once."""
    if not hparams.get("balanced_sampling", False):
        return None
    labels = [clip["label"] for clip in clips.values()]
    return balanced_sampler(labels, hparams["multi_label"], hparams["seed"])


def _fit(brain, hparams, train, valid, sampler):
    loading = hparams["train_loader_kwargs"]
    if hparams.get("length_buckets", None) is not None:
        loading = _in_buckets(loading, hparams, train, sampler)
    elif sampler is not None:
        loading = {**loading, "shuffle": False, "sampler": sampler}
    brain.fit(
        hparams["epoch_counter"],
        train,
        valid,
        train_loader_kwargs=loading,
        valid_loader_kwargs=hparams["valid_loader_kwargs"],
    )


def _in_buckets(loading, hparams, train, sampler):
    """Arguments of a loader with batches of clips of like length."""
    loading = {k: v for k, v in loading.items() if k != "shuffle"}
    longest = hparams.get("crop_seconds", math.inf)
    clips = (train.data[clip_id] for clip_id in train.data_ids)
    batches = LengthBuckets(
        sampler or PartSampler(len(train), len(train), hparams["seed"]),
        [min(longest, clip["duration"]) for clip in clips],
        loading.pop("batch_size"),
        hparams["length_buckets"],
        hparams["seed"],
        n_processes(),
    )
    return {**loading, "batch_sampler": batches}


def _classify(hparams_file, run_opts, hparams, rows):
    """Train, test and export a classifier; gives what its result file has."""
    _complete(hparams, train_seconds=hparams["crop_seconds"])
    hparams["label_encoder"].update_from_iterable(rows["labels"])
    hparams["label_encoder"].expect_len(len(rows["labels"]))
    hparams["n_classes"] = len(rows["labels"])
    train, valid, test = (
        make_dataset(
            rows[split],
            hparams["train_reader" if split == "train" else "valid_reader"],
            hparams["label_encoder"],
            hparams["multi_label"],
        )
        for split in ("train", "valid", "test")
    )
    lobe = hparams["lobe"]
    for line in lobe.report:
        logger.info(line)
    model = hparams["model_class"](lobe.encoder, hparams["n_classes"])
    hparams["checkpointer"].add_recoverable("model", model)
    brain = ClassificationBrain(
        modules={"features": lobe.features, "model": model},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        readers=[hparams["train_reader"]],
        n_files=len(train) + len(valid) + len(test),
    )
    _start_head(hparams, brain, rows["train"])
    _fit(brain, hparams, train, valid, _class_sampler(hparams, rows["train"]))
    brain.evaluate(
        test,
        **brain.best_key,
        test_loader_kwargs=hparams["valid_loader_kwargs"],
    )
    brain.draw()
    stats = brain.test_stats
    result = {
        "data": rows["corpus"],
        "clips": len(test),
        "epoch": hparams["epoch_counter"].current,
        "number_of_epochs": hparams["number_of_epochs"],
        "average_from": brain.average_from,
        "debug": brain.debug,
        "metrics": stats,
    }
    if if_main_process():
        export_classifier(
            hparams["export_folder"],
            model,
            lobe.features,
            hparams["label_encoder"],
            hparams["multi_label"],
            _card(hparams_file, hparams, rows, _CLASSIFICATION_SETTINGS, stats),
            least_window=_least_window(hparams, train),
        )
        logger.info(f"Exported to {hparams['export_folder']}")
        _write_json(Path(hparams["output_folder"]) / RESULT_FILE, result)
    return result


def _start_head(hparams, brain, rows):
    """Begin with a head that fits, where the YAML asks for one."""
    penalty = hparams.get("linear_start", None)
    if penalty is None or hparams["checkpointer"].list_checkpoints():
        return
    if hparams["multi_label"]:
        raise SettingsError("linear_start is for clips of one label")
    # Whole clips, as valid and test are read: vectors of crops are others.
    reader, classes = hparams["valid_reader"], hparams["label_encoder"]
    dataset = make_dataset(rows, reader, classes)
    start_head(
        brain.model,
        brain.modules.features,
        # Sorted, since a batch needs the memory of its longest clip.
        dataset.filtered_sorted(sort_key="duration"),
        penalty,
        hparams["batch_size"],
    )


def _check_window(hparams):
    """Say before training what the export could not be given after it."""
    lobe = hparams["lobe"]
    table = window_seconds(lobe.encoder.config, lobe.features.config)
    least = max(table, hparams["crop_seconds"])
    check_window(hparams.get("window_seconds", None), least)


def _least_window(hparams, train):
    """Seconds that the export takes at once."""
    window = hparams.get("window_seconds", None)
    return window or _longest(train, hparams["crop_seconds"])


def _longest(dataset, crop_seconds):
    """Seconds of the longest audio that training sees at once."""
    durations = [clip["duration"] for clip in dataset.data.values()]
    return min(crop_seconds, max(durations))


def _card(hparams_file, hparams, rows, settings, metrics):
    """What the model card of an export says of its training."""
    recipe = Path(hparams_file).resolve().parts[-4:]
    further = [key for key in _FURTHER_SETTINGS if hparams.get(key, None)]
    return {
        "recipe": "/".join(recipe),
        "data": f"{rows['corpus']}: {len(rows['train'])} training clips",
        "settings": {key: hparams[key] for key in (*settings, *further)},
        "metrics": metrics,
    }


def _write_json(path, content):
    with written_whole(path) as file:
        json.dump(content, file, indent=2)


# Folds --------------------------------------------------------------------


class _PlainLoader(yaml.SafeLoader):
    """Reads the plain values of a YAML; what builds an object is None."""


_PlainLoader.add_multi_constructor("!", lambda loader, suffix, node: None)
# To `load_hyperpyyaml` 1e-3 is a number; PyYAML would want 1.0e-3.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _plain_settings(hparams_file, overrides):
    """Values of a YAML, without building any object."""
    with open(hparams_file, encoding="utf-8") as file, loading(hparams_file):
        resolved = resolve_references(file, overrides)
    return yaml.load(resolved, _PlainLoader)


def _listed_folds(hparams):
    """Names of the folds where the YAML lists them."""
    return hparams["folds"]


def _choose(fold, folds):
    """The folds to run: all, or the one that was asked for."""
    if fold is None:
        return list(folds)
    chosen = [one for one in folds if str(one) == str(fold)]
    if not chosen:
        there = ", ".join(str(one) for one in folds)
        raise SettingsError(f"fold must be one of {there}, got '{fold}'")
    return chosen


def _override(overrides, values):
    """The overrides of a command line, a line each, with further ones."""
    lines = [
        line
        for line in overrides.splitlines()
        if line.partition(":")[0] not in values
    ]
    lines += [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines)


def _finished(hparams):
    """The result of an experiment that has come to its end, or None."""
    path = Path(hparams["output_folder"]) / RESULT_FILE
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    # More epochs may be asked for than there were.
    whole = result["number_of_epochs"] == hparams["number_of_epochs"]
    return result if whole and not result["debug"] else None


def _at_common_epoch(folder, results, selection):
    """Results at the one epoch with the best mean of valid, which is test."""
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
    """Mean and deviation over folds of each statistic."""
    names = [name for name in next(iter(results.values())) if name != "epoch"]
    values = {n: [one[n] for one in results.values()] for n in names}
    return (
        {name: statistics.mean(own) for name, own in values.items()},
        {
            name: statistics.stdev(own) if len(own) > 1 else 0.0
            for name, own in values.items()
        },
    )


def _write_results(folder, results, settings):
    """Write the table of all the folds, and the picture of one metric."""
    mean, spread = _summary(results)
    content = {
        "epoch_chosen_on": settings["epoch_chosen_on"],
        "average_from": settings.get("average_from", None),
        "folds": {str(fold): one for fold, one in results.items()},
        "mean": mean,
        "sd": spread,
    }
    _write_json(folder / "results.json", content)
    name = settings["selection"]
    bars = [(f"fold {fold}", one[name], 0) for fold, one in results.items()]
    plot_comparison(
        [*bars, ("mean", mean[name], spread[name])],
        folder / "results.png",
        label=f"Test {name} (%), mean and sd over folds{_caveat(settings)}",
    )


def _chosen_on_test(settings):
    """Whether the test folds choose an epoch: with a mean of epochs none is."""
    on_test = settings["epoch_chosen_on"] == "test"
    return on_test and not settings.get("average_from", None)


def _caveat(settings):
    return ", epoch chosen on test" if _chosen_on_test(settings) else ""
