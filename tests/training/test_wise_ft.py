"""WiSE-FT: weights between the start and the end of a training."""

import json

import pytest
import torch
from brain_kit import (
    RANDOM,
    Killed,
    build,
    dying,
    evaluate,
    fit,
    same,
    weights,
)

from ssast_lobes.training import ClassificationBrain
from ssast_lobes.training.errors import SettingsError


def started(rows, folder, **settings):
    """A run, and its weights before training."""
    run = build("classify", rows, folder, wise_ft=True, **settings)
    return run, {k: v.clone() for k, v in weights(run).items()}


def mix(run):
    run.brain.mix_with_start(run.datasets["valid"], {"batch_size": 3})
    return run.brain.fraction


def lerp(start, end, fraction):
    return {key: torch.lerp(start[key], end[key], fraction) for key in start}


def test_valid_chooses_the_fraction(rows, tmp_path):
    parts = {**rows, "test": rows["valid"]}
    run, start = started(parts, tmp_path)
    evaluate(fit(run))
    end = weights(run)
    fraction = mix(run)
    chosen = evaluate(run)
    assert same(weights(run), lerp(start, end, fraction))
    stats = {}
    for other in {0.0, 0.5, 1.0} - {fraction}:
        run.brain.fraction = other
        stats[other] = evaluate(run)
        assert same(weights(run), lerp(start, end, other))
    least = stats.get(0.0, chosen)["accuracy"]
    assert chosen["accuracy"] >= least
    for other in stats.values():
        assert other["accuracy"] < least or chosen["loss"] <= other["loss"]


def test_a_training_that_only_harms_is_undone(rows, tmp_path):
    parts = {**rows, "test": rows["valid"]}
    first = fit(build("classify", parts, tmp_path / "first", epochs=4))
    before = evaluate(first)
    run = build("classify", parts, tmp_path, wise_ft=True, lr=10.0)
    for model in (run.brain.model, run.brain.start):
        model.load_state_dict(weights(first))
    assert evaluate(fit(run))["loss"] > before["loss"]
    assert mix(run) < 1
    assert evaluate(run)["accuracy"] >= before["accuracy"]


@pytest.mark.slow
def test_start_of_a_resumed_run(rows, tmp_path):
    settings = {"epochs": 3, **RANDOM["classify"]}
    whole, start = started(rows, tmp_path / "whole", **settings)
    fit(whole)
    steps = {"ckpt_interval_steps": 2}
    brain_class = dying(ClassificationBrain, epoch=3, batch=4)
    folder = tmp_path / "broken"
    with pytest.raises(Killed):
        fit(
            started(
                rows,
                folder,
                run_opts=steps,
                brain_class=brain_class,
                **settings,
            )[0]
        )
    # Other first weights, which the checkpoint replaces.
    resumed, _ = started(
        rows, folder, run_opts=steps, **{**settings, "seed": 7}
    )
    with torch.no_grad():
        resumed.brain.start.head.linear.weight.zero_()
    fit(resumed)
    assert same(resumed.brain.start.state_dict(), start)
    assert mix(resumed) == mix(whole)
    assert evaluate(resumed) == evaluate(whole)
    result = json.loads(json.dumps(resumed.brain.result()))
    assert result["wise_ft"] == whole.brain.fraction


def test_mean_of_weights_is_the_end(rows, tmp_path):
    run, start = started(rows, tmp_path, swa_start_epoch=2)
    fit(run)
    fraction = mix(run)
    evaluate(run)
    mean = run.brain.average.module.state_dict()
    assert same(weights(run), lerp(start, mean, fraction))


def test_valid_of_one_class_cannot_choose(rows, tmp_path):
    run, _ = started(rows, tmp_path)
    fit(run)
    run.brain.selection = "eer"
    with pytest.raises(SettingsError, match="clips of one class only"):
        mix(run)
