"""Exported folders: what a training run leaves behind to be used.

A folder holds the weights (`model.safetensors`), what builds the model
(`config.json`, read by `ssast_lobes.inference`, which executes nothing; and
`hyperparams.yaml` for SpeechBrain's ``from_hparams``), the labels and a model
card. It refers to itself by file names only, so that it can be moved or put
on a model hub. It is written whole or not at all.
"""

import json
import os
import shutil
import textwrap
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.fetching import FetchConfig, FetchSource, LocalStrategy
from speechbrain.utils.logger import get_logger
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import nn

from ssast_lobes.encoder import SpectrogramEncoder
from ssast_lobes.features import KaldiFbank
from ssast_lobes.heads import (
    ClassificationHead,
    ClipPooling,
    head_arguments,
)
from ssast_lobes.linear_heads import HEADS_FOLDER
from ssast_lobes.weights import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    Weights,
    WeightsError,
    compare,
    exported_state,
    load_strictly,
    read_state,
)

logger = get_logger(__name__)

HYPERPARAMS_FILE = "hyperparams.yaml"
LABELS_FILE = "label_encoder.txt"
CARD_FILE = "README.md"
EXPORT_FILES = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    HYPERPARAMS_FILE,
    LABELS_FILE,
    CARD_FILE,
)


def export_pretrained(folder, objective, features, card, least_window=0.0):
    """Write a pretrained encoder, and its objective to train on, to a folder.

    Arguments
    ---------
    folder : str or path
        Where to; an older export there is replaced, other files in it stay.
    objective : Objective
        Owns the encoder; not wrapped for distributed training.
    features : FrontEnd
        The front end it was trained with.
    card : dict
        What the model card tells: ``"recipe"`` and ``"data"`` (text),
        ``"settings"`` and ``"metrics"`` (dicts of plain values), and further
        entries of both kinds.
    least_window : float
        Seconds that interfaces give it at once, where this is more than the
        position table spans: the longest audio it was trained on, or more.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder holds something else than an export.

    Example
    -------
    >>> from ssast_lobes import FrontEnd
    >>> from ssast_lobes.objectives import MSPM
    >>> objective = MSPM(SpectrogramEncoder(dim=32, depth=1, heads=2))
    >>> folder = getfixture("tmpdir") / "export"
    >>> written = export_pretrained(folder, objective, FrontEnd(), card={})
    >>> sorted(path.name for path in written.iterdir())
    ['README.md', 'config.json', 'hyperparams.yaml', 'model.safetensors']
    """
    encoder = objective.encoder
    state = exported_state(objective)
    config = {
        "kind": "pretrained",
        "encoder": encoder.config,
        "features": features.config,
        "pooling": ClipPooling(encoder.depth).config,
        "objective": {"name": type(objective).__name__, **objective.config},
    }
    return write_export(folder, state, config, card, least_window=least_window)


def export_classifier(
    folder,
    model,
    features,
    label_encoder,
    multi_label,
    card,
    least_window=0.0,
):
    """Write a fine-tuned classifier to a folder, adapters merged.

    Arguments
    ---------
    folder : str or path
        Where to; an older export there is replaced, other files in it stay.
    model : SpectrogramClassifier
        The classifier; not wrapped for distributed training.
    features : FrontEnd
        The front end it was trained with.
    label_encoder : speechbrain.dataio.encoder.CategoricalEncoder
        Label of each class index.
    multi_label : bool
        Whether a clip may have several labels: sigmoid, not softmax.
    card : dict
        See `export_pretrained`.
    least_window : float
        See `export_pretrained`.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder holds something else than an export.
    WeightsError
        If the model has not as many classes as there are labels.

    Example
    -------
    >>> from ssast_lobes import FrontEnd, SpectrogramClassifier
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> model = SpectrogramClassifier(encoder, n_classes=2)
    >>> labels = label_encoder_of(["cat", "dog"])
    >>> folder = getfixture("tmpdir") / "export"
    >>> written = export_classifier(
    ...     folder, model, FrontEnd(), labels, multi_label=False, card={}
    ... )
    >>> json.loads((written / "config.json").read_text())["labels"]
    ['cat', 'dog']
    """
    parts = {
        "encoder": model.merged_encoder_state(),
        "pooling": model.pooling.state_dict(),
        "head": model.head.state_dict(),
    }
    state = {
        f"{part}.{key}": value
        for part, tensors in parts.items()
        for key, value in tensors.items()
    }
    config = {
        "kind": "classifier",
        "encoder": model.encoder.config,
        "features": features.config,
        "pooling": model.pooling.config,
        "head": model.head.config,
        "labels": _labels_in_order(label_encoder),
        "multi_label": bool(multi_label),
    }
    return write_export(
        folder, state, config, card, label_encoder, least_window
    )


