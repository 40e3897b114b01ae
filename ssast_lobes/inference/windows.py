"""Cut audio of any length into windows, compute them, and join the results.

Audio longer than a model's window is cut into windows that overlap by half, or
with another hop. The last window may be shorter. Windows start at multiples of
the patch stride, so that the time steps of overlapping windows coincide. The
interfaces, the exported SpeechBrain model and the harnesses all use this rule.
"""

import math

import torch


class Windowing:
    """Cut clips into windows, compute the windows, and weight them.

    Arguments
    ---------
    fbank : KaldiFbank
        The filterbank of the model.
    grid : Grid
        Patch grid of the model.
    seconds : float
        Length of a window.
    hop_seconds : float, optional
        Time between the starts of two windows, rounded down to whole patches
        but at least one. By default half a window.

    Example
    -------
    >>> from ssast_lobes import Grid, KaldiFbank
    >>> windowing = Windowing(KaldiFbank(), Grid(128, (16, 16)), seconds=1.0)
    >>> [(start, len(wav)) for start, wav in windowing.cut(torch.zeros(40000))]
    [(0, 16159), (7680, 16159), (15360, 16159), (23040, 16159), (30720, 9280)]
    """

    def __init__(self, fbank, grid, seconds, hop_seconds=None):
        self.samples = round(seconds * fbank.sample_rate)
        self.n_time = grid.n_time(fbank.frames_of(self.samples))
        step = grid.stride[1] * fbank.hop_samples
        hop_time = self.n_time // 2
        if hop_seconds is not None:
            # Rounding may give slightly less than a whole number of patches.
            hop_time = math.floor(hop_seconds * fbank.sample_rate / step + 1e-6)
        self.hop_time = max(1, hop_time)
        self.hop = self.hop_time * step
        # The most samples that one window covers: up to the next frame. If
        # windows barely overlap, one window covers more, so that the last
        # window is never too short.
        self.reach = max(
            self.samples + fbank.hop_samples - 1,
            self.hop + fbank.least_samples - 1,
        )

    def count(self, n_samples):
        """Count the windows that cover a clip.

        Arguments
        ---------
        n_samples : int or torch.Tensor
            Length in samples, a number or (B,) int64.

        Returns
        -------
        int or torch.Tensor
        """
        return count_windows(n_samples, self.reach, self.hop)

    def cut(self, wav):
        """Cut a waveform.

        Arguments
        ---------
        wav : torch.Tensor
            Waveforms (.., S).

        Yields
        ------
        start : int
            First sample of a window.
        piece : torch.Tensor
            The waveforms of the window (.., samples).
        """
        for start in range(0, self.count(wav.shape[-1]) * self.hop, self.hop):
            yield start, wav[..., start : start + self.reach]

    def weights(self, lengths, n_windows):
        """Return the weights of windows in the mean of a clip, by duration.

        Arguments
        ---------
        lengths : torch.Tensor
            Samples of each clip (B,), int64.
        n_windows : int
            Number of windows W of the longest clip.

        Returns
        -------
        torch.Tensor
            (B, W), 0 after the last window of a clip; rows sum to 1.

        Example
        -------
        >>> from ssast_lobes import Grid, KaldiFbank
        >>> windowing = Windowing(KaldiFbank(), Grid(128, (16, 16)), 1.0)
        >>> windowing.weights(torch.tensor([9000, 15680]), n_windows=2)
        tensor([[1., 0.],
                [1., 0.]])
        """
        number = torch.arange(n_windows, device=lengths.device)
        # All windows of a clip are full, except the last one.
        last = self.count(lengths)[:, None] - 1
        left = (lengths[:, None] - last * self.hop).clamp(min=1)
        weight = torch.where(number < last, self.samples, left)
        weight = weight * (number <= last)
        return weight / weight.sum(1, keepdim=True)

    def encode(self, lobe, wav, lengths, hidden_states=False):
        """Compute the windows of a batch, one after another.

        Arguments
        ---------
        lobe : SpectrogramLobe
            The model.
        wav : torch.Tensor
            Waveforms (B, S). Padding may have any values.
        lengths : torch.Tensor
            Samples of each clip (B,), int64.
        hidden_states : bool
            Whether to keep the output of every block.

        Yields
        ------
        EncoderOutput
            Output of a window for all clips. Ignore it for clips that end
            before the window.
        """
        for start, piece in self.cut(wav):
            left = (lengths - start).clamp(1, piece.shape[1])
            yield lobe.extract_features(
                piece, left.double() / piece.shape[1], hidden_states
            )

    def clips(self, lobe, wav, lengths):
        """Pool the windows of a batch; see `encode` for arguments.

        Returns
        -------
        vectors : torch.Tensor
            Vector of each window (B, W, D).
        weights : torch.Tensor
            See `weights`.
        """
        pooled = map(lobe.pooling, self.encode(lobe, wav, lengths))
        vectors = torch.stack(list(pooled), dim=1)
        weights = self.weights(lengths, vectors.shape[1])
        return vectors, weights.to(vectors.dtype)


def count_windows(total, length, hop):
    """Count the windows that cover a clip; the last window may be shorter.

    Arguments
    ---------
    total : int or torch.Tensor
        Samples to cover.
    length, hop : int
        Samples of a window, and samples between the starts of two windows.

    Returns
    -------
    int or torch.Tensor

    Example
    -------
    >>> count_windows(10, 4, 2), count_windows(torch.tensor([3, 11]), 4, 2)
    (4, tensor([1, 5]))
    """
    more = -(-(total - length) // hop)
    if isinstance(total, torch.Tensor):
        return 1 + more.clamp(min=0)
    return 1 + max(0, more)
