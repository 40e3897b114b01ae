"""The recipes of datasets, run as the tables next to this file say.

In the flags `{name}` stands for a folder with the miniature archive that
`miniature_name.make` writes. Each recipe trains two epochs on it, as a process
of its own.
"""

import csv
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# These have tests of their own.
OTHERS = ("CustomData.csv", "SyntheticCommands.csv")
NO_METRICS = pytest.mark.skipif(
    importlib.util.find_spec("sed_scores_eval") is None,
    reason="metrics of events need the extra `events`",
)


def table_rows():
    for table in sorted(HERE.glob("*.csv")):
        if table.name in OTHERS:
            continue
        with open(table, newline="") as file:
            for row in csv.DictReader(file):
                name = f"{row['Dataset']}: {row['Task']}"
                is_events = row["Task"] == "Sound event detection"
                marks = [NO_METRICS] if is_events else []
                yield pytest.param(row, id=name, marks=marks)


class Miniatures(dict):
    """Folder of each miniature by its name, made when it is asked for."""

    def __init__(self, folder):
        self.folder = folder

    def __missing__(self, name):
        module = importlib.import_module(f"miniature_{name}")
        self[name] = module.make(self.folder / name)
        return self[name]


@pytest.fixture(scope="session")
def miniatures(tmp_path_factory):
    return Miniatures(tmp_path_factory.mktemp("miniatures"))


@pytest.mark.slow
@pytest.mark.parametrize("row", list(table_rows()))
def test_recipe(row, miniatures, tmp_path):
    flags = row["test_debug_flags"].format_map(miniatures)
    result = subprocess.run(
        [sys.executable, ROOT / row["Script_file"], ROOT / row["Hparam_file"]]
        + [*shlex.split(flags), f"--output_folder={tmp_path / 'out'}"]
        + ["--device=cpu", "--noprogressbar"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    found = re.search(r"file_exists=\[(.*)\]", row["test_debug_checks"])
    for name in found[1].split(","):
        assert (tmp_path / "out" / name).is_file(), name
