#!/usr/bin/env python3
"""Pretrain a spectrogram transformer on AudioSet, LibriSpeech, or both.

> python train.py hparams/ssast.yaml --data_folder /path/to/AudioSet \
      --librispeech_folder /path/to/LibriSpeech

The README in the folder above shows the settings.
"""

import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml
from pretraining_prepare import prepare_pretraining
from speechbrain.utils.distributed import run_on_main

from ssast_lobes import training
from ssast_lobes.dataio.dataset import make_dataset
from ssast_lobes.dataio.splits import read_splits


def dataio_prepare(hparams):
    """Return the rows of the tables, and datasets of train and valid."""
    rows = read_splits(hparams["splits_file"], hparams["shards"])
    train = make_dataset(rows["train"], hparams["train_reader"])
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
                "data_folder": hparams["data_folder"],
                "librispeech_folder": hparams["librispeech_folder"],
                "output_folder": folder,
                "subset": hparams["subset"],
                "librispeech_parts": hparams["librispeech_parts"],
                "valid_fraction": hparams["valid_fraction"],
                "valid_on_eval": hparams["valid_on_eval"],
                "min_seconds": hparams["min_seconds"],
                "allow_download": hparams["allow_download"],
                "require_counts": hparams["require_counts"],
                "max_unreadable": hparams["max_unreadable"],
            },
        )
        sb.create_experiment_directory(folder, hparams_file, overrides)
        rows, train, valid = dataio_prepare(hparams)

        lobe, objective = hparams["lobe"], hparams["objective"]
        training.load_pretrained(hparams["source"], lobe.encoder, objective)
        window = training.export_window(lobe, train, hparams["crop_seconds"])
        # The YAML counts passes over the data, which are cut into epochs.
        clip_order = hparams["clip_order"]
        hparams["epoch_counter"].limit = clip_order.n_epochs(
            hparams["number_of_epochs"], len(train)
        )
        brain = training.PretrainingBrain(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
            schedule=hparams["schedule"],
            weight_decay_schedule=hparams["weight_decay_schedule"],
            train_logger=hparams["train_logger"],
            readers=[hparams["train_reader"], hparams["valid_reader"]],
            n_files=len(rows["train"]) + len(rows["valid"]),
        )
        brain.fit(
            hparams["epoch_counter"],
            train,
            valid,
            train_loader_kwargs=clip_order(
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
