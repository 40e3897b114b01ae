"""The selective scan of Mamba, with its gradient.

Gu and Dao, "Mamba: Linear-time sequence modeling with selective state spaces",
COLM 2024.
"""

import math
from functools import cache
from itertools import compress

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

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
    A token whose `delta` is 0 leaves the state exactly as it is: so the scan
    skips padding.

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
        Weights into the state and out of it, (B, N, S) each.
    D : torch.Tensor, optional
        (E,), the weight of the input that goes straight to the output.
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
    return run_scan(as_they_are, reverse, u, delta, A, B, C, D)


def as_they_are(*tensors):
    """Return tensors in float32, or in float64 where they are.

    Arguments
    ---------
    *tensors : torch.Tensor
        Tensors of any floating-point type.

    Returns
    -------
    list of torch.Tensor

    Example
    -------
    >>> [x.dtype for x in as_they_are(torch.ones(1).half())]
    [torch.float32]
    """
    return [_exact(x) for x in tensors]


def _exact(x):
    return x if x.dtype == torch.float64 else x.float()


def run_scan(prepare, reverse, *tensors):
    """Scan the outputs of `prepare`, in the fastest way there is.

    Arguments
    ---------
    prepare : callable
        Takes `tensors`; returns u, delta, A, B, C and D of `selective_scan`.
        It is called again in the backward pass.
    reverse : bool
        See `selective_scan`.
    *tensors : torch.Tensor
        Any number; gradients flow to them.

    Returns
    -------
    torch.Tensor
        (B, N, E).

    Example
    -------
    >>> x = torch.ones(1, 3, 1)
    >>> A, D = -torch.ones(1, 1), torch.zeros(1)
    >>> run_scan(as_they_are, False, x, x, A, x, x, D).shape
    torch.Size([1, 3, 1])
    """
    # torch.compile must not unroll the loops.
    if torch.compiler.is_compiling():
        return torch.compiler.disable(run_scan)(prepare, reverse, *tensors)
    x = tensors[0]
    if x.is_cuda and x.dtype != torch.float64 and fused_scan() is not None:
        return recomputed(_kernel_scan, prepare, reverse, *tensors)
    return _Scan.apply(prepare, reverse, *tensors)


@cache
def fused_scan():
    """Return the scan kernel of ``mamba_ssm``.

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
    """`run_scan` by the kernel, which wants the tokens in the last axis."""
    with _autocast_off(tensors[0]):
        u, delta, A, B, C, D = prepare(*tensors)
        inputs = [x.transpose(1, 2) for x in (u, delta, B, C)]
        if reverse:
            inputs = [x.flip(2) for x in inputs]
        u, delta, B, C = (x.contiguous() for x in inputs)
        y = fused_scan()(u, delta, A.contiguous(), B, C, D)
    return (y.flip(2) if reverse else y).transpose(1, 2)


def recomputed(function, *arguments):
    """Call a function again in the backward pass: only its arguments are kept.

    Arguments
    ---------
    function : callable
        Takes and gives tensors.
    *arguments
        Arguments of the function.

    Returns
    -------
    torch.Tensor

    Example
    -------
    >>> recomputed(torch.exp, torch.zeros(1))
    tensor([1.])
    """
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
        """Return a buffer for a segment's states, and `extra` more tokens."""
        longest = min(self.segment, self.tokens)
        longest += self._surplus(longest) + extra
        return self.empty(longest, *self.slab)

    def cut(self, x, start):
        """Return the tokens of a segment of (B, N, K), as (T, B, K)."""
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
        """Return the number of tokens a segment lacks to be whole chunks."""
        return -tokens % self.chunk if tokens > self.chunk else 0

    def _places(self, start):
        stop = min(start + self.segment, self.tokens)
        if self.reverse:
            return slice(self.tokens - stop, self.tokens - start)
        return slice(start, stop)

    def decays(self, delta, out):
        """Return ``exp(delta A)`` of a segment, (T, B, S, E)."""
        out = out[: len(delta)]
        return torch.mul(delta[:, :, None], self.octaves, out=out).exp2_()

    def states(self, start, decays, delta, u, B, out):
        """Return a segment's states (T + 1, B, S, E), from the one before."""
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
        """Return the fraction of the state that is left after these steps."""
        return (delta.unsqueeze(-2) * self.octaves).exp2_()


def _plan(tokens, entries, device):
    """Return the tokens of a segment and of a chunk."""
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
    # The row stands on the left: a column on the right is ten times slower.
    return (rows[:, :, None] @ matrices)[:, :, 0]


def _chain(rows, factors):
    """Add to each row the one before it times its factor, in turn."""
    for before, row, factor in zip(rows, rows[1:], factors, strict=False):
        row.addcmul_(factor, before)


def _scan(u, delta, A, B, C, D, reverse):
    """Return the outputs, and the states before each segment."""
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
    """Return the gradients of the inputs of `_scan`."""
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
