"""The base class of all filterbanks."""

import torch
from speechbrain.utils.autocast import fwd_default_precision
from torch import nn

from ssast_lobes.utils.checks import whole
from ssast_lobes.utils.lengths import sample_counts

# Number of frames that the CPU computes at once. With so few, intermediate
# results stay in the cache and need no new pages of memory.
_FRAMES_AT_ONCE = 1000


class ExactBuffers(nn.Module):
    """A module with buffers that keep their type when the module is cast."""

    def _apply(self, fn, recurse=True):
        # half() and double() are for weights; features need float32.
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self


class Filterbank(ExactBuffers):
    """Base class of front ends: waveforms to log-mel energies.

    Padding never changes the energies of a clip. A derived class sets
    `hop_samples`, `least_samples` (the length of the shortest clip with a
    frame) and `first_center` (the sample in the middle of the first frame). It
    defines ``frames_of``, ``samples_of`` and ``_log_mel``.

    Arguments
    ---------
    sample_rate : int
        Sampling rate of the waveforms in Hz.
    n_mels : int
        Number of mel bins.
    """

    def __init__(self, sample_rate, n_mels):
        super().__init__()
        self.sample_rate = whole("sample_rate", sample_rate, 100)
        self.n_mels = whole("n_mels", n_mels)

    @fwd_default_precision(cast_inputs=torch.float32)
    def forward(self, wav, wav_lens=None):
        """Compute the log-mel spectrogram of each clip.

        Arguments
        ---------
        wav : torch.Tensor
            Waveforms (B, S), floating point with full scale 1, with any values
            at padding.
        wav_lens : torch.Tensor, optional
            Relative lengths (B,) in (0, 1]; by default all clips are full.

        Returns
        -------
        feats : torch.Tensor
            Log-mel energies (B, T, n_mels), 0 at padding. T is at least 1.
        n_frames : torch.Tensor
            Number of valid frames (B,), int64, the same as for each clip alone.

        Raises
        ------
        ValueError
            If `wav` is not (B, S) or not floating point, or `wav_lens` are not
            relative lengths; see `sample_counts`.
        """
        if wav.dim() != 2:
            raise ValueError(
                f"wav must be (batch, samples), got {tuple(wav.shape)}"
            )
        if not wav.is_floating_point():
            raise ValueError(
                f"wav must be floating point with full scale 1, got "
                f"{wav.dtype}: convert it with ssast_lobes.to_float"
            )
        wav = wav.float()
        n_samples = sample_counts(wav, wav_lens)
        max_frames = max(1, self.frames_of(wav.shape[1]))
        n_frames = self.frames_of(n_samples).clamp(max=max_frames)

        if wav.device.type != "cpu" or torch.compiler.is_exporting():
            return self._log_mel(wav, n_samples, n_frames), n_frames
        clips = max(1, _FRAMES_AT_ONCE // max_frames)
        feats = wav.new_empty(len(wav), max_frames, self.n_mels)
        for first in range(0, len(wav), clips):
            part = slice(first, first + clips)
            feats[part] = self._log_mel(
                wav[part], n_samples[part], n_frames[part]
            )
        return feats, n_frames
