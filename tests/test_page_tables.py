"""The tables of the pages are those that docs/tables.py writes."""

import doctest
import shutil
import sys
from pathlib import Path

import pytest
import torch

from ssast_lobes import SpectrogramEncoder

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import tables  # noqa: E402
from tables_of_package import OBJECTIVES, PARAMETERS  # noqa: E402

PRESETS = ROOT / "hparams/objective"


def test_pages_have_the_numbers(capsys):
    differ = tables.main(["--check"])
    assert not differ, f"run python docs/tables.py\n{capsys.readouterr().out}"


@pytest.mark.parametrize("name", tables.TABLES)
def test_rows_are_of_one_width(name):
    lines = tables.table(name)
    assert len(lines) > 2
    assert len({line.count("|") for line in lines}) == 1


def test_a_number_that_differs_is_found(tmp_path):
    page = tmp_path / "docs/part/objectives.md"
    page.parent.mkdir(parents=True)
    shutil.copy(ROOT / "docs/objectives.md", page)
    assert list(tables.changes(tmp_path)) == []
    right = page.read_text("utf-8")
    wrong = right.replace("| `m2d` | 0.9 |", "| `m2d` | 9.0 |")
    assert wrong != right
    page.write_text(wrong, "utf-8")
    assert list(tables.changes(tmp_path)) == [(page, wrong, right)]


def test_nothing_but_the_table_is_written():
    page = "One.\n\n<!-- table: sizes -->\nold\n<!-- /table -->\nTwo.\n"
    filled = tables.fill(page, "page.md")
    body = "\n".join(tables.table("sizes"))
    assert filled == page.replace("old", body)
    assert tables.fill(filled, "page.md") == filled


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- table: size -->\n<!-- /table -->", "1: there is no table size,"),
        ("\n<!-- table: sizes -->\n", "2: the table sizes does not end"),
        (
            "<!-- table: sizes -->\n<!-- table: memory -->\n<!-- /table -->",
            "1: the table sizes does not end",
        ),
        ("<!-- /table -->", "1: <!-- /table --> opens or closes nothing"),
        ("<!-- table sizes -->", "1: <!-- table sizes --> opens or closes"),
        (
            "<!-- table: sizes -->\n<!--/table-->\n<!-- /table -->",
            "2: <!--/table--> opens or closes nothing",
        ),
    ],
)
def test_wrong_markers(text, told):
    with pytest.raises(tables.TableError, match=f"^page.md, line {told}"):
        tables.fill(text, "page.md")


def test_examples():
    assert doctest.testmod(tables).failed == 0


def test_objectives_are_those_of_the_presets():
    """Variants begin with `base`; the reference is one of mspm."""
    paths = {path.stem: path for path in PRESETS.glob("*.yaml")}
    texts = {name: path.read_text("utf-8") for name, path in paths.items()}
    variants = {name for name, text in texts.items() if "\nbase: " in text}
    assert set(OBJECTIVES) == set(texts) - variants - {"mspm_reference"}
    for name, paper in OBJECTIVES.items():
        assert paper.rpartition(", ")[2] in texts[name], name


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters_are_those_of_the_encoder(size):
    # Of one block and of two, the large ones without values: whole encoders
    # take seconds, and so does what Mamba's first values load on `meta`.
    with torch.device("cpu" if "ssamba" in size else "meta"):
        one, two = (
            SpectrogramEncoder.from_size(size, depth=depth) for depth in (1, 2)
        )
    one, two = (sum(p.numel() for p in e.parameters()) for e in (one, two))
    depth = tables.read(ROOT / f"hparams/model/{size}.yaml")["depth"]
    assert one + (depth - 1) * (two - one) == PARAMETERS[size]
