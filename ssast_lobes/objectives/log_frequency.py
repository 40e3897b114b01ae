"""Spectra on a scale of musical notes, as prediction targets."""

import torch
from torch import nn

from ssast_lobes.models.filterbank import ExactBuffers
from ssast_lobes.utils.lengths import length_to_mask

N_BANDS = 84
# The bands are seven octaves of semitones, from C1 up to 3,951 Hz.
_LOWEST_HZ = 32.703
_PER_OCTAVE = 12
_FFT_SIZES = (512, 1024, 2048)
SAMPLE_RATE = 16000
# Hop of Kaldi's frames, and the sample in the middle of the first frame.
_HOP = 160
_FIRST_CENTER = 200
# The encoder's features may begin or end at other samples, so frame counts may
# differ by this number.
_FRAMES_APART = 3
_LEAST_STD = 1e-5


class LogFrequencySpectra(ExactBuffers):
    """Compute a spectrum of 84 bands, a semitone apart, for each token.

    Each band is a triangular filter on the magnitudes of a short-time Fourier
    transform. The filter extends from the center of the band below to that of
    the band above. There are three transforms (512, 1,024 and 2,048 samples). A
    band uses the shortest transform whose bins are no further apart than
    neighboring bands. So high notes are resolved in time and low notes in
    frequency, as in a constant-Q transform, but at a small fraction of its
    cost. Below 139 Hz, the bins of the longest transform are more than a
    semitone apart, so the bands there are as wide as these bins. Then log(1 +
    x) of each band is standardized over the clip, and averaged over the frames
    of a token.

    Arguments
    ---------
    grid : Grid
        Grid of the encoder.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> spectra = LogFrequencySpectra(Grid())
    >>> wavs, n_samples = torch.randn(1, 16000), torch.tensor([16000])
    >>> spectra(wavs, n_samples, torch.tensor([98]), 98).shape
    torch.Size([1, 56, 84])
    """

    def __init__(self, grid):
        super().__init__()
        self.grid = grid
        for size, filters in zip(_FFT_SIZES, log_filters(), strict=True):
            window = torch.hann_window(size)
            self.register_buffer(f"window{size}", window, persistent=False)
            self.register_buffer(f"filters{size}", filters, persistent=False)

    @torch.no_grad()
    def forward(self, wavs, n_samples, n_frames, max_frames):
        """Return the spectra at the tokens of clips.

        Arguments
        ---------
        wavs : torch.Tensor
            16 kHz mono waveforms (B, S), any padding.
        n_samples, n_frames : torch.Tensor
            Valid samples and frames, (B,) int64.
        max_frames : int
            Frames T of the features, 10 ms each.

        Returns
        -------
        torch.Tensor
            float32 (B, N, 84), the same for all tokens of a time, 0 at
            padding.

        Raises
        ------
        ValueError
            If the hop of the features is not 10 ms at 16 kHz, or they are
            padded.
        """
        if abs(max_frames - wavs.shape[1] / _HOP) > _FRAMES_APART:
            raise ValueError(
                "log-frequency targets need waveforms of 16 kHz, and features "
                f"with frames of 10 ms and without pad_frames, got "
                f"{wavs.shape[1]} samples and {max_frames} frames"
            )
        with torch.autocast(wavs.device.type, enabled=False):
            wavs = wavs.float() * length_to_mask(n_samples, wavs.shape[1])
            bands = sum(
                self._magnitudes(wavs, size, max_frames) for size in _FFT_SIZES
            )
        return self._at_tokens(bands.log1p(), n_frames)

    def _magnitudes(self, wavs, size, max_frames):
        """Return the bands (B, T, 84) of one Fourier transform."""
        before = size // 2 - _FIRST_CENTER
        after = (max_frames - 1) * _HOP + size - before - wavs.shape[1]
        spectrum = torch.stft(
            nn.functional.pad(wavs, (before, after)),
            size,
            _HOP,
            window=getattr(self, f"window{size}"),
            center=False,
            return_complex=True,
        )
        return spectrum.abs().transpose(1, 2) @ getattr(self, f"filters{size}")

    def _at_tokens(self, x, n_frames):
        """Standardize (B, T, 84) over each clip; average within tokens."""
        is_frame = length_to_mask(n_frames, x.shape[1])[:, :, None].float()
        count = is_frame.sum(1, keepdim=True).clamp(min=1)
        centered = (x - (x * is_frame).sum(1, keepdim=True) / count) * is_frame
        std = (centered.square().sum(1, keepdim=True) / count).sqrt()
        x = torch.cat([centered / std.clamp(min=_LEAST_STD), is_frame], dim=2)
        n_time, size = self.grid.n_time(x.shape[1]), self.grid.patch[1]
        x = nn.functional.pad(x, (0, 0, 0, n_time * size - x.shape[1]))
        x = x.unflatten(1, (n_time, size)).sum(2)
        x = x[:, :, :-1] / x[:, :, -1:].clamp(min=1)
        return x.repeat(1, self.grid.n_freq, 1)


def log_filters():
    """Return the triangular filters of the three Fourier transforms.

    Returns
    -------
    list of torch.Tensor
        (Fourier bins, 84) of each transform, the shortest first. Each band has
        weights in only one of the three, which sum to 1.

    Example
    -------
    >>> [tuple(filters.shape) for filters in log_filters()]
    [(257, 84), (513, 84), (1025, 84)]
    """
    note = torch.arange(-1, N_BANDS + 1, dtype=torch.float64)
    hertz = _LOWEST_HZ * 2 ** (note / _PER_OCTAVE)
    below, center, above = hertz[:-2], hertz[1:-1], hertz[2:]
    spacings = [SAMPLE_RATE / size for size in _FFT_SIZES]
    matrices, free = [], torch.ones(N_BANDS, dtype=torch.bool)
    for size, spacing in zip(_FFT_SIZES, spacings, strict=True):
        bins = spacing * torch.arange(size // 2 + 1)[:, None]
        rise = (bins - center) / (center - below).clamp(min=spacing) + 1
        fall = (center - bins) / (above - center).clamp(min=spacing) + 1
        triangles = rise.minimum(fall).clamp(min=0)
        own = free & ((center - below >= spacing) | (size == _FFT_SIZES[-1]))
        matrices.append((triangles / triangles.sum(0) * own).float())
        free = free & ~own
    return matrices
