"""Report errors in the user's data and settings, with one message each."""

import errno
import gc
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import torch
from speechbrain.utils.distributed import is_distributed_initialized

from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.training.checkpointer import CheckpointError
from ssast_lobes.utils.checks import ArgumentError


class SettingsError(ValueError):
    """Settings contradict each other or an earlier run."""


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


@contextmanager
def yaml_errors(hparams_file):
    """Turn errors in a YAML or an override into one message.

    The message of a constructor begins with the key in the YAML:
    ``masker: mask ratio must be a number between 0 and 1, got 2``.

    Arguments
    ---------
    hparams_file : str or path
        The YAML that is loaded inside the context.

    Raises
    ------
    SettingsError
        Instead of an error about an included file, a placeholder, a key or an
        argument of a class.

    Example
    -------
    >>> with yaml_errors("a.yaml"):
    ...     raise ValueError("'audio' is a !PLACEHOLDER and must be replaced.")
    Traceback (most recent call last):
    ...
    ssast_lobes...SettingsError: a.yaml: 'audio' is a ... --KEY...
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
    """Return the keys, joined by dots, of the object that raised an error."""
    keys = [
        str(frame.f_locals["key"])
        for frame, _ in traceback.walk_tb(error.__traceback__)
        # HyperPyYAML builds each value while it builds the mapping around it.
        if frame.f_code.co_name == "construct_mapping"
        and "key" in frame.f_locals
    ]
    return [".".join(keys)] if keys else []


@contextmanager
def exit_on_user_error():
    """End a script with the message of a user's error, without a traceback.

    The message says what to fix, and a traceback would hide it. A full disk
    and Ctrl-C also end the script without a traceback. The exit status is 2, as
    for a wrong command line, and 130 after Ctrl-C. Processes that end first
    wait for the others.

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
            "Stopped: the same command resumes at the last checkpoint",
            file=sys.stderr,
        )
        raise SystemExit(130) from error
    if is_distributed_initialized():
        # A process may abort at its end if its group is still open, or if a
        # model still refers to the group, in a cycle with its Brain.
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
