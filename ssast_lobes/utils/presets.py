"""Read named settings: the presets of ``hparams/``.

A number from a paper or an official script is stated in one preset only. Python
code that needs the number (``SSAST(model_size="tiny")``) reads it from there.

A *preset* (objective, training, degradation) is a piece of YAML whose keys
replace the same keys of a recipe. It may refer to any key of the recipe. A
preset may name another one as its ``base: NAME``, and then states only the keys
that differ.
"""

import difflib
import io
import re
from pathlib import Path

import yaml
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

_PACKAGE = Path(__file__).parents[1]


def hparams_folder():
    """Return the folder of the presets.

    In an installed wheel, the folder is inside the package. In a checkout, it
    is ``hparams/`` next to the package.

    Returns
    -------
    pathlib.Path
        The folder that contains ``model/``, ``features/`` and so on.

    Example
    -------
    >>> (hparams_folder() / "model" / "tiny.yaml").exists()
    True
    """
    shipped = _PACKAGE / "hparams"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "hparams"


def preset_path(kind, name):
    """Return the path of a preset.

    Arguments
    ---------
    kind : str
        Folder under ``hparams/``, such as ``"model"`` or ``"features"``.
    name : str
        File name without ``.yaml``.

    Returns
    -------
    pathlib.Path
        The YAML file.

    Raises
    ------
    ValueError
        If there is no such preset; the message lists the existing ones.

    Example
    -------
    >>> preset_path("model", "tiny").name
    'tiny.yaml'
    """
    folder = hparams_folder() / kind
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"no {kind} preset named '{name}'{hint}; there are: "
            f"{', '.join(known)}"
        )
    return path


def load_preset(kind, name):
    """Read one preset that contains only numbers.

    Arguments
    ---------
    kind : str
        Folder under ``hparams/``, such as ``"model"`` or ``"features"``.
    name : str
        File name without ``.yaml``.

    Returns
    -------
    dict
        The preset's keys and numbers.

    Raises
    ------
    ValueError
        If there is no such preset; the message lists the existing ones.

    Example
    -------
    >>> load_preset("model", "tiny")["dim"]
    192
    """
    with open(preset_path(kind, name), encoding="utf-8") as file:
        return yaml.safe_load(file)


def read_preset(kind, name):
    """Return a preset as a tree of YAML, with its tags and references.

    Arguments
    ---------
    kind : str
        Folder under ``hparams/``, such as ``"objective"``.
    name : str
        File name without ``.yaml``, or the path of a file, which ends in
        ``.yaml``. A relative path after ``base:`` starts from the folder of the
        file that states it.

    Returns
    -------
    ruamel.yaml.comments.CommentedMap
        Nodes by key, including those of the base.

    Raises
    ------
    ValueError
        If there is no such preset, or it is not a mapping of keys.

    Example
    -------
    >>> preset = read_preset("objective", "m2d_small_data")
    >>> preset["objective"]["momentum"], preset["mask_ratio"]
    ([0.99, 1.0], 0.7)
    """
    return _read_preset(kind, _preset_file(kind, name, Path()), [])


def _preset_file(kind, name, folder):
    if str(name).endswith(".yaml"):
        return folder / Path(name).expanduser()
    return preset_path(kind, name)


