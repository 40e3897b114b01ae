"""Masked patches, and clips told apart: MSPM with a contrast of clips.

Masked spectrogram patch modelling of SSAST says nothing of a clip as a whole.
Here each clip is seen twice, as two crops, and the network also has to find
the crop that comes from the same clip, as in COLA (Saeed et al., "Contrastive
Learning of General-Purpose Audio Representations", ICASSP 2021). Of some clips
pitch, formants and tempo change between the two, as in vocal tract length
perturbation (Jaitly and Hinton, 2013): what they share then is what is said
or sounds, not whose voice it is.
"""

import torch
from torch import nn

from ssast_lobes.encoder import pool
from ssast_lobes.objectives.base import ObjectiveOutput
from ssast_lobes.objectives.mspm import MSPM
from ssast_lobes.objectives.projections import gelu_mlp, shares_of
from ssast_lobes.views import (
    Background,
    RandomChannel,
    RandomCrop,
    RandomResizedCrop,
)


class ContrastiveMSPM(MSPM):
    """Joint MSPM over two crops of each clip, and InfoNCE between the crops.

    Both losses come from one pass: what is hidden of a crop makes the contrast
    harder. So do a background and another channel for each crop; without
    them, the channel alone tells the clips apart. A crop's vector is mean and
    deviation over time of the tokens after a block in the middle, so that the
    last blocks are left to the patches. A random part of each batch is warped
    along mel and time as well, each crop differently; these clips have a
    contrast and a projection of their own. The negatives are the other crops
    of the same part of the process's own batch. In evaluation, where a clip's
    loss has to be its own, there is no contrast and no crop: the losses are
    those of `MSPM`.

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
    warped : dict
        ``share`` of the clips that are warped, 0 to 1; ``freq_scale`` and
        ``time_scale``, arguments of `RandomResizedCrop`; ``depth`` and
        ``weight`` of their contrast, as `contrast_depth` and
        `contrast_weight`.
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
    ['accuracy', 'clip_accuracy', 'clip_nce', 'mse', 'nce', 'warped_accuracy', \
'warped_nce']
    >>> sorted(objective.eval()(feats, n_frames).logs)
    ['accuracy', 'mse', 'nce']
    """

    training_only = ("projector", "warped_projector")

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
        warped,
        **mspm,
    ):
        super().__init__(encoder, **mspm)
        for name, share in (
            ("contrast_depth", contrast_depth),
            ("depth of warped", warped["depth"]),
            ("share of warped", warped["share"]),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} goes from 0 to 1, got {share}")
        self.crop = RandomCrop(crop)
        self.background = Background(**background)
        self.channel = RandomChannel(**channel)
        self.warp = RandomResizedCrop(
            warped["freq_scale"], warped["time_scale"]
        )
        self._views = {
            "background": dict(background),
            "channel": dict(channel),
            "warped": dict(warped),
        }
        self.contrast_depth = contrast_depth
        self.contrast_weight = contrast_weight
        self.warped_share = warped["share"]
        self.warped_depth = warped["depth"]
        self.warped_weight = warped["weight"]
        self.temperature = temperature
        self.projection = projection
        self.projector = _projector(encoder.dim, projection)
        self.warped_projector = _projector(encoder.dim, projection)

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
            the same clip), and the same of the warped clips.
        """
        if mask is not None or not self.training:
            return super().forward(feats, n_frames, mask, generator, clip_keys)
        noise = self.noise(feats, generator, clip_keys)
        # A batch may be in the order of its lengths.
        order = noise(1, 1)[:, 0, 0].argsort()
        feats, n_frames = feats[order], n_frames[order]
        n_plain = len(feats) - round(self.warped_share * len(feats))
        views = []
        for part, warp in (
            (slice(n_plain), None),
            (slice(n_plain, None), self.warp),
        ):
            clips, lengths = feats[part], n_frames[part]
            noise = self.noise(clips, generator)
            views += [self._view(clips, lengths, warp, noise) for _ in "12"]
        feats, n_frames = (torch.cat(part) for part in zip(*views, strict=True))
        mask = self.draw_mask(feats, n_frames, generator)
        most = self.masker.n_hidden(mask[0].numel())
        encoded = self.encoder(
            feats, n_frames, mask, self.mask_embedding, hidden_states=True
        )
        loss, logs = self.hidden_losses(encoded, feats, mask, most)
        for name, part, depth, weight, projector in (
            (
                *("clip", slice(2 * n_plain), self.contrast_depth),
                *(self.contrast_weight, self.projector),
            ),
            (
                *("warped", slice(2 * n_plain, None), self.warped_depth),
                *(self.warped_weight, self.warped_projector),
            ),
        ):
            nce, accuracy = self._contrast(encoded, part, depth, projector)
            logs[f"{name}_nce"] = nce.detach()
            logs[f"{name}_accuracy"] = accuracy
            loss = loss + weight * nce
        return ObjectiveOutput(loss, logs)

    def _view(self, feats, n_frames, warp, noise):
        feats, n_frames = self.crop(feats, n_frames, noise)
        if warp is not None:
            feats = warp(feats, n_frames, noise)
        feats = self.background(feats, n_frames, noise)
        return self.channel(feats, n_frames, noise), n_frames

    def _contrast(self, encoded, part, depth, projector):
        """InfoNCE between the crops of a part's clips, and its accuracy."""
        block = round(depth * self.encoder.depth)
        vectors = pool(
            encoded.hidden_states[block][part],
            encoded.valid[part],
            None,
            "statistics",
        )
        # Over a temperature of 0.1, bf16's roundings become hundredths.
        with torch.autocast(vectors.device.type, enabled=False):
            unit = nn.functional.normalize(projector(vectors.float()))
            scores = unit @ unit.T / self.temperature
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        scores = scores.masked_fill(itself, torch.finfo(scores.dtype).min)
        partner = torch.arange(len(unit), device=unit.device).roll(
            len(unit) // 2
        )
        # Of a batch too small for both parts, one is empty: 0, not NaN.
        count = max(1, len(unit))
        nce = nn.functional.cross_entropy(scores, partner, reduction="sum")
        with torch.no_grad():
            right = (scores.argmax(1) == partner) if len(unit) else partner
            accuracy = right.sum() / count
        return nce / count, accuracy


def _projector(dim, projection):
    return nn.Sequential(
        nn.LayerNorm(2 * dim),
        gelu_mlp([2 * dim, 2 * dim, shares_of(dim, projection)]),
    )
