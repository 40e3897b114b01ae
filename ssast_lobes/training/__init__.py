"""What a recipe's ``train.py`` calls, around SpeechBrain's own functions."""

from ssast_lobes.training.arguments import (
    parse_arguments,
    plain_settings,
    with_settings,
)

__all__ = ["parse_arguments", "plain_settings", "with_settings"]
