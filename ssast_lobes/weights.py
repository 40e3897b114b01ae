"""Weights: the official SSAST layout in and out, exported folders in.

Loading is strict: whatever is missing, unexpected or of another shape is
listed and raised; what is left aside on purpose stands in the report.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ssast_lobes.patches import Grid
from ssast_lobes.presets import load_preset

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = 1
PARTS = ("encoder", "objective", "pooling", "head")
HEAD_SIZE = 64
# A fine-tuned checkpoint does not tell: every official recipe has these.
FINETUNED_MELS = 128

# Official names (after "module.") and ours; one to one.
_RENAMED = {
    "v.norm.": "encoder.norm.",
    "v.blocks.": "encoder.blocks.",
    "v.patch_embed.proj.": "encoder.patch_embedding.",
    "cpredlayer.": "objective.discriminator.",
    "gpredlayer.": "objective.generator_head.",
    "mlp_head.0.": "head.norm.",
    "mlp_head.1.": "head.linear.",
}
# ImageNet heads that DeiT brings along; SSAST never uses them.
_UNUSED = ("v.head.", "v.head_dist.")
_SIZES = ("p_input_fdim", "p_input_tdim")
# Parts that are whole or not there, and their layers.
_HEADS = {
    "objective.discriminator": ("0", "2"),
    "objective.generator_head": ("0", "2"),
    "head": ("norm", "linear"),
}


class WeightsError(RuntimeError):
    """A checkpoint does not fit; the message says which tensors and why."""


@dataclass
class Weights:
    """A checkpoint of any origin, in our names.

    Arguments
    ---------
    state : dict of str to torch.Tensor
        Keys start with ``encoder.``, ``objective.``, ``pooling.`` or
        ``head.``.
    config : dict
        ``encoder``: arguments of `SpectrogramEncoder`; further entries as an
        exported folder has them.
    report : list of str
        What was left aside or adapted, a line each.
    """

    state: dict
    config: dict
    report: list = field(default_factory=list)

    def part(self, prefix):
        """The tensors of one part, without the prefix.

        Arguments
        ---------
        prefix : str
            ``"encoder"``, ``"objective"``, ``"pooling"`` or ``"head"``.

        Returns
        -------
        dict of str to torch.Tensor
        """
        start = prefix + "."
        return {
            key[len(start) :]: value
            for key, value in self.state.items()
            if key.startswith(start)
        }


def load_weights(source, stride=None):
    """Read a checkpoint: an exported folder or an official ``.pth`` file.

    Arguments
    ---------
    source : str or path
        Folder written by a recipe or ``ssast-lobes convert``, or a released
        SSAST or AST checkpoint, pretrained or fine-tuned, with or without
        the ``module.`` prefix.
    stride : tuple of int, optional
        Patch stride (mel bins, frames) of a fine-tuned checkpoint, which does
        not tell it; needed only where two strides would fit.

    Returns
    -------
    Weights

    Raises
    ------
    WeightsError
        If the source is not there, not readable, or not of a known layout.

    Example
    -------
    >>> load_weights("nowhere")
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: nowhere: no such file or folder
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise WeightsError(f"{source}: no such file or folder")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path}: not a checkpoint that loads as plain tensors ({error})"
        ) from error
    with naming(path):
        return from_official(state, stride)


@contextmanager
def naming(source):
    """Put the name of a file in front of every `WeightsError`.

    Arguments
    ---------
    source : str or path
        The name.

    Example
    -------
    >>> with naming("model.pth"):
    ...     raise WeightsError("missing bias")
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: model.pth: missing bias
    """
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error


def _load_folder(path):
    missing = [
        name
        for name in (CONFIG_FILE, WEIGHTS_FILE)
        if not (path / name).is_file()
    ]
    if missing:
        raise WeightsError(
            f"{path}: not an exported folder, {' and '.join(missing)} missing"
        )
    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        version = config["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path / CONFIG_FILE}: damaged ({error!r})"
        ) from error
    if version != FORMAT_VERSION:
        raise WeightsError(
            f"{path}: format version {version}, this ssast_lobes reads "
            f"{FORMAT_VERSION}; use the version that wrote it or export again"
        )
    return Weights(read_state(path / WEIGHTS_FILE), config)


