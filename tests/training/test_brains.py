"""Brains: steps, schedules, resuming, validation, audio that fails to decode.

The model is far smaller than any real one (two blocks of size 32, 32 mel
bins); the recipes themselves are tried in `recipes/test_recipes.py`.
"""

import copy
import csv
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from brain_kit import (
    BRAINS,
    GRID,
    LABELS,
    RANDOM,
    TASKS,
    Killed,
    broken_clip,
    build,
    changed,
    corpus_rows,
    dying,
    evaluate,
    fit,
    merged,
    same,
    validate,
    weights,
)
from processes import run_processes

from ssast_lobes.augment.augmentation import Mixup
from ssast_lobes.augment.degradation import BandLimit, Degradation
from ssast_lobes.dataio.dataset import make_dataset
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.training import ClassificationBrain
from ssast_lobes.training.base import unwrap
from ssast_lobes.training.losses import binary_cross_entropy
from ssast_lobes.utils.files import read_csv
from ssast_lobes.utils.schedules import Constant, WarmupCosine, WarmupPlateau

# Randomness and resuming --------------------------------------------------


@TASKS
def test_seeds_reproduce(task, rows, tmp_path):
    runs = [
        fit(build(task, rows, tmp_path / str(n), seed=seed, **RANDOM[task]))
        for n, seed in enumerate((3, 3, 4))
    ]
    states = [weights(run) for run in runs]
    logs = [run.brain.log_rows() for run in runs]
    assert same(states[0], states[1])
    assert logs[0] == logs[1]
    assert not same(states[0], states[2])


@pytest.mark.parametrize(
    "task, workers, factor, plateau",
    [
        ("pretrain", 0, 1, False),
        ("pretrain", 2, 2, True),
        pytest.param("classify", 2, 1, False, marks=pytest.mark.slow),
        ("classify", 0, 2, False),
    ],
)
def test_resumed_run_equals_uninterrupted_one(
    task, workers, factor, plateau, rows, tmp_path
):
    # 5 batches an epoch; the checkpoint of batch 3 comes at 4 with factor 2.
    def prepared(name, **more):
        schedule = WarmupCosine(end=0.01, warmup=0.2)
        if plateau:  # falls at each validation but the first
            schedule = WarmupPlateau(warmup=2, patience=0, threshold=1e9)
        return build(
            task,
            rows if task == "classify" else merged(rows),
            tmp_path / name,
            batch_size=3 if task == "pretrain" else 2,
            workers=workers,
            epochs=3,
            schedule=schedule,
            grad_accumulation_factor=factor,
            **{**RANDOM[task], **more},
        )

    whole = fit(prepared("whole"))
    batches = whole.brain.batches_per_epoch
    assert batches > 4
    steps = {"ckpt_interval_steps": 3}
    killed = prepared(
        "broken",
        run_opts=steps,
        brain_class=dying(BRAINS[task], epoch=2, batch=batches),
    )
    with pytest.raises(Killed):
        fit(killed)
    found = killed.brain.checkpointer.find_checkpoint()
    assert not found.meta["end-of-epoch"]
    resumed = prepared("broken", run_opts=steps)
    first_batches = []
    resumed.brain.on_fit_batch_start = lambda *_: first_batches.append(
        (resumed.brain.epoch, resumed.brain.step)
    )
    fit(resumed)

    assert first_batches[0] == (2, 5 if factor == 2 else 4)
    assert same(weights(resumed), weights(whole))
    assert resumed.brain.log_rows() == whole.brain.log_rows()
    assert len(whole.brain.log_rows()) == 3
    states = [
        run.brain.optimizer.state_dict()["state"] for run in (whole, resumed)
    ]
    assert same(
        *[
            {(n, key): v for n, one in state.items() for key, v in one.items()}
            for state in states
        ]
    )
    if plateau:
        assert whole.schedule.multiplier == 0.25
        assert resumed.schedule.multiplier == 0.25


@TASKS
def test_run_killed_in_validation_validates_again(task, rows, tmp_path):
    class Dying(BRAINS[task]):
        def evaluate_batch(self, batch, stage):
            if self.epoch == 2:
                raise Killed
            return super().evaluate_batch(batch, stage)

    whole = fit(build(task, rows, tmp_path / "whole"))
    steps = {"ckpt_interval_steps": 1}
    folder = tmp_path / "broken"
    with pytest.raises(Killed):
        fit(build(task, rows, folder, run_opts=steps, brain_class=Dying))
    resumed = fit(build(task, rows, folder, run_opts=steps))
    assert resumed.brain.log_rows() == whole.brain.log_rows()
    assert same(weights(resumed), weights(whole))


