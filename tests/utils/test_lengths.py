"""Clips of different lengths: batches of little padding and of few shapes."""

import collections
from functools import partial

import brain_kit as kit
import pytest
import torch
from torch.utils.data import BatchSampler

from ssast_lobes.dataio.dataset import collate
from ssast_lobes.dataio.samplers import LengthBuckets, PartSampler
from ssast_lobes.training.loaders import cuda_loading

# Every third clip is short: in random batches two thirds of it are padding.
SECONDS = [1.0 + clip % 3 + clip / 1000 for clip in range(50)]


def buckets(n_batches=5, n_processes=1, seed=0, batch_size=4):
    clips = PartSampler(len(SECONDS), len(SECONDS), seed)
    return LengthBuckets(
        clips, SECONDS, batch_size, n_batches, seed, n_processes
    )


def drawn(batches, epoch):
    batches.set_epoch(epoch)
    return list(batches)


def padding(batches):
    """Share of the batches that is padding."""
    whole = sum(len(b) * max(SECONDS[clip] for clip in b) for b in batches)
    return 1 - sum(SECONDS[clip] for b in batches for clip in b) / whole


@pytest.mark.parametrize("n_batches", [1, 5, 100])
@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_each_clip_comes_once(n_batches, n_processes):
    batches = buckets(n_batches, n_processes)
    own = drawn(batches, 1)
    assert len(own) == len(batches) == 13
    assert sorted(clip for batch in own for clip in batch) == list(range(50))
    assert {len(batch) for batch in own} == {4, 2}


def test_order_is_a_function_of_seed_and_epoch():
    assert drawn(buckets(), 3) == drawn(buckets(), 3)
    assert drawn(buckets(), 3) != drawn(buckets(), 4)
    assert drawn(buckets(), 3) != drawn(buckets(seed=1), 3)
    # Not the longest first, and other company in each epoch.
    own = drawn(buckets(6), 1)
    longest = [max(SECONDS[clip] for clip in batch) for batch in own]
    assert longest != sorted(longest)
    sets = {frozenset(batch) for batch in own}
    assert not sets <= {frozenset(batch) for batch in drawn(buckets(6), 2)}


def test_there_is_less_padding():
    plain = PartSampler(50, 50)
    apart = padding(list(BatchSampler(plain, 4, drop_last=False)))
    together = padding(drawn(buckets(13), 1))
    assert apart > 0.25 and together < 0.04


def test_processes_have_like_lengths_in_a_step():
    own = drawn(buckets(n_batches=2, n_processes=3), 1)
    for start in range(0, 12, 3):
        longest = [max(SECONDS[c] for c in b) for b in own[start : start + 3]]
        assert max(longest) - min(longest) < 1.1


def run_in_buckets(rows, folder, **more):
    """A run of three epochs whose batches are of like length."""
    run = kit.build(
        "classify",
        rows,
        folder,
        epochs=3,
        optimizer=partial(torch.optim.AdamW, fused=True),
        run_opts={"ckpt_interval_steps": 2},
        **kit.RANDOM["classify"],
        **more,
    )
    seconds = [row["duration"] for row in rows["train"].values()]
    clips = PartSampler(len(seconds), len(seconds), 7)
    del run.train_loader["shuffle"], run.train_loader["batch_size"]
    batches = LengthBuckets(clips, seconds, 3, n_batches=2, seed=7)
    run.train_loader["batch_sampler"] = batches
    run.train_loader = cuda_loading(run.train_loader) | {"pin_memory": False}
    return run


@pytest.mark.parametrize(
    "workers", [0, pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_run_in_buckets_is_resumed(workers, tones, tmp_path):
    # With the fused optimizer of the recipes, and the workers of CUDA.
    rows = kit.corpus_rows(tones.manifest)
    in_buckets = partial(run_in_buckets, rows, workers=workers)
    whole = kit.fit(in_buckets(tmp_path / "whole"))
    assert whole.brain.batches_per_epoch == 4
    dying = kit.dying(kit.ClassificationBrain, epoch=2, batch=4)
    with pytest.raises(kit.Killed):
        kit.fit(in_buckets(tmp_path / "broken", brain_class=dying))
    resumed = kit.fit(in_buckets(tmp_path / "broken"))
    assert kit.same(kit.weights(resumed), kit.weights(whole))
    assert resumed.brain.log_rows() == whole.brain.log_rows()


def clip(samples):
    return {"id": str(samples), "sig": torch.ones(samples)}


@pytest.mark.parametrize("lengths", [(1000,), (1000, 400), (1600, 1), (1601,)])
def test_batches_are_padded_to_a_multiple(lengths):
    examples = [clip(samples) for samples in lengths]
    data, relative = collate(examples, pad_seconds=0.05).sig
    assert data.shape[1] % 800 == 0
    assert 0 <= data.shape[1] - max(lengths) < 800
    assert (relative * data.shape[1]).round().tolist() == list(lengths)
    plain, _ = collate(examples).sig
    assert torch.equal(data[:, : plain.shape[1]], plain)
    assert not data[:, plain.shape[1] :].any()


def test_padding_further_changes_no_result(tones, tmp_path):
    rows = kit.corpus_rows(tones.manifest)
    run = kit.build("pretrain", rows, tmp_path)
    plain = kit.validate(run)
    loader = torch.utils.data.DataLoader(
        run.datasets["valid"],
        batch_size=3,
        collate_fn=partial(collate, pad_seconds=1.25),
    )
    kept = {}
    run.brain.log_epoch = lambda epoch, train, valid: kept.update(valid)
    run.brain._fit_valid(loader, 1, False)
    assert kept == pytest.approx(plain, rel=1e-5, abs=1e-5)


def test_loaders_for_cuda():
    given = {"num_workers": 4, "prefetch_factor": 2, "batch_size": 3}
    loading = cuda_loading(given)
    assert loading["pin_memory"] and loading["persistent_workers"]
    assert loading["prefetch_factor"] == 2 and loading["batch_size"] == 3
    # PyTorch refuses these without workers.
    assert cuda_loading({"num_workers": 0}).keys() == {
        "pin_memory",
        "num_workers",
    }


# Compiled code ------------------------------------------------------------


def compiled_frames(monkeypatch, rows, folder, pad_seconds):
    """How often each code was compiled in the epochs of a training."""
    compiled = collections.Counter()

    def backend(graph, inputs):
        compiled[epoch[0]] += 1
        return graph.forward

    compile_with = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda module, **more: compile_with(
            module, backend=backend, dynamic=more["dynamic"]
        ),
    )
    torch._dynamo.reset()
    epoch = [0]
    run = kit.build(
        "classify", rows, folder, epochs=4, run_opts={"compile": True}
    )
    start = run.brain.on_stage_start

    def starting(stage, number=None):
        epoch[0] = number
        start(stage, number)

    run.brain.on_stage_start = starting
    for loading in (run.train_loader, run.loader):
        loading["collate_fn"] = partial(collate, pad_seconds=pad_seconds)
    run.reader.crop_seconds = 9.0  # whole clips, of all lengths
    kit.fit(run)
    torch._dynamo.reset()
    return compiled


@pytest.mark.slow
def test_compiled_code_meets_few_lengths(tones, tmp_path, monkeypatch):
    rows = kit.corpus_rows(tones.manifest)
    counts = compiled_frames(monkeypatch, rows, tmp_path, pad_seconds=1.25)
    assert counts[1] > 0
    assert counts[2] == counts[3] == counts[4] == 0
