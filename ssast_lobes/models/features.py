"""Front end: waveforms in, normalized log-mel spectrograms out.

The default is a batched Kaldi filterbank, as in the training of SSAST, and the
fixed normalization ``(x - mean) / (2 * std)``.
"""

import torch
from speechbrain.utils.logger import get_logger
from torch import nn
from torchaudio.compliance.kaldi import get_mel_banks

from ssast_lobes.models.filterbank import Filterbank
from ssast_lobes.models.mel_spectrogram import MelSpectrogram
from ssast_lobes.models.normalization import SpectrogramNorm, read_statistics
from ssast_lobes.utils.checks import (
    ArgumentError,
    one_of,
    real,
    require,
    whole,
)
from ssast_lobes.utils.lengths import length_to_mask

logger = get_logger(__name__)

PRE_EMPHASIS = 0.97

# Kaldi's smallest energy before the logarithm.
EPSILON = torch.finfo(torch.float32).eps

# Kaldi's windows are powers of Hann's.
_WINDOW_POWERS = {"hanning": 1, "povey": 0.85}

# Number of neighboring mel filters in one matrix product.
_FILTERS_AT_ONCE = 16

# Sampling rate and mel bins of the published SSAST. With these, the first mel
# bin is constant, as in the training of the weights, so a warning would not
# help.
_PUBLISHED = (16000, 128)


class KaldiFbank(Filterbank):
    """Compute Kaldi's log-mel filterbank for a batch of clips.

    It follows ``torchaudio.compliance.kaldi.fbank`` with
    ``htk_compat=True, use_energy=False, window_type="hanning", dither=0.0`` on
    the mean-removed waveform, as in SSAST: 25 ms windows every 10 ms, and no
    frame beyond the end. It computes in float32, also under autocast or if the
    module is cast to another type. On CUDA, the Fourier transform and the steps
    after it are in float64.

    Arguments
    ---------
    sample_rate : int
        Sampling rate of the waveforms in Hz.
    n_mels : int
        Number of mel bins, from 20 Hz to half the sampling rate. Bins that no
        frequency of the Fourier transform reaches are constant; a warning
        reports them.
    window : str
        ``"hanning"``, or Kaldi's own ``"povey"``, as in BEATs.
    gain : float
        Factor of the waveform; 32768 gives Kaldi's own scale of samples.

    Example
    -------
    >>> fbank = KaldiFbank()
    >>> feats, n_frames = fbank(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    >>> feats.shape, n_frames.tolist()
    (torch.Size([2, 98, 128]), [98, 48])
    """

    def __init__(
        self, sample_rate=16000, n_mels=128, window="hanning", gain=1.0
    ):
        super().__init__(sample_rate, n_mels)
        self.window_samples = int(sample_rate * 0.025)
        self.hop_samples = int(sample_rate * 0.010)
        self.least_samples = self.window_samples
        self.first_center = self.window_samples / 2
        self.fft_size = 1 << (self.window_samples - 1).bit_length()
        self.kind = one_of("window", window, _WINDOW_POWERS)
        self.gain = real("gain", gain, 0, inside=True)
        window = torch.hann_window(self.window_samples, periodic=False)
        if _WINDOW_POWERS[self.kind] != 1:
            window = window.pow(_WINDOW_POWERS[self.kind])
        filters = self._mel_filters(n_mels)
        self._warn_of_dead_filters(filters)
        # Kaldi's filters do not use the Nyquist bin.
        filters = nn.functional.pad(filters, (0, 1)).t().contiguous()
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("mel_filters", filters, persistent=False)
        self._bins = [
            _reach(part) for part in filters.split(_FILTERS_AT_ONCE, 1)
        ]

    def _mel_filters(self, n_mels):
        """Return the weights (n_mels, Fourier bins) of the filters."""
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

    @property
    def settings(self):
        """The arguments that differ from SSAST's, without rate and mel bins."""
        settings = {"window": self.kind, "gain": self.gain}
        usual = {"window": "hanning", "gain": 1.0}
        return {k: v for k, v in settings.items() if v != usual[k]}

    def samples_of(self, n_frames):
        """Return the fewest samples that give this many frames."""
        return (n_frames - 1) * self.hop_samples + self.window_samples

    def frames_of(self, n_samples):
        """Return the number of frames of a clip, as Kaldi counts them.

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

    def _log_mel(self, wav, n_samples, n_frames):
        """Return the log-mel (B, T, n_mels) of waveforms (B, S)."""
        frames = self._frames(wav - _clip_means(wav, n_samples)[:, None])
        if wav.is_cuda:
            # In float32, the FFT of CUDA rounds differently in bins with hardly
            # any energy, and TF32 products are wrong in the third digit.
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
        if self.gain != 1:
            wav = wav * self.gain
        frames = wav.unfold(1, self.window_samples, self.hop_samples)
        frames = frames - frames.mean(2, keepdim=True)
        # The first sample has no previous one, but the window is 0 there.
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
    """Return the first Fourier bin (row) that filters use, and the end."""
    bins = filters.any(1).nonzero().flatten().tolist() or [0]
    return bins[0], bins[-1] + 1


def _clip_means(wav, n_samples):
    """Return the mean of each clip's valid samples, (B,)."""
    # An exported graph cannot read the lengths, so it cannot loop over clips.
    if wav.is_cuda or torch.compiler.is_exporting():
        is_sample = length_to_mask(n_samples, wav.shape[1])
        total = torch.where(is_sample, wav, 0.0).sum(1, dtype=torch.float64)
        return (total / n_samples.clamp(min=1)).float()
    # Pre-emphasis nearly cancels the quietest mel bins, so they reveal a
    # different rounding of the mean. With a masked sum of the batch, even in
    # float64, one noise clip in five differs by more than 1e-4 from Kaldi's
    # features. So each mean comes from the reduction of a single clip. The work
    # on frames stays batched.
    if torch.compiler.is_compiling():
        # The loop would be compiled again for each length.
        return torch.compiler.disable(_each_mean)(wav, n_samples)
    return _each_mean(wav, n_samples)


