"""Heads of the objectives that compare views: projections and prototypes."""

import torch
from torch import nn

from ssast_lobes.utils.distributed import SharedBatchNorm, mean_over_processes


def sizes_of(dim, ratios):
    """Return layer sizes that scale with the token size of the encoder.

    Arguments
    ---------
    dim : int
        Token size D of the encoder.
    ratios : float or list of float
        Sizes as multiples of D.

    Returns
    -------
    int or list of int
        Each at least 1.

    Example
    -------
    >>> sizes_of(768, [2.6667, 0.3333]), sizes_of(192, 2.6667)
    ([2048, 256], 512)
    """
    if isinstance(ratios, (list, tuple)):
        return [sizes_of(dim, ratio) for ratio in ratios]
    return max(1, round(dim * ratios))


def gelu_mlp(sizes):
    """Build linear layers with GELU in between, initialized as in encoders.

    Arguments
    ---------
    sizes : list of int
        Input size, then the size after each layer.

    Returns
    -------
    torch.nn.Sequential
        Maps (.., sizes[0]) to (.., sizes[-1]).

    Example
    -------
    >>> gelu_mlp([8, 16, 4])(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 4])
    """
    layers = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        linear = nn.Linear(before, after)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.GELU()]
    return nn.Sequential(*layers[:-1])


class BatchNormMLP(nn.Module):
    """Projector or predictor of BYOL (Grill et al., NeurIPS 2020).

    It has two linear layers without biases. Between them are batch norm over
    all processes and ReLU.

    Arguments
    ---------
    dim, hidden, out : int
        Sizes before, between and after the layers.

    Example
    -------
    >>> BatchNormMLP(8, 16, 4)(torch.randn(5, 8)).shape
    torch.Size([5, 4])
    """

    def __init__(self, dim, hidden, out):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.norm = SharedBatchNorm(hidden)
        self.fc2 = nn.Linear(hidden, out, bias=False)

    def forward(self, x, weight=None):
        """Project rows.

        Arguments
        ---------
        x : torch.Tensor
            (N, dim).
        weight : torch.Tensor, optional
            (N,), 0 at rows that do not count in the batch norm.

        Returns
        -------
        torch.Tensor
            (N, out).
        """
        return self.fc2(self.norm(self.fc1(x), weight).relu())


class Prototypes(nn.Module):
    """Cosine similarity to learned directions: DINO's last layer.

    This is the weight-normed linear layer with fixed gain of Caron et al.,
    "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.

    Arguments
    ---------
    dim : int
        Size of the projections.
    count : int
        Number of prototypes.

    Example
    -------
    >>> logits = Prototypes(8, 100)(torch.randn(2, 5, 8))
    >>> logits.shape, bool(logits.abs().max() <= 1)
    (torch.Size([2, 5, 100]), True)
    """

    def __init__(self, dim, count):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)

    def forward(self, x):
        """Return logits float32 (.., count) of projections (.., dim)."""
        # Compute in float32: divided by a temperature of 0.04, rounding errors
        # of bf16 would become tenths.
        with torch.autocast(x.device.type, enabled=False):
            directions = nn.functional.normalize(self.weight, dim=1)
            unit = nn.functional.normalize(x.float(), dim=-1)
            return nn.functional.linear(unit, directions)


class Center(nn.Module):
    """Running mean of the teacher's logits, subtracted before its softmax.

    It keeps one prototype from winning everywhere (Caron et al., section 3.1).
    The first batch sets the mean. Each later batch updates the mean before its
    own logits are centered. Released code starts at a mean of 0, and assigns
    the same prototype to every clip for some twenty steps.

    Arguments
    ---------
    count : int
        Number of prototypes.
    momentum : float
        Weight of the old mean in an update.

    Example
    -------
    >>> center = Center(2, momentum=0.9)
    >>> center.update(torch.tensor([1.0, 0.0]))
    >>> center.update(torch.tensor([2.0, 0.0]))
    >>> center(torch.tensor([[0.5, 0.5]]))
    tensor([[-0.6000,  0.5000]])
    """

    def __init__(self, count, momentum):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("started", torch.zeros(()))

    def forward(self, logits):
        """Return centered logits (.., count)."""
        return logits - self.mean

    def update(self, mean):
        """Update the mean with a batch; do nothing in evaluation.

        Arguments
        ---------
        mean : torch.Tensor
            Mean of the logits of this process before centering, (count,).
        """
        if self.training:
            kept = self.momentum * self.started
            self.mean.lerp_(mean_over_processes(mean), 1 - kept)
            self.started.fill_(1)


def prototype_cross_entropy(student, teacher, temperatures):
    """Return the cross-entropy of the student's prototypes under the teacher's.

    Arguments
    ---------
    student : torch.Tensor
        Logits (.., count).
    teacher : torch.Tensor
        Centered logits (.., count).
    temperatures : tuple of float or torch.Tensor
        Temperatures of student and teacher.

    Returns
    -------
    torch.Tensor
        (..), float32.

    Example
    -------
    >>> same = torch.tensor([[1.0, -1.0]])
    >>> loss = prototype_cross_entropy(same, same, (0.1, 0.04))
    >>> bool(loss < 1e-3)
    True
    """
    goal = (teacher.float() / temperatures[1]).softmax(-1)
    log_prob = (student.float() / temperatures[0]).log_softmax(-1)
    return -(goal * log_prob).sum(-1)


def cosine_distance(x, y):
    """Return 2 - 2 cos, the squared distance of the normalized vectors.

    Arguments
    ---------
    x, y : torch.Tensor
        (.., D).

    Returns
    -------
    torch.Tensor
        (..), float32, from 0 to 4.

    Example
    -------
    >>> cosine_distance(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor(2.)
    """
    x, y = (nn.functional.normalize(each.float(), dim=-1) for each in (x, y))
    return 2 - 2 * (x * y).sum(-1)


def swap_views(x):
    """Return the rows (2B, ..) of two views, with those of the second first.

    Arguments
    ---------
    x : torch.Tensor
        (2B, ..): all clips of one view, then all of the other.

    Returns
    -------
    torch.Tensor
        (2B, ..).

    Example
    -------
    >>> swap_views(torch.tensor([1, 2, 3, 4]))
    tensor([3, 4, 1, 2])
    """
    return x.roll(len(x) // 2, 0)
