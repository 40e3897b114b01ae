#!/usr/bin/env python3
"""Identify the 1,251 speakers of VoxCeleb1.

> python train.py hparams/voxceleb1_frame.yaml --data_folder /path/to/VoxCeleb1

The README in the folder above shows the settings.
"""

import sys

from voxceleb_prepare import prepare_voxceleb

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
    """Make the official parts ready."""
    return prepare_voxceleb(**{key: hparams[key] for key in SETTINGS})


if __name__ == "__main__":
    with exit_on_user_error():
        classify(sys.argv[1:], prepare)
