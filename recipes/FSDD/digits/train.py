#!/usr/bin/env python3
"""Recognise spoken digits of unheard speakers: FSDD, a speaker a fold.

> python train.py hparams/digits.yaml --data_folder /path/to/folder

The README in the folder above shows the settings.
"""

import sys

from fsdd_prepare import FOLDS, prepare_digits

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
    return prepare_digits(
        valid_is_test=hparams["epoch_chosen_on"] == "test",
        **{key: hparams[key] for key in SETTINGS},
    )


if __name__ == "__main__":
    with exit_on_user_error():
        cross_validate(sys.argv[1:], prepare, FOLDS)
