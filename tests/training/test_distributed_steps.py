"""Steps of several processes: what they tell each other."""

import brain_kit as kit
from processes import run_processes
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
)

from ssast_lobes.training import PretrainingBrain


class Counting(PretrainingBrain):
    """Notes the batches at which gradients are sent."""

    def on_fit_start(self):
        super().on_fit_start()
        self.sent = []

        def sending(state, bucket):
            if bucket.is_last():
                self.sent.append((self.epoch, self.step))
            return allreduce_hook(None, bucket)

        self.modules.pretrainer.register_comm_hook(None, sending)


def accumulate(rank, folder, manifest, factor):
    """Two epochs, without and with activation checkpointing."""
    rows = kit.corpus_rows(manifest)
    runs = [
        kit.build(
            "pretrain",
            {"train": rows["train"]},
            f"{folder}/{checkpointing}",
            batch_size=1,
            brain_class=Counting,
            encoder={"checkpointing": checkpointing},
            grad_accumulation_factor=factor,
            run_opts={"distributed_backend": "gloo"},
        )
        for checkpointing in (False, True)
    ]
    return [(kit.fit(run).brain.sent, kit.weights(run)) for run in runs]


def test_gradients_are_sent_once_a_step(tones, tmp_path):
    # Six batches an epoch and process: a step of four, and one of the rest.
    results = run_processes(accumulate, 2, tmp_path, tones.manifest, 4)
    (_, weights), _ = results[0]
    for sent, own in (run for result in results for run in result):
        assert sent == [(1, 4), (1, 6), (2, 4), (2, 6)]
        for key, value in weights.items():
            assert (own[key] - value).abs().max() < 1e-6, key
