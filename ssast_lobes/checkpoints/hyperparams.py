"""The ``hyperparams.yaml`` of an export, for SpeechBrain's interfaces."""

import textwrap

import yaml

from ssast_lobes.checkpoints.format import LABELS_FILE, WEIGHTS_FILE
from ssast_lobes.models.heads import head_arguments

# What SpeechBrain's interfaces find in every export.
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
_CLASSIFIER = """\
    classifier: !ref <classifier>

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
    """Write the YAML for SpeechBrain's interfaces."""
    text = (
        "# For SpeechBrain's from_hparams: builds what config.json describes\n"
        "# and loads model.safetensors into it, strictly.\n\n"
    )
    rate = config["features"]["sample_rate"]
    text += (
        "audio_normalizer: !name:ssast_lobes.to_mono\n"
        f"    sample_rate: {rate}\n"
    )
    text += _new("features", "ssast_lobes.FrontEnd", config["features"])
    text += _new(
        "encoder",
        "ssast_lobes.SpectrogramEncoder",
        config["encoder"],
    )
    text += _new("pooling", "ssast_lobes.ClipPooling", config["pooling"])
    modules = _MODULES.format(window_seconds=config["window_seconds"])
    files = {"weights": WEIGHTS_FILE, "labels": LABELS_FILE}
    if config["kind"] == "pretrained":
        return text + modules + _PRETRAINED.format(**files)
    head = "ssast_lobes.ClassificationHead"
    text += _new("head", head, head_arguments(config))
    text += (
        "\nclassifier: !new:ssast_lobes.WindowClassifier\n"
        "    head: !ref <head>\n"
        f"    multi_label: {config['multi_label']}\n"
    )
    return text + modules + _CLASSIFIER.format(**files)


def _new(key, name, arguments):
    """Write a YAML node that builds `name` with plain arguments."""
    plain = yaml.safe_dump(arguments, sort_keys=False, default_flow_style=None)
    return f"{key}: !new:{name}\n" + textwrap.indent(plain, "    ")
