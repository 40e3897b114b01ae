"""Weights: the official layouts in and out, exported folders in.

Loading is strict: whatever is missing, unexpected or of another shape is
listed and raised; what is left aside on purpose stands in the report.
"""

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
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
# The same of SSAMBA, whose layers have names of their own (`_mamba_names`).
_RENAMED_MAMBA = {
    "v.norm_f.": "encoder.norm.",
    **{
        theirs: ours
        for theirs, ours in _RENAMED.items()
        if theirs not in ("v.norm.", "v.blocks.")
    },
}
# ImageNet heads that the backbones bring along; they are never used.
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
        Folder written by a recipe or ``ssast-lobes convert``; folder of
        Hugging Face's AST (see `ssast_lobes.huggingface`); either of them as
        a repository on the hub, ``user/repo`` or ``user/repo@revision``; or
        a released SSAST, SSAMBA or AST checkpoint, pretrained or
        fine-tuned, with or without the ``module.`` prefix.
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
        from ssast_lobes.hub import fetch

        fetched = fetch(source)
        with naming(source):
            return _load_folder(fetched)
    state = read_tensors(path)
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
    try:
        if CONFIG_FILE not in missing:
            text = (path / CONFIG_FILE).read_text(encoding="utf-8")
            config = json.loads(text)
            if "model_type" in config:
                from ssast_lobes.huggingface import from_huggingface

                return from_huggingface(path)
        if missing:
            raise WeightsError(
                f"{path}: not an exported folder, {' and '.join(missing)} "
                "missing"
            )
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
        In float32, also those that are stored in half precision.

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
    with reading(path):
        state = load_file(path)
    surplus = [key for key in state if key.split(".")[0] not in PARTS]
    if surplus:
        raise WeightsError(f"{path}: unexpected {', '.join(surplus)}")
    return {
        key: value.float() if value.dtype == torch.float16 else value
        for key, value in state.items()
    }


def read_tensors(path):
    """Read named tensors that others have written; nothing is executed.

    Arguments
    ---------
    path : pathlib.Path
        A file of ``torch.save``, or a safetensors file by its ending.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or holds anything but named tensors.

    Example
    -------
    >>> read_tensors(Path("nowhere.bin"))
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: nowhere.bin: missing or damaged (...)
    """
    with reading(path):
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise WeightsError(f"{path}: holds a {kind}, not named tensors")
    others = [
        str(key)
        for key, value in state.items()
        if not isinstance(value, torch.Tensor)
    ]
    if others:
        raise WeightsError(
            f"{path}: not tensors: {', '.join(others)}; of a training "
            "checkpoint, save the state_dict() of the model alone"
        )
    return state


@contextmanager
def reading(path):
    """Raise a `WeightsError` that says why a file of weights does not load.

    Arguments
    ---------
    path : str or path
        The file that is read inside.

    Example
    -------
    >>> path = Path(getfixture("tmpdir")) / "model.pth"
    >>> _ = path.write_text("<!DOCTYPE html><title>Sign in</title>")
    >>> with reading(path):
    ...     torch.load(path, weights_only=True)
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: ...: a web page (HTML), not the ...
    """
    try:
        yield
    except Exception as error:
        reason = (
            _in_place_of_weights(path)
            or load_refusal(error)
            or f"missing or damaged ({error})"
        )
        # Not `from error`: a traceback would print torch's advice.
        raise WeightsError(f"{path}: {reason}") from None


def _in_place_of_weights(path):
    """What a download has left in place of a file; None if nothing known."""
    try:
        with open(path, "rb") as file:
            start = (
                file.read(200).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
            )
    except OSError:
        return None
    if start.startswith(b"version https://git-lfs"):
        return (
            "a Git LFS pointer, not the weights: fetch them with `git lfs "
            "pull`, or download the file itself"
        )
    if start.startswith((b"<!doctype html", b"<html")):
        return (
            "a web page (HTML), not the weights: download the file itself, "
            "of a hub from /resolve/ and not /blob/"
        )
    return None


