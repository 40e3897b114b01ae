#!/usr/bin/env python3
"""Write ``docs/yaml_keys.md``: the keys of the recipes, and what they do.

> python docs/yaml_keys.py

Each key stands where it comes first: in the recipes that people begin with,
then in those of datasets. Its meaning is the comment at its line, or the one
right above it, else the first sentence of the docstring of its class.
"""

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "yaml_keys.md"
FIRST = {
    "CustomData/pretrain/hparams/pretrain.yaml": "Pretraining",
    "CustomData/classify/hparams/classify.yaml": "Classification",
    "Soundscapes/detect/hparams/soundscapes.yaml": "Sound events",
    "LibriSpeech/ASR-CTC/hparams/ctc.yaml": "Speech recognition",
    "CustomData/compare/hparams/compare.yaml": "Comparing objectives",
}
# The key that names a preset, and the folder of the presets.
PRESETS = {
    "objective": "objective",
    "training": "training",
    "compute_cost": "compute_cost",
    "degradation": "degradation",
    "model_size": "model",
    "statistics": "features",
}
KEY = re.compile(r"^(?P<key>[a-zA-Z]\w*):(?P<value>.*?)(?:  # (?P<text>.*))?$")
OBJECT = re.compile(r"!(?:new|name):(?P<module>[\w.]+)\.(?P<name>\w+)")
HEAD = """\
# YAML keys: what each setting does

The command line sets any key, `--lr 0.001`, or a part of an object,
`--opt_class "{weight_decay: 0.1}"`. Each key stands here once, where it comes
first. A recipe further down has most of the keys above it too; a line below its
table names those with other values. `python train.py --help` lists the options
of SpeechBrain itself, such as `--device` and `--precision`.

`docs/yaml_keys.py` writes this page of the comments in the YAMLs.
"""
PRESETS_HEAD = """\
## Words that choose presets

Each word names a file. A path to a file of your own stands there as well. The
keys of an `objective` and of a `training` take the place of the recipe's.

| option | words |
|---|---|"""


def keys_of(path):
    """Yield (key, value, meaning) of each key of a YAML file."""
    above = []
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("# "):
            above.append(line[2:])
            continue
        if found := KEY.match(line):
            meaning = found["text"] or " ".join(above)
            yield found["key"], found["value"].strip(), meaning
        above = []


def described(value):
    """Return the first sentence of the docstring of an object of a YAML."""
    place = OBJECT.match(value)
    if not place:
        return ""
    module = importlib.import_module(place["module"])
    document = getattr(module, place["name"]).__doc__
    return " ".join(re.split(r"[.:]\s", document.strip())[0].split())


def recipes():
    """Yield the title, path, own keys and other keys of each recipe."""
    folder, seen = ROOT / "recipes", {}
    files = {folder / name: title for name, title in FIRST.items()}
    for path in sorted(folder.glob("*/*/hparams/*.yaml")):
        files.setdefault(path, f"{path.parts[-4]}, {path.stem}")
    for path, title in files.items():
        found = list(keys_of(path))
        rows = [
            (key, value, meaning or described(value))
            for key, value, meaning in found
            if key not in seen
        ]
        # Objects with lines of their own are not told by their first line.
        others = [
            (key, value)
            for key, value, _ in found
            if value and "!" not in value and seen.get(key, value) != value
        ]
        seen.update({key: value for key, value, _ in rows})
        if rows:
            yield title, path.relative_to(ROOT), rows, others


def spell(value):
    """Return a value as a cell of a table."""
    place = OBJECT.match(value)
    value = place["name"] if place else value.removeprefix("!ref ")
    return f"`{value}`" if value and value != "!PLACEHOLDER" else ""


def page():
    """Return the page."""
    lines = [HEAD]
    for title, path, rows, others in recipes():
        lines += [f"## {title}", "", f"[{path}](../{path})", ""]
        lines += ["| key | value | |", "|---|---|---|"]
        for key, value, meaning in rows:
            meaning = meaning.replace("|", "\\|")
            lines.append(f"| `{key}` | {spell(value)} | {meaning} |")
        lines.append("")
        if others:
            told = ", ".join(f"`{key}: {value}`" for key, value in others)
            lines += [f"Keys from above with other values: {told}.", ""]
    lines.append(PRESETS_HEAD)
    for key, folder in PRESETS.items():
        files = sorted((ROOT / "hparams" / folder).glob("*.yaml"))
        words = ", ".join(
            f"[{path.stem}](../{path.relative_to(ROOT)})" for path in files
        )
        lines.append(f"| `--{key}` | {words} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
