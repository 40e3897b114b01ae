"""Small exported folders."""

import tempfile

import torch

from ssast_lobes import (
    FrontEnd,
    Grid,
    SpectrogramClassifier,
    SpectrogramEncoder,
)
from ssast_lobes.checkpoints.folder import (
    export_classifier,
    export_pretrained,
    label_encoder_of,
)
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.warm_start import initialize
from ssast_lobes.objectives import MSPM

LABELS = ["it's", "a=b", 'say "yes"']

FEATURES = {"statistics": {"mean": -6.5, "std": 5.25}, "n_mels": 32}

PATCH = Grid(32, (8, 8))


def make_encoder(grid=PATCH, table_frames=128):
    return SpectrogramEncoder(
        grid, dim=32, depth=2, heads=2, table_frames=table_frames
    )


def make_classifier(grid=PATCH, source_grid=None, **arguments):
    """A classifier whose every tensor matters, as after training."""
    encoder = make_encoder(grid)
    if source_grid is not None:
        source = MSPM(make_encoder(source_grid))
        features = FrontEnd(**FEATURES)
        initialize(encoder, weights_of(source, features))
    model = SpectrogramClassifier(encoder, len(LABELS), **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def weights_of(objective, features):
    """The weights of an objective, as `load_weights` gives them."""
    with tempfile.TemporaryDirectory() as folder:
        export_pretrained(f"{folder}/export", objective, features, card={})
        return load_weights(f"{folder}/export")


def export(folder, model, multi_label=False, card=None):
    labels = label_encoder_of(LABELS)
    features = FrontEnd(**FEATURES)
    return export_classifier(
        folder, model, features, labels, multi_label, card or {}
    )
