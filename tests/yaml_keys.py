"""Which keys of a YAML a script uses; for the recipes that swap a lobe in.

SpeechBrain's own checker is textual and does not follow `!include:`. This one
walks the YAML trees: an included preset hangs at the key that includes it,
and its keys are in use when the recipe refers to `<key[subkey]>`, hands
`<key>` on whole, or when Python code reads them from `hparams`. The recipes
of this repository have `test_recipe_consistency.py`.
"""

import ast
import re
from dataclasses import fields
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from speechbrain.utils.run_opts import RunOptions

ROOT = Path(__file__).parent.parent
# The Brain reads these from the YAML by itself.
RUN_OPTIONS = {field.name for field in fields(RunOptions)}
INCLUDE = "!include:"
PLAIN = "tag:yaml.org,2002:map"
# Methods of a mapping that read all of it.
WHOLE = {"items", "keys", "values", "copy"}
# Where the key paths of Python code start.
ROOTS = {"hparams": (), "modules": ("modules",)}
PRESETS = "<presets>"
LOAD_PRESET = "load_preset"


def related(path, other):
    """Whether one key path is the other one or leads to it."""
    shorter = min(len(path), len(other))
    return path[:shorter] == other[:shorter]


class Tree:
    """The keys of a YAML file with all it includes, and what is used of them.

    A key path is a tuple, such as ("model", "dim") for `<model[dim]>`.
    `replace` reads one included file in place of another.
    """

    def __init__(self, file, replace=None):
        self.replace = replace or {}
        self.keys = {}  # key path -> (file, line, column)
        self.arguments = set()  # key paths that are handed to a callable
        self.references = {}  # key path -> where one reference to it is
        self.problems = []
        self.included = set()  # files
        self._read(file.resolve(), ())

    def _read(self, file, at, argument=False):
        """Hang a file's tree at a key path; its references start there."""
        self._walk(YAML().compose(file.read_text()), file, at, at, argument)

    def _walk(self, node, file, at, scope, argument):
        tag = str(node.tag)
        if tag.startswith(INCLUDE):
            self._include(node, file, at, scope, argument)
        elif isinstance(node, MappingNode):
            argument = argument or tag != PLAIN
            for key, value in node.value:
                path = (*at, key.value)
                self.keys[path] = place(file, key)
                if argument:
                    self.arguments.add(path)
                self._walk(value, file, path, scope, argument)
        elif isinstance(node, SequenceNode):
            for index, value in enumerate(node.value):
                self._walk(value, file, (*at, index), scope, True)
        elif isinstance(node, ScalarNode) and tag in ("!ref", "!copy"):
            for name in re.findall(r"<([^>]*)>", node.value):
                name = name.split(".")[0].replace("]", "")
                path = (*scope, *name.split("["))
                self.references[path] = place(file, node)

    def _include(self, node, file, at, scope, argument):
        target = (file.parent / str(node.tag)[len(INCLUDE) :]).resolve()
        self.included.add(target)
        self._read(self.replace.get(target, target), at, argument)
        if not isinstance(node, MappingNode):
            return
        # What stands below an `!include:` overrides the keys of the file.
        for key, value in node.value:
            path = (*at, key.value)
            if path not in self.keys:
                where = describe(place(file, key))
                self.problems.append(
                    f"{where}: {target.name} has no key {key.value}"
                )
            self._walk(value, file, path, scope, argument)

    def is_used(self, path, code):
        """Whether YAML or code (a set of key paths) makes use of a key."""
        return (
            path in self.arguments
            or path[0].startswith("__")
            or (len(path) == 1 and path[0] in RUN_OPTIONS)
            or any(related(path, other) for other in self.references)
            or any(related(path, other) for other in code)
        )

    def used_places(self, code):
        """Return where the keys in use are."""
        return {
            where
            for path, where in self.keys.items()
            if self.is_used(path, code)
        }

    def dangling(self):
        """Return a line for each reference to a key that is not there."""
        return [
            f"{describe(where)}: <{spell(path)}> is not there"
            for path, where in self.references.items()
            if path not in self.keys
        ]


