#!/usr/bin/env python3
"""Measure whether pretraining pays, on tasks of your own.

> python train.py hparams/transfer.yaml --audio /path/to/audio \
    --tasks "[{name: words, csv_path: /path/to/words.csv}]"

On each task: training from scratch and fine-tuning, both tuned on the
validation part, the frozen encoder under two simple classifiers, and baselines.
Every part is kept as soon as it is done; the same command continues there.
The README in the folder above shows the settings.
"""

import csv
import hashlib
import importlib.util
import itertools
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import speechbrain as sb
import torch
from custom_data_prepare import check_held_out, read_entry, write_held_out
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import infer_device
from tqdm import tqdm
from transfer_report import FINE_TUNED, SCRATCH, System, report, tuning_table

from ssast_lobes.checkpoints.averaging import export_mean
from ssast_lobes.checkpoints.bundled import resolve_name
from ssast_lobes.checkpoints.format import WEIGHTS_FILE
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.projections import read_projection
from ssast_lobes.dataio.partition import hash_fractions
from ssast_lobes.dataio.splits import write_splits
from ssast_lobes.evaluation.probing import Task
from ssast_lobes.evaluation.probing.comparison import (
    PROBES,
    best_fit,
    readouts_of,
    variants_of,
)
from ssast_lobes.evaluation.probing.embeddings import (
    PROJECTED,
    LogMelStatistics,
    MFCCStatistics,
    PooledEncoder,
    Readout,
    cached_vectors,
)
from ssast_lobes.models.encoder import SpectrogramEncoder
from ssast_lobes.training.arguments import flag_value
from ssast_lobes.training.card import check_window
from ssast_lobes.training.errors import (
    SettingsError,
    exit_on_user_error,
    yaml_errors,
)
from ssast_lobes.training.logs import read_log
from ssast_lobes.utils.files import write_json
from ssast_lobes.utils.presets import read_preset

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "CustomData"
YAMLS = {
    name: RECIPES / name / "hparams" / f"{name}.yaml"
    for name in ("pretrain", "classify")
}
STATISTICS = {"log-mel": LogMelStatistics(), "MFCC": MFCCStatistics()}
UNTRAINED = "untrained"
ASKED, RESULT = "asked.json", "result.json"
# What the driver sets by itself.
_COMMON = {"seed", "output_folder", "export_folder", "num_workers", "lobe"}
_TAKEN = {
    "pretrain": {*_COMMON, "held_out_of"},
    "classify": {
        *_COMMON,
        *("source", "manifest", "label_column", "split_column"),
        *("multi_label", "selection", "model_class"),
    },
}
# What is no key of its YAML: a word for several, and what is done after it.
_MORE = {"pretrain": {"training", "average_with"}, "classify": {"training"}}


class Item(NamedTuple):
    """A task, and how it is trained.

    Arguments
    ---------
    task : Task
        Its clips.
    labels_per_class : int or None
        Training clips of each class; None for all.
    settings : dict
        Of ``classify.yaml``, for both methods.
    methods : dict of str to dict
        ``settings`` and ``candidates`` of a method that this task has.
    """

    task: Task
    labels_per_class: int
    settings: dict
    methods: dict

    def drawn(self, seed):
        """Return the task with the training clips of one seed.

        Arguments
        ---------
        seed : int
            Another seed, other clips.

        Returns
        -------
        Task
            With at most `labels_per_class` training clips of each class.
        """
        if self.labels_per_class is None:
            return self.task
        train = self.task.rows["train"]
        places = hash_fractions([f"{seed}/{row['id']}" for row in train])
        order = sorted(range(len(train)), key=places.__getitem__)
        left = dict.fromkeys(self.task.labels, self.labels_per_class)
        chosen = set()
        for number in order:
            label = train[number]["label"]
            if left[label] > 0:
                left[label] -= 1
                chosen.add(number)
        kept = [row for n, row in enumerate(train) if n in chosen]
        return self.task._replace(rows={**self.task.rows, "train": kept})


