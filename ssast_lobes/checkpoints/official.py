"""Checkpoints in the format of SSAST's and SSAMBA's official code."""

import torch

from ssast_lobes.checkpoints.format import (
    Weights,
    WeightsError,
    compare,
    renamed,
)
from ssast_lobes.models.encoder import SpectrogramEncoder
from ssast_lobes.models.patches import Grid
from ssast_lobes.utils.presets import load_preset

HEAD_SIZE = 64

# A fine-tuned checkpoint does not contain its number of mel bins. All official
# recipes use this number.
FINETUNED_MELS = 128

# Official names (after "module.") and our names, one to one.
_RENAMED = {
    "v.norm.": "encoder.norm.",
    "v.blocks.": "encoder.blocks.",
    "v.patch_embed.proj.": "encoder.patch_embedding.",
    "cpredlayer.": "objective.discriminator.",
    "gpredlayer.": "objective.generator_head.",
    "mlp_head.0.": "head.norm.",
    "mlp_head.1.": "head.linear.",
}

# The same for SSAMBA; `_mamba_names` returns the names of its layers.
_RENAMED_MAMBA = {
    "v.norm_f.": "encoder.norm.",
    **{
        theirs: ours
        for theirs, ours in _RENAMED.items()
        if theirs not in ("v.norm.", "v.blocks.")
    },
}

# ImageNet heads of the backbones, which are never used.
_UNUSED = ("v.head.", "v.head_dist.")
_SIZES = ("p_input_fdim", "p_input_tdim")

# Parts that have either all of these layers or none.
_HEADS = {
    "objective.discriminator": ("0", "2"),
    "objective.generator_head": ("0", "2"),
    "head": ("norm", "linear"),
}


def from_official(state, stride=None):
    """Translate an official SSAST, SSAMBA or AST state dict.

    Arguments
    ---------
    state : dict of str to torch.Tensor
        The result of ``torch.load``.
    stride : tuple of int, optional
        Patch stride (mel bins, frames) of a fine-tuned checkpoint; see
        `load_weights`.

    Returns
    -------
    Weights

    Raises
    ------
    WeightsError
        If keys are missing, unknown, or of the wrong shape.

    Example
    -------
    >>> from_official({"module.conv1.weight": torch.zeros(1)})
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: not an SSAST layout, missing: [...]
    """
    state = {
        str(key).removeprefix("module."): value for key, value in state.items()
    }
    scans = any(key.startswith("v.layers.") for key in state)
    core = ["v.patch_embed.proj.weight", "v.pos_embed", "v.cls_token"]
    core += [] if scans else ["v.dist_token"]
    missing = [key for key in core if key not in state]
    if missing:
        layout = "SSAMBA" if scans else "SSAST"
        raise WeightsError(f"not an {layout} layout, missing: {missing}")
    dim, _, bins, frames = state["v.patch_embed.proj.weight"].shape
    sizes = _mamba_sizes if scans else _transformer_sizes
    encoder = {"dim": dim, **sizes(state, dim)}
    classes = 1 if scans else 2
    n_freq, n_time, grid, table_frames = _official_table(
        state, (bins, frames), stride, classes
    )
    encoder.update(grid=grid.config, table_frames=table_frames)
    names = {**_RENAMED_MAMBA, **_mamba_names(encoder)} if scans else _RENAMED
    ours, report = {}, []
    for key, value in state.items():
        if key.startswith(_UNUSED):
            report.append(f"left out (unused ImageNet head): {key}")
        elif key not in _SIZES:
            ours.update(
                _translate(key, value, (n_freq, n_time), names, classes)
            )
    found = [ours.pop(name) for name in ("cls", "dist") if name in ours]
    ours["encoder.class_tokens"] = torch.stack(found)
    weights = Weights(ours, {"encoder": encoder}, report)
    with torch.device("meta"):
        wanted = SpectrogramEncoder(**encoder).state_dict()
    compare(wanted, weights.part("encoder"), "encoder")
    for name, layers in _HEADS.items():
        head = weights.part(name)
        expected = {f"{x}.{y}" for x in layers for y in ("weight", "bias")}
        if head and set(head) != expected:
            raise WeightsError(f"'{name}' is incomplete: {sorted(head)}")
    return weights


