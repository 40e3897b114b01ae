"""The site that `make docs` builds: its index, its API, its generated page."""

import importlib.util
import inspect
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import ssast_lobes

ROOT = Path(__file__).parent.parent
INDEX = ROOT / "docs" / "index.md"
LINK = re.compile(r"\]\(([^)#:]+\.md)\)")
HREF = re.compile(r'(?:href|src)="(?!https?:|mailto:|data:)([^"#?]+)')
IMPORT = re.compile(r"^from (ssast_lobes[\w.]*) import (\([^)]*\)|.*)$", re.M)


def test_index_has_every_page_once():
    pages = [page.name for page in INDEX.parent.glob("*.md") if page != INDEX]
    parts = INDEX.read_text("utf-8").split("\n## ")[1:]
    names = [part.partition("\n")[0] for part in parts]
    assert names == ["Start", "Guides", "Results", "Reference", "Notebook"]
    links = LINK.findall("".join(parts))
    assert len(set(links)) == len(links)
    assert sorted(link for link in links if "/" not in link) == sorted(pages)


@pytest.fixture(scope="module")
def yaml_keys():
    path = ROOT / "docs" / "yaml_keys.py"
    spec = importlib.util.spec_from_file_location("yaml_keys_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_of_yaml_keys_is_current(yaml_keys):
    written = yaml_keys.PAGE.read_text("utf-8")
    assert yaml_keys.page() == written, "run `python docs/yaml_keys.py`"


def test_every_yaml_key_is_explained(yaml_keys):
    found = {
        key: meaning
        for _, _, rows, _ in yaml_keys.recipes()
        for key, _, meaning in rows
    }
    assert {"lr", "objective", "folds"} <= set(found)
    unexplained = [key for key, meaning in found.items() if not meaning]
    assert not unexplained, f"a comment at the line is missing: {unexplained}"


def documented(site):
    """Return the names of Python objects that the API reference has."""
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(packed).decode().splitlines()
    return {line.split()[0] for line in lines if " py:" in line}


def imports(page):
    """Yield what the code of a page imports, as (module, name)."""
    for module, names in IMPORT.findall(page.read_text("utf-8")):
        for name in re.findall(r"\w+", names):
            yield module, name


def broken_links(site):
    """Return the links of pages to files that are not there."""
    return {
        f"{page.relative_to(site)}: {link}"
        for page in site.rglob("*.html")
        for link in HREF.findall(page.read_text("utf-8"))
        if not (page.parent / link).exists()
    }


@pytest.mark.slow
def test_site_is_built_without_warnings_and_complete(tmp_path):
    pytest.importorskip("sphinx", reason="Sphinx is not installed: make setup")
    # As in the Makefile.
    command = [sys.executable, "-m", "sphinx", "--quiet", "-W", "-c", "docs"]
    done = subprocess.run(
        [*command, ".", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert not broken_links(tmp_path)

    names = documented(tmp_path)
    public = {
        f"ssast_lobes.{name}"
        for name in ssast_lobes.__all__
        if not inspect.ismodule(getattr(ssast_lobes, name))
    }
    assert public <= names
    missing = [
        f"{page.name}: {module}.{name}"
        for page in [ROOT / "README.md", *INDEX.parent.glob("*.md")]
        for module, name in imports(page)
        if not {f"{module}.{name}", f"ssast_lobes.{name}"} & names
    ]
    assert not missing