def read_state(path):
    """Read the tensors of an export.

    Arguments
    ---------
    path : str or path
        A safetensors file.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or holds tensors of no known part.

    Example
    -------
    >>> read_state("nowhere")
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: nowhere: missing or damaged (...)
    """
    try:
        state = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{path}: missing or damaged ({error})") from error
    surplus = [key for key in state if key.split(".")[0] not in PARTS]
    if surplus:
        raise WeightsError(f"{path}: unexpected {', '.join(surplus)}")
    return state


def from_official(state, stride=None):
    """Translate an official SSAST or AST state dict.

    Arguments
    ---------
    state : dict of str to torch.Tensor
        As ``torch.load`` gives it.
    stride : tuple of int, optional
        See `load_weights`.

    Returns
    -------
    Weights

    Raises
    ------
    WeightsError
        If keys are missing, unknown, or of the wrong shape.
    """
    if not isinstance(state, dict):
        raise WeightsError(f"holds a {type(state).__name__}, not named tensors")
    state = {
        str(key).removeprefix("module."): value for key, value in state.items()
    }
    core = ["v.patch_embed.proj.weight", "v.pos_embed", "v.cls_token"]
    core += ["v.dist_token"]
    missing = [key for key in core if key not in state]
    if missing:
        raise WeightsError(f"not an SSAST layout, missing: {missing}")
    dim, _, bins, frames = state["v.patch_embed.proj.weight"].shape
    if dim % HEAD_SIZE:
        raise WeightsError(
            f"tokens of size {dim}, not a multiple of the official heads' "
            f"{HEAD_SIZE}"
        )
    encoder = {
        "dim": dim,
        "depth": 1 + max(_block_numbers(state), default=-1),
        "heads": dim // HEAD_SIZE,
        "mlp_ratio": state["v.blocks.0.mlp.fc1.weight"].shape[0] // dim
        if "v.blocks.0.mlp.fc1.weight" in state
        else 4,
    }
    _check_depth(encoder)
    bands, steps, grid, table_frames = _official_table(
        state, (bins, frames), stride
    )
    encoder.update(grid=grid.config, table_frames=table_frames)
    ours, report = {}, []
    for key, value in state.items():
        if key.startswith(_UNUSED):
            report.append(f"left aside (unused ImageNet head): {key}")
        elif key not in _SIZES:
            ours.update(_translate(key, value, bands, steps))
    config = {"encoder": encoder}
    weights = Weights(ours, config, report)
    _check_official(weights)
    return weights


def _check_depth(encoder):
    """A paper's size that has lost its last blocks must not pass."""
    for name in ("tiny", "small", "base"):
        size = load_preset("model", name)
        if size["dim"] == encoder["dim"] and size["depth"] != encoder["depth"]:
            raise WeightsError(
                f"{encoder['depth']} blocks of size {encoder['dim']}: SSAST "
                f"{name} has {size['depth']}"
            )


def _block_numbers(state):
    return [
        int(key.split(".")[2]) for key in state if key.startswith("v.blocks.")
    ]


def _official_table(state, patch, stride):
    """Rows and columns of the position table, the grid, its frames."""
    tokens = state["v.pos_embed"].shape[1] - 2
    if all(name in state for name in _SIZES):
        n_mels, frames = (int(state[name]) for name in _SIZES)
        grid = Grid(n_mels, patch)
        # The official code drops a partial last patch.
        bands, steps = grid.n_bands, frames // patch[1]
        if bands * steps != tokens:
            raise WeightsError(
                f"position table holds {tokens} patches, {n_mels} mel bins x "
                f"{frames} frames make {bands} x {steps}"
            )
        return bands, steps, grid, steps * patch[1]
    strides = [stride] if stride else [patch, (10, 10)]
    if patch[0] == FINETUNED_MELS and not stride:
        strides = [(FINETUNED_MELS, 1)]
    fits = []
    for candidate in strides:
        grid = Grid(FINETUNED_MELS, patch, candidate)
        if tokens % grid.n_bands == 0:
            fits.append(grid)
    if len(fits) != 1:
        raise WeightsError(
            f"a fine-tuned checkpoint with {tokens} positions: give the stride "
            f"it was trained with, such as {strides[-1]}"
        )
    grid = fits[0]
    steps = tokens // grid.n_bands
    frames = (steps - 1) * grid.stride[1] + grid.patch[1]
    return grid.n_bands, steps, grid, frames


