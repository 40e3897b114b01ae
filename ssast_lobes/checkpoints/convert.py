"""Conversion between exported folders, official files and Hugging Face.

Error messages name the options of ``ssast-lobes convert``.
"""

import os
from pathlib import Path

import torch
from tqdm import tqdm

from ssast_lobes.checkpoints.folder import label_encoder_of, write_export
from ssast_lobes.checkpoints.format import (
    WeightsError,
    version_of,
    window_seconds,
)
from ssast_lobes.checkpoints.huggingface_export import to_huggingface
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.official import to_official
from ssast_lobes.checkpoints.peers import FAMILIES
from ssast_lobes.models.features import FrontEnd
from ssast_lobes.utils.files import atomic_write

_KINDS = {
    "checkpoint": "a checkpoint without classes",
    "export": "an exported folder",
    "huggingface": "a Hugging Face folder",
    "peer": "a checkpoint of another lab",
}
_TASKS = {
    frozenset({"discriminator"}): "discriminative",
    frozenset({"generator_head"}): "generative",
    frozenset({"discriminator", "generator_head"}): "joint",
}


def convert(
    source,
    dest,
    to=None,
    stride=None,
    pad_frames=None,
    statistics=None,
    labels=None,
    multi_label=False,
    pooling=None,
    family=None,
):
    """Convert a model from one form to another.

    Arguments
    ---------
    source : str or path
        An exported folder, an official SSAST, SSAMBA or AST ``.pth`` file, a
        Hugging Face folder, or a checkpoint of another lab; see `load_weights`.
    dest : str or path
        The folder or ``.pth`` file to write.
    to : str, optional
        ``"export"``, ``"official"`` or ``"huggingface"``; by default official
        if `dest` ends in ``.pth``, else export.
    stride : tuple of int, optional
        Patch stride (mel bins, frames) of an official classifier.
    pad_frames : int, optional
        Number of frames to which every clip is padded: in the export of an
        official model or another lab's model (reference padding), or by the
        Hugging Face model that is written.
    statistics : str, optional
        Preset or YAML file with the normalization that an official model was
        trained with; by default AudioSet's.
    labels : str or path, optional
        File with one label per line, in the order of the classes of an official
        classifier or another lab's classifier. By default the labels are
        numbers.
    multi_label : bool
        Whether a clip may have several of the labels.
    pooling : str, optional
        Input of the head of an official classifier: the ``"mean"`` of the
        tokens (the default), or the ``"class"`` tokens.
    family : str, optional
        Family of another lab's checkpoint; needed if the keys of the checkpoint
        do not determine it.

    Returns
    -------
    Weights
        The weights of the source. Their `report` lists all changes and
        omissions.

    Raises
    ------
    FileExistsError
        If the folder contains files, but no earlier result, or if the
        ``.pth`` exists.
    ValueError
        If there is no such conversion, or an option would have no effect.
    WeightsError
        If the source does not load, or the form `to` cannot represent its
        model.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.checkpoints.folder import export_encoder
    >>> folder = getfixture("tmp_path")
    >>> encoder = SpectrogramEncoder(dim=64, depth=1, heads=1)
    >>> _ = export_encoder(folder / "ours", encoder, FrontEnd(), card={})
    >>> _ = convert(folder / "ours", folder / "theirs", "huggingface")
    >>> (folder / "theirs" / "preprocessor_config.json").exists()
    True
    """
    options = {
        "stride": stride,
        "statistics": statistics,
        "labels": labels,
        "multi_label": multi_label,
        "pooling": pooling,
        "pad_frames": pad_frames,
        "family": family,
    }
    if str(dest).endswith(".pth"):
        dest = Path(dest).expanduser()
        if dest.exists():
            raise FileExistsError(
                f"{dest} exists; choose another name or remove it"
            )
    with tqdm(desc="Reading", total=3, unit="step", leave=False) as bar:
        weights = load_weights(source, stride, family)
        kind, to = _kinds(weights, source, dest, to)
        _refuse_idle(options, weights, source, kind, to)
        bar.update()
        if to == "official":
            bar.set_description("Translating")
            state = to_official(weights)
            bar.update()
            bar.set_description("Writing")
            Path(dest).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(dest, "wb") as file:
                torch.save(state, file)
        elif to == "huggingface":
            bar.set_description("Translating and writing")
            weights.report += to_huggingface(weights, dest, pad_frames)
            bar.update()
        else:
            bar.set_description("Checking")
            if kind == "huggingface":
                origin = "a Hugging Face model"
                config = dict(weights.config)
                if multi_label:
                    config["multi_label"] = True
            elif kind == "peer":
                origin = "a released checkpoint"
                config = _peer_config(weights, options)
            else:
                origin = "an official checkpoint"
                config = _export_config(weights, options)
            name = os.path.basename(os.path.normpath(source))
            card = {"origin": f"`{name}`, {origin}, by `ssast-lobes convert`."}
            if kind == "peer":
                card |= FAMILIES[weights.config["family"]].card
            own = config.get("labels")
            label_encoder = None if own is None else label_encoder_of(own)
            bar.update()
            bar.set_description("Writing")
            write_export(dest, weights.state, config, card, label_encoder)
        bar.update()
    return weights


