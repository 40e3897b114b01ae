"""Read files of tensors without executing anything in them."""

import argparse
import json
import re
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from ssast_lobes.checkpoints.format import PARTS, WeightsError
from ssast_lobes.utils.files import atomic_write


def read_state(path):
    """Read the tensors of an export.

    Arguments
    ---------
    path : str or path
        A safetensors file.

    Returns
    -------
    dict of str to torch.Tensor
        Tensors by name. Those stored in float16 are converted to float32.

    Raises
    ------
    WeightsError
        If the file is missing or damaged, or the name of a tensor begins with
        none of `PARTS`.

    Example
    -------
    >>> read_state("nowhere")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: nowhere: missing or damaged (...)
    """
    with weights_errors(path):
        state = load_file(path)
    surplus = [key for key in state if key.split(".")[0] not in PARTS]
    if surplus:
        raise WeightsError(f"{path}: unexpected {', '.join(surplus)}")
    return {
        key: value.float() if value.dtype == torch.float16 else value
        for key, value in state.items()
    }


def read_tensors(path):
    """Read named tensors from a file of any origin, without executing it.

    Arguments
    ---------
    path : pathlib.Path
        A file of ``torch.save``, or a ``.safetensors`` file.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    WeightsError
        If the file is missing or damaged, or contains anything but named
        tensors.

    Example
    -------
    >>> from pathlib import Path
    >>> read_tensors(Path("nowhere.bin"))
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: nowhere.bin: missing or damaged (...)
    """
    return require_tensors(read_checkpoint(path), path)


def read_checkpoint(path):
    """Read the content of a file of weights, without executing it.

    Arguments
    ---------
    path : pathlib.Path
        A file of ``torch.save``, or a ``.safetensors`` file.

    Returns
    -------
    object
        Tensors and plain values. An ``argparse.Namespace`` with the settings
        of a training is a plain value too.

    Raises
    ------
    WeightsError
        If the file is missing or damaged, or contains any other object.

    Example
    -------
    >>> from pathlib import Path
    >>> path = Path(getfixture("tmpdir")) / "model.pth"
    >>> settings = argparse.Namespace(epochs=7)
    >>> torch.save({"model": {}, "args": settings}, path)
    >>> read_checkpoint(path)
    {'model': {}, 'args': Namespace(epochs=7)}
    """
    with weights_errors(path):
        if path.suffix == ".safetensors":
            return load_file(path)
        # Building a Namespace runs no code of the file.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)


def require_tensors(state, path):
    """Return the content of a file; raise unless it is named tensors.

    Arguments
    ---------
    state : object
        Result of `read_checkpoint`.
    path : pathlib.Path
        The file, for the message.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    WeightsError
        If the content is not a dict of tensors.

    Example
    -------
    >>> require_tensors([], "model.pth")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: model.pth: holds a list, not named tensors
    """
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise WeightsError(f"{path}: holds a {kind}, not named tensors")
    others = [
        str(key)
        for key, value in state.items()
        if not isinstance(value, torch.Tensor)
    ]
    if others:
        raise WeightsError(
            f"{path}: not tensors: {', '.join(others)}; of a training "
            "checkpoint, save the state_dict() of the model alone"
        )
    return state


@contextmanager
def weights_errors(path):
    """Raise a `WeightsError` with the reason why a file does not load.

    Arguments
    ---------
    path : str or path
        The file that is read inside the context.

    Example
    -------
    >>> from pathlib import Path
    >>> path = Path(getfixture("tmpdir")) / "model.pth"
    >>> _ = path.write_text("<!DOCTYPE html><title>Sign in</title>")
    >>> with weights_errors(path):
    ...     torch.load(path, weights_only=True)
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: ...: a web page (HTML), not the ...
    """
    try:
        yield
    except Exception as error:
        reason = (
            _in_place_of_weights(path)
            or load_refusal(error)
            or f"missing or damaged ({error})"
        )
        # `from error` would print torch's advice to load the file unsafely.
        raise WeightsError(f"{path}: {reason}") from None


