"""List and copy the recipes that are shipped with the package.

A recipe is a folder of scripts and YAMLs to run and to change, so users copy
it. The copy keeps the layout of the repository, with ``recipes/`` next to
``hparams/``, so that paths in the READMEs stay valid. Links become files, as in
a wheel, so that a script finds its imports in its own folder.
"""

import filecmp
import os
import shutil
from pathlib import Path
from typing import NamedTuple

_PACKAGE = Path(__file__).parents[1]

# Runs and Python leave these folders in a recipe's folder.
_LEFTOVERS = {"results", "__pycache__"}

# These recipes run scripts of other recipes.
_RUNS = {"SyntheticCommands": ["CustomData"]}


class Recipe(NamedTuple):
    """An entry of the list of recipes.

    Arguments
    ---------
    name : str
        Name of its folder.
    title : str
        First heading of its README.
    """

    name: str
    title: str


def recipes_folder():
    """Return the folder of the recipes.

    In an installed wheel it is inside the package. In a checkout it is
    ``recipes/``, next to the package.

    Returns
    -------
    pathlib.Path
        The folder that holds a folder for each recipe.

    Example
    -------
    >>> (recipes_folder() / "CustomData" / "README.md").exists()
    True
    """
    shipped = _PACKAGE / "recipes"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "recipes"


def list_recipes():
    """List all recipes, sorted by name.

    Returns
    -------
    list of Recipe

    Example
    -------
    >>> dict(list_recipes())["Swaps"]
    "The lobe in SpeechBrain's own recipes"
    """
    folders = [
        path
        for path in recipes_folder().iterdir()
        if path.is_dir() and path.name not in _LEFTOVERS and _files(path)
    ]
    folders.sort(key=lambda path: path.name.lower())
    return [Recipe(path.name, _title(path / "README.md")) for path in folders]


def copy_recipe(name, folder):
    """Copy a recipe, and everything that it needs, to a folder.

    Existing files with the same content are kept. So several recipes fit into
    one folder, and a stopped copy can be completed.

    Arguments
    ---------
    name : str
        One of `list_recipes`.
    folder : str or path
        Where to copy to. The copies are ``recipes/NAME``, other recipes whose
        scripts this recipe uses, and the presets in ``hparams/``. The presets
        are only examples: the name of a preset, as in ``--training
        esc50_frame``, refers to the preset in the package.

    Returns
    -------
    list of pathlib.Path
        The copies of recipes in ``folder``, the requested one first.

    Raises
    ------
    ValueError
        If there is no such recipe; the message lists all.
    FileExistsError
        If files with other content exist in `folder`. Then nothing is copied.

    Example
    -------
    >>> [copy] = copy_recipe("CustomData", getfixture("tmpdir"))
    >>> sorted(path.name for path in copy.parents[1].iterdir())
    ['hparams', 'recipes']
    >>> (copy / "pretrain" / "train.py").exists()
    True
    """
    # Import here, since only copies need the YAML reader.
    from ssast_lobes.utils.presets import hparams_folder

    known = [recipe.name for recipe in list_recipes()]
    if name not in known:
        raise ValueError(
            f"no recipe named '{name}'; there are: {', '.join(known)}"
        )
    folder = Path(folder).expanduser()
    names = [name, *_RUNS.get(name, [])]
    roots = {Path("hparams"): hparams_folder()}
    roots |= {Path("recipes", one): recipes_folder() / one for one in names}
    sources = {
        folder / place / path.relative_to(root): path
        for place, root in roots.items()
        for path in _files(root)
    }
    for target, source in sources.items():
        _check_same_or_none(target, source)
    for target, source in sources.items():
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        # Rename at the end, so that a stopped copy leaves no incomplete file.
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            shutil.copyfile(source, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return [folder / "recipes" / one for one in names]


def _files(folder):
    """Return the files of a folder, without hidden files and leftovers."""
    paths = [(path, path.relative_to(folder)) for path in folder.rglob("*")]
    return sorted(
        path
        for path, place in paths
        if path.is_file()
        and not _LEFTOVERS.intersection(place.parts)
        and not any(part.startswith(".") for part in place.parts)
    )


def _check_same_or_none(target, source):
    if not os.path.lexists(target):
        return
    if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
        raise FileExistsError(
            f"{target} is there already, and not as in the recipe: choose "
            "another folder, or move it away"
        )


def _title(readme):
    """Return the first heading of a README, or an empty text."""
    if not readme.is_file():
        return ""
    lines = readme.read_text("utf-8").splitlines()
    return next((x.lstrip("# ") for x in lines if x.startswith("# ")), "")
