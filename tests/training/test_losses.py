"""Losses of classifiers: values that are worked by hand."""

import functools
import math
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from torch.nn import functional

from ssast_lobes.training import parse_arguments
from ssast_lobes.training.losses import (
    aam_softmax,
    binary_cross_entropy,
    class_weights,
    cross_entropy,
    focal_loss,
    needs_one_label,
)

RECIPES = Path(__file__).parents[2] / "recipes"

# Probabilities of 3/4 and 1/4, then of 1/2 and 1/2, by softmax.
SCORES = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
ONE_HOT = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
WEIGHT = torch.tensor([3.0, 2.0])
# Minus the logarithms of 3/4, 1/4 and 1/2.
L34, L14, L12 = (-math.log(p) for p in (0.75, 0.25, 0.5))


def near(value):
    return pytest.approx(value, abs=1e-6)


# Cross-entropy ------------------------------------------------------------


def test_cross_entropy():
    assert cross_entropy(SCORES, ONE_HOT).item() == near((L34 + L12) / 2)
    mixed = torch.tensor([[0.6, 0.4]])
    loss = cross_entropy(SCORES[:1], mixed).item()
    assert loss == near(0.6 * L34 + 0.4 * L14)
    # Half precision would lose digits.
    rounded = SCORES.bfloat16()
    loss = cross_entropy(rounded, ONE_HOT)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cross_entropy(rounded.float(), ONE_HOT))


def test_label_smoothing_spreads_over_all_classes():
    loss = cross_entropy(SCORES[:1], ONE_HOT[:1], label_smoothing=0.2)
    assert loss.item() == near(0.9 * L34 + 0.1 * L14)
    loss = binary_cross_entropy(
        torch.tensor([[math.log(3.0)]]), torch.ones(1, 1), label_smoothing=0.2
    )
    assert loss.item() == near(0.9 * L34 + 0.1 * L14)


def test_weights_of_classes():
    loss = cross_entropy(SCORES, ONE_HOT, WEIGHT).item()
    assert loss == near((3 * L34 + 2 * L12) / 2)
    mixed = torch.tensor([[0.6, 0.4]])
    loss = cross_entropy(SCORES[:1], mixed, WEIGHT).item()
    assert loss == near(3 * 0.6 * L34 + 2 * 0.4 * L14)


