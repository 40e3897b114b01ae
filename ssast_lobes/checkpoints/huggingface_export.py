"""Write folders of Hugging Face's audio spectrogram transformer."""

import huggingface_hub
import torch
from safetensors.torch import save_file

from ssast_lobes.checkpoints.format import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    WeightsError,
    read_json,
    window_seconds,
)
from ssast_lobes.checkpoints.huggingface import (
    CLASS_TOKEN,
    CLASSIFIER,
    DISTILLATION_TOKEN,
    ENCODER,
    HEAD_NAMES,
    HF_FILES,
    KINDS_OF_TENSOR,
    MODEL_TYPE,
    POSITIONS,
    PREFIX,
    PREPROCESSOR_FILE,
    QKV,
    encoder_names,
    with_kinds,
)
from ssast_lobes.checkpoints.model_card import PIPELINE_TAGS
from ssast_lobes.models.patches import Grid, PositionTable
from ssast_lobes.models.transformer import NORM_EPS
from ssast_lobes.utils.files import atomic_replace_dir, resolved, write_json


def check_huggingface_folder(folder):
    """Raise unless Hugging Face's AST may be written to a folder.

    Arguments
    ---------
    folder : str or path
        A new or empty folder, or one with an older AST, which would be
        replaced.

    Raises
    ------
    FileExistsError
        If the folder contains other files, such as another model of Hugging
        Face, but no AST.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> check_huggingface_folder(folder)
    >>> folder.join("thesis.txt").write("mine")
    >>> check_huggingface_folder(folder)
    Traceback (most recent call last):
    ...
    FileExistsError: ... exists and is not a Hugging Face model of type ...
    """
    folder = resolved(folder)
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        found = read_json(folder / CONFIG_FILE).get("model_type")
    except WeightsError:
        found = None
    if found != MODEL_TYPE:
        raise FileExistsError(
            f"{folder} exists and is not a Hugging Face model of "
            f"type '{MODEL_TYPE}'; choose another name or remove it"
        )


def to_huggingface(weights, folder, max_length=None):
    """Write weights as a folder that ``transformers`` 4 and 5 load.

    A classifier becomes an `ASTForAudioClassification`, any other model an
    `ASTModel`. The tensors of a pretraining objective are left out. Weights
    that `from_huggingface` read are written back exactly.

    Arguments
    ---------
    weights : Weights
        Weights of an exported folder, from `load_weights`.
    folder : str or path
        Folder to write. An older AST there is replaced; other files stay.
    max_length : int, optional
        Number of frames to which Hugging Face pads or cuts every clip. By
        default the length of the reference padding of `weights`. Without
        reference padding, it is the length of the position table.

    Returns
    -------
    list of str
        What was adapted or left out, one line each.

    Raises
    ------
    FileExistsError
        If the folder contains files, but not Hugging Face's AST.
    WeightsError
        If Hugging Face's AST cannot represent the model: a detector, patches
        that are not square, blocks without attention, a classifier that does
        not see the class tokens of the last layer, or a head with a projection
        or with cosines.

    Example
    -------
    >>> from ssast_lobes import SSAST, FrontEnd, SpectrogramEncoder
    >>> from ssast_lobes.checkpoints.folder import export_pretrained
    >>> from ssast_lobes.objectives import MSPM
    >>> from ssast_lobes.checkpoints.loading import load_weights
    >>> objective = MSPM(SpectrogramEncoder(dim=64, depth=1, heads=1))
    >>> tmpdir = resolved(getfixture("tmpdir"))
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
        # safetensors makes the file readable for its owner only; follow the
        # umask.
        (partial / WEIGHTS_FILE).chmod((partial / CONFIG_FILE).stat().st_mode)
    return report


def _check_holdable(config):
    """Raise if Hugging Face's AST cannot represent our model."""
    if "kind" not in config:
        raise WeightsError(
            "an official checkpoint does not state its front end: convert it "
            "to an exported folder first (`ssast-lobes convert`)"
        )
    if config["kind"] == "detector":
        raise WeightsError(
            "a detector of events: Hugging Face's AST classifies clips only"
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
            "the head has a projection, and Hugging Face's AST has a layer "
            "norm in its place: fine-tune without projection"
        )
    if config.get("head", {}).get("cosine_scale") is not None:
        raise WeightsError(
            "the head scores cosines (cosine_scale), and Hugging Face's AST "
            "has a linear head: fine-tune without cosine_scale"
        )