def place(file, node):
    """Return the file, line and column of a YAML node."""
    return file, node.start_mark.line + 1, node.start_mark.column + 1


def describe(where):
    """Return a place in a file, to click on."""
    file, line, _ = where
    file = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name
    return f"{file}:{line}"


def spell(path):
    """Return a key path as `!ref` spells it."""
    return path[0] + "".join(f"[{part}]" for part in path[1:])


class CodeReader(ast.NodeVisitor):
    """Collect the longest key paths that a module reads from hparams.

    What it reads by `load_preset(kind, name)` is collected as the path
    (PRESETS, kind, name, key), with "*" for a name that is not a constant.
    """

    def __init__(self, source):
        tree = ast.parse(source)
        self.words = {}  # variable -> the strings it may hold
        self.presets = {}  # variable -> the preset it holds
        for node in ast.walk(tree):
            self._bind(node)
        self.paths = set()
        self.visit(tree)

    def _bind(self, node):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            self.presets |= {name_in(target): p for p in self._preset(value)}
        elif isinstance(node, ast.For | ast.comprehension):
            target, value = node.target, node.iter
        else:
            return
        self.words.setdefault(name_in(target), set()).update(self._text(value))

    def _text(self, node):
        """Return the strings that a node may be, or hold."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return {node.value}
        if isinstance(node, ast.IfExp):
            return self._text(node.body) | self._text(node.orelse)
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return set().union(*map(self._text, node.elts))
        return self.words.get(name_in(node), set())

    def _preset(self, node):
        """Return the paths of a call of `load_preset`."""
        if not isinstance(node, ast.Call) or name_in(node.func) != LOAD_PRESET:
            return set()
        kind, name = node.args
        names = self._text(name) or {"*"}
        return {(PRESETS, k, n) for k in self._text(kind) for n in names}

    def _read(self, node):
        """Return the key paths that an expression reads, if it reads any."""
        name = name_in(node)
        if name in ROOTS:
            return {ROOTS[name]}
        if name in self.presets:
            return {self.presets[name]}
        base, key = self._preset(node), None
        if isinstance(node, ast.Attribute):
            base, key = self._read(node.value), {node.attr}
        elif isinstance(node, ast.Subscript):
            base, key = self._read(node.value), self._text(node.slice)
        elif isinstance(node, ast.Call) and len(node.args) > 0:
            if getattr(node.func, "attr", None) in ("get", "pop"):
                base = self._read(node.func.value)
                key = self._text(node.args[0])
            elif name_in(node.func) in ("getattr", "hasattr"):
                base = self._read(node.args[0])
                key = self._text(node.args[1])
        elif isinstance(node, ast.Compare):
            if isinstance(node.ops[0], ast.In | ast.NotIn):
                base = self._read(node.comparators[0])
                key = self._text(node.left)
        if key is None:
            return base
        key = {() if part in WHOLE else (part,) for part in key}
        return {path + part for path in base for part in key}

    def visit(self, node):
        """Collect from a node, and from its parts if it reads nothing."""
        paths = self._read(node)
        if not paths:
            super().visit(node)
        elif isinstance(getattr(node, "ctx", None), ast.Store):
            return  # written, not read
        elif isinstance(node, ast.Call):
            for argument in node.args[1:]:
                self.visit(argument)
        # The empty path is hparams itself, handed on: not a use of its keys.
        self.paths |= paths - {()}

    def visit_Assign(self, node):
        """Pass over a preset that gets a name: what matters is its use."""
        if not self._preset(node.value):
            self.generic_visit(node)


def name_in(node):
    """Return the last name of a variable or an attribute, or None."""
    return getattr(node, "attr", getattr(node, "id", None))


def unused(file, places):
    """Return a line for each key of one file that is used in no place.

    `places` is a list of trees that hold it, each with the key paths that
    code reads from it.
    """
    keys, used = {}, set()
    for tree, code in places:
        keys |= {where: path[-1] for path, where in tree.keys.items()}
        used |= tree.used_places(code)
    return [
        f"{describe(where)}: key {key} is not used"
        for where, key in keys.items()
        if where[0] == file.resolve() and where not in used
    ]
