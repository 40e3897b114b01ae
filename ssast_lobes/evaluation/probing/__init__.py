"""Measure how well simple classifiers work on frozen encoders.

The probes are an L2-penalized logistic regression and weighted nearest
neighbors. A trained encoder has to beat four baselines. The confidence
intervals resample groups, such as speakers. Probes help to choose a checkpoint:
see `probe`, and the command ``ssast-lobes probe``.
"""

from ssast_lobes.evaluation.probing.classifiers import (
    Fit,
    logistic_regression,
    nearest_neighbors,
)
from ssast_lobes.evaluation.probing.comparison import Result, probe, short_names
from ssast_lobes.evaluation.probing.fit_heads import train_heads
from ssast_lobes.evaluation.probing.report import markdown, write_report
from ssast_lobes.evaluation.probing.tasks import Task, parse_task, read_task

__all__ = [
    "Fit",
    "Result",
    "Task",
    "logistic_regression",
    "markdown",
    "nearest_neighbors",
    "parse_task",
    "probe",
    "read_task",
    "short_names",
    "train_heads",
    "write_report",
]
