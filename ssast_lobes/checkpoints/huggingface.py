"""Read folders of Hugging Face's audio spectrogram transformer.

`ASTModel` and `ASTForAudioClassification` of ``transformers`` are SSAST's
network with other names and two differences. First, every clip is padded or cut
to one length before the normalization, and the padding counts as audio. This is
the reference padding of `FrontEnd`. Second, a clip vector is the mean of the
two class tokens. No code here needs ``transformers``. This module reads the
folders and maps the names; `huggingface_export` writes the folders.
"""

from pathlib import Path

import torch

from ssast_lobes.checkpoints.format import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    Weights,
    WeightsError,
    compare,
    error_context,
    read_json,
    window_seconds,
)
from ssast_lobes.checkpoints.tensors import read_tensors
from ssast_lobes.models.encoder import N_CLASS_TOKENS, SpectrogramEncoder
from ssast_lobes.models.features import FrontEnd
from ssast_lobes.models.heads import ClassificationHead
from ssast_lobes.models.patches import Grid
from ssast_lobes.models.pooling import ClipPooling
from ssast_lobes.models.transformer import NORM_EPS

MODEL_TYPE = "audio-spectrogram-transformer"
PREPROCESSOR_FILE = "preprocessor_config.json"

# transformers wrote this file until 2023, before safetensors.
PICKLED_FILE = "pytorch_model.bin"

# If the weights are in several files, their index has this ending.
INDEX_ENDING = ".index.json"
HF_FILES = (CONFIG_FILE, WEIGHTS_FILE, PREPROCESSOR_FILE, CARD_FILE)

# Hugging Face uses one epsilon for all norms, 1e-12 in its released model. We
# write the epsilon of our encoder. The norm of our head uses 1e-5, as in the
# official code, so a score changes by a few millionths of its value.
_LARGEST_EPS = 1e-5
CLASSIFIER = "ASTForAudioClassification"
ENCODER = "ASTModel"

# Prefix of the encoder's names in a classifier.
PREFIX = "audio_spectrogram_transformer."
CLASS_TOKEN = "embeddings.cls_token"
DISTILLATION_TOKEN = "embeddings.distillation_token"
POSITIONS = "embeddings.position_embeddings"
_PROJECTION = "embeddings.patch_embeddings.projection"

# Our names and Hugging Face's names of the layers of an encoder and of a head.
_ENCODER_NAMES = {"patch_embedding": _PROJECTION, "norm": "layernorm"}
HEAD_NAMES = {"norm": "classifier.layernorm", "linear": "classifier.dense"}

