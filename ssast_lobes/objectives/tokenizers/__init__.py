"""Tokenizers of the objective `Codes`: discrete codes of tokens.

A tokenizer is a module with ``n_books``, ``n_codes`` and ``config``. Its
``forward(feats, n_frames)`` maps normalized log-mel (B, T, n_mels) to ids (B,
N, n_books). If it sets ``needs_audio`` or ``needs_place``, it gets further
arguments, as an `Objective` does. Its ``sample_rate`` is the rate of this
audio. If its codes depend on the front end, its ``check_front_end(features)``
raises an error for another one. A tokenizer is frozen and its codes are
buffers, so that no optimizer changes them. It computes in float32 under
autocast too.
"""

import functools
from pathlib import Path

from torch import nn

from ssast_lobes.models.features import FrontEnd
from ssast_lobes.models.patches import Grid
from ssast_lobes.objectives.tokenizers.codes import (
    CodeChance,
    CodeUsage,
    code_frequency,
    nearest,
)
from ssast_lobes.objectives.tokenizers.distilled import (
    VectorQuantizerTokenizer,
    read_quantizer,
)
from ssast_lobes.objectives.tokenizers.features import make_features
from ssast_lobes.objectives.tokenizers.kmeans import (
    KMeansTokenizer,
    fit_kmeans,
    read_fitted,
)
from ssast_lobes.objectives.tokenizers.random_projection import (
    RandomProjectionTokenizer,
)
from ssast_lobes.objectives.tokenizers.stored import StoredTokenizer
from ssast_lobes.utils.checks import ArgumentError

__all__ = [
    "CodeChance",
    "CodeUsage",
    "KMeansTokenizer",
    "RandomProjectionTokenizer",
    "StoredTokenizer",
    "VectorQuantizerTokenizer",
    "code_frequency",
    "fit_kmeans",
    "load_tokenizer",
    "make_features",
    "make_tokenizer",
    "nearest",
]

_TOKENIZERS = {
    kind.__name__: kind
    for kind in (
        RandomProjectionTokenizer,
        KMeansTokenizer,
        StoredTokenizer,
        VectorQuantizerTokenizer,
    )
}


def make_tokenizer(tokenizer, grid):
    """Return a tokenizer for a grid.

    Arguments
    ---------
    tokenizer : callable or dict or torch.nn.Module
        A function of the grid that returns a tokenizer, such as a class, or
        ``!name:`` with arguments in a YAML. Or the `config` of one of this
        package's tokenizers. Or a tokenizer, which is returned unchanged.
    grid : Grid
        Grid of the encoder.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ValueError
        If `tokenizer` is none of these, or its arguments do not fit.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> config = {"name": "RandomProjectionTokenizer", "n_codes": 16}
    >>> make_tokenizer(config, Grid()).n_codes
    16
    """
    if isinstance(tokenizer, nn.Module):
        return tokenizer
    if isinstance(tokenizer, dict) and tokenizer.get("name") in _TOKENIZERS:
        arguments = dict(tokenizer)
        kind = _TOKENIZERS[arguments.pop("name")]
        tokenizer = functools.partial(kind, **arguments)
    if not callable(tokenizer):
        raise ValueError(
            "tokenizer must be a class, !name:CLASS {...} in a YAML, or a "
            f"module, got {tokenizer!r}"
        )
    try:
        return tokenizer(grid)
    except TypeError as error:
        raise ValueError(f"tokenizer: {error}") from error


def load_tokenizer(*sources):
    """Load a fitted tokenizer, and the front end that it was fitted with.

    Arguments
    ---------
    *sources : str or os.PathLike
        One or several files of ``ssast-lobes tokenizer fit``, one for each
        codebook, or an exported folder of the objective `VectorQuantizer`.

    Returns
    -------
    tokenizer : torch.nn.Module
        The tokenizer, for the grid that it was fitted for.
    front_end : FrontEnd

    Raises
    ------
    ValueError
        If a source is neither such a file nor such a folder, or a folder is not
        the only source, or files do not fit together.

    Example
    -------
    >>> load_tokenizer("nowhere")
    Traceback (most recent call last):
    ...
    ssast_lobes...ArgumentError: tokenizer: nowhere is no file of ...
    """
    if len(sources) > 1 and any(Path(source).is_dir() for source in sources):
        raise ArgumentError(
            "tokenizer: the export of a vector_quantizer is a tokenizer of its "
            "own: give one folder, or files"
        )
    if Path(sources[0]).is_dir():
        config, _ = read_quantizer(sources[0])
        grid = Grid(**config["encoder"]["grid"])
        tokenizer = VectorQuantizerTokenizer(grid, sources[0])
        front_end = tokenizer.front_end
        if front_end.get("pad_frames") is not None:
            raise ArgumentError(
                f"tokenizer: {sources[0]} was trained on padded clips "
                "(pad_frames), so its codes of a clip alone would be others"
            )
    else:
        fitted, _ = read_fitted(sources[0])
        tokenizer = KMeansTokenizer(Grid(**fitted["grid"]), list(sources))
        # Features of the waveform only count its frames.
        front_ends = tokenizer.front_ends.values()
        front_end = next(iter(front_ends), fitted["front_end"])
    # Clips keep their own lengths.
    return tokenizer, FrontEnd(**{**front_end, "pad_frames": None})
