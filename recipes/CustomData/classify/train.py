#!/usr/bin/env python3
"""Train a classifier of any labeled audio with a spectrogram transformer.

> python train.py hparams/classify.yaml --manifest /path/to/clips.csv

The README in the folder above shows the settings.
"""

import sys

import speechbrain as sb
from custom_data_prepare import prepare_classification
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import run_on_main

from ssast_lobes import training
from ssast_lobes.dataio.dataset import make_dataset
from ssast_lobes.dataio.splits import read_splits


class SSASTBrain(training.ClassificationBrain):
    """Trains a classifier, and chooses its best epoch."""

    def compute_forward(self, batch, stage):
        """Return the scores (B, C) of a batch, and its targets (B, C)."""
        batch = batch.to(self.device, non_blocking=True)
        wavs, wav_lens = batch.sig
        targets = self.soft_targets(batch.target)
        is_training = stage == sb.Stage.TRAIN
        if is_training and self.degradation is not None:
            wavs = self.degradation(wavs, wav_lens)
        if is_training and self.mixup is not None:
            wavs, wav_lens, targets = self.mixup(wavs, wav_lens, targets)
        feats, n_frames = self.modules.features(wavs, wav_lens)
        for augment in self.augment if is_training else ():
            feats = augment(feats, n_frames)
        return self.network("model", stage)(feats, n_frames), targets

    def compute_objectives(self, output, batch, stage):
        """Return the loss; keep the scores where they are evaluated."""
        scores, targets = output
        loss = self.compute_cost(scores, targets)
        self.accumulate({"loss": loss}, len(batch.id))
        if stage != sb.Stage.TRAIN:
            self.keep_scores(scores, batch)
        return loss


def dataio_prepare(hparams):
    """Return the rows of the tables, and datasets of train, valid and test."""
    rows = read_splits(hparams["splits_file"])
    classes, many = hparams["label_encoder"], hparams["multi_label"]
    classes.update_from_iterable(rows["labels"])
    train = make_dataset(rows["train"], hparams["train_reader"], classes, many)
    reader = hparams["valid_reader"]
    valid = make_dataset(rows["valid"], reader, classes, many)
    test = make_dataset(rows["test"], reader, classes, many)
    return rows, train, valid, test


def main(arguments):
    """Prepare the data, train, test, export."""
    hparams_file, run_opts, overrides = training.parse_arguments(arguments)
    sb.utils.distributed.ddp_init_group(run_opts)
    with training.yaml_errors(hparams_file), open(hparams_file) as file:
        hparams = load_hyperpyyaml(file, overrides)
    folder = hparams["output_folder"]

    with training.experiment(hparams_file, overrides, folder):
        run_on_main(
            prepare_classification,
            kwargs={
                "manifest": hparams["manifest"],
                "output_folder": folder,
                "label_column": hparams["label_column"],
                "split_column": hparams["split_column"],
                "multi_label": hparams["multi_label"],
                "min_seconds": hparams["min_seconds"],
                "max_unreadable": hparams["max_unreadable"],
            },
        )
        sb.create_experiment_directory(folder, hparams_file, overrides)
        rows, train, valid, test = dataio_prepare(hparams)

        # The data tell how many classes there are.
        lobe, labels = hparams["lobe"], hparams["label_encoder"]
        penalty, many = hparams["lp_init_penalty"], hparams["multi_label"]
        training.log_source(lobe)
        if hparams["source"] and not (hparams["wise_ft"] or many):
            training.recommend_training(rows["train"])
        model = hparams["model_class"](lobe.encoder, len(labels))
        hparams["modules"]["model"] = model
        hparams["checkpointer"].add_recoverable("model", model)
        window = training.export_window(
            lobe, train, hparams["crop_seconds"], hparams["window_seconds"]
        )
        brain = SSASTBrain(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
            label_encoder=labels,
            multi_label=many,
            selection=hparams["selection"],
            compute_cost=hparams["compute_cost"],
            class_weights=hparams["class_weights"],
            degradation=hparams["degradation"],
            mixup=hparams["mixup"],
            augment=hparams["augment"],
            head_lr_scale=hparams["head_lr_scale"],
            layer_decay=hparams["layer_decay"],
            schedule=hparams["schedule"],
            swa_start_epoch=hparams["swa_start_epoch"],
            wise_ft=hparams["wise_ft"],
            train_logger=hparams["train_logger"],
            use_tensorboard=hparams["use_tensorboard"],
            readers=[hparams["train_reader"], hparams["valid_reader"]],
            n_files=len(train) + len(valid) + len(test),
        )
        if penalty is not None:
            reader = hparams["valid_reader"]  # whole clips, like valid and test
            clips = make_dataset(rows["train"], reader, labels, many)
            brain.fit_head(clips, penalty, hparams["batch_size"])
        brain.fit(
            hparams["epoch_counter"],
            train,
            valid,
            train_loader_kwargs=hparams["clip_order"](
                hparams["train_dataloader_opts"], train
            ),
            valid_loader_kwargs=hparams["valid_dataloader_opts"],
        )
        if hparams["wise_ft"]:
            brain.mix_with_start(valid, hparams["valid_dataloader_opts"])
        brain.evaluate(
            test,
            **training.best_key(hparams["selection"]),
            test_loader_kwargs=hparams["valid_dataloader_opts"],
        )
        brain.export(
            hparams["export_folder"],
            hparams_file,
            rows,
            window,
            source=hparams["source"],
            batch_size=hparams["batch_size"],
            lr=hparams["lr"],
            balanced_sampling=hparams["balanced_sampling"],
        )
        training.write_result(folder, rows, test, brain.result())
    return brain.test_stats


if __name__ == "__main__":
    with training.exit_on_user_error():
        main(sys.argv[1:])