def load_refusal(error):
    """Say what a safe load of tensors has refused, for the words of torch.

    Those tell how to load the file unsafely.

    Arguments
    ---------
    error : Exception
        Of ``torch.load``, perhaps.

    Returns
    -------
    str or None
        None if it is another error, which may be passed on.

    Example
    -------
    >>> load_refusal(EOFError("ran out of input"))
    """
    if "weights_only" not in str(error):
        return None
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return "damaged, or no file of plain tensors"
    return (
        f"holds a Python object ({found[1]}), which can run code and is never "
        "loaded: save the state_dict() of the model alone, or use safetensors"
    )


def from_official(state, stride=None):
    """Translate an official SSAST, SSAMBA or AST state dict.

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
    bands, steps, grid, table_frames = _official_table(
        state, (bins, frames), stride, classes
    )
    encoder.update(grid=grid.config, table_frames=table_frames)
    names = {**_RENAMED_MAMBA, **_mamba_names(encoder)} if scans else _RENAMED
    ours, report = {}, []
    for key, value in state.items():
        if key.startswith(_UNUSED):
            report.append(f"left aside (unused ImageNet head): {key}")
        elif key not in _SIZES:
            ours.update(_translate(key, value, (bands, steps), names, classes))
    config = {"encoder": encoder}
    weights = Weights(ours, config, report)
    _check_official(weights)
    return weights


def _transformer_sizes(state, dim):
    """Arguments of the encoder that an SSAST layout tells."""
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
    """Arguments of the encoder that an SSAMBA layout tells."""
    layers = _count(state, "v.layers.")
    if layers % 2:
        raise WeightsError(
            f"{layers} layers: the official SSAMBA code runs them in pairs"
        )
    encoder = {"dim": dim, "depth": layers // 2, "blocks": "mamba_reference"}
    _check_depth(encoder, "SSAMBA", "ssamba_{}_reference")
    return encoder


def _mamba_names(encoder):
    """Official names of the layers of SSAMBA, and ours; one to one."""
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
    """A paper's size that has lost its last blocks must not pass."""
    for name in ("tiny", "small", "base"):
        size = load_preset("model", preset.format(name))
        if size["dim"] == encoder["dim"] and size["depth"] != encoder["depth"]:
            raise WeightsError(
                f"{encoder['depth']} blocks of size {encoder['dim']}: {model} "
                f"{name} has {size['depth']}"
            )


def _count(state, prefix):
    """How many blocks there are, by the highest number."""
    place = prefix.count(".")
    numbers = [
        int(key.split(".")[place]) for key in state if key.startswith(prefix)
    ]
    return 1 + max(numbers, default=-1)


def _official_table(state, patch, stride, classes):
    """Rows and columns of the position table, the grid, its frames."""
    tokens = state["v.pos_embed"].shape[1] - classes
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


def _translate(key, value, table_size, names, classes):
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
    name = _renamed(key, names)
    if name is None:
        raise WeightsError(f"unknown tensor: {key}")
    return {name: value}


def _renamed(key, names):
    """A tensor's other name: of itself, or by that of its module."""
    for former, new in names.items():
        if key == former or (former[-1] == "." and key.startswith(former)):
            return new + key[len(former) :]
    return None