# Names of the layers of a block. transformers 4 writes these names, and so does
# version 5 by default. Version 5 reads the names of both versions, but version
# 4 reads only its own, so we write these.
_BLOCK_NAMES_4 = {
    "attn.query": "attention.attention.query",
    "attn.key": "attention.attention.key",
    "attn.value": "attention.attention.value",
    "attn.proj": "attention.output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_BLOCK_NAMES_5 = {
    "attn.query": "attention.q_proj",
    "attn.key": "attention.k_proj",
    "attn.value": "attention.v_proj",
    "attn.proj": "attention.o_proj",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_BLOCKS_4 = "encoder.layer"
_BLOCKS_5 = "layers"
QKV = ("attn.query", "attn.key", "attn.value")
KINDS_OF_TENSOR = ("weight", "bias")


def from_huggingface(folder):
    """Read a folder that ``save_pretrained`` of ``transformers`` wrote.

    The key names may be those of transformers 4 or 5. The weights may be
    safetensors or ``pytorch_model.bin``, in one file or several. The folder
    must contain ``preprocessor_config.json``, which states the normalization
    and the length to which clips are padded.

    Arguments
    ---------
    folder : str or path
        Folder of an `ASTModel` or an `ASTForAudioClassification`.

    Returns
    -------
    Weights
        Weights with the configuration of an exported folder. The configuration
        states reference padding, pooling of the class tokens and, for a
        classifier, the labels.

    Raises
    ------
    WeightsError
        If files or tensors are missing, unexpected or misshapen, or our encoder
        does not support the configuration.

    Example
    -------
    >>> from_huggingface("nowhere")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: nowhere/config.json: missing or ...
    """
    folder = Path(folder).expanduser()
    config = read_json(folder / CONFIG_FILE)
    front = read_json(folder / PREPROCESSOR_FILE)
    with error_context(folder):
        try:
            ours = _our_config(config, front)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(
                f"{CONFIG_FILE} or {PREPROCESSOR_FILE} damaged ({error!r})"
            ) from error
    state = read_folder_tensors(folder)
    eps, report = config["layer_norm_eps"], []
    if eps != NORM_EPS:
        report.append(f"norms: epsilon {NORM_EPS}, not {eps}")
    with error_context(folder):
        return Weights(_our_state(state, ours), ours, report)


def read_folder_tensors(folder):
    """Return the tensors of a folder, from one file or several.

    Arguments
    ---------
    folder : pathlib.Path
        A folder that ``save_pretrained`` wrote.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    WeightsError
        If a file is missing or damaged.

    Example
    -------
    >>> read_folder_tensors(Path("nowhere"))
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: nowhere: model.safetensors missing, and ...
    """
    for name in (WEIGHTS_FILE, PICKLED_FILE):
        index = folder / f"{name}{INDEX_ENDING}"
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if index.is_file():
            parts = [read_tensors(folder / part) for part in _parts(index)]
            return {key: part[key] for part in parts for key in part}
    raise WeightsError(
        f"{folder}: {WEIGHTS_FILE} missing, and so is {PICKLED_FILE}"
    )


def _parts(index):
    """Return the names of the files in an index, without duplicates."""
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        inside = all(Path(name).name == name for name in names)
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: damaged ({error!r})") from error
    if not inside:
        raise WeightsError(f"{index}: names files outside of its folder")
    return names


def _our_config(config, front):
    """Translate the configuration of an AST folder to that of an export."""
    _check_supported(config, front)
    size, frames = config["patch_size"], config["max_length"]
    # Hugging Face's convolution drops a partial last patch.
    grid = Grid(
        config["num_mel_bins"],
        (size, size),
        (config["frequency_stride"], config["time_stride"]),
        keep_partial=False,
    )
    ratio = config["intermediate_size"] / config["hidden_size"]
    encoder = _on_meta(
        SpectrogramEncoder,
        grid=grid,
        dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_ratio=int(ratio) if ratio.is_integer() else ratio,
        table_frames=frames,
    )
    features = FrontEnd(
        {"mean": float(front["mean"]), "std": float(front["std"])},
        front["sampling_rate"],
        grid.n_mels,
        frames,
    )
    ours = {
        "kind": "pretrained",
        "encoder": encoder.config,
        "features": features.config,
        "pooling": ClipPooling(encoder.depth, "class").config,
    }
    ours["window_seconds"] = window_seconds(ours["encoder"], ours["features"])
    if CLASSIFIER in config["architectures"]:
        multi_label = config.get("problem_type") == "multi_label_classification"
        labels = _labels(config["id2label"])
        ours.update(kind="classifier", labels=labels, multi_label=multi_label)
        ours["head"] = {"projection": None}
    return ours


def _on_meta(module, *arguments, **named):
    """Build a module on the meta device, for the shapes of its tensors."""
    with torch.device("meta"):
        return module(*arguments, **named)


def _check_supported(config, front):
    """Raise if our encoder does not support Hugging Face's configuration."""
    if config["model_type"] != MODEL_TYPE:
        raise WeightsError(
            f"a model of type '{config['model_type']}', only '{MODEL_TYPE}' "
            "is read"
        )
    known = {ENCODER, CLASSIFIER}
    if len(known & set(config["architectures"])) != 1:
        raise WeightsError(
            f"architectures {config['architectures']}: expected {ENCODER} or "
            f"{CLASSIFIER}"
        )
    wanted = {"hidden_act": "gelu", "qkv_bias": True}
    for key, value in wanted.items():
        if config[key] != value:
            raise WeightsError(
                f"{key} is {config[key]!r}, our encoder has {value!r}"
            )
    if not 0 <= config["layer_norm_eps"] <= _LARGEST_EPS:
        raise WeightsError(
            f"layer_norm_eps is {config['layer_norm_eps']}, our encoder has "
            f"{NORM_EPS}"
        )
    if front["do_normalize"] is not True:
        raise WeightsError("do_normalize is off: our features are normalized")
    for key in ("max_length", "num_mel_bins"):
        if front[key] != config[key]:
            raise WeightsError(
                f"{key} is {config[key]} in {CONFIG_FILE}, but {front[key]} "
                f"in {PREPROCESSOR_FILE}"
            )


def _labels(id2label):
    """Return the labels in the order of the classes; raise for duplicates."""
    by_number = {int(key): str(label) for key, label in id2label.items()}
    labels = [by_number[number] for number in range(len(id2label))]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise WeightsError(f"labels must be unique, duplicates: {twice}")
    return labels


def _our_state(state, config):
    """Translate Hugging Face's tensors; raise if missing or unexpected."""
    encoder = config["encoder"]
    classifier = config["kind"] == "classifier"
    newer = any(f"{_BLOCKS_5}.0." in key for key in state)
    prefix = PREFIX if any(key.startswith(PREFIX) for key in state) else ""
    names = encoder_names(encoder["depth"], newer, prefix)
    heads = with_kinds(HEAD_NAMES) if classifier else {}
    extra = [prefix + key for key in (CLASS_TOKEN, DISTILLATION_TOKEN)]
    extra.append(prefix + POSITIONS)
    wanted = [*extra, *names.values(), *heads.values()]
    problems = [
        f"{word} {', '.join(keys)}"
        for word, keys in (
            ("missing", [key for key in wanted if key not in state]),
            ("unexpected", sorted(state.keys() - set(wanted))),
        )
        if keys
    ]
    if problems:
        raise WeightsError("; ".join(problems))
    state = {key: value.float() for key, value in state.items()}
    ours = {name: state[theirs] for name, theirs in names.items()}
    tokens, positions = [state[key] for key in extra[:-1]], state[extra[-1]]
    ours = _join(ours, tokens, positions, encoder)
    wanted = _on_meta(SpectrogramEncoder, **encoder).state_dict()
    compare(wanted, ours, "encoder")
    out = {f"encoder.{name}": value for name, value in ours.items()}
    if classifier:
        head = {name: state[theirs] for name, theirs in heads.items()}
        n_classes = len(config["labels"])
        wanted = _on_meta(ClassificationHead, encoder["dim"], n_classes)
        compare(wanted.state_dict(), head, "head")
        out.update({f"head.{name}": value for name, value in head.items()})
    return out


def encoder_names(depth, newer=False, prefix=""):
    """Return Hugging Face's names of an encoder's tensors, by our names.

    Arguments
    ---------
    depth : int
        Number of blocks.
    newer : bool
        Whether to return the names of transformers 5 instead of 4.
    prefix : str
        Prefix of Hugging Face's names.

    Returns
    -------
    dict of str to str
        The names, with queries, keys and values as separate tensors.

    Example
    -------
    >>> encoder_names(1)["blocks.0.attn.query.weight"]
    'encoder.layer.0.attention.attention.query.weight'
    """
    blocks = _BLOCKS_5 if newer else _BLOCKS_4
    layers = _BLOCK_NAMES_5 if newer else _BLOCK_NAMES_4
    names = dict(_ENCODER_NAMES)
    for number in range(depth):
        for ours, theirs in layers.items():
            names[f"blocks.{number}.{ours}"] = f"{blocks}.{number}.{theirs}"
    return with_kinds(names, prefix)


def with_kinds(names, prefix=""):
    """Return the names of the weights and biases of layers.

    Arguments
    ---------
    names : dict of str to str
        Hugging Face's names of the layers, by our names.
    prefix : str
        Prefix of Hugging Face's names.

    Returns
    -------
    dict of str to str

    Example
    -------
    >>> with_kinds({"norm": "layernorm"})
    {'norm.weight': 'layernorm.weight', 'norm.bias': 'layernorm.bias'}
    """
    return {
        f"{ours}.{kind}": f"{prefix}{theirs}.{kind}"
        for ours, theirs in names.items()
        for kind in KINDS_OF_TENSOR
    }


def _join(layers, tokens, positions, encoder):
    """Return the tensors of our encoder, joined from Hugging Face's."""
    out = dict(layers)
    for number in range(encoder["depth"]):
        for kind in KINDS_OF_TENSOR:
            parts = [out.pop(f"blocks.{number}.{name}.{kind}") for name in QKV]
            out[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
    dim, patch = encoder["dim"], encoder["grid"]["patch"]
    (n_freq, n_time), kernel = encoder["table"], out["patch_embedding.weight"]
    shapes = {
        CLASS_TOKEN: (tokens[0], (1, 1, dim)),
        DISTILLATION_TOKEN: (tokens[1], (1, 1, dim)),
        POSITIONS: (positions, (1, N_CLASS_TOKENS + n_freq * n_time, dim)),
        f"{_PROJECTION}.weight": (kernel, (dim, 1, *patch)),
    }
    for name, (value, shape) in shapes.items():
        if value.shape != shape:
            raise WeightsError(
                f"{name} is {tuple(value.shape)}, by the configuration it is "
                f"{shape}"
            )
    out["class_tokens"] = torch.cat(tokens)[:, 0]
    out["class_positions"] = positions[0, :N_CLASS_TOKENS].clone()
    table = positions[0, N_CLASS_TOKENS:].unflatten(0, (n_freq, n_time))
    out["positions.table"] = table.clone()
    out["patch_embedding.weight"] = kernel.flatten(1)
    return out
