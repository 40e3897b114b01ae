#!/usr/bin/env python3
"""Tell the six speakers of FSDD apart, by the official takes.

> python train.py hparams/speakers.yaml --data_folder /path/to/folder

The README in the folder above shows the settings.
"""

import sys

from fsdd_prepare import prepare_speakers

from ssast_lobes.experiments import classify
from ssast_lobes.training.errors import exit_on_user_error

SETTINGS = (
    "data_folder",
    "output_folder",
    "allow_download",
    "require_counts",
    "max_unreadable",
)


def prepare(hparams):
    """Make the parts ready."""
    return prepare_speakers(**{key: hparams[key] for key in SETTINGS})


if __name__ == "__main__":
    with exit_on_user_error():
        classify(sys.argv[1:], prepare)
