#!/usr/bin/env python3
"""Tell real speech from synthesized and converted speech: ASVspoof 2019 LA.

> python train.py hparams/asvspoof2019.yaml --data_folder /path/to/LA

The README in the folder above shows the settings.
"""

import sys

import speechbrain as sb
from asvspoof2019_prepare import prepare_asvspoof2019
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import run_on_main

from ssast_lobes import training
from ssast_lobes.dataio.dataset import make_dataset
from ssast_lobes.dataio.splits import read_splits


def dataio_prepare(hparams):
    """Return the rows of the tables, and datasets of train, valid and test."""
    rows = read_splits(hparams["splits_file"])
    classes, reader = hparams["label_encoder"], hparams["valid_reader"]
    classes.update_from_iterable(rows["labels"])
    train = make_dataset(rows["train"], hparams["train_reader"], classes)
    valid = make_dataset(rows["valid"], reader, classes)
    test = make_dataset(rows["test"], reader, classes)
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
            prepare_asvspoof2019,
            kwargs={
                "data_folder": hparams["data_folder"],
                "output_folder": folder,
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
            degradation=hparams["degradation"],
            mixup=hparams["mixup"],
            augment=hparams["augment"],
            head_lr_scale=hparams["head_lr_scale"],
            layer_decay=hparams["layer_decay"],
            schedule=hparams["schedule"],
            train_logger=hparams["train_logger"],
            readers=[hparams["train_reader"], hparams["valid_reader"]],
            n_files=len(train) + len(valid) + len(test),
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
        brain.evaluate(
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
            batch_size=hparams["batch_size"],
            lr=hparams["lr"],
            balanced_sampling=hparams["balanced_sampling"],
        )
        training.write_result(folder, rows, test, brain.result())
    return brain.test_stats


if __name__ == "__main__":
    with training.exit_on_user_error():
        main(sys.argv[1:])