def _in_place_of_weights(path):
    """Describe what a download left in place of the weights, or None."""
    try:
        with open(path, "rb") as file:
            start = (
                file.read(200).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
            )
    except OSError:
        return None
    if start.startswith(b"version https://git-lfs"):
        return (
            "a Git LFS pointer, not the weights: fetch them with `git lfs "
            "pull`, or download the file itself"
        )
    if start.startswith((b"<!doctype html", b"<html")):
        return (
            "a web page (HTML), not the weights: download the file itself, "
            "of a hub from /resolve/ and not /blob/"
        )
    return None


def load_refusal(error):
    """Explain torch's refusal to load a file safely.

    Torch's own message advises to load the file unsafely.

    Arguments
    ---------
    error : Exception
        The error, for example from ``torch.load``.

    Returns
    -------
    str or None
        None for any other error, whose own message may be shown.

    Example
    -------
    >>> load_refusal(EOFError("ran out of input"))
    """
    if "weights_only" not in str(error):
        return None
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return "damaged, or no file of plain tensors"
    return (
        f"holds a Python object ({found[1]}), which can run code and is never "
        "loaded: save the state_dict() of the model alone, or use safetensors"
    )


def write_head_file(path, tensors, config):
    """Write the tensors of a head and their description.

    Arguments
    ---------
    path : pathlib.Path
        A safetensors file; its folder is created.
    tensors : dict of str to torch.Tensor
        The tensors, which are stored in float32.
    config : dict
        Plain values for the metadata of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {
        key: value.detach().cpu().float().contiguous()
        for key, value in tensors.items()
    }
    with atomic_write(path, "wb") as file:
        file.write(save(plain, {"head": json.dumps(config)}))


def head_file(folder, name):
    """Return the file of a head or projection.

    Arguments
    ---------
    folder : str or path
        The folder of the heads.
    name : str
        Name of the head.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ValueError
        If the name contains a slash, so that `head_file_names` would not find
        the file.

    Example
    -------
    >>> head_file("heads", "pets").name
    'pets.safetensors'
    """
    if Path(name).name != name:
        raise ValueError(
            f"'{name}' cannot be the name of a head: it has a slash"
        )
    return Path(folder, f"{name}.safetensors").expanduser()


def head_file_names(folder):
    """Return the names of the head files in a folder.

    Arguments
    ---------
    folder : pathlib.Path
        The folder, whether it exists or not.

    Returns
    -------
    list of str
        Sorted names; empty if there are none.

    Example
    -------
    >>> from pathlib import Path
    >>> head_file_names(Path("nowhere"))
    []
    """
    files = folder.expanduser().glob("*.safetensors")
    return sorted(path.stem for path in files)


def read_head_file(path):
    """Read a file that `write_head_file` wrote.

    Arguments
    ---------
    path : pathlib.Path
        The file.

    Returns
    -------
    tensors : dict of str to torch.Tensor
    config : dict

    Raises
    ------
    WeightsError
        If the file is missing or damaged.

    Example
    -------
    >>> from pathlib import Path
    >>> path = Path(getfixture("tmpdir")) / "heads" / "pets.safetensors"
    >>> write_head_file(path, {"bias": torch.zeros(2)}, {"labels": ["a", "b"]})
    >>> read_head_file(path)
    ({'bias': tensor([0., 0.])}, {'labels': ['a', 'b']})
    """
    with weights_errors(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    with damaged_head(path):
        return tensors, json.loads(metadata["head"])


@contextmanager
def damaged_head(path):
    """Raise a `WeightsError` if the content of a head is damaged.

    Arguments
    ---------
    path : pathlib.Path
        The file, for the message.

    Raises
    ------
    WeightsError
        In place of a KeyError, TypeError or ValueError.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: damaged ({error!r})") from error
