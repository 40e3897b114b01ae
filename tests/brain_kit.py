"""Brains as tests need them: small, quick, killed where it hurts."""

import csv
import inspect
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.seed import seed_everything
from speechbrain.utils.train_logger import FileTrainLogger

from ssast_lobes import (
    PretrainingLobe,
    SpectrogramClassifier,
    SpectrogramEncoder,
)
from ssast_lobes.augment.augmentation import (
    Mixup,
    NoiseAndRoll,
    SpectrogramMasking,
)
from ssast_lobes.dataio.audio import audio_info
from ssast_lobes.dataio.dataset import ClipReader, collate, make_dataset
from ssast_lobes.models.features import FrontEnd
from ssast_lobes.objectives import MSPM
from ssast_lobes.training import ClassificationBrain, PretrainingBrain, best_key
from ssast_lobes.training.base import SpectrogramBrain
from ssast_lobes.training.checkpointer import AtomicCheckpointer
from ssast_lobes.training.losses import cross_entropy
from ssast_lobes.utils.schedules import WarmupCosine

GRID = {"n_mels": 32, "patch": (16, 16)}

LABELS = ["chirp", "noise", "tone"]

# What a Brain is given next to SpeechBrain's own arguments.
ARGUMENTS = {
    name
    for brain in (SpectrogramBrain, ClassificationBrain)
    for name, parameter in inspect.signature(brain).parameters.items()
    if parameter.kind == parameter.KEYWORD_ONLY
}


def corpus_rows(manifest):
    """Rows by split, id -> row, of the corpus of the fixture `tones`."""
    splits = {"train": {}, "valid": {}, "test": {}}
    with open(manifest, newline="") as file:
        for row in csv.DictReader(file):
            path = str(Path(manifest).parent / row["path"])
            splits[row["split"]][row["path"]] = {
                "path": path,
                "duration": audio_info(path).seconds,
                "label": row["label"],
            }
    return splits


def build(
    task,
    rows,
    folder,
    batch_size=3,
    workers=0,
    epochs=2,
    lr=0.01,
    optimizer=torch.optim.AdamW,
    run_opts=None,
    brain_class=None,
    encoder=None,
    model=None,
    shuffle=True,
    seed=7,
    sample_rate=16000,
    **settings,
):
    """A run ready to `fit`, with all that belongs to it.

    Further settings go to the Brain as arguments, or in its hparams.
    """
    seed_everything(seed, verbose=False)
    folder = Path(folder)
    many = settings.get("multi_label", False)
    labels = CategoricalEncoder()
    labels.update_from_iterable(LABELS)
    labels.expect_len(len(LABELS))
    unreadable = folder / "unreadable.csv"
    reader = ClipReader(0.5, seed=seed, random_crop=True)
    still = ClipReader()
    reader.unreadable_file = still.unreadable_file = unreadable
    features = FrontEnd(sample_rate=sample_rate, n_mels=GRID["n_mels"])
    encoder = SpectrogramEncoder(
        **{"grid": GRID, "dim": 32, "depth": 2, "heads": 2, **(encoder or {})}
    )
    if task == "pretrain":
        module, name = MSPM(encoder, **(model or {})), "objective"
        modules = {"pretrainer": PretrainingLobe(module, features)}
        chosen, labels = brain_class or PretrainingBrain, None
    else:
        module = SpectrogramClassifier(encoder, len(LABELS), **(model or {}))
        name, chosen = "model", brain_class or ClassificationBrain
        modules = {"features": features, "model": module}
    counter = EpochCounter(epochs)
    (folder / "save").mkdir(parents=True, exist_ok=True)
    checkpointer = AtomicCheckpointer(
        folder / "save", {"counter": counter, name: module}
    )
    datasets = {
        split: make_dataset(
            part, reader if split == "train" else still, labels, many
        )
        for split, part in rows.items()
        if part
    }
    arguments = {
        "schedule": WarmupCosine(end=0.01, warmup=0.2),
        "train_logger": FileTrainLogger(str(folder / "train_log.txt")),
        "readers": [reader, still],
        "n_files": sum(len(dataset) for dataset in datasets.values()),
    }
    if task != "pretrain":
        arguments |= {
            "label_encoder": labels,
            "multi_label": many,
            "selection": "accuracy",
            "compute_cost": cross_entropy,
        }
    hparams = {
        "seed": seed,
        "epoch_counter": counter,
        "output_folder": str(folder),
        "max_unreadable": 0.5,
        "max_grad_norm": 5.0,
    }
    for key, value in settings.items():
        (arguments if key in ARGUMENTS else hparams)[key] = value
    brain = chosen(
        modules=modules,
        opt_class=lambda groups: optimizer(groups, lr=lr),
        hparams=hparams,
        run_opts={"device": "cpu", "noprogressbar": True, **(run_opts or {})},
        checkpointer=checkpointer,
        **arguments,
    )
    brain._last_picture = math.inf  # draws no curves: they take a second
    loader = {
        "batch_size": batch_size,
        "num_workers": workers,
        "collate_fn": collate,
    }
    return SimpleNamespace(
        brain=brain,
        module=module,
        counter=counter,
        schedule=arguments["schedule"],
        reader=reader,
        best_key=best_key(arguments.get("selection", "accuracy")),
        datasets=datasets,
        train_loader={**loader, "shuffle": shuffle},
        loader=loader,
        folder=folder,
    )


