"""EAT: predict a teacher's outputs for the whole clip from few tokens.

Chen et al., "EAT: Self-Supervised Pre-Training with Efficient Audio
Transformer", IJCAI 2024, after data2vec 2.0 (Baevski et al., ICML 2023).
"""

import contextlib
from typing import NamedTuple

import torch
from torch import nn

from ssast_lobes.models.decoders import ConvDecoder, scatter_tokens
from ssast_lobes.models.ema_teacher import EMATeacher
from ssast_lobes.objectives.base import (
    Objective,
    ObjectiveOutput,
    TokenSplit,
    clip_mean,
    gather_tokens,
    projection_std,
    refuse_overlap,
    require_class_tokens,
    split_tokens,
)
from ssast_lobes.utils.checks import real, reals, whole
from ssast_lobes.utils.schedules import Linear

# Torch's instance and layer norm add this to variances.
_EPS = 1e-5


class StudentOutput(NamedTuple):
    """The student's predictions for B clips under M masks each.

    Arguments
    ---------
    predictions : torch.Tensor
        float32 (B * M, K, D), at masked tokens.
    classes : torch.Tensor
        Means of the class tokens, float32 (B * M, D).
    split : TokenSplit
        Split of B * M clips.
    """

    predictions: torch.Tensor
    classes: torch.Tensor
    split: TokenSplit


