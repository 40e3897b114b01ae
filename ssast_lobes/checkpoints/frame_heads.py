"""Event heads next to a frozen encoder.

An exported folder may contain a folder `frame_heads/` with one safetensors file
for each head. The file stores the tensors of a `FrameClassifier` and of the
weighting of layers. Its metadata contains the arguments of the classifier and
of the weighting, the labels, and the rules that turn scores into events.
`ssast_lobes.inference.EventDetector` reads these files.
"""

from pathlib import Path
from typing import NamedTuple

from ssast_lobes.checkpoints.format import FRAME_HEADS_FOLDER, WeightsError
from ssast_lobes.checkpoints.tensors import (
    head_file,
    head_file_names,
    read_head_file,
    write_head_file,
)


class FrameHead(NamedTuple):
    """A detector without its encoder.

    Arguments
    ---------
    state : dict of str to torch.Tensor
        Keys start with ``pooling.`` or ``head.``.
    config : dict
        ``pooling``, ``head``, ``labels`` and ``rules``, as in the
        ``config.json`` of a detector.
    """

    state: dict
    config: dict


def write_frame_head(folder, name, head):
    """Write a head to an exported folder; the file appears when complete.

    Arguments
    ---------
    folder : str or path
        The exported folder.
    name : str
        Name of the head; an older head of this name is replaced.
    head : FrameHead
        The head, which is stored in float32.

    Returns
    -------
    pathlib.Path
        The file.

    Example
    -------
    >>> import torch
    >>> folder = getfixture("tmpdir")
    >>> head = FrameHead({"head.x": torch.ones(2)}, {"labels": ["cat"]})
    >>> _ = write_frame_head(folder, "pets", head)
    >>> frame_head_names(folder), read_frame_head(folder, "pets").config
    (['pets'], {'labels': ['cat']})
    """
    path = head_file(Path(folder, FRAME_HEADS_FOLDER), name)
    write_head_file(path, head.state, head.config)
    return path


def read_frame_head(folder, name=None):
    """Read an event head.

    Arguments
    ---------
    folder : str or path
        The exported folder.
    name : str, optional
        Name of the head; needed if there are several.

    Returns
    -------
    FrameHead

    Raises
    ------
    WeightsError
        If there is no such head, if `name` is missing and there are several,
        or if the file is damaged.

    Example
    -------
    >>> read_frame_head(getfixture("tmpdir"), "pets")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: no head of events named 'pets'; there ...
    """
    names = frame_head_names(folder)
    if name is None and len(names) == 1:
        [name] = names
    if name not in names:
        asked = (
            "no head of events"
            if name is None
            else (f"no head of events named '{name}'")
        )
        raise WeightsError(f"{asked}; there are: {', '.join(names) or 'none'}")
    return FrameHead(
        *read_head_file(head_file(Path(folder, FRAME_HEADS_FOLDER), name))
    )


def frame_head_names(folder):
    """Return the names of the event heads in an exported folder.

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
    >>> frame_head_names(getfixture("tmpdir"))
    []
    """
    return head_file_names(Path(folder, FRAME_HEADS_FOLDER))