def fit(run):
    run.brain.fit(
        run.counter,
        run.datasets["train"],
        run.datasets.get("valid"),
        train_loader_kwargs=dict(run.train_loader),
        valid_loader_kwargs=dict(run.loader),
    )
    return run


def evaluate(run):
    run.brain.evaluate(
        run.datasets["test"],
        **run.best_key,
        test_loader_kwargs=dict(run.loader),
    )
    return run.brain.test_stats


def validate(run, rows=None, batch_size=None):
    """Statistics of the validation part with the weights as they are."""
    kept = {}

    class Kept(type(run.brain)):
        def log_epoch(self, epoch, train, valid):
            kept.update(valid)

    run.brain.__class__ = Kept
    run.brain.checkpointer = SimpleNamespace(
        save_and_keep_only=lambda *_, **__: None
    )
    dataset = run.datasets["valid"]
    if rows is not None:
        encoder = getattr(run.brain, "label_encoder", None)
        dataset = make_dataset(rows, ClipReader(), encoder)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size or run.loader["batch_size"],
        collate_fn=collate,
    )
    run.brain.step = 0
    run.brain._fit_valid(loader, 1, False)
    return kept


def weights(run):
    return {k: v.clone() for k, v in run.module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) for key in one
    )


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


TASKS = pytest.mark.parametrize("task", ["pretrain", "classify"])

# Everything random that a training can have.
RANDOM = {
    "pretrain": {},
    "classify": {
        "mixup": Mixup(probability=0.5),
        "augment": [SpectrogramMasking(8, 8), NoiseAndRoll()],
        "encoder": {"drop_path": 0.2},
    },
}


class Killed(Exception):
    """Stands for a loss of power."""


def dying(brain_class, epoch, batch):
    """A Brain that dies in the middle of an epoch."""

    class Dying(brain_class):
        def on_fit_batch_start(self, examples, should_step):
            if (self.epoch, self.step) == (epoch, batch):
                raise Killed

    return Dying


BRAINS = {"pretrain": PretrainingBrain, "classify": ClassificationBrain}


def broken_clip(folder, name="broken.wav"):
    """A file with a good header and samples that are not numbers."""
    path = str(folder / name)
    soundfile.write(path, np.full(8000, np.nan), 16000, subtype="FLOAT")
    return {name: {"path": path, "duration": 0.5, "label": "tone"}}


def merged(rows):
    """For pretraining: test clips are training clips too, 18 of them."""
    return {"train": rows["train"] | rows["test"], "valid": rows["valid"]}
