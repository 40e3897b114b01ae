"""Group parameters by their learning rate and weight decay."""

import re

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
# Parameters before the first block.
_FIRST = (
    *("patch_embedding", "patch_norm", "projection", "positions"),
    *("convolution", "distance_bias", "class_tokens", "class_positions"),
    "first_norm",
)


def parameter_groups(
    module, head_lr_scale=1.0, layer_decay=1.0, decay_vectors=True
):
    """Group the trainable parameters by the scale of their learning rate.

    Arguments
    ---------
    module : torch.nn.Module
        A model with an ``encoder``. It may have a ``pooling`` and a ``head``.
    head_lr_scale : float
        Learning rate of pooling and head, divided by that of the encoder.
    layer_decay : float
        Learning rate of each encoder block, divided by that of the next block
        towards the head (Clark et al., ELECTRA, ICLR 2020, section 3). With 1,
        all blocks have the same rate.
    decay_vectors : bool
        Whether weight decay applies to biases, norms and Mamba's decay rates.

    Returns
    -------
    list of dict
        Groups for a torch optimizer, each with its ``lr_scale``, in ascending
        order of ``lr_scale``.

    Raises
    ------
    ValueError
        If nothing is trainable.

    Example
    -------
    >>> from ssast_lobes import SpectrogramClassifier, SpectrogramEncoder
    >>> encoder = SpectrogramEncoder(dim=32, depth=2, heads=2)
    >>> model = SpectrogramClassifier(encoder, n_classes=5)
    >>> groups = parameter_groups(model, head_lr_scale=10, layer_decay=0.5)
    >>> [group["lr_scale"] for group in groups]
    [0.125, 0.25, 0.5, 1.0, 10.0]
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("nothing to train: every parameter is frozen")
    blocks = [match for name, _ in named if (match := _BLOCK.search(name))]
    depth = 1 + max((int(match[1]) for match in blocks), default=-1)
    groups = {}
    for name, parameter in named:
        scale = _scale(name, depth, head_lr_scale, layer_decay)
        # Mamba's decay rates count as vectors, one for each state.
        vector = parameter.dim() < 2 or name.endswith("A_log")
        kept = vector and not decay_vectors
        group = groups.setdefault(
            (scale, kept), {"params": [], "lr_scale": scale}
        )
        if kept:
            group.update(weight_decay=0.0, decays=False)
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _scale(name, depth, head_lr_scale, layer_decay):
    block = _BLOCK.search(name)
    if block:
        return layer_decay ** (depth - int(block[1]))
    if any(part in name.split(".") for part in _FIRST):
        return layer_decay ** (depth + 1)
    if name.startswith(("pooling.", "head.")):
        return float(head_lr_scale)
    return 1.0
