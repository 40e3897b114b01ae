"""Errors of the user's data and settings, told in one message."""

import errno
import gc
import math
import sys
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from speechbrain.utils.distributed import is_distributed_initialized

from ssast_lobes.checkpointer import CheckpointError
from ssast_lobes.checks import (
    ArgumentError,
    flag,
    one_of,
    real,
    require,
    whole,
)
from ssast_lobes.data.audio import UnreadableAudio
from ssast_lobes.data.manifest import ManifestError
from ssast_lobes.weights import WeightsError


class SettingsError(ValueError):
    """Settings contradict each other or an earlier run; says what to do."""


class NonfiniteLoss(RuntimeError):
    """Too many steps had a loss or gradients that are NaN or infinite."""


USER_ERRORS = (
    ArgumentError,
    CheckpointError,
    FileExistsError,
    ManifestError,
    NonfiniteLoss,
    SettingsError,
    UnreadableAudio,
    WeightsError,
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    # Infinity: no limit.
    if value != math.inf:
        real(name, value)


def _step_limit(name, value):
    # The one number that SpeechBrain's command line leaves as text.
    text = isinstance(value, str) and value.isdecimal()
    whole(name, int(value) if text else value, null=True)


def _class_weights(name, value):
    if isinstance(value, dict):
        for label, weight in value.items():
            real(f"{name} of {label}", weight, 0)
        return
    right = value in (None, "balanced")
    require(right, name, "balanced, a table {label: weight}, or null", value)


def _loader(name, value):
    require(isinstance(value, dict), name, "a table", value)
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
_LOADER_KEYS = {"batch_size": whole, "num_workers": _from_0, "shuffle": flag}
_share = partial(real, least=0, most=1)
_length = partial(real, least=0, inside=True)
_length_or_null = partial(real, least=0, inside=True, null=True)
_path_or_null = partial(_path, null=True)
# What the settings may be that no constructor checks as the YAML is loaded,
# and the run options of SpeechBrain.
_CHECKS = {
    "allow_download": flag,
    "audio": _paths,
    "balanced_sampling": flag,
    "batch_size": whole,
    "ckpt_interval_minutes": real,
    "ckpt_interval_steps": real,
    "class_weights": _class_weights,
    "clips_per_evaluation": _count_or_null,
    "compile_mode": partial(
        one_of, allowed=("default", "reduce-overhead", "max-autotune")
    ),
    "cover_long": flag,
    "crop_seconds": _length,
    "data_folder": _path_or_null,
    "debug_batches": whole,
    "debug_epochs": real,
    "device": _device,
    "distributed_backend": partial(one_of, allowed=("nccl", "gloo", "mpi")),
    "epoch_chosen_on": partial(one_of, allowed=("valid", "test")),
    "esc10": flag,
    "export_folder": _path,
    "grad_accumulation_factor": whole,
    "head_lr_scale": _amount,
    "held_out_of": partial(_paths, null=True),
    "label_column": _column,
    "layer_decay": _share,
    "length_buckets": _count_or_null,
    "librispeech_folder": _path_or_null,
    "librispeech_parts": _texts,
    "log_config": _file,
    "lp_init_penalty": _length_or_null,
    "lr": _amount,
    "manifest": _path,
    "max_grad_norm": _limit,
    "max_unreadable": _share,
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
    "valid_fraction": _share,
    "valid_on_eval": flag,
    "valid_parts": _texts,
    "vocabulary_size": whole,
    "window_seconds": _length_or_null,
}


def check_settings(settings):
    """Refuse settings that no experiment can have.

    Arguments
    ---------
    settings : dict
        Plain settings of a recipe. Those that this table does not know may be
        anything: their objects check them.

    Raises
    ------
    ArgumentError
        Names each wrong setting, what is allowed, and its value.

    Example
    -------
    >>> check_settings({"lr": 0.001, "pooling": "mean", "length_buckets": None})
    >>> check_settings({"lr": "abc"})
    Traceback (most recent call last):
    ...
    ssast_lobes.checks.ArgumentError: lr must be a number of at least 0, got ...
    """
    wrong = []
    for name, value in settings.items():
        try:
            _CHECKS.get(name, lambda *_: None)(name, value)
        except ArgumentError as error:
            wrong.append(str(error))
    if wrong:
        raise ArgumentError("; ".join(dict.fromkeys(wrong)))


@contextmanager
def yaml_errors(hparams_file):
    """Say in one message what is wrong with a YAML or an override.

    What a constructor says of its arguments is told with its place in the
    YAML: ``masker: mask ratio must be a number between 0 and 1, got 2``.

    Arguments
    ---------
    hparams_file : str or path
        The YAML that is loaded inside of the context.

    Raises
    ------
    SettingsError
        In place of errors of a file to include, a placeholder, a key or an
        argument of a class.

    Example
    -------
    >>> with yaml_errors("a.yaml"):
    ...     raise ValueError("'audio' is a !PLACEHOLDER and must be replaced.")
    Traceback (most recent call last):
    ...
    ssast_lobes.training.errors.SettingsError: a.yaml: 'audio' is a ... --KEY...
    """
    try:
        yield
    except FileNotFoundError as error:
        if error.filename is None:
            raise
        path = Path(error.filename).resolve()
        there = sorted(other.name for other in path.parent.glob("*.yaml"))
        raise SettingsError(
            f"there is no {path} to include; the folder has: "
            f"{', '.join(there) or 'nothing'}"
        ) from error
    except SettingsError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        text = " ".join(str(part) for part in error.args).strip()
        if "!PLACEHOLDER" in text:
            text += " Give it on the command line, as --KEY VALUE"
        where = ": ".join([str(hparams_file), *_place(error)])
        text = " ".join(text.split())
        raise SettingsError(f"{where}: {text}") from error


def _place(error):
    """Return the keys, joined by points, whose object raises an error."""
    keys = [
        str(frame.f_locals["key"])
        for frame, _ in traceback.walk_tb(error.__traceback__)
        # HyperPyYAML builds what a key holds from within its mapping.
        if frame.f_code.co_name == "construct_mapping"
        and "key" in frame.f_locals
    ]
    return [".".join(keys)] if keys else []


@contextmanager
def exit_on_user_error():
    """Context of a script: these errors end it with their message alone.

    Their messages say what to mend; a traceback would bury them. So it is
    where a file cannot be written because the disk is full, and where the
    user stops the script. The exit status is 2, as for a wrong command line,
    and 130 after Ctrl-C. Of several processes, those that come to the end
    first wait there for the others.

    Example
    -------
    >>> with exit_on_user_error():
    ...     raise ManifestError("clips.csv: the manifest is empty")
    Traceback (most recent call last):
    ...
    SystemExit: 2
    """
    try:
        yield
    except USER_ERRORS as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print(f"{error}. Make room and start again", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print(
            "Stopped: the same command resumes from what is done",
            file=sys.stderr,
        )
        raise SystemExit(130) from error
    if is_distributed_initialized():
        # A process that leaves its group open may abort as it ends; so may one
        # whose group is still held by a model, in a cycle with its Brain.
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
