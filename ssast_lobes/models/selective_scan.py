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

# Number of entries in a work buffer of the scan. On a CPU the buffer should fit
# into the cache. Elsewhere the scan should start few kernels.
_CACHE_ENTRIES = 2**19
_DEVICE_ENTRIES = 2**25

# Fewest and most tokens in a segment on a CPU. Each segment stores one state
# for the backward pass, so the states of short segments would fill the memory.
_CPU_TOKENS = (16, 128)


def selective_scan(u, delta, A, B, C, D=None, reverse=False):
    """Compute Mamba's recurrence over the tokens, for each clip and channel.

    The recurrence is ``h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t]`` and
    ``y[t] = C[t] h[t] + D u[t]``, with ``h = 0`` before the first token. The
    scan skips padding, since a `delta` of 0 leaves the state exactly unchanged.

    The scan computes in float32 (float64 stays float64), also under autocast.
    The states of all tokens (B, N, E, S) never exist at once. The scan works in
    segments, and each segment starts from the last state of the previous one.
    The backward pass recomputes the states, one segment at a time. The scan
    multiplies by decays and never divides by them, so that nothing overflows at
    any length. On CUDA the kernel of the package ``mamba_ssm`` is used if it is
    installed, except for float64.

    Arguments
    ---------
    u : torch.Tensor
        Inputs (B, N, E).
    delta : torch.Tensor
        Step sizes (B, N, E), 0 or more.
    A : torch.Tensor
        Rates of decay (E, S), negative.
    B, C : torch.Tensor
        Weights into the state and out of it, (B, N, S) each.
    D : torch.Tensor, optional
        Weight (E,) of the input in the output; by default 0.
    reverse : bool
        Whether to scan from the last token to the first.

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
    """Return tensors in float32; tensors in float64 stay float64.

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
    """Scan the outputs of `prepare` in the fastest available way.

    Arguments
    ---------
    prepare : callable
        Function from `tensors` to u, delta, A, B, C and D of `selective_scan`.
        The backward pass calls it again.
    reverse : bool
        See `selective_scan`.
    *tensors : torch.Tensor
        Any number of tensors, which get gradients.

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
        ``selective_scan_fn``, or None if the package cannot be imported.
    """
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def _kernel_scan(prepare, reverse, *tensors):
    """Scan with ``mamba_ssm``, which needs the tokens on the last axis."""
    with _autocast_off(tensors[0]):
        u, delta, A, B, C, D = prepare(*tensors)
        inputs = [x.transpose(1, 2) for x in (u, delta, B, C)]
        if reverse:
            inputs = [x.flip(2) for x in inputs]
        u, delta, B, C = (x.contiguous() for x in inputs)
        y = fused_scan()(u, delta, A.contiguous(), B, C, D)
    return (y.flip(2) if reverse else y).transpose(1, 2)


