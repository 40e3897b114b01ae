"""Brains: the training loops that the recipes share."""

from ssast_lobes.brains.classification import ClassificationBrain
from ssast_lobes.brains.pretraining import PretrainingBrain
from ssast_lobes.brains.recognition import RecognitionBrain

__all__ = ["ClassificationBrain", "PretrainingBrain", "RecognitionBrain"]
