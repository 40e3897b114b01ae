"""Schedules: their curves, their state, and what they set."""

import math

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from ssast_lobes.utils.schedules import (
    Constant,
    Linear,
    WarmupCosine,
    WarmupPlateau,
    WarmupStepDecay,
    apply_learning_rate,
)

TOTAL = 400


def curve(schedule, total=TOTAL):
    return [schedule(step, total) for step in range(total)]


@pytest.mark.parametrize("kind", [Linear, WarmupCosine])
@pytest.mark.parametrize("warmup", [40, 0.1])
def test_warmup_rises_then_falls_to_the_end_rate(kind, warmup):
    values = curve(kind(start=2.0, end=0.02, warmup=warmup))
    assert values[0] == pytest.approx(2.0 / 40)
    assert values[39] == values[40] == 2.0
    rises = [b - a for a, b in zip(values[:40], values[1:40], strict=False)]
    assert max(rises) == pytest.approx(min(rises))
    assert all(a > b for a, b in zip(values[40:], values[41:], strict=False))
    assert values[40 + 180] == pytest.approx(1.01)
    assert kind(2.0, 0.02, warmup)(TOTAL, TOTAL) == pytest.approx(0.02)
    assert kind(2.0, 0.02, warmup)(10 * TOTAL, TOTAL) == pytest.approx(0.02)


def test_cosine_is_torchs_cosine():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=TOTAL, eta_min=0.1
    )
    for value in curve(WarmupCosine(1.0, 0.1)):
        assert value == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_rising_momentum_and_weight_decay():
    momentum = curve(WarmupCosine(0.996, 1.0))
    assert momentum[0] == 0.996
    assert momentum == sorted(momentum)
    assert 0.9999 < momentum[-1] <= 1.0
    assert set(curve(Constant(0.3))) == {0.3}


def test_duration_in_steps_or_as_a_share():
    steps = curve(Linear(0.04, 0.07, duration=100))
    assert steps == curve(Linear(0.04, 0.07, duration=0.25))
    assert steps[50] == pytest.approx(0.055)
    assert set(steps[100:]) == {0.07}


def test_warmup_longer_than_the_run_is_cut_off():
    values = curve(WarmupCosine(warmup=1000), total=4)
    assert values == pytest.approx([0.001, 0.002, 0.003, 0.004])


@pytest.mark.parametrize("warmup", [1000.0, -1, -0.5, math.nan])
def test_impossible_durations_are_refused(warmup):
    with pytest.raises(ValueError, match="warmup must be a fraction"):
        WarmupCosine(warmup=warmup)(0, TOTAL)


@pytest.mark.parametrize("first, every", [(10, 5), (6, 1), (1, 3)])
def test_step_decay_is_the_official_multistep(first, every):
    epochs, steps_per_epoch = 25, 7
    schedule = WarmupStepDecay(epochs, 0.85, first, every)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, list(range(first, 1000, every)), gamma=0.85
    )
    for epoch in range(epochs):
        for batch in range(steps_per_epoch):
            step = epoch * steps_per_epoch + batch
            value = schedule(step, epochs * steps_per_epoch)
            assert value == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_step_decay_after_a_warmup_keeps_the_decay():
    schedule = WarmupStepDecay(10, factor=0.5, first=2, every=2, warmup=0.5)
    values = curve(schedule)
    assert values[0] == pytest.approx(1 / 200)
    # Step 160 is in epoch 4, decayed twice, at four fifths of the warm-up.
    assert values[160] == pytest.approx(0.25 * 161 / 200)


def _metrics(offset=0.0):
    generator = torch.Generator().manual_seed(1)
    steps = torch.arange(60)
    noise = 0.05 * torch.randn(60, generator=generator)
    return (offset + 0.5 * (1 - torch.exp(-steps / 8)) + noise).tolist()


def test_plateau_is_torchs_rule():
    ours = WarmupPlateau(warmup=0, factor=0.5, patience=2)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=2
    )
    for metric in _metrics():
        ours.update(metric)
        theirs.step(metric)
        assert ours(5, TOTAL) == optimizer.param_groups[0]["lr"]
    assert ours.multiplier < 0.5


def test_plateau_takes_a_negative_loss():
    schedule = WarmupPlateau(warmup=0, patience=1)
    for loss in (1.0, 0.9, 0.8):
        schedule.update(-loss)
    assert schedule.multiplier == 1.0
    for loss in (0.85, 0.8):
        schedule.update(-loss)
    assert schedule.multiplier == 0.5


def test_plateau_warms_up_and_resumes(tmp_path):
    metrics = _metrics()
    whole = WarmupPlateau(warmup=100)
    first, second = WarmupPlateau(warmup=100), WarmupPlateau(warmup=100)
    for metric in metrics:
        whole.update(metric)
    for metric in metrics[:31]:
        first.update(metric)
    Checkpointer(tmp_path, {"schedule": first}).save_checkpoint()
    Checkpointer(tmp_path, {"schedule": second}).recover_if_possible()
    for metric in metrics[31:]:
        second.update(metric)
    assert whole.multiplier < 1.0
    assert curve(second) == curve(whole)
    assert second(49, TOTAL) == 0.5 * second.multiplier
    assert second.get_extra_state() == whole.get_extra_state()


def test_fresh_plateau_can_be_resumed(tmp_path):
    Checkpointer(tmp_path, {"s": WarmupPlateau()}).save_checkpoint()
    schedule = WarmupPlateau()
    Checkpointer(tmp_path, {"s": schedule}).recover_if_possible()
    schedule.update(-3.0)
    assert schedule.best == -3.0


def test_learning_rate_keeps_the_groups_proportions():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters[0], "lr_scale": 0.25},
            {"params": parameters[1]},
            {"params": parameters[2], "lr_scale": 10.0},
        ],
        lr=123.0,
    )
    for _ in range(2):
        apply_learning_rate(optimizer, 0.1)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.025, 0.1, 1.0])
