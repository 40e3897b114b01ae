#!/usr/bin/env python3
"""Pretrain a spectrogram transformer on any audio, without labels.

> python train.py hparams/pretrain.yaml --audio /path/to/audio \
      --objective mspm_small_data

The objective is SSAST's, here for hours of audio, or another one by its name:
--objective eat. The README in the folder above shows the settings.
"""

import sys

import speechbrain as sb
from custom_data_prepare import prepare_pretraining
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import run_on_main

from ssast_lobes import training
from ssast_lobes.dataio.dataset import make_dataset, repeat_long
from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.utils.random import clip_keys


class SSASTBrain(training.PretrainingBrain):
    """Trains an objective, and watches it on held-out audio."""

    def compute_forward(self, batch, stage):
        """Return the loss of the objective, and what it logs."""
        # Asked on the CPU: without padding, attention needs no mask.
        is_padded = bool((batch.sig.lengths < 1).any())
        batch = batch.to(self.device, non_blocking=True)
        wavs, wav_lens = batch.sig
        pretrainer = self.network("pretrainer", stage)
        if stage == sb.Stage.TRAIN:
            wav_lens = wav_lens if is_padded else None
            return pretrainer(wavs, wav_lens, **training.items_of(batch))
        # The mask of a clip is the same in every epoch.
        keys = clip_keys(batch.id).to(self.device)
        self.watch(wavs, wav_lens, keys, batch.id)
        return pretrainer(wavs, wav_lens, keys, **training.items_of(batch))

    def compute_objectives(self, output, batch, stage):
        """Return the loss; average it and the logs over the epoch."""
        self.accumulate({"loss": output.loss, **output.logs}, output.n_clips)
        return output.loss

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Let the objective follow the step (teacher, schedules)."""
        if should_step:
            objective = training.unwrap(self.modules.pretrainer).objective
            objective.after_step(self.optimizer_step, self.total_steps)


def dataio_prepare(hparams):
    """Return the rows of the tables, and datasets of train and valid."""
    rows = read_splits(hparams["splits_file"])
    clips = rows["train"]
    if hparams["cover_long"]:
        clips = repeat_long(clips, hparams["crop_seconds"])
    train = make_dataset(clips, hparams["train_reader"])
    valid = None
    if rows["valid"]:
        valid = make_dataset(rows["valid"], hparams["valid_reader"])
    return rows, train, valid


def main(arguments):
    """Prepare the data, pretrain, export."""
    hparams_file, run_opts, overrides = training.parse_arguments(arguments)
    sb.utils.distributed.ddp_init_group(run_opts)
    with training.yaml_errors(hparams_file), open(hparams_file) as file:
        hparams = load_hyperpyyaml(file, overrides)
    folder = hparams["output_folder"]

    with training.experiment(hparams_file, overrides, folder):
        run_on_main(
            prepare_pretraining,
            kwargs={
                "audio": hparams["audio"],
                "output_folder": folder,
                "valid_fraction": hparams["valid_fraction"],
                "min_seconds": hparams["min_seconds"],
                "max_unreadable": hparams["max_unreadable"],
                "held_out_of": hparams["held_out_of"],
            },
        )
        sb.create_experiment_directory(folder, hparams_file, overrides)
        rows, train, valid = dataio_prepare(hparams)

        lobe, objective = hparams["lobe"], hparams["objective"]
        training.load_pretrained(hparams["source"], lobe.encoder, objective)
        window = training.export_window(
            lobe, train, hparams["crop_seconds"], hparams["window_seconds"]
        )
        brain = SSASTBrain(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
            schedule=hparams["schedule"],
            weight_decay_schedule=hparams["weight_decay_schedule"],
            train_logger=hparams["train_logger"],
            use_tensorboard=hparams["use_tensorboard"],
            readers=[hparams["train_reader"], hparams["valid_reader"]],
            n_files=len(rows["train"]) + len(rows["valid"]),
        )
        brain.fit(
            hparams["epoch_counter"],
            train,
            valid,
            train_loader_kwargs=hparams["clip_order"](
                hparams["train_dataloader_opts"], train
            ),
            valid_loader_kwargs=hparams["valid_dataloader_opts"],
        )
        best = brain.finish()
        brain.export(
            hparams["export_folder"],
            hparams_file,
            rows,
            best,
            window,
            source=hparams["source"],
            crop_seconds=hparams["crop_seconds"],
            batch_size=hparams["batch_size"],
            lr=hparams["lr"],
        )
    return best


if __name__ == "__main__":
    with training.exit_on_user_error():
        main(sys.argv[1:])
