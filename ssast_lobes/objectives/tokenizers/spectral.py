"""Features of tokens from log-mel, and the times of tokens."""

import math

import torch
from torch import nn

from ssast_lobes.models.event_head import FrameTiming
from ssast_lobes.models.features import KaldiFbank

# As in MFCC, the first coefficients after the zeroth describe the spectral
# envelope.
_CEPSTRA = 20


class LogMel(nn.Module):
    """Return the pixels of each token's patch.

    Arguments
    ---------
    grid : Grid
        Grid of the encoder to train.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> LogMel(Grid())(torch.zeros(2, 32, 128)).shape
    torch.Size([2, 16, 256])
    """

    name = "logmel"
    needs_audio = False

    def __init__(self, grid):
        super().__init__()
        self.grid = grid

    @property
    def config(self):
        """The arguments, without the grid, that rebuild this."""
        return {}

    def forward(self, feats, n_frames=None):
        """Return pixels (B, N, D) of normalized log-mel (B, T, n_mels)."""
        return self.grid.unfold(feats)


class Cepstra(LogMel):
    """Compute 20 cepstral coefficients for each token.

    The coefficients of whole frames are averaged over the frames of a token,
    so all tokens of a time step have the same vector.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> Cepstra(Grid())(torch.zeros(2, 32, 128)).shape
    torch.Size([2, 16, 20])
    """

    name = "cepstra"

    def forward(self, feats, n_frames=None):
        """Return cepstra (B, N, 20) of normalized log-mel (B, T, n_mels)."""
        grid, n_mels = self.grid, feats.shape[2]
        patches = grid.unfold(feats)
        # This is the cosine transform, type II, of all mel bins.
        places = math.pi / n_mels * (torch.arange(n_mels) + 0.5)
        rows = torch.arange(1, _CEPSTRA + 1)
        cosines = (rows[:, None] * places).cos().to(feats)
        cosines = cosines * (2 / n_mels) ** 0.5
        patches = patches.unflatten(2, grid.patch).mean(3)
        spectra = patches.unflatten(1, (grid.n_freq, -1)).transpose(1, 2)
        return (spectra.flatten(2) @ cosines.T).repeat(1, grid.n_freq, 1)


def token_times(grid):
    """Return the times of an encoder's tokens.

    Frames are those of `KaldiFbank`: 25 ms long, every 10 ms.

    Arguments
    ---------
    grid : Grid
        Grid of the encoder.

    Returns
    -------
    start, step : float
        Token k covers the time from start + k * step to start + (k + 1) *
        step, in seconds.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> token_times(Grid(128, (128, 4)))
    (0.0075, 0.04)
    """
    timing = FrameTiming(grid, KaldiFbank())
    return timing.start, timing.step
