"""Gather values of all processes, and compute means, sums and batch norm."""

import itertools

import torch
from speechbrain.utils.distributed import is_distributed_initialized
from torch import nn


def mean_over_processes(x):
    """Return the mean of a tensor over the processes, without gradient.

    Arguments
    ---------
    x : torch.Tensor
        Tensor of the same shape in all processes.

    Returns
    -------
    torch.Tensor
        The same shape; in a single process, `x` itself, detached.

    Example
    -------
    >>> mean_over_processes(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    x = x.detach()
    if not is_distributed_initialized():
        return x
    x = x.clone()
    torch.distributed.all_reduce(x)
    return x / torch.distributed.get_world_size()


class _SumOverProcesses(torch.autograd.Function):
    """A sum whose gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        return gradient


def sum_over_processes(x):
    """Return the sum of a tensor over the processes, with gradient.

    Arguments
    ---------
    x : torch.Tensor
        Tensor of the same shape in all processes.

    Returns
    -------
    torch.Tensor
        The same shape.

    Example
    -------
    >>> sum_over_processes(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    if not is_distributed_initialized():
        return x
    return _SumOverProcesses.apply(x)


def gather_rows(x):
    """Return the rows of all processes, with gradient.

    With several processes, this waits for the device. The number of rows may
    differ between processes, since unreadable clips are skipped.

    Arguments
    ---------
    x : torch.Tensor
        Rows of this process, (N, D).

    Returns
    -------
    rows : torch.Tensor
        Rows of all processes, (M, D), in the order of the processes.
    first : int
        Index of the first row of `x` in `rows`.

    Example
    -------
    >>> gather_rows(torch.tensor([[1.0], [2.0]]))
    (tensor([[1.],
            [2.]]), 0)
    """
    if not is_distributed_initialized():
        return x, 0
    rank = torch.distributed.get_rank()
    counts = torch.zeros(n_processes(), dtype=torch.long, device=x.device)
    counts[rank] = len(x)
    torch.distributed.all_reduce(counts)
    counts = counts.tolist()
    first = sum(counts[:rank])
    after = sum(counts) - first - len(x)
    # Rows of other processes are zero here, so that the sum contains all rows.
    return sum_over_processes(nn.functional.pad(x, (0, 0, first, after))), first


class SharedBatchNorm(nn.Module):
    """Batch norm over the rows of all processes, on any backend.

    PyTorch's SyncBatchNorm needs CUDA; this class does not. Rows can be
    weighted, so that padded rows do not count. The result is computed in
    float32.

    Arguments
    ---------
    dim : int
        Number of columns D.
    affine : bool
        Whether to learn a scale and an offset for each column.
    momentum : float
        Weight of a batch in the running statistics, which evaluation uses.
    eps : float
        Added to the variance.

    Example
    -------
    >>> rows = torch.tensor([[1.0], [3.0], [99.0]])
    >>> norm = SharedBatchNorm(1, affine=False)
    >>> norm(rows, weight=torch.tensor([1.0, 1.0, 0.0]))[:2, 0].round()
    tensor([-1.,  1.])
    """

    def __init__(self, dim, affine=True, momentum=0.1, eps=1e-5):
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(dim)) if affine else None
        self.offset = nn.Parameter(torch.zeros(dim)) if affine else None
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_variance", torch.ones(dim))

    def forward(self, x, weight=None):
        """Normalize each column.

        Arguments
        ---------
        x : torch.Tensor
            (N, D).
        weight : torch.Tensor, optional
            (N,), 0 at rows that do not count; by default all count equally.

        Returns
        -------
        torch.Tensor
            float32 (N, D).
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.training:
                mean, variance = self._statistics(x, weight)
            else:
                mean, variance = self.running_mean, self.running_variance
            x = (x - mean) * (variance + self.eps).rsqrt()
            if self.scale is None:
                return x
            return x * self.scale + self.offset

    def _statistics(self, x, weight):
        weight = x.new_ones(len(x)) if weight is None else weight.float()
        weight = weight[:, None]
        count = mean_over_processes(weight.sum()) * n_processes()
        some = count.clamp(min=1)
        mean = sum_over_processes((x * weight).sum(0)) / some
        spread = ((x - mean).square() * weight).sum(0)
        variance = sum_over_processes(spread) / some
        with torch.no_grad():
            # A batch without rows does not change the running statistics.
            weight = self.momentum * (count > 0)
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean, weight)
            self.running_variance.lerp_(unbiased, weight)
        return mean, variance


def gather_in_turn(own):
    """Gather items of all processes: the first of each, then the second.

    Arguments
    ---------
    own : list
        Items of this process, on the CPU. The number of items may differ
        between processes.

    Returns
    -------
    list
        Items of all processes, the same list in each. In a single process, this
        is `own`.

    Example
    -------
    >>> gather_in_turn([1, 2])
    [1, 2]
    """
    if not is_distributed_initialized():
        return own
    parts = [None] * n_processes()
    torch.distributed.all_gather_object(parts, own)
    over = object()
    rounds = itertools.zip_longest(*parts, fillvalue=over)
    return [item for one in rounds for item in one if item is not over]


def n_processes():
    """Return the number of processes, which is 1 without a process group.

    Returns
    -------
    int

    Example
    -------
    >>> n_processes()
    1
    """
    if not is_distributed_initialized():
        return 1
    return torch.distributed.get_world_size()


def gather_sums(sums):
    """Return the sums over all processes, which have different clips.

    Arguments
    ---------
    sums : dict of str to tuple
        For each name, the sum and the number of clips in this process, as
        numbers or scalar tensors.

    Returns
    -------
    dict of str to tuple
        For each name, the sum and the number of clips in all processes, as
        floats.

    Example
    -------
    >>> gather_sums({"loss": (torch.tensor(2.0), 1)})
    {'loss': (2.0, 1.0)}
    """
    own = {
        name: (float(total), float(clips))
        for name, (total, clips) in sums.items()
    }
    if not is_distributed_initialized():
        return own
    parts = [None] * n_processes()
    torch.distributed.all_gather_object(parts, own)
    gathered = {}
    for name in dict.fromkeys(key for part in parts for key in part):
        pairs = [part[name] for part in parts if name in part]
        gathered[name] = tuple(map(sum, zip(*pairs, strict=True)))
    return gathered
