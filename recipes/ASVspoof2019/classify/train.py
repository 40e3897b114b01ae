#!/usr/bin/env python3
"""Tell real speech from synthesised and converted speech: ASVspoof 2019 LA.

> python train.py hparams/asvspoof2019.yaml --data_folder /path/to/LA

The README in the folder above shows the settings.
"""

import sys

from asvspoof2019_prepare import prepare_asvspoof2019

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
    """Make the parts ready that the protocol files list."""
    return prepare_asvspoof2019(**{key: hparams[key] for key in SETTINGS})


if __name__ == "__main__":
    with exit_on_user_error():
        classify(sys.argv[1:], prepare)