def test_no_augmentation_may_be_null(rows, tmp_path):
    runs = [
        fit(build("classify", rows, tmp_path / str(value), augment=value))
        for value in (None, [])
    ]
    assert same(*map(weights, runs))


def test_no_checkpoint_amid_an_accumulation(rows, tmp_path):
    run = build(
        "pretrain",
        merged(rows),
        tmp_path,
        run_opts={"ckpt_interval_steps": 1},
        grad_accumulation_factor=3,
        batch_size=2,
    )
    saved = []
    keep = run.brain._save_intra_epoch_ckpt
    run.brain._save_intra_epoch_ckpt = lambda: (
        saved.append(run.brain.step),
        keep(),
    )
    fit(run)
    assert saved == [3, 6, 9] * 2


@TASKS
def test_finished_run_does_nothing_again(task, rows, tmp_path):
    first = fit(build(task, rows, tmp_path))
    log = (tmp_path / "metrics.jsonl").read_text()
    again = fit(build(task, rows, tmp_path, seed=8))
    assert same(weights(again), weights(first))
    assert (tmp_path / "metrics.jsonl").read_text() == log
    assert again.brain.log_rows() == first.brain.log_rows()
    if task == "classify":
        assert evaluate(again) == evaluate(first)


@TASKS
def test_step_limit_as_the_command_line_gives_it(task, rows, tmp_path):
    # Text, as argparse hands it over; amid the second epoch of four batches.
    limit = {"optimizer_step_limit": "6"}

    def prepared():
        return build(task, rows, tmp_path, run_opts=limit, epochs=9)

    first = fit(prepared())
    assert first.brain.optimizer_step == first.brain.total_steps == 6
    assert [row["step"] for row in first.brain.log_rows()] == [4, 6]
    again = fit(prepared())
    assert [row["step"] for row in again.brain.log_rows()] == [4, 6]
    assert same(weights(again), weights(first))


def test_interval_in_steps_replaces_the_yaml_s_minutes(rows, tmp_path):
    run = build(
        "pretrain",
        rows,
        tmp_path,
        run_opts={"ckpt_interval_steps": 2},
        ckpt_interval_minutes=15,
    )
    assert run.brain.ckpt_interval_steps == 2
    assert run.brain.ckpt_interval_minutes == 0


def test_debug_mode_ends_though_it_is_run_twice(rows, tmp_path):
    debug = {"debug": True, "debug_persistently": True}
    for _ in range(2):
        run = fit(build("pretrain", rows, tmp_path, run_opts=debug, epochs=50))
        assert run.brain.optimizer_step == run.brain.total_steps == 4
        assert len(run.brain.log_rows()) == 2


def test_debug_epochs_of_no_number_above_0_are_all(rows, tmp_path):
    """As SpeechBrain documents it."""
    debug = {"debug": True, "debug_epochs": -1}
    run = fit(build("pretrain", rows, tmp_path, run_opts=debug, epochs=3))
    assert len(run.brain.log_rows()) == 3


# Steps --------------------------------------------------------------------


def test_accumulated_batches_equal_a_big_one(rows, tmp_path):
    def trained(name, **more):
        run = build(
            "classify",
            rows,
            tmp_path / name,
            epochs=1,
            optimizer=torch.optim.SGD,
            shuffle=False,
            lr=0.1,
            **more,
        )
        return weights(fit(run)), run.brain.optimizer_step

    big, big_steps = trained("big", batch_size=6)
    small, small_steps = trained(
        "small", batch_size=3, grad_accumulation_factor=2
    )
    assert big_steps == small_steps == 2
    for key in big:
        torch.testing.assert_close(small[key], big[key], rtol=0, atol=1e-5)


def test_tail_of_an_epoch_gives_a_step(rows, tmp_path):
    # 12 clips in batches of 2: four and then two of them a step.
    def trained(name, part, **more):
        run = build(
            "classify",
            {**rows, "train": part},
            tmp_path / name,
            epochs=1,
            shuffle=False,
            optimizer=torch.optim.SGD,
            schedule=Constant(),
            max_grad_norm=1e9,
            lr=0.1,
            **more,
        )
        return fit(run)

    items = list(rows["train"].items())
    run = trained("all", dict(items), batch_size=2, grad_accumulation_factor=4)
    assert run.brain.optimizer_step == run.brain.total_steps == 2
    # The tail is the mean of its own two batches, as one batch of four.
    first = trained("first", dict(items[:8]), batch_size=8)
    last = build(
        "classify",
        {**rows, "train": dict(items[8:])},
        tmp_path / "last",
        epochs=1,
        shuffle=False,
        optimizer=torch.optim.SGD,
        schedule=Constant(),
        max_grad_norm=1e9,
        lr=0.1,
        batch_size=4,
    )
    last.module.load_state_dict(first.module.state_dict())
    expected = weights(fit(last))
    for key, value in weights(run).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-5)


