"""The style of all files: ruff's rules, and nothing of the author's machine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Not part of the project: what git ignores, and git itself.
IGNORED = re.compile(
    r"\.git|\.venv.*|__pycache__|.*\.egg-info|build|dist|results|\..*_cache"
)
TEXT = {"", ".py", ".yaml", ".md", ".csv", ".toml", ".txt", ".sh", ".json"}
HOME = re.compile(
    r"(?<![\w.])/(?:home|Users|root|work|mnt|scratch)/[A-Za-z0-9_.]"
)


def project_files(folder=ROOT):
    """Yield every file of the project, without what git ignores."""
    for path in sorted(folder.iterdir()):
        if IGNORED.fullmatch(path.name):
            continue
        if path.is_dir():
            yield from project_files(path)
        else:
            yield path


def machine_paths(text):
    """Return the lines that name a folder of one person's machine."""
    return [line.strip() for line in text.splitlines() if HOME.search(line)]


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff(command):
    # --no-cache: another process may be at the same cache.
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split(), "--no-cache", ROOT],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_asks_for_docstrings(tmp_path):
    module = tmp_path / "module.py"
    module.write_text('"""A module."""\n\n\ndef public():\n    pass\n')
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache"]
        + ["--config", ROOT / "pyproject.toml", module],
        capture_output=True,
        text=True,
    )
    assert "D103" in result.stdout, result.stdout + result.stderr


def test_no_machine_paths():
    found = {
        str(path.relative_to(ROOT)): lines
        for path in project_files()
        if path.suffix in TEXT
        and (lines := machine_paths(path.read_text("utf-8", "replace")))
    }
    assert not found


def test_machine_paths_are_seen():
    bad = "data: /ho" + "me/jo/data\ngood: results/me"
    assert machine_paths(bad) == ["data: /ho" + "me/jo/data"]
