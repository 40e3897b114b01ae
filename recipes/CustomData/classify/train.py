#!/usr/bin/env python3
"""Train a classifier of any labelled audio with a spectrogram transformer.

> python train.py hparams/classify.yaml --manifest /path/to/clips.csv

The README in the folder above shows the settings.
"""

import sys

import speechbrain as sb
from custom_data_prepare import load_rows, prepare_classification
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger

from ssast_lobes.brains import ClassificationBrain
from ssast_lobes.brains.errors import check_same_experiment, plain_errors
from ssast_lobes.data.dataset import make_dataset
from ssast_lobes.export import check_export_folder, export_classifier

logger = get_logger(__name__)


def make_datasets(hparams):
    """Datasets by split; fills the label encoder with train's labels."""
    run_on_main(
        prepare_classification,
        kwargs={
            key: hparams[key]
            for key in (
                "manifest",
                "output_folder",
                "label_column",
                "split_column",
                "multi_label",
                "min_seconds",
                "max_unreadable",
            )
        },
    )
    rows = load_rows(f"{hparams['output_folder']}/classification.json")
    encoder = hparams["label_encoder"]
    encoder.update_from_iterable(rows["labels"])
    encoder.expect_len(len(rows["labels"]))
    return {
        split: make_dataset(
            rows[split],
            hparams["train_reader" if split == "train" else "test_reader"],
            encoder,
            hparams["multi_label"],
        )
        for split in ("train", "valid", "test")
    }


def main(arguments):
    """Run the experiment that the command line describes.

    Returns
    -------
    dict
        Statistics of the best epoch on the test part.
    """
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
    datasets = make_datasets(hparams)
    lobe = hparams["lobe"]
    for line in lobe.report:
        logger.info(line)
    hparams["n_classes"] = len(hparams["label_encoder"])
    model = hparams["model_class"](lobe.encoder, hparams["n_classes"])
    hparams["checkpointer"].add_recoverable("model", model)
    brain = ClassificationBrain(
        modules={"features": lobe.features, "model": model},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        readers=[hparams["train_reader"]],
        n_files=sum(len(dataset) for dataset in datasets.values()),
    )
    brain.fit(
        hparams["epoch_counter"],
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=hparams["train_loader_kwargs"],
        valid_loader_kwargs=hparams["test_loader_kwargs"],
    )
    brain.evaluate(
        datasets["test"],
        max_key=hparams["selection"],
        test_loader_kwargs=hparams["test_loader_kwargs"],
    )
    brain.draw()
    if if_main_process():
        clips = datasets["train"].data.values()
        longest = max(clip["duration"] for clip in clips)
        export_classifier(
            hparams["export_folder"],
            model,
            lobe.features,
            hparams["label_encoder"],
            hparams["multi_label"],
            card={
                "recipe": "CustomData/classify",
                "data": hparams["manifest"],
                "settings": {
                    key: hparams[key]
                    for key in ("source", "batch_size", "lr", "loss", "seed")
                },
                "metrics": brain.test_stats,
            },
            trained_seconds=min(hparams["crop_seconds"], longest),
        )
        logger.info(f"Exported to {hparams['export_folder']}")
    return brain.test_stats


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