def _translate(key, value, bands, steps):
    if key == "v.pos_embed":
        table = value[0, 2:].reshape(bands, steps, -1)
        return {
            "encoder.class_positions": value[0, :2].clone(),
            "encoder.positions.table": table.clone(),
        }
    if key == "v.cls_token":
        return {"cls": value[0, 0]}
    if key == "v.dist_token":
        return {"dist": value[0, 0]}
    if key == "mask_embed":
        return {"objective.mask_embedding": value[0, 0]}
    if key == "v.patch_embed.proj.weight":
        return {"encoder.patch_embedding.weight": value.flatten(1)}
    for theirs, ours in _RENAMED.items():
        if key.startswith(theirs):
            return {ours + key[len(theirs) :]: value}
    raise WeightsError(f"unknown tensor: {key}")


def _check_official(weights):
    """Join the class tokens and compare with what the model would have."""
    from ssast_lobes.encoder import SpectrogramEncoder

    state = weights.state
    pair = [state.pop("cls"), state.pop("dist")]
    state["encoder.class_tokens"] = torch.stack(pair)
    with torch.device("meta"):
        encoder = SpectrogramEncoder(**weights.config["encoder"])
    compare(encoder, weights.part("encoder"), "encoder")
    for name, layers in _HEADS.items():
        head = weights.part(name)
        expected = {f"{x}.{y}" for x in layers for y in ("weight", "bias")}
        if head and set(head) != expected:
            raise WeightsError(f"'{name}' is not whole: {sorted(head)}")


def to_official(weights):
    """Write our weights in the official layout, ``module.`` prefix included.

    Arguments
    ---------
    weights : Weights
        With an encoder, and pretext heads or a classification head.

    Returns
    -------
    dict of str to torch.Tensor
        Loads in the official code, except that the two unused ImageNet heads
        are not made up.

    Raises
    ------
    WeightsError
        If a part has no place in the official layout, or the layout would
        not tell how to build the model again.
    """
    config = weights.config["encoder"]
    if config["dim"] != HEAD_SIZE * config["heads"]:
        raise WeightsError(
            f"the official code takes {HEAD_SIZE} of the token size for each "
            f"head, this encoder has {config['heads']} heads for "
            f"{config['dim']}"
        )
    _check_grid(weights)
    patch = config["grid"]["patch"]
    out = {}
    for key, value in weights.state.items():
        if key == "encoder.class_positions":
            table = weights.state["encoder.positions.table"].flatten(0, 1)
            out["v.pos_embed"] = torch.cat([value, table])[None]
        elif key == "encoder.class_tokens":
            out["v.cls_token"] = value[None, :1]
            out["v.dist_token"] = value[None, 1:]
        elif key == "objective.mask_embedding":
            out["mask_embed"] = value[None, None]
        elif key == "encoder.patch_embedding.weight":
            out["v.patch_embed.proj.weight"] = value.reshape(-1, 1, *patch)
        elif key != "encoder.positions.table":
            out[_official_name(key)] = value
    if "mask_embed" in out:
        out["p_input_fdim"] = torch.tensor(config["grid"]["n_mels"])
        steps = weights.state["encoder.positions.table"].shape[1]
        out["p_input_tdim"] = torch.tensor(steps * patch[1])
    return {f"module.{key}": value.contiguous() for key, value in out.items()}


def _check_grid(weights):
    """Refuse a grid that would come back as another."""
    grid = Grid(**weights.config["encoder"]["grid"])
    rows = weights.state["encoder.positions.table"].shape[0]
    if rows != grid.n_bands:
        raise WeightsError(
            f"the official layout wants a row of positions for each of the "
            f"{grid.n_bands} bands, the table has {rows}"
        )
    pretrained = "objective.mask_embedding" in weights.state
    if not pretrained and grid.n_mels != FINETUNED_MELS:
        raise WeightsError(
            f"the official fine-tuned layout has {FINETUNED_MELS} mel bins, "
            f"not {grid.n_mels}"
        )


def _official_name(key):
    for theirs, ours in _RENAMED.items():
        if key.startswith(ours):
            return theirs + key[len(ours) :]
    raise WeightsError(f"no place in the official layout for: {key}")


