"""README and the pages of docs/: their blocks run as printed, links lead on.

A page starts in an empty folder and makes what it needs; one with code that
names ``results/quickstart`` or ``recipes/`` starts where a reader is after the
quickstart, in small. `run_page.py` says how the blocks of a page run; to try a
page by hand: ``cd $(mktemp -d) && python .../tests/run_page.py PAGE.md``.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from run_page import blocks_of

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
RECIPES = sorted((ROOT / "recipes").glob("*/README.md"))
EXPERIMENTS = sorted(
    page
    for pattern in ("*.md", "*/README.md", "transfer/results.md")
    for page in (ROOT / "experiments").glob(pattern)
)
BENCHMARKS = [ROOT / "benchmarks" / "README.md"]
TIMEOUT = 900
# A reader has set up already.
SET_UP = "```bash\nmake quickstart\nmake test\n```\n"
AFTER_QUICKSTART = re.compile(r"results/quickstart|(?<![\w/])recipes/")
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?")
HEADING = re.compile(r"^#+ (.+)$", re.M)


def name_of(page):
    return str(page.relative_to(ROOT))


def parametrized(pages):
    return pytest.mark.parametrize("page", pages, ids=name_of)


def runs(page):
    text = page.read_text("utf-8")
    return any(block.language != "text" for block in blocks_of(text))


def environment():
    """That of this process, with the commands of its Python first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


def run(folder, *words):
    """Output and exit code of a Python script, stdout and stderr together."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
    )
    return done.stdout, done.returncode


def run_page(page, folder, *options):
    """Run a page in a folder; fail with the block that did, and its output."""
    shown, code = run(folder, ROOT / "tests" / "run_page.py", page, *options)
    if code:
        *_, block = shown.rpartition("\n=== ")
        output = shown.rpartition("\n=== ")[0].rpartition("=== ")[2]
        pytest.fail(f"{block}{output[-6000:]}", pytrace=False)
    return shown


def small_quickstart(folder):
    path = ROOT / "recipes/SyntheticCommands/hparams/quickstart.yaml"
    settings = yaml.safe_load(path.read_text("utf-8"))
    settings["corpus"].update(
        n_unlabelled=60,
        n_train_per_word=2,
        n_valid_per_word=1,
        n_test_per_word=2,
    )
    settings["pretrain"].update(number_of_epochs=1)
    settings["classify"].update(number_of_epochs=1)
    settings["fine_tuning_seeds"] = [1, 2]
    small = folder / "small.yaml"
    small.write_text(yaml.safe_dump(settings), "utf-8")
    return small


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """Folder of a checkout after a quickstart of a few clips; its output."""
    folder = tmp_path_factory.mktemp("quickstart")
    for name in ("recipes", "hparams"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("results", "__pycache__"),
        )
    script = "recipes/SyntheticCommands/quickstart.py"
    shown, code = run(folder, script, small_quickstart(folder))
    assert code == 0, shown[-6000:]
    return folder, shown


@pytest.mark.slow
def test_quickstart(quickstart):
    folder, shown = quickstart
    assert "points over training from scratch" in shown
    assert "and the model recognizes" in shown
    for picture in (
        "comparison.png",
        "pretrain/curves.png",
        "pretrain/reconstruction.png",
        "pretrained/1/confusion_matrix.png",
    ):
        written = folder / "results" / "quickstart" / picture
        assert written.stat().st_size > 10000


@pytest.mark.slow
def test_readme_runs(quickstart, tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(quickstart[0], folder, symlinks=True)
    text = README.read_text("utf-8")
    assert SET_UP in text
    # People start with any of its blocks: none needs another's variables.
    page = tmp_path / "README.md"
    page.write_text(text.replace(SET_UP, "\n" * SET_UP.count("\n")), "utf-8")
    run_page(page, folder, "--apart")
    assert (folder / "results" / "scores.csv").stat().st_size > 0


@pytest.mark.slow
@parametrized([page for page in DOCS if runs(page)])
def test_page_runs(page, request, tmp_path):
    folder = tmp_path / "folder"
    text = page.read_text("utf-8")
    code = [b.code for b in blocks_of(text) if b.language != "text"]
    if AFTER_QUICKSTART.search("".join(code)):
        source, _ = request.getfixturevalue("quickstart")
        shutil.copytree(source, folder, symlinks=True)
    else:
        folder.mkdir()
    run_page(page, folder)


@parametrized([README, *DOCS])
def test_python_blocks_are_python(page):
    for block in blocks_of(page.read_text("utf-8")):
        if block.language == "python":
            compile("\n" * (block.line - 1) + block.code, page, "exec")


def anchors(page):
    """Return the anchors that GitHub gives the headings of a page."""
    found = []
    for heading in HEADING.findall(FENCED.sub("", page.read_text("utf-8"))):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(f"{slug}-{n}" if (n := found.count(slug)) else slug)
    return found


def broken_links(page):
    """Return the links of a page that lead to no file, or to no heading."""
    found = []
    text = FENCED.sub("", page.read_text("utf-8"))
    for link, anchor in LINK.findall(text):
        target = page.parent / link if link else page
        if not target.exists():
            found.append(link)
        elif anchor and anchor not in anchors(target):
            found.append(f"{link}#{anchor}")
    return found


@parametrized([README, *DOCS, *RECIPES, *EXPERIMENTS, *BENCHMARKS])
def test_links_lead_somewhere(page):
    broken = broken_links(page)
    assert not broken, f"{name_of(page)} links to nothing: {broken}"


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# What, `then`?\n## Twice\n## Twice\n[a](#what-then) [b](#twice-1) "
        "[c](#twice-2) [d](page.md#twice) [e](page.md#no) [f](none.md#twice)\n"
    )
    assert broken_links(page) == ["#twice-2", "page.md#no", "none.md"]


PAGE = """\
# A page

