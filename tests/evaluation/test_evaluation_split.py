"""Split validation and test over processes: equal results to one process.

Of two processes one gets more clips than the other, and of three one gets no
batch at all. The models are those of `test_brains.py`.
"""

from pathlib import Path

import brain_kit as kit
import pytest
import speechbrain as sb
import torch
from objective_kit import PRESETS, audio, clips
from objective_kit import build as build_objective
from processes import run_processes
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.nnet.losses import ctc_loss
from speechbrain.utils.data_utils import batch_pad_right
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import BatchSampler

from ssast_lobes import SpectrogramEncoder
from ssast_lobes.dataio.samplers import RankBatchSampler
from ssast_lobes.models.heads import SpectrogramRecognizer
from ssast_lobes.training import RecognitionBrain
from ssast_lobes.training.checkpointer import AtomicCheckpointer
from ssast_lobes.training.losses import binary_cross_entropy

BATCH = 3
SETTINGS = {
    "pretrain": {},
    "classify": {},
    "several": {
        "multi_label": True,
        "compute_cost": binary_cross_entropy,
        "selection": "mAP",
    },
}


@pytest.mark.parametrize("n_clips", [1, 6, 7, 10])
@pytest.mark.parametrize("n_processes", [1, 2, 3, 5])
def test_each_batch_is_of_one_process(n_clips, n_processes):
    batches = BatchSampler(range(n_clips), BATCH, drop_last=False)
    parts = [
        RankBatchSampler(batches, rank, n_processes)
        for rank in range(n_processes)
    ]
    assert sorted(b for share in parts for b in share) == list(batches)
    lengths = [len(share) for share in parts]
    assert lengths == [len(list(share)) for share in parts]
    assert max(lengths) - min(lengths) <= 1


def parts(manifest, folder):
    """Rows by part: two batches of valid clips, three of test clips.

    A valid clip amid the others cannot be decoded, nor the last test batch.
    """
    rows = kit.corpus_rows(manifest)
    valid = list(rows["valid"].items())
    broken = kit.broken_clip(Path(folder))
    valid = dict([*valid[:1], *broken.items(), *valid[1:5]])
    return {**rows, "valid": valid, "test": rows["test"] | broken}


def prepared(task, rows, folder, **options):
    """Build a run as `test_brains.build` makes it; "recognize" is one too."""
    run = kit.build(
        "pretrain" if task == "pretrain" else "classify",
        rows,
        Path(folder) / task,
        batch_size=BATCH,
        epochs=1,
        max_unreadable=1.0,
        run_opts=options,
        **SETTINGS.get(task, {}),
    )
    if task == "recognize":
        run.brain, run.module = recognizer(run, options)
        run.best_key = {"min_key": "wer"}
    return run


class LetterBrain(RecognitionBrain):
    """Hears the letters of the labels."""

    def compute_forward(self, batch, stage):
        feats, n_frames = self.modules.features(*batch.to(self.device).sig)
        log_probs, n_time = self.network("model", stage)(feats, n_frames)
        return log_probs, n_time / log_probs.shape[1]

    def compute_objectives(self, output, batch, stage):
        log_probs, lens = output
        letters = [torch.tensor([ord(x) - 97 for x in y]) for y in batch.label]
        letters, letter_lens = batch_pad_right(letters)
        loss = ctc_loss(log_probs, letters, lens, letter_lens, 26)
        self.accumulate({"loss": loss}, len(batch.id))
        if stage != sb.Stage.TRAIN:
            heard = ctc_greedy_decode(log_probs, lens, 26)
            texts = ["".join(chr(97 + x) for x in own) for own in heard]
            self.keep_words([[text] for text in texts], batch)
        return loss


def recognizer(run, options):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(grid=kit.GRID, dim=32, depth=2, heads=2)
    model = SpectrogramRecognizer(encoder, n_units=27)
    saver = AtomicCheckpointer(
        run.folder / "save", {"counter": run.counter, "model": model}
    )
    brain = LetterBrain(
        {"features": run.brain.modules.features, "model": model},
        lambda groups: torch.optim.AdamW(groups, lr=1.0),
        vars(run.brain.hparams),
        {"device": "cpu", "noprogressbar": True, **options},
        saver,
        schedule=run.brain.schedule,
        train_logger=run.brain.train_logger,
        n_files=100,
    )
    brain.part = "test"
    return brain, model


