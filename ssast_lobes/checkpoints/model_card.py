"""Model cards: a description of a model and its use."""

import re

# `huggingface_hub` imports its modules lazily, so an export imports no hub
# client.
import huggingface_hub
import yaml

from ssast_lobes.checkpoints.format import CARD_FILE, HubError
from ssast_lobes.utils.chance import CHANCE

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
    "detector": """
from ssast_lobes.inference import EventDetector

detector = EventDetector.from_hparams("{name}")
for event in detector.detect_file("audio.wav").events:
    print(event.onset, event.offset, event.label, event.score)
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
_SPEECHBRAIN_USES["detector"] = _SPEECHBRAIN_USES["pretrained"]
_YAML_USE = """
ssl_model: !new:ssast_lobes.SSAST
    source: {name}
    output: frames
    freeze: True
"""
PIPELINE_TAGS = {
    "pretrained": "feature-extraction",
    "classifier": "audio-classification",
    "detector": "audio-classification",
}
_COMMANDS = {
    "pretrained": ("embed", "embeddings.npz"),
    "classifier": ("classify", "results.csv"),
    "detector": ("events", "events.csv"),
}
_MAMBA = "An audio spectrogram Mamba (SSAMBA, Shams et al., SLT 2024)"
_KINDS = {
    "attention": (
        "An audio spectrogram transformer (AST, Gong et al., Interspeech 2021)"
    ),
    "attention_post_norm": "A post-norm transformer of spectrograms",
    "beats": "BEATs (Chen et al., ICML 2023)",
}
USE_HEADING = "## Use"
_USE_SECTION = re.compile(rf"^{USE_HEADING}\n.*?(?=^## |\Z)", re.M | re.S)
_SECTION = re.compile(r"^## (.*?)\n(.*?)(?=^## |\Z)", re.M | re.S)
# Entries of a card that belong in the front matter.
_FRONT = ("license", "base_model")
# An absolute path of more than one part, outside of web addresses.
_PATH = re.compile(
    r"""(?<![\w.:/~-])(?:~|[A-Za-z]:)?(?:[/\\]+[^\s/\\"'`,;|(){}\[\]]+){2,}/?"""
)


def model_card_text(folder, config, card, n_parameters):
    """Return the model card, with the front matter for model hubs.

    Arguments
    ---------
    folder : pathlib.Path
        Folder of the export. Its name is the title, unless it is ``export`` or
        `card` contains a ``"name"``.
    config : dict
        Configuration of the exported folder.
    card : dict
        Entries of the card; see
        `ssast_lobes.checkpoints.folder.export_pretrained`.
    n_parameters : int
        Number of parameters of the model, without its objective.

    Returns
    -------
    str
        Markdown without absolute paths, which would reveal a person's computer;
        see `without_private_paths`.
    """
    kind, name = config["kind"], folder.name
    metrics = {} if kind == "pretrained" else card.get("metrics", {})
    names = [key for key, _ in _flat(metrics)]
    data = huggingface_hub.ModelCardData(
        library_name="speechbrain",
        pipeline_tag=PIPELINE_TAGS[kind],
        tags=["audio", "self-supervised", "ssast_lobes"],
        metrics=[
            key for key in names if key != "loss" and not key.endswith(CHANCE)
        ]
        or None,
        **{key: card.get(key) for key in _FRONT},
    )
    title = card.get("name", name if name != "export" else _title(config))
    lines = [
        f"---\n{data}\n---\n\n# {title}",
        "",
        _describe(config, n_parameters),
    ]
    for key, value in card.items():
        if key not in ("name", *_FRONT):
            lines += ["", f"## {key.replace('_', ' ').capitalize()}", ""]
            lines += _table(value) if isinstance(value, dict) else [str(value)]
    place = f"The examples run next to the folder `{name}`; or give its path."
    text = without_private_paths("\n".join(lines))
    return f"{text}\n\n{use_section(kind, name, place)}"


def without_private_paths(text):
    """Replace absolute paths in a text by names of files and folders.

    Arguments
    ---------
    text : str
        Any text.

    Returns
    -------
    str

    Example
    -------
    >>> without_private_paths("--audio='/data/me/My dogs/barks.csv' --lr=1/2")
    "--audio='My dogs/barks.csv' --lr=1/2"
    >>> without_private_paths("~/models/1986/export, https://x.org/a/b")
    '1986/export, https://x.org/a/b'
    """

    def name(match):
        *above, last = re.split(r"[/\\]+", match[0].rstrip("/\\"))
        # The export of every run is named `export`, so add the name of the run.
        # Leave out the name of a home folder, which identifies a person.
        run = above[-1] if len(above) > 2 else ""
        private = not run or above[-2] in ("home", "Users")
        if above[-1] in ("home", "Users"):
            return "~"
        return last if last != "export" or private else f"{run}/{last}"

    return _PATH.sub(name, text)


def read_card(folder):
    """Read the entries of a model card, without its section ``Use``.

    Arguments
    ---------
    folder : pathlib.Path
        The folder; without a card, the result is empty.

    Returns
    -------
    dict of str to str
        Text of each section except ``Use``, by heading. If the front matter
        states ``license`` or ``base_model``, they are added. The dict can be
        the `card` of another export.

    Example
    -------
    >>> from ssast_lobes.checkpoints.bundled import bundled_model
    >>> card = read_card(bundled_model("ssast-lobes-micro-1"))
    >>> card["license"], card["Pretraining"].split(":")[0]
    ('apache-2.0', 'ContrastiveMSPM')
    """
    path = folder / CARD_FILE
    if not path.is_file():
        return {}
    text = path.read_text("utf-8")
    sections = {key: part.strip() for key, part in _SECTION.findall(text)}
    sections.pop(USE_HEADING.removeprefix("## "), None)
    try:
        data = huggingface_hub.ModelCard(text).data.to_dict()
    except (yaml.YAMLError, TypeError, ValueError):
        data = {}
    return sections | {key: data[key] for key in _FRONT if key in data}


def use_section(kind, source, place):
    """Return the section of a model card that explains how to load the model.

    Arguments
    ---------
    kind : str
        ``"pretrained"``, ``"classifier"`` or ``"detector"``.
    source : str
        Argument of ``from_hparams``: a folder, or a name on the hub.
    place : str
        A sentence that tells where to find `source`.

    Returns
    -------
    str
        Markdown that begins with the heading ``## Use``.

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
    command, target = _COMMANDS[kind]
    lines += [
        "",
        f"Or `ssast-lobes {command} {source} FOLDER --output {target}`.",
    ]
    return "\n".join(lines) + "\n"


def hub_card(text, kind, repo_id, license=None, datasets=(), tags=()):
    """Return the model card of an export for a hub.

    Arguments
    ---------
    text : str
        The card of the exported folder.
    kind : str
        ``"pretrained"``, ``"classifier"`` or ``"detector"``.
    repo_id, license, datasets, tags
        See `ssast_lobes.checkpoints.push.push_to_hub`.

    Returns
    -------
    str
        The card with the complete front matter, and with a section ``Use``
        that names the repository.

    Raises
    ------
    HubError
        If there is no license, or the front matter is damaged.

    Example
    -------
    >>> text = "---\\ntags: [audio]\\n---\\n\\n# export\\n"
    >>> print(hub_card(text, "classifier", "me/barks", license="mit"))
    ---
    tags:
    - audio
    license: mit
    ---
    <BLANKLINE>
    # export
    <BLANKLINE>
    """
    try:
        card = huggingface_hub.ModelCard(text)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise HubError(
            f"{CARD_FILE}: the front matter is damaged ({error})"
        ) from error
    data = card.data
    data.license = license or data.license
    if not data.license:
        raise HubError(
            f"{CARD_FILE} names no license: give one, such as "
            "license='cc-by-4.0'; the data the model was trained on may limit "
            "the choice"
        )
    data.datasets = list(datasets) or data.datasets
    data.tags = list(dict.fromkeys([*(data.tags or ()), *tags])) or None
    place = (
        f"`{repo_id}` is fetched from the hub and kept; "
        f"`{repo_id}@REVISION` is a version of it."
    )
    section = use_section(kind, repo_id, place)
    card.text = _USE_SECTION.sub(lambda _: section, card.text)
    return str(card)


def _describe(config, n_parameters):
    """Describe the model in a paragraph."""
    encoder, features = config["encoder"], config["features"]
    grid, statistics = encoder["grid"], features["statistics"]
    kind = _KINDS.get(encoder.get("blocks", "attention"), _MAMBA)
    if {"n_class_tokens", "norms", "crop"} & encoder.keys():
        kind = "A vision transformer of spectrograms"
    mean, std = statistics["mean"], statistics["std"]
    normalized = "normalized bin by bin"
    if not isinstance(mean, list):
        normalized = (
            f"normalized with mean {mean:.4f} and standard deviation {std:.4f}"
        )
    text = (
        f"{kind} with {n_parameters / 1e6:.1f} million parameters: "
        f"{encoder['depth']} blocks of size {encoder['dim']} over patches of "
        f"{grid['patch'][0]} mel bins x {grid['patch'][1]} frames with stride "
        f"{grid['stride'][0]} x {grid['stride'][1]}. It takes mono audio at "
        f"{features['sample_rate']} Hz ({features['n_mels']} mel bins, "
        f"{normalized}). The interfaces of ssast_lobes convert other audio, "
        f"and cut longer clips into windows of {config['window_seconds']:.2f} "
        "s. "
    )
    if "pad_frames" in features:
        text += (
            f"Every clip is padded to {features['pad_frames']} frames, and "
            "the padding counts as audio. "
        )
    if config["kind"] == "pretrained":
        how = ""
        if "objective" in config:
            how = (
                f"Pretrained without labels by {config['objective']['name']}. "
            )
        return text + (
            f"{how}It returns embeddings of clips, frames and patches. The "
            f"embedding of a clip is {_pooled(config['pooling'])}."
        )
    labels = ", ".join(config["labels"][:20])
    labels += ", ..." if len(config["labels"]) > 20 else ""
    count = len(config["labels"])
    if config["kind"] == "detector":
        step = grid["stride"][1] * 10
        return text + (
            f"It finds events of {count} classes, with onset and offset, from "
            f"scores every {step} ms: {labels}."
        )
    several = "any number" if config["multi_label"] else "one"
    return text + (
        f"It reads {_pooled(config['pooling'])}, and was trained to give a "
        f"clip {several} of {count} labels: {labels}."
    )


def _title(config):
    if config["kind"] == "classifier":
        return f"Audio classifier of {len(config['labels'])} labels"
    objective = config.get("objective")
    return "Audio encoder" + (f", {objective['name']}" if objective else "")


def _pooled(config):
    """Describe how a clip becomes one vector, by the pooling's settings."""
    what = {
        "mean": "the mean of its tokens",
        "class": "the mean of its class tokens",
        "statistics": "mean and deviation of its tokens",
        "dynamics": "mean, deviation and change over time of its tokens",
        "tokens": "the mean of its patch and class tokens",
        "class_mean": "its class token and the mean of its tokens",
        "bands": "the mean over time of each of its frequencies",
    }
    where = {
        "last": "after the last layer",
        "weighted": "in a learned mix of all layers",
        "all": "after every layer",
        "normed": "after every layer, normalized",
    }
    pooling, layers = (
        config.get("pooling", "mean"),
        config.get("layers", "last"),
    )
    return f"{what[pooling]} {where[layers]} (`{pooling}`, `{layers}`)"


def _table(values):
    """Return the lines of a table, with nested names joined by dots.

    The chance level of a value is next to it.
    """
    cells = {name: _cell(value) for name, value in _flat(values)}
    chances = {key for key in cells if key.endswith(CHANCE)}
    lines = ["| name | value |", "|---|---|"]
    if chances:
        lines = ["| name | value | chance |", "|---|---|---|"]
    for name in [key for key in cells if key not in chances]:
        row = [name, cells[name]]
        if chances:
            row.append(cells.get(f"{name}{CHANCE}", ""))
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _cell(value):
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _flat(values, above=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
