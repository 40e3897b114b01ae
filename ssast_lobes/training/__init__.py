"""Brains and helpers for the training scripts of recipes."""

from ssast_lobes.training.arguments import (
    parse_arguments,
    plain_settings,
    with_settings,
)
from ssast_lobes.training.base import unwrap
from ssast_lobes.training.card import export_window, model_card, write_result
from ssast_lobes.training.classification import ClassificationBrain, best_key
from ssast_lobes.training.errors import exit_on_user_error, yaml_errors
from ssast_lobes.training.events import EventBrain
from ssast_lobes.training.experiment import experiment
from ssast_lobes.training.folds import (
    chosen_folds,
    finished_result,
    report_folds,
)
from ssast_lobes.training.initial_weights import (
    load_pretrained,
    log_source,
    recommend_training,
)
from ssast_lobes.training.pretraining import PretrainingBrain, items_of
from ssast_lobes.training.recognition import RecognitionBrain, load_tokenizer

__all__ = [
    "ClassificationBrain",
    "EventBrain",
    "PretrainingBrain",
    "RecognitionBrain",
    "best_key",
    "chosen_folds",
    "exit_on_user_error",
    "experiment",
    "export_window",
    "finished_result",
    "load_pretrained",
    "items_of",
    "load_tokenizer",
    "log_source",
    "model_card",
    "parse_arguments",
    "plain_settings",
    "recommend_training",
    "report_folds",
    "unwrap",
    "with_settings",
    "write_result",
    "yaml_errors",
]
