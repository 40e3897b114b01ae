"""A recipe's YAML and script agree: each key is used, and where it says.

The first tests know what SpeechBrain's own ``tests/utils/check_yaml.py`` asks
of a recipe; the others are stricter, and read the script's syntax tree.
"""

import ast
import csv
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from speechbrain.utils.run_opts import RunOptions

import ssast_lobes
from ssast_lobes.training import parse_arguments
from ssast_lobes.utils.presets import (
    hparams_folder,
    read_preset,
    read_tree,
    tag_of,
)

ROOT = Path(__file__).parents[2]
# These run other recipes.
LEFT_OUT = ("compare", "transfer", "SyntheticCommands")
RUN_OPTIONS = {field.name for field in fields(RunOptions)}
# The Brain and the function that makes the datasets read what they need.
TAKE_ALL = re.compile(r"\w*Brain|dataio_prepare")
# Their trainings are nobody else's, so that there is no preset.
OWN_TRAINING = (
    "LibriSpeech/ASR-CTC/hparams/ctc.yaml",
    "AudioSet-Strong/detect/hparams/audioset_strong.yaml",
    "DESED/detect/hparams/desed.yaml",
    "Soundscapes/detect/hparams/soundscapes.yaml",
    "template/hparams/train.yaml",
)
# What SpeechBrain's checker takes for the end of a name of a module.
MODULE = re.compile(r"self\.modules\.([^ ,()\[\]{}.:\n]*)")
OWN_METHODS = {"parameters", "keys", "eval", "train"}
# The comment that names the preset whose keys a part of a YAML repeats.
PRESET = re.compile(r"# .*\bhparams/(objective|training)/(\w+)\.yaml")


