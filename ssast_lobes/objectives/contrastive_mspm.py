"""MSPM with a contrastive loss between crops of clips.

SSAST's masked patch modeling trains no vector of the whole clip. Here two crops
are cut from each clip, and the network must also find the other crop of the
same clip, as in COLA (Saeed et al., "Contrastive Learning of General-Purpose
Audio Representations", ICASSP 2021). Crops of one recording share voice and
room. Two takes of one content, such as a word in two voices, make better views,
since they share only the content.
"""

import torch
from torch import nn

from ssast_lobes.models.pooling import pool
from ssast_lobes.objectives.base import ObjectiveOutput, matching_logs
from ssast_lobes.objectives.mspm import MSPM
from ssast_lobes.objectives.projections import gelu_mlp, sizes_of
from ssast_lobes.objectives.views import (
    Background,
    RandomChannel,
    RandomCrop,
    cut,
)
from ssast_lobes.utils.checks import real


class ContrastiveMSPM(MSPM):
    """Compute joint MSPM over two crops of each clip, and compare the crops.

    One forward pass serves both losses. The mask, a background and a random
    channel make the contrast harder. Without background and random channel, the
    channel of the recording alone would identify the clip. The vector of a crop
    is the mean and the standard deviation of its tokens after a middle block,
    so that the last blocks can specialize on patches.

    A clip may contain two takes of the same content, one in each half. The
    halves are then a positive pair. The halves replace the two crops, are not
    masked, and get their own projection head. The negatives of a crop are the
    crops of other clips in the batch of the process. The negatives of a half
    are the halves of other clips. In evaluation the loss must depend on the
    clip alone, so there are no crops and no contrast. The losses are then those
    of `MSPM`.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train; its patches must not overlap.
    crop : float or list of float
        Length of a crop as a fraction of the clip, or the least and the
        greatest fraction. If the greatest fraction is below 1, the first and
        the last positions of whole clips are never trained.
    background, channel : dict
        Arguments of `Background` and `RandomChannel`.
    contrast_depth : float
        The block whose tokens are compared, as a fraction of the depth.
    contrast_weight, pair_weight : float
        Weights of the contrastive losses of crops and of positive pairs. Both
        are added to the loss of `MSPM`.
    temperature : float
        Divisor of the cosines.
    projection : float
        Size of the compared vectors, as a multiple of the encoder's token size
        D.
    **mspm
        Arguments of `MSPM`.

    Raises
    ------
    ValueError
        If a fraction is out of range, or patches overlap.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=2, heads=2)
    >>> objective = load_objective("contrastive_mspm")(encoder)
    >>> feats, n_frames = torch.randn(2, 128, 128), torch.tensor([128, 90])
    >>> list(objective(feats, n_frames).logs)[5:]
    ['clip_nce', 'clip_nce_chance', 'clip_accuracy', 'clip_accuracy_chance']
    >>> pairs = torch.tensor([False, True])
    >>> list(objective(feats, n_frames, positive_pairs=pairs).logs)[9:11]
    ['pair_nce', 'pair_nce_chance']
    >>> list(objective.eval()(feats, n_frames).logs)
    ['nce', 'nce_chance', 'accuracy', 'accuracy_chance', 'mse']
    """

    paper = (
        "masked spectrogram patch modeling (SSAST: Gong et al., AAAI 2022), "
        "and contrastive learning of two crops of a clip (Saeed et al., "
        '"Contrastive Learning of General-Purpose Audio Representations", '
        "ICASSP 2021)"
    )
    training_only = ("projector", "pair_projector")
    uses_positive_pairs = True
    # Crops differ in length, so their frame counts are always needed.
    n_frames_optional = False

    def __init__(
        self,
        encoder,
        *,
        crop,
        background,
        channel,
        contrast_depth,
        contrast_weight,
        pair_weight,
        temperature,
        projection,
        **mspm,
    ):
        super().__init__(encoder, **mspm)
        real("contrast_depth", contrast_depth, 0, 1)
        real("contrast_weight", contrast_weight, 0)
        real("pair_weight", pair_weight, 0)
        real("temperature", temperature, 0, inside=True)
        real("projection", projection, 0, inside=True)
        self.crop = RandomCrop(crop)
        self.background = Background(**background)
        self.channel = RandomChannel(**channel)
        self._views = {"background": dict(background), "channel": dict(channel)}
        self.contrast_depth = contrast_depth
        self.contrast_weight = contrast_weight
        self.pair_weight = pair_weight
        self.temperature = temperature
        self.projection = projection
        self.projector = _projector(encoder.dim, projection)
        self.pair_projector = _projector(encoder.dim, projection)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {
            **super().config,
            "crop": self.crop.fraction,
            **self._views,
            "contrast_depth": self.contrast_depth,
            "contrast_weight": self.contrast_weight,
            "pair_weight": self.pair_weight,
            "temperature": self.temperature,
            "projection": self.projection,
        }

    def forward(
        self,
        feats,
        n_frames,
        mask=None,
        generator=None,
        clip_keys=None,
        positive_pairs=None,
    ):
        """Return the loss of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        mask : torch.Tensor, optional
            Boolean (B, F', T'), True where masked, for whole clips in
            evaluation. In training each crop draws its own mask.
        generator, clip_keys
            Source of the draws; see `Objective.random_source`. In training,
            masks do not depend on `clip_keys`.
        positive_pairs : torch.Tensor, optional
            Boolean (B,), True for clips whose halves are two takes.

        Returns
        -------
        ObjectiveOutput
            Logs: those of `MSPM`. In training also ``clip_nce``,
            ``clip_accuracy`` (the fraction of crops whose nearest crop is from
            the same clip) and their chance levels. With `positive_pairs` also
            ``pair_nce``, ``pair_accuracy`` and their chance levels.
        """
        if mask is not None or not self.training:
            return super().forward(feats, n_frames, mask, generator, clip_keys)
        is_pair = positive_pairs
        if is_pair is None:
            # Compute the pair loss even if there are no pairs, since DDP waits
            # for gradients of the pair projection.
            is_pair = torch.zeros_like(n_frames, dtype=torch.bool)
        rand = self.random_source(feats, generator, clip_keys)
        views = [self._view(feats, n_frames, is_pair, k, rand) for k in (0, 1)]
        feats, n_frames = (torch.cat(part) for part in zip(*views, strict=True))
        mask = self.draw_mask(feats, n_frames, generator)
        max_masked = self.masker.max_masked(*mask.shape[1:])
        is_pair = is_pair.repeat(2)
        mask = mask & ~is_pair[:, None, None]
        encoded = self.encoder(
            feats, n_frames, mask, self.mask_embedding, hidden_states=True
        )
        loss, logs = self.masked_losses(encoded, feats, mask, max_masked)
        block = round(self.contrast_depth * self.encoder.depth)
        vectors = pool(
            encoded.hidden_states[block], encoded.is_token, None, "statistics"
        ).float()
        for name, weight, projector, chosen in (
            ("clip", self.contrast_weight, self.projector, ~is_pair),
            ("pair", self.pair_weight, self.pair_projector, is_pair),
        ):
            nce, accuracy = self._contrast(projector, vectors, chosen)
            loss = loss + weight * nce
            if name == "clip" or positive_pairs is not None:
                # Each crop is compared with all other crops, each half with all
                # other halves.
                others = chosen.sum(0, keepdim=True) - 1
                matching = matching_logs(nce, accuracy, others)
                logs |= {f"{name}_{key}": matching[key] for key in matching}
        return ObjectiveOutput(loss, logs)

    def _view(self, feats, n_frames, is_pair, number, rand):
        """Return view 0 or 1 of each clip, a crop or a half, and its frames."""
        first, counts = self.crop.draw(n_frames, rand)
        half = (n_frames // 2).clamp(min=1)
        first = torch.where(is_pair, number * half, first)
        counts = torch.where(is_pair, half, counts)
        longest = max(self.crop.longest(feats), feats.shape[1] // 2)
        feats = cut(feats, first, counts, longest)
        feats = self.background(feats, counts, rand)
        return self.channel(feats, counts, rand), counts

    def _contrast(self, projector, vectors, chosen):
        """Return InfoNCE among the chosen rows of both views, and accuracy.

        Rows that are not chosen stay in the computation, so that no shape
        depends on data.
        """
        # Compute in float32: divided by a temperature of 0.1, rounding errors
        # of bf16 would become hundredths.
        with torch.autocast(vectors.device.type, enabled=False):
            unit = nn.functional.normalize(projector(vectors))
            scores = unit @ unit.T / self.temperature
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        scores = scores.masked_fill(
            itself | ~chosen, torch.finfo(scores.dtype).min
        )
        partner = torch.arange(len(unit), device=unit.device).roll(
            len(unit) // 2
        )
        losses = nn.functional.cross_entropy(scores, partner, reduction="none")
        count = chosen.sum().clamp(min=1)
        nce = torch.where(chosen, losses, 0.0).sum() / count
        with torch.no_grad():
            right = (scores.argmax(1) == partner) & chosen
            accuracy = right.sum() / count
        return nce, accuracy


def _projector(dim, projection):
    return nn.Sequential(
        nn.LayerNorm(2 * dim),
        gelu_mlp([2 * dim, 2 * dim, sizes_of(dim, projection)]),
    )
