#!/usr/bin/env python3
"""Spot keywords: Speech Commands V2 (35 words) and V1 (SUPERB, 12 classes).

> python train.py hparams/v2_35_frame.yaml --data_folder /path/to/folder

The README in the folder above shows the settings.
"""

import sys

from speech_commands_prepare import prepare_speech_commands

from ssast_lobes.experiments import classify
from ssast_lobes.training.errors import exit_on_user_error

SETTINGS = (
    "data_folder",
    "output_folder",
    "protocol",
    "allow_download",
    "require_counts",
    "max_unreadable",
)


def prepare(hparams):
    """Make the parts ready."""
    return prepare_speech_commands(**{key: hparams[key] for key in SETTINGS})


if __name__ == "__main__":
    with exit_on_user_error():
        classify(sys.argv[1:], prepare)
