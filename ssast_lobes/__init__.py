"""Self-supervised audio spectrogram transformers as SpeechBrain lobes.

The public names are loaded when first used, so that ``import ssast_lobes``
and ``ssast-lobes --help`` stay quick.
"""

import importlib
from pathlib import Path

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

_ROOM_OF = {
    "ASiT": "objectives",
    "ATSTClip": "objectives",
    "ATSTFrame": "objectives",
    "AddedNoise": "degradation",
    "AtomicCheckpointer": "checkpointer",
    "BandLimit": "degradation",
    "ClipOrder": "data.samplers",
    "ClipPooling": "heads",
    "ClipReader": "data.dataset",
    "Clipping": "degradation",
    "ClusterMasker": "masking",
    "Companding": "degradation",
    "Constant": "schedules",
    "ContrastiveMSPM": "objectives",
    "Degradation": "degradation",
    "EAT": "objectives",
    "FrontEnd": "features",
    "Grid": "patches",
    "InverseBlockMasker": "masking",
    "KaldiFbank": "features",
    "Linear": "schedules",
    "M2D": "objectives",
    "MAEAST": "objectives",
    "MSPM": "objectives",
    "MSPMReference": "objectives",
    "MaskedAutoencoder": "objectives",
    "Mixup": "augment",
    "NoiseAndRoll": "augment",
    "PretrainingLobe": "lobe",
    "RandomMasker": "masking",
    "SSAST": "lobe",
    "SpanMasker": "masking",
    "SpectrogramClassifier": "heads",
    "SpectrogramEncoder": "encoder",
    "SpectrogramLobe": "lobe",
    "SpectrogramMasking": "augment",
    "SpectrogramNorm": "features",
    "SpectrogramRecognizer": "recognition",
    "TransformCoding": "degradation",
    "WarmupCosine": "schedules",
    "WarmupPlateau": "schedules",
    "WarmupStepDecay": "schedules",
    "aam_softmax": "losses",
    "binary_cross_entropy": "losses",
    "collate": "data.dataset",
    "cross_entropy": "losses",
    "focal_loss": "losses",
}
_ROOMS = ["inference", "objectives"]

__all__ = [*_ROOM_OF, *_ROOMS]


def __getattr__(name):
    """Import a public name from its room on first use."""
    if name in _ROOM_OF:
        room = importlib.import_module(f"ssast_lobes.{_ROOM_OF[name]}")
        return getattr(room, name)
    if name in _ROOMS:
        return importlib.import_module(f"ssast_lobes.{name}")
    raise AttributeError(f"module 'ssast_lobes' has no attribute '{name}'")
