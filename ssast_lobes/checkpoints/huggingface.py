"""Folders of Hugging Face's audio spectrogram transformer, in and out.

`ASTModel` and `ASTForAudioClassification` of ``transformers`` are the same
network under other names, with two habits of their own: every clip is padded
or cut to one length before the normalization, and the padding counts as audio
(`FrontEnd` calls it reference padding); and a clip is the mean of the two
class tokens. Folders are read and written here without ``transformers``.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ssast_lobes.checkpoints.format import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    Weights,
    WeightsError,
    compare,
    error_context,
    window_seconds,
)
from ssast_lobes.checkpoints.model_card import PIPELINE_TAGS, front_matter
from ssast_lobes.checkpoints.tensors import read_tensors
from ssast_lobes.models.encoder import N_CLASS_TOKENS, SpectrogramEncoder
from ssast_lobes.models.features import FrontEnd
from ssast_lobes.models.heads import ClassificationHead
from ssast_lobes.models.patches import Grid, PositionTable
from ssast_lobes.models.pooling import ClipPooling
from ssast_lobes.models.transformer import NORM_EPS
from ssast_lobes.utils.files import atomic_replace_dir, resolved, write_json

MODEL_TYPE = "audio-spectrogram-transformer"
PREPROCESSOR_FILE = "preprocessor_config.json"

# Until 2023, before safetensors, transformers wrote this file.
PICKLED_FILE = "pytorch_model.bin"

# Follows the name of the weights where several files hold them.
INDEX_ENDING = ".index.json"
HF_FILES = (CONFIG_FILE, WEIGHTS_FILE, PREPROCESSOR_FILE, CARD_FILE)

# Hugging Face has one epsilon for all norms: 1e-12 in its released model, the
# encoder's in what we write. Our head has 1e-5, as in the official code, which
# changes a score by some millionths of it.
_LARGEST_EPS = 1e-5
_CLASSIFIER = "ASTForAudioClassification"
_ENCODER = "ASTModel"

# Stands in front of the encoder's names in a classifier.
_PREFIX = "audio_spectrogram_transformer."
_CLASS_TOKEN = "embeddings.cls_token"
_DISTILLATION_TOKEN = "embeddings.distillation_token"
_POSITIONS = "embeddings.position_embeddings"
_PROJECTION = "embeddings.patch_embeddings.projection"

# Layers of an encoder, of a block and of a head: our names and theirs.
_ENCODER_NAMES = {"patch_embedding": _PROJECTION, "norm": "layernorm"}
_HEAD_NAMES = {"norm": "classifier.layernorm", "linear": "classifier.dense"}

# transformers 4 wrote these, and 5 still does unless told not to; it reads
# both, 4 only its own. So these are the names we write.
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
_QKV = ("attn.query", "attn.key", "attn.value")
_KINDS_OF_TENSOR = ("weight", "bias")


def from_huggingface(folder):
    """Read a folder that ``save_pretrained`` of ``transformers`` has written.

    Key names of transformers 4 and 5 are understood, and weights as safetensors
    or as ``pytorch_model.bin``, in one file or several. The folder needs its
    ``preprocessor_config.json`` too, which tells normalization and length.

    Arguments
    ---------
    folder : str or path
        Holds an `ASTModel` or an `ASTForAudioClassification`.

    Returns
    -------
    Weights
        With the configuration of an exported folder: reference padding, and
        of a classifier pooling by class tokens, and its labels.

    Raises
    ------
    WeightsError
        If files or tensors are missing, unexpected or of another shape, or
        the configuration asks for what our encoder does not have.

    Example
    -------
    >>> from_huggingface("nowhere")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: nowhere/config.json: missing or ...
    """
    folder = Path(folder).expanduser()
    config = _read_json(folder / CONFIG_FILE)
    front = _read_json(folder / PREPROCESSOR_FILE)
    with error_context(folder):
        try:
            ours = _our_config(config, front)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(
                f"{CONFIG_FILE} or {PREPROCESSOR_FILE} damaged ({error!r})"
            ) from error
    state = _read_state(folder)
    eps, report = config["layer_norm_eps"], []
    if eps != NORM_EPS:
        report.append(f"norms: epsilon {NORM_EPS}, not {eps}")
    with error_context(folder):
        return Weights(_our_state(state, ours), ours, report)


def _read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: missing or damaged ({error})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: damaged, holds no names")
    return content


def _read_state(folder):
    """Return the tensors of a folder, from one file or several."""
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
    """Return the names of the files that an index lists, each once."""
    try:
        names = sorted(set(_read_json(index)["weight_map"].values()))
        inside = all(Path(name).name == name for name in names)
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: damaged ({error!r})") from error
    if not inside:
        raise WeightsError(f"{index}: names files outside of its folder")
    return names


def _our_config(config, front):
    """Return the configuration of an exported folder for that of theirs."""
    _check_supported(config, front)
    size, frames = config["patch_size"], config["max_length"]
    # As their convolution, which has no place for a part of a patch.
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
    if _CLASSIFIER in config["architectures"]:
        multi_label = config.get("problem_type") == "multi_label_classification"
        labels = _labels(config["id2label"])
        ours.update(kind="classifier", labels=labels, multi_label=multi_label)
        ours["head"] = {"projection": None}
    return ours


def _on_meta(module, *arguments, **named):
    """Build a module without values, for its shapes."""
    with torch.device("meta"):
        return module(*arguments, **named)


def _check_supported(config, front):
    """Raise where their configuration is not one of ours."""
    if config["model_type"] != MODEL_TYPE:
        raise WeightsError(
            f"a model of type '{config['model_type']}', only '{MODEL_TYPE}' "
            "is read"
        )
    known = {_ENCODER, _CLASSIFIER}
    if len(known & set(config["architectures"])) != 1:
        raise WeightsError(
            f"architectures {config['architectures']}: expected {_ENCODER} or "
            f"{_CLASSIFIER}"
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
    """Return labels in the order of the classes, each there once."""
    by_number = {int(key): str(label) for key, label in id2label.items()}
    labels = [by_number[number] for number in range(len(id2label))]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise WeightsError(f"labels must differ, twice there: {twice}")
    return labels


def _our_state(state, config):
    """Translate their tensors; raise unless these are all, and no others."""
    encoder = config["encoder"]
    classifier = config["kind"] == "classifier"
    newer = any(f"{_BLOCKS_5}.0." in key for key in state)
    prefix = _PREFIX if any(key.startswith(_PREFIX) for key in state) else ""
    names = _encoder_names(encoder["depth"], newer, prefix)
    heads = _with_kinds(_HEAD_NAMES) if classifier else {}
    extra = [prefix + key for key in (_CLASS_TOKEN, _DISTILLATION_TOKEN)]
    extra.append(prefix + _POSITIONS)
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


def _encoder_names(depth, newer=False, prefix=""):
    """Return their names by ours, with queries, keys and values apart."""
    blocks = _BLOCKS_5 if newer else _BLOCKS_4
    layers = _BLOCK_NAMES_5 if newer else _BLOCK_NAMES_4
    names = dict(_ENCODER_NAMES)
    for number in range(depth):
        for ours, theirs in layers.items():
            names[f"blocks.{number}.{ours}"] = f"{blocks}.{number}.{theirs}"
    return _with_kinds(names, prefix)


def _with_kinds(names, prefix=""):
    """Return the names of the tensors of layers, weights and biases."""
    return {
        f"{ours}.{kind}": f"{prefix}{theirs}.{kind}"
        for ours, theirs in names.items()
        for kind in _KINDS_OF_TENSOR
    }


def _join(layers, tokens, positions, encoder):
    """Join their tensors to our encoder's, by our names."""
    out = dict(layers)
    for number in range(encoder["depth"]):
        for kind in _KINDS_OF_TENSOR:
            parts = [out.pop(f"blocks.{number}.{name}.{kind}") for name in _QKV]
            out[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
    dim, patch = encoder["dim"], encoder["grid"]["patch"]
    (n_freq, n_time), kernel = encoder["table"], out["patch_embedding.weight"]
    shapes = {
        _CLASS_TOKEN: (tokens[0], (1, 1, dim)),
        _DISTILLATION_TOKEN: (tokens[1], (1, 1, dim)),
        _POSITIONS: (positions, (1, N_CLASS_TOKENS + n_freq * n_time, dim)),
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


def check_huggingface_folder(folder):
    """Raise unless Hugging Face's AST may be written to a folder.

    Arguments
    ---------
    folder : str or path
        New, empty, or an older one, which would be replaced.

    Raises
    ------
    FileExistsError
        If the folder holds something else, be it another model of theirs.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> check_huggingface_folder(folder)
    >>> folder.join("thesis.txt").write("mine")
    >>> check_huggingface_folder(folder)
    Traceback (most recent call last):
    ...
    FileExistsError: ... something else than a Hugging Face model of type ...
    """
    folder = resolved(folder)
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        found = _read_json(folder / CONFIG_FILE).get("model_type")
    except WeightsError:
        found = None
    if found != MODEL_TYPE:
        raise FileExistsError(
            f"{folder}: there is something else than a Hugging Face model of "
            f"type '{MODEL_TYPE}'; choose another name or remove it"
        )


def to_huggingface(weights, folder, max_length=None):
    """Write weights as a folder that ``transformers`` loads, 4 or 5.

    A classifier becomes an `ASTForAudioClassification`, other weights an
    `ASTModel`. The tensors of a pretraining objective are left out. Weights
    that `from_huggingface` has read go back exactly.

    Arguments
    ---------
    weights : Weights
        Of an exported folder: from `load_weights`.
    folder : str or path
        Where to; an older one there is replaced, its other files stay.
    max_length : int, optional
        Frames that Hugging Face is to pad or cut every clip to. Left out,
        those of the reference padding of `weights`, or else what the
        position table spans.

    Returns
    -------
    list of str
        What was adapted or left out, a line each.

    Raises
    ------
    FileExistsError
        If the folder holds something else than Hugging Face's AST.
    WeightsError
        If Hugging Face cannot hold the model: its patches are not square,
        its classifier does not see the class tokens, or its blocks have no
        attention.

    Example
    -------
    >>> from ssast_lobes import SSAST
    >>> from ssast_lobes.checkpoints.folder import export_pretrained
    >>> from ssast_lobes.objectives import MSPM
    >>> from ssast_lobes.checkpoints.loading import load_weights
    >>> objective = MSPM(SpectrogramEncoder(dim=64, depth=1, heads=1))
    >>> tmpdir = Path(getfixture("tmpdir"))
    >>> ours = export_pretrained(tmpdir / "ours", objective, FrontEnd(), {})
    >>> report = to_huggingface(load_weights(ours), tmpdir / "theirs")
    >>> SSAST(source=tmpdir / "theirs")(torch.randn(1, 16000)).shape
    torch.Size([1, 7, 64])
    """
    _check_holdable(weights.config)
    report, features = [], weights.config["features"]
    own_length = weights.config["encoder"]["table_frames"]
    frames = max_length or features.get("pad_frames", own_length)
    theirs = _their_config(weights, frames)
    front = _their_front_end(features, frames)
    state = _their_state(weights, frames, report)
    _report_padding(weights.config, frames, report)
    folder = resolved(folder)
    with atomic_replace_dir(
        folder, HF_FILES, check_huggingface_folder
    ) as partial:
        write_json(partial / CONFIG_FILE, theirs)
        write_json(partial / PREPROCESSOR_FILE, front)
        card = _card(folder.name, weights.config, frames)
        (partial / CARD_FILE).write_text(card, encoding="utf-8")
        save_file(state, partial / WEIGHTS_FILE, {"format": "pt"})
        # safetensors lets only the owner read; the umask shall decide.
        (partial / WEIGHTS_FILE).chmod((partial / CONFIG_FILE).stat().st_mode)
    return report


def _check_holdable(config):
    """Raise where their model has no place for ours."""
    if "kind" not in config:
        raise WeightsError(
            "an official checkpoint does not tell its features: make an "
            "exported folder of it first (`ssast-lobes convert`)"
        )
    encoder = config["encoder"]
    if encoder.get("blocks", "attention") != "attention":
        raise WeightsError(
            f"blocks of kind '{encoder['blocks']}': Hugging Face's AST is a "
            "transformer"
        )
    bins, frames = encoder["grid"]["patch"]
    if bins != frames:
        raise WeightsError(
            f"patches of {bins} mel bins x {frames} frames: Hugging Face's "
            "AST holds square patches only, no frame models"
        )
    pooling = config["pooling"]
    seen = (pooling["pooling"], pooling["layers"])
    if config["kind"] == "classifier" and seen != ("class", "last"):
        raise WeightsError(
            f"the classifier sees the '{pooling['pooling']}' pooling of "
            f"the '{pooling['layers']}' layers, Hugging Face's AST always the "
            "class tokens of the last: fine-tune with pooling 'class' and "
            "layers 'last'"
        )
    if config.get("head", {}).get("projection"):
        raise WeightsError(
            "the classifier's head has a projection, that of Hugging Face's "
            "AST a layer norm: fine-tune without projection"
        )


def _their_config(weights, frames):
    """Return the text of their ``config.json``, as a dict."""
    config = weights.config
    encoder, grid = config["encoder"], config["encoder"]["grid"]
    hidden = weights.state["encoder.blocks.0.mlp.fc1.weight"].shape[0]
    if frames < grid["patch"][1]:
        raise WeightsError(
            f"max_length is {frames}, a patch has {grid['patch'][1]} frames"
        )
    theirs = {
        "architectures": [_ENCODER],
        "attention_probs_dropout_prob": 0.0,
        "dtype": "float32",
        "frequency_stride": grid["stride"][0],
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": encoder["dim"],
        "intermediate_size": hidden,
        "layer_norm_eps": NORM_EPS,
        "max_length": frames,
        "model_type": MODEL_TYPE,
        "num_attention_heads": encoder["heads"],
        "num_hidden_layers": encoder["depth"],
        "num_mel_bins": grid["n_mels"],
        "patch_size": grid["patch"][0],
        "qkv_bias": True,
        "time_stride": grid["stride"][1],
    }
    if config["kind"] == "classifier":
        kind = "multi" if config["multi_label"] else "single"
        labels = config["labels"]
        theirs.update(
            architectures=[_CLASSIFIER],
            id2label={str(i): label for i, label in enumerate(labels)},
            label2id={label: i for i, label in enumerate(labels)},
            problem_type=f"{kind}_label_classification",
        )
    return theirs


def _their_front_end(features, frames):
    return {
        "do_normalize": True,
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "max_length": frames,
        "mean": features["statistics"]["mean"],
        "num_mel_bins": features["n_mels"],
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": features["sample_rate"],
        "std": features["statistics"]["std"],
    }


def _their_state(weights, frames, report):
    """Translate our tensors."""
    encoder = weights.config["encoder"]
    classifier = weights.config["kind"] == "classifier"
    prefix = _PREFIX if classifier else ""
    ours = weights.part("encoder")
    patch = encoder["grid"]["patch"]
    kernel = ours["patch_embedding.weight"].unflatten(1, (1, *patch))
    ours["patch_embedding.weight"] = kernel
    for number in range(encoder["depth"]):
        for kind in _KINDS_OF_TENSOR:
            both = ours.pop(f"blocks.{number}.attn.qkv.{kind}").chunk(3)
            for name, part in zip(_QKV, both, strict=True):
                ours[f"blocks.{number}.{name}.{kind}"] = part
    names = _encoder_names(encoder["depth"], prefix=prefix)
    state = {theirs: ours[name] for name, theirs in names.items()}
    tokens = ours["class_tokens"].split(1)
    state[prefix + _CLASS_TOKEN] = tokens[0][None]
    state[prefix + _DISTILLATION_TOKEN] = tokens[1][None]
    table = _table(ours["positions.table"], encoder["grid"], frames, report)
    positions = torch.cat([ours["class_positions"], table])
    state[prefix + _POSITIONS] = positions[None]
    if classifier:
        head = weights.part("head")
        for name, theirs in _with_kinds(_HEAD_NAMES).items():
            state[theirs] = head[name]
    aside = weights.part("objective")
    if aside:
        report.append(
            f"left out: {len(aside)} tensors of the pretraining objective"
        )
    # Parts of one tensor must not share their memory in the file.
    return {key: value.clone().contiguous() for key, value in state.items()}


def _table(table, grid, frames, report):
    """Return positions (N, D) of so many frames, as our encoder has them."""
    n_freq, n_time, dim = table.shape
    grid = Grid(**{**grid, "keep_partial": False})
    wanted = (grid.n_freq, grid.n_time(frames))
    if (n_freq, n_time) != wanted:
        report.append(
            f"positions for {n_freq} x {n_time} patches fitted to "
            f"{wanted[0]} x {wanted[1]}"
        )
    positions = PositionTable(n_freq, n_time, dim)
    with torch.no_grad():
        positions.table.copy_(table)
        return positions(wanted[0], torch.tensor([wanted[1]]), wanted[1])[0]


def _report_padding(config, frames, report):
    """Say where the habits of Hugging Face change what is computed."""
    if config["features"].get("pad_frames") != frames:
        seconds = _seconds(config, frames)
        report.append(
            f"Hugging Face pads or cuts every clip to {frames} frames "
            f"({seconds:.2f} s) and takes the padding for audio: shorter "
            "and longer clips get other scores than from the exported folder"
        )
    if config["kind"] == "pretrained":
        report.append(
            f"the pooler_output of {_ENCODER} is the mean of the class "
            "tokens; last_hidden_state holds all tokens"
        )


def _seconds(config, frames):
    padded = {**config["features"], "pad_frames": frames}
    return window_seconds(config["encoder"], padded)


_USES = {
    "pretrained": """
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}")
# wav: mono waveform at {rate} Hz, a numpy array (samples,)
inputs = extractor(wav, sampling_rate={rate}, return_tensors="pt")
tokens = model(**inputs).last_hidden_state  # (1, 2 + patches, D)
""",
    "classifier": """
from transformers import pipeline

classifier = pipeline("audio-classification", model="{name}")
# wav: mono waveform at {rate} Hz, a numpy array (samples,)
print(classifier(wav, function_to_apply="{function}"))
""",
}


def _card(name, config, frames):
    """Return the text of the model card."""
    kind, features = config["kind"], config["features"]
    data = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINE_TAGS[kind],
        "tags": ["audio", "ssast", MODEL_TYPE],
    }
    multi_label = config.get("multi_label")
    code = _USES[kind].format(
        name=name,
        rate=features["sample_rate"],
        function="sigmoid" if multi_label else "softmax",
    )
    return front_matter(data) + (
        f"# {name}\n\n"
        "An audio spectrogram transformer, written by `ssast-lobes convert`. "
        f"It takes mono audio at {features['sample_rate']} Hz; what is "
        f"shorter than {_seconds(config, frames):.2f} s is padded, what is "
        "longer is cut.\n\n"
        f"```python\n{code.strip()}\n```\n"
    )
