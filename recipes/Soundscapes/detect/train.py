#!/usr/bin/env python3
"""Train a detector of sound events: which sound, from when to when.

> python train.py hparams/soundscapes.yaml --manifest /path/to/events.csv

The README in the folder above shows the settings.
"""

import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml
from soundscapes_prepare import prepare_events
from speechbrain.utils.distributed import run_on_main

from ssast_lobes import training
from ssast_lobes.dataio.event_dataset import make_event_dataset
from ssast_lobes.dataio.splits import read_splits


class SSASTBrain(training.EventBrain):
    """Trains a detector, and chooses how its scores become events."""

    def compute_forward(self, batch, stage):
        """Return the scores of frames (B, T', C) and of clips (B, C)."""
        batch = batch.to(self.device, non_blocking=True)
        wavs, wav_lens = batch.sig
        is_training = stage == sb.Stage.TRAIN
        if is_training and self.degradation is not None:
            wavs = self.degradation(wavs, wav_lens)
        feats, n_frames = self.modules.features(wavs, wav_lens)
        for augment in self.augment if is_training else ():
            feats = augment(feats, n_frames)
        return self.network("model", stage)(feats, n_frames)

    def compute_objectives(self, output, batch, stage):
        """Return the loss; keep the scores where they are evaluated."""
        targets = self.frame_targets(batch.frame_target.data, output.frames)
        loss = self.compute_cost(output, targets, batch.target, batch.is_strong)
        self.accumulate({"loss": loss}, len(batch.id))
        if stage != sb.Stage.TRAIN:
            self.keep_scores(output, targets, batch)
        return loss


def dataio_prepare(hparams):
    """Return the rows of the tables, and datasets of train, valid and test."""
    rows = read_splits(hparams["splits_file"])
    classes, timing = hparams["label_encoder"], hparams["lobe"].timing
    classes.update_from_iterable(rows["labels"])
    reader = hparams["train_reader"]
    train = make_event_dataset(rows["train"], reader, classes, timing)
    reader = hparams["valid_reader"]
    valid = make_event_dataset(rows["valid"], reader, classes, timing)
    test = make_event_dataset(rows["test"], reader, classes, timing)
    return rows, train, valid, test


def main(arguments):
    """Prepare the data, train, choose the rules, test, export."""
    hparams_file, run_opts, overrides = training.parse_arguments(arguments)
    sb.utils.distributed.ddp_init_group(run_opts)
    with training.yaml_errors(hparams_file), open(hparams_file) as file:
        hparams = load_hyperpyyaml(file, overrides)
    folder = hparams["output_folder"]

    with training.experiment(hparams_file, overrides, folder):
        run_on_main(
            prepare_events,
            kwargs={
                "manifest": hparams["manifest"],
                "output_folder": folder,
                "max_unreadable": hparams["max_unreadable"],
            },
        )
        sb.create_experiment_directory(folder, hparams_file, overrides)
        rows, train, valid, test = dataio_prepare(hparams)

        # The data tell how many classes there are.
        lobe, labels = hparams["lobe"], hparams["label_encoder"]
        training.log_source(lobe)
        model = hparams["model_class"](lobe.encoder, len(labels))
        hparams["modules"]["model"] = model
        hparams["checkpointer"].add_recoverable("model", model)
        window = training.export_window(lobe, train, hparams["crop_seconds"])
        brain = SSASTBrain(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
            label_encoder=labels,
            timing=lobe.timing,
            compute_cost=hparams["compute_cost"],
            rule_kind=hparams["rule_kind"],
            degradation=hparams["degradation"],
            augment=hparams["augment"],
            head_lr_scale=hparams["head_lr_scale"],
            layer_decay=hparams["layer_decay"],
            schedule=hparams["schedule"],
            train_logger=hparams["train_logger"],
            readers=[hparams["train_reader"], hparams["valid_reader"]],
            n_files=len(train) + len(valid) + len(test),
        )
        train_opts = hparams["train_dataloader_opts"]
        valid_opts = hparams["valid_dataloader_opts"]
        brain.fit(
            hparams["epoch_counter"],
            train,
            valid,
            train_loader_kwargs=hparams["clip_order"](train_opts, train),
            valid_loader_kwargs=valid_opts,
        )
        brain.tune(rows["valid"], valid, test_loader_kwargs=valid_opts)
        brain.test(rows["test"], test, test_loader_kwargs=valid_opts)
        brain.export(
            hparams["export_folder"],
            hparams_file,
            rows,
            window,
            source=hparams["source"],
            batch_size=hparams["batch_size"],
            lr=hparams["lr"],
        )
        training.write_result(folder, rows, test, brain.result())
    return brain.test_stats


if __name__ == "__main__":
    with training.exit_on_user_error():
        main(sys.argv[1:])
