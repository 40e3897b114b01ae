"""One run at a time in an output folder."""

import errno
import json
import logging
import os
import socket
import time
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from speechbrain.utils.logger import get_logger

from ssast_lobes.training.errors import SettingsError
from ssast_lobes.utils.files import write_json

logger = get_logger(__name__)
# Logs of recipes include all levels, and filelock logs each attempt.
logging.getLogger("filelock").setLevel(logging.INFO)

LOCK_FILE = "save/.lock"
# Names the process that holds the lock, for the message to a second run.
OWNER_FILE = "save/.lock-owner.json"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def folder_lock(folder):
    """Keep other runs out of an output folder.

    A second run would delete the checkpoints that the first is writing. The
    operating system releases the lock when the process ends, for any reason.
    Loader workers that outlive the process do not hold the lock. Call this only
    on the main process of a run.

    Arguments
    ---------
    folder : str or os.PathLike
        The output folder. It is created if it does not exist.

    Raises
    ------
    SettingsError
        If another process holds the folder; the message names its host and
        process number.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> with folder_lock(folder), folder_lock(folder):
    ...     pass
    Traceback (most recent call last):
    ...
    ssast_lobes...SettingsError: ... is in use by process ...
    """
    folder = Path(folder)
    (folder / "save").mkdir(parents=True, exist_ok=True)
    owner_file = folder / OWNER_FILE
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = _read_owner(owner_file)
        raise SettingsError(
            f"{folder} is in use by process {owner['process']} on "
            f"{owner['host']}, since {owner['since']}: wait until it has "
            "ended, or choose another --output_folder"
        ) from error
    except (NotImplementedError, OSError) as error:
        code = getattr(error, "errno", errno.ENOSYS)
        if code not in _NO_LOCKS:
            raise
        logger.warning(
            f"The file system of {folder} has no locks: nothing keeps a "
            "second run out of this folder"
        )
    if owner_file.is_file():
        owner = _read_owner(owner_file)
        logger.info(
            f"Process {owner['process']} on {owner['host']} has left the "
            f"lock of {folder} behind: taking it over"
        )
    this_process = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    write_json(owner_file, this_process)
    try:
        yield
    finally:
        owner_file.unlink(missing_ok=True)
        lock.release()


def _read_owner(path):
    """Return the owner of a lock, or unknown if its file is incomplete."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {"process": "unknown", "host": "an unknown host", "since": "?"}