def read_item(
    labels_per_class=None, classification=None, methods=None, **arguments
):
    """Read an entry of the list of tasks.

    Arguments
    ---------
    labels_per_class : int, optional
        See `Item`.
    classification, methods : dict, optional
        Settings for this task, as the YAML has them for all.
    **arguments
        See `ssast_lobes.evaluation.probing.read_task`. Without a `group`
        the bootstrap draws clips.

    Returns
    -------
    Item

    Raises
    ------
    ManifestError, SettingsError
        If the table cannot be used, or the entry has an unknown key.
    """
    task = read_entry(arguments)
    if "group" not in arguments:
        rows = {
            split: [{**row, "group": row["path"]} for row in part]
            for split, part in task.rows.items()
        }
        task = task._replace(rows=rows, grouped=False)
    return Item(task, labels_per_class, classification or {}, methods or {})


def blind(task):
    """Return the task with its validation part in place of its test part.

    Arguments
    ---------
    task : Task
        Any.

    Returns
    -------
    Task
        Without the clips of the test part.
    """
    rows = task.rows
    return task._replace(rows={**rows, "test": rows["valid"]})


class Method(NamedTuple):
    """A way to train end to end.

    Arguments
    ---------
    kind : str
        ``"scratch"`` or ``"fine_tuned"``.
    model : str
        The pretraining that it starts from, or whose architecture it has.
    """

    kind: str
    model: str


