"""The package's imports lead downwards, from folder to folder and file to file.

Imports inside of functions and doctests' own count for the former alone: a
folder may know only what stands below it.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ssast_lobes"
# What a folder may import, apart from itself.
BELOW = {
    "utils": [],
    "models": ["utils"],
    "augment": ["models", "utils"],
    "objectives": ["models", "utils"],
    "dataio": ["utils"],
    "checkpoints": ["models", "utils"],
    "lobes": ["checkpoints", "models", "objectives", "utils"],
}
BELOW["inference"] = [*BELOW["lobes"], "dataio", "lobes"]
BELOW["evaluation"] = [*BELOW["inference"], "inference"]
BELOW["training"] = [*BELOW["evaluation"], "augment", "evaluation"]
BELOW["cli"] = [*BELOW["training"], "training"]


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(path):
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n if n in MODULES else node.module for n in names]
        else:
            continue
        found.update(name for name in names if name in MODULES)
    return found


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def folder(name):
    return name.split(".")[1] if "." in name else ""


def test_every_folder_has_its_place():
    assert {folder(name) for name in MODULES} == {"", *BELOW}


@pytest.mark.parametrize("name", BELOW)
def test_imports_lead_downwards(name):
    wrong = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if folder(module) == name
        and folder(other) not in ("", name, *BELOW[name])
    ]
    assert wrong == []


def test_no_circles():
    above, done = [], set()

    def visit(name):
        assert name not in above, " -> ".join([*above, name])
        if name in done:
            return
        above.append(name)
        for other in sorted(IMPORTS[name]):
            visit(other)
        done.add(above.pop())

    for name in MODULES:
        visit(name)


def test_root_has_one_module():
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]
