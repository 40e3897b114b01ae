#!/usr/bin/env python3
"""Recognize spoken digits of unheard speakers: FSDD, a speaker a fold.

> python train.py hparams/digits.yaml --data_folder /path/to/folder

The README in the folder above shows the settings.
"""

import sys

import speechbrain as sb
from fsdd_prepare import prepare_digits
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import run_on_main

from ssast_lobes import training
from ssast_lobes.dataio.dataset import make_dataset
from ssast_lobes.dataio.splits import read_splits


def dataio_prepare(hparams):
    """Return the rows of the tables, and datasets of train, valid and test."""
    rows = read_splits(hparams["splits_file"])
    classes = hparams["label_encoder"]
    classes.update_from_iterable(rows["labels"])
    train = make_dataset(rows["train"], hparams["train_reader"], classes)
    valid = make_dataset(rows["valid"], hparams["valid_reader"], classes)
    test = make_dataset(rows["test"], hparams["valid_reader"], classes)
    return rows, train, valid, test


def run_fold(hparams_file, run_opts, overrides):
    """Prepare a fold, train, test, export; return what the test has found."""
    with training.yaml_errors(hparams_file), open(hparams_file) as file:
        hparams = load_hyperpyyaml(file, overrides)
    folder = hparams["output_folder"]

    with training.experiment(hparams_file, overrides, folder):
        run_on_main(
            prepare_digits,
            kwargs={
                "output_folder": folder,
                "fold": hparams["fold"],
                "valid_is_test": hparams["epoch_chosen_on"] == "test",
                "data_folder": hparams["data_folder"],
                "allow_download": hparams["allow_download"],
                "valid_fraction": hparams["valid_fraction"],
                "require_counts": hparams["require_counts"],
                "max_unreadable": hparams["max_unreadable"],
            },
        )
        sb.create_experiment_directory(folder, hparams_file, overrides)
        result = training.finished_result(folder, hparams["number_of_epochs"])
        if result is not None and not run_opts["test_only"]:
            return result
        rows, train, valid, test = dataio_prepare(hparams)

        # The data tell how many classes there are.
        lobe, labels = hparams["lobe"], hparams["label_encoder"]
        training.log_source(lobe)
        model = hparams["model_class"](lobe.encoder, len(labels))
        hparams["modules"]["model"] = model
        hparams["checkpointer"].add_recoverable("model", model)
        brain = training.ClassificationBrain(
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
            mixup=hparams["mixup"],
            augment=hparams["augment"],
            head_lr_scale=hparams["head_lr_scale"],
            layer_decay=hparams["layer_decay"],
            schedule=hparams["schedule"],
            swa_start_epoch=hparams["swa_start_epoch"],
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
        best = training.best_key(hparams["selection"])
        brain.evaluate(test, **best, test_loader_kwargs=valid_opts)
        brain.export(
            hparams["export_folder"],
            hparams_file,
            rows,
            training.export_window(lobe, train, hparams["crop_seconds"]),
            source=hparams["source"],
            batch_size=hparams["batch_size"],
            lr=hparams["lr"],
            balanced_sampling=hparams["balanced_sampling"],
        )
        return training.write_result(folder, rows, test, brain.result())


def main(arguments):
    """Train and test on each fold; report all of them together."""
    hparams_file, run_opts, overrides = training.parse_arguments(arguments)
    sb.utils.distributed.ddp_init_group(run_opts)
    # Only plain values: each fold builds its own objects.
    protocol = training.plain_settings(hparams_file, overrides)
    folder, folds = protocol["output_folder"], protocol["folds"]
    chosen_on = protocol["epoch_chosen_on"]
    results = {}
    for fold in training.chosen_folds(protocol["fold"], folds, chosen_on):
        own = {"fold": fold, "output_folder": f"{folder}/fold_{fold}"}
        of_fold = training.with_settings(overrides, **own)
        results[fold] = run_fold(hparams_file, run_opts, of_fold)
    selection, swa_start = protocol["selection"], protocol["swa_start_epoch"]
    report = [folder, results, folds, selection, chosen_on, swa_start]
    # Every process gets what the main process returns.
    return run_on_main(training.report_folds, report)


if __name__ == "__main__":
    with training.exit_on_user_error():
        main(sys.argv[1:])