def _each_mean(wav, n_samples):
    lengths = n_samples.clamp(min=1).tolist()
    return torch.stack(
        [clip[:n].mean() for clip, n in zip(wav, lengths, strict=True)]
    )


_FILTERBANKS = {"kaldi": KaldiFbank, "centered": MelSpectrogram}


def make_filterbank(sample_rate, n_mels, settings=None):
    """Build a filterbank.

    Arguments
    ---------
    sample_rate, n_mels : int
        See `KaldiFbank`.
    settings : dict, optional
        See `fbank` of `FrontEnd`.

    Returns
    -------
    Filterbank

    Raises
    ------
    ValueError
        If the kind is unknown, or its class does not take one of the arguments.

    Example
    -------
    >>> make_filterbank(16000, 128, {"kind": "kaldi", "window": "povey"}).kind
    'povey'
    """
    settings = dict(settings or {"kind": "kaldi"})
    kind = one_of("kind of fbank", settings.pop("kind", None), _FILTERBANKS)
    try:
        return _FILTERBANKS[kind](sample_rate, n_mels, **settings)
    except TypeError as error:
        raise ArgumentError(f"fbank of kind {kind}: {error}") from error


class FrontEnd(nn.Module):
    """Waveforms to normalized log-mel: a filterbank, then `SpectrogramNorm`.

    Arguments
    ---------
    statistics : str or dict
        Name of a preset in ``hparams/features/``, or path of a YAML file that
        ``ssast-lobes stats`` wrote, or ``{"mean": .., "std": ..}``. The values
        are numbers, or lists of one number for each mel bin.
    sample_rate : int
        Sampling rate of the waveforms in Hz.
    n_mels : int
        Number of mel bins.
    pad_frames : int, optional
        Reference padding, as in the official recipes and Hugging Face: every
        clip is padded or cut to this number of frames before the normalization,
        and all frames count as audio. By default clips keep their lengths.
    fbank : dict, optional
        Filterbank of another model. The entry ``kind`` is ``"kaldi"``
        (`KaldiFbank`) or ``"centered"`` (`MelSpectrogram`). The other entries
        are arguments of that class. By default SSAST's filterbank.

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
        fbank=None,
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
        self.fbank = make_filterbank(sample_rate, n_mels, fbank)
        self.norm = SpectrogramNorm(**statistics)
        per_bin = isinstance(self.norm.mean, list)
        if per_bin and len(self.norm.mean) != n_mels:
            raise ArgumentError(
                f"statistics of {len(self.norm.mean)} mel bins, the features "
                f"have {n_mels}"
            )

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
        kind = "kaldi" if isinstance(self.fbank, KaldiFbank) else "centered"
        if kind != "kaldi" or self.fbank.settings:
            config["fbank"] = {"kind": kind, **self.fbank.settings}
        return config

    def forward(self, wav, wav_lens=None):
        """Return features (B, T, M) and frame counts (B,) of waveforms (B, S).

        See `Filterbank.forward` for the arguments.
        """
        feats, n_frames = self.fbank(wav, wav_lens)
        if self.pad_frames is None:
            return self.norm(feats, n_frames), n_frames
        # A negative number of missing frames cuts the clip.
        missing = self.pad_frames - feats.shape[1]
        feats = nn.functional.pad(feats, (0, 0, 0, missing))
        return self.norm(feats), torch.full_like(n_frames, self.pad_frames)
