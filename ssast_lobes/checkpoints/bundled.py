"""The bundled models, by name.

The name of a model is the name of its exported folder in `pretrained/`. It ends
in a version number, and new weights get a new name. Every ``source`` of this
package may be such a name; `resolve_name` finds its folder.
"""

import os
from pathlib import Path

from ssast_lobes.checkpoints.format import CONFIG_FILE, WeightsError

BUNDLED = Path(__file__).parents[1] / "pretrained"
_START = "ssast-lobes-"


def bundled_names():
    """Return the names of the bundled models.

    Returns
    -------
    list of str
        Sorted names; empty if the installation has no models.

    Example
    -------
    >>> bundled_names()
    ['ssast-lobes-micro-1']
    """
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG_FILE}"))


def bundled_model(name=None):
    """Return the exported folder of a bundled model.

    Arguments
    ---------
    name : str, optional
        One of `bundled_names`; by default the first of them.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    WeightsError
        If there is no model of this name; the message lists all names.

    Example
    -------
    >>> bundled_model("ssast-lobes-micro-1").is_dir()
    True
    >>> bundled_model("ssast-lobes-micro-0")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: ssast-lobes-micro-0: neither a bundled model ...
    """
    names = bundled_names()
    if not names:
        raise WeightsError(
            "this installation of ssast_lobes has no bundled model: name an "
            "exported folder of a recipe or of `ssast-lobes convert`"
        )
    if name is not None and name not in names:
        raise WeightsError(
            f"{name}: neither a bundled model nor a file or folder; the "
            f"bundled models are: {', '.join(names)}"
        )
    return BUNDLED / (name or names[0])


def resolve_name(source=None):
    """Return the folder of a bundled model; return other sources unchanged.

    Arguments
    ---------
    source : str or path, optional
        Any source of `load_weights`; by default the first bundled model. A
        bundled name has priority over a folder of the same name. To load the
        folder, pass ``./NAME`` or a path object.

    Returns
    -------
    str or path

    Raises
    ------
    WeightsError
        If `source` starts like a bundled name, but there is neither such a
        model nor such a file; the message lists the names.

    Example
    -------
    >>> resolve_name("ssast-lobes-micro-1") == resolve_name()
    True
    >>> resolve_name("./ssast-lobes-micro-1")
    './ssast-lobes-micro-1'
    """
    if source is None:
        return bundled_model()
    if not isinstance(source, str) or os.sep in source:
        return source
    unknown = source.startswith(_START) and not os.path.exists(source)
    if source in bundled_names() or unknown:
        return bundled_model(source)
    return source
