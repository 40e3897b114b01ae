"""Pretraining objectives: one file, one class each.

An objective is a module that owns its encoder. ``forward(feats, n_frames,
mask=None, generator=None, clip_keys=None)`` gives an `ObjectiveOutput`;
``after_step(step, total_steps)`` runs once per optimizer step.
"""

from hyperpyyaml import load_hyperpyyaml

from ssast_lobes.objectives.asit import ASiT
from ssast_lobes.objectives.atst_clip import ATSTClip
from ssast_lobes.objectives.atst_frame import ATSTFrame
from ssast_lobes.objectives.base import Objective, ObjectiveOutput
from ssast_lobes.objectives.contrastive_mspm import ContrastiveMSPM
from ssast_lobes.objectives.eat import EAT
from ssast_lobes.objectives.m2d import M2D
from ssast_lobes.objectives.mae_ast import MAEAST
from ssast_lobes.objectives.masked_autoencoder import MaskedAutoencoder
from ssast_lobes.objectives.mspm import MSPM
from ssast_lobes.objectives.mspm_reference import MSPMReference
from ssast_lobes.presets import preset_path

__all__ = [
    "ASiT",
    "ATSTClip",
    "ATSTFrame",
    "ContrastiveMSPM",
    "EAT",
    "M2D",
    "MAEAST",
    "MSPM",
    "MSPMReference",
    "MaskedAutoencoder",
    "Objective",
    "ObjectiveOutput",
    "load_objective",
]


def load_objective(name):
    """An objective with the numbers of a fragment of ``hparams/objective/``.

    Arguments
    ---------
    name : str
        File name without ``.yaml``.

    Returns
    -------
    callable
        Takes an encoder, gives an `Objective`.

    Raises
    ------
    ValueError
        If there is no such fragment, or it holds no objective.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> type(load_objective("mspm")(encoder)).__name__
    'MSPM'
    """
    path = preset_path("objective", name)
    with open(path, encoding="utf-8") as file:
        fragment = load_hyperpyyaml(file)
    if "objective_class" not in fragment:
        raise ValueError(f"{path} holds numbers, no objective_class")
    return fragment["objective_class"]