```python
first = 1
```

```yaml
# made/settings.yaml
number: 7
```

```text
not run
```

```bash
cd made
echo "printed $(cat settings.yaml)"
```

```python
import os

{code}
```
"""


def written(folder, text):
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_blocks_are_one_session(tmp_path):
    # A bash block leaves the folder as it was.
    code = "print(first + 1, os.path.exists('made/settings.yaml'))"
    page = written(tmp_path, PAGE.format(code=code))
    shown = run_page(page, tmp_path)
    assert "2 True\n" in shown and "number: 7\n" in shown
    assert "not run" not in shown


@pytest.mark.parametrize(
    ("code", "options", "told"),
    [
        ("first / 0", [], "ZeroDivisionError: division by zero"),
        ("first", ["--apart"], "NameError: name 'first' is not defined"),
        ("raise SystemExit(0)", [], "SystemExit: 0"),
    ],
)
def test_failing_block_is_named(tmp_path, code, options, told):
    page = written(tmp_path, PAGE.format(code=code))
    with pytest.raises(pytest.fail.Exception) as failure:
        run_page(page, tmp_path, *options)
    message = str(failure.value)
    place = "page.md, block 5 of 5 (python, line 22)"
    assert message.startswith(f"{place} failed: {told}\n"), message
    # The line of the page, and what it says.
    assert f'{page}", line 24' in message and code in message
    assert "number: 7" not in message


def test_failing_command_is_named(tmp_path):
    text = "```bash\nfalse | true\necho on\n```\n\n```bash\necho next\n```\n"
    page = written(tmp_path, text)
    with pytest.raises(pytest.fail.Exception) as failure:
        run_page(page, tmp_path)
    message = str(failure.value)
    place = "page.md, block 1 of 2 (bash, line 2)"
    assert message.startswith(f"{place} failed: exit code 1\n"), message
    # It stops at the first error.
    assert "\non\n" not in message


@pytest.mark.parametrize(
    "text",
    ["```sh\nls\n```\n", "```\nls\n```\n", "  ```bash\nls\n  ```\n"]
    + ["```bash\nls\n"],
    ids=["unknown", "none", "indented", "open"],
)
def test_block_that_would_not_run_is_an_error(text):
    with pytest.raises(ValueError, match="^line 1:|does not end"):
        blocks_of(text)
