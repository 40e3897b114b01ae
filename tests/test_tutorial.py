"""The tutorial notebook: its cells are code, its outputs clean, and it runs."""

import base64
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
ABSOLUTE = re.compile(r"(?<![\w.:/<])/(?=[A-Za-z])[\w.-]+/\w")
MOST_KILOBYTES = 700


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text("utf-8"))


def cells(notebook, kind):
    """Return the cells of a kind, with their text as one string."""
    return [
        (cell, "".join(cell["source"]))
        for cell in notebook["cells"]
        if cell["cell_type"] == kind
    ]


def outputs(notebook):
    """Yield what a cell shows, as (cell id, type, content)."""
    for cell, _ in cells(notebook, "code"):
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                yield cell["id"], output["name"], "".join(output["text"])
            for kind, content in sorted(output.get("data", {}).items()):
                yield cell["id"], kind, "".join(content)


def test_every_code_cell_compiles_and_is_introduced(notebook):
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds[0] == kinds[-1] == "markdown"
    for cell, code in cells(notebook, "code"):
        compile(code, cell["id"], "exec")
        assert len(code.splitlines()) <= 40, cell["id"]


def test_links_lead_somewhere(notebook):
    text = "\n".join(text for _, text in cells(notebook, "markdown"))
    links = LINK.findall(text)
    assert len(links) > 5
    missing = [link for link in links if not (ROOT / "docs" / link).exists()]
    assert not missing


def machine_paths(shown):
    """Return the lines of outputs that hold an absolute path."""
    return [
        f"{cell}: {line}"
        for cell, kind, content in shown
        if kind.startswith("text/plain") or kind in ("stdout", "stderr")
        for line in content.splitlines()
        if ABSOLUTE.search(line)
    ]


def test_outputs_are_there_and_tell_nothing_of_the_machine(notebook):
    counts = [cell["execution_count"] for cell, _ in cells(notebook, "code")]
    assert counts == list(range(1, len(counts) + 1))
    shown = list(outputs(notebook))
    kinds = [kind for _, kind, _ in shown]
    assert kinds.count("image/png") >= 6
    assert "stderr" not in kinds
    assert not machine_paths(shown)
    for _, kind, content in shown:
        if kind == "image/png":
            picture = base64.b64decode(content)
            assert picture.startswith(b"\x89PNG") and len(picture) > 5000
    assert NOTEBOOK.stat().st_size < MOST_KILOBYTES * 1000


def test_absolute_paths_are_found():
    lines = ["kept in /tmp/run/export", "PosixPath('/data/x/1.wav')"]
    told = [("a", "stdout", "\n".join(["1 / 2, a/b/c, https://a.b/c", *lines]))]
    assert machine_paths(told) == [f"a: {line}" for line in lines]


@pytest.mark.slow
def test_notebook_runs(tmp_path, notebook):
    for name in ("nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"{name} is not installed: make setup")
    pytest.importorskip("espeakng_loader", reason="needs the extra quickstart")
    path = ROOT / "docs" / "execute_tutorial.py"
    spec = importlib.util.spec_from_file_location("execute_tutorial", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    executed = module.execute(tmp_path)
    assert not machine_paths(outputs(executed))
    # The same cells show the same kinds of things as in the file.
    assert [(cell, kind) for cell, kind, _ in outputs(executed)] == [
        (cell, kind) for cell, kind, _ in outputs(notebook)
    ]
    files = {path.name for path in (tmp_path / "results/tutorial").iterdir()}
    assert {"corpus", "with_head", "tuned", "detector", "long.wav"} <= files