def _kinds(weights, source, dest, to):
    """Return the kinds of the source and of the result."""
    is_pth = str(dest).endswith(".pth")
    to = to or ("official" if is_pth else "export")
    if is_pth != (to == "official"):
        kind = "a folder" if is_pth else "a file that ends in .pth"
        raise ValueError(f"--to {to} writes {kind}, {dest} is not one")
    if "kind" not in weights.config:
        if to != "export":
            raise ValueError(
                f"{source} is no exported folder: make one of it first, then "
                f"convert that --to {to}"
            )
        return "checkpoint", to
    if to != "export" and version_of(weights.config) > 1:
        raise WeightsError(
            f"{source} has parts that SSAST's encoder lacks (class tokens, "
            f"norms, front end): the form {to} cannot hold it"
        )
    kind = "export" if "format_version" in weights.config else "huggingface"
    if kind == "huggingface" and "family" in weights.config:
        return "peer", to
    if kind == to == "export":
        raise ValueError(
            f"{source} is an exported folder already; to make an official "
            "checkpoint of it, let DEST end in .pth; for Hugging Face, add "
            "--to huggingface"
        )
    if kind == to:
        raise ValueError(f"{source} is a Hugging Face folder already")
    return kind, to


def _refuse_idle(options, weights, source, kind, to):
    """Raise if an option would have no effect."""
    if kind == "checkpoint":
        used = {"stride", "statistics", "pad_frames"}
        if weights.part("head"):
            used = set(options) - {"family"}
    elif kind == "peer":
        used = {"family", "pad_frames"}
        if weights.part("head"):
            used |= {"labels", "multi_label"}
    elif to == "huggingface":
        used = {"pad_frames"}
    elif to == "export" and weights.config.get("labels") is not None:
        used = {"multi_label"}
    else:
        used = set()
    idle = [
        "--" + name.replace("_", "-")
        for name, value in options.items()
        if name not in used and value not in (None, False)
    ]
    if idle:
        raise ValueError(
            f"{source} is {_KINDS[kind]}: {', '.join(idle)} would have no "
            "effect, remove it"
        )


def _export_config(weights, options):
    """Return the configuration of an export of an official checkpoint."""
    encoder, pad_frames = dict(weights.config["encoder"]), options["pad_frames"]
    if pad_frames is not None:
        # The official code drops a partial last patch.
        encoder["grid"] = {**encoder["grid"], "keep_partial": False}
    features = FrontEnd(
        options["statistics"] or "audioset",
        n_mels=encoder["grid"]["n_mels"],
        pad_frames=pad_frames,
    )
    config = {
        "kind": "pretrained",
        "encoder": encoder,
        "features": features.config,
        "pooling": {
            "depth": encoder["depth"],
            "pooling": options["pooling"] or "mean",
            "layers": "last",
        },
    }
    if weights.part("head"):
        n_classes = len(weights.state["head.linear.weight"])
        config["kind"] = "classifier"
        config["head"] = {"projection": None}
        config["labels"] = _labels(options["labels"], n_classes, weights.report)
        config["multi_label"] = options["multi_label"]
    else:
        heads = {key.split(".")[0] for key in weights.part("objective")}
        task = _TASKS.get(frozenset(heads - {"mask_embedding"}))
        if task is not None:
            config["objective"] = {"name": "MSPM", "task": task}
    return config


def _peer_config(weights, options):
    """Return the configuration of an export of another lab's checkpoint."""
    frames = options["pad_frames"]
    if frames is not None:
        FAMILIES[weights.config["family"]].at_length(weights, frames)
    config = dict(weights.config)
    if frames is not None:
        features = {**config["features"], "pad_frames": frames}
        config["features"] = features
        config["window_seconds"] = window_seconds(config["encoder"], features)
        # Every clip has this length, and a partial last patch is dropped.
        grid = {**config["encoder"]["grid"], "keep_partial": False}
        config["encoder"] = {**config["encoder"], "grid": grid}
        config.pop("chunks", None)
    if config["kind"] == "classifier":
        labels = _labels(
            options["labels"], len(config["labels"]), weights.report
        )
        config.update(labels=labels, multi_label=options["multi_label"])
    return config


def _labels(path, n_classes, report):
    """Read the labels from a file, or use numbers as labels."""
    if path is None:
        report.append(f"no labels given: {n_classes} classes named by numbers")
        return [str(number) for number in range(n_classes)]
    with open(path, encoding="utf-8-sig") as file:
        labels = [line.strip() for line in file if line.strip()]
    if len(labels) != n_classes:
        raise ValueError(
            f"{path} holds {len(labels)} labels, the checkpoint {n_classes} "
            "classes"
        )
    return labels