def _check_official(weights):
    """Join the class tokens and compare with what the model would have."""
    from ssast_lobes.encoder import SpectrogramEncoder

    state = weights.state
    found = [state.pop(name) for name in ("cls", "dist") if name in state]
    state["encoder.class_tokens"] = torch.stack(found)
    with torch.device("meta"):
        encoder = SpectrogramEncoder(**weights.config["encoder"])
    compare(encoder.state_dict(), weights.part("encoder"), "encoder")
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
        Loads in the official code, except that the unused ImageNet heads are
        not made up.

    Raises
    ------
    WeightsError
        If a part has no place in the official layout, or the layout would
        not tell how to build the model again.
    """
    config = weights.config["encoder"]
    names = _official_names(config)
    _check_grid(weights)
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
            name = _renamed(key, names)
            if name is None:
                raise WeightsError(
                    f"no place in the official layout for: {key}"
                )
            out[name] = value
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


def _official_names(config):
    """Our names and the official ones, for a kind of encoder."""
    blocks = config.get("blocks", "attention")
    if blocks == "mamba":
        raise WeightsError(
            "blocks 'mamba' are of this project: only 'mamba_reference' has "
            "an official layout"
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


def compare(wanted, state, name):
    """Raise unless a state dict has the keys and shapes of another.

    Arguments
    ---------
    wanted : dict of str to torch.Tensor
        The model's own; may be on the meta device.
    state : dict of str to torch.Tensor
        What was read.
    name : str
        What to call it in the error.

    Raises
    ------
    WeightsError
        Lists the missing, unexpected and misshapen tensors.

    Example
    -------
    >>> layer = nn.Linear(1, 1)
    >>> compare(layer.state_dict(), {"weight": torch.zeros(1, 1)}, "layer")
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: layer: missing bias
    """
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
    compare(module.state_dict(), state, name)
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
    blocks = weights.config["encoder"].get("blocks", "attention")
    if blocks != encoder.kind:
        raise WeightsError(
            f"the checkpoint has blocks '{blocks}', the model "
            f"'{encoder.kind}': choose the model size that goes with it"
        )
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


def exported_state(objective):
    """The tensors that an export of an objective holds, by its names.

    Arguments
    ---------
    objective : Objective
        Owns the encoder.

    Returns
    -------
    dict of str to torch.Tensor
        Keys start with ``encoder.`` or ``objective.``; the values are those
        of the module.
    """
    return {
        key if key.startswith("encoder.") else f"objective.{key}": value
        for key, value in objective.exported_state().items()
    }


def load_alike(sources):
    """Read exported pretrainings of the very same model, to take their mean.

    Arguments
    ---------
    sources : list of str or path
        See `load_weights`; at least two.

    Returns
    -------
    list of Weights

    Raises
    ------
    WeightsError
        If one is no exported pretraining; or if its encoder, its front end, or
        any tensor is of another kind than those of the first.

    Example
    -------
    >>> load_alike(["first"])
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: a mean needs two folders, there is one
    """
    if len(sources) < 2:
        raise WeightsError("a mean needs two folders, there is one")
    models = [load_weights(source) for source in sources]
    for source, weights in zip(sources, models, strict=True):
        if weights.config.get("kind") != "pretrained":
            raise WeightsError(f"{source}: no exported pretraining")
        for part in ("encoder", "features"):
            found, wanted = weights.config[part], models[0].config[part]
            differ = [
                f"{key} is {found.get(key)}, not {wanted.get(key)}"
                for key in sorted(found.keys() | wanted.keys())
                if found.get(key) != wanted.get(key)
            ]
            if differ:
                raise WeightsError(f"{source}: {part}: {'; '.join(differ)}")
        compare(
            models[0].state,
            weights.state,
            f"{source}: of another objective or size",
        )
    return models


def average(models):
    """Return the mean of the weights of models.

    For models that were trained on from the same one: a "model soup"
    (Wortsman et al., ICML 2022).

    Arguments
    ---------
    models : list of Weights
        From `load_alike`.

    Returns
    -------
    Weights
        As the first, which also gives what does not have a mean, such as
        counts.

    Example
    -------
    >>> first = Weights({"encoder.norm.bias": torch.ones(2)}, config={})
    >>> second = Weights({"encoder.norm.bias": torch.zeros(2)}, config={})
    >>> average([first, second]).state
    {'encoder.norm.bias': tensor([0.5000, 0.5000])}
    """
    first, *others = models
    state = dict(first.state)
    for key, own in first.state.items():
        if own.is_floating_point():
            values = [own, *(each.state[key].to(own) for each in others)]
            state[key] = torch.stack(values).mean(0)
    return Weights(state, first.config)


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
    grid = objective.encoder.grid
    if former.startswith("MSPM"):
        state = _resample_all(state, source, grid, report, "2")
    elif source.patch != grid.patch:
        report.append(f"left aside: what {former} had for other patches")
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
