"""Named settings: the YAML fragments of ``hparams/``, read as plain numbers.

A number of a paper or an official script stands in one fragment only; Python
code that needs it (``SSAST(model_size="tiny")``) reads it from there.
"""

from pathlib import Path

import yaml

_PACKAGE = Path(__file__).parent


def hparams_folder():
    """The folder of the YAML fragments.

    An installed wheel carries it inside the package; in a checkout it is
    ``hparams/`` beside the package.

    Returns
    -------
    pathlib.Path
        The folder that holds ``model/``, ``features/`` and so on.

    Example
    -------
    >>> (hparams_folder() / "model" / "tiny.yaml").exists()
    True
    """
    shipped = _PACKAGE / "hparams"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "hparams"


def preset_path(kind, name):
    """Where a fragment is.

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
        If there is no such fragment; the message lists those there are.

    Example
    -------
    >>> preset_path("model", "tiny").name
    'tiny.yaml'
    """
    folder = hparams_folder() / kind
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ValueError(f"no {kind} preset named '{name}'; there are: {known}")
    return path


def load_preset(kind, name):
    """Read one fragment that holds numbers only.

    Arguments
    ---------
    kind : str
        Folder under ``hparams/``, such as ``"model"`` or ``"features"``.
    name : str
        File name without ``.yaml``.

    Returns
    -------
    dict
        The fragment's keys and numbers.

    Raises
    ------
    ValueError
        If there is no such fragment; the message lists those there are.

    Example
    -------
    >>> load_preset("model", "tiny")["dim"]
    192
    """
    with open(preset_path(kind, name), encoding="utf-8") as file:
        return yaml.safe_load(file)
