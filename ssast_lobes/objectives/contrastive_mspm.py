"""Masked patches, and clips told apart: MSPM with a contrast of clips.

Masked spectrogram patch modelling of SSAST says nothing of a clip as a whole.
Here each clip is seen twice, as two crops, and the network also has to find
the crop that comes from the same clip, as in COLA (Saeed et al., "Contrastive
Learning of General-Purpose Audio Representations", ICASSP 2021).
"""

import torch
from torch import nn

from ssast_lobes.encoder import pool
from ssast_lobes.objectives.base import ObjectiveOutput
from ssast_lobes.objectives.mspm import MSPM
from ssast_lobes.objectives.projections import gelu_mlp, shares_of
from ssast_lobes.views import Background, RandomChannel, RandomCrop


class ContrastiveMSPM(MSPM):
    """Joint MSPM over two crops of each clip, and InfoNCE between the crops.

    Both losses come from one pass: what is hidden of a crop makes the contrast
    harder. So do a background and another channel for each crop; without
    them, the channel alone tells the clips apart. A crop's vector is mean and
    deviation over time of the tokens after a block in the middle, so that the
    last blocks are left to the patches. The negatives are the other crops of
    the process's own batch. In evaluation, where a clip's loss has to be its
    own, there is no contrast and no crop: the losses are those of `MSPM`.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train; its patches must not overlap.
    crop : float or list of float
        Length of a crop as a share of the clip, or the least and the greatest.
        With a greatest below 1 whole clips would have lengths, and positions,
        that training never met.
    background, channel : dict
        Arguments of `Background` and `RandomChannel`.
    contrast_depth : float
        The block whose tokens are compared, as a share of the depth.
    contrast_weight : float
        Of the contrast, beside the loss of `MSPM`.
    temperature : float
        Cosines are divided by it.
    projection : float
        Size of the compared vectors over the encoder's D.
    **mspm
        Arguments of `MSPM`.

    Raises
    ------
    ValueError
        If a share is out of range, or patches overlap.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=2, heads=2)
    >>> objective = load_objective("contrastive_mspm")(encoder)
    >>> feats, n_frames = torch.randn(2, 128, 128), torch.tensor([128, 90])
    >>> sorted(objective(feats, n_frames).logs)
    ['accuracy', 'clip_accuracy', 'clip_nce', 'mse', 'nce']
    >>> sorted(objective.eval()(feats, n_frames).logs)
    ['accuracy', 'mse', 'nce']
    """

    training_only = ("projector",)

    def __init__(
        self,
        encoder,
        *,
        crop,
        background,
        channel,
        contrast_depth,
        contrast_weight,
        temperature,
        projection,
        **mspm,
    ):
        super().__init__(encoder, **mspm)
        if not 0 <= contrast_depth <= 1:
            raise ValueError(
                "contrast_depth is a share of the blocks, 0 to 1, got "
                f"{contrast_depth}"
            )
        self.crop = RandomCrop(crop)
        self.background = Background(**background)
        self.channel = RandomChannel(**channel)
        self._views = {"background": dict(background), "channel": dict(channel)}
        self.contrast_depth = contrast_depth
        self.contrast_weight = contrast_weight
        self.temperature = temperature
        self.projection = projection
        dim = encoder.dim
        self.projector = nn.Sequential(
            nn.LayerNorm(2 * dim),
            gelu_mlp([2 * dim, 2 * dim, shares_of(dim, projection)]),
        )

    @property
    def config(self):
        """The arguments, without the encoder, that build this again."""
        return {
            **super().config,
            "crop": self.crop.share,
            **self._views,
            "contrast_depth": self.contrast_depth,
            "contrast_weight": self.contrast_weight,
            "temperature": self.temperature,
            "projection": self.projection,
        }

    def forward(
        self, feats, n_frames, mask=None, generator=None, clip_keys=None
    ):
        """Loss of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalised log-mel (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        mask : torch.Tensor, optional
            Boolean (B, F', T'), True where hidden: of whole clips, as in
            evaluation. Left out in training, each crop has its own.
        generator, clip_keys
            Source of the draws; see `Objective.noise`.

        Returns
        -------
        ObjectiveOutput
            Logs: those of `MSPM`; in training ``clip_nce`` and
            ``clip_accuracy`` (share of the crops whose nearest crop is of
            the same clip).
        """
        if mask is not None or not self.training:
            return super().forward(feats, n_frames, mask, generator, clip_keys)
        noise = self.noise(feats, generator, clip_keys)
        views = [self._view(feats, n_frames, noise) for _ in range(2)]
        feats, n_frames = (torch.cat(part) for part in zip(*views, strict=True))
        mask = self.draw_mask(feats, n_frames, generator)
        most = self.masker.n_hidden(mask[0].numel())
        encoded = self.encoder(
            feats, n_frames, mask, self.mask_embedding, hidden_states=True
        )
        loss, logs = self.hidden_losses(encoded, feats, mask, most)
        nce, accuracy = self._contrast(encoded)
        logs.update(clip_nce=nce.detach(), clip_accuracy=accuracy)
        return ObjectiveOutput(loss + self.contrast_weight * nce, logs)

    def _view(self, feats, n_frames, noise):
        feats, n_frames = self.crop(feats, n_frames, noise)
        feats = self.background(feats, n_frames, noise)
        return self.channel(feats, n_frames, noise), n_frames

    def _contrast(self, encoded):
        """InfoNCE between the crops of a batch, and its accuracy."""
        block = round(self.contrast_depth * self.encoder.depth)
        vectors = pool(
            encoded.hidden_states[block], encoded.valid, None, "statistics"
        )
        # Over a temperature of 0.1, bf16's roundings become hundredths.
        with torch.autocast(vectors.device.type, enabled=False):
            unit = nn.functional.normalize(self.projector(vectors.float()))
            scores = unit @ unit.T / self.temperature
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        scores = scores.masked_fill(itself, torch.finfo(scores.dtype).min)
        partner = torch.arange(len(unit), device=unit.device).roll(
            len(unit) // 2
        )
        nce = nn.functional.cross_entropy(scores, partner)
        with torch.no_grad():
            accuracy = (scores.argmax(1) == partner).float().mean()
        return nce, accuracy
