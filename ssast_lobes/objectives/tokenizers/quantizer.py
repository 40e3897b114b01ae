"""A codebook that is trained with a network, as in BEATs' tokenizers."""

import torch
from speechbrain.utils.distributed import is_distributed_initialized
from torch import nn

from ssast_lobes.utils.distributed import (
    gather_rows,
    mean_over_processes,
    n_processes,
)

# Iterations of the k-means that initializes the codes.
_ROUNDS = 10
_MOST_ROWS = 2**16


class Quantizer(nn.Module):
    """Project tokens, and assign the code with the highest cosine to each.

    It follows van den Oord et al., "Neural Discrete Representation Learning",
    NeurIPS 2017. As in Chen et al., "BEATs", ICML 2023, codes and vectors have
    length 1, and codes get no gradients. k-means on the first batch initializes
    the codes. In training, each code then follows the moving average of the
    vectors that are assigned to it. The initialization and the averages use the
    valid tokens of all processes. The codes are buffers.

    Arguments
    ---------
    token_dim : int
        Size D of a token.
    n_codes, dim : int
        Number of codes, and size of each.
    momentum : float
        Weight of the old code in an update.

    Example
    -------
    >>> quantizer = Quantizer(token_dim=32, n_codes=8, dim=4, momentum=0.99)
    >>> tokens, weight = torch.randn(2, 50, 32), torch.ones(2, 50)
    >>> vectors, ids, codes = quantizer(tokens, weight)
    >>> vectors.shape, ids.shape, bool(codes.norm(dim=2).allclose(weight))
    (torch.Size([2, 50, 4]), torch.Size([2, 50]), True)
    """

    def __init__(self, token_dim, n_codes, dim, momentum):
        super().__init__()
        self.momentum = momentum
        self.projection = nn.Sequential(
            nn.Linear(token_dim, token_dim),
            nn.Tanh(),
            nn.Linear(token_dim, dim),
        )
        self.register_buffer("codes", torch.zeros(n_codes, dim))
        # This is no tensor, so that nothing waits for the device.
        self.started = False

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)
        self.started = bool(self.codes.any())

    def forward(self, tokens, weight=None):
        """Quantize tokens; in training also update the codes.

        Until `started` is set, after the first step, each batch initializes
        the codes again.

        Arguments
        ---------
        tokens : torch.Tensor
            (B, N, D).
        weight : torch.Tensor, optional
            (B, N), 1 at valid tokens, else 0; needed in training.

        Returns
        -------
        vectors : torch.Tensor
            Projected tokens (B, N, dim), of length 1.
        ids : torch.Tensor
            int64 (B, N).
        codes : torch.Tensor
            Codes of the ids (B, N, dim), without gradient.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            vectors = self.projection(tokens.float())
            vectors = nn.functional.normalize(vectors, dim=2)
            with torch.no_grad():
                rows = vectors.flatten(0, 1)
                if self.training and not self.started:
                    self._start(rows, weight.flatten())
                ids = (rows @ self.codes.T).argmax(1)
                codes = self.codes[ids].view_as(vectors)
                if self.training:
                    self._follow(rows, ids, weight.flatten())
        return vectors, ids.view(vectors.shape[:2]), codes

    def _start(self, rows, weight):
        """Set the codes to k-means centers of the valid rows (M, dim)."""
        rows = torch.cat([rows, weight[:, None]], dim=1)
        rows = rows[:: max(1, n_processes() * len(rows) // _MOST_ROWS)]
        rows, _ = gather_rows(rows)
        rows, weight = rows[:, :-1], rows[:, -1]
        codes = rows[self._spread(weight)]
        for _ in range(_ROUNDS):
            ids = (rows @ codes.T).argmax(1)
            total, found = self._sums(rows, ids, weight)
            means = nn.functional.normalize(total, dim=1)
            codes = torch.where(found > 0, means, codes)
        self.codes.copy_(codes)

    def _follow(self, rows, ids, weight):
        """Update each code that occurs in the rows."""
        sums = torch.cat(self._sums(rows, ids, weight), dim=1)
        sums = mean_over_processes(sums)
        means = nn.functional.normalize(sums[:, :-1], dim=1)
        moved = self.codes.lerp(means, 1 - self.momentum)
        moved = nn.functional.normalize(moved, dim=1)
        self.codes.copy_(torch.where(sums[:, -1:] > 0, moved, self.codes))

    @torch.no_grad()
    def restart(self, unused, vectors, weight):
        """Replace codes by vectors from a batch of the first process.

        Arguments
        ---------
        unused : torch.Tensor
            Boolean (n_codes,), True at the codes to replace.
        vectors : torch.Tensor
            (B, N, dim), from `forward`.
        weight : torch.Tensor
            (B, N), 1 at valid tokens.
        """
        rows, weight = vectors.float().flatten(0, 1), weight.flatten()
        chosen = rows[self._spread(weight)]
        if is_distributed_initialized():
            torch.distributed.broadcast(chosen, 0)
        self.codes.copy_(torch.where(unused[:, None], chosen, self.codes))

    def _spread(self, weight):
        """Return indices of n_codes valid rows, spread over the batch."""
        order = weight.argsort(descending=True, stable=True)
        n_codes = len(self.codes)
        place = torch.arange(n_codes, device=weight.device) / n_codes
        return order[(place * weight.sum()).floor().long()]

    def _sums(self, rows, ids, weight):
        """Return the sum and the number of the rows of each code."""
        weight = weight[:, None]
        total = torch.zeros_like(self.codes).index_add_(0, ids, rows * weight)
        found = torch.zeros_like(self.codes[:, :1])
        return total, found.index_add_(0, ids, weight)
