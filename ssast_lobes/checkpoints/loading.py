"""Load weights of every format: the only module that knows them all."""

import json
from pathlib import Path

from ssast_lobes.checkpoints.bundled import resolve_name
from ssast_lobes.checkpoints.format import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    Weights,
    WeightsError,
    error_context,
)
from ssast_lobes.checkpoints.hub import fetch
from ssast_lobes.checkpoints.huggingface import from_huggingface
from ssast_lobes.checkpoints.official import from_official
from ssast_lobes.checkpoints.tensors import read_state, read_tensors


def load_weights(source, stride=None):
    """Read a checkpoint of any format; nothing in it is executed.

    Arguments
    ---------
    source : str or path
        Folder written by a recipe or ``ssast-lobes convert``; folder of
        Hugging Face's AST (see `ssast_lobes.checkpoints.huggingface`);
        either of them on the hub, ``user/repo`` or
        ``user/repo@revision``; a name that ``ssast-lobes models`` lists (see
        `ssast_lobes.checkpoints.bundled`); or a released SSAST, SSAMBA or AST
        checkpoint, pretrained or fine-tuned, with or without the ``module.``
        prefix.
    stride : tuple of int, optional
        Patch stride (mel bins, frames) of a fine-tuned checkpoint, which does
        not tell it; needed only where two strides would fit.

    Returns
    -------
    Weights

    Raises
    ------
    WeightsError
        If the source is not there, not readable, or not of a known layout.

    Example
    -------
    >>> load_weights("nowhere")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: nowhere: no such file or folder
    """
    source = resolve_name(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        fetched = fetch(source)
        with error_context(source):
            return _load_folder(fetched)
    state = read_tensors(path)
    with error_context(path):
        return from_official(state, stride)


def _load_folder(path):
    missing = [
        name
        for name in (CONFIG_FILE, WEIGHTS_FILE)
        if not (path / name).is_file()
    ]
    try:
        if CONFIG_FILE not in missing:
            text = (path / CONFIG_FILE).read_text(encoding="utf-8")
            config = json.loads(text)
            if "model_type" in config:
                return from_huggingface(path)
        if missing:
            export = path / "export"
            hint = f"; did you mean {export}?"
            raise WeightsError(
                f"{path}: not an exported folder, {' and '.join(missing)} "
                f"missing{hint if (export / CONFIG_FILE).is_file() else ''}"
            )
        version = config["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path / CONFIG_FILE}: damaged ({error!r})"
        ) from error
    if version != FORMAT_VERSION:
        raise WeightsError(
            f"{path}: format version {version}, this ssast_lobes reads "
            f"{FORMAT_VERSION}; use the version that wrote it or export again"
        )
    return Weights(read_state(path / WEIGHTS_FILE), config)
