"""Weights averaged over epochs, and samplers of one's own, in a Brain."""

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
    merged,
    same,
    weights,
)

from ssast_lobes.dataio.samplers import PartSampler, balanced_sampler
from ssast_lobes.training import ClassificationBrain, PretrainingBrain
from ssast_lobes.training.errors import SettingsError


class Keeping(ClassificationBrain):
    """A Brain that notes the weights at the end of each epoch."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        super().on_stage_end(stage, stage_loss, epoch)
        if epoch is not None:
            self.weights_of = getattr(self, "weights_of", {})
            state = self.model.state_dict()
            self.weights_of[epoch] = {k: v.clone() for k, v in state.items()}


def mean_of(states):
    return {
        key: torch.stack([state[key] for state in states]).mean(0)
        for key in states[0]
    }


def assert_close(one, other):
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key])


def test_test_is_of_the_mean_of_the_last_epochs(rows, tmp_path):
    run = build(
        "classify",
        rows,
        tmp_path,
        epochs=4,
        swa_start_epoch=2,
        brain_class=Keeping,
    )
    stats = evaluate(fit(run))
    kept = run.brain.weights_of
    mean = mean_of([kept[2], kept[3], kept[4]])
    assert not same(mean, kept[4])
    assert_close(weights(run), mean)
    log = (tmp_path / "train_log.txt").read_text().splitlines()
    assert log[-1].startswith("mean of epochs: 2 to 4 - test loss")

    # A later command has it from the checkpoint.
    options = {"test_only": True}
    again = build(
        "classify",
        rows,
        tmp_path,
        epochs=4,
        swa_start_epoch=2,
        run_opts=options,
    )
    assert evaluate(fit(again)) == stats
    assert same(weights(again), weights(run))


def test_validation_is_of_the_mean_so_far(rows, tmp_path):
    def losses(name, **settings):
        # What is tested is what is validated.
        parts = {**rows, "test": rows["valid"]}
        run = build("classify", parts, tmp_path / name, epochs=3, **settings)
        test = evaluate(fit(run))["loss"]
        log = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        valid = [json.loads(line)["valid_loss"] for line in log]
        return valid, test

    plain, _ = losses("plain")
    valid, test = losses("mean", swa_start_epoch=2)
    # The mean of one epoch is that epoch; training does not see the mean.
    assert valid[:2] == plain[:2] and valid[2] != plain[2]
    assert valid[2] == pytest.approx(test, rel=1e-6)


def test_mean_of_a_resumed_run(rows, tmp_path):
    def prepared(name, **more):
        settings = {"epochs": 4, "swa_start_epoch": 2, **RANDOM["classify"]}
        return build("classify", rows, tmp_path / name, **settings, **more)

    whole = fit(prepared("whole"))
    steps = {"ckpt_interval_steps": 2}
    brain_class = dying(ClassificationBrain, epoch=4, batch=4)
    with pytest.raises(Killed):
        fit(prepared("broken", run_opts=steps, brain_class=brain_class))
    resumed = fit(prepared("broken", run_opts=steps))
    assert evaluate(resumed) == evaluate(whole)
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("swa_start_epoch", [0, 3])
def test_epochs_that_there_are_not(swa_start_epoch, rows, tmp_path):
    with pytest.raises(SettingsError, match="one of the epochs 1 to 2, got"):
        build("classify", rows, tmp_path, swa_start_epoch=swa_start_epoch)


def test_trial_of_a_few_batches_averages_too(rows, tmp_path):
    options = {"debug": True, "debug_batches": 1, "debug_epochs": 2}
    run = build(
        "classify",
        rows,
        tmp_path,
        epochs=9,
        swa_start_epoch=6,
        run_opts=options,
    )
    assert evaluate(fit(run))["loss"] > 0


def test_nothing_is_tested_before_the_first_epoch_of_the_mean(rows, tmp_path):
    options = {"test_only": True}
    run = build("classify", rows, tmp_path, swa_start_epoch=2, run_opts=options)
    with pytest.raises(
        SettingsError, match="no mean of weights yet: epoch 2 .*_epoch"
    ):
        evaluate(fit(run))


@pytest.mark.parametrize("task", ["pretrain", "classify"])
def test_own_sampler_is_told_the_epoch_and_resumed(task, rows, tmp_path):
    parts = rows if task == "classify" else merged(rows)
    labels = [row["label"] for row in parts["train"].values()]
    brain_class = {
        "pretrain": PretrainingBrain,
        "classify": ClassificationBrain,
    }[task]

    def prepared(name, **more):
        seen = []

        class Seeing(more.pop("brain_class", brain_class)):
            def fit_batch(self, batch):
                loss = super().fit_batch(batch)
                seen.append((self.epoch, *batch.id))
                return loss

        run = build(
            task,
            parts,
            tmp_path / name,
            batch_size=2,
            epochs=3,
            brain_class=Seeing,
            **RANDOM[task],
            **more,
        )
        sampler = balanced_sampler(labels, seed=1)
        if task == "pretrain":
            sampler = PartSampler(len(labels), 8, seed=1)
        run.train_loader |= {"shuffle": False, "sampler": sampler}
        run.seen = seen
        return run

    whole = fit(prepared("whole"))
    clips = [
        [batch[1:] for batch in whole.seen if batch[0] == epoch]
        for epoch in (1, 2, 3)
    ]
    assert len(clips[0]) == (4 if task == "pretrain" else 6)
    assert clips[0] != clips[1] != clips[2] != clips[0]

    steps = {"ckpt_interval_steps": 2}
    killed = dying(brain_class, epoch=2, batch=4)
    broken = prepared("broken", run_opts=steps, brain_class=killed)
    with pytest.raises(Killed):
        fit(broken)
    resumed = fit(prepared("broken", run_opts=steps))
    assert resumed.seen == whole.seen[-len(resumed.seen) :]
    assert resumed.seen[0][0] == 2
    assert same(weights(resumed), weights(whole))
