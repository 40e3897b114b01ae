"""The model card, the window and the result file of a finished training."""

import functools
import inspect
import math
from pathlib import Path

from speechbrain.utils.distributed import if_main_process

from ssast_lobes.checkpoints.format import window_seconds as table_seconds
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.utils.files import write_json

RESULT_FILE = "test_result.json"
# Functions of other modules are told with the name of theirs.
_KNOWN = ("ssast_lobes.", "speechbrain.", "torch.")


def export_window(lobe, dataset, crop_seconds=math.inf, window_seconds=None):
    """Return the seconds that an export takes at once.

    Call it before the training, which would otherwise end in an error.

    Arguments
    ---------
    lobe : SpectrogramLobe
        With the encoder that is trained.
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
        Training clips with their ``duration``.
    crop_seconds : float
        Longest audio that training sees at once.
    window_seconds : float, optional
        What is asked for; the longest that training sees when left out.

    Returns
    -------
    float

    Raises
    ------
    SettingsError
        If less is asked for than a crop and the position table span.
    """
    if window_seconds is not None:
        table = table_seconds(lobe.encoder.config, lobe.features.config)
        check_window(window_seconds, max(table, crop_seconds))
        return window_seconds
    return min(
        crop_seconds, max(clip["duration"] for clip in dataset.data.values())
    )


def check_window(window, least, name="window_seconds"):
    """Raise unless an export can be given a window.

    Arguments
    ---------
    window : float or None
        Seconds that it is to take at once; None asks for nothing.
    least : float
        Seconds of a crop, or of the position table if that spans more.
    name : str
        What the message calls the window.

    Raises
    ------
    SettingsError
        If the window is less, or no finite number.

    Example
    -------
    >>> check_window(10.0, least=2.0)
    >>> check_window(1.0, least=2.0)
    Traceback (most recent call last):
    ...
    ssast_lobes...SettingsError: window_seconds is 1.0: give a ...
    """
    if window is not None and not least <= window < math.inf:
        raise SettingsError(
            f"{name} is {window}: give a number of seconds not below "
            f"{least:g}, which a crop and the position table span, or null"
        )


def model_card(hparams_file, rows, metrics, **settings):
    """Return what the model card of an export says of its training.

    Arguments
    ---------
    hparams_file : str
        The YAML of the recipe.
    rows : dict
        From `dataio.splits.read_splits`.
    metrics : dict of str to float
        What was measured.
    **settings
        By name; functions are told by their names and arguments. What is
        None or False is left out.

    Returns
    -------
    dict
        For `export_pretrained` and its like.

    Example
    -------
    >>> rows = {"corpus": "Cats", "train": {"a": {}}}
    >>> card = model_card("recipes/Cats/classify/a.yaml", rows, {}, lr=0.1)
    >>> card["data"], card["settings"]
    ('Cats: 1 training clips', {'lr': 0.1})
    """
    recipe = Path(hparams_file).resolve().parts[-4:]
    return {
        "recipe": "/".join(recipe),
        "data": f"{rows['corpus']}: {len(rows['train'])} training clips",
        "settings": {
            key: told(value)
            for key, value in settings.items()
            if value is not None and value is not False
        },
        "metrics": metrics,
    }


def told(value):
    """Return a setting as JSON can tell it.

    Arguments
    ---------
    value : object
        A plain value, or a function or class with or without arguments.

    Returns
    -------
    object

    Example
    -------
    >>> told(functools.partial(math.log, base=2)), told(0.5)
    ('log(base=2)', 0.5)
    """
    if isinstance(value, functools.partial):
        given = (f"{k}={told(v)}" for k, v in value.keywords.items())
        return f"{told(value.func)}({', '.join(given)})"
    if inspect.isfunction(value) and not value.__module__.startswith(_KNOWN):
        return f"{value.__module__}.{value.__name__}"
    return getattr(value, "__name__", value)


def write_result(folder, rows, test, result):
    """Write what a test has found to ``test_result.json``.

    Arguments
    ---------
    folder : str or os.PathLike
        The output folder.
    rows : dict
        From `dataio.splits.read_splits`.
    test : sequence
        The clips that were tested.
    result : dict
        Plain values by name, such as a Brain's ``result()``.

    Returns
    -------
    dict
        What the file holds.
    """
    content = {"data": rows["corpus"], "clips": len(test), **result}
    if if_main_process():
        write_json(Path(folder) / RESULT_FILE, content)
    return content
