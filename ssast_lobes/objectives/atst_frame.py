"""ATST-Frame: predict a teacher's vectors of masked times.

Li, Shao and Li, "Self-Supervised Audio Teacher-Student Transformer for Both
Clip-Level and Frame-Level Tasks", TASLP 2024. The student sees a view with
masked spans of time. At the masked times it predicts the teacher's vectors of
another view. The teacher sees its view without masks.
"""

import torch
from torch import nn

from ssast_lobes.objectives.base import (
    ObjectiveOutput,
    clip_mean,
    gather_tokens,
    ids_masked,
    projection_std,
)
from ssast_lobes.objectives.byol import BYOL
from ssast_lobes.objectives.projections import cosine_distance, swap_views
from ssast_lobes.objectives.views import RandomResizedCrop


class ATSTFrame(BYOL):
    """Predict a teacher's frames of another view at masked times.

    One view is the clip unchanged. The other view is the clip mixed with
    another clip and resized along frequency. So both views contain the same
    sound at each time. Each view is predicted from the other, with the same
    mask. On a grid with several tokens per time step, whole steps are masked,
    and the means of their tokens over frequency are compared. The published
    numbers are in ``hparams/objective/atst_frame.yaml``; see `load_objective`.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train.
    masker : Masker or dict, optional
        Draws the masks; by default it masks half of the time steps, in spans of
        5 steps.
    freq_scale : tuple of float
        See `RandomResizedCrop`.
    **shared
        ``hidden``, ``out``, ``momentum``, ``mixup`` and ``memory`` of `BYOL`.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> objective = load_objective("atst_frame")(encoder)
    >>> output = objective(torch.randn(2, 128, 128), torch.tensor([128, 90]))
    >>> sorted(output.logs)
    ['projection_std']
    """

    paper = (
        "a teacher's vectors of another view predicted at masked times (Li, "
        'Shao and Li, "Self-Supervised Audio Teacher-Student Transformer for '
        'Both Clip-Level and Frame-Level Tasks", TASLP 2024)'
    )

    preset = "atst_frame"

    def __init__(self, encoder, masker=None, *, freq_scale, **shared):
        super().__init__(encoder, masker, **shared)
        self.resize = RandomResizedCrop(freq_scale)
        self.mask_embedding = nn.Parameter(torch.empty(encoder.dim))
        nn.init.trunc_normal_(self.mask_embedding, std=0.02)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        freq_scale = list(self.resize.freq_scale)
        return {**super().config, "freq_scale": freq_scale}

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
            Boolean (B, F', T'), True where masked; by default drawn. Time steps
            with any masked token are compared.
        generator, clip_keys
            Source of mask and views; see `Objective.random_source`.

        Returns
        -------
        ObjectiveOutput
            Logs: ``projection_std``, which falls towards 0 in a collapse.
        """
        if mask is None:
            mask = self.draw_mask(feats, n_frames, generator, clip_keys)
            n_masked = self.masker.max_masked(*mask.shape[1:])
            max_masked = min(n_masked, mask.shape[2])
        else:
            max_masked = mask.shape[2]
        rand = self.random_source(feats, generator, clip_keys)
        mixed = self.mixup(feats, n_frames, rand)
        views = torch.cat([feats, self.resize(mixed, n_frames, rand)])
        self.mixup.remember(feats, n_frames)

        counts, masks = torch.cat([n_frames] * 2), torch.cat([mask] * 2)
        index, weight = ids_masked(masks.any(1), max_masked)
        rows = weight.flatten()
        student = self.encoder(views, counts, masks, self.mask_embedding)
        projected = self.projector(_rows(student, index), rows)
        predicted = self.predictor(projected, rows)
        with torch.no_grad():
            teacher = self.teacher.encoder(views, counts)
            target = self.teacher.projector(_rows(teacher, index), rows)

        predicted, target = (
            x.view(*index.shape, -1) for x in (predicted, target)
        )
        distance = cosine_distance(predicted, swap_views(target))
        std = projection_std(projected[None], rows[None])
        return ObjectiveOutput(
            clip_mean(distance, weight), {"projection_std": std}
        )


def _rows(encoded, index):
    """Return the times at `index` (2B, K) as rows (2B * K, D)."""
    return gather_tokens(encoded.frames, index).flatten(0, 1)
