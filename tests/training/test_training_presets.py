"""Every preset of training settings fits the recipe that it is for."""

import csv
import shlex
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from ssast_lobes.training import losses, parse_arguments
from ssast_lobes.utils.presets import hparams_folder, read_preset, read_tree

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "CustomData"
PRESETS = sorted((hparams_folder() / "training").glob("*.yaml"))
# One that begins with a base is a variant of the recipe of a corpus.
VARIANTS = [path for path in PRESETS if "base" in read_tree(path)]
GENERAL = [path for path in PRESETS if path not in VARIANTS]
LOSSES = (losses.cross_entropy, losses.binary_cross_entropy)


def load(yaml, name, *words):
    """The preset, and the hyperparameters of a recipe that has its word."""
    path, _, overrides = parse_arguments(
        [str(yaml), f"--training={name}", "--model_size=micro", *words]
    )
    with open(path, encoding="utf-8") as file:
        return read_preset("training", name), load_hyperpyyaml(file, overrides)


def check(preset, hparams):
    """Raise unless the numbers of a preset are those that are trained with."""
    for key in ("batch_size", "lr", "max_grad_norm", "optimizer_step_limit"):
        assert hparams[key] == preset[key]
    for key in ("schedule", "opt_class"):
        kind = getattr(hparams[key], "func", type(hparams[key]))
        assert preset[key].tag.value.endswith(f".{kind.__name__}")
    parameters = hparams["lobe"].parameters()
    optimizer = hparams["opt_class"]([{"params": list(parameters)}])
    assert optimizer.defaults["lr"] == hparams["lr"]
    assert all(group["fused"] for group in optimizer.param_groups)
    assert 0 < hparams["schedule"](0, 100000) <= 1
    assert hparams["lr"] < 0.01
    assert hparams["max_grad_norm"] > 0
    if "compute_cost" in hparams:
        assert hparams["compute_cost"].func in LOSSES
        assert hparams["compute_cost"](torch.zeros(1, 3), torch.eye(3)[:1]) > 0
        assert isinstance(hparams["augment"], list)


@pytest.mark.parametrize("path", GENERAL, ids=lambda path: path.stem)
def test_settings_load_by_their_word(path, tmp_path):
    pretraining = "pretrain" in path.stem
    task = "pretrain" if pretraining else "classify"
    preset, hparams = load(
        RECIPES / task / "hparams" / f"{task}.yaml",
        path.stem,
        f"--{'audio' if pretraining else 'manifest'}=none",
        f"--output_folder={tmp_path}",
    )
    assert ("compute_cost" in hparams) == (not pretraining)
    check(preset, hparams)


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_variants_load_in_their_recipe(path, tmp_path):
    word = f"--training={path.stem}"
    rows = [
        row
        for row in table_rows()
        if word in shlex.split(row["test_debug_flags"])
    ]
    # It is a variant, or the numbers of a recipe's default.
    name = f"hparams/training/{path.stem}.yaml"
    assert rows or word.replace("=", " ") in readmes() or name in yamls()
    for row in rows:
        flags = shlex.split(row["test_debug_flags"])
        flags = [flag.partition("=")[0] for flag in flags]
        data = [flag for flag in flags if flag.endswith("_folder")]
        preset, hparams = load(
            ROOT / row["Hparam_file"],
            path.stem,
            *[f"{flag}={tmp_path}" for flag in data],
        )
        check(preset, hparams)
        assert Path(hparams["output_folder"]).name == path.stem


def table_rows():
    for table in sorted((ROOT / "tests" / "recipes").glob("*.csv")):
        with open(table, newline="") as file:
            yield from csv.DictReader(file)


def yamls():
    """The text of the YAMLs of all recipes."""
    pages = sorted((ROOT / "recipes").glob("*/*/hparams/*.yaml"))
    return "\n".join(page.read_text("utf-8") for page in pages)


def readmes():
    """The text of the pages of all recipes."""
    pages = sorted((ROOT / "recipes").glob("*/README.md"))
    return "\n".join(page.read_text("utf-8") for page in pages)
