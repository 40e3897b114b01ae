"""Errors of the user's data and settings, told in one message."""

import errno
import functools
import gc
import json
import math
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from speechbrain.utils.distributed import is_distributed_initialized

from ssast_lobes.checkpointer import CheckpointError
from ssast_lobes.data.audio import UnreadableAudio
from ssast_lobes.data.manifest import ManifestError, written_whole
from ssast_lobes.data.splits import has_begun
from ssast_lobes.weights import WeightsError


class SettingsError(ValueError):
    """Settings contradict each other or an earlier run; says what to do."""


class NonfiniteLoss(RuntimeError):
    """Too many steps had a loss or gradients that are NaN or infinite."""


USER_ERRORS = (
    CheckpointError,
    FileExistsError,
    ManifestError,
    NonfiniteLoss,
    SettingsError,
    UnreadableAudio,
    WeightsError,
)
_SETTINGS_FILE = "settings.json"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Key of the settings that are no plain values, in the file of all.
_BUILT = "built"
# What may change between two starts of one experiment: how it is run, and
# where its data lie (the clips themselves are compared).
_FREE = (
    "allow_download",
    "audio",
    "checkpointing",
    "ckpt_interval_minutes",
    "data_folder",
    "export_folder",
    "held_out_of",
    "librispeech_folder",
    "manifest",
    "max_unreadable",
    "nonfinite_patience",
    "num_workers",
    "output_folder",
    "pad_seconds",
    "require_counts",
    "save_folder",
    "shards",
    "number_of_epochs",
    "use_tensorboard",
    "window_seconds",
)
# Settings that are numbers: what they may be, of which type, from where to
# where. What is beyond the largest float is infinite.
_MOST = sys.float_info.max
_COUNT = ("a whole number, at least 1", int, 1, _MOST)
_COUNT_OR_NULL = ("a whole number, at least 1, or null", int | None, 1, _MOST)
_WHOLE = ("a whole number, at least 0", int, 0, _MOST)
_AMOUNT = ("a number, at least 0", int | float, 0, _MOST)
_LENGTH = ("a number above 0", int | float, sys.float_info.min, _MOST)
_SHARE = ("a number from 0 to 1", int | float, 0, 1)
_ANY = ("a number", int | float, -math.inf, math.inf)
_NUMBERS = {
    "batch_size": _COUNT,
    "ckpt_interval_minutes": _ANY,
    "clips_per_evaluation": _COUNT_OR_NULL,
    "crop_seconds": _LENGTH,
    "drop_path": _SHARE,
    "grad_accumulation_factor": _COUNT,
    "head_lr_scale": _AMOUNT,
    "layer_decay": _AMOUNT,
    "length_buckets": _COUNT_OR_NULL,
    "lr": _AMOUNT,
    "max_grad_norm": _ANY,
    "max_unreadable": _SHARE,
    "min_seconds": _AMOUNT,
    "nonfinite_patience": _WHOLE,
    "num_workers": _WHOLE,
    "number_of_epochs": _COUNT,
    "optimizer_step_limit": _COUNT_OR_NULL,
    "seed": ("a whole number from 0 to 4294967295", int, 0, 2**32 - 1),
    "valid_share": _SHARE,
    "vocabulary_size": _COUNT,
}
_PATHS = (
    *("audio", "data_folder", "export_folder", "held_out_of", "manifest"),
    *("output_folder", "shards", "source"),
)


def check_settings(settings):
    """Refuse numbers that no experiment can have, and paths that are numbers.

    Arguments
    ---------
    settings : dict
        Plain settings of a recipe. Those that this table does not know may be
        anything.

    Raises
    ------
    SettingsError
        Names each wrong setting, its value and what is allowed.

    Example
    -------
    >>> check_settings({"lr": 0.001, "loss": "ce", "length_buckets": None})
    >>> check_settings({"lr": "abc"})
    Traceback (most recent call last):
    ...
    ssast_lobes.brains.errors.SettingsError: lr is abc: give a number, at ...
    """
    wrong = []
    for name, (words, kind, least, most) in _NUMBERS.items():
        value = settings.get(name, least)
        right = isinstance(value, kind) and not isinstance(value, bool)
        if not right or not (value is None or least <= value <= most):
            wrong.append(f"{name} is {value}: give {words}")
    for name in _PATHS:
        value = settings.get(name)
        # A folder may be called "on", which PyYAML reads as True.
        if not isinstance(value, str | list | bool | None):
            wrong.append(f"{name} is {value}: give a path, such as ./{value}")
    if wrong:
        raise SettingsError("; ".join(wrong))


