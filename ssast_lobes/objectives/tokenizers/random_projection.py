"""Random codes without fitting, as in BEST-RQ and BEATs' first iteration."""

from itertools import pairwise

import torch
from torch import nn

from ssast_lobes.objectives.tokenizers.codes import nearest
from ssast_lobes.utils.checks import flag, one_of, whole

NORMS = ("layer", "l2")


class RandomProjectionTokenizer(nn.Module):
    """Assign to each patch the random code nearest to its random projection.

    Nothing is fitted. ``norm="layer"`` follows the first iteration of BEATs
    (Chen et al., ICML 2023; ESPnet's ``espnet2/beats/random_tokenizer.py``): a
    projection to twice the code size, layer norm, a projection to the code
    size, layer norm, and the nearest code. ``norm="l2"`` follows BEST-RQ (Chiu
    et al., ICML 2022): one projection, and codes and vectors of length 1.

    Arguments
    ---------
    grid : Grid
        Grid of the encoder.
    n_codes : int
        Codes of each codebook.
    dim : int
        Size of a code.
    n_books : int
        Number of codebooks, each with its own projections.
    norm : str
        ``"layer"`` or ``"l2"``.
    center : bool
        Subtract the mean of each patch first. Then loud and quiet patches
        share codes, and more codes are used: on ten seconds each of 150 clips
        of LibriSpeech, 61 % of 1,024 instead of 40 %.
    seed : int
        Seed of projections and codes.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> tokenizer = RandomProjectionTokenizer(
    ...     Grid(), n_codes=64, dim=16, n_books=2
    ... )
    >>> tokenizer(torch.randn(3, 32, 128)).shape
    torch.Size([3, 16, 2])
    """

    def __init__(
        self,
        grid,
        n_codes=1024,
        dim=256,
        n_books=1,
        norm="layer",
        center=False,
        seed=0,
    ):
        super().__init__()
        self.n_codes = whole("n_codes", n_codes, 2)
        self.dim = whole("dim", dim, 1)
        self.n_books = whole("n_books", n_books, 1)
        self.norm = one_of("norm", norm, NORMS)
        self.center = flag("center", center)
        self.seed = whole("seed", seed, 0)
        self.grid = grid
        draw = torch.Generator().manual_seed(seed)

        def normal(*size):
            return torch.randn(n_books, *size, generator=draw)

        patch = grid.patch_size
        if norm == "layer":
            # ESPnet initializes both projections with Xavier's standard
            # deviations.
            sizes = [patch, 2 * dim, dim]
            spreads = [(2 / (a + b)) ** 0.5 for a, b in pairwise(sizes)]
            codes = normal(n_codes, dim)
        else:
            sizes, spreads = [patch, dim], [(2 / (patch + dim)) ** 0.5]
            codes = nn.functional.normalize(normal(n_codes, dim), dim=2)
        self.n_projections = len(spreads)
        for number, spread in enumerate(spreads):
            matrix = spread * normal(sizes[number], sizes[number + 1])
            self.register_buffer(f"projection{number}", matrix)
        self.register_buffer("codes", codes)

    @property
    def config(self):
        """The arguments, without the grid, that rebuild this."""
        return {
            "name": "RandomProjectionTokenizer",
            "n_codes": self.n_codes,
            "dim": self.dim,
            "n_books": self.n_books,
            "norm": self.norm,
            "center": self.center,
            "seed": self.seed,
        }

    @torch.no_grad()
    def forward(self, feats, n_frames=None):
        """Return the ids of all tokens.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels), 0 at padding.
        n_frames : torch.Tensor, optional
            Not used: a patch's code is a function of the patch alone.

        Returns
        -------
        torch.Tensor
            (B, N, n_books) int64, arbitrary at padding.
        """
        # Rounding to bf16 would swap codes that are near each other.
        with torch.autocast(feats.device.type, enabled=False):
            x = self.grid.unfold(feats.float())[:, None]
            if self.center:
                x = x - x.mean(-1, keepdim=True)
            for number in range(self.n_projections):
                x = x @ getattr(self, f"projection{number}")
                if self.norm == "layer":
                    x = nn.functional.layer_norm(x, x.shape[-1:])
                else:
                    x = nn.functional.normalize(x, dim=-1)
            return nearest(x, self.codes).transpose(1, 2)
