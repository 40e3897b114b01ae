"""Front end: waveforms in, normalized log-mel spectrograms out.

A batched Kaldi filterbank (what SSAST was trained on), the fixed
normalization ``(x - mean) / (2 * std)``, and the statistics it needs.
"""

import torch
from speechbrain.utils.autocast import fwd_default_precision
from speechbrain.utils.logger import get_logger
from torch import nn
from torchaudio.compliance.kaldi import get_mel_banks

from ssast_lobes.models.normalization import SpectrogramNorm, read_statistics
from ssast_lobes.utils.checks import require, whole
from ssast_lobes.utils.lengths import length_to_mask, sample_counts

logger = get_logger(__name__)

PRE_EMPHASIS = 0.97

# Kaldi's least energy before the logarithm.
EPSILON = torch.finfo(torch.float32).eps

# The CPU works on so many frames at once: their intermediate results stay in
# the cache, and need no new pages of memory at each operation.
_FRAMES_AT_ONCE = 1000

# Neighboring mel filters that are summed together.
_FILTERS_AT_ONCE = 16

# The filterbank of the published SSAST. At 16 kHz its first bin is dead, as
# it was when the weights were trained: a warning would change nothing.
_PUBLISHED = (16000, 128)


class KaldiFbank(nn.Module):
    """Log-mel filterbank of a batch, equal to Kaldi's for each clip alone.

    Follows ``torchaudio.compliance.kaldi.fbank`` with ``htk_compat=True,
    use_energy=False, window_type="hanning", dither=0.0`` on the mean-removed
    waveform, as SSAST computes it: 25 ms windows every 10 ms, no frame that
    reaches over the end. Computed in float32, also under autocast and where
    the module is cast to another type; on CUDA in float64 from the Fourier
    transform on.

    Arguments
    ---------
    sample_rate : int
        Sampling rate of the waveforms in Hz.
    n_mels : int
        Number of mel bins, from 20 Hz to half the sampling rate. A warning
        tells if there are more than the Fourier transform resolves: bins that
        no frequency reaches are constant.

    Example
    -------
    >>> fbank = KaldiFbank()
    >>> feats, n_frames = fbank(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    >>> feats.shape, n_frames.tolist()
    (torch.Size([2, 98, 128]), [98, 48])
    """

    def __init__(self, sample_rate=16000, n_mels=128):
        super().__init__()
        self.sample_rate = whole("sample_rate", sample_rate, 100)
        self.n_mels = whole("n_mels", n_mels)
        self.window_samples = int(sample_rate * 0.025)
        self.hop_samples = int(sample_rate * 0.010)
        self.fft_size = 1 << (self.window_samples - 1).bit_length()
        window = torch.hann_window(self.window_samples, periodic=False)
        filters = self._mel_filters(n_mels)
        self._warn_of_dead_filters(filters)
        # Kaldi's filters leave out the Nyquist bin.
        filters = nn.functional.pad(filters, (0, 1)).t().contiguous()
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("mel_filters", filters, persistent=False)
        self._bins = [
            _reach(part) for part in filters.split(_FILTERS_AT_ONCE, 1)
        ]

    def _mel_filters(self, n_mels):
        """Return the weights (n_mels, Fourier bins) of so many filters."""
        return get_mel_banks(
            n_mels,
            self.fft_size,
            self.sample_rate,
            20.0,
            0.0,
            100.0,
            -500.0,
            1.0,
        )[0]

    def _warn_of_dead_filters(self, filters):
        dead = _n_dead(filters)
        if dead == 0 or (self.sample_rate, self.n_mels) == _PUBLISHED:
            return
        fitting = next(
            n_mels
            for n_mels in range(self.n_mels - 1, 0, -1)
            if _n_dead(self._mel_filters(n_mels)) == 0
        )
        logger.warning(
            f"{dead} of {self.n_mels} mel bins are constant at "
            f"{self.sample_rate} Hz: no frequency of the {self.fft_size}-point "
            f"Fourier transform reaches them; n_mels={fitting} is the largest "
            "number without such bins"
        )

    def _apply(self, fn, recurse=True):
        # half() and double() are for weights: features need float32.
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self

    def frames_of(self, n_samples):
        """Return the number of frames Kaldi makes of so many samples.

        Arguments
        ---------
        n_samples : int or torch.Tensor
            Clip length in samples, a number or (B,) int64.

        Returns
        -------
        int or torch.Tensor
            Frame count; 0 for a clip shorter than one window.

        Example
        -------
        >>> KaldiFbank().frames_of(16000)
        98
        """
        reach = n_samples - self.window_samples
        count = reach // self.hop_samples + 1
        if isinstance(n_samples, torch.Tensor):
            return torch.where(reach < 0, torch.zeros_like(count), count)
        return 0 if reach < 0 else count

    @fwd_default_precision(cast_inputs=torch.float32)
    def forward(self, wav, wav_lens=None):
        """Compute the log-mel spectrogram of each clip.

        Arguments
        ---------
        wav : torch.Tensor
            Waveforms (B, S), floating point with full scale 1, any padding.
        wav_lens : torch.Tensor, optional
            Relative lengths (B,) in (0, 1]; all clips are full when left out.

        Returns
        -------
        feats : torch.Tensor
            Log-mel energies (B, T, n_mels), 0 at padding. T is at least 1.
        n_frames : torch.Tensor
            Valid frames (B,), int64, exactly as Kaldi counts them.

        Raises
        ------
        ValueError
            If `wav` is not (B, S) or not floating point, or `wav_lens` are
            not relative; see `sample_counts`.
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

    def _log_mel(self, wav, n_samples, n_frames):
        """Return the log-mel (B, T, n_mels) of waveforms (B, S)."""
        frames = self._frames(wav - _clip_means(wav, n_samples)[:, None])
        if wav.is_cuda:
            # Another FFT in float32 rounds otherwise where a bin has hardly
            # any energy, and TF32 products are off in the third digit.
            frames = frames.double()
        spectrum = torch.fft.rfft(frames)
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        feats = self._mel(power).clamp(min=EPSILON).log().float()
        padding = ~length_to_mask(n_frames, feats.shape[1])
        return feats.masked_fill_(padding[:, :, None], 0.0)

    def _frames(self, wav):
        missing = self.window_samples - wav.shape[1]
        if missing > 0:
            wav = nn.functional.pad(wav, (0, missing))
        frames = wav.unfold(1, self.window_samples, self.hop_samples)
        frames = frames - frames.mean(2, keepdim=True)
        # Hann's window is 0 at the first sample, which has no previous one.
        emphasized = -PRE_EMPHASIS * frames[..., :-1]
        emphasized.add_(frames[..., 1:]).mul_(self.window[1:])
        missing = self.fft_size - self.window_samples
        return nn.functional.pad(emphasized, (1, missing))

    def _mel(self, power):
        parts = [
            power[..., first:end] @ filters[first:end].to(power.dtype)
            for (first, end), filters in zip(
                self._bins,
                self.mel_filters.split(_FILTERS_AT_ONCE, 1),
                strict=True,
            )
        ]
        return torch.cat(parts, dim=-1)


def _n_dead(filters):
    """Return the number of mel filters (rows) that no bin reaches."""
    return int((filters == 0).all(1).sum())


def _reach(filters):
    """Return the first and the end of the bins (rows) of some filters."""
    bins = filters.any(1).nonzero().flatten().tolist() or [0]
    return bins[0], bins[-1] + 1


def _clip_means(wav, n_samples):
    """Return the mean of each clip's valid samples, (B,)."""
    # An exported graph cannot read the lengths to loop over the clips.
    if wav.is_cuda or torch.compiler.is_exporting():
        is_sample = length_to_mask(n_samples, wav.shape[1])
        total = torch.where(is_sample, wav, 0.0).sum(1, dtype=torch.float64)
        return (total / n_samples.clamp(min=1)).float()
    # The quietest mel bins, which pre-emphasis nearly cancels, show a mean
    # that is off by one rounding: a masked sum of the batch, even in float64,
    # puts one noise clip in five more than 1e-4 from Kaldi's features. So the
    # B numbers come from the very reduction that a clip alone would use; the
    # work on frames stays batched.
    if torch.compiler.is_compiling():
        # Compiled, the loop would be compiled anew for each length.
        return torch.compiler.disable(_each_mean)(wav, n_samples)
    return _each_mean(wav, n_samples)


