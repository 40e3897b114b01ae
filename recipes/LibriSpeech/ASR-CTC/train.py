#!/usr/bin/env python3
"""Recognise read English speech by CTC: LibriSpeech.

> python train.py hparams/ctc.yaml --data_folder /path/to/LibriSpeech

The README in the folder above shows the settings.
"""

import sys

from librispeech_prepare import prepare_librispeech

from ssast_lobes.experiments import recognise
from ssast_lobes.training.errors import exit_on_user_error

SETTINGS = (
    "data_folder",
    "output_folder",
    "train_parts",
    "valid_parts",
    "test_parts",
    "allow_download",
    "require_counts",
    "max_unreadable",
)


def prepare(hparams):
    """Make the parts ready that the settings name."""
    return prepare_librispeech(**{key: hparams[key] for key in SETTINGS})


if __name__ == "__main__":
    with exit_on_user_error():
        recognise(sys.argv[1:], prepare)
