"""Every fragment of training settings fits the recipe that it is for."""

from pathlib import Path

import pytest
from hyperpyyaml import load_hyperpyyaml

from ssast_lobes.presets import hparams_folder, read_preset
from ssast_lobes.training import parse_arguments

RECIPES = Path(__file__).parent.parent / "recipes" / "CustomData"
FRAGMENTS = sorted((hparams_folder() / "training").glob("*.yaml"))


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda path: path.stem)
def test_settings_load_by_their_word(fragment, tmp_path):
    pretraining = "pretrain" in fragment.stem
    task = "pretrain" if pretraining else "classify"
    path, _, overrides = parse_arguments(
        [str(RECIPES / task / "hparams" / f"{task}.yaml")]
        + [f"--training={fragment.stem}", "--model_size=micro"]
        + [f"--{'audio' if pretraining else 'manifest'}=none"]
        + [f"--output_folder={tmp_path}"]
    )
    with open(path, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    preset = read_preset("training", fragment.stem)
    for key in ("batch_size", "lr", "max_grad_norm", "optimizer_step_limit"):
        assert hparams[key] == preset[key]
    for key in ("schedule", "opt_class"):
        kind = getattr(hparams[key], "func", type(hparams[key]))
        assert preset[key].tag.value.endswith(f".{kind.__name__}")
    parameters = hparams["lobe"].parameters()
    optimizer = hparams["opt_class"]([{"params": list(parameters)}])
    assert all(group["fused"] for group in optimizer.param_groups)
    assert 0 < hparams["schedule"](0, 100000) <= 1
    assert hparams["lr"] < 0.01
    assert hparams["max_grad_norm"] > 0
    if not pretraining:
        assert hparams["loss"] in ("ce", "bce")
        assert isinstance(hparams["augment"], list)
