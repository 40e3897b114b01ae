"""Objectives as tests need them: every preset on a tiny encoder."""

import torch

from ssast_lobes import Grid, SpectrogramEncoder, SpectrogramLobe, Teacher
from ssast_lobes.objectives import load_objective
from ssast_lobes.utils.presets import hparams_folder

PRESETS = sorted(
    path.stem for path in (hparams_folder() / "objective").glob("*.yaml")
)

# Those that differ from another one in numbers alone.
VARIANTS = {
    path.stem
    for path in (hparams_folder() / "objective").glob("*.yaml")
    if "\nbase: " in path.read_text("utf-8")
}


def teacher(seed=7, patch=(128, 4), dim=24, depth=3, **arguments):
    """A lobe of other patches and size than the student's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = SpectrogramEncoder(
            Grid(128, patch), dim=dim, depth=depth, heads=2, **arguments
        )
    return Teacher(SpectrogramLobe(encoder))


# The numbers of the papers do not fit clips of a second and a half; teachers
# are no numbers.
SMALL = {
    "mspm_reference": {"count": 30},
    "eat": {"n_masks": 2},
    "sslam": {"n_masks": 2},
    "distillation": {"teachers": lambda: [teacher()]},
}

CLIPS = 2


def build(name, seed=0):
    torch.manual_seed(seed)
    return build_with(name, **SMALL.get(name, {}))


def build_with(name, **arguments):
    """A preset on a tiny encoder, with other arguments than its own."""
    encoder = SpectrogramEncoder(
        Grid(), dim=32, depth=2, heads=2, table_frames=160
    )
    return load_objective(name)(encoder, **arguments)


def audio(objective, seed, count=CLIPS):
    """What an objective that needs the waveforms of `clips` gets of them."""
    if not objective.needs_audio:
        return {}
    draw = torch.Generator().manual_seed(seed)
    n_samples = torch.tensor([25840, 15760] * count)[:count]
    wavs = 0.1 * torch.randn(count, 25840, generator=draw)
    return {"wavs": wavs, "n_samples": n_samples}


def clips(seed, count=CLIPS):
    draw = torch.Generator().manual_seed(seed)
    feats = 0.5 * torch.randn(count, 160, 128, generator=draw)
    n_frames = torch.tensor([160, 97] * (count // 2))
    shown = torch.arange(160) < n_frames[:, None]
    return feats * shown[:, :, None], n_frames