class EAT(Objective):
    """Predict the mean of a teacher's layers, at masked tokens and per clip.

    The teacher sees the whole clip once. The student sees it under several
    masks, each of which leaves a few blocks of tokens visible. A convolutional
    decoder predicts the teacher's tokens at masked positions, and the mean of
    the class tokens predicts the mean of the teacher's tokens. Both errors are
    squared distances divided by sqrt(D). The encoder gets fixed sin-cos
    positions.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train; its patches must not overlap.
    masker : Masker or dict, optional
        Draws the masks; by default it masks 80 %, all but blocks of 5 x 5
        tokens.
    n_masks : int
        Number of masks of each clip. If a mask is passed to `forward`, only
        that mask is used.
    momentum : list of float
        Momentum of the teacher at the first step and from `momentum_duration`
        on. It changes linearly in between.
    momentum_duration : int or float
        Number of steps (int), or fraction of all steps (float).
    utterance_weight : float
        Weight of the class tokens' error.
    noise_std : float
        Standard deviation of the noise that the decoder gets at masked tokens.
    decoder : dict
        Arguments of `ConvDecoder`: depth, kernel and groups.

    Raises
    ------
    ValueError
        If the patches overlap, the token size is not a multiple of 4, or the
        encoder has no class tokens.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> objective = load_objective("eat")(encoder)
    >>> output = objective(torch.randn(2, 128, 128), torch.tensor([128, 90]))
    >>> sorted(output.logs)
    ['projection_std', 'regression', 'target_std', 'utterance']
    """

    paper = (
        "a teacher's view of the clip predicted from few blocks of it (Chen "
        'et al., "EAT: Self-Supervised Pre-Training with Efficient Audio '
        'Transformer", IJCAI 2024)'
    )
    preset = "eat"

    def __init__(
        self,
        encoder,
        masker=None,
        *,
        n_masks,
        momentum,
        momentum_duration,
        utterance_weight,
        noise_std,
        decoder,
    ):
        refuse_overlap(encoder.grid)
        require_class_tokens(encoder)
        super().__init__(encoder, masker)
        encoder.fix_positions()
        reals("momentum", momentum, 0, 1)
        self.n_masks = whole("n_masks", n_masks)
        self.momentum = Linear(*momentum, duration=momentum_duration)
        self.utterance_weight = real("utterance_weight", utterance_weight, 0)
        self.noise_std = real("noise_std", noise_std, 0)
        self.decoder_config = dict(decoder)
        self.decoder = ConvDecoder(encoder, **decoder)
        self.head = nn.Linear(encoder.dim, encoder.dim)
        self.teacher = EMATeacher(encoder=encoder)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {
            **super().config,
            "n_masks": self.n_masks,
            "momentum": [self.momentum.start, self.momentum.end],
            "momentum_duration": self.momentum.duration,
            "utterance_weight": self.utterance_weight,
            "noise_std": self.noise_std,
            "decoder": self.decoder_config,
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
            Boolean (B, F', T'), True where masked; by default `n_masks` masks
            are drawn for each clip.
        generator, clip_keys
            Source of masks and noise; see `Objective.random_source`.

        Returns
        -------
        ObjectiveOutput
            Logs: ``regression`` and ``utterance`` errors; ``projection_std``
            of the predictions and ``target_std`` of the targets, both near 0
            after a collapse.
        """
        rand = self.random_source(feats, generator, clip_keys)
        masks, n_masked, is_token = self.masks(rand, feats, n_frames, mask)
        targets = self.targets(feats, n_frames, is_token)
        student = self.student(feats, n_frames, is_token, masks, n_masked, rand)
        return self.losses(student, *targets)

    def masks(self, rand, feats, n_frames, mask=None):
        """Return the masks of a batch: the passed mask, or drawn masks.

        Arguments
        ---------
        rand : RandomSource
            Source of the draws.
        feats, n_frames, mask
            As in `forward`.

        Returns
        -------
        masks : torch.Tensor
            Boolean (B, n_masks, F', T'), or (B, 1, F', T') of a passed mask.
        n_masked : int or None
            See `split_tokens`.
        is_token : torch.Tensor
            Boolean (B, N), True at tokens that are audio.
        """
        n_time, max_time = self.encoder.token_lengths(n_frames, feats.shape[1])
        masks = self.draw_masks(rand, n_time, max_time)
        n_masked = self.masker.max_masked(*masks.shape[2:])
        if mask is not None:
            masks, n_masked = mask[:, None], None
        return masks, n_masked, self.encoder.grid.is_token(n_time, max_time)

    def draw_masks(self, rand, n_time, max_time):
        """Draw the masks (B, n_masks, F', T'); see `Masker.draw`."""
        n_freq = self.encoder.grid.n_freq
        masks = [
            self.masker.draw(rand, n_time, n_freq, max_time)
            for _ in range(self.n_masks)
        ]
        return torch.stack(masks, dim=1)

    def student(self, feats, n_frames, is_token, masks, n_masked, rand):
        """Return the student's predictions for clips under each mask.

        Arguments
        ---------
        feats, n_frames
            As in `forward`.
        is_token, masks, n_masked
            As `masks` returns them.
        rand : RandomSource
            Source of the decoder's noise.

        Returns
        -------
        StudentOutput
        """
        # From here on, each mask of a clip is a clip of its own.
        feats, n_frames, is_token = (
            x.repeat_interleave(masks.shape[1], 0)
            for x in (feats, n_frames, is_token)
        )
        split = split_tokens(masks.flatten(0, 1), is_token, n_masked)
        encoded = self.encoder(feats, n_frames, keep=split.keep)
        predictions = self.predict(encoded, split, rand)
        return StudentOutput(predictions, encoded.clip("class").float(), split)

    def losses(self, student, targets, clip_targets):
        """Return the loss of the student.

        Arguments
        ---------
        student : StudentOutput
            Output for B clips under M masks each.
        targets, clip_targets : torch.Tensor
            Results of `targets` for B clips.

        Returns
        -------
        ObjectiveOutput
            See `forward`.
        """
        weight = student.split.weight
        targets = targets_at(targets, student.split.ids_masked)
        regression = clip_mean(error(student.predictions, targets), weight)
        copies = len(weight) // len(clip_targets)
        clip_targets = clip_targets.repeat_interleave(copies, 0)
        of_clip = error(student.classes, clip_targets)
        some = weight.amax(1, keepdim=True)
        utterance = clip_mean(of_clip[:, None], some)
        logs = {
            "regression": regression.detach(),
            "utterance": utterance.detach(),
            "projection_std": projection_std(student.predictions, weight),
            "target_std": projection_std(targets, weight),
        }
        loss = regression + self.utterance_weight * utterance
        return ObjectiveOutput(loss, logs)

    def predict(self, encoded, split, rand):
        """Predict the teacher's tokens from the visible ones.

        Arguments
        ---------
        encoded : EncoderOutput
            Output for the visible tokens of B * M clips.
        split : TokenSplit
            Positions of the visible and masked tokens.
        rand : RandomSource
            Draws the decoder's input at masked tokens, for B clips.

        Returns
        -------
        torch.Tensor
            float32 (B * M, K, D), at masked tokens.
        """
        n_freq, dim = self.encoder.grid.n_freq, self.encoder.dim
        max_time = split.is_token.shape[1] // n_freq
        copies = len(split.is_token) // rand.n_clips
        drawn = rand(copies * n_freq * dim, max_time)
        drawn = drawn.view(-1, n_freq, dim, max_time).transpose(2, 3)
        filler = self.noise_std * _normal(drawn).flatten(1, 2)
        x = scatter_tokens(encoded.tokens, split.keep[0], split.visible, filler)
        decoded = self.decoder(x, split.is_token, n_freq)
        return self.head(gather_tokens(decoded, split.ids_masked)).float()

    @torch.no_grad()
    def targets(self, feats, n_frames, is_token, keep=None):
        """Return the mean of the teacher's layers for whole clips.

        The layers are the outputs of the MLPs, or of the blocks if these have
        no MLP. Each layer is standardized over the valid tokens of a clip,
        channel by channel. The mean over the layers is then standardized, token
        by token.

        Arguments
        ---------
        feats, n_frames
            As in `forward`.
        is_token : torch.Tensor
            Boolean (B, N), True at tokens that are audio.
        keep : tuple of torch.Tensor, optional
            Tokens that the teacher sees, in the format of the encoder; by
            default all. N is then the number of these tokens, and `is_token`
            refers to them.

        Returns
        -------
        tokens : torch.Tensor
            float32 (B, N, D), 0 at padding.
        clips : torch.Tensor
            Mean of `tokens` over the valid tokens, (B, D).
        """
        layers = _layer_outputs(self.teacher.encoder, feats, n_frames, keep)
        mean = mean_of_layers(layers, is_token)
        tokens = nn.functional.layer_norm(mean, mean.shape[2:], eps=_EPS)
        tokens = tokens * is_token[:, :, None]
        return tokens, (tokens * _token_weight(is_token)).sum(1)

    def after_step(self, step, total_steps):
        """Update the teacher; see `Objective.after_step`."""
        self.teacher.update(self, self.momentum(step, total_steps))


def mean_of_layers(layers, is_token):
    """Return the mean of layers, each standardized over a clip's tokens.

    Arguments
    ---------
    layers : list of torch.Tensor
        (B, N, D) each.
    is_token : torch.Tensor
        Boolean (B, N), True at tokens that count.

    Returns
    -------
    torch.Tensor
        float32 (B, N, D), arbitrary at tokens that do not count.

    Example
    -------
    >>> layer = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> is_token = torch.tensor([[True, True, False]])
    >>> mean_of_layers([layer], is_token)[0, :2, 0].round(decimals=3)
    tensor([-1.,  1.])
    """
    weight = _token_weight(is_token)
    total = 0.0
    for layer in layers:
        layer = layer.float()
        centered = layer - (layer * weight).sum(1, keepdim=True)
        variance = (centered.square() * weight).sum(1, keepdim=True)
        total = total + centered * (variance + _EPS).rsqrt()
    return total / len(layers)


def targets_at(targets, ids_masked):
    """Return the rows (B * M, K, D) of (B, N, D) at positions (B * M, K)."""
    ids = ids_masked.unflatten(0, (len(targets), -1)).flatten(1)
    return (
        gather_tokens(targets, ids)
        .unflatten(1, (-1, ids_masked.shape[1]))
        .flatten(0, 1)
    )


def error(predictions, targets):
    """Return the squared distance divided by sqrt(D): (.., D) to (..)."""
    scale = predictions.shape[-1] ** -0.5
    return scale * (predictions - targets).square().sum(-1)


def _token_weight(is_token):
    """Return weights (B, N, 1) of the tokens that count, with a sum of 1."""
    is_token = is_token[:, :, None].float()
    return is_token / is_token.sum(1, keepdim=True).clamp(min=1)


def _layer_outputs(encoder, feats, n_frames, keep):
    """Return outputs (B, N, D) of the MLPs of all blocks, or of the blocks."""
    if not all(hasattr(block, "mlp") for block in encoder.blocks):
        output = encoder(feats, n_frames, keep=keep, hidden_states=True)
        return list(output.hidden_states[1:])
    layers, first = [], encoder.n_class_tokens
    with contextlib.ExitStack() as hooks:
        for block in encoder.blocks:
            hook = block.mlp.register_forward_hook(
                lambda _, __, output: layers.append(output[:, first:])
            )
            hooks.callback(hook.remove)
        encoder(feats, n_frames, keep=keep)
    return layers


def _normal(uniform):
    """Turn uniform draws in [0, 1) into normal ones."""
    # A draw of 0 would become infinite. Draws have 24 bits, so the other ones
    # are above this limit.
    return (2 * uniform.clamp(min=2**-25) - 1).erfinv() * 2**0.5