def to_official(weights):
    """Return our weights in the official layout, with the ``module.`` prefix.

    Arguments
    ---------
    weights : Weights
        Weights of an encoder, with or without pretext heads or a classification
        head.

    Returns
    -------
    dict of str to torch.Tensor
        Tensors that load in the official code. Only its unused ImageNet heads
        are missing.

    Raises
    ------
    WeightsError
        If the official layout cannot represent a tensor, or the model could not
        be rebuilt from this layout.

    Example
    -------
    >>> encoder = SpectrogramEncoder(dim=64, depth=1, heads=1)
    >>> state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    >>> theirs = to_official(Weights(state, {"encoder": encoder.config}))
    >>> theirs["module.v.pos_embed"].shape
    torch.Size([1, 514, 64])
    """
    config = weights.config["encoder"]
    names = _official_names(config)
    _check_grid(weights)
    _check_head(weights.config)
    patch = config["grid"]["patch"]
    out = {}
    for key, value in weights.state.items():
        if key == "encoder.class_positions":
            table = weights.state["encoder.positions.table"].flatten(0, 1)
            out["v.pos_embed"] = torch.cat([value, table])[None]
        elif key == "encoder.class_tokens":
            out["v.cls_token"] = value[None, :1]
            if len(value) > 1:
                out["v.dist_token"] = value[None, 1:]
        elif key == "objective.mask_embedding":
            out["mask_embed"] = value[None, None]
        elif key == "encoder.patch_embedding.weight":
            out["v.patch_embed.proj.weight"] = value.reshape(-1, 1, *patch)
        elif key != "encoder.positions.table":
            name = renamed(key, names)
            if name is None:
                raise WeightsError(
                    f"no place in the official layout for: {key}"
                )
            out[name] = value
    if "mask_embed" in out:
        out["p_input_fdim"] = torch.tensor(config["grid"]["n_mels"])
        n_time = weights.state["encoder.positions.table"].shape[1]
        out["p_input_tdim"] = torch.tensor(n_time * patch[1])
    return {f"module.{key}": value.contiguous() for key, value in out.items()}


def _transformer_sizes(state, dim):
    """Return the encoder's arguments that an SSAST layout determines."""
    if dim % HEAD_SIZE:
        raise WeightsError(
            f"tokens of size {dim}, not a multiple of the official heads' "
            f"{HEAD_SIZE}"
        )
    hidden = state.get("v.blocks.0.mlp.fc1.weight")
    encoder = {
        "dim": dim,
        "depth": _count(state, "v.blocks."),
        "heads": dim // HEAD_SIZE,
        "mlp_ratio": 4 if hidden is None else hidden.shape[0] // dim,
    }
    _check_depth(encoder, "SSAST", "{}")
    return encoder


