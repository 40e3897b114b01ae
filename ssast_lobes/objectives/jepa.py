"""JEPA: predict a teacher's outputs at many blocks from one context.

Yuksel et al., "WavJEPA", 2025, and Tuncay et al., "Audio-JEPA", 2025, after
Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding
Predictive Architecture", CVPR 2023.
"""

import torch

from ssast_lobes.models.ema_teacher import EMATeacher
from ssast_lobes.objectives.base import (
    ObjectiveOutput,
    TokenSplit,
    clip_mean,
    gather_tokens,
    ids_masked,
    projection_std,
    split_tokens,
)
from ssast_lobes.objectives.eat import mean_of_layers, targets_at
from ssast_lobes.objectives.masked_prediction import MaskedPrediction
from ssast_lobes.utils.checks import real, reals
from ssast_lobes.utils.schedules import Linear


class JEPA(MaskedPrediction):
    """Predict a teacher's layers at several token groups, group by group.

    The encoder sees the context of a clip once. The predictor, a transformer,
    runs once for each group of targets. It sees the context and the positions
    of this group, and no other tokens. Its targets are the mean of the
    teacher's last layers. Each layer is first standardized over the tokens of
    the clip, channel by channel. The teacher sees the whole clip. The loss is
    the mean squared error.

    If you pass a mask, as validation does, all masked tokens are one group.
    Unlike in WavJEPA, tokens are patches of a spectrogram, and a batch contains
    one crop of each clip. The encoder has two class tokens, which the predictor
    sees too.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train; its patches must not overlap.
    masker : Masker or dict, optional
        Draws context and targets; see `Masker.draw_targets`. By default the
        targets are four groups of blocks. If the masker draws only a mask, the
        whole mask is one group.
    layers : float
        Fraction of the teacher's layers that are averaged, counted from the
        last.
    momentum : list of float
        Momentum of the teacher at the first step, and from `momentum_duration`
        on. It changes linearly in between.
    momentum_duration : int or float
        Number of steps (int), or fraction of all steps (float).
    decoder : dict
        Arguments of the predictor; see `MaskedPrediction`.

    Raises
    ------
    ValueError
        If the patches overlap, or an argument is out of range.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> objective = load_objective("jepa")(encoder)
    >>> output = objective(torch.randn(2, 128, 128), torch.tensor([128, 90]))
    >>> sorted(output.logs)
    ['projection_std', 'target_std']
    """

    paper = (
        "a teacher's view of several blocks from one context (Yuksel et al., "
        "WavJEPA, 2025; Tuncay et al., Audio-JEPA, 2025; Assran et al., "
        "I-JEPA, CVPR 2023)"
    )
    preset = "jepa"

    def __init__(
        self,
        encoder,
        masker=None,
        *,
        layers,
        momentum,
        momentum_duration,
        decoder,
    ):
        super().__init__(encoder, masker, encoder.dim, decoder)
        self.layers = real("layers", layers, 0, 1)
        reals("momentum", momentum, 0, 1)
        self.momentum = Linear(*momentum, duration=momentum_duration)
        self.teacher = EMATeacher(encoder=encoder)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {
            **super().config,
            "layers": self.layers,
            "momentum": [self.momentum.start, self.momentum.end],
            "momentum_duration": self.momentum.duration,
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
        mask : torch.Tensor, optional
            Boolean (B, F', T'), True where masked: one group of targets. By
            default context and groups are drawn.
        generator, clip_keys
            Source of the draws; see `Objective.random_source`.

        Returns
        -------
        ObjectiveOutput
            Logs: ``projection_std`` of the predictions and ``target_std`` of
            the targets, both near 0 after a collapse.
        """
        n_time, max_time = self.encoder.token_lengths(n_frames, feats.shape[1])
        n_freq = self.encoder.grid.n_freq
        is_token = self.encoder.grid.is_token(n_time, max_time)
        if mask is None:
            rand = self.random_source(feats, generator, clip_keys)
            mask, groups = self.masker.draw_targets(
                rand, n_time, n_freq, max_time
            )
            n_masked = self.masker.max_masked(n_freq, max_time)
        else:
            groups, n_masked = mask[:, None], None
        context = split_tokens(mask, is_token, n_masked)
        encoded = self.encoder(feats, n_frames, keep=context.keep)
        predictions, split = self.predict(encoded, context, groups)
        targets = self.targets(feats, n_frames, is_token)
        targets = targets_at(targets, split.ids_masked)
        errors = (predictions - targets).square().mean(2)
        logs = {
            "projection_std": projection_std(predictions, split.weight),
            "target_std": projection_std(targets, split.weight),
        }
        return ObjectiveOutput(clip_mean(errors, split.weight), logs)

    def predict(self, encoded, context, groups):
        """Predict the teacher's tokens, group by group.

        Arguments
        ---------
        encoded : EncoderOutput
            Outputs for the contexts of B clips.
        context : TokenSplit
            Positions of the contexts, and of all masked tokens.
        groups : torch.Tensor
            Boolean (B, M, F', T'), True at the targets.

        Returns
        -------
        predictions : torch.Tensor
            float32 (B * M, K, D).
        split : TokenSplit
            Positions of context and group, for B * M clips.
        """
        # From here on, each group of a clip is a clip of its own.
        tokens, classes, index, kept, visible, is_token = (
            x.repeat_interleave(groups.shape[1], 0)
            for x in (
                encoded.tokens,
                encoded.class_tokens,
                *context.keep,
                context.visible,
                context.is_token,
            )
        )
        wanted = groups.flatten(2).flatten(0, 1) & is_token
        split = TokenSplit(
            *ids_masked(wanted, context.ids_masked.shape[1]),
            keep=(index, kept),
            visible=visible,
            is_token=visible | wanted,
        )
        seen = encoded._replace(tokens=tokens, class_tokens=classes)
        decoded = self.decoder(seen, split, groups.shape[2])
        decoded = gather_tokens(decoded, split.ids_masked)
        return self.head(decoded).float(), split

    @torch.no_grad()
    def targets(self, feats, n_frames, is_token):
        """Return the mean of the teacher's last layers for whole clips.

        Arguments
        ---------
        feats, n_frames
            As in `forward`.
        is_token : torch.Tensor
            Boolean (B, N), True at tokens that are audio.

        Returns
        -------
        torch.Tensor
            float32 (B, N, D), arbitrary at padding.
        """
        encoder = self.teacher.encoder
        states = encoder(feats, n_frames, hidden_states=True).hidden_states
        count = max(1, round(self.layers * encoder.depth))
        return mean_of_layers(list(states[-count:]), is_token)

    def after_step(self, step, total_steps):
        """Update the teacher; see `Objective.after_step`."""
        self.teacher.update(self, self.momentum(step, total_steps))