def recomputed(function, *arguments):
    """Call a function with activation checkpointing, to save memory.

    Only its arguments are stored, and the backward pass calls it again. The
    random state is not restored, so the function must not draw numbers.

    Arguments
    ---------
    function : callable
        A function from tensors to tensors.
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

    The states of a segment are in one buffer (T, B, S, E), channels last, so
    that every operation reads contiguous memory. On a GPU, starting an
    operation costs more than computing it, so a segment is split into chunks.
    One loop runs over the tokens of a chunk, for all chunks at once. A second
    loop runs over the chunks and passes the state from one to the next.
    """

    def __init__(self, u, A, reverse):
        batch, self.tokens, channels = u.shape
        self.reverse = reverse
        self.slab = (batch, A.shape[1], channels)
        self.decay = A.t().contiguous()
        # On a CPU, powers of 2 take less than half the time of powers of e.
        self.octaves = self.decay / math.log(2)
        self.segment, self.chunk = _plan(
            self.tokens, math.prod(self.slab), u.device.type
        )
        self.starts = range(0, self.tokens, self.segment)
        self.empty = u.new_empty

    def buffer(self, extra=0):
        """Return a buffer for a segment's states and `extra` more tokens."""
        longest = min(self.segment, self.tokens)
        longest += self._surplus(longest) + extra
        return self.empty(longest, *self.slab)

    def cut(self, x, start):
        """Return the tokens of a segment of (B, N, K), as (T, B, K)."""
        part = x[:, self._places(start)]
        part = (part.flip(1) if self.reverse else part).transpose(0, 1)
        surplus = self._surplus(part.shape[0])
        # Pad with zeros: a step of size 0 does not change the state.
        return nn.functional.pad(part, (0, 0, 0, 0, 0, surplus))

    def put(self, x, start, part):
        """Write a segment (T, B, K) into its place of (B, N, K)."""
        places = self._places(start)
        part = part[: places.stop - places.start].transpose(0, 1)
        x[:, places] = part.flip(1) if self.reverse else part

    def _surplus(self, tokens):
        """Return the number of padding tokens that complete the last chunk."""
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
        """Return a segment's states (T + 1, B, S, E); the first is `start`."""
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
        """Return the gradients of a segment's states and of the preceding one.

        `end` is what all later segments contribute to the gradient of the last
        state. `gradient` is the gradient of the output.
        """
        grads = _outer(C, gradient, out[: len(delta)])
        inner, factors = self._chunks(grads), self._chunks(decays)
        if len(inner) == 1:
            grads[-1] += end
            _chain(grads.unbind(0)[::-1], decays.unbind(0)[:0:-1])
            return grads, decays[0] * grads[0]
        _chain(inner.unbind(1)[::-1], factors.unbind(1)[:0:-1])
        steps = self._chunks(delta)
        # Gradients of the states before each chunk and after the last one.
        before = torch.cat([factors[:, 0] * inner[:, 0], end[None]])
        whole = self._passed(steps.sum(1))
        _chain(before.unbind(0)[::-1], whole.unbind(0)[::-1])
        later = steps.flip(1).cumsum(1).flip(1) - steps
        inner.addcmul_(self._passed(later), before[1:, None])
        return grads, before[0]

    def _chunks(self, x):
        return x.unflatten(0, (-1, min(self.chunk, len(x))))

    def _passed(self, delta):
        """Return the fraction of the state that remains after these steps."""
        return (delta.unsqueeze(-2) * self.octaves).exp2_()


def _plan(tokens, entries, device):
    """Return the tokens of a segment and of a chunk."""
    if device == "cpu":
        fewest, most = _CPU_TOKENS
        segment = min(most, max(fewest, _CACHE_ENTRIES // entries))
        # Use one chunk: starting operations costs less than the second loop.
        return segment, segment
    segment = min(tokens, max(64, _DEVICE_ENTRIES // entries))
    chunk = math.isqrt(segment)
    return chunk * -(-segment // chunk), chunk


def _outer(row, column, out):
    """Return the products (T, B, S, E) of (T, B, S) and (T, B, E)."""
    return torch.mul(row[..., None], column[:, :, None], out=out)


def _rows(rows, matrices):
    """Return the products (T, B, J) of (T, B, I) and (T, B, I, J)."""
    # Multiplying by a column on the right would be ten times slower than by a
    # row on the left.
    return (rows[:, :, None] @ matrices)[:, :, 0]


def _chain(rows, factors):
    """Add to each row, in turn, its factor times the row before it."""
    for before, row, factor in zip(rows, rows[1:], factors, strict=False):
        row.addcmul_(factor, before)


def _scan(u, delta, A, B, C, D, reverse):
    """Return the outputs and the states before each segment."""
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
        # From here on, `grads` are the gradients of the exponents, delta A.
        grads.mul_(decays).mul_(states[:-1])
        to_steps = torch.mul(grads, walk.decay, out=decays).sum(2)
        walk.put(to_delta, start, to_steps.addcmul_(to_input, x))
        to_decay += grads.mul_(steps[:, :, None]).sum((0, 1))
    to_u.addcmul_(gradient, D)
    to_D = (gradient * u).sum((0, 1))
    return to_u, to_delta, to_decay.t(), to_B, to_C, to_D


class _Scan(torch.autograd.Function):
    """The scan over the outputs of `prepare`, with its gradient.

    Only the inputs of `prepare` and one state for each segment are stored. The
    backward pass calls `prepare` again.
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
