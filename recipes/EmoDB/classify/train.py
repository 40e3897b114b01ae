#!/usr/bin/env python3
"""Recognise acted emotions of speakers that were left out of training.

> python train.py hparams/emodb.yaml --data_folder /path/to/emodb

EmoDB, RAVDESS and CREMA-D share this script: the YAML names the function that
prepares its corpus, and the folds. The README in the folder above shows the
settings.
"""

import sys

from ssast_lobes.experiments import cross_validate
from ssast_lobes.training.errors import exit_on_user_error


def prepare(hparams):
    """Make the fold ready that is to be run."""
    return hparams["prepare_corpus"](
        output_folder=hparams["output_folder"],
        fold=hparams["fold"],
        valid_is_test=hparams["epoch_chosen_on"] == "test",
    )


if __name__ == "__main__":
    with exit_on_user_error():
        cross_validate(sys.argv[1:], prepare)
