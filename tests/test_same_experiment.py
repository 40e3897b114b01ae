"""A second start in the same folder: what may change, and what may not."""

import functools

import pytest
import torch

from ssast_lobes.masking import RandomMasker
from ssast_lobes.objectives import M2D, MSPM
from ssast_lobes.training.errors import (
    SettingsError,
    check_same_experiment,
    keep_settings,
)


@pytest.fixture
def first(tmp_path):
    """Settings of the first start."""
    settings = {
        "output_folder": str(tmp_path),
        "number_of_epochs": 2,
        "folds": (1, 2),
        "opt_class": functools.partial(torch.optim.AdamW, weight_decay=0.1),
        "objective": {"objective_class": functools.partial(MSPM, ratio=0.5)},
        "training": {"number_of_epochs": 2, "max_grad_norm": 5.0},
        "augment": [RandomMasker(0.5)],
        "mixup": None,
    }
    keep_settings(settings)
    (tmp_path / "save" / "CKPT+1").mkdir(parents=True)
    return settings


def test_nothing_or_what_is_free_has_changed(first):
    check_same_experiment(first)
    training = {**first["training"], "number_of_epochs": 3}
    more = {"number_of_epochs": 3, "training": training}
    elsewhere = {"shards": "/fast/shards", "data_folder": "/node/7"}
    check_same_experiment({**first, **more, **elsewhere})


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
            {"objective": {"objective_class": functools.partial(M2D)}},
            r"objective.objective_class \(.*MSPM, now .*M2D\), .*ratio \(0.5",
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


def test_nothing_is_trained_yet(first, tmp_path):
    (tmp_path / "save" / "CKPT+1").rmdir()
    check_same_experiment({**first, "mixup": RandomMasker(0.5)})
