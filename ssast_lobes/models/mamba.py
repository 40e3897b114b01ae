"""Bidirectional Mamba blocks in plain PyTorch, for any device.

`selective_scan` is the recurrence of Mamba (Gu and Dao, "Mamba: Linear-Time
Sequence Modeling with Selective State Spaces", COLM 2024). It is exact in
float32, and its memory grows linearly with the number of tokens. `MambaMixer`
runs it in both directions, as Vision Mamba does (Zhu et al., ICML 2024). In the
encoder, the blocks with this mixer replace the transformer blocks.
"""

import math
from functools import partial

import torch
from torch import nn

from ssast_lobes.models.selective_scan import as_they_are, recomputed, run_scan
from ssast_lobes.models.transformer import drop_path

# Mamba's own sizes, which SSAMBA uses (state-spaces/mamba, class Mamba).
STATE = 16
KERNEL = 4
EXPAND = 2

# Range of the initial step sizes.
DELTA_RANGE = (1e-3, 1e-1)

# PyTorch's default epsilon, with which the official models were trained.
NORM_EPS = 1e-5


class MambaDirection(nn.Module):
    """One direction of a mixer: convolution, input-dependent maps, scan.

    Arguments
    ---------
    dim : int
        Token size D of the model; there are E = 2 D channels.

    Example
    -------
    >>> MambaDirection(16)(torch.zeros(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    def __init__(self, dim):
        super().__init__()
        channels, rank = EXPAND * dim, math.ceil(dim / 16)
        self.conv = nn.Conv1d(channels, channels, KERNEL, groups=channels)
        self.x_proj = nn.Linear(channels, rank + 2 * STATE, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(
            torch.arange(1.0, STATE + 1).log().repeat(channels, 1)
        )
        self.D = nn.Parameter(torch.ones(channels))
        # As in Mamba, initial step sizes are uniform over their range on a log
        # scale.
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        low, high = map(math.log, DELTA_RANGE)
        delta = torch.empty(channels).uniform_(low, high).exp()
        # The bias is the inverse softplus of the step size.
        self.dt_proj.bias.data = delta + (-(-delta).expm1()).log()

    def forward(self, x, is_token=None, reverse=False):
        """Mix each channel over the tokens.

        Arguments
        ---------
        x : torch.Tensor
            Channels (B, N, E), 0 at padding.
        is_token : torch.Tensor, optional
            (B, N, 1), 1 at tokens, 0 at the padding, which comes after them.
        reverse : bool
            Whether to scan from the last token to the first.

        Returns
        -------
        torch.Tensor
            (B, N, E), float32 or float64; arbitrary at padding.
        """
        return run_scan(
            partial(_scan_inputs, reverse),
            reverse,
            x,
            is_token,
            self.conv.weight,
            self.conv.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            self.A_log,
            self.D,
        )


def _scan_inputs(reverse, x, is_token, *weights):
    """Return the arguments of `selective_scan` for a direction."""
    # The scan needs float32, even if the weights are in half precision.
    x, *weights = as_they_are(x, *weights)
    kernel, bias, x_proj, dt_proj, dt_bias, A_log, D = weights
    u = nn.functional.silu(_convolve(x, kernel, bias, reverse))
    rank, state = dt_proj.shape[1], A_log.shape[1]
    maps = nn.functional.linear(u, x_proj)
    rank_maps, B, C = maps.split([rank, state, state], dim=2)
    delta = nn.functional.linear(rank_maps, dt_proj, dt_bias)
    delta = nn.functional.softplus(delta)
    if is_token is not None:
        # A step of size 0 keeps the state, so padding does not change it.
        delta = delta * is_token
    return u, delta, -A_log.exp(), B, C, D


def _convolve(x, kernel, bias, reverse):
    """Return a depthwise convolution over each token and those before it.

    For (B, N, E), with channels last, a few shifted sums are faster than
    ``conv1d`` between two transpositions.
    """
    size, tokens = kernel.shape[2], x.shape[1]
    behind = (0, 0, 0, size - 1) if reverse else (0, 0, size - 1, 0)
    x = nn.functional.pad(x, behind)
    for place in range(size):
        first = size - 1 - place if reverse else place
        shifted = x[:, first : first + tokens]
        bias = torch.addcmul(bias, shifted, kernel[:, 0, place])
    return bias


class MambaMixer(nn.Module):
    """Bidirectional Mamba layer: one projection for both directions.

    Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with
    Bidirectional State Space Model", ICML 2024. Both directions share the input
    projection, the gate and the output projection. Each direction has its own
    convolution and scan, and the outputs of both directions are averaged.

    Arguments
    ---------
    dim : int
        Token size D.

    Example
    -------
    >>> MambaMixer(16)(torch.zeros(1, 5, 16)).shape
    torch.Size([1, 5, 16])
    """

    def __init__(self, dim):
        super().__init__()
        self.in_proj = nn.Linear(dim, 2 * EXPAND * dim, bias=False)
        self.ahead = MambaDirection(dim)
        self.back = MambaDirection(dim)
        self.out_proj = nn.Linear(EXPAND * dim, dim, bias=False)

    def forward(self, x, is_token=None, flipped=False):
        """Mix the tokens.

        Arguments
        ---------
        x : torch.Tensor
            Tokens (B, N, D), 0 at padding.
        is_token : torch.Tensor, optional
            (B, N, 1), 1 at tokens, 0 at the padding, which comes after them.
        flipped : bool
            Whether to swap the directions, as if the tokens of each clip were
            in reverse order.

        Returns
        -------
        torch.Tensor
            (B, N, D).
        """
        x, gate = self.in_proj(x).chunk(2, dim=2)
        ahead = self.ahead(x, is_token, reverse=flipped)
        back = self.back(x, is_token, reverse=not flipped)
        return recomputed(self._leave, ahead + back, gate)

    def _leave(self, mixed, gate):
        # Scans are in float32, but the projections may be in half precision.
        mixed = mixed * nn.functional.silu(gate) / 2
        return self.out_proj(mixed.to(gate.dtype))


class MambaBlock(nn.Module):
    """Pre-norm block: a bidirectional mixer added to the stream.

    Arguments
    ---------
    dim : int
        Token size D.
    drop_path : float
        Fraction of clips that skip the mixer in training (stochastic depth).

    Example
    -------
    >>> MambaBlock(16)(torch.zeros(1, 5, 16)).shape
    torch.Size([1, 5, 16])
    """

    def __init__(self, dim, drop_path=0.0):
        super().__init__()
        self.drop_path = drop_path
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mixer = MambaMixer(dim)

    def forward(self, x, is_token=None, flipped=False):
        """Transform tokens (B, N, D); other arguments as in `MambaMixer`."""
        normed = self.norm(x)
        if is_token is not None:
            # Without this, the convolution would see padding after a clip.
            normed = normed * is_token.to(normed.dtype)
        branch = self.mixer(normed, is_token, flipped)
        return x + drop_path(branch, self.drop_path, self.training)


class PairedMambaBlock(nn.Module):
    """Block of the released SSAMBA models: two blocks in parallel.

    The second block sees the tokens in reverse order. The outputs of both
    blocks are added, including the residuals, so the stream doubles in every
    paired block. Each mixer is bidirectional already, so a paired block scans
    four times.

    Arguments
    ---------
    dim : int
        Token size D.
    drop_path : float
        Fraction of clips that skip the mixer in training (stochastic depth).

    Example
    -------
    >>> PairedMambaBlock(16)(torch.zeros(1, 5, 16)).shape
    torch.Size([1, 5, 16])
    """

    def __init__(self, dim, drop_path=0.0):
        super().__init__()
        self.straight = MambaBlock(dim, drop_path)
        self.flipped = MambaBlock(dim, drop_path)

    def forward(self, x, is_token=None):
        """Transform tokens (B, N, D); `is_token` as in `MambaMixer`."""
        return self.straight(x, is_token) + self.flipped(
            x, is_token, flipped=True
        )


def init_mamba(blocks):
    """Divide the output projections by the square root of their number.

    Mamba's initialization does this, as GPT-2's does, so that the stream does
    not grow with the depth.

    Arguments
    ---------
    blocks : torch.nn.Module
        All blocks of the model, which are changed in place.
    """
    mixers = [x for x in blocks.modules() if isinstance(x, MambaMixer)]
    with torch.no_grad():
        for mixer in mixers:
            mixer.out_proj.weight /= math.sqrt(len(mixers))


class ScanOrder:
    """The order of the tokens in a scan, and its inverse.

    A scan has no mask. So the tokens that must not be seen come after all
    others of their clip, where the scan skips them.

    Arguments
    ---------
    place : torch.Tensor
        Numbers (B, N) by which the tokens are sorted.
    is_token : torch.Tensor, optional
        Boolean (B, N), False at tokens that must not be seen.

    Example
    -------
    >>> is_token = torch.tensor([[True, False, True]])
    >>> order = ScanOrder(torch.tensor([[2, 1, 0]]), is_token)
    >>> scanned = order.arrange(torch.tensor([[[0.0], [1.0], [2.0]]]))
    >>> scanned.flatten(), order.is_token.flatten()
    (tensor([2., 0., 1.]), tensor([1., 1., 0.]))
    >>> order.restore(scanned).flatten()
    tensor([0., 1., 2.])
    """

    def __init__(self, place, is_token=None):
        if is_token is not None:
            last = torch.iinfo(place.dtype).max
            place = place.masked_fill(~is_token, last)
        self._index = place.argsort(dim=1, stable=True)
        self._back = self._index.argsort(dim=1)
        self.is_token = None
        if is_token is not None:
            is_token = is_token.gather(1, self._index)
            self.is_token = is_token[:, :, None].float()

    def arrange(self, x):
        """Return tokens (B, N, D) in the order of the scan."""
        return x.gather(1, self._index[:, :, None].expand_as(x))

    def restore(self, x):
        """Return tokens (B, N, D) in their original order."""
        return x.gather(1, self._back[:, :, None].expand_as(x))
