"""Loss or gradients that are NaN or infinite: skipped, told, at last an end."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from brain_kit import BRAINS, GRID, TASKS, Killed, build, fit, same, weights
from speechbrain import Stage

from ssast_lobes import SpectrogramEncoder
from ssast_lobes.objectives import load_objective
from ssast_lobes.training.errors import NonfiniteLoss, exit_on_user_error


class _NanGradient(torch.autograd.Function):
    """The identity, with gradients that are NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


def state_of(brain):
    """Copies of all that a skipped step must not touch."""
    state = {k: v.clone() for k, v in brain.modules.state_dict().items()}
    moments = brain.optimizer.state_dict()["state"]
    for number, one in moments.items():
        state |= {f"{number}.{k}": v.clone() for k, v in one.items()}
    for name, (total, count) in brain._sums.items():
        state[f"sum of {name}"] = torch.tensor([float(total), float(count)])
    state["step"] = torch.tensor(brain.optimizer_step)
    return state


def spoilt(task, batches, kind="samples", kill_at=None):
    """A Brain that meets bad batches, (epoch, number) each, and may die."""

    class Spoilt(BRAINS[task]):
        def fit_batch(self, batch):
            if (self.epoch, self.step) == kill_at:
                raise Killed
            if (self.epoch, self.step) not in batches:
                return super().fit_batch(batch)
            if kind == "samples":
                batch.sig.data.fill_(math.nan)
            before = state_of(self)
            loss = super().fit_batch(batch)
            assert same(state_of(self), before)
            assert loss.isfinite() == (kind == "gradients")
            return loss

        def compute_objectives(self, output, batch, stage):
            loss = super().compute_objectives(output, batch, stage)
            at = self.epoch, self.step
            if stage != Stage.TRAIN or at not in batches:
                return loss
            if kind == "infinite":
                return loss + math.inf
            return _NanGradient.apply(loss) if kind == "gradients" else loss

    return Spoilt


def listed(run):
    with open(run.folder / "nonfinite.csv", newline="") as file:
        return list(csv.reader(file))


@TASKS
@pytest.mark.parametrize("kind", ["samples", "infinite", "gradients"])
def test_bad_step_is_skipped_and_told(task, kind, rows, tmp_path):
    bad = spoilt(task, {(1, 2), (2, 4)}, kind)
    run = fit(build(task, rows, tmp_path, shuffle=False, brain_class=bad))
    assert run.brain.optimizer_step == run.brain.total_steps - 2 == 6
    for row in run.brain.log_rows():
        assert all(math.isfinite(value) for value in row.values())
    clips = list(rows["train"])
    expected = [
        [rows["train"][clip]["path"], clip, "train", epoch, batch]
        for epoch, batch in (("1", "2"), ("2", "4"))
        for clip in clips[3 * int(batch) - 3 : 3 * int(batch)]
    ]
    assert [row[:5] for row in listed(run)] == expected
    if kind != "gradients":
        told = {"samples": "nan", "infinite": "inf"}[kind]
        assert all(told in row[5] for row in listed(run))


def test_teacher_statistics_and_memory_stay_too(rows, tmp_path):
    # `Spoilt` compares all buffers and the teacher before and after.
    bad = spoilt("pretrain", {(1, 1), (1, 3)})
    run = build("pretrain", rows, tmp_path, epochs=1, brain_class=bad)
    encoder = SpectrogramEncoder(GRID, dim=32, depth=1, heads=2)
    objective = load_objective("atst_clip")(encoder, memory=8)
    run.brain.modules["pretrainer"].objective = objective
    run.brain.checkpointer.recoverables["objective"] = objective
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    fit(run)
    assert run.brain.optimizer_step == 2
    after = objective.state_dict()
    for name in ("teacher", "mixup.seen", "running_mean"):
        keys = [key for key in before if name in key]
        assert keys
        assert any(not torch.equal(before[key], after[key]) for key in keys)
    assert all(value.isfinite().all() for value in after.values())


def test_accumulated_step_is_skipped_as_a_whole(rows, tmp_path):
    class Bad(BRAINS["classify"]):
        def fit_batch(self, batch):
            if self.step == 3:
                batch.sig.data.fill_(math.nan)
            before = state_of(self) if self.step == 3 else None
            loss = super().fit_batch(batch)
            if self.step == 3:
                self.before = before
            if self.step == 4:
                assert same(state_of(self), self.before)
            return loss

    run = build(
        "classify",
        rows,
        tmp_path,
        epochs=1,
        shuffle=False,
        grad_accumulation_factor=2,
        brain_class=Bad,
    )
    assert fit(run).brain.optimizer_step == 1
    assert [row[1] for row in listed(run)] == list(rows["train"])[6:9]


