"""Errors of the user's data and settings, told in one message."""

import sys
from contextlib import contextmanager

from ssast_lobes.checkpointer import CheckpointError
from ssast_lobes.data.audio import UnreadableAudio
from ssast_lobes.data.manifest import ManifestError
from ssast_lobes.weights import WeightsError

USER_ERRORS = (CheckpointError, ManifestError, UnreadableAudio, WeightsError)


@contextmanager
def plain_errors():
    """Context of a script: these errors end it with their message alone.

    Their messages say what to mend; a traceback would bury them. The exit
    status is 2, as for a wrong command line.

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
