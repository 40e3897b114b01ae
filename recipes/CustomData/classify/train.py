#!/usr/bin/env python3
"""Train a classifier of any labelled audio with a spectrogram transformer.

> python train.py hparams/classify.yaml --manifest /path/to/clips.csv

The README in the folder above shows the settings.
"""

import sys

from custom_data_prepare import prepare_classification

from ssast_lobes.brains.errors import plain_errors
from ssast_lobes.experiments import classify

SETTINGS = (
    "manifest",
    "output_folder",
    "label_column",
    "split_column",
    "multi_label",
    "min_seconds",
    "max_unreadable",
)


def prepare(hparams):
    """Read the manifest, and check its labels and splits."""
    return prepare_classification(**{key: hparams[key] for key in SETTINGS})


def main(arguments):
    """Run the experiment that the command line describes."""
    return classify(arguments, prepare)


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
