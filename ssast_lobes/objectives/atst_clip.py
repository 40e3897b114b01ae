"""ATST-Clip: predict a teacher's clip vector of another view.

Li and Li, "ATST: Audio Representation Learning with Teacher-Student
Transformer", Interspeech 2022. Two random crops are mixed with other clips and
resized. From the class token of one crop, the student predicts the teacher's
class token of the other crop.
"""

import torch

from ssast_lobes.objectives.base import (
    ObjectiveOutput,
    projection_std,
    require_class_tokens,
)
from ssast_lobes.objectives.byol import BYOL
from ssast_lobes.objectives.projections import cosine_distance, swap_views
from ssast_lobes.objectives.views import RandomCrop, RandomResizedCrop


class ATSTClip(BYOL):
    """Predict a teacher's class token of another view.

    The published numbers are in ``hparams/objective/atst_clip.yaml``; see
    `load_objective`. The mean of the encoder's class tokens replaces the
    paper's single class token.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train.
    crop : float
        Length of a view, as a fraction of the clip.
    freq_scale, time_scale, time_canvas
        See `RandomResizedCrop`.
    **shared
        ``hidden``, ``out``, ``momentum``, ``mixup`` and ``memory`` of `BYOL`.

    Raises
    ------
    ValueError
        If the encoder has no class tokens, or an argument is out of range.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> objective = load_objective("atst_clip")(encoder)
    >>> output = objective(torch.randn(2, 128, 128), torch.tensor([128, 90]))
    >>> sorted(output.logs)
    ['projection_std']
    """

    paper = (
        "a teacher's vector of another crop predicted (Li and Li, \"ATST: "
        'Audio Representation Learning with Teacher-Student Transformer", '
        "Interspeech 2022)"
    )

    def __init__(
        self, encoder, *, crop, freq_scale, time_scale, time_canvas, **shared
    ):
        require_class_tokens(encoder)
        super().__init__(encoder, **shared)
        self.crop = RandomCrop(crop)
        self.resize = RandomResizedCrop(freq_scale, time_scale, time_canvas)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {
            "crop": self.crop.fraction,
            "freq_scale": list(self.resize.freq_scale),
            "time_scale": list(self.resize.time_scale),
            "time_canvas": self.resize.time_canvas,
            **super().config,
        }

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
        mask : None
            Not used: nothing is masked.
        generator, clip_keys
            Source of the draws; see `Objective.random_source`.

        Returns
        -------
        ObjectiveOutput
            Logs: ``projection_std``, which falls towards 0 in a collapse.
        """
        rand = self.random_source(feats, generator, clip_keys)
        crops = [self.crop(feats, n_frames, rand) for _ in range(2)]
        views = [self._view(*crop, rand) for crop in crops]
        self.mixup.remember(*crops[0])
        views = torch.cat(views)
        counts = torch.cat([count for _, count in crops])

        projected = self._project(self, views, counts)
        predicted = self.predictor(projected)
        with torch.no_grad():
            target = self._project(self.teacher, views, counts)
        loss = cosine_distance(predicted, swap_views(target)).mean()
        std = projection_std(projected[None], projected.new_ones(1, len(views)))
        return ObjectiveOutput(loss, {"projection_std": std})

    def _view(self, crop, n_frames, rand):
        return self.resize(self.mixup(crop, n_frames, rand), n_frames, rand)

    @staticmethod
    def _project(network, views, n_frames):
        encoded = network.encoder(views, n_frames)
        return network.projector(encoded.clip("class"))