def test_schedule_runs_to_its_end_and_is_logged(rows, tmp_path):
    class Recorded(WarmupCosine):
        calls = []

        def __call__(self, step, total_steps):
            self.calls.append((step, total_steps))
            return super().__call__(step, total_steps)

    schedule = Recorded(end=0.01, warmup=2)
    run = fit(
        build(
            "classify",
            rows,
            tmp_path,
            epochs=3,
            lr=0.02,
            head_lr_scale=10.0,
            layer_decay=0.5,
            grad_accumulation_factor=3,
            schedule=schedule,
        )
    )
    # 4 batches an epoch: a step of three, and a tail of one.
    assert schedule.calls == [(step, 6) for step in range(6)]
    expected = [
        0.02 * WarmupCosine(end=0.01, warmup=2)(n, 6) for n in (1, 3, 5)
    ]
    logged = [row["lr"] for row in run.brain.log_rows()]
    assert logged == pytest.approx(expected)
    assert [row["step"] for row in run.brain.log_rows()] == [2, 4, 6]


def test_clipping_reaches_every_group(rows, tmp_path):
    run = build(
        "classify",
        rows,
        tmp_path,
        epochs=1,
        batch_size=12,
        optimizer=torch.optim.SGD,
        schedule=Constant(),
        lr=1.0,
        head_lr_scale=4.0,
        layer_decay=0.5,
        max_grad_norm=0.01,
    )
    before = weights(run)
    fit(run)
    after, groups = weights(run), run.brain.optimizer.param_groups
    scales = {
        id(parameter): group["lr_scale"]
        for group in groups
        for parameter in group["params"]
    }
    assert len(groups) > 3
    squares = {
        name: ((after[name] - before[name]) / scales[id(parameter)]).square()
        for name, parameter in run.module.named_parameters()
    }
    norm = sum(value.sum() for value in squares.values()).sqrt()
    # The rounding of weights of size 1 shows in steps of 1e-3.
    assert norm.item() == pytest.approx(0.01, rel=0.01)
    assert squares["head.linear.weight"].sum() > 0


def learning_rates(run):
    return {
        name: group["lr"]
        for group in run.brain.optimizer.param_groups
        for parameter in group["params"]
        for name, other in run.module.named_parameters()
        if other is parameter
    }


def test_head_scale_and_layer_decay_set_the_rates(rows, tmp_path):
    run = fit(
        build(
            "classify",
            rows,
            tmp_path,
            epochs=1,
            lr=0.08,
            schedule=Constant(),
            head_lr_scale=10.0,
            layer_decay=0.5,
        )
    )
    rates = learning_rates(run)
    assert rates.keys() == dict(run.module.named_parameters()).keys()
    expected = {
        "head.linear.weight": 0.8,
        "head.norm.bias": 0.8,
        "encoder.norm.weight": 0.08,
        "encoder.blocks.1.attn.qkv.weight": 0.04,
        "encoder.blocks.0.mlp.fc1.bias": 0.02,
        "encoder.patch_embedding.weight": 0.01,
        "encoder.positions.table": 0.01,
        "encoder.class_tokens": 0.01,
    }
    assert {k: rates[k] for k in expected} == pytest.approx(expected)


@pytest.mark.slow
def test_head_scale_survives_wrappers(rows, tmp_path):
    # --compile and torchrun prefix the names of the parameters.
    run = build("classify", rows, tmp_path, head_lr_scale=10.0)
    plain = run.brain.parameter_groups()
    run.brain.modules["model"] = torch.compile(run.module)
    assert unwrap(run.brain.modules["model"]) is run.module
    wrapped = run.brain.parameter_groups()
    assert [group["lr_scale"] for group in wrapped] == [1.0, 10.0]
    sizes = [[len(g["params"]) for g in groups] for groups in (plain, wrapped)]
    assert sizes[0] == sizes[1]


@TASKS
def test_vectors_without_weight_decay(task, rows, tmp_path):
    run = build(
        task,
        rows,
        tmp_path,
        optimizer=lambda groups, lr: torch.optim.AdamW(
            groups, lr, weight_decay=0.3
        ),
        run_opts={"remove_vector_weight_decay": True},
    )
    fit(run)
    for group in run.brain.optimizer.param_groups:
        vectors = {parameter.dim() < 2 for parameter in group["params"]}
        assert vectors == {group["weight_decay"] == 0.0}


