"""Joint pretraining in the manner of the official code, as a baseline.

Two forward passes with a mask each, attention matrices written out, masks and
losses clip by clip in Python loops. The parameters are those of our own
objective, so that both do the same work on the same numbers. Written for this
comparison after the description of YuanGongND/ssast a1a3eec.
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


def materialise_attention(encoder):
    """Write out the attention of all blocks of an encoder, in place.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        With blocks of attention.

    Returns
    -------
    SpectrogramEncoder
        The same.
    """
    for block in encoder.blocks:
        block.attn = MaterialisedAttention(block.attn)
    return encoder


class OfficialWay(nn.Module):
    """The two losses of `MSPM`, each with a pass and loops of its own.

    Arguments
    ---------
    objective : MSPM
        Whose encoder and heads to use; its attention gets written out.
    count : int
        Tokens to hide.
    """

    def __init__(self, objective, count=400):
        super().__init__()
        self.objective = objective
        self.count = count
        materialise_attention(objective.encoder)

    def forward(self, feats):
        """Joint loss of a batch (B, T, n_mels) of full length."""
        patches = self.objective.encoder.grid.unfold(feats)
        return self._discriminative(feats, patches) + (
            self.objective.generative_weight * self._generative(feats, patches)
        )

    def _masks(self, feats):
        grid = self.objective.encoder.grid
        steps = grid.n_steps(feats.shape[1])
        hidden = [
            official_mask(grid.n_bands, steps, self.count, random)
            for _ in feats
        ]
        mask = torch.zeros(len(feats), grid.n_bands * steps, dtype=torch.bool)
        for row, places in zip(mask, hidden, strict=True):
            row[places] = True
        mask = mask.unflatten(1, (grid.n_bands, steps))
        return hidden, mask.to(feats.device)

    def _encode(self, feats, mask):
        embedding = self.objective.mask_embedding
        return self.objective.encoder(feats, None, mask, embedding).tokens

    def _discriminative(self, feats, patches):
        hidden, mask = self._masks(feats)
        tokens = self._encode(feats, mask)
        loss = 0.0
        for clip, places in enumerate(hidden):
            guess = self.objective.discriminator(tokens[clip, places])
            scores = patches[clip, places] @ guess.T
            loss = loss - scores.log_softmax(1).diagonal().mean()
        return loss / len(feats)

    def _generative(self, feats, patches):
        hidden, mask = self._masks(feats)
        tokens = self._encode(feats, mask)
        loss = 0.0
        for clip, places in enumerate(hidden):
            guess = self.objective.generator_head(tokens[clip, places])
            loss = loss + (guess - patches[clip, places]).square().mean()
        return loss / len(feats)
