"""Transformer blocks: pre-norm, as in SSAST and most models, and post-norm."""

import torch
from torch import nn

# timm's epsilon, with which the official models were trained.
NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention, with PyTorch's scaled-dot-product kernels.

    Arguments
    ---------
    dim : int
        Token size D.
    heads : int
        Number of heads, a divisor of D.
    qkv_bias : bool
        Whether queries, keys and values have a bias.

    Example
    -------
    >>> Attention(64, 2)(torch.zeros(1, 5, 64)).shape
    torch.Size([1, 5, 64])
    """

    def __init__(self, dim, heads, qkv_bias=True):
        super().__init__()
        if dim % heads:
            raise ValueError(
                f"dim must be a multiple of heads ({heads}), got {dim}"
            )
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, attend=None):
        """Mix the tokens.

        Arguments
        ---------
        x : torch.Tensor
            Tokens (B, N, D).
        attend : torch.Tensor, optional
            Boolean (B, 1, 1, N), True at tokens that may be attended to.

        Returns
        -------
        torch.Tensor
            (B, N, D).
        """
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attend
        )
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class MLP(nn.Module):
    """Two linear layers with GELU between them: (.., D) to (.., D).

    Arguments
    ---------
    dim : int
        Token size D.
    hidden : int
        Size between the layers.

    Example
    -------
    >>> MLP(8, 32)(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        """Transform each token (.., D) separately."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    """Pre-norm block: attention, then MLP, each added to the stream.

    Arguments
    ---------
    dim : int
        Token size D.
    heads : int
        Attention heads.
    mlp_ratio : float
        Hidden size of the MLP, divided by D.
    drop_path : float
        Fraction of clips that skip a branch in training (stochastic depth); 0
        in SSAST.
    qkv_bias : bool
        Whether queries, keys and values have a bias.

    Example
    -------
    >>> TransformerBlock(64, 2)(torch.zeros(1, 5, 64)).shape
    torch.Size([1, 5, 64])
    """

    def __init__(self, dim, heads, mlp_ratio=4, drop_path=0.0, qkv_bias=True):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x, attend=None):
        """Transform tokens (B, N, D); `attend` as in `Attention`."""
        mixed = self.attn(self.norm1(x), attend)
        x = x + drop_path(mixed, self.drop_path, self.training)
        changed = self.mlp(self.norm2(x))
        return x + drop_path(changed, self.drop_path, self.training)


class PostNormBlock(TransformerBlock):
    """Post-norm block: each sum of stream and branch is normalized.

    This is the order of Vaswani et al., "Attention Is All You Need", NeurIPS
    2017, and of data2vec 2.0 and EAT. The arguments are those of
    `TransformerBlock`.

    Example
    -------
    >>> x = PostNormBlock(64, 2)(torch.randn(1, 5, 64))
    >>> x.mean(-1).abs().max() < 1e-6
    tensor(True)
    """

    def forward(self, x, attend=None):
        """Transform tokens (B, N, D); `attend` as in `Attention`."""
        mixed = self.attn(x, attend)
        x = self.norm1(x + drop_path(mixed, self.drop_path, self.training))
        changed = self.mlp(x)
        return self.norm2(x + drop_path(changed, self.drop_path, self.training))


def drop_path(branch, rate, training):
    """Drop a residual branch for some clips (stochastic depth).

    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016. The branch
    of the other clips is scaled up, so that its mean stays the same.

    Arguments
    ---------
    branch : torch.Tensor
        (B, N, D).
    rate : float
        Fraction of clips without the branch.
    training : bool
        Whether the model is in training mode; otherwise nothing is dropped.

    Returns
    -------
    torch.Tensor
        (B, N, D).

    Example
    -------
    >>> drop_path(torch.ones(4, 1, 1), 0.5, training=False).sum().item()
    4.0
    """
    if not training or rate == 0:
        return branch
    draw = torch.empty(len(branch), 1, 1, device=branch.device)
    kept = draw.bernoulli_(1 - rate)
    # With a rate of 1, no clip keeps the branch, and there is nothing to scale.
    return branch * (kept if rate == 1 else kept / (1 - rate))


def init_transformer(module):
    """Initialize a linear layer as timm does: truncated normal, bias 0.

    Arguments
    ---------
    module : torch.nn.Module
        A module that ``Module.apply`` passes. Only linear layers change.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
