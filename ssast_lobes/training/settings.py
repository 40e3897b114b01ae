"""Checks of the settings of recipes."""

import inspect
import math
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ssast_lobes.utils.checks import (
    ArgumentError,
    flag,
    one_of,
    real,
    require,
    whole,
)


def _path(name, value, null=False):
    right = isinstance(value, str) and value or (null and value is None)
    require(right, name, "a path (write ./2024 for the folder 2024)", value)


def _paths(name, value, null=False):
    for one in value if isinstance(value, list) and value else [value]:
        _path(name, one, null)


def _texts(name, value):
    right = isinstance(value, list) and all(isinstance(x, str) for x in value)
    require(right and value, name, "a list of names", value)


def _column(name, value):
    right = isinstance(value, str | int) and not isinstance(value, bool)
    require(right, name, "the name of a column", value)


def _limit(name, value):
    # Infinity means no limit.
    if value != math.inf:
        real(name, value)


def _step_limit(name, value):
    # This is the only number that SpeechBrain's command line leaves as text.
    text = isinstance(value, str) and value.isdecimal()
    whole(name, int(value) if text else value, null=True)


def _class_weights(name, value):
    if isinstance(value, dict):
        for label, weight in value.items():
            real(f"{name} of {label}", weight, 0)
        return
    right = value in (None, "balanced")
    require(right, name, "balanced, a mapping {label: weight}, or null", value)


def _loader(name, value):
    require(isinstance(value, dict), name, "a mapping", value)
    for key in value:
        one_of(f"the keys of {name}", key, _LOADER_OPTIONS)
    for key, check in _LOADER_KEYS.items():
        if key in value:
            check(f"{name}.{key}", value[key])


def _device(name, value):
    if value is None:
        return
    right = True
    try:
        device = torch.device(value)
        if device.type == "cuda":
            right = (device.index or 0) < torch.cuda.device_count()
    except (RuntimeError, TypeError):
        right = False
    require(right, name, "a device that is there, such as cpu", value)


def _file(name, value):
    right = value is None or Path(value).is_file()
    require(right, name, "a file that is there", value)


_count_or_null = partial(whole, null=True)
_from_0 = partial(whole, least=0)
_amount = partial(real, least=0)
_LOADER_OPTIONS = tuple(inspect.signature(DataLoader).parameters)[1:]
_LOADER_KEYS = {"batch_size": whole, "num_workers": _from_0, "shuffle": flag}
_fraction = partial(real, least=0, most=1)
_length = partial(real, least=0, inside=True)
_length_or_null = partial(real, least=0, inside=True, null=True)
_path_or_null = partial(_path, null=True)

# Checks of SpeechBrain's run options, and of settings that no constructor
# checks while the YAML is loaded.
_CHECKS = {
    "allow_download": flag,
    "audio": _paths,
    "balanced_sampling": flag,
    "batch_size": whole,
    "ckpt_interval_minutes": _amount,
    "ckpt_interval_steps": _amount,
    "class_weights": _class_weights,
    "clips_per_evaluation": _count_or_null,
    "compile_mode": partial(
        one_of, allowed=("default", "reduce-overhead", "max-autotune")
    ),
    "cover_long": flag,
    "crop_seconds": _length,
    "data_folder": _path_or_null,
    "debug_batches": whole,
    "debug_epochs": partial(whole, least=-1),
    "device": _device,
    "distributed_backend": partial(one_of, allowed=("nccl", "gloo", "mpi")),
    "epoch_chosen_on": partial(one_of, allowed=("valid", "test")),
    "esc10": flag,
    "export_folder": _path,
    "grad_accumulation_factor": whole,
    "head_lr_scale": _amount,
    "held_out_of": partial(_paths, null=True),
    "label_column": _column,
    "layer_decay": _fraction,
    "length_buckets": _count_or_null,
    "librispeech_folder": _path_or_null,
    "librispeech_parts": _texts,
    "log_config": _file,
    "lp_init_penalty": _length_or_null,
    "lr": _amount,
    "manifest": _path,
    "max_grad_norm": _limit,
    "max_unreadable": _fraction,
    "min_seconds": _amount,
    "multi_label": flag,
    "nonfinite_patience": _from_0,
    "num_workers": _from_0,
    "number_of_epochs": whole,
    "optimizer_step_limit": _step_limit,
    "output_folder": _path,
    "pad_seconds": _length_or_null,
    "passes_per_epoch": whole,
    "profile_steps": _from_0,
    "profile_warmup": _from_0,
    "remove_vector_weight_decay": flag,
    "require_counts": flag,
    "seed": partial(whole, least=0, most=2**32 - 1),
    "selection": partial(
        one_of, allowed=("accuracy", "uar", "macro_f1", "eer", "mAP")
    ),
    "shards": _path_or_null,
    "source": _path_or_null,
    "split_column": _column,
    "splits_file": _path,
    "swa_start_epoch": _count_or_null,
    "test_parts": _texts,
    "test_seconds": _length_or_null,
    "train_dataloader_opts": _loader,
    "train_parts": _texts,
    "use_tensorboard": flag,
    "valid_dataloader_opts": _loader,
    "valid_fraction": _fraction,
    "valid_on_eval": flag,
    "valid_parts": _texts,
    "vocabulary_size": whole,
    "window_seconds": _length_or_null,
    "wise_ft": flag,
}


def check_settings(settings):
    """Raise if a setting is impossible.

    Arguments
    ---------
    settings : dict
        Plain settings of a recipe. Settings that are not in `_CHECKS` may have
        any value: their objects check them.

    Raises
    ------
    ArgumentError
        If settings are impossible. The message names each of them, its allowed
        values and its value.

    Example
    -------
    >>> check_settings({"lr": 0.001, "pooling": "mean", "length_buckets": None})
    >>> check_settings({"lr": "abc"})
    Traceback (most recent call last):
    ...
    ssast_lobes...ArgumentError: lr must be a number of at least 0, got ...
    """
    wrong = []
    for name, value in settings.items():
        try:
            _CHECKS.get(name, lambda *_: None)(name, value)
        except ArgumentError as error:
            wrong.append(str(error))
    if wrong:
        raise ArgumentError("; ".join(dict.fromkeys(wrong)))