def test_frozen_encoder_trains_pooling_and_head_only(rows, tmp_path):
    model = {"freeze_encoder": True, "layers": "weighted"}
    run = build("classify", rows, tmp_path, model=model)
    before = weights(run)
    moved = changed(before, weights(fit(run)))
    assert moved == {
        "pooling.layer_scores",
        "head.norm.weight",
        "head.norm.bias",
        "head.linear.weight",
        "head.linear.bias",
    }


def test_frozen_blocks_stay(rows, tmp_path):
    run = build("classify", rows, tmp_path, model={"frozen_blocks": 1})
    before = weights(run)
    moved = changed(before, weights(fit(run)))
    kept = {
        name
        for name in before
        if name.startswith(
            ("encoder.blocks.0.", "encoder.pos", "encoder.cl", "encoder.patch")
        )
    }
    assert len(kept) > 10
    assert moved == before.keys() - kept


def test_adapters_train_alone(rows, tmp_path):
    run = build("classify", rows, tmp_path, model={"lora_rank": 2})
    before = weights(run)
    moved = changed(before, weights(fit(run)))
    adapters = {name for name in before if ".adapter_" in name}
    assert len(adapters) == 2 * 2 * 4
    assert moved == adapters | {n for n in before if n.startswith("head.")}


def test_plateau_follows_training_where_nothing_is_held_out(rows, tmp_path):
    schedule = WarmupPlateau(warmup=0, patience=0, threshold=1e9)
    run = build(
        "pretrain",
        {"train": rows["train"]},
        tmp_path,
        epochs=3,
        schedule=schedule,
    )
    fit(run)
    assert schedule.multiplier == 0.25
    assert [row["lr"] for row in run.brain.log_rows()] == pytest.approx(
        [0.01, 0.01, 0.005]
    )
    assert "valid_loss" not in run.brain.log_rows()[0]


# Validation ---------------------------------------------------------------


@TASKS
@pytest.mark.parametrize("grid", [GRID, {"n_mels": 32, "patch": (32, 64)}])
def test_validation_does_not_depend_on_batches(task, grid, rows, tmp_path):
    # With the larger patch some clips are one token: nothing to hide there.
    run = build(task, rows, tmp_path, encoder={"grid": grid})
    part = rows["valid"]
    backwards = dict(reversed(part.items()))
    alone = validate(run, part, batch_size=1)
    for stats in (
        validate(run, part, batch_size=6),
        validate(run, backwards, batch_size=4),
    ):
        assert stats.keys() == alone.keys()
        # In float32 the rank depends on the order of its rows.
        assert stats == pytest.approx(alone, rel=1e-5, abs=1e-5)
    assert all(math.isfinite(value) for value in alone.values())


def test_random_crops_of_valid_are_those_of_the_clip(rows, tmp_path):
    run = build("classify", rows, tmp_path, lr=0.0)
    run.datasets["valid"] = make_dataset(
        rows["valid"], run.reader, run.brain.label_encoder
    )
    first, second = fit(run).brain.log_rows()
    assert first["valid_loss"] == second["valid_loss"]


def test_validation_masks_are_those_of_the_clip(rows, tmp_path):
    run = build("pretrain", rows, tmp_path)
    drawn = {}
    draw = run.module.draw_mask

    def recording(feats, n_frames, clip_keys):
        mask = draw(feats, n_frames, clip_keys=clip_keys)
        steps, _ = run.module.encoder.token_lengths(n_frames, feats.shape[1])
        for key, own, n in zip(clip_keys.tolist(), mask, steps, strict=True):
            drawn.setdefault(key, []).append(own[:, :n])
            assert not own[:, n:].any()
        return mask

    run.module.draw_mask = recording
    validate(run, rows["valid"], batch_size=4)
    validate(run, dict(reversed(rows["valid"].items())), batch_size=2)
    assert len(drawn) == 6
    assert all(torch.equal(*masks) for masks in drawn.values())


