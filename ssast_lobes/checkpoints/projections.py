"""Projections of clip vectors next to a frozen encoder.

An exported folder may contain a folder `projections/` with one safetensors file
for each projection: a linear map from clip vectors to a few numbers, in which
recordings of the same content are similar. Heads of few labels learn more from
them than from the clip vectors. `ssast-lobes heads` fits and uses projections.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from ssast_lobes.checkpoints.format import PROJECTIONS_FOLDER, WeightsError
from ssast_lobes.checkpoints.tensors import (
    damaged_head,
    head_file,
    head_file_names,
    read_head_file,
    write_head_file,
)


class Projection(NamedTuple):
    """A linear map of clip vectors, the dynamics of all layers.

    Arguments
    ---------
    weight : torch.Tensor
        (K, D).
    bias : torch.Tensor
        (K,).
    recordings, contents : int
        Number of recordings that it was fitted on, and of different contents.

    Example
    -------
    >>> double = Projection(2 * torch.eye(1), torch.ones(1), 4, 2)
    >>> double(torch.tensor([[3.0]]))
    tensor([[7.]])
    """

    weight: torch.Tensor
    bias: torch.Tensor
    recordings: int
    contents: int

    def __call__(self, vectors):
        """Return vectors (N, K) of clip vectors (N, D)."""
        return vectors @ self.weight.T + self.bias


def write_projection(folder, name, projection):
    """Write a projection to an exported folder.

    Arguments
    ---------
    folder : str or path
        The exported folder.
    name : str
        Name of the projection; an older one of this name is replaced.
    projection : Projection
        The projection, which is stored in float32.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> same = Projection(torch.eye(2), torch.zeros(2), 4, 2)
    >>> write_projection(folder, "same", same)
    >>> read_projection(folder, "same").contents
    2
    """
    plain = projection._asdict()
    tensors = {key: plain.pop(key) for key in ("weight", "bias")}
    write_head_file(
        head_file(Path(folder, PROJECTIONS_FOLDER), name), tensors, plain
    )


def read_projection(folder, name):
    """Read a projection of an exported folder.

    Arguments
    ---------
    folder : str or path
        The exported folder.
    name : str
        Name of the projection.

    Returns
    -------
    Projection

    Raises
    ------
    WeightsError
        If there is no such projection, or its file is damaged.

    Example
    -------
    >>> read_projection(getfixture("tmpdir"), "words")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: no projection 'words'; there are: none
    """
    path = head_file(Path(folder, PROJECTIONS_FOLDER), name)
    if not path.is_file():
        known = ", ".join(projection_names(folder)) or "none"
        raise WeightsError(f"no projection '{name}'; there are: {known}")
    tensors, plain = read_head_file(path)
    with damaged_head(path):
        projection = Projection(**tensors, **plain)
        if len(projection.weight) != len(projection.bias):
            raise ValueError("weight and bias differ in length")
    return projection


def projection_names(folder):
    """Return the names of the projections of an exported folder.

    Arguments
    ---------
    folder : str or path
        The exported folder.

    Returns
    -------
    list of str
        Sorted names; empty if there are none.

    Example
    -------
    >>> projection_names("nowhere")
    []
    """
    return head_file_names(Path(folder, PROJECTIONS_FOLDER))
