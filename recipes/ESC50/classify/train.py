#!/usr/bin/env python3
"""Classify environmental sounds: ESC-50 and ESC-10, five-fold.

> python train.py hparams/esc50_patch.yaml --data_folder /path/to/ESC-50-master

The README in the folder above shows the settings.
"""

import sys

from esc50_prepare import FOLDS, prepare_esc50

from ssast_lobes.experiments import cross_validate
from ssast_lobes.training.errors import exit_on_user_error

SETTINGS = (
    "data_folder",
    "output_folder",
    "fold",
    "esc10",
    "valid_fraction",
    "allow_download",
    "require_counts",
    "max_unreadable",
)


def prepare(hparams):
    """Make the fold ready that is to be run."""
    return prepare_esc50(
        valid_is_test=hparams["epoch_chosen_on"] == "test",
        **{key: hparams[key] for key in SETTINGS},
    )


if __name__ == "__main__":
    with exit_on_user_error():
        cross_validate(sys.argv[1:], prepare, FOLDS)
