"""The ``hyperparams.yaml`` of an export, for SpeechBrain's interfaces."""

import json
import textwrap

import yaml

from ssast_lobes.checkpoints.format import LABELS_FILE, WEIGHTS_FILE
from ssast_lobes.models.encoders import encoder_class
from ssast_lobes.models.heads import head_arguments

# SpeechBrain's interfaces need these modules in every export.
_MODULES = """
modules:
    compute_features: !new:ssast_lobes.PassThrough
    mean_var_norm: !new:ssast_lobes.PassThrough
    embedding_model: !new:ssast_lobes.WindowedLobe
        encoder: !ref <encoder>
        features: !ref <features>
        pooling: !ref <pooling>
        window_seconds: {window_seconds}
    encoder: !new:ssast_lobes.SpectrogramLobe
        encoder: !ref <encoder>
        features: !ref <features>
        output: frames
"""
_CHUNKS = "        chunks: {}\n"
_PRETRAINED = """
parts: !new:torch.nn.ModuleDict
    - encoder: !ref <encoder>
      pooling: !ref <pooling>

pretrainer: !new:ssast_lobes.ExportPretrainer
    loadables:
        model: !ref <parts>
    paths:
        model: {weights}
    custom_hooks:
        model: !name:ssast_lobes.load_modules
"""
_LABELED = """
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder

parts: !new:torch.nn.ModuleDict
    - encoder: !ref <encoder>
      pooling: !ref <pooling>
      head: !ref <head>

pretrainer: !new:ssast_lobes.ExportPretrainer
    loadables:
        model: !ref <parts>
        label_encoder: !ref <label_encoder>
    paths:
        model: {weights}
        label_encoder: {labels}
    custom_hooks:
        model: !name:ssast_lobes.load_modules
        label_encoder: !name:ssast_lobes.load_labels
"""


def hyperparams_text(config):
    """Return the YAML from which SpeechBrain's interfaces build a model.

    The YAML contains only public names of ``ssast_lobes``, so that modules may
    move.

    Arguments
    ---------
    config : dict
        Configuration of an exported folder.

    Returns
    -------
    str

    Example
    -------
    >>> from ssast_lobes import ClipPooling, FrontEnd, SpectrogramEncoder
    >>> config = {
    ...     "kind": "pretrained",
    ...     "window_seconds": 10.0,
    ...     "encoder": SpectrogramEncoder(dim=32, depth=1, heads=2).config,
    ...     "features": FrontEnd().config,
    ...     "pooling": ClipPooling(1).config,
    ... }
    >>> hyperparams_text(config).splitlines()[-1].strip()
    'model: !name:ssast_lobes.load_modules'
    """
    rate, encoder = config["features"]["sample_rate"], config["encoder"]
    nodes = {
        "features": ("FrontEnd", config["features"]),
        "encoder": (encoder_class(encoder).__name__, encoder),
        "pooling": ("ClipPooling", config["pooling"]),
    }
    heads = {"classifier": "ClassificationHead", "detector": "FrameClassifier"}
    if config["kind"] in heads:
        nodes["head"] = (heads[config["kind"]], head_arguments(config))
    text = (
        "# For SpeechBrain's from_hparams: builds what config.json describes\n"
        "# and loads model.safetensors into it, strictly.\n\n"
        "audio_normalizer: !name:ssast_lobes.to_mono\n"
        f"    sample_rate: {rate}\n"
    )
    for key, (name, arguments) in nodes.items():
        plain = yaml.safe_dump(
            arguments, sort_keys=False, default_flow_style=None
        )
        text += f"{key}: !new:ssast_lobes.{name}\n"
        text += textwrap.indent(plain, "    ")
    modules = _MODULES.format(window_seconds=config["window_seconds"])
    if "chunks" in config:
        modules += _CHUNKS.format(json.dumps(config["chunks"]))
    files = {"weights": WEIGHTS_FILE, "labels": LABELS_FILE}
    if config["kind"] == "pretrained":
        return text + modules + _PRETRAINED.format(**files)
    if config["kind"] == "detector":
        modules += "    frame_classifier: !ref <head>\n"
        return text + modules + _LABELED.format(**files)
    text += (
        "\nclassifier: !new:ssast_lobes.WindowClassifier\n"
        "    head: !ref <head>\n"
        f"    multi_label: {config['multi_label']}\n"
    )
    modules += "    classifier: !ref <classifier>\n"
    return text + modules + _LABELED.format(**files)
