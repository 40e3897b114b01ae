"""BEATs' encoder, with the interface of `SpectrogramEncoder`.

Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers", ICML 2023,
following the released code (microsoft/unilm, beats/). Tokens are in order of
time and, at each time, of frequency. Positions come from a convolution over
the tokens in this order and from an attention bias that depends on the
distance.
"""

import math

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ssast_lobes.models.encoder import EncoderOutput
from ssast_lobes.models.patches import Grid, replace_masked
from ssast_lobes.models.transformer import MLP, drop_path, init_transformer
from ssast_lobes.utils.checks import flag, one_of, real, whole
from ssast_lobes.utils.lengths import full_lengths, length_to_mask

NORM_EPS = 1e-5

# Number of gates of a query, and number of values that are summed for each
# gate.
_GATE = (2, 4)


class GatedAttention(nn.Module):
    """Self-attention with a relative position bias that each query gates.

    Arguments
    ---------
    dim : int
        Token size D.
    heads : int
        Number of heads H; D must be a multiple of H.

    Example
    -------
    >>> bias = torch.zeros(1, 2, 5, 5)
    >>> GatedAttention(64, 2)(torch.zeros(1, 5, 64), bias).shape
    torch.Size([1, 5, 64])
    """

    def __init__(self, dim, heads):
        super().__init__()
        if dim % heads:
            raise ValueError(
                f"dim must be a multiple of heads ({heads}), got {dim}"
            )
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim // heads, math.prod(_GATE))
        self.gate_scale = nn.Parameter(torch.ones(heads))

    def forward(self, x, bias, attend=None):
        """Mix the tokens.

        Arguments
        ---------
        x : torch.Tensor
            Tokens (B, N, D).
        bias : torch.Tensor
            Bias of each query and key, (1, H, N, N) or (B, H, N, N).
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
        parts = self.gate(query).unflatten(-1, _GATE).sum(-1).sigmoid()
        first, second = parts[..., :1], parts[..., 1:]
        scale = self.gate_scale[:, None, None]
        bias = (first * (second * scale - 1) + 2) * bias
        if attend is not None:
            bias = bias.masked_fill(~attend, -torch.inf)
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias.to(query.dtype)
        )
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class BEATsBlock(nn.Module):
    """Post-norm block with a scaled residual (DeepNorm).

    Wang et al., "DeepNet: Scaling Transformers to 1,000 Layers", 2022.

    Arguments
    ---------
    dim, heads, mlp_ratio, drop_path
        See `ssast_lobes.models.transformer.TransformerBlock`.
    depth : int
        Number of blocks of the encoder, which determines the residual's scale.
    """

    def __init__(self, dim, heads, mlp_ratio, drop_path, depth):
        super().__init__()
        self.drop_path = drop_path
        self.scale = (2 * depth) ** 0.25
        self.attn = GatedAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x, bias, attend=None):
        """Transform tokens (B, N, D); see `GatedAttention.forward`."""
        mixed = self.attn(x, bias, attend)
        mixed = drop_path(mixed, self.drop_path, self.training)
        x = self.norm1(self.scale * x + mixed)
        changed = drop_path(self.mlp(x), self.drop_path, self.training)
        return self.norm2(self.scale * x + changed)


class BEATsEncoder(nn.Module):
    """BEATs over spectrogram patches, for clips of any length.

    This encoder has no class tokens and no position table. A clip's output
    never depends on the other clips of its batch.

    Arguments
    ---------
    grid, dim, depth, heads, mlp_ratio, drop_path, checkpointing
        See `SpectrogramEncoder`.
    table_frames : int
        Number of frames of the training clips. Other clips may be longer.
    patch_dim : int
        Size of the patch vectors before the projection to D.
    kernel, groups : int
        Kernel size and groups of the convolution for positions.
    buckets, max_distance : int
        Number of biases for both directions together, and the distance in
        tokens from which all larger distances share one bias.
    blocks : str
        ``"beats"``, the name of this encoder in a configuration.

    Example
    -------
    >>> encoder = BEATsEncoder(dim=32, depth=2, heads=2, groups=4)
    >>> feats = torch.randn(2, 100, 128)
    >>> output = encoder(feats, n_frames=torch.tensor([100, 40]))
    >>> output.patches.shape, output.n_time.tolist()
    (torch.Size([2, 8, 7, 32]), [7, 3])
    """

    n_class_tokens = 0
    scans = False
    kind = "beats"

    def __init__(
        self,
        grid=None,
        dim=768,
        depth=12,
        heads=12,
        mlp_ratio=4,
        table_frames=998,
        drop_path=0.0,
        checkpointing=False,
        patch_dim=512,
        kernel=128,
        groups=16,
        buckets=320,
        max_distance=800,
        blocks="beats",
    ):
        super().__init__()
        one_of("blocks", blocks, ("beats",))
        self.checkpointing = flag("checkpointing", checkpointing)
        sizes = {"dim": dim, "depth": depth, "heads": heads}
        sizes |= {"patch_dim": patch_dim, "kernel": kernel, "groups": groups}
        sizes |= {"table_frames": table_frames}
        for name, size in sizes.items():
            whole(name, size)
        whole("buckets", buckets, 4)
        whole("max_distance", max_distance, buckets // 4 + 1)
        real("mlp_ratio", mlp_ratio, 0, inside=True)
        real("drop_path", drop_path, 0, 1)
        self.grid = grid if isinstance(grid, Grid) else Grid(**(grid or {}))
        self.dim, self.heads, self.mlp_ratio = dim, heads, mlp_ratio
        self.table_frames, self.max_distance = table_frames, max_distance
        self.patch_embedding = nn.Linear(
            self.grid.patch_size, patch_dim, bias=False
        )
        self.patch_norm = nn.LayerNorm(patch_dim, eps=NORM_EPS)
        self.projection = nn.Linear(patch_dim, dim)
        self.convolution = nn.Conv1d(
            dim, dim, kernel, padding=kernel // 2, groups=groups
        )
        self.first_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.distance_bias = nn.Parameter(torch.empty(buckets, heads))
        nn.init.trunc_normal_(self.distance_bias, std=0.02)
        rates = [drop_path * n / max(1, depth - 1) for n in range(depth)]
        self.blocks = nn.ModuleList(
            BEATsBlock(dim, heads, mlp_ratio, rate, depth) for rate in rates
        )
        self.blocks.apply(init_transformer)
        self.norm = nn.Identity()

    @property
    def depth(self):
        """L, the number of blocks."""
        return len(self.blocks)

    @property
    def config(self):
        """The arguments that rebuild this encoder."""
        return {
            "grid": self.grid.config,
            "dim": self.dim,
            "depth": self.depth,
            "heads": self.heads,
            "mlp_ratio": self.mlp_ratio,
            "table_frames": self.table_frames,
            "patch_dim": self.projection.in_features,
            "kernel": self.convolution.kernel_size[0],
            "groups": self.convolution.groups,
            "buckets": len(self.distance_bias),
            "max_distance": self.max_distance,
            "blocks": self.kind,
        }

    @property
    def adaptable_layers(self):
        """Names of the linear layers that can have low-rank adapters."""
        return ["blocks.*.qkv", "blocks.*.proj", "blocks.*.fc?"]

    def fix_positions(self):
        """Do nothing, since there is no position table."""

    def token_lengths(self, n_frames, max_frames):
        """See `SpectrogramEncoder.token_lengths`."""
        max_time = self.grid.n_time(max_frames)
        return self.grid.n_time(n_frames).clamp(max=max_time), max_time

    def forward(
        self,
        feats,
        n_frames=None,
        mask=None,
        mask_embedding=None,
        keep=None,
        hidden_states=False,
    ):
        """Encode a batch; see `SpectrogramEncoder.forward`.

        In the input of the convolution, dropped tokens are 0.
        """
        feats = feats.to(self.projection.weight.dtype)
        max_frames = feats.shape[1]
        padded = n_frames is not None or keep is not None
        if n_frames is None:
            n_frames = full_lengths(feats)
        else:
            feats = feats * length_to_mask(n_frames, max_frames)[:, :, None]
        n_time, max_time = self.token_lengths(n_frames, max_frames)
        n_freq = self.grid.n_freq
        is_token = self.grid.is_token(n_time, max_time)
        x = self.patch_norm(self.patch_embedding(self.grid.unfold(feats)))
        x = self.projection(x)
        if mask is not None:
            x = replace_masked(x, mask, mask_embedding, (n_freq, max_time))
        kept = is_token
        if keep is not None:
            # Surplus entries may repeat a kept token, so count the kept
            # entries.
            counts = torch.zeros_like(is_token, dtype=torch.long)
            kept = counts.scatter_add(1, keep[0], keep[1].long()) > 0
            kept = kept & is_token
        x = self._add_positions(x * kept[:, :, None], n_freq)
        # Place of each token in the order of time, (1 or B, N).
        time = torch.arange(max_time, device=x.device)
        band = torch.arange(n_freq, device=x.device)[:, None]
        place = (time * n_freq + band).flatten()[None]
        if keep is not None:
            index = keep[0]
            place = place.expand(len(index), -1).gather(1, index)
            x = x.gather(1, index[:, :, None].expand(-1, -1, self.dim))
            is_token = is_token.gather(1, index) & keep[1]
        bias = self._bias(place)
        attend = is_token[:, None, None, :] if padded else None
        x = self.first_norm(x)
        states = [x]
        for block in self.blocks:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, bias, attend, use_reentrant=False)
            else:
                x = block(x, bias, attend)
            if hidden_states:
                states.append(x)
        is_audio = is_token[:, :, None]
        no_class = x[:, :0]
        return EncoderOutput(
            tokens=x * is_audio,
            is_token=is_token,
            class_tokens=no_class,
            n_freq=n_freq if keep is None else None,
            hidden_states=torch.stack(states) * is_audio
            if hidden_states
            else None,
            class_hidden_states=torch.stack([no_class] * len(states))
            if hidden_states
            else None,
        )

    def _add_positions(self, x, n_freq):
        """Add a convolution over tokens (B, N, D) in the order of time."""
        by_time = x.unflatten(1, (n_freq, -1)).transpose(1, 2).flatten(1, 2)
        moved = self.convolution(by_time.transpose(1, 2)).transpose(1, 2)
        # An even kernel returns one token too many.
        moved = nn.functional.gelu(moved[:, : x.shape[1]])
        moved = moved.unflatten(1, (-1, n_freq)).transpose(1, 2).flatten(1, 2)
        return x + moved

    def _bias(self, place):
        """Return the bias (1 or B, H, N, N) for positions (1 or B, N)."""
        distance = place[:, None, :] - place[:, :, None]
        side = len(self.distance_bias) // 2
        exact = side // 2
        size = distance.abs()
        # For larger distances, buckets grow with the logarithm of the distance.
        ratio = (size.clamp(min=1).float() / exact).log()
        ratio = ratio / math.log(self.max_distance / exact)
        far = exact + (ratio * (side - exact)).long()
        bucket = torch.where(size < exact, size, far.clamp(max=side - 1))
        bucket = bucket + (distance > 0) * side
        bias = nn.functional.embedding(bucket, self.distance_bias)
        return bias.permute(0, 3, 1, 2)
