"""MAE-AST: SSAST's two losses in a masked autoencoder.

Baade et al., "MAE-AST: Masked Autoencoding Audio Spectrogram Transformer",
Interspeech 2022.
"""

import torch
from torch import nn

from ssast_lobes.objectives.base import ObjectiveOutput, matching_logs
from ssast_lobes.objectives.masked_autoencoder import MaskedAutoencoder
from ssast_lobes.objectives.mspm import info_nce
from ssast_lobes.utils.checks import real


class MAEAST(MaskedAutoencoder):
    """Tell masked patches apart and reconstruct them, from the visible ones.

    ``loss = nce + generative_weight * mse``, with the raw patches as
    targets. The softmax of the InfoNCE runs over all targets of a clip.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train; its patches must not overlap.
    masker : Masker or dict, optional
        Draws the masks; by default it masks 75 % of the tokens: clusters of
        patches, or single frames.
    generative_weight : float
        Weight of the reconstruction.
    decoder : dict
        See `MaskedPrediction`.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> objective = load_objective("mae_ast")(encoder)
    >>> output = objective(torch.randn(2, 128, 128), torch.tensor([128, 90]))
    >>> list(output.logs)
    ['nce', 'nce_chance', 'accuracy', 'accuracy_chance', 'mse']
    """

    paper = (
        "masked patches told apart and filled in from the visible ones "
        '(Baade et al., "MAE-AST: Masked Autoencoding Audio Spectrogram '
        'Transformer", Interspeech 2022)'
    )
    preset = "mae_ast"

    def __init__(self, encoder, masker=None, *, generative_weight, decoder):
        super().__init__(encoder, masker, decoder=decoder)
        self.generative_weight = real("generative_weight", generative_weight, 0)
        self.matching_head = nn.Linear(
            self.decoder.dim, encoder.grid.patch_size
        )

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {**super().config, "generative_weight": self.generative_weight}

    def losses(self, decoded, patches, weight):
        """Return both losses; see `MaskedAutoencoder.losses`.

        Logs are ``nce``, ``accuracy`` (the fraction of masked patches whose
        prediction fits its own target best), their chance levels, and ``mse``.
        """
        reconstruction = super().losses(decoded, patches, weight)
        nce, accuracy = info_nce(
            self.matching_head(decoded), patches, weight, "targets"
        )
        logs = matching_logs(nce, accuracy, weight.sum(1))
        loss = nce + self.generative_weight * reconstruction.loss
        return ObjectiveOutput(loss, logs | reconstruction.logs)

    @staticmethod
    def scale(patches):
        """Return mean 0 and deviation 1, both (.., 1): patches stay raw."""
        mean = torch.zeros_like(patches[..., :1])
        return mean, torch.ones_like(mean)
