"""Bidirectional Mamba blocks in plain PyTorch, for any device.

`selective_scan` is the recurrence of Mamba (Gu and Dao, "Mamba: Linear-Time
Sequence Modeling with Selective State Spaces", COLM 2024), exact in float32
and with memory that grows linearly with the number of tokens. `MambaMixer`
runs it in both directions, as Vision Mamba does (Zhu et al., ICML 2024), and
the blocks around it stand in the encoder where the transformer's do.
"""

import math
from functools import cache, partial
from itertools import compress

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ssast_lobes.transformer import drop_path

# Mamba's own sizes, which SSAMBA keeps (state-spaces/mamba, class Mamba).
STATE = 16
KERNEL = 4
EXPAND = 2
# Step sizes at the start.
DELTA_RANGE = (1e-3, 1e-1)
# PyTorch's value, with which the official models were trained.
NORM_EPS = 1e-5

# Entries of one work buffer of the scan. On a CPU it should stay in the
# cache; elsewhere what counts is to start few kernels.
_CACHE_ENTRIES = 2**19
_DEVICE_ENTRIES = 2**25
# Tokens in a segment on a CPU. Each segment keeps one state for the backward
# pass: with fewer tokens that would be as large as the states themselves.
_CPU_TOKENS = (16, 128)


def selective_scan(u, delta, A, B, C, D=None, reverse=False):
    """Mamba's recurrence over the tokens, for each clip and channel.

    ``h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t]`` and
    ``y[t] = C[t] h[t] + D u[t]``, with ``h = 0`` before the first token.
    A token whose `delta` is 0 leaves the state exactly as it is: this is how
    padding is passed over.

    Computed in float32 (float64 stays float64), under autocast too. The
    states of all tokens (B, N, E, S) never exist at once, in the backward
    pass either: the sequence is walked in segments, each of which starts from
    the state that the one before it left, and the backward pass computes the
    states of one segment at a time again. Decays are only ever multiplied,
    never divided by, so that nothing overflows at any length. On CUDA the
    kernel of the package ``mamba_ssm`` is used where it is installed.

    Arguments
    ---------
    u : torch.Tensor
        Inputs (B, N, E).
    delta : torch.Tensor
        Step sizes (B, N, E), 0 or more.
    A : torch.Tensor
        (E, S), negative.
    B, C : torch.Tensor
        What goes into the state and what is read from it, (B, N, S) each.
    D : torch.Tensor, optional
        (E,), the share of the input that goes straight to the output.
    reverse : bool
        Walk from the last token to the first.

    Returns
    -------
    torch.Tensor
        (B, N, E), float32 or float64.

    Example
    -------
    >>> x = torch.ones(1, 3, 1)
    >>> A = torch.tensor([[-math.log(2)]])  # half of the state is kept
    >>> selective_scan(x, x, A, x, x).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    >>> selective_scan(x, x, A, x, x, reverse=True).flatten()
    tensor([1.7500, 1.5000, 1.0000])
    """
    if D is None:
        D = u.new_zeros(u.shape[2])
    return _run(_as_they_are, reverse, u, delta, A, B, C, D)


def _as_they_are(*tensors):
    return [_exact(x) for x in tensors]


def _exact(x):
    return x if x.dtype == torch.float64 else x.float()


def _run(prepare, reverse, *tensors):
    """Scan what `prepare` makes of some tensors, by the best way there is."""
    # torch.compile must not unroll the loops.
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_run)(prepare, reverse, *tensors)
    x = tensors[0]
    if x.is_cuda and x.dtype != torch.float64 and fused_scan() is not None:
        return _recomputed(_kernel_scan, prepare, reverse, *tensors)
    return _Scan.apply(prepare, reverse, *tensors)


@cache
def fused_scan():
    """The scan kernel of ``mamba_ssm``.

    Returns
    -------
    callable or None
        ``selective_scan_fn``, or None where the package does not import.
    """
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def _kernel_scan(prepare, reverse, *tensors):
    """`_run` by the kernel, which wants the tokens in the last axis."""
    with _autocast_off(tensors[0]):
        u, delta, A, B, C, D = prepare(*tensors)
        inputs = [x.transpose(1, 2) for x in (u, delta, B, C)]
        if reverse:
            inputs = [x.flip(2) for x in inputs]
        u, delta, B, C = (x.contiguous() for x in inputs)
        y = fused_scan()(u, delta, A.contiguous(), B, C, D)
    return (y.flip(2) if reverse else y).transpose(1, 2)