@cache
def rows():
    """Return (YAML, script) of all recipes, each pair once."""
    pairs = {}
    for table in sorted((ROOT / "tests" / "recipes").glob("*.csv")):
        with open(table, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                pair = ROOT / row["Hparam_file"], ROOT / row["Script_file"]
                if not set(pair[1].parts) & set(LEFT_OUT):
                    pairs[pair] = None
    return list(pairs)


def name_of(value):
    return value.relative_to(ROOT / "recipes").as_posix()


each_row = pytest.mark.parametrize("yaml, script", rows(), ids=name_of)
each_yaml = pytest.mark.parametrize(
    "yaml", list(dict.fromkeys(yaml for yaml, _ in rows())), ids=name_of
)


def tell(problems):
    """Fail with a line for each problem."""
    lines = list(problems)
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


# As SpeechBrain reads them -------------------------------------------------


def unused_in_text(yaml, script):
    """Return the keys that SpeechBrain's checker finds no use of."""
    keys = []
    for line in yaml.read_text("utf-8").splitlines():
        if len(line) <= 1 or line.startswith("#"):
            continue
        is_key = line[0] not in " \t" and ":" in line
        if is_key and "!!" not in line and "!apply" not in line:
            keys.append(line[: line.find(":")])
        if "!ref" in line:
            # Only a reference further down is a use.
            for name in re.findall(r"<([^>\[]*)", line):
                if name in keys:
                    keys.remove(name)
    text = script.read_text("utf-8")
    return [
        key
        for key in keys
        if key not in RUN_OPTIONS
        and f'["{key}"]' not in text
        and not re.search(rf"(hparams|modules)\.{key}", text)
        and f'attr(self.hparams, "{key}"' not in text
    ]


def undeclared_modules(yaml, script):
    """Return the modules of a script that the YAML does not list."""
    declared, within = set(), False
    for line in yaml.read_text("utf-8").splitlines():
        if "modules:" in line:
            within = True
        elif within and not line.startswith((" ", "\t")):
            within = False
        elif within:
            # A comment declares what the script adds.
            declared.add(line.strip(" #").split(":")[0])
    used = set(MODULE.findall(script.read_text("utf-8")))
    return sorted(used - declared - OWN_METHODS)


@each_row
def test_speechbrain_finds_each_key_used(yaml, script):
    tell(
        f"{name_of(yaml)}: {key} is not used in {name_of(script)}"
        for key in unused_in_text(yaml, script)
    )


@each_row
def test_speechbrain_finds_each_module_declared(yaml, script):
    tell(
        f"{name_of(script)}: self.modules.{name} is not in modules: of "
        f"{name_of(yaml)}"
        for name in undeclared_modules(yaml, script)
    )


# As they are run ------------------------------------------------------------


def nodes_of(node):
    """Yield a composed node of YAML and all below it."""
    yield node
    if isinstance(node, MappingNode):
        for _, child in node.value:
            yield from nodes_of(child)
    elif isinstance(node, SequenceNode):
        for child in node.value:
            yield from nodes_of(child)


@cache
def composed(yaml):
    """Return the nodes of a YAML by key."""
    tree = YAML().compose(yaml.read_text("utf-8"))
    return {key.value: (key, node) for key, node in tree.value}


def references(node):
    """Yield (key path, line) of the references below a node."""
    for one in nodes_of(node):
        if isinstance(one, ScalarNode) and str(one.tag) in ("!ref", "!copy"):
            for path in re.findall(r"<([^>]*)>", one.value):
                yield path, one.start_mark.line + 1


class Script(ast.NodeVisitor):
    """What a script does with ``hparams``."""

    def __init__(self, path):
        self.read = set()
        # Of the YAML for sure.
        self.asked = set()
        self.problems = []
        self.visit(ast.parse(path.read_text("utf-8")))

    def visit_Subscript(self, node):
        """Note ``hparams["key"]``, and of plain settings ``own["key"]``."""
        key = getattr(node.slice, "value", None)
        if isinstance(key, str) and isinstance(node.ctx, ast.Load):
            self.read.add(key)
            if is_hparams(node.value):
                self.asked.add(key)
        self.generic_visit(node)

    def visit_Attribute(self, node):
        """Note ``self.hparams.key``; methods of the mapping are refused."""
        if is_hparams(node.value):
            if isinstance(node.value, ast.Attribute) and node.attr != "get":
                self.read.add(node.attr)
            else:
                self.say(node, f"hparams.{node.attr}")
        self.generic_visit(node)

    def visit_Call(self, node):
        """Refuse ``hparams`` whole, but for those that take it."""
        function = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        given = [
            one.value if isinstance(one, ast.Starred) else one for one in given
        ]
        if any(map(is_hparams, given)) and not TAKE_ALL.fullmatch(function):
            self.say(node, f"{function} is given hparams whole")
        self.generic_visit(node)

    def say(self, node, what):
        """Note a problem with its line."""
        self.problems.append(f"line {node.lineno}: {what}")


def is_hparams(node):
    return getattr(node, "attr", getattr(node, "id", None)) == "hparams"


def problems_of(yaml, script):
    """Return a line for each thing that is not as it should be."""
    keys, code = composed(yaml), Script(script)
    first_use, problems = {}, []
    for _, node in keys.values():
        for path, line in references(node):
            first_use.setdefault(re.split(r"[.\[]", path)[0], line)
    whole = {path for _, n in keys.values() for path, _ in references(n)}
    for key, (place, node) in keys.items():
        where = f"{name_of(yaml)}:{place.start_mark.line + 1}: {key}"
        used = key in code.read or key in RUN_OPTIONS or key.startswith("__")
        if key not in first_use and not used:
            problems.append(f"{where} is not used")
        if first_use.get(key, place.start_mark.line + 1) <= (
            place.start_mark.line
        ):
            problems.append(f"{where} stands below what refers to it")
        plain = isinstance(node, MappingNode) and str(node.tag).endswith(":map")
        if plain and key not in code.read and key not in whole:
            problems.append(f"{where} only groups keys")
        if str(node.tag).startswith("!include"):
            problems.append(f"{where} is included")
    missing = code.asked - set(keys)
    problems += [
        f"{name_of(script)}: hparams has no {key}" for key in sorted(missing)
    ]
    return problems + [f"{name_of(script)}: {line}" for line in code.problems]


@each_row
def test_each_key_is_used_by_the_code(yaml, script):
    tell(problems_of(yaml, script))


@each_yaml
def test_only_public_names_stand_in_a_yaml(yaml):
    public = {f"ssast_lobes.{name}" for name in ssast_lobes.__all__}
    names = re.findall(r"![a-z]+:(ssast_lobes[\w.]*)", yaml.read_text("utf-8"))
    tell(
        f"{name_of(yaml)}: {name} is no public name"
        for name in sorted(set(names) - public)
    )


# Presets --------------------------------------------------------------------


def presets_of(yaml):
    """Return (kind, name) of the presets that a YAML repeats."""
    lines = yaml.read_text("utf-8").splitlines()
    found = [PRESET.match(line) for line in lines]
    # The words of the head are examples.
    found = [match for match in found if match and ": " in match[0]]
    return [(match[1], match[2]) for match in found]


def resolved(node, tree):
    """Return a node with references to plain keys put in, to compare."""
    tag = tag_of(node)
    if tag in ("!ref", "!copy"):
        key = re.fullmatch(r"<(\w+)>", node.value)
        if key and not isinstance(tree[key[1]], dict):
            return resolved(tree[key[1]], tree)
        return tag, node.value
    if isinstance(node, dict):
        return tag, {k: resolved(child, tree) for k, child in node.items()}
    if isinstance(node, list):
        return tag, [resolved(child, tree) for child in node]
    return getattr(node, "value", node)


def differences(place, one, other):
    """Yield a line for each node that is not the same."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        if one[0] != other[0]:
            yield f"{place}: {one[0]}, by the word {other[0]}"
        one, other = one[1], other[1]
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            yield from differences(
                f"{place}[{key}]", one.get(key), other.get(key)
            )
    elif one != other or type(one) is not type(other):
        yield f"{place}: {one}, by the word {other}"


@each_yaml
def test_the_default_presets_change_nothing(yaml):
    tree = read_tree(yaml)
    presets = presets_of(yaml)
    problems = []
    own = name_of(yaml) in OWN_TRAINING or "opt_class" not in tree
    if own == ("training" in dict(presets)):
        problems.append(
            f"{name_of(yaml)} names no preset of its training, or one too many"
        )
    for kind, name in presets:
        preset = read_preset(kind, name)
        whole = {**tree, **preset}
        for key in preset:
            place = f"{name_of(yaml)}: {key}"
            if key not in tree:
                problems.append(f"{place} is only in --{kind} {name}")
                continue
            problems += differences(
                place, resolved(tree[key], tree), resolved(preset[key], whole)
            )
    tell(problems)


@each_yaml
def test_the_default_words_are_taken(yaml):
    """And the command line refuses none of their keys."""
    holes = re.findall(
        r"^(\w+): !PLACEHOLDER", yaml.read_text("utf-8"), re.MULTILINE
    )
    given = [f"--{key}=given" for key in holes]
    for kind, name in presets_of(yaml):
        parse_arguments([str(yaml), *given, f"--{kind}={name}"])


def test_the_words_of_the_tables_are_files():
    for kind, name in {pair for yaml, _ in rows() for pair in presets_of(yaml)}:
        assert (hparams_folder() / kind / f"{name}.yaml").is_file()


# The checks themselves ------------------------------------------------------


BAD_YAML = """\
seed: 1
late: !ref <folder>
folder: out
unused: 2
commented: 3
groups:
    a: 4
opt_class: !name:torch.optim.AdamW
    lr: !ref <seed>
modules:
    model: 5
"""
BAD_SCRIPT = """\
class Own(Brain):
    def compute(self):
        return self.modules.model(self.modules.other)

def main(arguments):
    # hparams["commented"]
    hparams["opt_class"](hparams["missing"], hparams.get("late"))
    train(hparams)
    train(**hparams)
    hparams["unused"] = hparams["late"]
    return Own(hparams["modules"], hparams=hparams)
"""


def test_mistakes_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    yaml = tmp_path / "recipes" / "train.yaml"
    script = yaml.with_name("train.py")
    yaml.parent.mkdir()
    yaml.write_text(BAD_YAML)
    # `Own` is no Brain by its name.
    script.write_text(BAD_SCRIPT.replace("Own(", "OwnBrain("))
    assert unused_in_text(yaml, script) == ["folder", "groups"]
    assert undeclared_modules(yaml, script) == ["other"]
    assert problems_of(yaml, script) == [
        "train.yaml:3: folder stands below what refers to it",
        "train.yaml:4: unused is not used",
        "train.yaml:5: commented is not used",
        "train.yaml:6: groups is not used",
        "train.yaml:6: groups only groups keys",
        "train.py: hparams has no missing",
        "train.py: line 7: hparams.get",
        "train.py: line 8: train is given hparams whole",
        "train.py: line 9: train is given hparams whole",
    ]
    script.write_text(BAD_SCRIPT)
    assert "train.py: line 11: Own is given hparams whole" in problems_of(
        yaml, script
    )
