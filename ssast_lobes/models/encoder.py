"""The encoder: from features of any length to tokens.

It has transformer blocks, as in SSAST, or Mamba blocks, as in SSAMBA, with the
same patches, positions and outputs.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ssast_lobes.models import mamba
from ssast_lobes.models.patches import (
    Grid,
    PatchEmbedding,
    PositionTable,
    replace_masked,
)
from ssast_lobes.models.pooling import pool
from ssast_lobes.models.transformer import (
    NORM_EPS,
    PostNormBlock,
    TransformerBlock,
    init_transformer,
)
from ssast_lobes.utils.checks import (
    ArgumentError,
    flag,
    one_of,
    real,
    require,
    whole,
)
from ssast_lobes.utils.lengths import full_lengths, length_to_mask
from ssast_lobes.utils.presets import load_preset

# SSAST has two class tokens (DeiT's class and distillation token).
N_CLASS_TOKENS = 2
#: Kinds of blocks. A kind with attention takes the arguments of
#: `TransformerBlock`; docs/extending.md shows how to add one.
BLOCKS = {
    "attention": TransformerBlock,
    "attention_post_norm": PostNormBlock,
    "mamba": mamba.MambaBlock,
    "mamba_reference": mamba.PairedMambaBlock,
}
# Places of layer norms outside of the blocks.
NORMS = ("patches", "first", "last")


class EncoderOutput(NamedTuple):
    """Outputs of the encoder; all of them are 0 at padding.

    Arguments
    ---------
    tokens : torch.Tensor
        Patch tokens (B, N, D) after the final norm, in frequency-major order.
    is_token : torch.Tensor
        Boolean (B, N), True at tokens that are audio.
    class_tokens : torch.Tensor
        Class tokens (B, C, D) after the final norm; C is `n_class_tokens`.
    n_freq : int or None
        F', with N = F' * T'; None if tokens were dropped.
    hidden_states : torch.Tensor or None
        Patch tokens (L + 1, B, N, D): the input of the first block, then the
        output of each block. They are before the final norm, unless
        ``"normed"`` was requested.
    class_hidden_states : torch.Tensor or None
        Class tokens (L + 1, B, C, D) at the same depths as `hidden_states`.
    """

    tokens: torch.Tensor
    is_token: torch.Tensor
    class_tokens: torch.Tensor
    n_freq: int
    hidden_states: torch.Tensor = None
    class_hidden_states: torch.Tensor = None

    @property
    def patches(self):
        """Patch tokens on their grid, (B, F', T', D)."""
        return self._on_grid(self.tokens)

    def _on_grid(self, x):
        if self.n_freq is None:
            raise ValueError("tokens were dropped, so there is no grid")
        return x.unflatten(1, (self.n_freq, -1))

    @property
    def frames(self):
        """Vectors of time steps (B, T', D), the means over frequency."""
        return self.patches.mean(1)

    @property
    def n_time(self):
        """Valid time steps of each clip, (B,) int64."""
        return self._on_grid(self.is_token)[:, 0].sum(1)

    def clip(self, pooling="mean"):
        """Return one vector for each clip.

        Arguments
        ---------
        pooling : str
            ``"mean"`` (of the valid tokens), ``"class"`` (mean of the class
            tokens), ``"statistics"`` and others; see `pool`.

        Returns
        -------
        torch.Tensor
            Clip vectors (B, D), or larger ones; see `pool`.
        """
        return self.pool_tokens(self.tokens, self.class_tokens, pooling)

    def pool_tokens(self, tokens, class_tokens, pooling):
        """Return one vector for each clip from the tokens of a layer.

        Arguments
        ---------
        tokens, class_tokens : torch.Tensor
            Tokens of the layer, (B, N, D) and (B, C, D).
        pooling : str
            See `clip`.

        Returns
        -------
        torch.Tensor
            See `clip`.
        """
        return pool(tokens, self.is_token, class_tokens, pooling, self.n_freq)


class SpectrogramEncoder(nn.Module):
    """Blocks over spectrogram patches, for clips of any length.

    Gong et al., "SSAST: Self-Supervised Audio Spectrogram Transformer",
    AAAI 2022, and Shams et al., "SSAMBA: Self-Supervised Audio Representation
    Learning with Mamba State Space Model", SLT 2024. A clip's output never
    depends on the other clips of its batch: attention masks padding, scans skip
    it, and positions depend on each clip's own length.

    There are four kinds of blocks. ``"attention"`` is a transformer block.
    ``"attention_post_norm"`` has the norms after the sums, as in EAT (see
    `PostNormBlock`). ``"mamba"`` is a bidirectional Mamba mixer. It scans the
    tokens in order of time and, at each time, of frequency. One class token is
    at the start of the clip, the other at its end. ``"mamba_reference"`` is the
    graph of the released SSAMBA models. It has two mixers in each block (see
    `PairedMambaBlock`) and one class token before all other tokens. It scans
    all times of the lowest frequency first, and applies the final norm twice.

    Arguments
    ---------
    grid : Grid or dict, optional
        Patch geometry, or the arguments of a `Grid`; by default 128 mel bins in
        16 x 16 patches.
    dim : int
        Token size D.
    depth : int
        Number of blocks L.
    heads : int
        Number of attention heads; Mamba blocks ignore it.
    mlp_ratio : float
        Hidden size of the MLPs, divided by D; Mamba blocks ignore it.
    table_frames : int
        Number of frames that the position table spans. For longer clips, the
        table is interpolated.
    drop_path : float
        Rate of stochastic depth in the last block. The rate grows linearly from
        0 in the first block.
    table : tuple of int, optional
        Size (frequency, time) of the position table; by default that of the
        grid over `table_frames`. The size differs from the default if the
        weights were trained with another stride or number of mel bins.
    blocks : str
        ``"attention"``, ``"attention_post_norm"``, ``"mamba"`` or
        ``"mamba_reference"``.
    n_class_tokens : int, optional
        Number of class tokens C, 0 to 2, of an encoder with attention; by
        default 2.
    norms : list of str
        Layer norms outside of the blocks: of the ``"patches"`` before positions
        are added, of all tokens before the ``"first"`` block, and of all tokens
        after the ``"last"`` block. Most encoders have only the norm after the
        last block.
    crop : str
        Part of the position table that a short clip uses, ``"center"`` or
        ``"start"``; see `PositionTable`.
    qkv_bias : bool
        Whether queries, keys and values have a bias.
    checkpointing : bool
        Whether to store only the input of each block in training, and to
        recompute the rest in the backward pass. This takes about a third more
        time, but a fraction of the memory (Chen et al., "Training Deep Nets
        with Sublinear Memory Cost", 2016). The gradients are the same.

    Raises
    ------
    ValueError
        If `blocks` is unknown or does not support one of the other arguments.

    Example
    -------
    >>> encoder = SpectrogramEncoder(dim=32, depth=2, heads=2)
    >>> feats = torch.randn(2, 100, 128)
    >>> output = encoder(feats, n_frames=torch.tensor([100, 40]))
    >>> output.patches.shape, output.n_time.tolist()
    (torch.Size([2, 8, 7, 32]), [7, 3])
    """

    def __init__(
        self,
        grid=None,
        dim=192,
        depth=12,
        heads=3,
        mlp_ratio=4,
        table_frames=1024,
        drop_path=0.0,
        table=None,
        blocks="attention",
        checkpointing=False,
        n_class_tokens=None,
        norms=("last",),
        crop="center",
        qkv_bias=True,
    ):
        super().__init__()
        self.kind = one_of("blocks", blocks, tuple(BLOCKS))
        self.checkpointing = flag("checkpointing", checkpointing)
        for name, size in {"dim": dim, "depth": depth, "heads": heads}.items():
            whole(name, size)
        real("mlp_ratio", mlp_ratio, 0, inside=True)
        real("drop_path", drop_path, 0, 1)
        real("table_frames", table_frames, 1)
        self.grid = grid if isinstance(grid, Grid) else Grid(**(grid or {}))
        self.dim = dim
        self.heads = heads
        self.mlp_ratio = mlp_ratio
        self.table_frames = round(table_frames)
        self.patch_embedding = PatchEmbedding(self.grid, dim)
        own = (self.grid.n_freq, self.grid.n_time(self.table_frames))
        self.positions = PositionTable(*(table or own), dim, crop)
        right = isinstance(norms, list | tuple) and set(norms) <= set(NORMS)
        require(right, "norms", f"a list, each of {', '.join(NORMS)}", norms)
        self.norms = list(norms)
        whole("n_class_tokens", n_class_tokens, 0, 2, null=True)
        self.qkv_bias = flag("qkv_bias", qkv_bias)
        usual = 1 if blocks == "mamba_reference" else N_CLASS_TOKENS
        self.n_class_tokens = (
            usual if n_class_tokens is None else n_class_tokens
        )
        if self.scans and (self.n_class_tokens != usual or not qkv_bias):
            raise ArgumentError(
                f"blocks '{blocks}' need n_class_tokens={usual} and have no "
                "qkv_bias to leave out"
            )
        self.class_tokens = nn.Parameter(torch.empty(self.n_class_tokens, dim))
        self.class_positions = nn.Parameter(
            torch.empty(self.n_class_tokens, dim)
        )
        if self.n_class_tokens:
            nn.init.trunc_normal_(self.class_tokens, std=0.02)
            nn.init.trunc_normal_(self.class_positions, std=0.02)
        rates = [drop_path * n / max(1, depth - 1) for n in range(depth)]
        eps = mamba.NORM_EPS if self.scans else NORM_EPS
        block = BLOCKS[blocks]
        if not self.scans:
            self.blocks = nn.ModuleList(
                block(dim, heads, mlp_ratio, rate, qkv_bias) for rate in rates
            )
            self.blocks.apply(init_transformer)
        else:
            self.blocks = nn.ModuleList(block(dim, rate) for rate in rates)
            mamba.init_mamba(self.blocks)
        self.patch_norm, self.first_norm, self.norm = (
            nn.LayerNorm(dim, eps=eps) if place in norms else nn.Identity()
            for place in NORMS
        )

    @classmethod
    def from_size(
        cls,
        model_size="tiny",
        geometry="patch",
        n_mels=128,
        stride=None,
        **arguments,
    ):
        """Return an encoder of a named size and geometry.

        Arguments
        ---------
        model_size : str
            A file of ``hparams/model/``: ``"tiny"``, ``"small"``, ``"base"``,
            ``"large"`` (with `checkpointing`), or ``"micro"`` for CPUs. Mamba
            models are ``"ssamba_tiny"`` and so on. With the blocks of the
            released models, they are ``"ssamba_tiny_reference"`` and so on.
        geometry : str or tuple of int
            ``"patch"``, ``"frame"`` or a patch size; see `Grid.from_geometry`.
        n_mels : int
            Mel bins of the spectrogram.
        stride : tuple of int, optional
            Step between patches (mel bins, frames).
        **arguments
            Further arguments of the class.

        Returns
        -------
        SpectrogramEncoder

        Example
        -------
        >>> SpectrogramEncoder.from_size("micro", "frame").depth
        6
        """
        grid = Grid.from_geometry(geometry, n_mels, stride)
        return cls(grid, **{**load_preset("model", model_size), **arguments})

    @property
    def depth(self):
        """L, the number of blocks."""
        return len(self.blocks)

    @property
    def config(self):
        """The arguments that rebuild this encoder."""
        config = {
            "grid": self.grid.config,
            "dim": self.dim,
            "depth": self.depth,
            "table_frames": self.table_frames,
            "table": list(self.positions.table.shape[:2]),
            "blocks": self.kind,
        }
        if not self.scans:
            config.update(heads=self.heads, mlp_ratio=self.mlp_ratio)
        # Write only what differs from SSAST, so that the configurations of its
        # encoders do not change.
        usual = 1 if self.kind == "mamba_reference" else N_CLASS_TOKENS
        if self.n_class_tokens != usual:
            config["n_class_tokens"] = self.n_class_tokens
        if self.norms != ["last"]:
            config["norms"] = self.norms
        if self.positions.crop != "center":
            config["crop"] = self.positions.crop
        if not self.qkv_bias:
            config["qkv_bias"] = False
        return config

    @property
    def scans(self):
        """Whether the blocks are Mamba blocks."""
        return self.kind.startswith("mamba")

    @property
    def adaptable_layers(self):
        """Names of the linear layers that can have low-rank adapters."""
        if not self.scans:
            return ["blocks.*.qkv", "blocks.*.proj", "blocks.*.fc?"]
        return ["blocks.*.in_proj", "blocks.*.out_proj"]

    def fix_positions(self):
        """Fix the positions; see `PositionTable.fix_sincos`."""
        self.positions.fix_sincos()

    def forward(
        self,
        feats,
        n_frames=None,
        mask=None,
        mask_embedding=None,
        keep=None,
        hidden_states=False,
    ):
        """Encode a batch of spectrograms.

        By default the blocks see all tokens. With `mask` and `mask_embedding`,
        some tokens are *replaced*. With `keep`, some tokens are *dropped*, and
        a scan runs over the kept tokens in the order of the full grid.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels), which is cast to the type of the
            weights.
        n_frames : torch.Tensor, optional
            Valid frames (B,) int64. By default every frame counts as audio,
            including padding, as in the official code.
        mask : torch.Tensor, optional
            Boolean (B, F', T'), True at masked tokens.
        mask_embedding : torch.Tensor, optional
            Vector (D,) that replaces the masked tokens.
        keep : tuple of torch.Tensor, optional
            Indices (B, K) of the tokens to encode, and boolean (B, K), False
            at surplus entries.
        hidden_states : bool or str
            Whether to return the hidden states, too; ``"normed"`` returns them
            after the final norm.

        Returns
        -------
        EncoderOutput
            Outputs with N = F' * T', or N = K with `keep`.

        Raises
        ------
        ValueError
            If the features do not have the grid's number of mel bins, the mask
            does not have the shape of the patches, or there is a `mask` but no
            `mask_embedding`.
        """
        # Features are float32, but the weights may have another type.
        feats = feats.to(self.class_tokens.dtype)
        tokens, is_token = self._embed(feats, n_frames, mask, mask_embedding)
        if keep is not None:
            index, kept = keep
            tokens = tokens.gather(
                1, index[:, :, None].expand(-1, -1, self.dim)
            )
            is_token = is_token.gather(1, index) & kept
        head = self.class_tokens + self.class_positions
        # `len()` would fix the number of clips in an exported graph.
        x = torch.cat([head.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        visible = self._visible(is_token, padded=n_frames is not None or keep)
        order, context = self._arrangement(
            keep, visible, is_token, feats.shape[1]
        )
        x = self.first_norm(x)
        if order is not None:
            x = order.arrange(x)
        states = [x]
        for block in self.blocks:
            x = self._through(block, x, context)
            if hidden_states:
                states.append(x)
        normed = self.norm(x)
        if self.kind == "mamba_reference":
            normed = self.norm(normed)
        if hidden_states == "normed":
            states = [self.norm(x) for x in states]
        if order is not None:
            normed = order.restore(normed)
            states = [order.restore(x) for x in states]
        split = self.n_class_tokens
        is_audio = is_token[:, :, None]
        stack = torch.stack(states) if hidden_states else None
        return EncoderOutput(
            tokens=normed[:, split:] * is_audio,
            is_token=is_token,
            class_tokens=normed[:, :split],
            n_freq=self.grid.n_freq if keep is None else None,
            hidden_states=stack[:, :, split:] * is_audio
            if hidden_states
            else None,
            class_hidden_states=stack[:, :, :split] if hidden_states else None,
        )

    def _through(self, block, x, context):
        """Return the output of a block, with checkpointing if it is on."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, context, use_reentrant=False)
        return block(x, context)

    def _embed(self, feats, n_frames, mask, mask_embedding):
        """Return patch tokens with positions (B, N, D), and is_token (B, N)."""
        max_frames = feats.shape[1]
        if n_frames is None:
            n_frames = full_lengths(feats)
        else:
            feats = feats * length_to_mask(n_frames, max_frames)[:, :, None]
        patches = self.grid.unfold(feats)
        n_time, max_time = self.token_lengths(n_frames, max_frames)
        is_token = self.grid.is_token(n_time, max_time)
        tokens = self.patch_norm(self.patch_embedding(patches))
        if mask is not None:
            shape = self.grid.n_freq, max_time
            tokens = replace_masked(tokens, mask, mask_embedding, shape)
        positions = self.positions(self.grid.n_freq, n_time, max_time)
        return tokens + positions, is_token

    def token_lengths(self, n_frames, max_frames):
        """Return the number of patches along time of each clip, and T'.

        Arguments
        ---------
        n_frames : torch.Tensor
            Valid frames (B,).
        max_frames : int
            Frames T of the batch.

        Returns
        -------
        tuple
            The numbers (B,) int64, and T' of the batch, an int.
        """
        max_time = self.grid.n_time(max_frames)
        return self.grid.n_time(n_frames).clamp(max=max_time), max_time

    def _visible(self, is_token, padded):
        """Return the mask with class tokens (B, C + N), or None if all True."""
        if not padded:
            return None
        # Attention is faster without a mask. Reading the values of the mask
        # waits for the device, except on the CPU.
        if is_token.device.type == "cpu" and not torch.compiler.is_compiling():
            if bool(is_token.all()):
                return None
        return nn.functional.pad(is_token, (self.n_class_tokens, 0), value=True)

    def _arrangement(self, keep, visible, is_token, max_frames):
        """Return the `ScanOrder` of the tokens (or None) and their mask."""
        if not self.scans:
            return None, None if visible is None else visible[:, None, None, :]
        n_freq, n_time = self.grid.n_freq, self.grid.n_time(max_frames)
        if keep is None:
            place = torch.arange(n_freq * n_time, device=is_token.device)
            place = place.expand(is_token.shape[0], -1)
        else:
            place = keep[0]
        ends = [-1]
        if self.kind == "mamba":
            # Scan in order of time. In frequency-major order, the distance to
            # the neighboring frequency would grow with the clip.
            place = place % n_time * n_freq + place // n_time
            ends = [-1, n_freq * n_time]
        elif keep is None and visible is None:
            return None, None
        ends = [torch.full_like(place[:, :1], end) for end in ends]
        order = mamba.ScanOrder(torch.cat([*ends, place], dim=1), visible)
        return order, order.is_token
