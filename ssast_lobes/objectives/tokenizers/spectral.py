"""What log-mel tells of each token, and when the tokens are."""

import math

import torch
from torch import nn

from ssast_lobes.models.event_head import FrameTiming
from ssast_lobes.models.features import KaldiFbank

# As of MFCC: the first coefficients, without the zeroth, describe the spectral
# envelope.
_CEPSTRA = 20


class LogMel(nn.Module):
    """The pixels of each token's patch.

    Arguments
    ---------
    grid : Grid
        Of the encoder to train.

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
        """Return (B, N, D) of normalized log-mel (B, T, n_mels)."""
        return self.grid.unfold(feats)


class Cepstra(LogMel):
    """20 cepstral coefficients of whole frames, the mean over a token's frames.

    Tokens of one time have the same.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> Cepstra(Grid())(torch.zeros(2, 32, 128)).shape
    torch.Size([2, 16, 20])
    """

    name = "cepstra"

    def forward(self, feats, n_frames=None):
        """Return (B, N, 20) of normalized log-mel (B, T, n_mels)."""
        grid, n_mels = self.grid, feats.shape[2]
        patches = grid.unfold(feats)
        # The cosine transform, type II, of all mel bins.
        places = math.pi / n_mels * (torch.arange(n_mels) + 0.5)
        rows = torch.arange(1, _CEPSTRA + 1)
        cosines = (rows[:, None] * places).cos().to(feats)
        cosines = cosines * (2 / n_mels) ** 0.5
        patches = patches.unflatten(2, grid.patch).mean(3)
        spectra = patches.unflatten(1, (grid.n_freq, -1)).transpose(1, 2)
        return (spectra.flatten(2) @ cosines.T).repeat(1, grid.n_freq, 1)


def token_times(grid):
    """Return when the tokens of the encoder to train are.

    Its log-mel has a frame every 10 ms, of 25 ms, as `KaldiFbank`.

    Arguments
    ---------
    grid : Grid
        Of the encoder.

    Returns
    -------
    start, step : float
        Token k stands for the time from start + k * step on, a step long, in
        seconds.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> token_times(Grid(128, (128, 4)))
    (0.0075, 0.04)
    """
    timing = FrameTiming(grid, KaldiFbank())
    return timing.start, timing.step
