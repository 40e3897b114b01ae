"""The format of exported folders: file names, `Weights`, strict loading."""

import json
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ssast_lobes.models.encoders import make_encoder
from ssast_lobes.models.event_head import FrameClassifier
from ssast_lobes.models.features import make_filterbank
from ssast_lobes.models.heads import ClassificationHead, head_arguments
from ssast_lobes.models.pooling import ClipPooling

HYPERPARAMS_FILE = "hyperparams.yaml"
LABELS_FILE = "label_encoder.txt"
CARD_FILE = "README.md"
HEADS_FOLDER = "heads"
FRAME_HEADS_FOLDER = "frame_heads"
PROJECTIONS_FOLDER = "projections"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
EXPORT_FILES = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    HYPERPARAMS_FILE,
    LABELS_FILE,
    CARD_FILE,
)
# The newest version that this package reads. Version 1 can represent only the
# models of SSAST and SSAMBA. A folder states the lowest version that can
# represent its model.
FORMAT_VERSION = 2
_SINCE_2 = {
    "encoder": {"n_class_tokens", "norms", "crop", "qkv_bias", "patch_dim"},
    "features": {"fbank"},
    "pooling": {"n_freq"},
    "head": {"norm_eps"},
}
PARTS = ("encoder", "objective", "pooling", "head")


class WeightsError(RuntimeError):
    """The error of a checkpoint that cannot be read or does not fit.

    The message names the tensors and the reason.
    """


class HubError(WeightsError):
    """The error of a hub that refuses a download or a push.

    The message names the reason.
    """


@dataclass
class Weights:
    """A checkpoint of any origin, with our names of tensors.

    Arguments
    ---------
    state : dict of str to torch.Tensor
        Keys start with ``encoder.``, ``objective.``, ``pooling.`` or
        ``head.``.
    config : dict
        The entry ``encoder`` contains the arguments of `SpectrogramEncoder` or
        `BEATsEncoder`. Further entries are those of an exported folder.
    report : list of str
        What was left out or adapted, one line each.
    """

    state: dict
    config: dict
    report: list = field(default_factory=list)

    def part(self, prefix):
        """Return the tensors of one part, without the prefix of their names.

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


@contextmanager
def error_context(source):
    """Put the name of a file before the message of a `WeightsError`.

    Arguments
    ---------
    source : str or path
        The name.

    Example
    -------
    >>> with error_context("model.pth"):
    ...     raise WeightsError("missing bias")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: model.pth: missing bias
    """
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error


def compare(wanted, state, name):
    """Raise unless a state dict has the keys and shapes of another.

    Arguments
    ---------
    wanted : dict of str to torch.Tensor
        State dict of the model; it may be on the meta device.
    state : dict of str to torch.Tensor
        State dict that was read.
    name : str
        Name of the part, for the message.

    Raises
    ------
    WeightsError
        If tensors are missing, unexpected or misshapen; the message lists them.

    Example
    -------
    >>> from torch import nn
    >>> layer = nn.Linear(1, 1)
    >>> compare(layer.state_dict(), {"weight": torch.zeros(1, 1)}, "layer")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: layer: missing bias
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
    """Load a state dict that must fit exactly.

    Arguments
    ---------
    module : torch.nn.Module
        The module, which is loaded in place.
    state : dict of str to torch.Tensor
        All tensors of the module, and no others.
    name : str
        Name of the module, for the message.

    Raises
    ------
    WeightsError
        If tensors are missing, unexpected or misshapen.

    Example
    -------
    >>> from torch import nn
    >>> load_strictly(nn.Linear(1, 1), {"weight": torch.zeros(1, 1)}, "layer")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: layer: missing bias
    """
    compare(module.state_dict(), state, name)
    module.load_state_dict(state)


def make_head(config):
    """Return the head of a classifier or a detector, with random weights.

    Arguments
    ---------
    config : dict
        Configuration of the exported folder.

    Returns
    -------
    ClassificationHead or FrameClassifier

    Example
    -------
    >>> config = {"encoder": {"dim": 32}, "labels": ["cat"]}
    >>> type(make_head({"kind": "detector", **config})).__name__
    'FrameClassifier'
    """
    kind = config.get("kind")
    head = FrameClassifier if kind == "detector" else ClassificationHead
    return head(**head_arguments(config))


