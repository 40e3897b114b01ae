"""Errors of the user's data and settings, told in one message."""

import errno
import gc
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from speechbrain.utils.distributed import is_distributed_initialized

from ssast_lobes.checkpointer import CheckpointError
from ssast_lobes.data.audio import UnreadableAudio
from ssast_lobes.data.manifest import ManifestError
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
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def yaml_errors(hparams_file):
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
    >>> with yaml_errors("a.yaml"):
    ...     raise ValueError("'audio' is a !PLACEHOLDER and must be replaced.")
    Traceback (most recent call last):
    ...
    ssast_lobes.training.errors.SettingsError: a.yaml: 'audio' ... --KEY VALUE
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