def _each_mean(wav, n_samples):
    lengths = n_samples.clamp(min=1).tolist()
    return torch.stack(
        [clip[:n].mean() for clip, n in zip(wav, lengths, strict=True)]
    )


class FrontEnd(nn.Module):
    """Waveforms to normalized log-mel: `KaldiFbank`, then `SpectrogramNorm`.

    Arguments
    ---------
    statistics : str or dict
        Name of a preset in ``hparams/features/``, a YAML file such as
        ``ssast-lobes stats`` writes for own audio, or ``{"mean": ..,
        "std": ..}``.
    sample_rate : int
        Sampling rate of the waveforms in Hz.
    n_mels : int
        Number of mel bins.
    pad_frames : int, optional
        Reference padding: every clip is padded to so many frames, or cut
        there, before the normalization, and all of them count as audio; so
        do the official recipes and Hugging Face. Clips keep their own
        lengths when left out.

    Raises
    ------
    ValueError
        If `pad_frames` is not positive, or the statistics are unknown.

    Example
    -------
    >>> features = FrontEnd("audioset")
    >>> feats, n_frames = features(torch.randn(1, 16000))
    >>> feats.shape
    torch.Size([1, 98, 128])
    >>> feats, n_frames = FrontEnd(pad_frames=1024)(torch.randn(1, 16000))
    >>> feats.shape, n_frames.tolist()
    (torch.Size([1, 1024, 128]), [1024])
    """

    def __init__(
        self,
        statistics="audioset",
        sample_rate=16000,
        n_mels=128,
        pad_frames=None,
    ):
        super().__init__()
        if isinstance(statistics, str):
            statistics = read_statistics(statistics)
        require(
            isinstance(statistics, dict) and set(statistics) == {"mean", "std"},
            "statistics",
            "a preset, the path of a YAML file, or {mean: NUMBER, std: NUMBER}",
            statistics,
        )
        self.pad_frames = whole("pad_frames", pad_frames, null=True)
        self.fbank = KaldiFbank(sample_rate, n_mels)
        self.norm = SpectrogramNorm(**statistics)

    @property
    def config(self):
        """The arguments that rebuild this front end."""
        config = {
            "statistics": {"mean": self.norm.mean, "std": self.norm.std},
            "sample_rate": self.fbank.sample_rate,
            "n_mels": self.fbank.n_mels,
        }
        if self.pad_frames is not None:
            config["pad_frames"] = self.pad_frames
        return config

    def forward(self, wav, wav_lens=None):
        """Return features (B, T, M) and frame counts (B,) of waveforms (B, S).

        See `KaldiFbank.forward` for the arguments.
        """
        feats, n_frames = self.fbank(wav, wav_lens)
        if self.pad_frames is None:
            return self.norm(feats, n_frames), n_frames
        # A negative padding cuts.
        missing = self.pad_frames - feats.shape[1]
        feats = nn.functional.pad(feats, (0, 0, 0, missing))
        return self.norm(feats), torch.full_like(n_frames, self.pad_frames)
