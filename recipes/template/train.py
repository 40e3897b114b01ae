#!/usr/bin/env python3
"""Train a classifier on data of your own: a template.

> python train.py hparams/train.yaml --table /path/to/labels.csv

Read `main` first: it shows what happens, one step after the other. The Brain
shows what happens with each batch. The README tells what to change.
"""

import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml
from my_data_prepare import prepare_my_data
from speechbrain.utils.distributed import run_on_main

from ssast_lobes import training
from ssast_lobes.dataio.dataset import make_dataset
from ssast_lobes.dataio.splits import read_splits


class MyBrain(training.ClassificationBrain):
    """Computes scores and loss; the base class steps, logs and saves."""

    def compute_forward(self, batch, stage):
        """Return the scores (B, C) of a batch, and its targets (B, C)."""
        batch = batch.to(self.device)
        # Waveforms (B, S), padded with zeros, and their relative lengths (B,).
        wavs, wav_lens = batch.sig
        targets = self.soft_targets(batch.target)  # one-hot
        feats, n_frames = self.modules.features(wavs, wav_lens)
        for augment in self.augment if stage == sb.Stage.TRAIN else ():
            feats = augment(feats, n_frames)
        # Calls self.modules.model, also where several processes evaluate.
        return self.network("model", stage)(feats, n_frames), targets

    def compute_objectives(self, output, batch, stage):
        """Return the loss; keep the scores where they are evaluated."""
        scores, targets = output
        loss = self.compute_cost(scores, targets)
        self.accumulate({"loss": loss}, len(batch.id))  # the mean is logged
        if stage != sb.Stage.TRAIN:
            self.keep_scores(scores, batch)  # for the metrics
        return loss


def dataio_prepare(hparams):
    """Return the rows of the tables, and datasets of train, valid and test."""
    rows = read_splits(hparams["splits_file"])
    labels = hparams["label_encoder"]
    labels.update_from_iterable(rows["labels"])
    # Training takes random crops, evaluation whole clips.
    train = make_dataset(rows["train"], hparams["train_reader"], labels)
    valid = make_dataset(rows["valid"], hparams["valid_reader"], labels)
    test = make_dataset(rows["test"], hparams["valid_reader"], labels)
    return rows, train, valid, test


def main(arguments):
    """Prepare the data, train, test, export."""
    # SpeechBrain's command line, and words for presets: --training NAME.
    hparams_file, run_opts, overrides = training.parse_arguments(arguments)
    sb.utils.distributed.ddp_init_group(run_opts)
    with training.yaml_errors(hparams_file), open(hparams_file) as file:
        hparams = load_hyperpyyaml(file, overrides)
    folder = hparams["output_folder"]

    # Refuses a folder that holds another experiment.
    with training.experiment(hparams_file, overrides, folder):
        run_on_main(
            prepare_my_data,
            kwargs={
                "table": hparams["table"],
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
        brain = MyBrain(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
            label_encoder=labels,
            multi_label=False,
            selection=hparams["selection"],
            compute_cost=hparams["compute_cost"],
            class_weights=hparams["class_weights"],
            augment=hparams["augment"],
            schedule=hparams["schedule"],
            train_logger=hparams["train_logger"],
            readers=[hparams["train_reader"], hparams["valid_reader"]],
            n_files=len(train) + len(valid) + len(test),
        )
        # Resumes a stopped run, in the middle of an epoch too.
        brain.fit(
            hparams["epoch_counter"],
            train,
            valid,
            train_loader_kwargs=hparams["clip_order"](
                hparams["train_dataloader_opts"], train
            ),
            valid_loader_kwargs=hparams["valid_dataloader_opts"],
        )
        brain.evaluate(  # the epoch that was best on valid
            test,
            **training.best_key(hparams["selection"]),
            test_loader_kwargs=hparams["valid_dataloader_opts"],
        )
        brain.export(
            hparams["export_folder"],
            hparams_file,
            rows,
            training.export_window(lobe, train, hparams["crop_seconds"]),
            source=hparams["source"],
            lr=hparams["lr"],
        )
        training.write_result(folder, rows, test, brain.result())
    return brain.test_stats


if __name__ == "__main__":
    with training.exit_on_user_error():
        main(sys.argv[1:])