class Transfer:
    """The experiment that a YAML describes; every part of it is done once.

    Arguments
    ---------
    hparams : dict
        See ``hparams/transfer.yaml``.
    run_options : list of str
        Options of SpeechBrain for all the runs, such as ``--device=cuda``.
    device : str
        Where frozen encoders compute.

    Raises
    ------
    ManifestError, SettingsError
        If tables or settings cannot be used: before anything is run.
    """

    def __init__(self, hparams, run_options=(), device="cpu"):
        self.hparams = hparams
        self.run_options = list(run_options)
        self.device = device
        self.folder = Path(hparams["output_folder"]).resolve()
        self.seeds = hparams["seeds"]
        try:
            probing = dict(hparams["probing"])
            projection = probing.pop("projection", None)
            self.variants = variants_of(**probing)
        except (KeyError, TypeError, ValueError) as error:
            raise SettingsError(
                "probing needs two keys, such as {pooling: best, layers: "
                f"best}}: {error}"
            ) from error
        self.items = [read_item(**entry) for entry in hparams["tasks"]]
        self.stages = hparams["stages"]
        # Of each pretraining its settings; an export needs none.
        self.pretrainings = {
            **{k: {} for k in hparams["exports"] if k not in self.stages},
            **hparams["pretrainings"],
        }
        self.settings = {**self.stages, **self.pretrainings}
        models = {name: self._model(name) for name in self.pretrainings}
        # The first pretraining of each architecture, by pretraining.
        self.first = {
            name: next(k for k in models if models[k] == models[name])
            for name in models
        }
        kinds = {SCRATCH: self._firsts(), FINE_TUNED: list(models)}
        self.methods = [
            Method(kind, name)
            for kind, names in kinds.items()
            if kind in hparams["methods"]
            for name in names
        ]
        self.exports = {}
        self.baselines = {**STATISTICS, **hparams["baselines"]}
        self.projections = {}
        if projection is not None:
            self.projections = {
                name: self._read_projection(name, projection)
                for name in self.pretrainings
            }
        self._check()

    def run(self):
        """Run what is not done yet, and write the report.

        Returns
        -------
        dict or None
            What ``transfer.json`` has; None where nothing is to be tested.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.exports = {
            name: self._pretrain(name)
            for name in tqdm(self.pretrainings, "Pretraining")
        }
        runs = list(itertools.product(self.items, self.methods))
        chosen = self._tune(runs)
        tuning = {
            f"{task}/{'/'.join(method)}": found
            for (task, method), found in chosen.items()
        }
        write_json(self.folder / "tuning.json", tuning)
        if self.hparams["tune_only"]:
            print("\n".join(tuning_table(tuning)))
            return None
        results = self._probe()
        seeds = [(*run, seed) for run in runs for seed in self.seeds]
        for item, method, seed in tqdm(seeds, "Training and testing"):
            settings = chosen[item.task.name, method]["settings"]
            result = self._test(item, method, settings, seed)
            key = item.task.name, self._system(method)
            results.setdefault(key, {})[seed] = result
        costs = {
            name: json.loads(path.read_text("utf-8"))
            for name in self.settings
            if name not in self.hparams["exports"]
            and (path := self._pretraining_folder(name) / RESULT).is_file()
        }
        return report(self.folder, self.items, results, tuning, costs)

    # Settings -------------------------------------------------------------

    def _firsts(self):
        """Return the first pretraining of each architecture."""
        return list(dict.fromkeys(self.first.values()))

    def _model(self, name):
        """Return the architecture of a pretraining, as settings."""
        own = self.settings[name]
        model = self.hparams["model"]
        return {**model, **{key: own[key] for key in own if key in model}}

    def _candidates(self, item, method):
        """Return all settings to choose from, whole; at least one."""
        common = self.hparams["methods"][method.kind]
        own = item.methods.get(method.kind) or {}
        base = {
            **self._model(method.model),
            **self.hparams["classification"],
            **item.settings,
            **common["settings"],
            **own.get("settings", {}),
        }
        candidates = own.get("candidates", common["candidates"])
        return [{**base, **candidate} for candidate in candidates or [{}]]

    def _system(self, method):
        scratch = System(self._baseline(SCRATCH, method.model), "trained")
        if method.kind == SCRATCH:
            return scratch
        return System(method.model, "fine-tuned", scratch)

    def _baseline(self, name, model):
        """Name of a baseline that has the architecture of a model."""
        several = len(self._firsts()) > 1
        return f"{name} ({self.first[model]})" if several else name

    def _check(self):
        """Say now what would stop the experiment hours later."""
        names = [item.task.name for item in self.items]
        if not names or len(set(names)) < len(names):
            raise SettingsError(f"tasks need names that differ, got {names}")
        for name in [*names, *self.settings]:
            if not re.fullmatch(r"[\w.+-]+", name):
                raise SettingsError(
                    f"'{name}' names a folder too: use letters, digits, _ and -"
                )
        taken = [*self.baselines, UNTRAINED, SCRATCH]
        if not self.pretrainings or self.pretrainings.keys() & {*taken}:
            raise SettingsError(
                "pretrainings: name at least one, and none of them "
                f"{', '.join(taken)}"
            )
        _check_methods(self.hparams["methods"], "one_for_all")
        if self.hparams["methods"].keys() == {FINE_TUNED}:
            raise SettingsError(
                f"methods: without {SCRATCH} there is nothing that "
                f"{FINE_TUNED} gains over"
            )
        twice = sorted(self.stages.keys() & self.pretrainings.keys())
        if twice:
            raise SettingsError(
                f"{twice[0]} names a stage and a pretraining: rename one"
            )
        needed = {one for name in self.settings for one in self._needs(name)}
        idle = sorted(self.stages.keys() - needed)
        if idle:
            raise SettingsError(
                f"nothing starts from the stage {idle[0]}: name it as the "
                "source of a pretraining, or take it out"
            )
        for name in self.settings:
            if name in self.hparams["exports"]:
                self._check_export(name)
            else:
                settings = self._pretraining(name)
                _check_keys("pretrain", settings)
                check_window(
                    settings.get("window_seconds"),
                    settings.get("crop_seconds", 0.0),
                    f"window_seconds of {name}",
                )
                _check_objective(settings)
                for needed in self._needs(name):
                    self._check_needed(name, needed)
                others = settings.get("average_with") or ()
                strange = [one for one in others if one not in self.stages]
                if strange:
                    raise SettingsError(
                        f"average_with of {name}: {strange[0]} is no stage"
                    )
        for item in self.items:
            _check_methods(item.methods)
            for method in self.methods:
                for settings in self._candidates(item, method):
                    _check_keys("classify", settings)
        for name in self._to_train():
            _check_audio(name, self._pretraining(name)["audio"])

    def _to_train(self):
        """Return the pretrainings without an export, and their stages."""
        there = self.hparams["exports"]
        names = [name for name in self.pretrainings if name not in there]
        # Grows: a stage may need others.
        for name in names:
            names += [
                needed
                for needed in self._needs(name)
                if needed in self.stages and needed not in {*there, *names}
            ]
        return names

    def _needs(self, name):
        """Return what a pretraining starts from and is averaged with."""
        settings = self._pretraining(name)
        return [settings.get("source"), *(settings.get("average_with") or ())]

    def _check_needed(self, name, source):
        """Raise unless a stage is trained before what starts from it."""
        order = list(self.stages)
        if source in self.pretrainings:
            raise SettingsError(
                f"{name} needs {source}, which is tested itself: only "
                "stages are for others to start from"
            )
        if source not in self.stages:
            return
        if name in order and order.index(source) >= order.index(name):
            raise SettingsError(
                f"stage {name} needs {source}: name that one before it"
            )
        if self._model(name) != self._model(source):
            raise SettingsError(
                f"{name} needs {source} and has another model: "
                f"{self._model(name)}, not {self._model(source)}"
            )

    def _check_export(self, name):
        """Raise for an export that would have no fair baseline."""
        folder = Path(resolve_name(self.hparams["exports"][name]))
        if not (folder / WEIGHTS_FILE).is_file():
            raise SettingsError(
                f"{folder}: no exported folder; a checkpoint becomes one by "
                "`ssast-lobes convert`"
            )
        model = self._model(name)
        with torch.device("meta"):
            wanted = SpectrogramEncoder.from_size(
                model["model_size"], model["geometry"], model.get("n_mels", 128)
            ).config
        found = load_weights(folder).config["encoder"]
        differ = [
            f"{key} {found.get(key)}, not {wanted[key]}"
            for key in ("dim", "depth", "blocks", "grid")
            if found.get(key, wanted[key]) != wanted[key]
        ]
        if differ:
            raise SettingsError(
                f"{folder} is no {model}: {'; '.join(differ)}. "
                "Training from scratch would have another architecture: set "
                "`model` to that of the export"
            )

    # Parts ----------------------------------------------------------------

    def _pretraining(self, name):
        """Return the settings of a pretraining, or of a stage, whole."""
        return {
            "audio": self.hparams["audio"],
            **self.hparams["model"],
            **self.hparams["pretraining"],
            **self.settings[name],
        }

    def _together(self, item, method):
        """Return whether one candidate is for this task and others together."""
        own = item.methods.get(method.kind) or {}
        common = self.hparams["methods"][method.kind]
        return common.get("one_for_all", False) and "candidates" not in own

    def _pretraining_folder(self, name):
        return self.folder / "pretrain" / name

    def _pretrain(self, name):
        """Return the exported folder of a pretraining, or of a stage."""
        if name in self.hparams["exports"]:
            return Path(resolve_name(self.hparams["exports"][name])).resolve()
        settings = self._pretraining(name)
        given = {
            "audio": _flat(settings.pop("audio")),
            "seed": self.hparams["seed"],
        }
        folder = self._pretraining_folder(name)
        own = {}
        asked = {**given, "settings": settings}
        stages = {
            needed: self._pretrain(needed)
            for needed in self._needs(name)
            if needed in self.stages
        }
        if settings.get("source") in stages:
            source = stages[settings["source"]]
            own["source"] = str(source)
            asked["started_from"] = _digest_of_weights(source)
        others = [stages[one] for one in settings.get("average_with") or ()]
        if others:
            own["export_folder"] = str(folder / "alone")
            asked["averaged_with"] = [*map(_digest_of_weights, others)]

        tasks = [item.task for item in self.items]

        def work():
            own["held_out_of"] = write_held_out(tasks, folder / "held_out.csv")
            flags = {**settings, **given, **own}
            flags.pop("average_with", None)
            words = self._words(folder, flags)
            load_recipe("pretrain").main([str(YAMLS["pretrain"]), *words])
            if others:
                export_mean(folder / "export", [own["export_folder"], *others])
            rows = json.loads((folder / "save/splits.json").read_text("utf-8"))
            return {
                "steps": read_log(folder)[-1]["step"],
                "clips": len(rows["train"]),
                "hours": _hours(rows["train"].values()),
            }

        once(folder, asked, work)
        check_held_out(tasks, folder)
        return folder / "export"

    def _tune(self, runs):
        """Choose on valid for each task and method; return what was tried."""
        n_tuned = sum(len(self._candidates(*run)) for run in runs)
        with tqdm(total=n_tuned, desc="Tuning") as bar:
            scores = {
                (item.task.name, method): self._try(item, method, bar)
                for item, method in runs
            }
        return {
            (item.task.name, method): {
                "settings": self._best(item, method, scores),
                "tried": self._tried(item, method),
            }
            for item, method in runs
        }

    def _best(self, item, method, scores):
        """Return the best candidate for the task, or for several."""
        own = scores[item.task.name, method]
        if self._together(item, method):
            rows = [
                scores[other.task.name, method]
                for other in self.items
                if self._together(other, method)
            ]
            own = [sum(column) for column in zip(*rows, strict=True)]
        best = max(range(len(own)), key=own.__getitem__, default=0)
        return self._candidates(item, method)[best]

    def _tuning_folder(self, item, method):
        own = Path(item.task.name, method.kind, method.model)
        return self.folder / "tuning" / own

    def _try(self, item, method, bar):
        """Return the scores of all candidates on valid, if several."""
        candidates, seed = self._candidates(item, method), self.seeds[0]
        scores, task = [], blind(item.drawn(seed))
        for settings in candidates:
            bar.update()
            if len(candidates) == 1:  # nothing to choose
                break
            asked = self._asked(task, method, settings, seed)
            place = self._tuning_folder(item, method) / _digest(asked)
            if not (place / RESULT).is_file():
                self._check_untested(item, method)
            work = partial(self._train, task, method, settings, seed, place)
            result = once(place, asked, work, remove=("save", "export"))
            scores.append(result["valid"])
        return scores

    def _check_untested(self, item, method):
        """Raise where a further candidate would know of the test."""
        folder = self._runs_folder(item, method)
        if any(folder.glob(f"*/{RESULT}")):
            raise SettingsError(
                f"{folder} is tested already: no candidate is tried after "
                "that. Go back to the candidates before, or choose another "
                "output_folder and say that it was tested twice"
            )

    def _runs_folder(self, item, method):
        own = Path(item.task.name, method.kind, method.model)
        return self.folder / "runs" / own

    def _tried(self, item, method):
        """Return all that was tried in this folder, with its scores."""
        return [
            {"settings": kept["asked"]["settings"], "valid": kept["valid"]}
            for path in sorted(
                self._tuning_folder(item, method).glob(f"*/{RESULT}")
            )
            if (kept := json.loads(path.read_text("utf-8")))
        ]

    def _test(self, item, method, settings, seed):
        """Return the result of one run on the test part."""
        task = item.drawn(seed)
        folder = self._runs_folder(item, method) / str(seed)
        asked = self._asked(task, method, settings, seed)
        work = partial(self._train, task, method, settings, seed, folder)
        return once(folder, asked, work, remove=("save",))

    def _asked(self, task, method, settings, seed):
        """Return what makes a run another one."""
        source = None
        if method.kind == FINE_TUNED:
            source = _digest_of_weights(self.exports[method.model])
        return {
            "settings": settings,
            "seed": seed,
            "source": source,
            "data": _digest_of(task),
        }

    def _train(self, task, method, settings, seed, folder):
        """Train a classifier; what it says of the part that is called test."""
        own = {"seed": seed, "selection": task.metric}
        if method.kind == FINE_TUNED:
            own["source"] = str(self.exports[method.model])

        # The table is read already: its name is for the model card.
        own["manifest"] = task.name
        words = self._words(folder, {**settings, **own})
        recipe = load_recipe("classify")
        # No table can say that clips are valid and test, as a blind task does.
        recipe.prepare_classification = partial(write_task, task)
        recipe.main([str(YAMLS["classify"]), *words])
        result = json.loads((folder / "test_result.json").read_text("utf-8"))
        rows = {row["epoch"]: row for row in read_log(folder)}
        path = folder / "test_predictions.csv"
        with open(path, encoding="utf-8", newline="") as file:
            predicted = {r["id"]: r["predicted"] for r in csv.DictReader(file)}
        return {
            "valid": rows[result["epoch"]][f"valid_{task.metric}"],
            "epoch": result["epoch"],
            "predicted": predicted,
        }

    def _words(self, folder, settings):
        """Return a command line of a recipe."""
        own = {
            **settings,
            "output_folder": str(folder),
            "num_workers": self.hparams["num_workers"],
        }
        if own.get("source") is not None:
            # The source brings its own.
            own.pop("model_size", None)
            own.pop("geometry", None)
        words = [f"--{key}={flag_value(value)}" for key, value in own.items()]
        return [*words, *self.run_options]

    def _probe(self):
        """Return results of what is read frozen, by task and system."""
        results = {}
        untrained = self.hparams["untrained_seeds"]
        total = len(self.baselines) + len(self._firsts()) * len(untrained)
        total += len(self.pretrainings)
        with tqdm(total=total, desc="Probing", unit="system") as bar:
            for name, source in self.baselines.items():
                self._probe_one(System(name, "linear"), source, results)
                bar.update()
            for name in self._firsts():
                twin = self._baseline(UNTRAINED, name)
                for seed in untrained:
                    source = self._frozen(name).untrained(seed)
                    for probe in PROBES:
                        system = System(twin, probe)
                        self._probe_one(system, source, results, seed)
                    bar.update()
            for name in self.pretrainings:
                twin = self._baseline(UNTRAINED, name)
                source = self._frozen(name)
                for probe in PROBES:
                    system = System(name, probe, System(twin, probe))
                    self._probe_one(system, source, results)
                bar.update()
        return results

    def _read_projection(self, name, projection):
        if name not in self.hparams["exports"]:
            raise SettingsError(
                f"probing: {name} is pretrained here, and only exports have "
                "projections"
            )
        source = resolve_name(self.hparams["exports"][name])
        return read_projection(source, projection)

    def _frozen(self, name):
        return PooledEncoder(self.exports[name], self.device)

    def _probe_one(self, system, source, results, only_seed=None):
        """Add the results of one probe on all tasks."""
        for item in self.items:
            seeds = self.seeds if item.labels_per_class else self.seeds[:1]
            for seed in seeds if only_seed is None else [only_seed]:
                task = item.drawn(seed)
                place = "probes", task.name, system.name, system.how, str(seed)
                result = once(
                    self.folder.joinpath(*place),
                    {
                        "source": source.key,
                        "data": _digest_of(task),
                        "probing": self.hparams["probing"],
                    },
                    partial(self._fit, task, system, source),
                )
                results.setdefault((task.name, system), {})[seed] = result

    def _fit(self, task, system, source):
        """Return what a simple classifier says of the test part."""
        unreadable = []
        vectors = cached_vectors(
            source,
            system.name,
            task.paths(),
            self.folder / "embeddings",
            unreadable,
        )
        if unreadable:
            task = task.without({path for path, _ in unreadable})
        x = task.stacked(vectors)
        y = {split: task.targets(split) for split in task.rows}
        readouts = readouts_of(x["train"], self.variants)
        if system.name in self.projections:
            projection = self.projections[system.name]
            readouts.append(Readout(*PROJECTED, projection))
        fit, readout = best_fit(PROBES[system.how], x, y, task, readouts)
        labels = [task.labels[number] for number in fit.predictions.tolist()]
        ids = [row["id"] for row in task.rows["test"]]
        return {
            "valid": fit.valid_score,
            "setting": fit.setting,
            "pooling": readout.pooling,
            "layers": readout.layers,
            "projected": readout.projection is not None,
            "predicted": dict(zip(ids, labels, strict=True)),
        }


def load_recipe(name):
    """Return the script of a recipe of CustomData, as a module of its own.

    Arguments
    ---------
    name : str
        ``"pretrain"`` or ``"classify"``.

    Returns
    -------
    module
    """
    path = RECIPES / name / "train.py"
    spec = importlib.util.spec_from_file_location(f"train_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_task(
    task, manifest, output_folder, min_seconds, max_unreadable, **columns
):
    """Write the clips of a task, where the recipe would read a manifest.

    Arguments
    ---------
    task : Task
        Its test part may have the clips of its validation part.
    manifest : str
        What the model card calls the data.
    output_folder, min_seconds, max_unreadable
        See `prepare_classification` of the recipe.
    **columns
        How a manifest would be read; of no use here.

    Returns
    -------
    str
        Path of the JSON file, see `dataio.splits.write_splits`.
    """
    return write_splits(
        task.rows,
        output_folder,
        corpus=manifest,
        group="group",
        min_seconds=min_seconds,
        max_unreadable=max_unreadable,
    )


def once(folder, asked, work, remove=()):
    """Read the result of a part if it is done; else compute and keep it.

    Arguments
    ---------
    folder : pathlib.Path
        Of this part alone. It gets ``asked.json`` before the work and
        ``result.json`` after it.
    asked : dict
        All that makes it this part, in plain values.
    work : callable
        Gives the result, a dict of plain values. Called again after it was
        killed, it may continue in the folder.
    remove : tuple of str
        Subfolders that are not needed any more.

    Returns
    -------
    dict
        The result, and `asked`.

    Raises
    ------
    SettingsError
        If the folder was begun with something else.
    """
    asked = json.loads(json.dumps(asked))
    begun, done = folder / ASKED, folder / RESULT
    if begun.is_file():
        before = json.loads(begun.read_text("utf-8"))
        if before != asked:
            raise SettingsError(
                f"{folder} was begun otherwise: {_difference(before, asked)}. "
                "Choose another output_folder, or remove that one"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(begun, asked)
    if not done.is_file():
        write_json(done, {**work(), "asked": asked})
    for name in remove:
        shutil.rmtree(folder / name, ignore_errors=True)
    return json.loads(done.read_text("utf-8"))


def _difference(before, now):
    """Return the entries that differ; of settings each by itself."""
    before, now = (
        {**one, **one.get("settings", {}), "settings": None}
        for one in (before, now)
    )
    return ", ".join(
        f"{key} {before.get(key)}, now {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    )


def _digest(content):
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode()).hexdigest()[:16]


def _digest_of_weights(export):
    """Return a hash of what an exported folder holds."""
    content = (export / WEIGHTS_FILE).read_bytes()
    return hashlib.blake2b(content).hexdigest()[:16]


def _digest_of(task):
    """Return a hash of the clips of a task, and of what is asked of them."""
    return _digest(
        [
            task.metric,
            {
                split: [[row["id"], row["label"]] for row in part]
                for split, part in task.rows.items()
            },
        ]
    )


def _check_keys(recipe, settings):
    """Raise unless a recipe's YAML has all these keys."""
    text = YAMLS[recipe].read_text("utf-8")
    known = set(re.findall(r"^([a-z]\w*):", text, re.M)) - _TAKEN[recipe]
    known |= _MORE[recipe]
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise SettingsError(
            f"no setting of {YAMLS[recipe]} to be made here: "
            f"{', '.join(unknown)}"
        )


