#!/usr/bin/env python3
"""Pretrain a spectrogram transformer on any audio, without labels.

> python train.py hparams/pretrain.yaml --audio /path/to/audio

The README in the folder above shows the settings.
"""

import sys

from custom_data_prepare import prepare_pretraining

from ssast_lobes.brains.errors import plain_errors
from ssast_lobes.experiments import pretrain

SETTINGS = (
    "audio",
    "output_folder",
    "valid_share",
    "min_seconds",
    "max_unreadable",
    "held_out_of",
)


def prepare(hparams):
    """Gather the audio, and hold a part out to watch the training."""
    return prepare_pretraining(**{key: hparams[key] for key in SETTINGS})


def main(arguments):
    """Run the experiment that the command line describes."""
    return pretrain(arguments, prepare)


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