def export_encoder(folder, encoder, features, card, least_window=0.0):
    """Write an encoder alone, whatever it was trained for, to a folder.

    Arguments
    ---------
    folder : str or path
        Where to; an older export there is replaced, other files in it stay.
    encoder : SpectrogramEncoder
        The encoder.
    features : FrontEnd
        The front end it was trained with.
    card : dict
        See `export_pretrained`.
    least_window : float
        See `export_pretrained`.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder holds something else than an export.

    Example
    -------
    >>> from ssast_lobes import FrontEnd
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> folder = getfixture("tmpdir") / "export"
    >>> written = export_encoder(folder, encoder, FrontEnd(), card={})
    >>> (written / "model.safetensors").is_file()
    True
    """
    state = encoder.state_dict()
    config = {
        "kind": "pretrained",
        "encoder": encoder.config,
        "features": features.config,
        "pooling": ClipPooling(encoder.depth).config,
    }
    return write_export(
        folder,
        {f"encoder.{key}": value for key, value in state.items()},
        config,
        card,
        least_window=least_window,
    )


def label_encoder_of(labels):
    """SpeechBrain's label encoder for labels in the order of the classes.

    Arguments
    ---------
    labels : list of str
        Label of each class.

    Returns
    -------
    speechbrain.dataio.encoder.CategoricalEncoder

    Raises
    ------
    ValueError
        If a label stands twice in the list.

    Example
    -------
    >>> label_encoder_of(["dog", "cat"]).encode_label("cat")
    1
    """
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"labels must differ, twice there: {twice}")
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(labels)
    encoder.expect_len(len(labels))
    return encoder


def _labels_in_order(label_encoder):
    first = label_encoder.starting_index
    numbers = range(first, first + len(label_encoder))
    return [str(label_encoder.ind2lab[number]) for number in numbers]


def window_seconds(encoder, features):
    """The shortest window that audio is cut into for a model.

    This is what its position table spans, the pretraining length, or where
    every clip is padded to, under reference padding. An export may name more.

    Arguments
    ---------
    encoder : dict
        Configuration of the encoder.
    features : dict
        Configuration of the front end.

    Returns
    -------
    float
        Seconds of audio that give exactly so many frames.

    Example
    -------
    >>> window_seconds(
    ...     {"table_frames": 1024}, {"sample_rate": 16000, "n_mels": 128}
    ... )
    10.255
    """
    fbank = KaldiFbank(features["sample_rate"], features["n_mels"])
    frames = features.get("pad_frames") or encoder["table_frames"]
    samples = (frames - 1) * fbank.hop_samples
    return (samples + fbank.window_samples) / fbank.sample_rate


