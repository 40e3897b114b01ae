"""What the official code does another way, as a baseline of benchmarks.

Written for comparison after the description of YuanGongND/ssast a1a3eec.
"""

from torch import nn


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
