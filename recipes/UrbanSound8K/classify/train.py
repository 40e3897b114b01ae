#!/usr/bin/env python3
"""Classify sounds of the city: UrbanSound8K, ten-fold.

> python train.py hparams/urbansound8k_patch.yaml --data_folder /path

The README in the folder above shows the settings.
"""

import sys

from urbansound8k_prepare import FOLDS, prepare_urbansound8k

from ssast_lobes.experiments import cross_validate
from ssast_lobes.training.errors import exit_on_user_error

SETTINGS = (
    "data_folder",
    "output_folder",
    "fold",
    "valid_fraction",
    "allow_download",
    "require_counts",
    "max_unreadable",
)


def prepare(hparams):
    """Make the fold ready that is to be run."""
    return prepare_urbansound8k(
        valid_is_test=hparams["epoch_chosen_on"] == "test",
        **{key: hparams[key] for key in SETTINGS},
    )


if __name__ == "__main__":
    with exit_on_user_error():
        cross_validate(sys.argv[1:], prepare, FOLDS)
