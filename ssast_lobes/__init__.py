"""Self-supervised audio spectrogram transformers as SpeechBrain lobes.

The public names are loaded when first used, so that ``import ssast_lobes``
and ``ssast-lobes --help`` stay quick.
"""

import importlib
from pathlib import Path

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

_ROOM_OF = {
    "ClipPooling": "heads",
    "ClusterMasker": "masking",
    "FrontEnd": "features",
    "Grid": "patches",
    "InverseBlockMasker": "masking",
    "KaldiFbank": "features",
    "RandomMasker": "masking",
    "SSAST": "lobe",
    "SpanMasker": "masking",
    "SpectrogramClassifier": "heads",
    "SpectrogramEncoder": "encoder",
    "SpectrogramLobe": "lobe",
    "SpectrogramNorm": "features",
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