def compare(module, state, name):
    """Raise unless a state dict fits a module exactly.

    Arguments
    ---------
    module : torch.nn.Module
        What the tensors are for; may be on the meta device.
    state : dict of str to torch.Tensor
        The tensors.
    name : str
        What to call it in the error.

    Raises
    ------
    WeightsError
        Lists the missing, unexpected and misshapen tensors.

    Example
    -------
    >>> compare(nn.Linear(1, 1), {"weight": torch.zeros(1, 1)}, "layer")
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: layer: missing bias
    """
    wanted = module.state_dict()
    problems = []
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    if missing:
        problems.append("missing " + ", ".join(missing))
    if unexpected:
        problems.append("unexpected " + ", ".join(unexpected))
    for key in wanted.keys() & state.keys():
        if wanted[key].shape != state[key].shape:
            problems.append(
                f"{key} is {tuple(state[key].shape)}, the model has "
                f"{tuple(wanted[key].shape)}"
            )
    if problems:
        raise WeightsError(f"{name}: " + "; ".join(problems))


def load_strictly(module, state, name):
    """Load a state dict that must fit exactly; see `compare`."""
    compare(module, state, name)
    module.load_state_dict(state)


def initialise(encoder, weights, objective=None):
    """Start an encoder, and its objective, from a checkpoint.

    Depth and width must agree. The position table is taken over with the
    checkpoint's own length. Where the number of mel bins or the patch size
    differs, the patch projection is resampled, and so are pretext heads.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        Loaded in place.
    weights : Weights
        From `load_weights`.
    objective : Objective, optional
        The objective that owns the encoder, to continue pretraining; its
        own tensors are loaded where the checkpoint has them, and comes from
        the same kind of objective. A teacher starts as the student.

    Returns
    -------
    list of str
        What was loaded, adapted or left aside, a line each.

    Raises
    ------
    WeightsError
        If the checkpoint does not fit.
    """
    report = list(weights.report)
    source = Grid(**weights.config["encoder"]["grid"])
    state = _resample_all(
        weights.part("encoder"), source, encoder.grid, report, "patch_embedding"
    )
    if "positions.table" not in state:
        raise WeightsError("encoder: missing positions.table")
    table = state["positions.table"]
    if table.shape[2] != encoder.dim:
        raise WeightsError(
            f"the checkpoint has tokens of size {table.shape[2]}, the model "
            f"{encoder.dim}: choose the same model size"
        )
    former = encoder.positions.table
    encoder.positions.table = nn.Parameter(
        former.new_zeros(table.shape), former.requires_grad
    )
    encoder.table_frames = weights.config["encoder"]["table_frames"]
    load_strictly(encoder, state, "encoder")
    bands, steps, _ = table.shape
    report.append(
        f"encoder loaded, positions for {bands} x {steps} patches, used for "
        f"{encoder.grid.n_bands} bands"
    )
    if objective is not None:
        _initialise_objective(objective, weights, source, report)
    return report


def _initialise_objective(objective, weights, source, report):
    """Load what the checkpoint has of the same objective."""
    objective.restart_teacher()
    state = weights.part("objective")
    if not state:
        return
    former = weights.config.get("objective", {}).get("name", "MSPM")
    name = type(objective).__name__
    # The reference variant has the same heads.
    if former.removesuffix("Reference") != name.removesuffix("Reference"):
        report.append(f"left aside: what belongs to the objective {former}")
        return
    state = _resample_all(state, source, objective.encoder.grid, report, "2")
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
        report.append(f"left aside: {', '.join(surplus)}")
    for key in own.keys() & state.keys():
        if own[key].shape != state[key].shape:
            raise WeightsError(
                f"objective.{key} is {tuple(state[key].shape)}, the model "
                f"has {tuple(own[key].shape)}"
            )
        # The values of a state dict are those of the module.
        own[key].copy_(state[key])
    objective.restart_teacher()
    report.append("pretext heads loaded")


def _resample_all(state, source, target, report, layer):
    """Resample the tensors that hold patches when the patch size changed.

    `layer` names the linear layer whose patch axis is meant: the inputs of
    the patch projection, or the outputs of a pretext head.
    """
    if source.patch == target.patch:
        return state
    out = dict(state)
    for key, value in state.items():
        if key.split(".")[-2:-1] != [layer]:
            continue
        if layer == "patch_embedding" and key.endswith("weight"):
            out[key] = resample_patches(value, source.patch, target.patch)
            # The sum over a patch keeps its size.
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
    """Resize flattened patches bilinearly, no value left out.

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
    >>> resample_patches(torch.ones(3, 8), (4, 2), (6, 2)).shape
    torch.Size([3, 12])
    """
    images = flat.reshape(-1, 1, *old)
    resized = nn.functional.interpolate(
        images, size=new, mode="bilinear", antialias=True
    )
    return resized.reshape(*flat.shape[:-1], -1)
