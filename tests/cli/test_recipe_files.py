"""Copies of the recipes: complete, in any order, and never over one's own."""

import ast
import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from ssast_lobes.cli.recipe_files import (
    copy_recipe,
    list_recipes,
    recipes_folder,
)

ROOT = Path(__file__).parents[2]
NAMES = [recipe.name for recipe in list_recipes()]
# As a tag, not as text that is handed to another YAML.
INCLUDE = re.compile(r"^[^#\"']*!include:(\S+)", re.M)


def tree(folder):
    """What a folder holds, links followed."""
    ignored = ("results", "__pycache__")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not set(ignored) & set(path.parts)
    }


def local_imports(script):
    """Modules that a script imports and nobody has installed."""
    names = set()
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return {name for name in names if importlib.util.find_spec(name) is None}


def test_every_recipe_is_listed_with_a_title():
    folders = {path.parent.name for path in ROOT.glob("recipes/*/README.md")}
    assert set(NAMES) == folders
    assert all(recipe.title for recipe in list_recipes())
    assert sorted(NAMES, key=str.lower) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_copy_is_complete(tmp_path, name):
    copies = copy_recipe(name, tmp_path)
    assert copies[0] == tmp_path / "recipes" / name
    assert tree(tmp_path / "hparams") == tree(ROOT / "hparams")
    for copy in copies:
        assert tree(copy) == tree(recipes_folder() / copy.name)
        for path in copy.rglob("*.yaml"):
            for include in INCLUDE.findall(path.read_text("utf-8")):
                included = (path.parent / include).resolve(strict=True)
                assert included.is_relative_to(tmp_path)
        for path in copy.rglob("*.py"):
            assert not path.is_symlink()
            for module in local_imports(path):
                assert path.with_name(f"{module}.py").exists()
            # A folder that it names is that of another recipe, or its own.
            nodes = ast.walk(ast.parse(path.read_text("utf-8")))
            words = {getattr(node, "value", None) for node in nodes}
            here = recipes_folder() / path.relative_to(tmp_path / "recipes")
            for other in set(NAMES) & {w for w in words if type(w) is str}:
                if not here.resolve().is_relative_to(recipes_folder() / other):
                    assert tmp_path / "recipes" / other in copies


def test_recipes_share_a_folder(tmp_path):
    for name in ("Swaps", "CustomData"):
        copy_recipe(name, tmp_path)
    assert len(list((tmp_path / "recipes").iterdir())) == 2
    # Results are no obstacle, and a copy that broke off is completed.
    (copy,) = copy_recipe("CustomData", tmp_path)
    before = tree(tmp_path)
    (copy / "pretrain" / "results").mkdir()
    (copy / "pretrain" / "results" / "log.txt").write_text("")
    shutil.rmtree(copy / "classify")
    (tmp_path / "hparams" / "model" / "tiny.yaml").unlink()
    copy_recipe("CustomData", tmp_path)
    assert tree(tmp_path) == before


def test_own_changes_are_never_overwritten(tmp_path):
    (copy,) = copy_recipe("CustomData", tmp_path)
    changed = copy / "pretrain" / "hparams" / "pretrain.yaml"
    changed.write_text("mine: 1\n")
    before = tree(tmp_path)
    # Which runs CustomData.
    with pytest.raises(FileExistsError, match=f"{changed} is there already"):
        copy_recipe("SyntheticCommands", tmp_path)
    assert tree(tmp_path) == before
    copy_recipe("Swaps", tmp_path)
    assert changed.read_text() == "mine: 1\n"


def test_unknown_recipe_is_told_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="CustomData, .*Swaps"):
        copy_recipe("Custom", tmp_path / "new")
    assert not (tmp_path / "new").exists()
