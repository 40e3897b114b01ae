"""Self-supervised audio spectrogram transformers as SpeechBrain lobes.

The public names are loaded when first used, so that ``import ssast_lobes``
and ``ssast-lobes --help`` stay quick.
"""

import importlib
from pathlib import Path

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

_MODULE_OF = {
    "ASiT": "objectives",
    "ATSTClip": "objectives",
    "ATSTFrame": "objectives",
    "AddedNoise": "augment.degradation",
    "AtomicCheckpointer": "training.checkpointer",
    "AudioMosaic": "objectives",
    "BEATsEncoder": "models.beats",
    "BandLimit": "augment.degradation",
    "ChunkMasker": "objectives.block_maskers",
    "ClassificationHead": "models.heads",
    "ClipOrder": "dataio.samplers",
    "ClipPooling": "models.pooling",
    "ClipReader": "dataio.dataset",
    "Clipping": "augment.degradation",
    "ClusterMasker": "objectives.maskers",
    "Codes": "objectives",
    "Companding": "augment.degradation",
    "Constant": "utils.schedules",
    "ContrastiveMSPM": "objectives",
    "Degradation": "augment.degradation",
    "Distillation": "objectives",
    "EAT": "objectives",
    "ExportPretrainer": "inference.speechbrain",
    "FrameClassifier": "models.event_head",
    "FrontEnd": "models.features",
    "Grid": "models.patches",
    "InverseBlockMasker": "objectives.block_maskers",
    "JEPA": "objectives",
    "KMeansTokenizer": "objectives.tokenizers",
    "KaldiFbank": "models.features",
    "Linear": "utils.schedules",
    "M2D": "objectives",
    "MAEAST": "objectives",
    "MERT": "objectives",
    "MSPM": "objectives",
    "MSPMReference": "objectives",
    "MaskedAutoencoder": "objectives",
    "Mixup": "augment.augmentation",
    "MultiBlockMasker": "objectives.multi_block_masker",
    "NoiseAndRoll": "augment.augmentation",
    "PassThrough": "inference.speechbrain",
    "PeriodicMasker": "objectives.block_maskers",
    "PretrainingLobe": "lobes.pretraining",
    "RandomMasker": "objectives.maskers",
    "RandomProjectionTokenizer": "objectives.tokenizers",
    "RowMasker": "objectives.block_maskers",
    "SSAST": "lobes.spectrogram",
    "SSLAM": "objectives",
    "SpanMasker": "objectives.block_maskers",
    "SpectrogramClassifier": "models.heads",
    "SpectrogramDetector": "models.event_head",
    "SpectrogramEncoder": "models.encoder",
    "SpectrogramLobe": "lobes.spectrogram",
    "SpectrogramMasking": "augment.augmentation",
    "SpectrogramNorm": "models.normalization",
    "SpectrogramRecognizer": "models.heads",
    "StoredTokenizer": "objectives.tokenizers",
    "Teacher": "lobes.teachers",
    "TransformCoding": "augment.degradation",
    "VectorQuantizer": "objectives",
    "VectorQuantizerTokenizer": "objectives.tokenizers",
    "WarmupCosine": "utils.schedules",
    "WarmupPlateau": "utils.schedules",
    "WarmupStepDecay": "utils.schedules",
    "WindowClassifier": "inference.speechbrain",
    "WindowedLobe": "inference.speechbrain",
    "aam_softmax": "training.losses",
    "binary_cross_entropy": "training.losses",
    "bundled_model": "checkpoints.bundled",
    "collate": "dataio.dataset",
    "cross_entropy": "training.losses",
    "event_cross_entropy": "training.event_losses",
    "finetune": "cli.recipe_run",
    "focal_loss": "training.losses",
    "load_labels": "inference.speechbrain",
    "load_modules": "inference.speechbrain",
    "load_teachers": "lobes.teachers",
    "pretrain": "cli.recipe_run",
    "to_float": "dataio.waveforms",
    "to_mono": "dataio.waveforms",
}
_FOLDERS = ["inference", "objectives", "training"]

__all__ = [*_MODULE_OF, *_FOLDERS]


def __getattr__(name):
    """Import a public name from its module on first use."""
    if name in __all__:
        # Without this check, a torchaudio for another torch fails later with
        # an error about a missing symbol.
        dependencies = importlib.import_module("ssast_lobes.utils.dependencies")
        dependencies.check_torchaudio()
    if name in _MODULE_OF:
        module = importlib.import_module(f"ssast_lobes.{_MODULE_OF[name]}")
        return getattr(module, name)
    if name in _FOLDERS:
        return importlib.import_module(f"ssast_lobes.{name}")
    raise AttributeError(f"module 'ssast_lobes' has no attribute '{name}'")


def __dir__():
    """List the public names, for tab completion."""
    return sorted([*__all__, "__version__"])
