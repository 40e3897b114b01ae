"""Masked and visible tokens of clips, and means over them.

The masks of a batch differ in their numbers of tokens. Tokens are gathered to
a given length that fits all clips, and surplus entries have no weight; nothing
is read back from the device.
"""

from typing import NamedTuple

import torch


class Split(NamedTuple):
    """A batch of tokens, split into masked and visible ones.

    Arguments
    ---------
    ids_masked : torch.Tensor
        Places of the masked tokens, int64 (B, K), then surplus ones.
    weight : torch.Tensor
        float32 (B, K), 1 at masked tokens and 0 at the surplus.
    keep : tuple of torch.Tensor
        Places of the visible tokens (B, V) and whether an entry counts, as
        the encoder takes them.
    visible : torch.Tensor
        Boolean (B, N).
    is_token : torch.Tensor
        Boolean (B, N), True at tokens that are audio.
    """

    ids_masked: torch.Tensor
    weight: torch.Tensor
    keep: tuple
    visible: torch.Tensor
    is_token: torch.Tensor


def split_tokens(mask, is_token, n_masked=None):
    """Split the tokens of clips into masked and visible ones.

    Arguments
    ---------
    mask : torch.Tensor
        Boolean (B, F', T'), True where masked.
    is_token : torch.Tensor
        Boolean (B, F' * T'), True at tokens that are audio.
    n_masked : int, optional
        Tokens that a masker masks in a clip without padding; then K is that
        number and V the rest. Both are all N for a mask of unknown origin.

    Returns
    -------
    Split

    Example
    -------
    >>> mask = torch.tensor([[[True, False, True, False]]])
    >>> split = split_tokens(mask, torch.ones(1, 4).bool(), n_masked=2)
    >>> split.ids_masked.tolist(), split.keep[0].tolist()
    ([[0, 2]], [[1, 3]])
    """
    max_masked = max_kept = is_token.shape[1]
    if n_masked is not None:
        max_masked, max_kept = n_masked, max_kept - n_masked
    masked = mask.flatten(1) & is_token
    return Split(
        *ids_masked(masked, max_masked),
        keep=ids_keep(masked, is_token, max_kept),
        visible=is_token & ~masked,
        is_token=is_token,
    )


def ids_masked(mask, max_masked):
    """Return the places of masked tokens, padded to one length for all clips.

    Arguments
    ---------
    mask : torch.Tensor
        Boolean (B, F', T').
    max_masked : int
        K, at least the number of masked tokens of any clip; given, so that
        nothing is read back from the device.

    Returns
    -------
    index : torch.Tensor
        int64 (B, K), masked tokens in order, then surplus ones.
    weight : torch.Tensor
        float32 (B, K), 1 at masked tokens and 0 at the surplus.

    Example
    -------
    >>> mask = torch.tensor([[[False, True, True, False]]])
    >>> ids_masked(mask, 3)
    (tensor([[1, 2, 0]]), tensor([[1., 1., 0.]]))
    """
    flat = mask.flatten(1).to(torch.uint8)
    index = flat.argsort(dim=1, descending=True, stable=True)
    index = index[:, : max(1, max_masked)]
    return index, flat.gather(1, index).float()


def ids_keep(mask, is_token, max_kept):
    """Return the places of the visible tokens, as the encoder takes them.

    Arguments
    ---------
    mask : torch.Tensor
        Boolean (B, F', T'), True where masked.
    is_token : torch.Tensor
        Boolean (B, F' * T'), True at tokens that are audio.
    max_kept : int
        V, at least the number of visible tokens of any clip.

    Returns
    -------
    index : torch.Tensor
        int64 (B, V), visible tokens in order, then surplus ones.
    is_token : torch.Tensor
        Boolean (B, V), False at the surplus.

    Example
    -------
    >>> mask = torch.tensor([[[False, True, False, False]]])
    >>> ids_keep(mask, torch.tensor([[True, True, True, False]]), 3)
    (tensor([[0, 2, 1]]), tensor([[ True,  True, False]]))
    """
    index, weight = ids_masked(is_token & ~mask.flatten(1), max_kept)
    return index, weight > 0


def gather_tokens(x, index):
    """Gather rows of each clip: (B, N, D) at (B, K) to (B, K, D)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def clip_mean(values, weight):
    """Return the mean within each clip, then over the clips that have any.

    Arguments
    ---------
    values : torch.Tensor
        (B, K).
    weight : torch.Tensor
        (B, K), 0 where an entry does not count.

    Returns
    -------
    torch.Tensor
        Scalar.

    Example
    -------
    >>> values = torch.tensor([[2.0, 9.0], [4.0, 8.0]])
    >>> clip_mean(values, torch.tensor([[1.0, 0.0], [1.0, 1.0]])).item()
    4.0
    """
    count = weight.sum(1)
    per_clip = (values * weight).sum(1) / count.clamp(min=1)
    return per_clip.sum() / (count > 0).sum().clamp(min=1)


@torch.no_grad()
def projection_std(x, weight):
    """Return how far the vectors of a batch differ: a sign of collapse.

    The standard deviation of each dimension over all vectors, each scaled to
    length sqrt(D), as a mean over the dimensions.

    Arguments
    ---------
    x : torch.Tensor
        (B, K, D).
    weight : torch.Tensor
        (B, K), 1 where a vector counts and 0 elsewhere.

    Returns
    -------
    torch.Tensor
        Scalar: near 1 where they point everywhere, 0 where all are the same.

    Example
    -------
    >>> x = torch.tensor([[[1.0, -1.0], [-1.0, 1.0], [7.0, 7.0]]])
    >>> projection_std(x, torch.tensor([[1.0, 1.0, 0.0]])).round(decimals=3)
    tensor(1.)
    """
    x = torch.nn.functional.normalize(x.float(), dim=2) * x.shape[2] ** 0.5
    weight = (weight / weight.sum().clamp(min=1))[:, :, None]
    mean = (x * weight).sum((0, 1))
    variance = ((x - mean).square() * weight).sum((0, 1))
    return variance.sqrt().mean()


def refuse_overlap(grid):
    """Raise where patches overlap.

    Arguments
    ---------
    grid : Grid
        Of the encoder to pretrain.

    Raises
    ------
    ValueError
        If the stride is not the patch size.
    """
    if grid.stride != grid.patch:
        raise ValueError(
            "a hidden patch must not show in its neighbors: pretrain "
            f"with stride {grid.patch}, not {grid.stride}"
        )