def test_best_epoch_is_chosen_on_valid_not_on_test(rows, tmp_path):
    class Wild(Constant):
        """Learns for two epochs of four steps, then goes astray."""

        def __call__(self, step, total_steps):
            return 1.0 if step < 8 else 100.0

    kept = {}

    class Keeping(ClassificationBrain):
        def on_stage_end(self, stage, stage_loss, epoch=None):
            super().on_stage_end(stage, stage_loss, epoch)
            if epoch is not None:
                kept[epoch] = copy.deepcopy(self.model.state_dict())

    run = build(
        "classify",
        rows,
        tmp_path,
        epochs=4,
        schedule=Wild(),
        selection="uar",
        brain_class=Keeping,
    )
    fit(run)
    uar = {row["epoch"]: row["valid_uar"] for row in run.brain.log_rows()}
    best = max(uar, key=lambda epoch: (uar[epoch], epoch))
    assert best < 4
    stats = evaluate(run)
    assert same(run.module.state_dict(), kept[best])
    log = (tmp_path / "train_log.txt").read_text().splitlines()
    assert log[-1].startswith(f"best epoch: {best} - test loss")

    # Another test part must not change the choice.
    other = build(
        "classify",
        {**rows, "test": rows["train"]},
        tmp_path,
        epochs=4,
        selection="uar",
    )
    assert evaluate(fit(other)) != stats
    assert same(other.module.state_dict(), kept[best])


@pytest.mark.slow
@pytest.mark.draws
def test_pretraining_goes_back_to_its_best_epoch(rows, tmp_path):
    class Wild(Constant):
        def __call__(self, step, total_steps):
            return 1.0 if step < 8 else 1000.0

    run = build("pretrain", rows, tmp_path, epochs=3, schedule=Wild())
    row = fit(run).brain.finish()
    losses = [row["valid_loss"] for row in run.brain.log_rows()]
    assert min(losses) == losses[row["epoch"] - 1] == row["valid_loss"]
    assert row["epoch"] < 3
    assert validate(run)["loss"] == pytest.approx(min(losses), rel=1e-6)
    assert (tmp_path / "curves.png").is_file()
    assert (tmp_path / "reconstruction.png").is_file()


@pytest.mark.parametrize("task", ["discriminative", "generative"])
def test_half_the_objective_trains_alone(task, rows, tmp_path):
    run = fit(build("pretrain", rows, tmp_path, model={"task": task}))
    row = run.brain.finish()
    names = {f"valid_{name}" for name in ("nce", "accuracy")}
    names |= {f"{name}_chance" for name in names}
    names = names if task == "discriminative" else {"valid_mse"}
    assert {k for k in row if k.startswith("valid_")} == names | {
        "valid_loss",
        "valid_effective_rank",
        "valid_embedding_std",
    }
    pictured = (tmp_path / "reconstruction.png").is_file()
    assert pictured == (task == "generative")


@pytest.mark.draws
def test_test_predictions_are_those_of_the_metrics(rows, tmp_path):
    run = fit(build("classify", rows, tmp_path))
    stats = evaluate(run)
    with open(tmp_path / "test_predictions.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == list(rows["test"])
    right = [row["label"] == row["predicted"] for row in table]
    assert np.mean(right) == pytest.approx(stats["accuracy"])
    for row in table:
        shares = {label: float(row[label]) for label in LABELS}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == max(shares, key=shares.get)
    assert (tmp_path / "confusion_matrix.png").is_file()


def test_names_that_are_not_utf_8_are_predicted_too(rows, tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    test = {name: next(iter(rows["test"].values()))}
    evaluate(fit(build("classify", rows | {"test": test}, tmp_path)))
    assert read_csv(tmp_path / "test_predictions.csv")[1][0] == name


def several_labels(rows):
    """Every clip has its own label, and those of speaker 1, 3, .. noise."""
    return {
        split: {
            name: {**row, "label": f"{row['label']}; noise"}
            if int(name.split("_")[1][0]) % 2 and row["label"] != "noise"
            else row
            for name, row in part.items()
        }
        for split, part in rows.items()
    }


def test_several_labels(rows, tmp_path):
    run = fit(
        build(
            "classify",
            several_labels(rows),
            tmp_path,
            multi_label=True,
            compute_cost=binary_cross_entropy,
            selection="mAP",
            mixup=Mixup(probability=1.0),
        )
    )
    stats = evaluate(run)
    assert 0 < stats["mAP"] <= 1
    with open(tmp_path / "test_predictions.csv", newline="") as file:
        for row in csv.DictReader(file):
            likely = [label for label in LABELS if float(row[label]) > 0.5]
            assert row["predicted"] == ";".join(likely)


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"multi_label": True, "selection": "mAP"},
            "compute_cost must be binary_cross_entropy",
        ),
        (
            {"multi_label": True, "compute_cost": binary_cross_entropy},
            "selection must be one of",
        ),
        ({"selection": "mAP"}, "selection must be one of"),
        ({"selection": "eer"}, "eer needs two classes, there are 3"),
    ],
)
def test_settings_that_do_not_fit_the_labels(settings, message, rows, tmp_path):
    with pytest.raises(ValueError, match=message):
        build("classify", rows, tmp_path, **settings)