def train_and_test(rank, folder, task, manifest):
    """One epoch in processes: weights and whatever it says of them."""
    rows = parts(manifest, folder) if rank == 0 else None
    torch.distributed.barrier()
    rows = rows or parts(manifest, folder)
    run = prepared(task, rows, folder, distributed_backend="gloo")
    metas = []
    save = run.brain.checkpointer.save_and_keep_only

    def recording(meta, **more):
        metas.append(meta)
        save(meta, **more)

    run.brain.checkpointer.save_and_keep_only = recording
    seen = []
    evaluate = run.brain.evaluate_batch

    def counting(batch, stage):
        seen.append((stage.name, len(batch.id) if batch is not None else 0))
        return evaluate(batch, stage)

    run.brain.evaluate_batch = counting
    kit.fit(run)
    if task == "pretrain":
        run.brain.finish()
    else:
        kit.evaluate(run)
    return {
        "weights": kit.weights(run),
        "metas": metas,
        "test": None if task == "pretrain" else run.brain.test_stats,
        "rows": run.brain.log_rows(),
        "seen": seen,
        "picture": run.brain._picture if task == "pretrain" else None,
    }


def alone(task, rows, folder, state):
    """The same of one process, with the weights as they were."""
    run = prepared(task, rows, folder)
    run.module.load_state_dict(state)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, count",
    [
        ("pretrain", 2),
        ("pretrain", 3),
        ("classify", 2),
        ("classify", 3),
        ("several", 2),
        ("recognize", 3),
    ],
)
def test_results_are_those_of_one_process(task, count, tones, tmp_path):
    results = run_processes(
        train_and_test, count, tmp_path, task, tones.manifest
    )
    first = results[0]
    for other in results[1:]:
        assert kit.same(first["weights"], other["weights"])
        assert first["metas"] == other["metas"]
        assert first["test"] == other["test"]
    seen = [clip for result in results for clip in result["seen"]]
    assert sum(n for stage, n in seen if stage == "VALID") == 5
    idle = [r for r in results if "VALID" not in dict(r["seen"])]
    assert len(idle) == max(0, count - 2)
    if task != "pretrain":
        assert sum(n for stage, n in seen if stage == "TEST") == 6
        assert ("TEST", 0) in seen

    rows = parts(tones.manifest, tmp_path)
    single = alone(task, rows, tmp_path / "alone", first["weights"])
    if task != "pretrain":
        tested = kit.evaluate(single)
        tested = tested["test"] if task == "recognize" else tested
        expected = first["test"]
        expected = expected["test"] if task == "recognize" else expected
        assert expected.keys() == tested.keys()
        assert expected == pytest.approx(tested, rel=1e-12)
        name = {"recognize": "wer_test.txt"}.get(task, "test_predictions.csv")
        text = (single.folder / name).read_bytes()
        assert (tmp_path / task / name).read_bytes() == text
    stats = kit.validate(single)
    logged = first["rows"][-1]
    assert stats == pytest.approx(
        {key: logged[f"valid_{key}"] for key in stats}, rel=1e-12
    )
    if task == "pretrain":
        assert {"effective_rank", "embedding_std"} < stats.keys()
        *own, clip = single.brain._picture
        *theirs, their_clip = first["picture"]
        assert clip == their_clip
        assert all(map(torch.equal, own, theirs))


class NoCollectives(TorchDispatchMode):
    """Raises where processes would wait for each other."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            raise AssertionError(f"{func} waits for the other processes")
        return func(*args, **(kwargs or {}))


def evaluate_objectives(rank, folder):
    """Names of the objectives that wait in training, and in evaluation."""
    waiting = {True: [], False: []}
    for name in PRESETS:
        objective = build_objective(name)
        for training in (True, False):
            objective.train(training)
            keys = audio(objective, 1)
            if not training:
                keys["clip_keys"] = torch.tensor([3, 4])
            try:
                with NoCollectives(), torch.no_grad():
                    objective(*clips(1), **keys)
            except AssertionError:
                waiting[training].append(name)
    return waiting


@pytest.mark.slow
def test_no_objective_waits_in_evaluation(tmp_path):
    for waiting in run_processes(evaluate_objectives, 2, tmp_path):
        assert {"asit", "atst_clip", "atst_frame"} <= set(waiting[True])
        assert waiting[False] == []
