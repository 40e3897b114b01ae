"""The model card, the window and the result file of a finished training."""

import functools
import math
import os
import shlex
import sys
from pathlib import Path

from speechbrain.utils.distributed import if_main_process

from ssast_lobes import objectives
from ssast_lobes.checkpoints.bundled import bundled_names, resolve_name
from ssast_lobes.checkpoints.folder import objective_text
from ssast_lobes.checkpoints.format import window_seconds as table_seconds
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.model_card import read_card
from ssast_lobes.checkpoints.peers import FAMILIES
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.utils.files import write_json

RESULT_FILE = "test_result.json"
# Functions of these packages are written without the name of their module.
_KNOWN = ("ssast_lobes.", "speechbrain.", "torch.")


def export_window(lobe, dataset, crop_seconds=math.inf, window_seconds=None):
    """Return the length of the windows of an export, in seconds.

    Call it before training: otherwise its error would come only at the end.

    Arguments
    ---------
    lobe : SpectrogramLobe
        Lobe with the encoder to train.
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
        Training clips with their ``duration``.
    crop_seconds : float
        Longest audio that training sees at once.
    window_seconds : float, optional
        Requested length; by default the longest audio that training sees.

    Returns
    -------
    float

    Raises
    ------
    SettingsError
        If the requested length is less than that of a crop or of the position
        table.
    """
    if window_seconds is not None:
        table = table_seconds(lobe.encoder.config, lobe.features.config)
        check_window(window_seconds, max(table, crop_seconds))
        return window_seconds
    return min(
        crop_seconds, max(clip["duration"] for clip in dataset.data.values())
    )


def check_window(window, least, name="window_seconds"):
    """Raise if the windows of an export are too short.

    Arguments
    ---------
    window : float or None
        Length of the windows in seconds; None is always allowed.
    least : float
        Seconds of a crop, or of the position table if it is longer.
    name : str
        Name of the setting in the message.

    Raises
    ------
    SettingsError
        If the window is shorter than `least`, or not a finite number.

    Example
    -------
    >>> check_window(10.0, least=2.0)
    >>> check_window(1.0, least=2.0)
    Traceback (most recent call last):
    ...
    ssast_lobes...SettingsError: window_seconds is 1.0: it must be ...
    """
    if window is not None and not least <= window < math.inf:
        raise SettingsError(
            f"{name} is {window}: it must be null, or at least {least:g} "
            "seconds, the length of a crop and of the position table"
        )


def model_card(hparams_file, rows, metrics, **settings):
    """Return the entries of the model card about the training.

    Arguments
    ---------
    hparams_file : str
        The YAML of the recipe.
    rows : dict
        From `dataio.splits.read_splits`.
    metrics : dict of str to float
        Measured values by name.
    **settings
        Settings by name. Functions are written as their names and arguments.
        Settings that are None or False are left out. The exception is `source`:
        None stands for random weights. For any other source, the card also
        names its objective and license.

    Returns
    -------
    dict
        The `card` of `export_pretrained` and the other export functions.

    Example
    -------
    >>> rows = {"corpus": "Cats", "train": {"a": {"duration": 1800}}}
    >>> card = model_card("recipes/Cats/classify/a.yaml", rows, {}, lr=0.1)
    >>> card["recipe"], card["data"], card["settings"]
    ('Cats/classify/a.yaml', 'Cats: 1 training clips (30 min)', {'lr': 0.1})
    """
    parts = Path(hparams_file).resolve().parts
    first = parts.index("recipes") + 1 if "recipes" in parts else -2
    recipe = "/".join(parts[first:])
    if hparams_file in sys.argv[1:]:
        recipe += f"\n\n```\npython {shlex.join(sys.argv)}\n```"
    known = {}
    if settings.get("source") is not None:
        known = _origin(settings["source"])
        if "license" in known:
            source = f"{settings['source']} ({known['license']})"
            settings = settings | {"source": source}
    elif "source" in settings:
        settings = settings | {"source": "none: random weights"}
    return {
        **known,
        "recipe": recipe,
        "data": f"{rows['corpus']}: {_amounts(rows)}",
        "settings": {
            key: plain_value(value)
            for key, value in settings.items()
            if value is not None and value is not False
        },
        "metrics": metrics,
    }


def _amounts(rows):
    """Return the number of clips of each split, and the training hours."""
    minutes = sum(clip["duration"] for clip in rows["train"].values()) / 60
    length = (
        f"{minutes / 60:.1f} hours" if minutes > 99 else f"{minutes:.0f} min"
    )
    text = f"{len(rows['train'])} training clips ({length})"
    for part, name in (("valid", "validation"), ("test", "test")):
        if rows.get(part):
            text += f", {len(rows[part])} {name} clips"
    return text


def _origin(source):
    """Return the known facts about the weights that training started from."""
    place = Path(resolve_name(source)).expanduser()
    source_card, found = read_card(place), {}
    if source in bundled_names() or not place.exists():
        # The name of a bundled model, or one on the hub.
        found["base_model"] = os.fspath(source).partition("@")[0]
    weights = load_weights(source)
    # A released file has no card, but its license also applies to the models
    # that start from its weights.
    family = FAMILIES.get(weights.config.get("family"))
    known = {} if family is None else family.card
    for name, heading in (("license", "license"), ("weights", "Weights")):
        value = source_card.get(heading, known.get(name))
        if value is not None:
            found[name] = value
    if "Pretraining" in source_card:
        found["pretraining"] = source_card["Pretraining"]
    elif weights.part("objective"):
        # Released checkpoints of SSAST have no configuration.
        name = weights.config.get("objective", {}).get("name", "MSPM")
        cls = getattr(objectives, name, None)
        found["pretraining"] = name if cls is None else objective_text(cls)
    return found


def plain_value(value):
    """Return a setting as a plain value for JSON.

    Arguments
    ---------
    value : object
        A plain value, or a function or class with or without arguments.

    Returns
    -------
    object

    Example
    -------
    >>> (
    ...     plain_value(functools.partial(math.log, base=2)),
    ...     plain_value(print),
    ...     plain_value(1),
    ... )
    ('math.log(base=2)', 'builtins.print', 1)
    """
    if isinstance(value, functools.partial):
        given = (f"{k}={plain_value(v)}" for k, v in value.keywords.items())
        return f"{plain_value(value.func)}({', '.join(given)})"
    if not callable(value):
        return value
    named = value if hasattr(value, "__name__") else type(value)
    is_known = named.__module__.startswith(_KNOWN)
    return (
        named.__name__ if is_known else f"{named.__module__}.{named.__name__}"
    )


def write_result(folder, rows, test, result):
    """Write the test result to ``test_result.json``.

    Arguments
    ---------
    folder : str or os.PathLike
        The output folder.
    rows : dict
        From `dataio.splits.read_splits`.
    test : sequence
        The clips of the test split, with those that could not be decoded.
    result : dict
        Plain values by name, such as a Brain's ``result()``.

    Returns
    -------
    dict
        The content of the file.
    """
    content = {"data": rows["corpus"], "clips": len(test), **result}
    if if_main_process():
        write_json(Path(folder) / RESULT_FILE, content)
    return content