def test_too_many_bad_steps_end_the_run(rows, tmp_path, capsys):
    bad = spoilt("classify", {(2, 1), (2, 3)})
    more = {"brain_class": bad, "nonfinite_patience": 1}
    run = build("classify", rows, tmp_path, **more)
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        fit(run)
    assert stopped.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("NonfiniteLoss: loss or gradients were not")
    assert "in 2 steps of epoch 2" in message
    assert str(tmp_path / "nonfinite.csv") in message
    # The checkpoint of the first epoch is there, and is gone on from.
    again = fit(build("classify", rows, tmp_path))
    whole = fit(build("classify", rows, tmp_path / "whole"))
    assert same(weights(again), weights(whole))


@TASKS
def test_resumed_run_skips_and_counts_alike(task, rows, tmp_path):
    def prepared(name, kill_at=None, batches=((1, 2),), **more):
        return build(
            task,
            rows,
            tmp_path / name,
            run_opts={"ckpt_interval_steps": 1},
            brain_class=spoilt(task, set(batches), kill_at=kill_at),
            **more,
        )

    whole = fit(prepared("whole"))
    with pytest.raises(Killed):
        fit(prepared("killed", kill_at=(1, 4)))
    resumed = fit(prepared("killed"))
    assert same(weights(resumed), weights(whole))
    assert resumed.brain.log_rows() == whole.brain.log_rows()
    # One skipped before the kill and one after it are two.
    one = {"batches": ((1, 2), (1, 4)), "nonfinite_patience": 1}
    with pytest.raises(Killed):
        fit(prepared("ended", kill_at=(1, 4), **one))
    with pytest.raises(NonfiniteLoss, match="in 2 steps of epoch 1"):
        fit(prepared("ended", **one))


@TASKS
def test_evaluation_leaves_bad_batches_out(task, rows, tmp_path):
    class Bad(BRAINS[task]):
        def evaluate_batch(self, batch, stage):
            if self.step == 1:
                batch.sig.data.fill_(math.nan)
            return super().evaluate_batch(batch, stage)

    run = fit(build(task, rows, tmp_path, epochs=1, brain_class=Bad))
    kept = {**rows, "valid": dict(list(rows["valid"].items())[3:])}
    other = fit(build(task, kept, tmp_path / "kept", epochs=1))
    assert run.brain.log_rows() == other.brain.log_rows()
    clips = list(rows["valid"])[:3]
    assert [row[1:3] for row in listed(run)] == [[x, "valid"] for x in clips]


DISTRIBUTED = """
import gc, json, os, sys
from pathlib import Path

import torch
from speechbrain.utils.distributed import ddp_init_group

sys.path[:0] = [sys.argv[1], sys.argv[1] + "/training"]
import brain_kit as kit
import test_nonfinite

ddp_init_group({"distributed_backend": "gloo"})
manifest, folder = sys.argv[2], Path(sys.argv[3])
rank, rows = int(os.environ["RANK"]), kit.corpus_rows(manifest)
opts = {"distributed_backend": "gloo"}

def run(name, batches, **more):
    bad = test_nonfinite.spoilt("pretrain", batches if rank == 1 else set())
    return kit.build(
        "pretrain", rows, folder / name, run_opts=opts, brain_class=bad,
        epochs=1, batch_size=2, **more,
    )

one = kit.fit(run("one", {(1, 2)}))
report = {"steps": one.brain.optimizer_step, "log": one.brain.log_rows()}
torch.save(kit.weights(one), folder / f"{rank}.pt")
try:
    kit.fit(run("two", {(1, 1), (1, 2)}, nonfinite_patience=1))
except test_nonfinite.NonfiniteLoss as error:
    report["error"] = str(error)
(folder / f"{rank}.json").write_text(json.dumps(report))
# A model that still holds the group as the process ends may abort it.
del one
gc.collect()
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_skip_and_stop_together(rows, tones, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED)
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        + ["--nproc_per_node=2", script]
        + [Path(__file__).parents[1], tones.manifest, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    reports = [
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    ]
    assert reports[0] == reports[1]
    # 12 clips, 6 a process, two a step: three steps, one of them skipped.
    assert reports[0]["steps"] == 2
    assert "in 2 steps of epoch 1" in reports[0]["error"]
    assert all(math.isfinite(v) for v in reports[0]["log"][0].values())
    assert same(*[torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)])
    # Of the two processes one had bad clips: its two are listed.
    lines = (tmp_path / "one" / "nonfinite.csv").read_text().splitlines()
    assert len(lines) == 2
