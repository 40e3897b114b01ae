"""Load weights of every format."""

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
from ssast_lobes.checkpoints.huggingface import (
    MODEL_TYPE,
    PICKLED_FILE,
    from_huggingface,
    read_folder_tensors,
)
from ssast_lobes.checkpoints.official import from_official
from ssast_lobes.checkpoints.peers import family_of, from_peer, is_plain_vit
from ssast_lobes.checkpoints.tensors import (
    read_checkpoint,
    read_state,
    require_tensors,
)


def load_weights(source, stride=None, family=None):
    """Read a checkpoint of any format, without executing anything in it.

    Arguments
    ---------
    source : str or path
        A folder, a file or a name. A folder contains an export of a recipe or
        of ``ssast-lobes convert``, or Hugging Face's AST (see
        `ssast_lobes.checkpoints.huggingface`). A file is a released SSAST,
        SSAMBA or AST checkpoint, pretrained or fine-tuned, with or without the
        ``module.`` prefix. A folder or a file may also be a checkpoint of
        another lab (see `ssast_lobes.checkpoints.peers`). A name is that of a
        bundled model (see `ssast_lobes.checkpoints.bundled`) or of a folder on
        the hub: ``user/repo`` or ``user/repo@revision``.
    stride : tuple of int, optional
        Patch stride (mel bins, frames) of a fine-tuned official checkpoint;
        needed only if two strides fit its tensors.
    family : str, optional
        Family of another lab's checkpoint; needed if the keys of the checkpoint
        do not determine it.

    Returns
    -------
    Weights

    Raises
    ------
    WeightsError
        If the source is missing, not readable, or not of a known layout.

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
        return _load_folder(path, family)
    if not path.is_file():
        fetched = fetch(source)
        with error_context(source):
            return _load_folder(fetched, family)
    content = read_checkpoint(path)
    with error_context(path):
        if family or family_of(content) or is_plain_vit(content):
            return from_peer(content, path, family)
    state = require_tensors(content, path)
    with error_context(path):
        return from_official(state, stride)


def _load_folder(path, family=None):
    missing = [
        name
        for name in (CONFIG_FILE, WEIGHTS_FILE)
        if not (path / name).is_file()
    ]
    try:
        if CONFIG_FILE not in missing:
            text = (path / CONFIG_FILE).read_text(encoding="utf-8")
            config = json.loads(text)
            if _may_be_peer(path, config):
                content = read_folder_tensors(path)
                if family or family_of(content):
                    with error_context(path):
                        return from_peer(content, path / WEIGHTS_FILE, family)
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
    if version not in range(1, FORMAT_VERSION + 1):
        raise WeightsError(
            f"{path}: format version {version}, this ssast_lobes reads 1 to "
            f"{FORMAT_VERSION}; use the version that wrote it or export again"
        )
    return Weights(read_state(path / WEIGHTS_FILE), config)


def _may_be_peer(path, config):
    """Return whether the weights in a folder are neither ours nor an AST's."""
    if not isinstance(config, dict) or "format_version" in config:
        return False
    names = (WEIGHTS_FILE, PICKLED_FILE)
    there = any((path / name).is_file() for name in names)
    return there and config.get("model_type") != MODEL_TYPE