def test_binary_cross_entropy():
    # Sigmoids of 3/4 and 1/4, of 1/2 and 3/4.
    third = math.log(3.0)
    scores = torch.tensor([[third, -third], [0.0, third]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    loss = binary_cross_entropy(scores, targets).item()
    assert loss == near((L34 + L34 + L12 + L14) / 4)
    # A weight is that of a class where it is present.
    loss = binary_cross_entropy(scores, targets, WEIGHT).item()
    assert loss == near((3 * L34 + L34 + 3 * L12 + L14) / 4)


# Focal loss ---------------------------------------------------------------


def test_focal_loss():
    loss = focal_loss(SCORES, ONE_HOT).item()
    assert loss == near((0.25**2 * L34 + 0.5**2 * L12) / 2)
    loss = focal_loss(SCORES, ONE_HOT, gamma=1.0).item()
    assert loss == near((0.25 * L34 + 0.5 * L12) / 2)
    loss = focal_loss(SCORES, ONE_HOT, WEIGHT).item()
    assert loss == near((3 * 0.25**2 * L34 + 2 * 0.5**2 * L12) / 2)


@pytest.mark.parametrize("target", [0, 1])
def test_focal_loss_of_a_sure_clip_has_a_gradient(target):
    scores = torch.tensor([[30.0, 0.0]], requires_grad=True)
    focal_loss(scores, torch.eye(2)[[target]], gamma=0.5).backward()
    expected = torch.tensor([[1.0, -1.0]]) * target
    torch.testing.assert_close(scores.grad, expected)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_focal_loss_of_power_zero_is_the_cross_entropy(weight):
    targets = torch.tensor([[0.6, 0.4], [0.1, 0.9]])
    torch.testing.assert_close(
        focal_loss(SCORES, targets, weight, gamma=0.0),
        cross_entropy(SCORES, targets, weight),
    )


# Additive angular margin --------------------------------------------------


def test_the_right_class_has_to_be_nearer_by_the_margin():
    # Angles of 60 and 90 degrees; the first is the right class.
    cosines = torch.tensor([[0.5, 0.0]])
    target = torch.tensor([[1.0, 0.0]])
    moved = math.cos(math.pi / 3 + 0.2)
    loss = aam_softmax(10 * cosines, target, margin=0.2, scale=10.0).item()
    assert loss == near(math.log(1 + math.exp(-10 * moved)))
    loss = aam_softmax(10 * cosines, target, WEIGHT, 0.2, 10.0).item()
    assert loss == near(3 * math.log(1 + math.exp(-10 * moved)))


def test_no_margin_is_the_cross_entropy():
    cosines = torch.tensor([[0.5, 0.0], [-0.3, 0.8]])
    torch.testing.assert_close(
        aam_softmax(30 * cosines, ONE_HOT, margin=0.0),
        cross_entropy(30 * cosines, ONE_HOT),
    )


@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_gradient_of_a_vector_on_its_class_is_finite(cosine):
    scores = torch.tensor([[30 * cosine, 0.0]], requires_grad=True)
    aam_softmax(scores, torch.tensor([[1.0, 0.0]])).backward()
    assert scores.grad.isfinite().all()


# Weights of classes -------------------------------------------------------


def test_balanced_weights():
    labels = [["cat"]] * 6 + [["dog"]] * 3 + [["owl"]]
    classes = ["owl", "cat", "dog"]
    weights = class_weights("balanced", labels, classes)
    assert weights.tolist() == near([10 / 3, 10 / 18, 10 / 9])
    # One on average over the clips.
    assert (6 * weights[1] + 3 * weights[2] + weights[0]).item() == near(10)


def test_balanced_weights_of_several_labels():
    labels = [["cat"], ["cat", "dog"], ["cat"], ["dog"], []]
    weights = class_weights("balanced", labels, ["cat", "dog"], True)
    # Clips without over clips with the class.
    assert weights.tolist() == near([2 / 3, 3 / 2])


def test_table_of_weights():
    classes = ["cat", "dog", "owl"]
    weights = class_weights({"owl": 2, "cat": 0.5}, [], classes)
    assert weights.tolist() == [0.5, 1.0, 2.0]
    with pytest.raises(ValueError, match="of cow: no such class; .* cat, dog"):
        class_weights({"cow": 2}, [], classes)
    with pytest.raises(ValueError, match=r"a mapping .*cat: 2.0.*, got even"):
        class_weights("even", [], classes)


def test_table_of_weights_on_the_command_line():
    path = RECIPES / "FSDD" / "speakers" / "hparams" / "speakers.yaml"
    for given, expected in [
        ("{theo: 2.0, 7: 0.5}", {"theo": 2.0, 7: 0.5}),
        ("balanced", "balanced"),
    ]:
        _, _, overrides = parse_arguments(
            [str(path), "--data_folder=none", "--class_weights", given]
        )
        with open(path, encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file, overrides)
        assert hparams["class_weights"] == expected
    weights = class_weights({"theo": 2.0, 7: 0.5}, [], ["7", "theo"])
    assert weights.tolist() == [0.5, 2.0]


# Several labels -----------------------------------------------------------


@pytest.mark.parametrize(
    "loss, one",
    [
        (cross_entropy, True),
        (functools.partial(focal_loss, gamma=1.0), True),
        (aam_softmax, True),
        (functional.cross_entropy, True),
        (functools.partial(binary_cross_entropy), False),
        (functional.mse_loss, False),
    ],
)
def test_losses_that_need_one_label(loss, one):
    assert needs_one_label(loss) is one
