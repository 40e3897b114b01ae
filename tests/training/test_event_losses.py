"""The loss of events, worked by hand."""

import math

import pytest
import torch

from ssast_lobes import event_cross_entropy
from ssast_lobes.models.event_head import EventScores

# Two clips of three and two frames, one class; clip 1 has weak labels.
SCORES = EventScores(
    torch.tensor([[[0.0], [2.0], [0.0]], [[1.0], [0.0], [9.0]]]),
    torch.tensor([[1.0], [-1.0]]),
    torch.tensor([3, 2]),
)
FRAMES = torch.tensor([[[0.0], [1.0], [1.0]], [[0.0], [0.0], [0.0]]])
CLIPS = torch.tensor([[1.0], [1.0]])


def bce(score, target):
    return math.log1p(math.exp(-score if target else score))


STRONG = (bce(0, 0) + bce(2, 1) + bce(0, 1)) / 3
WEAK = (bce(1, 1) + bce(-1, 1)) / 2
BOTH = (STRONG + (bce(1, 0) + bce(0, 0)) / 2) / 2


@pytest.mark.parametrize(
    "strong, weight, wanted",
    [
        ([True, False], 0.0, STRONG),
        ([True, True], 0.0, BOTH),
        ([False, False], 1.0, WEAK),
        ([True, False], 0.5, STRONG + 0.5 * WEAK),
    ],
)
def test_strong_weak_and_both(strong, weight, wanted):
    loss = event_cross_entropy(
        SCORES, FRAMES, CLIPS, torch.tensor(strong), weight
    )
    assert loss.item() == pytest.approx(wanted, abs=1e-6)
