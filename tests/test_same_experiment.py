"""A second start in the same folder: what may change, and what may not."""

import functools
import json

import pytest
import torch

from ssast_lobes import SpectrogramEncoder
from ssast_lobes.brains.errors import SettingsError, check_same_experiment
from ssast_lobes.masking import RandomMasker
from ssast_lobes.objectives import MSPM, load_objective

ENCODER = SpectrogramEncoder(dim=32, depth=1, heads=2, table_frames=160)


@pytest.fixture
def first(tmp_path):
    """Settings of the first start."""
    settings = {
        "output_folder": str(tmp_path),
        "number_of_epochs": 2,
        "folds": (1, 2),
        "opt_class": functools.partial(torch.optim.AdamW, weight_decay=0.1),
        "objective": MSPM(ENCODER, RandomMasker(0.5)),
        "training": {"number_of_epochs": 2, "max_grad_norm": 5.0},
        "augment": [RandomMasker(0.5)],
        "mixup": None,
    }
    check_same_experiment(settings)
    return settings


def test_nothing_or_what_is_free_has_changed(first):
    check_same_experiment(first)
    training = {**first["training"], "number_of_epochs": 3}
    more = {"number_of_epochs": 3, "training": training}
    check_same_experiment({**first, **more, "shards": "/fast/shards"})


@pytest.mark.parametrize(
    "changed, told",
    [
        (
            {"opt_class": functools.partial(torch.optim.SGD, weight_decay=0.1)},
            r"opt_class \(torch.optim.adamw.AdamW, now torch.optim.sgd.SGD\)",
        ),
        (
            {"opt_class": torch.optim.AdamW},
            r"opt_class.weight_decay \(0.1, now None\)",
        ),
        (
            {"objective": load_objective("m2d")(ENCODER)},
            r"objective \(.*MSPM, now .*M2D\), .*momentum \(None, now \[0.99",
        ),
        (
            {"objective": MSPM(ENCODER, RandomMasker(0.4))},
            r"objective.masker.ratio \(0.5, now 0.4\)",
        ),
        (
            {"training": {"max_grad_norm": 1.0}},
            r"training.max_grad_norm \(5.0, now 1.0\)",
        ),
        ({"augment": []}, r"augment.0 \(.*RandomMasker, now None\)"),
        ({"mixup": RandomMasker(0.5)}, r"mixup \(None, now .*RandomMasker\)"),
        ({"folds": [1]}, r"folds \(\[1, 2\], now \[1\]\)"),
    ],
)
def test_another_experiment_is_refused(first, changed, told):
    with pytest.raises(SettingsError, match=told):
        check_same_experiment({**first, **changed})


def test_file_of_a_former_version(first, tmp_path):
    path = tmp_path / "settings.json"
    then = json.loads(path.read_text())
    del then["built"]
    path.write_text(json.dumps(then))
    check_same_experiment({**first, "opt_class": torch.optim.SGD})
    with pytest.raises(SettingsError, match="folds"):
        check_same_experiment({**first, "folds": [1]})