def _read_preset(kind, path, above):
    if path.resolve() in above:
        raise ValueError(f"{path}: it is its own base")
    tree = read_tree(path)
    if "base" not in tree:
        return tree
    base = _preset_file(kind, tree.pop("base"), path.parent)
    whole = _read_preset(kind, base, [*above, path.resolve()])
    try:
        return merge(whole, tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_tree(path):
    """Return a YAML file as a tree, with its tags and references.

    Arguments
    ---------
    path : str or os.PathLike

    Returns
    -------
    ruamel.yaml.comments.CommentedMap

    Raises
    ------
    ValueError
        If there is no such file, or it is not a YAML of keys and values.

    Example
    -------
    >>> read_tree(preset_path("objective", "m2d"))["mask_ratio"]
    0.7
    """
    try:
        tree = YAML().load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(tree, dict) or tag_of(tree):
        raise ValueError(f"{path} holds no keys of a recipe")
    return tree


def tag_of(node):
    """Return the tag of a node of YAML, such as ``"!new:torch.nn.GELU"``.

    Arguments
    ---------
    node : object
        Node of a tree that `ruamel.yaml` has read.

    Returns
    -------
    str
        The tag; empty if there is none.

    Example
    -------
    >>> tag_of(YAML().load("!name:sorted {reverse: True}"))
    '!name:sorted'
    """
    return getattr(getattr(node, "tag", None), "value", None) or ""


def references(node):
    """Return the keys to which the references below a node of YAML refer.

    Arguments
    ---------
    node : object
        Node of a tree that `ruamel.yaml` has read.

    Returns
    -------
    set of str

    Example
    -------
    >>> references(YAML().load("a: [!ref <lobe.encoder>, 2]"))
    {'lobe'}
    """
    if tag_of(node) in ("!ref", "!copy"):
        return set(re.findall(r"<(\w+)", node.value))
    return set().union(*(references(child) for _, child in children(node)))


def children(node):
    """Return the keys and nodes of a mapping or a list.

    Arguments
    ---------
    node : object
        Node of a YAML tree.

    Returns
    -------
    list of tuple
        (key, node) of a mapping, (index, node) of a list; empty for others.

    Example
    -------
    >>> children([5, 6]), children("text")
    ([(0, 5), (1, 6)], [])
    """
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def merge(tree, changes):
    """Override the settings of a tree, in place.

    A plain mapping changes the existing mapping, key by key. Everything else,
    including a mapping that names a class, replaces the existing value.

    Arguments
    ---------
    tree, changes : dict
        Trees of YAML: the settings, and those that override them.

    Returns
    -------
    dict
        The changed `tree`.

    Raises
    ------
    ValueError
        If a plain mapping overrides a value that has no settings.

    Example
    -------
    >>> tree = YAML().load("masker: !new:A {ratio: 0.5, span: 5}")
    >>> merge(tree, YAML().load("masker: {ratio: 0.4}"))["masker"]["ratio"]
    0.4
    >>> list(merge(tree, YAML().load("masker: !new:B {x: 1}"))["masker"])
    ['x']
    """
    for key, change in changes.items():
        if key not in tree or not isinstance(change, dict) or tag_of(change):
            tree[key] = change
        elif isinstance(tree[key], dict):
            merge(tree[key], change)
        else:
            raise ValueError(
                f"{key} has no settings to change. Name a class to put in "
                f"its place: '!new:CLASS {{...}}'"
            )
    return tree


def replace(node):
    """Return a node unchanged, so that it replaces what it overrides.

    HyperPyYAML merges an overriding mapping *into* the existing one, which
    keeps its class. The result of ``!applyref:`` with this function replaces
    the existing mapping.

    Arguments
    ---------
    node : object

    Returns
    -------
    object

    Example
    -------
    >>> override = "x: !applyref:ssast_lobes.utils.presets.replace [{b: 2}]"
    >>> load_hyperpyyaml("x: {a: 1}", override)
    {'x': {'b': 2}}
    """
    return node


def as_text(tree):
    """Return a tree of YAML as text.

    Arguments
    ---------
    tree : dict

    Returns
    -------
    str

    Example
    -------
    >>> as_text({"lr": 0.1}).strip()
    'lr: 0.1'
    """
    text = io.StringIO()
    if tree:
        YAML().dump(tree, text)
    return text.getvalue()


def build(tree):
    """Return the values and objects that a tree of YAML describes.

    Arguments
    ---------
    tree : dict
        Tree that refers only to its own keys.

    Returns
    -------
    dict

    Example
    -------
    >>> build({"a": [1, 2]})
    {'a': [1, 2]}
    """
    return load_hyperpyyaml(as_text(tree))
