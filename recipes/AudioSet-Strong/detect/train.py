#!/usr/bin/env python3
"""Detect 456 kinds of sound events: AudioSet with strong labels.

> python train.py hparams/audioset_strong.yaml --data_folder /path

The README in the folder above shows the settings.
"""

import sys

import speechbrain as sb
from audioset_strong_prepare import prepare_audioset_strong
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import run_on_main

from ssast_lobes import training
from ssast_lobes.dataio.event_dataset import make_event_dataset
from ssast_lobes.dataio.splits import read_splits


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
            prepare_audioset_strong,
            kwargs={
                "data_folder": hparams["data_folder"],
                "output_folder": folder,
                "valid_fraction": hparams["valid_fraction"],
                "allow_download": hparams["allow_download"],
                "require_counts": hparams["require_counts"],
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
        brain = training.EventBrain(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
            label_encoder=labels,
            timing=lobe.timing,
            compute_cost=hparams["compute_cost"],
            rule_kind=hparams["rule_kind"],
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
