"""Masked modeling duo (M2D): predict a teacher's masked tokens.

Niizumi et al., "Masked Modeling Duo: Learning Representations by Encouraging
Both Networks to Model the Input", ICASSP 2023.
"""

import torch

from ssast_lobes.models.ema_teacher import EMATeacher
from ssast_lobes.objectives.base import (
    ObjectiveOutput,
    clip_mean,
    projection_std,
)
from ssast_lobes.objectives.masked_prediction import MaskedPrediction
from ssast_lobes.objectives.projections import cosine_distance
from ssast_lobes.utils.checks import reals
from ssast_lobes.utils.schedules import Linear

# The paper's code adds this to the variance of a target.
_EPS = 1e-6


class M2D(MaskedPrediction):
    """Predict a teacher's outputs at masked tokens from visible tokens.

    The teacher, a moving average of the encoder, sees the masked tokens *only*,
    so both networks must model the whole clip from a part of it. The teacher's
    outputs are standardized token by token, and the loss is ``2 - 2 cos``.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train; its patches must not overlap.
    masker : Masker or dict, optional
        Draws the masks; by default it masks single tokens, 70 % of them.
    momentum : list of float
        Momentum of the teacher at the first and the last step. It changes
        linearly in between.
    decoder : dict
        See `MaskedPrediction`.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> objective = load_objective("m2d")(encoder)
    >>> output = objective(torch.randn(2, 128, 128), torch.tensor([128, 90]))
    >>> sorted(output.logs)
    ['projection_std', 'target_std']
    """

    paper = (
        'masked modeling duo (Niizumi et al., "Masked Modeling Duo: Learning '
        'Representations by Encouraging Both Networks to Model the Input", '
        "ICASSP 2023)"
    )
    preset = "m2d"

    def __init__(self, encoder, masker=None, *, momentum, decoder):
        super().__init__(encoder, masker, encoder.dim, decoder)
        reals("momentum", momentum, 0, 1)
        self.momentum = Linear(*momentum)
        self.teacher = EMATeacher(encoder=encoder)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        momentum = [self.momentum.start, self.momentum.end]
        return {**super().config, "momentum": momentum}

    def forward(
        self, feats, n_frames, mask=None, generator=None, clip_keys=None
    ):
        """Return the loss of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        mask : torch.Tensor, optional
            Boolean (B, F', T'), True where masked; by default drawn.
        generator, clip_keys
            Source of the mask; see `Objective.random_source`.

        Returns
        -------
        ObjectiveOutput
            Logs: ``projection_std`` of the predictions and ``target_std`` of
            the targets, both near 0 after a collapse.
        """
        split = self.split(feats, n_frames, mask, generator, clip_keys)
        decoded = self.decode_masked(feats, n_frames, split)
        predictions = self.head(decoded).float()
        targets = self.targets(feats, n_frames, split)
        loss = clip_mean(cosine_distance(predictions, targets), split.weight)
        logs = {
            "projection_std": projection_std(predictions, split.weight),
            "target_std": projection_std(targets, split.weight),
        }
        return ObjectiveOutput(loss, logs)

    @torch.no_grad()
    def targets(self, feats, n_frames, split):
        """Return the teacher's outputs at the masked tokens, standardized.

        Arguments
        ---------
        feats, n_frames
            As in `forward`.
        split : TokenSplit
            Positions of the masked tokens.

        Returns
        -------
        torch.Tensor
            float32 (B, K, D).
        """
        masked = split.ids_masked, split.weight > 0
        tokens = self.teacher.encoder(feats, n_frames, keep=masked).tokens
        variance, mean = torch.var_mean(tokens.float(), dim=2, keepdim=True)
        return (tokens - mean) * (variance + _EPS).rsqrt()

    def after_step(self, step, total_steps):
        """Update the teacher; see `Objective.after_step`."""
        self.teacher.update(self, self.momentum(step, total_steps))
