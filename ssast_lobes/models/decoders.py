"""Pretraining decoders: from visible tokens to vectors at every token.

Their sizes are fractions of the encoder's sizes, so that a small encoder has a
small decoder. A published decoder of 8 blocks of size 512 costs more than twice
as much as a whole tiny encoder.
"""

import torch
from torch import nn

from ssast_lobes.models.patches import sincos_positions
from ssast_lobes.models.transformer import (
    NORM_EPS,
    TransformerBlock,
    init_transformer,
)


class TransformerDecoder(nn.Module):
    """The decoder of masked autoencoders: mask tokens and transformer blocks.

    He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
    The decoder puts visible tokens back in their places, and a learned mask
    token in all other places. It adds sin-cos positions, which count from the
    start of each clip. Its blocks mix these tokens with the class tokens, and
    attention skips padding.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder, which determines the sizes.
    width : float
        Token size, as a fraction of the encoder's token size.
    depth : float
        Number of blocks, as a fraction of the encoder's number of blocks.
    head_size : int
        Size of an attention head. The token size is rounded to a multiple of
        it.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> encoder = SpectrogramEncoder.from_size("micro")
    >>> decoder = TransformerDecoder(encoder, 2 / 3, 2 / 3, head_size=32)
    >>> decoder.dim, len(decoder.blocks)
    (96, 4)
    """

    def __init__(self, encoder, width, depth, head_size):
        super().__init__()
        heads = max(1, round(width * encoder.dim / head_size))
        self.dim = heads * head_size
        self.embedding = nn.Linear(encoder.dim, self.dim)
        self.mask_embedding = nn.Parameter(torch.empty(self.dim))
        self.blocks = nn.ModuleList(
            TransformerBlock(self.dim, heads)
            for _ in range(max(1, round(depth * encoder.depth)))
        )
        self.norm = nn.LayerNorm(self.dim, eps=NORM_EPS)
        self.apply(init_transformer)
        nn.init.trunc_normal_(self.mask_embedding, std=0.02)

    def forward(self, encoded, split, n_freq):
        """Return a vector for every token: visible, masked or padding.

        Arguments
        ---------
        encoded : EncoderOutput
            The encoder's output for the visible tokens.
        split : TokenSplit
            The places of the visible tokens.
        n_freq : int
            F'.

        Returns
        -------
        torch.Tensor
            (B, F' * T', dim), arbitrary at padding.
        """
        x = scatter_tokens(
            self.embedding(encoded.tokens),
            split.keep[0],
            split.visible,
            self.mask_embedding,
        )
        n_time = x.shape[1] // n_freq
        x = x + sincos_positions(n_freq, n_time, self.dim, x.device).flatten(
            0, 1
        )
        classes = self.embedding(encoded.class_tokens)
        n_classes = classes.shape[1]
        x = torch.cat([classes.to(x.dtype), x], dim=1)
        is_token = nn.functional.pad(split.is_token, (n_classes, 0), value=True)
        for block in self.blocks:
            x = block(x, is_token[:, None, None, :])
        return self.norm(x[:, n_classes:])


class ConvDecoder(nn.Module):
    """EAT's decoder: grouped convolutions over the grid of tokens.

    Each layer adds a convolution, with layer norm and GELU, to its input. The
    decoder is from data2vec 2.0 (Baevski et al., ICML 2023). Padding is 0 at
    every layer, so that a clip's result does not depend on its batch.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder. The decoder has the same token size.
    depth : float
        Number of layers, as a fraction of the encoder's number of blocks.
    kernel : int
        Tokens along each side of a kernel, an odd number.
    groups : int
        Groups of channels, a divisor of the token size.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> encoder = SpectrogramEncoder(dim=32, depth=2, heads=2)
    >>> decoder = ConvDecoder(encoder, depth=0.5, kernel=3, groups=16)
    >>> decoder(torch.zeros(1, 6, 32), torch.ones(1, 6).bool(), n_freq=2).shape
    torch.Size([1, 6, 32])
    """

    def __init__(self, encoder, depth, kernel, groups):
        super().__init__()
        self.dim = encoder.dim
        self.layers = nn.ModuleList(
            nn.Conv2d(
                self.dim, self.dim, kernel, padding=kernel // 2, groups=groups
            )
            for _ in range(max(1, round(depth * encoder.depth)))
        )

    def forward(self, x, is_token, n_freq):
        """Mix neighboring tokens.

        Arguments
        ---------
        x : torch.Tensor
            Visible tokens, and fillers in all other places, (B, F' * T', D).
        is_token : torch.Tensor
            Boolean (B, F' * T'), True at tokens that are audio.
        n_freq : int
            F'.

        Returns
        -------
        torch.Tensor
            (B, F' * T', D), 0 at padding.
        """
        is_token = is_token.unflatten(1, (n_freq, -1))[..., None]
        x = x.unflatten(1, (n_freq, -1)) * is_token
        for layer in self.layers:
            mixed = layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            mixed = nn.functional.layer_norm(mixed, (self.dim,))
            x = x + nn.functional.gelu(mixed) * is_token
        return x.flatten(1, 2)


def scatter_tokens(tokens, index, visible, filler):
    """Put visible tokens back in their places, and a filler in the others.

    Arguments
    ---------
    tokens : torch.Tensor
        (B, V, D), with V at most N.
    index : torch.Tensor
        Places of the tokens (B, V). A place occurs at most once in a clip.
    visible : torch.Tensor
        Boolean (B, N), True at the places that `tokens` fill. Surplus tokens
        have other places.
    filler : torch.Tensor
        Vectors of the other places, which broadcast to (B, N, D).

    Returns
    -------
    torch.Tensor
        (B, N, D).

    Example
    -------
    >>> tokens, index = torch.tensor([[[5.0], [9.0]]]), torch.tensor([[1, 0]])
    >>> visible = torch.tensor([[False, True, False]])
    >>> scatter_tokens(
    ...     tokens, index, visible, torch.zeros(1)
    ... ).flatten().tolist()
    [0.0, 5.0, 0.0]
    """
    batch, _, dim = tokens.shape
    grid = tokens.new_zeros(batch, visible.shape[1], dim)
    grid = grid.scatter(1, index[:, :, None].expand(-1, -1, dim), tokens)
    return torch.where(visible[:, :, None], grid, filler)
