"""Projections of clip vectors next to a frozen encoder.

An exported folder may contain a folder `projections/` with one safetensors file
for each projection: a linear layer from clip vectors to a few numbers in which
clips of one content are similar. With few labels, a classifier learns more from
them than from the clip vectors themselves. `ssast-lobes heads` fits projections
and uses them.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from ssast_lobes.checkpoints.format import PROJECTIONS_FOLDER
from ssast_lobes.checkpoints.tensors import (
    damaged_head,
    read_head_file,
    write_head_file,
)


class Projection(NamedTuple):
    """A linear map of clip vectors.

    Arguments
    ---------
    name : str
        Name in tables, and of the file.
    weight : torch.Tensor
        (K, D).
    bias : torch.Tensor
        (K,).
    pooling, layers : str
        How clips become the vectors (D,) that are projected; see
        `ssast_lobes.evaluation.probing.embeddings.pooled`.

    Example
    -------
    >>> double = Projection("double", 2 * torch.eye(1), torch.ones(1))
    >>> double(torch.tensor([[3.0]]))
    tensor([[7.]])
    """

    name: str
    weight: torch.Tensor
    bias: torch.Tensor
    pooling: str = "dynamics"
    layers: str = "all"

    def __call__(self, vectors):
        """Return vectors (N, K) of clip vectors (N, D)."""
        return vectors @ self.weight.T + self.bias


def write_projection(folder, projection):
    """Write a projection to an exported folder.

    Arguments
    ---------
    folder : str or path
        The exported folder.
    projection : Projection
        The projection; an older one of this name is replaced.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> same = Projection("same", torch.eye(2), torch.zeros(2))
    >>> write_projection(folder, same)
    >>> [projection.name for projection in read_projections(folder)]
    ['same']
    """
    name, weight, bias, pooling, layers = projection
    write_head_file(
        Path(folder, PROJECTIONS_FOLDER, f"{name}.safetensors"),
        {"weight": weight, "bias": bias},
        {"pooling": pooling, "layers": layers},
    )


def read_projections(folder):
    """Read the projections of an exported folder.

    Arguments
    ---------
    folder : str or path
        The exported folder. Other sources of weights have no projections.

    Returns
    -------
    list of Projection
        Sorted by name.

    Raises
    ------
    WeightsError
        If a file is damaged.

    Example
    -------
    >>> read_projections("nowhere")
    []
    """
    found = []
    files = Path(folder, PROJECTIONS_FOLDER).expanduser().glob("*.safetensors")
    for path in sorted(files):
        tensors, plain = read_head_file(path)
        with damaged_head(path):
            projection = Projection(path.stem, **tensors, **plain)
            if len(projection.weight) != len(projection.bias):
                raise ValueError("weight and bias differ in length")
        found.append(projection)
    return found