def _recomputed(function, *arguments):
    """Call a function of which only the arguments are kept for backward."""
    return checkpoint(
        function, *arguments, use_reentrant=False, preserve_rng_state=False
    )


def _autocast_off(x):
    return torch.autocast(x.device.type, enabled=False)


class _Walk:
    """A sequence in the order of its scan: segments of tokens, time-major.

    The states of a segment stand in one buffer (T, B, S, E), channels last,
    so that every operation runs along memory. Where starting an operation
    costs more than doing it, a segment is cut further into chunks: a loop
    over the places of a chunk, for all chunks at once, then one over the
    chunks that hands the state on.
    """

    def __init__(self, u, A, reverse):
        batch, self.tokens, channels = u.shape
        self.reverse = reverse
        self.slab = (batch, A.shape[1], channels)
        self.decay = A.t().contiguous()
        # Powers of 2 take a CPU less than half the time of powers of e.
        self.octaves = self.decay / math.log(2)
        self.segment, self.chunk = _plan(
            self.tokens, math.prod(self.slab), u.device.type
        )
        self.starts = range(0, self.tokens, self.segment)
        self.empty = u.new_empty

    def buffer(self, extra=0):
        """Room for the states of a segment, and of `extra` more tokens."""
        longest = min(self.segment, self.tokens)
        longest += self._surplus(longest) + extra
        return self.empty(longest, *self.slab)

    def cut(self, x, start):
        """The tokens of a segment of (B, N, K): (T, B, K)."""
        part = x[:, self._places(start)]
        part = (part.flip(1) if self.reverse else part).transpose(0, 1)
        surplus = self._surplus(part.shape[0])
        # Zeros: a step of size 0 lets the state pass.
        return nn.functional.pad(part, (0, 0, 0, 0, 0, surplus))

    def put(self, x, start, part):
        """Write a segment (T, B, K) into its place of (B, N, K)."""
        places = self._places(start)
        part = part[: places.stop - places.start].transpose(0, 1)
        x[:, places] = part.flip(1) if self.reverse else part

    def _surplus(self, tokens):
        """Tokens that a segment lacks to be whole chunks."""
        return -tokens % self.chunk if tokens > self.chunk else 0

    def _places(self, start):
        stop = min(start + self.segment, self.tokens)
        if self.reverse:
            return slice(self.tokens - stop, self.tokens - start)
        return slice(start, stop)

    def decays(self, delta, out):
        """``exp(delta A)`` of a segment, (T, B, S, E)."""
        out = out[: len(delta)]
        return torch.mul(delta[:, :, None], self.octaves, out=out).exp2_()

    def states(self, start, decays, delta, u, B, out):
        """States of a segment (T + 1, B, S, E), from the one before it."""
        states = out[: len(delta) + 1]
        states[0] = start
        _outer(B, delta * u, states[1:])
        inner, factors = self._chunks(states[1:]), self._chunks(decays)
        if len(inner) == 1:
            _chain(states.unbind(0), decays.unbind(0))
            return states
        _chain(inner.unbind(1), factors.unbind(1)[1:])
        passed = self._passed(self._chunks(delta).cumsum(1))
        ends = states[:: inner.shape[1]]
        _chain(ends.unbind(0), passed[:, -1].unbind(0))
        inner[:, :-1].addcmul_(passed[:, :-1], ends[:-1, None])
        return states

    def gradients(self, end, decays, delta, C, gradient, out):
        """Gradients of a segment's states, and of the state before it.

        `end` is the gradient of the last state as far as later segments
        make it, `gradient` that of the output.
        """
        grads = _outer(C, gradient, out[: len(delta)])
        inner, factors = self._chunks(grads), self._chunks(decays)
        if len(inner) == 1:
            grads[-1] += end
            _chain(grads.unbind(0)[::-1], decays.unbind(0)[:0:-1])
            return grads, decays[0] * grads[0]
        _chain(inner.unbind(1)[::-1], factors.unbind(1)[:0:-1])
        steps = self._chunks(delta)
        # Gradient of the state before each chunk, and after the last.
        before = torch.cat([factors[:, 0] * inner[:, 0], end[None]])
        whole = self._passed(steps.sum(1))
        _chain(before.unbind(0)[::-1], whole.unbind(0)[::-1])
        later = steps.flip(1).cumsum(1).flip(1) - steps
        inner.addcmul_(self._passed(later), before[1:, None])
        return grads, before[0]

    def _chunks(self, x):
        return x.unflatten(0, (-1, min(self.chunk, len(x))))

    def _passed(self, delta):
        """Share of the state that is left after steps of this sum."""
        return (delta.unsqueeze(-2) * self.octaves).exp2_()