def _their_config(weights, frames):
    """Return the content of Hugging Face's ``config.json``, as a dict."""
    config = weights.config
    encoder, grid = config["encoder"], config["encoder"]["grid"]
    hidden = weights.state["encoder.blocks.0.mlp.fc1.weight"].shape[0]
    if frames < grid["patch"][1]:
        raise WeightsError(
            f"max_length must be at least a patch, {grid['patch'][1]} frames, "
            f"got {frames}"
        )
    theirs = {
        "architectures": [ENCODER],
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
            architectures=[CLASSIFIER],
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
    """Return our tensors with Hugging Face's names and shapes."""
    encoder = weights.config["encoder"]
    classifier = weights.config["kind"] == "classifier"
    prefix = PREFIX if classifier else ""
    ours = weights.part("encoder")
    patch = encoder["grid"]["patch"]
    kernel = ours["patch_embedding.weight"].unflatten(1, (1, *patch))
    ours["patch_embedding.weight"] = kernel
    for number in range(encoder["depth"]):
        for kind in KINDS_OF_TENSOR:
            both = ours.pop(f"blocks.{number}.attn.qkv.{kind}").chunk(3)
            for name, part in zip(QKV, both, strict=True):
                ours[f"blocks.{number}.{name}.{kind}"] = part
    names = encoder_names(encoder["depth"], prefix=prefix)
    state = {theirs: ours[name] for name, theirs in names.items()}
    tokens = ours["class_tokens"].split(1)
    state[prefix + CLASS_TOKEN] = tokens[0][None]
    state[prefix + DISTILLATION_TOKEN] = tokens[1][None]
    table = _table(ours["positions.table"], encoder["grid"], frames, report)
    positions = torch.cat([ours["class_positions"], table])
    state[prefix + POSITIONS] = positions[None]
    if classifier:
        head = weights.part("head")
        for name, theirs in with_kinds(HEAD_NAMES).items():
            state[theirs] = head[name]
    aside = weights.part("objective")
    if aside:
        report.append(
            f"left out: {len(aside)} tensors of the pretraining objective"
        )
    # safetensors refuses tensors that share memory.
    return {key: value.clone().contiguous() for key, value in state.items()}


def _table(table, grid, frames, report):
    """Return the positions (N, D) of our encoder for a number of frames."""
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
    """Report where the results of Hugging Face and of the export differ."""
    if config["features"].get("pad_frames") != frames:
        seconds = _seconds(config, frames)
        report.append(
            f"Hugging Face pads or cuts every clip to {frames} frames "
            f"({seconds:.2f} s) and takes the padding for audio: shorter "
            "and longer clips get other scores than from the exported folder"
        )
    if config["kind"] == "pretrained":
        report.append(
            f"the pooler_output of {ENCODER} is the mean of the class "
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
    data = huggingface_hub.ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS[kind],
        tags=["audio", "ssast", MODEL_TYPE],
    )
    multi_label = config.get("multi_label")
    code = _USES[kind].format(
        name=name,
        rate=features["sample_rate"],
        function="sigmoid" if multi_label else "softmax",
    )
    return (
        f"---\n{data}\n---\n\n# {name}\n\n"
        "An audio spectrogram transformer, written by `ssast-lobes convert`. "
        f"It takes mono audio at {features['sample_rate']} Hz; what is "
        f"shorter than {_seconds(config, frames):.2f} s is padded, what is "
        "longer is cut.\n\n"
        f"```python\n{code.strip()}\n```\n"
    )
