"""Parse the command lines of recipes, in which names stand for presets."""

import contextlib
import copy
import difflib
import inspect
import io
import pydoc
import re
from pathlib import Path

import speechbrain as sb
import torch
import yaml
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.tag import Tag
from speechbrain.utils.logger import get_logger

from ssast_lobes.models.encoder import SpectrogramEncoder
from ssast_lobes.models.heads import SpectrogramClassifier
from ssast_lobes.training import losses
from ssast_lobes.training.errors import SettingsError, yaml_errors
from ssast_lobes.training.settings import check_settings
from ssast_lobes.utils.checks import ArgumentError
from ssast_lobes.utils.files import absolute
from ssast_lobes.utils.presets import (
    as_text,
    children,
    load_preset,
    merge,
    read_preset,
    read_tree,
    references,
    tag_of,
)

# Names in other toolkits, and the settings here that mean the same.
_ELSEWHERE = {
    "learning_rate": "lr",
    "epochs": "number_of_epochs",
    "num_epochs": "number_of_epochs",
    "model": "source",
    "checkpoint": "source",
}
# Start of a comment in overrides, before the path of a user's preset file.
FROM = "# from "
# Folders of hparams/. A word selects one of their files: --objective eat.
WORDS = ("objective", "training", "degradation", "compute_cost")
# Tag of a node that replaces what it overrides.
REPLACE = "!applyref:ssast_lobes.utils.presets.replace"
# Keys of plain mappings. The default is null, which has no settings to change,
# so the mapping replaces it.
TABLES = ("class_weights",)
# Tags that precede the name of a class or function.
_CALLS = ("!new", "!name", "!apply")
# Keys whose value may be null instead of an object.
_OPTIONAL = ("degradation", "masker", "mixup", "weight_decay_schedule")
# Stands for anything that is not a plain value.
_OBJECT = object()
# Keys that --source replaces.
_OF_SOURCE = {"geometry", "model_size"}

logger = get_logger(__name__)


def parse_arguments(arguments):
    """Parse a command line, as ``speechbrain.parse_arguments`` does.

    ``--objective NAME`` stands for the settings in a file of
    ``hparams/objective/``, or in your own file ``NAME.yaml``. The keys of the
    file replace those of the recipe. ``--training NAME`` and
    ``--degradation NAME`` do the same. Other settings of the command line
    override those of the file. A plain mapping changes the existing one
    (``--masker '{ratio: 0.5}'``). A mapping that names a class replaces it
    (``--masker '!new:ssast_lobes.RandomMasker {ratio: 0.5}'``). Such a file,
    a preset, may add keys and refer to them. These are then settings too, as in
    ``--objective distillation --teachers "[FOLDER]"``.

    Without ``--output_folder``, the names of presets and the seed on the
    command line are added to the folder name of the recipe
    (``results/pretrain_m2d_seed2``). The same command thus resumes its run. A
    command with another preset or seed gets its own folder.

    Arguments
    ---------
    arguments : list of str
        Like ``sys.argv[1:]``.

    Returns
    -------
    hparams_file : str
        The YAML of the recipe.
    run_opts : speechbrain.utils.run_opts.RunOptions
        Options such as the device.
    overrides : str
        Settings that override those of the YAML, for `load_hyperpyyaml` and
        `create_experiment_directory`.

    Raises
    ------
    SettingsError
        If a preset, a key, a class or an argument of a class is unknown, a key
        occurs twice, or a setting would have no effect. If a value is
        impossible, as far as this is known before any object is built.

    Example
    -------
    >>> file = getfixture("tmp_path") / "train.yaml"
    >>> _ = file.write_text("lr: 0.1\\nseed: 1\\n")
    >>> _, _, overrides = parse_arguments([str(file), "--lr", "0.2"])
    >>> print(overrides.strip())
    lr: 0.2
    >>> parse_arguments([str(file), "--lrr", "0.2"])
    Traceback (most recent call last):
    ...
    ssast_lobes...SettingsError: ...no key lrr; did you mean lr?
    """
    hparams_file, run_opts, text = _parse(arguments)
    with yaml_errors("the command line"):
        recipe, given = read_tree(hparams_file), _read(text)
        presets = _pop_words(given, recipe)
        for preset in presets.values():
            _fill_in(preset, recipe, given)
        for key in TABLES:
            if isinstance(given.get(key), dict):
                given[key] = _instead(given[key])
        _check_keys(given, recipe, hparams_file)
        tree = CommentedMap()
        for word, preset in presets.items():
            _check_keys(preset, recipe, hparams_file, f", which {word} sets")
            merge(tree, preset)
        # A merged copy, only for the checks: the overrides stay short.
        whole = merge(copy.deepcopy(recipe), copy.deepcopy(tree))
        instead = list(presets)
        # Check this before `merge`, whose error would ask for an unused class.
        _check_effect(given, recipe, whole, instead)
        for key, node in given.items():
            was_object = isinstance(recipe.get(key), dict)
            if tag_of(node) or (was_object and not isinstance(node, dict)):
                instead.append(f"--{key}")
        whole = merge(whole, copy.deepcopy(given))
        _check_effect(given, recipe, whole, instead)
        if whole.get("source") is not None:
            for key in sorted(_OF_SOURCE & given.keys()):
                logger.warning(
                    f"--{key} has no effect: the model has that of --source"
                )
        merge(tree, given)
        if "output_folder" in whole and "output_folder" not in given:
            _name_folder(tree, whole["output_folder"], presets)
        for key in tree:
            _check_calls(key, whole[key])
        check_settings({k: run_opts[k] for k in run_opts.overridden_args})
    with yaml_errors(hparams_file):
        _check_values(recipe, whole)
    text = as_text(_replacing(_in_lines(tree)))
    # `experiment` copies these files into the folder of the run.
    words = [word.split(maxsplit=1)[1] for word in presets]
    own = [absolute(word) for word in words if word.endswith(".yaml")]
    return hparams_file, run_opts, "".join(f"{FROM}{x}\n" for x in own) + text


