"""Linear heads next to a frozen encoder.

An exported folder may contain a folder `heads/` with one safetensors file for
each task. The file stores a linear layer from clip vectors to class scores. Its
metadata states the labels, the pooling and the duration of the longest clip.
`ssast-lobes heads` writes these files, and
`ssast_lobes.inference.AudioClassifier` reads them.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from ssast_lobes.checkpoints.format import HEADS_FOLDER, WeightsError
from ssast_lobes.checkpoints.tensors import (
    damaged_head,
    head_file,
    head_file_names,
    read_head_file,
    write_head_file,
)


class LinearHead(NamedTuple):
    """A linear classifier of clip vectors.

    Arguments
    ---------
    weight : torch.Tensor
        (C, D): class scores (logits) are ``x @ weight.T + bias``.
    bias : torch.Tensor
        (C,).
    labels : list of str
        Label of each class.
    pooling, layers : str
        How clips become vectors; see `ssast_lobes.models.pooling.ClipPooling`.
        With ``"weighted"``, all layers have equal weights.
    seconds : float or None
        Duration of the longest clip that the head was fitted or evaluated on;
        None if unknown.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    labels: list
    pooling: str = "mean"
    layers: str = "last"
    seconds: float = None


def write_head(folder, task, head):
    """Write a head to an exported folder; the file appears when complete.

    Arguments
    ---------
    folder : str or path
        The exported folder.
    task : str
        Name of the head; an older head of this name is replaced.
    head : LinearHead
        The head, which is stored in float32.

    Returns
    -------
    pathlib.Path
        The file.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> head = LinearHead(torch.ones(2, 3), torch.zeros(2), ["cat", "dog"])
    >>> write_head(folder, "pets", head).name, head_names(folder)
    ('pets.safetensors', ['pets'])
    >>> read_head(folder, "pets").labels
    ['cat', 'dog']
    """
    path = head_file(Path(folder, HEADS_FOLDER), task)
    tensors = {"weight": head.weight, "bias": head.bias}
    plain = {
        key: value
        for key, value in head._asdict().items()
        if key not in tensors
    }
    write_head_file(path, tensors, plain)
    return path


def read_head(folder, task):
    """Read the head of a task.

    Arguments
    ---------
    folder : str or path
        The exported folder.
    task : str
        Name of the head.

    Returns
    -------
    LinearHead

    Raises
    ------
    WeightsError
        If there is no such head, or its file is damaged.

    Example
    -------
    >>> read_head(getfixture("tmpdir"), "pets")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: no head for the task 'pets'; there ...
    """
    names = head_names(folder)
    if task not in names:
        raise WeightsError(
            f"no head for the task '{task}'; there are: "
            f"{', '.join(names) or 'none (`ssast-lobes heads` trains them)'}"
        )
    path = head_file(Path(folder, HEADS_FOLDER), task)
    tensors, plain = read_head_file(path)
    with damaged_head(path):
        head = LinearHead(**tensors, **plain)
        if len({len(head.weight), len(head.bias), len(head.labels)}) > 1:
            raise ValueError("weight, bias and labels differ in length")
        if head.seconds is not None and not head.seconds > 0:
            raise ValueError(f"clips of {head.seconds} s")
    return head


def head_names(folder):
    """Return the tasks for which an exported folder has heads.

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
    >>> head_names(getfixture("tmpdir"))
    []
    """
    return head_file_names(Path(folder, HEADS_FOLDER))