def check_weights(weights):
    """Raise unless the tensors are those of the configured model.

    Arguments
    ---------
    weights : Weights
        Weights with the configuration of an exported folder.

    Raises
    ------
    WeightsError
        If tensors are missing, unexpected or misshapen; the message lists them.

    Example
    -------
    >>> config = {"encoder": {"depth": 1}, "pooling": {"depth": 1}}
    >>> check_weights(Weights({}, config))
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: encoder: missing class_tokens, ...
    """
    config = weights.config
    with torch.device("meta"):
        modules = {
            "encoder": make_encoder(config["encoder"]),
            "pooling": ClipPooling(**config["pooling"]),
        }
        if "labels" in config:
            modules["head"] = make_head(config)
    for name, module in modules.items():
        compare(module.state_dict(), weights.part(name), name)


def read_json(path):
    """Return the object of a JSON file.

    Arguments
    ---------
    path : pathlib.Path
        The file.

    Returns
    -------
    dict

    Raises
    ------
    WeightsError
        If the file is missing, is not JSON, or does not contain an object.

    Example
    -------
    >>> from pathlib import Path
    >>> read_json(Path("nowhere.json"))
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: nowhere.json: missing or damaged ...
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: missing or damaged ({error})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: damaged, holds no names")
    return content


def renamed(key, names):
    """Return the new name of a tensor.

    Arguments
    ---------
    key : str
        The name.
    names : dict of str to str
        New names by former names, or by former prefixes, which end with a dot.

    Returns
    -------
    str or None
        None if there is no new name.

    Example
    -------
    >>> renamed("v.blocks.0.bias", {"v.blocks.": "encoder.blocks."})
    'encoder.blocks.0.bias'
    """
    for former, new in names.items():
        if key == former or (former[-1] == "." and key.startswith(former)):
            return new + key[len(former) :]
    return None


def version_of(config):
    """Return the lowest format version that can represent a configuration.

    Arguments
    ---------
    config : dict
        Configuration of an exported folder.

    Returns
    -------
    int

    Example
    -------
    >>> version_of({"encoder": {"dim": 192}})
    1
    >>> version_of({"encoder": {"dim": 192, "crop": "start"}})
    2
    """
    later = any(
        names & set(config.get(part, {})) for part, names in _SINCE_2.items()
    )
    pooling = config.get("pooling", {})
    later = later or "chunks" in config or pooling.get("layers") == "normed"
    later = later or pooling.get("pooling") in ("tokens", "class_mean")
    blocks = config["encoder"].get("blocks")
    return 2 if later or blocks == "attention_post_norm" else 1


def exported_state(objective):
    """Return the tensors of an objective for an export, by name.

    Arguments
    ---------
    objective : Objective
        The objective, which owns the encoder.

    Returns
    -------
    dict of str to torch.Tensor
        Keys start with ``encoder.`` or ``objective.``; the values are the
        module's own tensors.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import MSPM
    >>> objective = MSPM(SpectrogramEncoder(dim=32, depth=1, heads=2))
    >>> sorted({key.split(".")[0] for key in exported_state(objective)})
    ['encoder', 'objective']
    """
    return {
        key if key.startswith("encoder.") else f"objective.{key}": value
        for key, value in objective.exported_state().items()
    }


def window_seconds(encoder, features):
    """Return the least length of a model's windows, in seconds.

    By default it is the time that the position table covers: the length of the
    pretraining clips. With reference padding, it is the length to which every
    clip is padded. An export may state a longer window.

    Arguments
    ---------
    encoder : dict
        Configuration of the encoder.
    features : dict
        Configuration of the front end.

    Returns
    -------
    float
        Seconds of the shortest audio with this number of frames.

    Example
    -------
    >>> window_seconds(
    ...     {"table_frames": 1024}, {"sample_rate": 16000, "n_mels": 128}
    ... )
    10.255
    """
    fbank = make_filterbank(
        features["sample_rate"], features["n_mels"], features.get("fbank")
    )
    frames = features.get("pad_frames") or encoder["table_frames"]
    return fbank.samples_of(frames) / fbank.sample_rate