def test_the_lowest_equal_error_rate_chooses_the_epoch(
    rows, tmp_path, monkeypatch
):
    labels = ["chirp", "noise"]
    monkeypatch.setattr("brain_kit.LABELS", labels)
    two = {
        name: {k: row for k, row in part.items() if row["label"] in labels}
        for name, part in rows.items()
    }

    class Losing(ClassificationBrain):
        """Forgets what it has learned, from the second epoch on."""

        def on_stage_start(self, stage, epoch=None):
            super().on_stage_start(stage, epoch)
            if str(stage) == "Stage.VALID" and epoch > 1:
                torch.nn.init.zeros_(self.model.head.linear.weight)

    settings = {"epochs": 3, "brain_class": Losing, "batch_size": 2}
    run = build("classify", two, tmp_path, selection="eer", **settings)
    fit(run)
    eer = {row["epoch"]: row["valid_eer"] for row in run.brain.log_rows()}
    assert eer[1] < eer[2] == eer[3] == 0.5
    evaluate(run)
    assert run.best_key == {"min_key": "eer"}
    log = (tmp_path / "train_log.txt").read_text().splitlines()
    assert log[-1].startswith("best epoch: 1 - test loss")
    assert "eer" in run.brain.test_stats

    one = {
        **two,
        "valid": {
            k: r for k, r in two["valid"].items() if r["label"] == "chirp"
        },
    }
    run = build("classify", one, tmp_path / "one", selection="eer")
    with pytest.raises(ValueError, match="clips of one class only"):
        fit(run)


def test_degradation_is_for_training_alone(rows, tmp_path):
    class Counting(torch.nn.Module):
        clips = 0

        def forward(self, wav, lens):
            assert lens.shape == wav.shape[:1]
            self.clips += len(wav)
            return torch.zeros_like(wav)

    degradation = Counting()
    run = fit(build("classify", rows, tmp_path, degradation=degradation))
    evaluate(run)
    assert degradation.clips == 2 * len(rows["train"])


def test_hard_targets_work_with_both_losses(rows, tmp_path):
    run = fit(
        build(
            "classify",
            rows,
            tmp_path,
            compute_cost=binary_cross_entropy,
            mixup=Mixup(probability=1.0),
        )
    )
    losses = [row["train_loss"] for row in run.brain.log_rows()]
    assert losses[1] < losses[0]


# Audio that fails to decode -----------------------------------------------


@TASKS
@pytest.mark.parametrize("batch_size", [1, 3])
def test_training_survives_a_clip_that_fails(task, batch_size, rows, tmp_path):
    # One a batch: the batch of the broken clip is empty. Three a batch: it
    # stands alone in the last one.
    broken = broken_clip(tmp_path)
    part = dict(list(rows["train"].items())[:6])
    run = build(
        task,
        {**rows, "train": {**part, **broken}},
        tmp_path / "out",
        batch_size=batch_size,
        shuffle=False,
        epochs=2,
    )
    fit(run)
    batches = 7 if batch_size == 1 else 3
    assert run.brain.optimizer_step == 2 * batches
    listed = (tmp_path / "out" / "unreadable.csv").read_text().splitlines()
    assert len(listed) == 2
    assert all("broken.wav" in line for line in listed)
    assert all(math.isfinite(r["train_loss"]) for r in run.brain.log_rows())
    assert run.brain.n_unreadable == 1


@TASKS
def test_broken_clips_do_not_change_validation(task, rows, tmp_path):
    broken = broken_clip(tmp_path)
    plain = fit(build(task, rows, tmp_path / "plain", batch_size=1))
    more = {**rows, "valid": {**broken, **rows["valid"]}}
    run = fit(build(task, more, tmp_path / "more", batch_size=1))
    assert run.brain.log_rows() == plain.brain.log_rows()
    if task == "classify":
        run.datasets["test"] = run.datasets["valid"]
        assert evaluate(run)["loss"] > 0


def test_too_many_clips_that_fail_are_an_error(rows, tmp_path):
    broken = broken_clip(tmp_path) | broken_clip(tmp_path, "other.wav")
    run = build(
        "pretrain",
        {**rows, "train": {**rows["train"], **broken}},
        tmp_path / "out",
        max_unreadable=0.05,
    )
    with pytest.raises(ManifestError, match="2 of 26 audio files"):
        fit(run)


def test_files_set_aside_before_count_once(rows, tmp_path):
    # One of 25 files was unreadable when the headers were read: 4 % it stays.
    tmp_path.joinpath("unreadable.csv").write_text(
        "path,reason\nempty.wav,empty\n"
    )
    fit(build("pretrain", rows, tmp_path, max_unreadable=0.04))


