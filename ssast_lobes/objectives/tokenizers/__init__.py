"""Tokenizers of the objective `Codes`: discrete codes of a grid's tokens.

A tokenizer is a module with ``n_books``, ``n_codes`` and ``config``. Its
``forward(feats, n_frames)`` maps normalized log-mel (B, T, n_mels) to ids
(B, N, n_books). One that sets ``needs_audio`` or ``needs_place`` is given more
by name, as an `Objective` that does. It is frozen, and its tensors are
buffers: what an optimizer or a change of precision does to parameters must not
move a code.
"""

import functools

from torch import nn

from ssast_lobes.objectives.tokenizers.codes import (
    CodeUsage,
    code_frequency,
    nearest,
)
from ssast_lobes.objectives.tokenizers.features import make_features
from ssast_lobes.objectives.tokenizers.kmeans import (
    KMeansTokenizer,
    fit_kmeans,
)
from ssast_lobes.objectives.tokenizers.random_projection import (
    RandomProjectionTokenizer,
)

__all__ = [
    "CodeUsage",
    "KMeansTokenizer",
    "RandomProjectionTokenizer",
    "code_frequency",
    "fit_kmeans",
    "make_features",
    "make_tokenizer",
    "nearest",
]

_TOKENIZERS = {
    kind.__name__: kind for kind in (RandomProjectionTokenizer, KMeansTokenizer)
}


def make_tokenizer(tokenizer, grid):
    """Return a tokenizer for a grid.

    Arguments
    ---------
    tokenizer : callable or dict or torch.nn.Module
        What makes one of the grid, such as a class, or ``!name:`` with
        arguments in a YAML; the `config` of one of this package; or a
        tokenizer, which is returned as it is.
    grid : Grid
        Of the encoder.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ValueError
        If it is none of these, or the arguments do not fit.

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