def _mamba_sizes(state, dim):
    """Return the encoder's arguments that an SSAMBA layout determines."""
    layers = _count(state, "v.layers.")
    if layers % 2:
        raise WeightsError(
            f"{layers} layers: the official SSAMBA code runs them in pairs"
        )
    encoder = {"dim": dim, "depth": layers // 2, "blocks": "mamba_reference"}
    _check_depth(encoder, "SSAMBA", "ssamba_{}_reference")
    return encoder


def _mamba_names(encoder):
    """Return our names of the layers of SSAMBA, by the official names."""
    names = {}
    for layer in range(2 * encoder["depth"]):
        half = "flipped" if layer % 2 else "straight"
        theirs = f"v.layers.{layer}."
        ours = f"encoder.blocks.{layer // 2}.{half}."
        names[f"{theirs}norm."] = f"{ours}norm."
        for part in ("in_proj", "out_proj"):
            names[f"{theirs}mixer.{part}."] = f"{ours}mixer.{part}."
        for end, way in (("", "ahead"), ("_b", "back")):
            mixer = f"{theirs}mixer."
            names[f"{mixer}A{end}_log"] = f"{ours}mixer.{way}.A_log"
            names[f"{mixer}D{end}"] = f"{ours}mixer.{way}.D"
            names[f"{mixer}conv1d{end}."] = f"{ours}mixer.{way}.conv."
            for part in ("x_proj", "dt_proj"):
                names[f"{mixer}{part}{end}."] = f"{ours}mixer.{way}.{part}."
    return names


def _check_depth(encoder, model, preset):
    """Raise if the last blocks of a published model size are missing."""
    for name in ("tiny", "small", "base"):
        size = load_preset("model", preset.format(name))
        if size["dim"] == encoder["dim"] and size["depth"] != encoder["depth"]:
            raise WeightsError(
                f"{encoder['depth']} blocks of size {encoder['dim']}: {model} "
                f"{name} has {size['depth']}"
            )


def _count(state, prefix):
    """Return the number of blocks: the highest number in a key, plus 1."""
    place = prefix.count(".")
    numbers = [
        int(key.split(".")[place]) for key in state if key.startswith(prefix)
    ]
    return 1 + max(numbers, default=-1)


def _official_table(state, patch, stride, classes):
    """Return rows, columns, grid and frames of a position table.

    The frames are the number of frames that the table spans.
    """
    tokens = state["v.pos_embed"].shape[1] - classes
    if all(name in state for name in _SIZES):
        n_mels, frames = (int(state[name]) for name in _SIZES)
        grid = Grid(n_mels, patch)
        # The official code drops a partial last patch.
        n_freq, n_time = grid.n_freq, frames // patch[1]
        if n_freq * n_time != tokens:
            raise WeightsError(
                f"position table holds {tokens} patches, {n_mels} mel bins x "
                f"{frames} frames make {n_freq} x {n_time}"
            )
        return n_freq, n_time, grid, n_time * patch[1]
    strides = [stride] if stride else [patch, (10, 10)]
    if patch[0] == FINETUNED_MELS and not stride:
        strides = [(FINETUNED_MELS, 1)]
    fits = []
    for candidate in strides:
        grid = Grid(FINETUNED_MELS, patch, candidate)
        if tokens % grid.n_freq == 0:
            fits.append(grid)
    if len(fits) != 1:
        hint = f"{stride} does not fit" if stride else f"such as {strides[-1]}"
        raise WeightsError(
            f"a fine-tuned checkpoint with {tokens} positions: give the stride "
            f"it was trained with, {hint}"
        )
    grid = fits[0]
    n_time = tokens // grid.n_freq
    frames = (n_time - 1) * grid.stride[1] + grid.patch[1]
    return grid.n_freq, n_time, grid, frames


def _translate(key, value, table_size, names, classes):
    """Return a tensor by our name; split the position table into two."""
    if key == "v.pos_embed":
        table = value[0, classes:].reshape(*table_size, -1)
        return {
            "encoder.class_positions": value[0, :classes].clone(),
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
    name = renamed(key, names)
    if name is None:
        raise WeightsError(f"unknown tensor: {key}")
    return {name: value}


def _check_grid(weights):
    """Raise if the grid could not be recovered from the official layout."""
    grid = Grid(**weights.config["encoder"]["grid"])
    rows = weights.state["encoder.positions.table"].shape[0]
    if rows != grid.n_freq:
        raise WeightsError(
            "the official layout needs a row of positions for each of the "
            f"{grid.n_freq} bands, the table has {rows}"
        )
    pretrained = "objective.mask_embedding" in weights.state
    if not pretrained and grid.n_mels != FINETUNED_MELS:
        raise WeightsError(
            f"the official fine-tuned layout has {FINETUNED_MELS} mel bins, "
            f"not {grid.n_mels}"
        )


def _check_head(config):
    """Raise if the official code would compute other scores with the head."""
    kind = config.get("kind")
    if kind == "detector":
        raise WeightsError(
            "a detector of events: the official code classifies clips only"
        )
    if kind != "classifier":
        return
    # Older exports lack these entries.
    used = config.get("pooling", {"pooling": "mean", "layers": "last"})
    pooling, layers = used["pooling"], used["layers"]
    if pooling not in ("mean", "class") or layers != "last":
        raise WeightsError(
            f"the classifier sees the '{pooling}' pooling of the '{layers}' "
            "layers, the official one the 'mean' or 'class' pooling of the last"
        )
    if config.get("head", {}).get("cosine_scale") is not None:
        raise WeightsError(
            "the head scores cosines (cosine_scale), and the official head "
            "is linear"
        )


def _official_names(config):
    """Return the mapping from our names to the official names of an encoder."""
    blocks = config.get("blocks", "attention")
    if blocks == "mamba":
        raise WeightsError(
            "blocks 'mamba' exist in this package only; 'mamba_reference' "
            "has an official layout"
        )
    if blocks == "mamba_reference":
        names = {**_RENAMED_MAMBA, **_mamba_names(config)}
    elif config["dim"] != HEAD_SIZE * config["heads"]:
        raise WeightsError(
            f"the official code takes {HEAD_SIZE} of the token size for each "
            f"head, this encoder has {config['heads']} heads for "
            f"{config['dim']}"
        )
    else:
        names = _RENAMED
    return {ours: theirs for theirs, ours in names.items()}
