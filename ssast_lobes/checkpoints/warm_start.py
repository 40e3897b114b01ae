"""Start a model from weights of another grid, stride or length."""

from torch import nn

from ssast_lobes.checkpoints.format import WeightsError, load_strictly
from ssast_lobes.models.beats import BEATsEncoder
from ssast_lobes.models.patches import Grid


def initialize(encoder, weights, objective=None):
    """Initialize an encoder, and its objective, from a checkpoint.

    The encoder must have the depth, token size, number of heads and `crop` of
    the checkpoint. The position table of the checkpoint replaces that of the
    encoder, even if their lengths differ. If the patch size differs, the patch
    projection and the pretext heads of MSPM are resampled.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder, which is loaded in place.
    weights : Weights
        The result of `load_weights`.
    objective : Objective, optional
        The objective that owns the encoder, to continue pretraining. If the
        checkpoint contains the same kind of objective, the tensors of that
        objective are loaded. Tensors that the checkpoint lacks keep their
        initial values. A teacher starts as a copy of the student.

    Returns
    -------
    list of str
        What was loaded, adapted or left out, one line each.

    Raises
    ------
    WeightsError
        If the checkpoint does not fit.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.checkpoints.format import Weights
    >>> former = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> state = {f"encoder.{k}": v for k, v in former.state_dict().items()}
    >>> weights = Weights(state, {"encoder": former.config})
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> initialize(encoder, weights)
    ['encoder loaded; its table has positions for 8 x 64 patches']
    """
    report = list(weights.report)
    blocks = weights.config["encoder"].get("blocks", "attention")
    if blocks != encoder.kind:
        raise WeightsError(
            f"the checkpoint has blocks '{blocks}', the model "
            f"'{encoder.kind}': choose the matching model size"
        )
    source = Grid(**weights.config["encoder"]["grid"])
    state = _resample_all(
        weights.part("encoder"), source, encoder.grid, report, "patch_embedding"
    )
    if blocks == BEATsEncoder.kind:
        load_strictly(encoder, state, "encoder")
        report.append("encoder loaded")
        if objective is not None:
            _initialize_objective(objective, weights, source, report)
        return report
    if "positions.table" not in state:
        raise WeightsError("encoder: missing positions.table")
    table = state["positions.table"]
    if table.shape[2] != encoder.dim:
        raise WeightsError(
            f"the checkpoint has tokens of size {table.shape[2]}, the model "
            f"{encoder.dim}: choose the same model size"
        )
    # The tensors do not reveal these settings.
    for name, usual in (("heads", None), ("crop", "center")):
        found = weights.config["encoder"].get(name, usual)
        own = encoder.config.get(name, usual)
        if found != own:
            raise WeightsError(
                f"the checkpoint has {name} {found}, the model {own}: build "
                "the model with the settings of the checkpoint"
            )
    former = encoder.positions.table
    encoder.positions.table = nn.Parameter(
        former.new_zeros(table.shape), former.requires_grad
    )
    encoder.table_frames = weights.config["encoder"]["table_frames"]
    load_strictly(encoder, state, "encoder")
    n_freq, n_time, _ = table.shape
    report.append(
        f"encoder loaded; its table has positions for {n_freq} x {n_time} "
        "patches"
    )
    if objective is not None:
        _initialize_objective(objective, weights, source, report)
    return report


def _initialize_objective(objective, weights, source, report):
    """Load the tensors of an objective, if the checkpoint has that kind."""
    objective.restart_teacher()
    state = weights.part("objective")
    if not state:
        return
    former = weights.config.get("objective", {}).get("name", "MSPM")
    name = type(objective).__name__
    # The reference variant has the same heads.
    if former.removesuffix("Reference") != name.removesuffix("Reference"):
        report.append(f"left out: what belongs to the objective {former}")
        return
    grid = objective.encoder.grid
    if former.startswith("MSPM"):
        state = _resample_all(state, source, grid, report, "2")
    elif source.patch != grid.patch:
        report.append(f"left out: what {former} had for other patches")
        return
    own = {
        key: value
        for key, value in objective.exported_state().items()
        if not key.startswith("encoder.")
    }
    absent = sorted(own.keys() - state.keys())
    surplus = sorted(state.keys() - own.keys())
    if absent:
        report.append(f"started anew: {', '.join(absent)}")
    if surplus:
        report.append(f"left out: {', '.join(surplus)}")
    for key in own.keys() & state.keys():
        if own[key].shape != state[key].shape:
            raise WeightsError(
                f"objective.{key} is {tuple(state[key].shape)}, the model "
                f"has {tuple(own[key].shape)}: give the objective {former} "
                "the sizes of the checkpoint, by a YAML of your own"
            )
        # `own` contains the module's own tensors: copy in place.
        own[key].copy_(state[key])
    objective.restart_teacher()
    report.append("pretext heads loaded")


def _resample_all(state, source, target, report, layer):
    """Resample a linear layer from or to patches, if the patch size differs.

    `layer` is the name of the layer. Patches are the input of the patch
    projection, or the output of a pretext head.
    """
    if source.patch == target.patch:
        return state
    out = dict(state)
    for key, value in state.items():
        if key.split(".")[-2:-1] != [layer]:
            continue
        if layer == "patch_embedding" and key.endswith("weight"):
            out[key] = resample_patches(value, source.patch, target.patch)
            # Scale, so that the sum over a patch keeps its size.
            out[key] *= source.patch_size / target.patch_size
        elif layer != "patch_embedding":
            rows = value.T if value.dim() == 2 else value
            moved = resample_patches(rows, source.patch, target.patch)
            out[key] = moved.T.contiguous() if value.dim() == 2 else moved
    report.append(
        f"{layer}: resampled from {source.patch} to {target.patch} "
        "(mel bins, frames)"
    )
    return out


def resample_patches(flat, old, new):
    """Resize flattened patches bilinearly, with antialiasing.

    Arguments
    ---------
    flat : torch.Tensor
        (.., old mel bins * old frames).
    old, new : tuple of int
        Patch sizes (mel bins, frames).

    Returns
    -------
    torch.Tensor
        (.., new mel bins * new frames).

    Example
    -------
    >>> import torch
    >>> resample_patches(torch.ones(3, 8), (4, 2), (6, 2)).shape
    torch.Size([3, 12])
    """
    images = flat.reshape(-1, 1, *old)
    resized = nn.functional.interpolate(
        images, size=new, mode="bilinear", antialias=True
    )
    return resized.reshape(*flat.shape[:-1], -1)
