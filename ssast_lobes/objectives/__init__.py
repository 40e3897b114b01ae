"""Pretraining objectives: one file, one class each.

An objective is a module that owns its encoder. ``forward(feats, n_frames,
mask=None, generator=None)`` gives an `ObjectiveOutput`; ``after_step(step,
total_steps)`` runs once per optimizer step.
"""

from ssast_lobes.objectives.base import Objective, ObjectiveOutput
from ssast_lobes.objectives.mspm import MSPM
from ssast_lobes.objectives.mspm_reference import MSPMReference

__all__ = ["MSPM", "MSPMReference", "Objective", "ObjectiveOutput"]