def _plan(tokens, entries, device):
    """Tokens of a segment and of a chunk, for so many entries a token."""
    if device == "cpu":
        fewest, most = _CPU_TOKENS
        segment = min(most, max(fewest, _CACHE_ENTRIES // entries))
        # One chunk: a call costs less than handing the states on.
        return segment, segment
    segment = min(tokens, max(64, _DEVICE_ENTRIES // entries))
    chunk = math.isqrt(segment)
    return chunk * -(-segment // chunk), chunk


def _outer(row, column, out):
    """Products (T, B, S, E) of (T, B, S) and (T, B, E)."""
    return torch.mul(row[..., None], column[:, :, None], out=out)


def _rows(rows, matrices):
    """Products (T, B, J) of (T, B, I) and (T, B, I, J)."""
    # A row on the left: a column on the right takes ten times as long.
    return (rows[:, :, None] @ matrices)[:, :, 0]


def _chain(rows, factors):
    """Add to each row the one before it times its factor, in turn."""
    for before, row, factor in zip(rows, rows[1:], factors, strict=False):
        row.addcmul_(factor, before)


def _scan(u, delta, A, B, C, D, reverse):
    """Outputs of `selective_scan`, and the states before each segment."""
    walk = _Walk(u, A, reverse)
    decay_buffer, state_buffer = walk.buffer(), walk.buffer(1)
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    kept = walk.empty(len(walk.starts), *walk.slab)
    last = torch.zeros_like(kept[0])
    for number, start in enumerate(walk.starts):
        steps, x, b, c = (walk.cut(part, start) for part in (delta, u, B, C))
        kept[number] = last
        decays = walk.decays(steps, decay_buffer)
        states = walk.states(last, decays, steps, x, b, state_buffer)
        walk.put(y, start, _rows(c, states[1:]))
        last = states[-1]
    return y.addcmul_(u, D), kept


def _scan_gradients(u, delta, A, B, C, D, reverse, kept, gradient):
    """Gradients of what `_scan` takes, from that of its outputs."""
    walk = _Walk(u, A, reverse)
    decay_buffer, state_buffer = walk.buffer(), walk.buffer(1)
    grad_buffer = walk.buffer()
    to_u, to_delta, to_B, to_C = map(torch.empty_like, (u, delta, B, C))
    to_decay = torch.zeros_like(walk.decay)
    end = torch.zeros_like(kept[0])
    for number, start in reversed(list(enumerate(walk.starts))):
        steps, x, b, c, out = (
            walk.cut(part, start) for part in (delta, u, B, C, gradient)
        )
        decays = walk.decays(steps, decay_buffer)
        states = walk.states(kept[number], decays, steps, x, b, state_buffer)
        grads, end = walk.gradients(end, decays, steps, c, out, grad_buffer)
        walk.put(to_C, start, _rows(out, states[1:].mT))
        walk.put(to_B, start, _rows(steps * x, grads.mT))
        to_input = _rows(b, grads)
        walk.put(to_u, start, to_input * steps)
        # From here on the gradients of the exponents, delta A.
        grads.mul_(decays).mul_(states[:-1])
        to_steps = torch.mul(grads, walk.decay, out=decays).sum(2)
        walk.put(to_delta, start, to_steps.addcmul_(to_input, x))
        to_decay += grads.mul_(steps[:, :, None]).sum((0, 1))
    to_u.addcmul_(gradient, D)
    to_D = (gradient * u).sum((0, 1))
    return to_u, to_delta, to_decay.t(), to_B, to_C, to_D


class _Scan(torch.autograd.Function):
    """The scan over what `prepare` makes of some tensors.

    For the backward pass only those tensors are kept, and a state a segment:
    `prepare` is called there once more.
    """

    @staticmethod
    def forward(ctx, prepare, reverse, *tensors):
        with _autocast_off(tensors[0]):
            y, kept = _scan(*prepare(*tensors), reverse)
        ctx.prepare, ctx.reverse = prepare, reverse
        ctx.save_for_backward(kept, *tensors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        kept, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        with _autocast_off(gradient):
            with torch.enable_grad():
                leaves = [
                    x if x is None else x.detach().requires_grad_(need)
                    for x, need in zip(tensors, needs, strict=True)
                ]
                made = ctx.prepare(*leaves)
            plain = [x.detach() for x in made]
            grads = _scan_gradients(*plain, ctx.reverse, kept, gradient)
            learns = [x.requires_grad for x in made]
            found = torch.autograd.grad(
                list(compress(made, learns)),
                list(compress(leaves, needs)),
                list(compress(grads, learns)),
            )
        found = iter(found)
        return None, None, *(next(found) if need else None for need in needs)


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
        # As in Mamba: step sizes spread over their range, evenly in the log.
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        low, high = map(math.log, DELTA_RANGE)
        delta = torch.empty(channels).uniform_(low, high).exp()
        # The inverse of softplus.
        self.dt_proj.bias.data = delta + (-(-delta).expm1()).log()

    def forward(self, x, shown=None, reverse=False):
        """Mix each channel over the tokens.

        Arguments
        ---------
        x : torch.Tensor
            (B, N, E), 0 at padding.
        shown : torch.Tensor, optional
            (B, N, 1), 1 at tokens, 0 at the padding, which comes after them.
        reverse : bool
            From the last token to the first.

        Returns
        -------
        torch.Tensor
            (B, N, E), float32 or float64; arbitrary at padding.
        """
        return _run(
            partial(_scan_inputs, reverse),
            reverse,
            x,
            shown,
            self.conv.weight,
            self.conv.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            self.A_log,
            self.D,
        )


def _scan_inputs(reverse, x, shown, *weights):
    """What `selective_scan` takes, from the input of a direction."""
    # Weights in half precision too are computed with in float32.
    x, *weights = _as_they_are(x, *weights)
    kernel, bias, x_proj, dt_proj, dt_bias, A_log, D = weights
    u = nn.functional.silu(_convolve(x, kernel, bias, reverse))
    rank, state = dt_proj.shape[1], A_log.shape[1]
    maps = nn.functional.linear(u, x_proj)
    steps, B, C = maps.split([rank, state, state], dim=2)
    delta = nn.functional.linear(steps, dt_proj, dt_bias)
    delta = nn.functional.softplus(delta)
    if shown is not None:
        # The state passes over padding as it is.
        delta = delta * shown
    return u, delta, -A_log.exp(), B, C, D


def _convolve(x, kernel, bias, reverse):
    """Depthwise convolution over each token and those that came before it.

    (B, N, E), channels last: a few shifted sums, faster than transposing for
    ``conv1d`` and back.
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
    """Bidirectional Mamba layer: both directions share the projections.

    Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with
    Bidirectional State Space Model", ICML 2024: one projection in, one gate
    and one projection out; a convolution and a scan of its own for each
    direction; their outputs are averaged.

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

    def forward(self, x, shown=None, flipped=False):
        """Mix the tokens.

        Arguments
        ---------
        x : torch.Tensor
            Tokens (B, N, D), 0 at padding.
        shown : torch.Tensor, optional
            (B, N, 1), 1 at tokens, 0 at the padding, which comes after them.
        flipped : bool
            Treat each clip as if its tokens stood in opposite order: the
            directions change places.

        Returns
        -------
        torch.Tensor
            (B, N, D).
        """
        x, gate = self.in_proj(x).chunk(2, dim=2)
        ahead = self.ahead(x, shown, reverse=flipped)
        back = self.back(x, shown, reverse=not flipped)
        return _recomputed(self._leave, ahead + back, gate)

    def _leave(self, mixed, gate):
        # Scans are float32 where the projections may be in half precision.
        mixed = mixed * nn.functional.silu(gate) / 2
        return self.out_proj(mixed.to(gate.dtype))


class MambaBlock(nn.Module):
    """Pre-norm block: a bidirectional mixer added to the stream.

    Arguments
    ---------
    dim : int
        Token size D.
    drop_path : float
        See `TransformerBlock`.

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

    def forward(self, x, shown=None, flipped=False):
        """Tokens (B, N, D) to (B, N, D); the rest as in `MambaMixer`."""
        normed = self.norm(x)
        if shown is not None:
            # Or the convolution would look beyond the end of a clip.
            normed = normed * shown.to(normed.dtype)
        branch = self.mixer(normed, shown, flipped)
        return x + drop_path(branch, self.drop_path, self.training)


class PairedMambaBlock(nn.Module):
    """Block of the released SSAMBA models: two blocks side by side.

    The second sees the tokens in opposite order. Their outputs are added,
    and with them their residuals: the stream doubles in every block. Each
    mixer is bidirectional already, so each block scans four times.

    Arguments
    ---------
    dim : int
        Token size D.
    drop_path : float
        See `TransformerBlock`.

    Example
    -------
    >>> PairedMambaBlock(16)(torch.zeros(1, 5, 16)).shape
    torch.Size([1, 5, 16])
    """

    def __init__(self, dim, drop_path=0.0):
        super().__init__()
        self.straight = MambaBlock(dim, drop_path)
        self.flipped = MambaBlock(dim, drop_path)

    def forward(self, x, shown=None):
        """Tokens (B, N, D) to (B, N, D); `shown` as in `MambaMixer`."""
        return self.straight(x, shown) + self.flipped(x, shown, flipped=True)


def init_mamba(blocks):
    """Scale the output projections down by the root of their number.

    As Mamba initialises them (after GPT-2), so that the stream does not grow
    with the depth.

    Arguments
    ---------
    blocks : torch.nn.Module
        All blocks of the model, changed in place.
    """
    mixers = [x for x in blocks.modules() if isinstance(x, MambaMixer)]
    with torch.no_grad():
        for mixer in mixers:
            mixer.out_proj.weight /= math.sqrt(len(mixers))


class ScanOrder:
    """Where each token stands in the scan, and the way back.

    A scan has no mask: what must not be seen stands behind all tokens of its
    clip, and is passed over there.

    Arguments
    ---------
    place : torch.Tensor
        Numbers (B, N) to sort the tokens by.
    valid : torch.Tensor, optional
        Boolean (B, N), False at tokens that must not be seen.

    Example
    -------
    >>> valid = torch.tensor([[True, False, True]])
    >>> order = ScanOrder(torch.tensor([[2, 1, 0]]), valid)
    >>> scanned = order.arrange(torch.tensor([[[0.0], [1.0], [2.0]]]))
    >>> scanned.flatten(), order.shown.flatten()
    (tensor([2., 0., 1.]), tensor([1., 1., 0.]))
    >>> order.restore(scanned).flatten()
    tensor([0., 1., 2.])
    """

    def __init__(self, place, valid=None):
        if valid is not None:
            last = torch.iinfo(place.dtype).max
            place = place.masked_fill(~valid, last)
        self._index = place.argsort(dim=1, stable=True)
        self._back = self._index.argsort(dim=1)
        self.shown = None
        if valid is not None:
            shown = valid.gather(1, self._index)
            self.shown = shown[:, :, None].float()

    def arrange(self, x):
        """Tokens (B, N, D) in the order of the scan."""
        return x.gather(1, self._index[:, :, None].expand_as(x))

    def restore(self, x):
        """Tokens (B, N, D) back where they were."""
        return x.gather(1, self._back[:, :, None].expand_as(x))
