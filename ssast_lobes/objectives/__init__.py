"""Pretraining objectives, one class in each file, and their shared modules.

An objective is a module that owns its encoder. ``forward(feats, n_frames,
mask=None, generator=None, clip_keys=None)`` returns an `ObjectiveOutput`.
``after_step(step, total_steps)`` runs once per optimizer step. `base` contains
the base class and shared functions. `maskers`, `block_maskers` and
`multi_block_masker` draw masks. `views` and `corruption` alter clips.
`projections` contains heads and prototypes.

To add an objective, add a file here, its name below and in
``ssast_lobes.__init__``, and a preset in ``hparams/objective/``.
"""

from ruamel.yaml.tag import Tag

from ssast_lobes.objectives.asit import ASiT
from ssast_lobes.objectives.atst_clip import ATSTClip
from ssast_lobes.objectives.atst_frame import ATSTFrame
from ssast_lobes.objectives.audiomosaic import AudioMosaic
from ssast_lobes.objectives.base import Objective, ObjectiveOutput
from ssast_lobes.objectives.codes import Codes
from ssast_lobes.objectives.contrastive_mspm import ContrastiveMSPM
from ssast_lobes.objectives.distillation import Distillation
from ssast_lobes.objectives.eat import EAT
from ssast_lobes.objectives.jepa import JEPA
from ssast_lobes.objectives.m2d import M2D
from ssast_lobes.objectives.mae_ast import MAEAST
from ssast_lobes.objectives.masked_autoencoder import MaskedAutoencoder
from ssast_lobes.objectives.mert import MERT
from ssast_lobes.objectives.mspm import MSPM
from ssast_lobes.objectives.mspm_reference import MSPMReference
from ssast_lobes.objectives.sslam import SSLAM
from ssast_lobes.objectives.vector_quantizer import VectorQuantizer
from ssast_lobes.utils.presets import build, read_preset, references, tag_of

__all__ = [
    "ASiT",
    "ATSTClip",
    "ATSTFrame",
    "AudioMosaic",
    "Codes",
    "ContrastiveMSPM",
    "Distillation",
    "EAT",
    "JEPA",
    "M2D",
    "MAEAST",
    "MERT",
    "MSPM",
    "MSPMReference",
    "MaskedAutoencoder",
    "Objective",
    "ObjectiveOutput",
    "SSLAM",
    "VectorQuantizer",
    "load_objective",
]


def load_objective(name):
    """Return a function that builds an objective from a preset.

    Arguments
    ---------
    name : str
        File name in ``hparams/objective/`` without ``.yaml``, or the path of
        your own preset; see `read_preset`.

    Returns
    -------
    callable
        Takes an encoder, and keyword arguments such as `masker` that are added
        to those of the preset or replace them. Returns an `Objective`.

    Raises
    ------
    ValueError
        If there is no such preset, or it defines no objective.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> type(load_objective("mspm")(encoder)).__name__
    'MSPM'
    """
    preset = read_preset("objective", name)
    objective = preset.get("objective")
    class_name = tag_of(objective).removeprefix("!new:")
    if not isinstance(objective, dict) or class_name == tag_of(objective):
        raise ValueError(f"{name}: a preset has objective: !new:CLASS {{...}}")
    # Leave out what refers to a recipe, such as the encoder: callers pass it.
    for name, node in list(objective.items()):
        if references(node) - preset.keys():
            del objective[name]
    objective.yaml_set_ctag(Tag(suffix=f"!name:{class_name}"))
    return build(preset)["objective"]
