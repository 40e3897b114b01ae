#!/usr/bin/env python3
"""Tag audio with the 527 classes of AudioSet.

> python train.py hparams/audioset20k_patch.yaml --data_folder /path/to/AudioSet

The README in the folder above shows the settings.
"""

import sys

from audioset_prepare import prepare_audioset

from ssast_lobes.experiments import classify
from ssast_lobes.training.errors import exit_on_user_error

SETTINGS = (
    "data_folder",
    "output_folder",
    "subset",
    "valid_fraction",
    "allow_download",
    "require_counts",
    "max_unreadable",
)


def prepare(hparams):
    """Find the audio of the segments, with their labels."""
    return prepare_audioset(
        valid_is_test=hparams["epoch_chosen_on"] == "test",
        **{key: hparams[key] for key in SETTINGS},
    )


if __name__ == "__main__":
    with exit_on_user_error():
        classify(sys.argv[1:], prepare)
