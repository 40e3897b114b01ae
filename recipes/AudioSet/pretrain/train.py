#!/usr/bin/env python3
"""Pretrain a spectrogram transformer on AudioSet, LibriSpeech, or both.

> python train.py hparams/ssast_base.yaml --data_folder /path/to/AudioSet \
      --librispeech_folder /path/to/LibriSpeech

The README in the folder above shows the settings.
"""

import sys

from pretraining_prepare import prepare_pretraining

from ssast_lobes.experiments import pretrain
from ssast_lobes.training.errors import exit_on_user_error

SETTINGS = (
    "data_folder",
    "librispeech_folder",
    "output_folder",
    "subset",
    "librispeech_parts",
    "valid_fraction",
    "valid_on_eval",
    "min_seconds",
    "allow_download",
    "require_counts",
    "max_unreadable",
)


def prepare(hparams):
    """Gather the audio, and a part of it to watch the training."""
    return prepare_pretraining(**{key: hparams[key] for key in SETTINGS})


if __name__ == "__main__":
    with exit_on_user_error():
        pretrain(sys.argv[1:], prepare)
