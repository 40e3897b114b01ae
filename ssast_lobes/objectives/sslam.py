"""SSLAM: EAT on clips and on mixtures of two clips.

Alex et al., "SSLAM: Enhancing Self-Supervised Models with Audio Mixtures for
Polyphonic Soundscapes", ICLR 2025; ta012/SSLAM, SSLAM_Stage2.
"""

import torch

from ssast_lobes.models.decoders import scatter_tokens
from ssast_lobes.objectives.base import clip_mean, ids_masked
from ssast_lobes.objectives.eat import EAT, error, targets_at
from ssast_lobes.objectives.views import draw_whole
from ssast_lobes.utils.checks import real


class SSLAM(EAT):
    """Predict a teacher's outputs for clips, and for mixtures of two clips.

    Each clip of a batch is mixed with its partner, the clip before it. Each bin
    of the mixture is the larger value of the two clips. In two time windows the
    clip stays unmixed. The student sees the clip and the mixture with the same
    masks, and predicts EAT's targets for both. The teacher also sees the clip
    and the partner separately. For the mixture, the student also predicts the
    mean of these two outputs. The error of this prediction is added to EAT's
    loss with weight 1.

    So the loss of a clip depends on its partner, by design. If the partner is
    shorter, the rest of the clip is not mixed. A longer partner is cut, so that
    padding never counts. In a batch of one, the clip is its own partner. In
    evaluation the loss must depend on the clip alone, so nothing is mixed, and
    the loss is EAT's.

    The released code differs in two ways. Here the two time windows are drawn
    for each clip, within its own length. And the positions of the partner begin
    at the partner's own first frame.

    Arguments
    ---------
    encoder, masker
        See `EAT`.
    clean_window : float
        Length of each clean window, as a fraction of the clip, at most 0.5.
    **arguments
        The other arguments of `EAT`.

    Raises
    ------
    ValueError
        See `EAT`, or if the window is out of range.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> objective = load_objective("sslam")(encoder)
    >>> output = objective(torch.randn(2, 128, 128), torch.tensor([128, 90]))
    >>> sorted(output.logs)
    ['projection_std', 'regression', 'sources', 'target_std', 'utterance']
    """

    paper = (
        "a teacher's view of clips and of their mixtures (Alex et al., "
        '"SSLAM: Enhancing Self-Supervised Models with Audio Mixtures for '
        'Polyphonic Soundscapes", ICLR 2025)'
    )
    preset = "sslam"

    def __init__(self, encoder, masker=None, *, clean_window, **arguments):
        super().__init__(encoder, masker, **arguments)
        self.clean_window = real("clean_window", clean_window, 0, 0.5)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {**super().config, "clean_window": self.clean_window}

    def forward(
        self, feats, n_frames, mask=None, generator=None, clip_keys=None
    ):
        """Return the loss of a batch; see `EAT.forward`.

        In training the logs also contain ``sources``, the error of the mixtures
        against the mean outputs of their two clips.
        """
        if not self.training:
            return super().forward(feats, n_frames, mask, generator, clip_keys)
        rand = self.random_source(feats, generator, clip_keys)
        masks, n_masked, is_token = self.masks(rand, feats, n_frames, mask)
        partner, n_partner = (
            feats.roll(1, 0),
            n_frames.roll(1).minimum(n_frames),
        )
        is_mixed = self.draw_mixed(rand, n_frames, n_partner, feats.shape[1])
        frame = torch.arange(feats.shape[1], device=feats.device)
        token = frame // self.encoder.grid.stride[1]
        sounds = is_mixed[:, token.clamp(max=is_mixed.shape[1] - 1)]
        sounds = (sounds & (frame < n_partner[:, None]))[:, :, None]
        mixture = torch.where(sounds, feats.maximum(partner), feats)

        # Clips and mixtures alternate, so that both get the random draws of the
        # clip.
        views = torch.stack([feats, mixture], 1).flatten(0, 1)
        n_views, masks, is_views = (
            x.repeat_interleave(2, 0) for x in (n_frames, masks, is_token)
        )
        targets, clip_targets = self.targets(views, n_views, is_views)
        student = self.student(views, n_views, is_views, masks, n_masked, rand)
        output = self.losses(student, targets, clip_targets)

        sources = self.sources(targets[::2], partner, n_partner, is_mixed)
        predictions, ids, weight = (
            x.unflatten(0, (len(feats), 2, -1))[:, 1].flatten(0, 1)
            for x in (student.predictions, *student.split[:2])
        )
        errors = error(predictions, targets_at(sources, ids))
        of_sources = clip_mean(errors, weight)
        logs = {**output.logs, "sources": of_sources.detach()}
        return output._replace(loss=output.loss + of_sources, logs=logs)

    def draw_mixed(self, rand, n_frames, n_partner, max_frames):
        """Draw the times at which clips are mixed.

        Arguments
        ---------
        rand : RandomSource
            Source of the draws.
        n_frames, n_partner : torch.Tensor
            Valid frames (B,) of the clips, and of their partners after the cut.
        max_frames : int
            Frames T of the batch.

        Returns
        -------
        torch.Tensor
            Boolean (B, T'), False in the clean windows and after the end of the
            partner.
        """
        n_time, max_time = self.encoder.token_lengths(n_frames, max_frames)
        window = (self.clean_window * n_time.double()).floor().long()
        reach = n_time - 2 * window + 1
        first = draw_whole(rand(1, 1)[:, 0, 0], reach)
        second = first + draw_whole(rand(1, 1)[:, 0, 0], reach - first) + window
        time = torch.arange(max_time, device=n_time.device)
        # A partner without a frame still has a token.
        heard, _ = self.encoder.token_lengths(n_partner, max_frames)
        is_mixed = time < (heard * (n_partner > 0))[:, None]
        for start in (first[:, None], second[:, None]):
            is_mixed &= (time < start) | (time >= start + window[:, None])
        return is_mixed

    @torch.no_grad()
    def sources(self, tokens, partner, n_partner, is_mixed):
        """Return the targets of mixtures: the mean over their two clips.

        Arguments
        ---------
        tokens : torch.Tensor
            Targets of the clips, (B, N, D).
        partner, n_partner : torch.Tensor
            Features (B, T, n_mels) and frames (B,) of the partners.
        is_mixed : torch.Tensor
            Boolean (B, T'), from `draw_mixed`.

        Returns
        -------
        torch.Tensor
            float32 (B, N, D).
        """
        n_freq = self.encoder.grid.n_freq
        is_mixed = is_mixed[:, None].expand(-1, n_freq, -1).flatten(1)
        ids, weight = ids_masked(is_mixed, is_mixed.shape[1])
        keep = ids, weight > 0
        theirs, _ = self.targets(partner, n_partner, keep[1], keep)
        return (tokens + scatter_tokens(theirs, ids, is_mixed, tokens)) / 2