@TASKS
def test_nothing_to_validate_on_is_an_error(task, rows, tmp_path):
    run = build(task, {**rows, "valid": broken_clip(tmp_path)}, tmp_path)
    with pytest.raises(UnreadableAudio, match="has no usable clip"):
        fit(run)


# Logs ---------------------------------------------------------------------


def test_tensorboard_counts_epochs_through_a_resume(rows, tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    for epochs in (1, 3):
        fit(
            build(
                "classify", rows, tmp_path, epochs=epochs, use_tensorboard=True
            )
        )
    events = reader.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    names = {"lr", "loss/train"}
    names |= {f"{name}/valid" for name in ("loss", "accuracy", "uar")}
    names |= {f"{name}_chance/valid" for name in ("loss", "accuracy", "uar")}
    names |= {"macro_f1/valid"}
    assert set(events.Tags()["scalars"]) == names
    assert [event.step for event in events.Scalars("loss/valid")] == [1, 2, 3]


def test_an_epoch_logged_twice_counts_once(rows, tmp_path):
    run = fit(build("pretrain", rows, tmp_path))
    first = run.brain.log_rows()
    log = tmp_path / "metrics.jsonl"
    line = json.loads(log.read_text().splitlines()[0]) | {"train_loss": 9.0}
    log.write_text(log.read_text() + json.dumps(line) + "\n")
    rows = run.brain.log_rows()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["train_loss"] == 9.0
    assert rows[1] == first[1]


# Many processes, compiled modules -----------------------------------------


def train_both_tasks(rank, folder, manifest):
    """What each of two processes does: whole, resumed, with a bad clip."""
    folder, rows = Path(folder), corpus_rows(manifest)
    own = broken_clip(folder, f"broken{rank}.wav")
    torch.distributed.barrier()
    broken = {"broken0.wav": {**own[f"broken{rank}.wav"]}}
    broken["broken0.wav"]["path"] = str(folder / "broken0.wav")
    opts = {"distributed_backend": "gloo", "ckpt_interval_steps": 2}

    def run(task, name, **more):
        part = dict(rows)
        if name == "empty":
            part["train"] = broken | dict(list(rows["train"].items())[:5])
        return build(
            task,
            part,
            folder / name / task,
            run_opts=opts,
            batch_size=1,
            grad_accumulation_factor=2,
            max_unreadable=1.0,
            **{**RANDOM[task], **more},
        )

    reports = {}
    for task in ("pretrain", "classify"):
        whole = fit(run(task, "whole"))
        try:
            fit(run(task, "broken", brain_class=dying(BRAINS[task], 2, 6)))
        except Killed:
            torch.distributed.barrier()
        resumed = run(task, "broken")
        fit(resumed)
        assert same(weights(whole), weights(resumed))
        empty = fit(run(task, "empty"))
        reports[task] = {
            "steps": whole.brain.optimizer_step,
            "train": whole.brain._train_stats,
            "rows": whole.brain.log_rows(),
            "resumed": resumed.brain.log_rows(),
            "empty": empty.brain.optimizer_step,
            "weights": weights(whole),
            "weights_empty": weights(empty),
        }
    return reports


@pytest.mark.slow
def test_two_processes(rows, tones, tmp_path):
    results = run_processes(train_both_tasks, 2, tmp_path, tones.manifest)
    for task in ("pretrain", "classify"):
        report, other = (result[task] for result in results)
        trained = report.pop("weights")
        assert same(trained, other.pop("weights"))
        assert same(report.pop("weights_empty"), other.pop("weights_empty"))
        assert report == other
        # 12 clips, 6 a process, two of them a step.
        assert report["steps"] == 6
        assert report["empty"] == 4
        assert report["resumed"] == report["rows"]
        # Each process has seen other clips: these averages are of both.
        logged = report["rows"][-1]
        assert len(report["rows"]) == 2
        assert report["train"] == {
            key: logged[f"train_{key}"] for key in report["train"]
        }
        single = build(task, rows, tmp_path / "single" / task, **RANDOM[task])
        single.module.load_state_dict(trained)
        stats = validate(single)
        assert stats == pytest.approx(
            {key: logged[f"valid_{key}"] for key in stats}, rel=1e-5, abs=1e-5
        )


def test_averages_weigh_batches_by_their_clips(rows, tmp_path):
    run = build("pretrain", rows, tmp_path)
    run.brain.accumulate({"loss": torch.tensor(2.0)}, 3)
    run.brain.accumulate({"loss": torch.tensor(5.0)}, 1)
    assert run.brain.averages() == {"loss": 11 / 4}


COMPILER = shutil.which("g++") or shutil.which("clang++")


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler")
@TASKS
def test_compiled_run_is_resumed_by_a_plain_one(task, rows, tmp_path):
    def prepared(epochs=1, **opts):
        return build(
            task,
            rows,
            tmp_path,
            epochs=epochs,
            schedule=Constant(),
            run_opts=opts,
        )

    compiled = fit(prepared(compile=True))
    for module in compiled.brain.modules.values():
        assert isinstance(module, torch._dynamo.OptimizedModule)
    # Compiled or not, the weights mean the same.
    plain = fit(prepared())
    assert same(weights(plain), weights(compiled))
    logged = compiled.brain.log_rows()[0]
    stats = validate(plain)
    assert stats == pytest.approx(
        {key: logged[f"valid_{key}"] for key in stats}, rel=1e-4, abs=1e-4
    )
    resumed = fit(prepared(epochs=2))
    assert len(resumed.brain.log_rows()) == 2
    assert not same(weights(resumed), weights(compiled))


def test_batches_without_padding_have_no_counts(rows, tmp_path):
    run = build("pretrain", rows, tmp_path, batch_size=2, epochs=1)
    padded, counted = [], []
    pretrainer = run.brain.modules["pretrainer"]
    forward = run.brain.compute_forward

    def on_batch(batch, stage):
        padded.append(bool((batch.sig.lengths < 1).any()))
        return forward(batch, stage)

    def on_objective(module, args):
        if module.training:
            counted.append((padded[-1], args[1] is not None))

    run.brain.compute_forward = on_batch
    pretrainer.objective.register_forward_pre_hook(on_objective)
    fit(run)
    assert set(counted) == {(True, True), (False, False)}


def test_environment_is_one_thread():
    # These tests compare runs bit by bit.
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_weight_decay_follows_its_schedule(rows, tmp_path):
    schedule = WarmupCosine(0.04, 0.4)
    run = build("pretrain", rows, tmp_path, weight_decay_schedule=schedule)
    run.brain.remove_vector_weight_decay = True
    brain = fit(run).brain
    seen = {group["weight_decay"] for group in brain.optimizer.param_groups}
    last = schedule(brain.optimizer_step - 1, brain.total_steps)
    assert last > 0.3 and seen == {0.0, last}


# Chance -------------------------------------------------------------------


@pytest.mark.parametrize("lr", [0.0, 0.01])
def test_a_pretraining_at_chance_says_so_once(lr, rows, tmp_path, caplog):
    run = build("pretrain", rows, tmp_path, lr=lr, epochs=3)
    fit(run)
    said = [m for m in caplog.messages if "not begun to learn" in m]
    if lr > 0:
        assert said == []
        return
    [line] = said
    assert line.startswith("After 12 steps the model is no better than chance")
    for word in ("lr (0)", "warm-up", "batch_size", "mask_ratio", "geometry"):
        assert word in line
    # The last of the epochs, of a run as short as this one.
    log = [row["train_nce_chance"] for row in run.brain.log_rows()]
    assert len(log) == 3 and f"chance {log[-1]:.4g})" in line
    assert "train nce_chance: " in (tmp_path / "train_log.txt").read_text()


def test_chance_stands_next_to_what_a_classifier_reaches(rows, tmp_path):
    run = fit(build("classify", rows, tmp_path, lr=0.0, epochs=1))
    stats = evaluate(run)
    # Three classes of as many clips.
    assert stats["accuracy_chance"] == pytest.approx(1 / 3)
    assert stats["loss_chance"] == pytest.approx(math.log(3))
    own = build("classify", rows, tmp_path / "own", compute_cost=own_cost)
    fit(own)
    assert "loss_chance" not in evaluate(own)


def own_cost(scores, targets):
    return (scores - targets).square().mean()


def test_band_limits_have_the_rate_of_the_front_end(rows, tmp_path):
    step = BandLimit(high_hz=(2000.0, 2000.0))
    settings = {"degradation": Degradation([step]), "sample_rate": 8000}
    build("classify", rows, tmp_path, **settings)
    wav = torch.sin(torch.arange(8000) * (2 * math.pi * 1500 / 8000))[None]
    assert step(wav, wav == wav).abs().max() > 0.9


@pytest.mark.parametrize("task", ["pretrain", "classify"])
def test_audio_has_the_rate_of_the_front_end(task, rows, tmp_path):
    run = build(task, rows, tmp_path, sample_rate=8000)
    for split, part in rows.items():
        for clip, example in zip(
            part.values(), run.datasets[split], strict=True
        ):
            seconds = clip["duration"]
            seconds = min(seconds, 0.5) if split == "train" else seconds
            assert len(example["sig"]) == pytest.approx(8000 * seconds, abs=1)