def with_settings(overrides, **settings):
    """Return overrides with further settings, which replace earlier ones.

    Arguments
    ---------
    overrides : str
        From `parse_arguments`.
    **settings
        Plain values.

    Returns
    -------
    str

    Example
    -------
    >>> print(with_settings("lr: 1\\nfold: null", fold=3).strip())
    lr: 1
    fold: 3
    """
    tree = YAML().load(overrides) or CommentedMap()
    tree.update(settings)
    return as_text(tree)


def plain_settings(hparams_file, overrides):
    """Return the values of a YAML, without building any object.

    Arguments
    ---------
    hparams_file, overrides
        From `parse_arguments`.

    Returns
    -------
    dict
        Values by key; None instead of an object.

    Example
    -------
    >>> file = getfixture("tmp_path") / "train.yaml"
    >>> _ = file.write_text("lr: 0.1\\nnorm: !new:torch.nn.Identity {}\\n")
    >>> plain_settings(file, "lr: 0.2")
    {'lr': 0.2, 'norm': None}
    """
    with (
        open(hparams_file, encoding="utf-8") as file,
        yaml_errors(hparams_file),
    ):
        resolved = resolve_references(file, overrides)
    return yaml.load(resolved, _PlainLoader)


def flag_value(value):
    """Return a plain value as text for the command line of a recipe.

    Arguments
    ---------
    value : object
        Text, which is returned unchanged, or any value that YAML can contain.

    Returns
    -------
    str

    Example
    -------
    >>> flag_value("eat"), flag_value({"ratio": 0.5}), flag_value(None)
    ('eat', '{ratio: 0.5}', 'null')
    """
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


class _PlainLoader(yaml.SafeLoader):
    """Reads the plain values of a YAML; None instead of objects."""


_PlainLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _parse(arguments):
    """Call SpeechBrain's parser; report a wrong run option in one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return sb.parse_arguments(arguments)
    except SystemExit as error:
        if not error.code:  # --help
            raise
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise SettingsError(f"the command line: {reason}") from error


def _read(text):
    """Return the settings of a command line as a tree of YAML."""
    try:
        given = YAML().load(text) or CommentedMap()
    except DuplicateKeyError as error:
        key = re.search('duplicate key "(.*?)"', error.problem)[1]
        raise ValueError(f"{key} is given twice") from error
    except YAMLError as error:
        # The line and column of the error are not those of a file.
        raise ValueError(f"{getattr(error, 'problem', error)}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{text} belongs to no --KEY")
    return given


def _check_keys(settings, known, hparams_file, source=""):
    unknown = []
    for key in settings:
        if key not in known:
            name = _ELSEWHERE.get(key, str(key))
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            unknown.append(f"{key}{source}{hint}")
    if unknown:
        # For a preset of another recipe, name one key: all would be too many.
        told = "; it has no key ".join(unknown[:1] if source else unknown)
        raise ValueError(f"{hparams_file} has no key {told}")


def _pop_words(given, recipe):
    """Remove the words from the settings; return the presets they name."""
    presets = {}
    for kind in WORDS:
        value = given.get(kind)
        if isinstance(value, str):
            presets[f"--{kind} {value}"] = read_preset(kind, given.pop(kind))
        elif _includes(value) and not _includes(recipe.get(kind)):
            raise ValueError(
                f"{kind} takes the name of a file of hparams/{kind}/, or a "
                "path that ends in .yaml, without !include:"
            )
    return presets


def _fill_in(preset, recipe, given):
    """Replace references to keys that a preset adds by the values of the keys.

    The recipe does not get these keys: ``teachers`` of ``distillation.yaml`` is
    an option of the command line only with ``--objective distillation``.
    """
    added = {
        key: given.pop(key, preset.pop(key))
        for key in references(preset) & (preset.keys() - recipe.keys())
    }

    def filled(node):
        if tag_of(node) == "!ref" and node.value[1:-1] in added:
            return added[node.value[1:-1]]
        for key, child in children(node):
            node[key] = filled(child)
        return node

    filled(preset)


def _name_folder(tree, folder, presets):
    """Add presets and seed of the command line to a default output folder."""
    words = [
        Path(word.split(maxsplit=1)[1]).stem
        for word, preset in presets.items()
        if "output_folder" not in preset
    ]
    if "seed" in tree:
        words.append(f"seed{tree['seed']}")
    if words and isinstance(folder, str):
        tree["output_folder"] = "_".join([folder, *words])
    elif words and tag_of(folder) == "!ref":
        tree["output_folder"] = named = copy.copy(folder)
        named.value = "_".join([folder.value, *words])


def _includes(node):
    return tag_of(node).startswith("!include:")


def _check_effect(given, recipe, whole, instead):
    """Raise if only replaced objects would use a setting."""
    # References in plain values, such as <seed> in a path, do not count here.
    objects = [x for x in recipe.values() if isinstance(x, dict | list)]
    idle = references(objects) - references(whole)
    for key in given:
        if key in idle:
            raise ValueError(
                f"{key} has no effect with {' and '.join(instead)}: leave it "
                "out"
            )


def _check_calls(name, node):
    """Raise if a class does not exist, or does not accept an argument."""
    kind, _, path = tag_of(node).partition(":")
    if kind in _CALLS:
        callable_ = pydoc.locate(path)
        if callable_ is None:
            module = path.rpartition(".")[0]
            hint = ""
            if module and pydoc.locate(module) is None:
                hint = (
                    f": Python finds no module {module}; PYTHONPATH=FOLDER "
                    "names the folder that holds it"
                )
            raise ValueError(f"{name}: there is no {path}{hint}")
        if not isinstance(node, list):
            _check_arguments(kind, name, path, callable_, node)
    for key, child in children(node):
        _check_calls(f"{name}[{key}]", child)


def _check_arguments(kind, name, path, callable_, node):
    try:
        signature = inspect.signature(callable_)
    except (TypeError, ValueError):  # no class, or one written in C
        return
    # The program adds the missing arguments of a !name: entry.
    bind = signature.bind_partial if kind == "!name" else signature.bind
    try:
        bind(**dict(children(node)))
    except TypeError as error:
        raise ValueError(
            f"{name}: {path}: {error}; it takes "
            f"{', '.join(signature.parameters)}"
        ) from error


def _instead(node):
    """Return a node that replaces what it overrides."""
    marked = CommentedSeq([node])
    marked.yaml_set_ctag(Tag(suffix=REPLACE))
    return marked


def _check_values(recipe, whole):
    """Raise if a value is impossible, as far as known before objects exist."""
    settings = {key: _plain(node, whole) for key, node in whole.items()}
    for key, node in recipe.items():
        _check_kind(key, node, settings[key])
    check_settings({k: v for k, v in settings.items() if v is not _OBJECT})
    if type(settings.get("swa_start_epoch")) is int:
        _check_swa(settings)
    for key, node in whole.items():
        kind, _, path = tag_of(node).partition(":")
        if kind == "!name" and isinstance(node, dict):
            arguments = {k: _plain(child, whole) for k, child in node.items()}
            if not any(value is _OBJECT for value in arguments.values()):
                _try(key, pydoc.locate(path), arguments, settings)


def _check_kind(key, node, value):
    """Raise if a plain value is given for an object or a mapping."""
    called = tag_of(node).partition(":")[0] in _CALLS
    is_object = value is _OBJECT or isinstance(value, dict)
    if key in _OPTIONAL:
        right, words = is_object or value is None, "CLASS {...}', or null"
    elif key == "augment":
        is_list = isinstance(value, list) or value is None
        right = is_object or is_list and all(x is _OBJECT for x in value or ())
        words = "CLASS {...}' in a list, or null"
    else:
        right, words = is_object or not called, "CLASS {...}'"
    if not right:
        raise ArgumentError(
            f"{key} must be an object, '!new:{words}, got {value!r}"
        )
    if isinstance(node, dict) and not called and not is_object:
        raise ArgumentError(f"{key} must be a mapping, got {value!r}")


def _check_swa(settings):
    start, epochs = settings["swa_start_epoch"], settings["number_of_epochs"]
    if start > epochs:
        raise ArgumentError(
            f"swa_start_epoch must be at most number_of_epochs, {epochs}, got "
            f"{start}"
        )


def _plain(node, tree):
    """Return the plain value of a node, or `_OBJECT`."""
    if tag_of(node) in ("!ref", "!copy"):
        key = re.fullmatch(r"<(\w+)>", node.value)
        known = key is not None and key[1] in tree
        return _plain(tree[key[1]], tree) if known else _OBJECT
    if tag_of(node) == REPLACE:
        return _plain(node[0], tree)
    if tag_of(node):
        return _OBJECT
    if isinstance(node, dict):
        return {key: _plain(child, tree) for key, child in node.items()}
    if isinstance(node, list):
        return [_plain(child, tree) for child in node]
    if isinstance(node, str) and re.fullmatch(r"\(.*\)", node):
        return tuple(yaml.safe_load(f"[{node[1:-1]}]"))
    return node


def _try(key, callable_, arguments, settings):
    """Call a function with these arguments, as the program does later.

    Without this trial, a wrong argument of a ``!name:`` entry would cause an
    error only after the audio has been read.
    """
    with torch.random.fork_rng(devices=()):
        try:
            if inspect.isclass(callable_) and issubclass(
                callable_, torch.optim.Optimizer
            ):
                callable_([torch.nn.Parameter(torch.zeros(1))], **arguments)
            elif callable_ is SpectrogramClassifier:
                depth = _depth(settings)
                encoder = SpectrogramEncoder(dim=8, depth=depth, heads=1)
                callable_(encoder, 2, **arguments)
            elif getattr(callable_, "__module__", None) == losses.__name__:
                callable_(torch.zeros(2, 2), torch.eye(2), **arguments)
        except ArgumentError as error:
            raise ArgumentError(f"{key}: {error}") from error
        except Exception as error:  # PyTorch may raise any kind
            given = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
            raise ArgumentError(
                f"{key}: {callable_.__name__} does not take {given}: {error}"
            ) from error


def _depth(settings):
    """Return the number of blocks, or of frozen ones if a source sets it."""
    size = settings.get("model_size")
    if settings.get("source") is None and isinstance(size, str):
        try:
            return load_preset("model", size)["depth"]
        except ValueError as error:
            raise ArgumentError(f"model_size: {error}") from error
    frozen = settings.get("frozen_blocks")
    return max(1, frozen) if type(frozen) is int else 1


def _replacing(node):
    """Mark nodes that name a class: they replace the nodes of the recipe."""
    if not isinstance(node, dict):
        return node
    if tag_of(node):
        return _instead(node)
    for key, child in node.items():
        node[key] = _replacing(child)
    return node


def _in_lines(node):
    """Write a node without braces and brackets.

    Inside braces or brackets, ruamel.yaml writes a tagged mapping with one key
    incorrectly.
    """
    if isinstance(node, CommentedMap | CommentedSeq):
        node.fa.set_block_style()
    for _, child in children(node):
        _in_lines(child)
    return node