def check_same_experiment(hparams):
    """Refuse to resume an experiment under other settings.

    With another source or learning rate in the same folder, a resumed run
    would pass the results of one experiment off as those of another. Keys
    that say where data lie are free: `data.splits.write_splits` compares the
    clips. A folder in which nothing is trained yet takes any settings.

    Arguments
    ---------
    hparams : dict
        Of a recipe, compared with those of the first start, which are kept in
        ``<output_folder>/settings.json``: plain values, functions and classes
        with their arguments, and of objects the class.

    Raises
    ------
    SettingsError
        If a setting has changed that makes it another experiment.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> keep_settings({"output_folder": str(folder), "source": None})
    >>> _ = folder.mkdir("save").mkdir("CKPT+1")
    >>> check_same_experiment({"output_folder": str(folder), "source": "a"})
    Traceback (most recent call last):
    ...
    ssast_lobes.brains.errors.SettingsError: ... source (None, now a)...
    """
    folder = hparams["output_folder"]
    path = Path(folder) / _SETTINGS_FILE
    if not path.is_file() or not has_begun(folder):
        return
    try:
        then = dict(json.loads(path.read_text(encoding="utf-8")))
        then |= dict(then.pop(_BUILT))
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{path} is damaged ({error}). If you know that the settings are "
            "those of its experiment, delete it; else choose another "
            "--output_folder"
        ) from error
    plain, built = _settings(hparams)
    now = plain | built
    changed = [
        f"{key} ({then.get(key)}, now {now.get(key)})"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]
    if changed:
        raise SettingsError(
            f"{folder} holds an experiment with other settings: "
            f"{', '.join(changed)}. Choose another --output_folder, or delete "
            "that one to start anew"
        )


def keep_settings(hparams):
    """Write the settings that later starts are compared with.

    Arguments
    ---------
    hparams : dict
        See `check_same_experiment`.
    """
    path = Path(hparams["output_folder"]) / _SETTINGS_FILE
    plain, built = _settings(hparams)
    with written_whole(path) as file:
        file.write(json.dumps({**plain, _BUILT: built}, indent=2) + "\n")


def _settings(hparams):
    """Plain settings, and what can be told of the others, as JSON has it."""
    plain, built = {}, {}
    for key, value in hparams.items():
        if key not in _FREE:
            told = plain if _is_plain(value) else built
            told.update(_told(key, value))
    return json.loads(json.dumps([plain, built]))


def _told(name, value):
    """(name, plain value) of a setting, or of each that is within it."""
    if _is_plain(value):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in _FREE:
                yield from _told(f"{name}.{key}", part)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _told(f"{name}.{number}", part)
    elif isinstance(value, functools.partial):
        yield from _told(name, value.func)
        yield from _told(f"{name}.arguments", list(value.args) or None)
        yield from _told(name, value.keywords)
    else:
        kind = value if hasattr(value, "__qualname__") else type(value)
        yield name, f"{kind.__module__}.{kind.__qualname__}"


def _is_plain(value):
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)


@contextmanager
def loading(hparams_file):
    """Say in one message what is wrong with a YAML or an override.

    Arguments
    ---------
    hparams_file : str or path
        The YAML that is loaded inside of the context.

    Raises
    ------
    SettingsError
        In place of errors of a file to include, a placeholder or a key.

    Example
    -------
    >>> with loading("a.yaml"):
    ...     raise ValueError("'audio' is a !PLACEHOLDER and must be replaced.")
    Traceback (most recent call last):
    ...
    ssast_lobes.brains.errors.SettingsError: a.yaml: 'audio' is a ... --KEY ...
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
    except (KeyError, ValueError) as error:
        text = error.args[0] if isinstance(error, KeyError) else str(error)
        if "!PLACEHOLDER" in text:
            text += " Give it on the command line, as --KEY VALUE"
        raise SettingsError(f"{hparams_file}: {text}") from error


@contextmanager
def plain_errors():
    """Context of a script: these errors end it with their message alone.

    Their messages say what to mend; a traceback would bury them. So it is
    where a file cannot be written because the disk is full, and where the
    user stops the script. The exit status is 2, as for a wrong command line,
    and 130 after Ctrl-C. Of several processes, those that come to the end
    first wait there for the others.

    Example
    -------
    >>> with plain_errors():
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
            "Stopped: the same command goes on from what is done",
            file=sys.stderr,
        )
        raise SystemExit(130) from error
    if is_distributed_initialized():
        # A process that leaves its group open may abort as it ends; so may one
        # whose group is still held by a model, in a cycle with its Brain.
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
