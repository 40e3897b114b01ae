"""Fetch exported folders from a model hub.

An exported folder is a complete repository: weights, configuration, labels and
model card. Every ``source`` of this package may also be ``user/repo``, which
`fetch` downloads. The settings are those of ``huggingface_hub``:
``HF_ENDPOINT`` sets the hub, ``HF_HOME`` sets the cache, and ``hf auth login``
logs a user in.
"""

import os
import re
from pathlib import Path

from huggingface_hub import constants, errors, snapshot_download

from ssast_lobes.checkpoints.format import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    HubError,
    WeightsError,
)
from ssast_lobes.checkpoints.huggingface import (
    INDEX_ENDING,
    PICKLED_FILE,
    PREPROCESSOR_FILE,
)

_REPOSITORY = re.compile(
    r"(?P<name>[a-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.I | re.A
)


def fetch(source):
    """Download those files of a repository that `load_weights` reads.

    Arguments
    ---------
    source : str
        ``user/repo``, or ``user/repo@revision`` with a branch, tag or commit.

    Returns
    -------
    pathlib.Path
        The repository's folder in the cache. Without network, an earlier
        download is used.

    Raises
    ------
    HubError
        If there is no such repository or revision, no permission to read it, no
        network, or no space in the cache.
    WeightsError
        If `source` is not the name of a repository.

    Example
    -------
    >>> fetch("nowhere")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: nowhere: no such file or folder
    """
    found = _REPOSITORY.fullmatch(os.fspath(source))
    if found is None:
        raise WeightsError(f"{source}: no such file or folder")
    try:
        for weights in (WEIGHTS_FILE, PICKLED_FILE):
            folder = snapshot_download(
                found["name"],
                revision=found["revision"],
                allow_patterns=[
                    CONFIG_FILE,
                    PREPROCESSOR_FILE,
                    weights,
                    weights + INDEX_ENDING,
                    weights.replace(".", "-*-of-*."),
                ],
            )
            # Many repositories contain both kinds of weights; one is enough.
            if any(Path(folder).glob(f"{weights}*")):
                break
    except Exception as error:
        raise HubError(
            f"{source}: no such file or folder, nor in the cache of the hub; "
            f"{hub_refusal(error, found['name'], 'read')}"
        ) from error
    return Path(folder)


def hub_refusal(error, name, action, endpoint=None):
    """Explain an error of the hub's client in one line.

    Arguments
    ---------
    error : Exception
        Error of ``huggingface_hub``.
    name : str
        Name of the repository.
    action : str
        The failed action, ``"read"`` or ``"write"``.
    endpoint : str, optional
        Address of the hub.

    Returns
    -------
    str

    Example
    -------
    >>> hub_refusal(OSError("no space left"), "me/barks", "read")
    'a file of this machine fails (no space left)...'
    """
    hub = endpoint or constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError):
        # The file is not in the cache either. The cause is the hub's answer.
        error = error.__cause__ or error
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: ask for access at {hub}/{name}, and log in"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{hub} shows no repository {name}: check the name, and log in "
            "with `hf auth login` if it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub}/{name} has no such revision"
    response = getattr(error, "response", None)
    if response is not None and response.status_code in (401, 403):
        return (
            f"{hub} does not let you {action} {name}: log in with "
            f"`hf auth login`, with a token that may {action} there"
        )
    if response is not None:
        return f"{hub} answers: {_first_line(error)}"
    if isinstance(error, errors.HFValidationError):
        return f"{name} is no name of a repository ({_first_line(error)})"
    # Errors of HTTP clients and sockets are OSErrors, too.
    is_ours = isinstance(error, OSError) and (
        type(error).__module__ == "builtins"
    )
    if is_ours and not isinstance(error, (ConnectionError, TimeoutError)):
        return (
            f"a file of this machine fails ({_first_line(error)}); the cache "
            f"is {constants.HF_HUB_CACHE}, HF_HOME names another"
        )
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, so {hub} is not asked"
    return f"{hub} cannot be reached ({_first_line(error)})"


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