def check_export_folder(folder):
    """Raise unless an export may be written to a folder.

    Ask before training, not only after it.

    Arguments
    ---------
    folder : str or path
        New, empty, or an older export, which would be replaced.

    Raises
    ------
    FileExistsError
        If the folder holds something else than an export.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> check_export_folder(folder)
    >>> folder.join("thesis.txt").write("mine")
    >>> check_export_folder(folder)
    Traceback (most recent call last):
    ...
    FileExistsError: ... something else than an exported folder; ...
    """
    folder = resolved(folder)
    if not folder.exists():
        return
    names = os.listdir(folder) if folder.is_dir() else [folder.name]
    if names and not {CONFIG_FILE, WEIGHTS_FILE} <= set(names):
        raise FileExistsError(
            f"{folder}: there is something else than an exported folder; "
            "choose another name or remove it"
        )


def resolved(folder):
    """The path of a folder, home and links resolved.

    Arguments
    ---------
    folder : str or path
        May be new.

    Returns
    -------
    pathlib.Path

    Example
    -------
    >>> resolved("models/export").is_absolute()
    True
    """
    return Path(os.path.realpath(Path(folder).expanduser()))


def write_export(
    folder,
    state,
    config,
    card,
    label_encoder=None,
    least_window=0.0,
    half=False,
):
    """Write tensors and their configuration as an exported folder.

    Arguments
    ---------
    folder : str or path
        Where to; an older export there is replaced, other files in it stay.
    state : dict of str to torch.Tensor
        Keys start with ``encoder.``, ``objective.``, ``pooling.``, ``head.``.
    config : dict
        The entries ``kind``, ``encoder``, ``features``, ``pooling`` and, of a
        classifier, ``labels`` and ``multi_label``; see `export_classifier`.
    card : dict
        See `export_pretrained`.
    label_encoder : speechbrain.dataio.encoder.CategoricalEncoder, optional
        Of a classifier.
    least_window : float
        See `export_pretrained`.
    half : bool
        Store the tensors in half precision (float16), in half the room. They
        are read as float32.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder holds something else than an export.
    WeightsError
        If the tensors do not fit the configuration, or the disk is full:
        what was there before stays.

    Example
    -------
    >>> write_export(
    ...     getfixture("tmpdir") / "export",
    ...     state={},
    ...     config={"encoder": {}, "pooling": {"depth": 12}},
    ...     card={},
    ... )
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: encoder: missing class_tokens, ...
    """
    folder = resolved(folder)
    check_weights(Weights(state, config))
    seconds = window_seconds(config["encoder"], config["features"])
    if "pad_frames" not in config["features"]:
        seconds = max(seconds, least_window)
    config = {
        "format_version": FORMAT_VERSION,
        "window_seconds": seconds,
        **config,
    }
    # Heads of the older encoder would be wrong beside this one.
    replaced = (*EXPORT_FILES, HEADS_FOLDER)
    with (
        Replacing(folder, replaced, check_export_folder) as partial,
        _writing(folder),
    ):
        tensors = {key: _stored(value, half) for key, value in state.items()}
        save_file(tensors, partial / WEIGHTS_FILE, {"format": "pt"})
        _write(partial / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
        # safetensors lets only the owner read; the rest is as the user wants.
        shutil.copymode(partial / CONFIG_FILE, partial / WEIGHTS_FILE)
        _write(partial / HYPERPARAMS_FILE, _hyperparams(config))
        count = sum(
            value.numel()
            for key, value in state.items()
            if not key.startswith("objective.")
        )
        _write(partial / CARD_FILE, _model_card(folder, config, card, count))
        if label_encoder is not None:
            label_encoder.save(partial / LABELS_FILE)
    logger.info(f"Exported to {folder}")
    return folder


def _stored(value, half):
    """A tensor as it is written."""
    value = value.detach().cpu().contiguous().clone()
    return value.half() if half and value.is_floating_point() else value


@contextmanager
def _writing(folder):
    """Say which export cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{folder}: the export cannot be written ({error}); make room "
            "there and try again"
        ) from error


def _write(path, text):
    path.write_text(text, encoding="utf-8")


def check_weights(weights):
    """Raise unless the tensors are those of the configured model.

    Arguments
    ---------
    weights : Weights
        With the configuration of an exported folder.

    Raises
    ------
    WeightsError
        Lists the missing, unexpected and misshapen tensors.

    Example
    -------
    >>> config = {"encoder": {"depth": 1}, "pooling": {"depth": 1}}
    >>> check_weights(Weights({}, config))
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: encoder: missing class_tokens, ...
    """
    config = weights.config
    with torch.device("meta"):
        modules = {
            "encoder": SpectrogramEncoder(**config["encoder"]),
            "pooling": ClipPooling(**config["pooling"]),
        }
        if "labels" in config:
            modules["head"] = ClassificationHead(**head_arguments(config))
    for name, module in modules.items():
        compare(module.state_dict(), weights.part(name), name)


class Replacing:
    """Context of a new folder that takes the place of an old one at the end.

    The folder is there whole or, when anything is raised inside, as before.

    Arguments
    ---------
    folder : pathlib.Path
        The folder to replace, links resolved.
    files : tuple of str
        Names that belong to the old folder; its other entries are kept.
    check : callable
        Called with the folder; raises where it must not be replaced.

    Example
    -------
    >>> folder = Path(getfixture("tmpdir")) / "new"
    >>> with Replacing(folder, ("a",), check_export_folder) as partial:
    ...     _ = (partial / "a").write_text("1")
    >>> [path.name for path in folder.iterdir()]
    ['a']
    """

    def __init__(self, folder, files, check):
        self.folder = folder
        self.files = files
        self.check = check
        self.partial = folder.with_name(f".{folder.name}.partial")
        self.old = folder.with_name(f".{folder.name}.old")

    def __enter__(self):
        if self.old.exists() and not self.folder.exists():
            # An export was killed between the two renames.
            os.replace(self.old, self.folder)
        self.check(self.folder)
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind, error, trace):
        if kind is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        if not self.folder.exists():
            os.replace(self.partial, self.folder)
            return
        shutil.rmtree(self.old, ignore_errors=True)
        os.replace(self.folder, self.old)
        os.replace(self.partial, self.folder)
        for entry in self.old.iterdir():
            if entry.name not in self.files:
                os.replace(entry, self.folder / entry.name)
        shutil.rmtree(self.old)


class PassThrough(nn.Module):
    """Gives its first argument back.

    Stands where SpeechBrain's `EncoderClassifier` wants features and their
    normalisation: our lobe takes the waveform.

    Example
    -------
    >>> PassThrough()("wav", "wav_lens")
    'wav'
    """

    def forward(self, x, *_):
        """Give `x` back."""
        return x


class ExportPretrainer(Pretrainer):
    """SpeechBrain's Pretrainer with `paths` that are relative to the source.

    The parent looks for a bare file name in the working folder, and for files
    without a path only under the name ``<loadable>.ckpt``. This one takes the
    files of `paths` from the source that ``from_hparams`` was given: a
    folder, a URL or a model hub.

    Arguments
    ---------
    **arguments
        See ``speechbrain.utils.parameter_transfer.Pretrainer``; `paths` maps
        each loadable to a file name.

    Example
    -------
    >>> layer = torch.nn.Linear(1, 1)
    >>> folder = getfixture("tmpdir")
    >>> torch.save(layer.state_dict(), folder / "layer.pt")
    >>> pretrainer = ExportPretrainer(
    ...     loadables={"model": layer}, paths={"model": "layer.pt"}
    ... )
    >>> pretrainer.collect_files(default_source=folder)["model"].name
    'layer.pt'
    """

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.files = dict(self.paths)

    def collect_files(
        self,
        default_source=None,
        local_strategy=LocalStrategy.SYMLINK,
        fetch_config=FetchConfig(),  # noqa: B008, a frozen dataclass
    ):
        """Fetch the files; arguments and result as in the parent."""
        for name, file in self.files.items():
            if isinstance(default_source, FetchSource):
                kind, folder = default_source
                self.paths[name] = FetchSource(kind, f"{folder}/{file}")
            else:
                self.paths[name] = f"{default_source}/{file}"
        return super().collect_files(
            default_source, local_strategy, fetch_config
        )


def load_modules(modules, path):
    """Hook for a Pretrainer: load the tensors of an export, strictly.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        ``encoder``, ``pooling`` and perhaps ``head``.
    path : str or path
        The safetensors file. Tensors of an objective are left aside.

    Raises
    ------
    WeightsError
        If the file is missing or damaged, or its tensors are not those of
        the modules.

    Example
    -------
    >>> modules = torch.nn.ModuleDict({"encoder": torch.nn.Linear(1, 1)})
    >>> path = getfixture("tmpdir") / "model.safetensors"
    >>> save_file({"encoder.weight": torch.ones(1, 1)}, path)
    >>> load_modules(modules, path)
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: ...: encoder: missing bias
    """
    weights = Weights(read_state(path), {})
    known = {*modules, "objective"}
    surplus = [key for key in weights.state if key.split(".")[0] not in known]
    if surplus:
        raise WeightsError(f"{path}: unexpected {', '.join(surplus)}")
    for name, module in modules.items():
        load_strictly(module, weights.part(name), f"{path}: {name}")


def load_labels(label_encoder, path):
    """Hook for a Pretrainer: load the labels of an export, strictly.

    Arguments
    ---------
    label_encoder : speechbrain.dataio.encoder.CategoricalEncoder
        Loaded in place.
    path : str or path
        The file.

    Raises
    ------
    WeightsError
        If the file is missing or damaged.

    Example
    -------
    >>> load_labels(CategoricalEncoder(), "nowhere.txt")
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: nowhere.txt: missing or damaged (...)
    """
    try:
        label_encoder.load(path)
    except (OSError, ValueError, SyntaxError, KeyError) as error:
        raise WeightsError(f"{path}: missing or damaged ({error})") from error
    label_encoder.expect_len(len(label_encoder))


# What SpeechBrain's interfaces find in every export.
_MODULES = """
modules:
    compute_features: !new:ssast_lobes.export.PassThrough
    mean_var_norm: !new:ssast_lobes.export.PassThrough
    embedding_model: !new:ssast_lobes.lobe.SpectrogramLobe
        encoder: !ref <encoder>
        features: !ref <features>
        pooling: !ref <pooling>
        output: clip
    encoder: !new:ssast_lobes.lobe.SpectrogramLobe
        encoder: !ref <encoder>
        features: !ref <features>
        output: frames
"""

_PRETRAINED = """
parts: !new:torch.nn.ModuleDict
    - encoder: !ref <encoder>
      pooling: !ref <pooling>

pretrainer: !new:ssast_lobes.export.ExportPretrainer
    loadables:
        model: !ref <parts>
    paths:
        model: {weights}
    custom_hooks:
        model: !name:ssast_lobes.export.load_modules
"""

_CLASSIFIER = """\
    classifier: !ref <classifier>

label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder

parts: !new:torch.nn.ModuleDict
    - encoder: !ref <encoder>
      pooling: !ref <pooling>
      head: !ref <head>

pretrainer: !new:ssast_lobes.export.ExportPretrainer
    loadables:
        model: !ref <parts>
        label_encoder: !ref <label_encoder>
    paths:
        model: {weights}
        label_encoder: {labels}
    custom_hooks:
        model: !name:ssast_lobes.export.load_modules
        label_encoder: !name:ssast_lobes.export.load_labels
"""


def _hyperparams(config):
    """Text of the YAML for SpeechBrain's interfaces."""
    text = (
        "# For SpeechBrain's from_hparams: builds what config.json describes\n"
        "# and loads model.safetensors into it, strictly.\n\n"
    )
    rate = config["features"]["sample_rate"]
    text += (
        "audio_normalizer: !name:ssast_lobes.data.audio.to_mono\n"
        f"    sample_rate: {rate}\n"
    )
    text += _new(
        "features", "ssast_lobes.features.FrontEnd", config["features"]
    )
    text += _new(
        "encoder", "ssast_lobes.encoder.SpectrogramEncoder", config["encoder"]
    )
    text += _new("pooling", "ssast_lobes.heads.ClipPooling", config["pooling"])
    files = {"weights": WEIGHTS_FILE, "labels": LABELS_FILE}
    if config["kind"] == "pretrained":
        return text + _MODULES + _PRETRAINED.format(**files)
    head = "ssast_lobes.heads.ClassificationHead"
    text += _new("head", head, head_arguments(config))
    # Log-probabilities of each label by itself, or among all labels.
    last = "LogSigmoid" if config["multi_label"] else "LogSoftmax"
    text += (
        "\nclassifier: !new:torch.nn.Sequential\n"
        "    - !ref <head>\n"
        f"    - !new:torch.nn.{last}\n"
    )
    text += "" if config["multi_label"] else "        dim: -1\n"
    return text + _MODULES + _CLASSIFIER.format(**files)


def _new(key, name, arguments):
    """A YAML node that builds `name` with plain arguments."""
    plain = yaml.safe_dump(arguments, sort_keys=False, default_flow_style=None)
    return f"{key}: !new:{name}\n" + textwrap.indent(plain, "    ")


_USES = {
    "pretrained": """
from ssast_lobes.inference import AudioEncoder

encoder = AudioEncoder.from_hparams("{name}")
clip = encoder.encode_file("audio.wav")  # one vector
frames = encoder.encode_file("audio.wav", output="frames")  # (time, D)
""",
    "classifier": """
from ssast_lobes.inference import AudioClassifier

classifier = AudioClassifier.from_hparams("{name}")
result = classifier.classify_file("audio.wav")
print(result.labels, result.scores)
""",
}
_SPEECHBRAIN_USES = {
    "pretrained": """
from speechbrain.inference.speaker import SpeakerRecognition

encoder = SpeakerRecognition.from_hparams(source="{name}")
clip = encoder.encode_batch(encoder.load_audio("audio.wav"))  # (1, 1, size)
""",
    "classifier": """
from speechbrain.inference.classifiers import EncoderClassifier

classifier = EncoderClassifier.from_hparams(source="{name}")
log_probabilities, score, index, label = classifier.classify_file("audio.wav")
""",
}
_YAML_USE = """
ssl_model: !new:ssast_lobes.SSAST
    source: {name}
    output: frames
    freeze: True
"""


PIPELINE_TAGS = {
    "pretrained": "feature-extraction",
    "classifier": "audio-classification",
}
USE_HEADING = "## Use"


def _model_card(folder, config, card, n_parameters):
    """Text of the model card; front matter as model hubs read it."""
    kind, name = config["kind"], folder.name
    data = {
        "library_name": "speechbrain",
        "pipeline_tag": PIPELINE_TAGS[kind],
        "tags": ["audio", "ssast", "self-supervised", "ssast_lobes"],
    }
    metrics = card.get("metrics", {}) if kind == "classifier" else {}
    if names := [name for name, _ in _flat(metrics) if name != "loss"]:
        data["metrics"] = names
    lines = [
        front_matter(data) + f"# {card.get('name', name)}",
        "",
        _describe(config, n_parameters),
    ]
    for key, value in card.items():
        if key != "name":
            lines += ["", f"## {key.replace('_', ' ').capitalize()}", ""]
            lines += _table(value) if isinstance(value, dict) else [str(value)]
    place = (
        f"The examples run beside the folder `{name}`; elsewhere give its path."
    )
    lines += ["", use_section(kind, name, place)]
    return "\n".join(lines)


def front_matter(data):
    """The head of a model card, as model hubs read it.

    Arguments
    ---------
    data : dict
        Plain values.

    Returns
    -------
    str
        YAML between two lines of dashes, and an empty line.

    Example
    -------
    >>> front_matter({"license": "mit", "tags": ["audio"]})
    '---\\nlicense: mit\\ntags:\\n- audio\\n---\\n\\n'
    """
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n\n"


def use_section(kind, source, place):
    """The section of a model card that tells how to load the model.

    Arguments
    ---------
    kind : str
        ``"pretrained"`` or ``"classifier"``.
    source : str
        What is given to ``from_hparams``.
    place : str
        A sentence that tells where `source` is found.

    Returns
    -------
    str
        Markdown, from its heading ``## Use`` to the end of its last line.

    Example
    -------
    >>> use_section("classifier", "me/barks", "On the hub.").split("\\n")[0]
    '## Use'
    """
    needs = "Needs the Python package `ssast_lobes`."
    lines = [USE_HEADING, "", f"{needs} {place}"]
    uses = [
        ("Files of any rate and length", "python", _USES[kind]),
        ("In SpeechBrain alone", "python", _SPEECHBRAIN_USES[kind]),
        ("In the YAML of another recipe", "yaml", _YAML_USE),
    ]
    for title, language, text in uses:
        code = text.format(name=source).strip("\n")
        lines += ["", f"{title}:", "", f"```{language}", code, "```"]
    command = "classify" if kind == "classifier" else "embed"
    target = "results.csv" if kind == "classifier" else "embeddings.npz"
    lines += [
        "",
        f"Or `ssast-lobes {command} {source} FOLDER --output {target}`.",
    ]
    return "\n".join(lines) + "\n"


def _describe(config, n_parameters):
    """What the model is, in a paragraph."""
    encoder, features = config["encoder"], config["features"]
    grid, statistics = encoder["grid"], features["statistics"]
    kind = (
        "An audio spectrogram transformer (SSAST, Gong et al., AAAI 2022)"
        if encoder.get("blocks", "attention") == "attention"
        else "An audio spectrogram Mamba (SSAMBA, Shams et al., SLT 2024)"
    )
    text = (
        f"{kind} with {n_parameters / 1e6:.1f} million parameters: "
        f"{encoder['depth']} blocks of size {encoder['dim']} over patches of "
        f"{grid['patch'][0]} mel bins x {grid['patch'][1]} frames with stride "
        f"{grid['stride'][0]} x {grid['stride'][1]}. It takes mono audio at "
        f"{features['sample_rate']} Hz ({features['n_mels']} mel bins, "
        f"normalised with mean {statistics['mean']:.4f} and standard "
        f"deviation {statistics['std']:.4f}); our interfaces convert other "
        "audio, and cut what is longer than "
        f"{config['window_seconds']:.2f} s into windows of that length. "
    )
    if "pad_frames" in features:
        text += (
            f"Every clip is padded to {features['pad_frames']} frames, and "
            "the padding counts as audio. "
        )
    if config["kind"] == "pretrained":
        how = "Pretrained without labels. " if "objective" in config else ""
        return text + f"{how}It gives embeddings of clips, frames and patches."
    several = "any number" if config["multi_label"] else "one"
    labels = ", ".join(config["labels"][:20])
    more = ", ..." if len(config["labels"]) > 20 else ""
    return text + (
        f"Fine-tuned to give a clip {several} of {len(config['labels'])} "
        f"labels: {labels}{more}."
    )


def _table(values):
    """Lines of a table; nested names are joined with dots."""
    lines = ["| name | value |", "|---|---|"]
    for name, value in _flat(values):
        cell = f"{value:.6g}" if isinstance(value, float) else str(value)
        cell = " ".join(cell.split()).replace("|", "\\|")
        lines.append(f"| {name} | {cell} |")
    return lines


def _flat(values, above=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
