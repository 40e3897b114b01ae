"""Model cards: what a model is, and how to load it."""

import re

# It loads its parts when they are used: an export needs no client of a hub.
import huggingface_hub
import yaml

from ssast_lobes.checkpoints.format import CARD_FILE, HubError

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
USE_HEADING = "## Use"
_USE_SECTION = re.compile(rf"^{USE_HEADING}\n.*?(?=^## |\Z)", re.M | re.S)


def model_card_text(folder, config, card, n_parameters):
    """Return the model card, with the front matter that model hubs read.

    Arguments
    ---------
    folder : pathlib.Path
        Where the export goes; its name is that of the model, unless `card`
        has a ``"name"``.
    config : dict
        Configuration of the exported folder.
    card : dict
        See `ssast_lobes.checkpoints.folder.export_pretrained`.
    n_parameters : int
        Of the model, without its objective.

    Returns
    -------
    str
        Markdown.
    """
    kind, name = config["kind"], folder.name
    metrics = {} if kind == "pretrained" else card.get("metrics", {})
    data = huggingface_hub.ModelCardData(
        library_name="speechbrain",
        pipeline_tag=PIPELINE_TAGS[kind],
        tags=["audio", "ssast", "self-supervised", "ssast_lobes"],
        metrics=[key for key, _ in _flat(metrics) if key != "loss"] or None,
    )
    lines = [
        f"---\n{data}\n---\n\n# {card.get('name', name)}",
        "",
        _describe(config, n_parameters),
    ]
    for key, value in card.items():
        if key != "name":
            lines += ["", f"## {key.replace('_', ' ').capitalize()}", ""]
            lines += _table(value) if isinstance(value, dict) else [str(value)]
    place = f"The examples run next to the folder `{name}`; or give its path."
    lines += ["", use_section(kind, name, place)]
    return "\n".join(lines)


def use_section(kind, source, place):
    """Return the section of a model card that tells how to load the model.

    Arguments
    ---------
    kind : str
        ``"pretrained"``, ``"classifier"`` or ``"detector"``.
    source : str
        Argument of ``from_hparams``: a folder, or a name on the hub.
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
        The card in the exported folder.
    kind : str
        ``"pretrained"``, ``"classifier"`` or ``"detector"``.
    repo_id, license, datasets, tags
        See `ssast_lobes.checkpoints.push.push_to_hub`.

    Returns
    -------
    str
        The card: front matter completed, section ``Use`` as on the hub.

    Raises
    ------
    HubError
        If no license is named, or the front matter is damaged.

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
        f"normalized with mean {statistics['mean']:.4f} and standard "
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
        how = ""
        if "objective" in config:
            how = (
                f"Pretrained without labels by {config['objective']['name']}. "
            )
        return text + f"{how}It gives embeddings of clips, frames and patches."
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
        f"Fine-tuned to give a clip {several} of {count} labels: {labels}."
    )


def _table(values):
    """Return the lines of a table; nested names are joined with dots."""
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
