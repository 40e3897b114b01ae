#!/usr/bin/env python3
"""Tell four emotions of IEMOCAP apart, leaving out one session of five.

> python train.py hparams/iemocap_frame.yaml --data_folder /path/to/IEMOCAP

The README in the folder above shows the settings.
"""

import sys

from iemocap_prepare import FOLDS, prepare_iemocap

from ssast_lobes.experiments import cross_validate
from ssast_lobes.training.errors import exit_on_user_error

SETTINGS = (
    "data_folder",
    "output_folder",
    "fold",
    "valid_fraction",
    "valid_group",
    "require_counts",
    "max_unreadable",
)


def prepare(hparams):
    """Make the fold ready that is to be run."""
    return prepare_iemocap(
        valid_is_test=hparams["epoch_chosen_on"] == "test",
        **{key: hparams[key] for key in SETTINGS},
    )


if __name__ == "__main__":
    with exit_on_user_error():
        cross_validate(sys.argv[1:], prepare, FOLDS)
