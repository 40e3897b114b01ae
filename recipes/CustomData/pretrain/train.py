#!/usr/bin/env python3
"""Pretrain a spectrogram transformer on any audio, without labels.

> python train.py hparams/pretrain.yaml --audio /path/to/audio

The README in the folder above shows the settings.
"""

import sys

import speechbrain as sb
from custom_data_prepare import load_rows, prepare_pretraining
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger

from ssast_lobes.brains import PretrainingBrain
from ssast_lobes.brains.errors import check_same_experiment, plain_errors
from ssast_lobes.data.dataset import make_dataset
from ssast_lobes.export import check_export_folder, export_pretrained
from ssast_lobes.weights import initialise, load_weights

logger = get_logger(__name__)


def make_datasets(hparams):
    """Datasets of the prepared audio: train, and valid or None."""
    run_on_main(
        prepare_pretraining,
        kwargs={
            "audio": hparams["audio"],
            "output_folder": hparams["output_folder"],
            "valid_share": hparams["valid_share"],
            "min_seconds": hparams["min_seconds"],
            "max_unreadable": hparams["max_unreadable"],
        },
    )
    rows = load_rows(f"{hparams['output_folder']}/pretraining.json")
    train = make_dataset(rows["train"], hparams["train_reader"])
    valid = None
    if rows["valid"]:
        valid = make_dataset(rows["valid"], hparams["valid_reader"])
    return train, valid


def longest(dataset, crop_seconds):
    """Seconds of the longest audio that training sees at once."""
    durations = [clip["duration"] for clip in dataset.data.values()]
    return min(crop_seconds, max(durations))


def main(arguments):
    """Run the experiment that the command line describes."""
    hparams_file, run_opts, overrides = sb.parse_arguments(arguments)
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    run_on_main(check_same_experiment, args=[hparams])
    check_export_folder(hparams["export_folder"])
    train, valid = make_datasets(hparams)
    lobe = hparams["lobe"]
    objective = hparams["objective"]["objective_class"](lobe.encoder)
    if hparams["source"] is not None:
        weights = load_weights(hparams["source"])
        for line in initialise(lobe.encoder, weights, objective):
            logger.info(line)
    hparams["checkpointer"].add_recoverable("objective", objective)
    hparams["has_valid"] = valid is not None
    brain = PretrainingBrain(
        modules={"features": lobe.features, "objective": objective},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        readers=[hparams["train_reader"]],
        n_files=len(train) + len(valid or []),
    )
    brain.fit(
        hparams["epoch_counter"],
        train,
        valid,
        train_loader_kwargs=hparams["train_loader_kwargs"],
        valid_loader_kwargs=hparams["valid_loader_kwargs"],
    )
    best = brain.finish()
    if if_main_process():
        export_pretrained(
            hparams["export_folder"],
            objective,
            lobe.features,
            card={
                "recipe": "CustomData/pretrain",
                "data": f"{len(train)} clips of {hparams['audio']}",
                "settings": {
                    key: hparams[key]
                    for key in ("crop_seconds", "batch_size", "lr", "seed")
                },
                "metrics": best,
            },
            trained_seconds=longest(train, hparams["crop_seconds"]),
        )
        logger.info(f"Exported to {hparams['export_folder']}")


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
