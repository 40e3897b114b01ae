"""What the official code does another way, as a baseline of benchmarks.

Written for comparison after the description of YuanGongND/ssast a1a3eec: a
training step is two forward passes with independent masks and one backward
pass, attention matrices are written out, and masks, predictions and losses
are made clip by clip in Python loops. The parameters are those of our own
objective, so that both do the same work on the same numbers.
"""

import random

import torch
from torch import nn

from ssast_lobes.objectives.mspm_reference import official_mask


class MaterialisedAttention(nn.Module):
    """The attention of a block, with its matrix written out.

    Arguments
    ---------
    attention : Attention
        Whose projections to use.
    """

    def __init__(self, attention):
        super().__init__()
        self.heads = attention.heads
        self.qkv = attention.qkv
        self.proj = attention.proj

    def forward(self, x, attend=None):
        """Tokens (B, N, D) to (B, N, D)."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        share = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
        mixed = share.softmax(dim=-1) @ value
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class OfficialWay(nn.Module):
    """The joint loss of `MSPM`, each part with a pass and loops of its own.

    Arguments
    ---------
    objective : MSPM
        Whose encoder, heads and weights to use; the attention of its encoder
        gets written out.
    """

    def __init__(self, objective):
        super().__init__()
        self.objective = objective
        for block in objective.encoder.blocks:
            block.attn = MaterialisedAttention(block.attn)

    def forward(self, feats, hidden=None):
        """Joint loss of a batch of clips as long as the position table.

        Arguments
        ---------
        feats : torch.Tensor
            Normalised log-mel (B, T, n_mels).
        hidden : tuple of list, optional
            Of the discriminative and of the generative pass, for each clip
            the list of its hidden tokens; drawn when left out.

        Returns
        -------
        loss, accuracy : torch.Tensor
            Two scalars.
        """
        if hidden is None:
            hidden = self._draw(feats), self._draw(feats)
        nce, accuracy = self._discriminative(feats, hidden[0])
        mse = self._generative(feats, hidden[1])
        return nce + self.objective.generative_weight * mse, accuracy

    def _draw(self, feats):
        grid = self.objective.encoder.grid
        steps = grid.n_time(feats.shape[1])
        count = self.objective.masker.n_masked(grid.n_freq * steps)
        return [official_mask(grid.n_freq, steps, count, random) for _ in feats]

    def _encode(self, feats, hidden):
        """Tokens (B, N, D), without the class tokens."""
        encoder = self.objective.encoder
        kernel = encoder.patch_embedding.weight.view(-1, 1, *encoder.grid.patch)
        x = nn.functional.conv2d(
            feats.transpose(1, 2)[:, None],
            kernel,
            encoder.patch_embedding.bias,
            stride=encoder.grid.stride,
        )
        x = x.flatten(2).transpose(1, 2)
        shown = torch.ones_like(x)
        for clip, places in enumerate(hidden):
            shown[clip, places] = 0
        x = x * shown + (1 - shown) * self.objective.mask_embedding
        table = encoder.positions.table.flatten(0, 1)
        positions = torch.cat([encoder.class_positions, table])
        classes = encoder.class_tokens.expand(len(feats), -1, -1)
        x = torch.cat([classes, x], dim=1) + positions
        for block in encoder.blocks:
            x = block(x)
        return encoder.norm(x)[:, len(encoder.class_tokens) :]

    def _discriminative(self, feats, hidden):
        patches = self.objective.encoder.grid.unfold(feats)
        tokens = self._encode(feats, hidden)
        loss, correct = 0.0, 0.0
        for clip, places in enumerate(hidden):
            guess = self.objective.discriminator(tokens[clip, places])
            scores = patches[clip, places] @ guess.T
            best = scores.softmax(1).argmax(0)
            own = torch.arange(len(places), device=best.device)
            correct = correct + (best == own).float().mean()
            loss = loss - scores.log_softmax(1).diagonal().mean()
        return loss / len(feats), correct / len(feats)

    def _generative(self, feats, hidden):
        patches = self.objective.encoder.grid.unfold(feats)
        tokens = self._encode(feats, hidden)
        loss = 0.0
        for clip, places in enumerate(hidden):
            guess = self.objective.generator_head(tokens[clip, places])
            loss = loss + (guess - patches[clip, places]).square().mean()
        return loss / len(feats)