def _check_methods(methods, *more):
    """Raise where a method, or a part of one, is called otherwise."""
    unknown = sorted(methods.keys() - {SCRATCH, FINE_TUNED})
    for own in methods.values():
        unknown += sorted(own.keys() - {"settings", "candidates", *more})
    if unknown:
        raise SettingsError(
            f"methods: '{unknown[0]}' is neither one of the methods {SCRATCH} "
            f"and {FINE_TUNED}, nor their settings or candidates"
        )


def _check_objective(settings):
    """Raise where a pretraining names no objective, and changes none."""
    objective = settings.get("objective")
    if isinstance(objective, dict):
        return
    try:
        read_preset("objective", objective)
    except ValueError as error:
        raise SettingsError(f"objective of a pretraining: {error}") from error


def _flat(audio):
    """Return the sources of audio, lists in the list taken apart."""
    if not isinstance(audio, list):
        return audio
    return [
        source
        for part in audio
        for source in (_flat(part) if isinstance(part, list) else [part])
    ]


def _check_audio(name, audio):
    """Raise where a pretraining has no audio, or some that is not there."""
    if audio is None:
        raise SettingsError(
            f"audio: name folders or CSVs to pretrain on, or say where {name} "
            "is in exports"
        )
    sources = _flat(audio) if isinstance(audio, list) else [audio]
    missing = [source for source in sources if not Path(source).exists()]
    if missing:
        raise SettingsError(
            f"audio of {name}: {missing[0]} is not there: name a folder or a "
            "CSV that is"
        )


def _hours(rows):
    return sum(row["duration"] for row in rows) / 3600


def main(arguments):
    """Run the experiment that the command line describes.

    Returns
    -------
    dict or None
        See `Transfer.run`.
    """
    hparams_file, run_opts, overrides = sb.parse_arguments(arguments)
    with (
        open(hparams_file, encoding="utf-8") as file,
        yaml_errors(hparams_file),
    ):
        hparams = load_hyperpyyaml(file, overrides)
    given = run_opts.overridden_args - {"param_file"}
    options = [
        f"--{key}" if run_opts[key] is True else f"--{key}={run_opts[key]}"
        for key in sorted(given)
    ]
    device = infer_device() if run_opts.device is None else run_opts.device
    return Transfer(hparams, options, device).run()


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
