"""Mel spectrograms of centered frames, as in librosa and torchaudio."""

import torch
from torch import nn
from torchaudio.compliance.kaldi import get_mel_banks
from torchaudio.functional import melscale_fbanks

from ssast_lobes.models.filterbank import Filterbank
from ssast_lobes.utils.checks import flag, one_of, real, whole
from ssast_lobes.utils.lengths import length_to_mask

# Float32 epsilon, which code based on nnAudio adds to energies.
EPSILON = torch.finfo(torch.float32).eps

# Smallest energy before the conversion to decibels, as in torchaudio.
_LEAST_ENERGY = 1e-10


class MelSpectrogram(Filterbank):
    """Compute log-mel energies of centered frames.

    Sample t * `hop_samples` is in the middle of frame t. Each clip is reflected
    at its start and its end, so n samples give n // hop + 1 frames. This class
    can be the front end of M2D (nnAudio), of ATST and Dasheng
    (``torchaudio.transforms``) and of MaskSpec.

    Arguments
    ---------
    sample_rate : int
        Sampling rate of the waveforms in Hz.
    n_mels : int
        Number of mel bins.
    fft_size : int
        Samples of the Fourier transform.
    window_samples : int
        Samples of the Hann window, centered in the transform.
    hop_samples : int
        Samples between frames.
    low_hz, high_hz : float
        Lowest and highest frequency of the mel bins.
    mel_scale : str
        ``"htk"``, ``"slaney"`` (each filter has area 1) or ``"kaldi"``.
    offset : float
        Value added to energies before the natural logarithm.
    top_db : float, optional
        If given, energies are in decibels instead of natural logarithms.
        Energies more than `top_db` below the maximum of the clip are raised to
        this limit.
    periodic : bool
        Whether the window is periodic.
    pre_emphasis : float
        Fraction of the previous sample to subtract. If not 0, the first sample
        is lost.

    Example
    -------
    >>> fbank = MelSpectrogram()
    >>> feats, n_frames = fbank(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    >>> feats.shape, n_frames.tolist()
    (torch.Size([2, 101, 80]), [101, 51])
    """

    def __init__(
        self,
        sample_rate=16000,
        n_mels=80,
        fft_size=400,
        window_samples=400,
        hop_samples=160,
        low_hz=50.0,
        high_hz=8000.0,
        mel_scale="slaney",
        offset=EPSILON,
        top_db=None,
        periodic=True,
        pre_emphasis=0.0,
    ):
        super().__init__(sample_rate, n_mels)
        one_of("mel_scale", mel_scale, ("htk", "slaney", "kaldi"))
        self.fft_size = whole("fft_size", fft_size, 2)
        whole("window_samples", window_samples, 2, fft_size)
        self.hop_samples = whole("hop_samples", hop_samples)
        self.low_hz = real("low_hz", low_hz, 0)
        self.high_hz = real("high_hz", high_hz, low_hz, inside=True)
        self.mel_scale = mel_scale
        self.offset = real("offset", offset, 0, inside=True)
        self.top_db = real("top_db", top_db, 0, inside=True, null=True)
        self.periodic = flag("periodic", periodic)
        self.pre_emphasis = real("pre_emphasis", pre_emphasis, 0, 1)
        self.window_samples = window_samples
        self._lost = int(pre_emphasis > 0)
        # In shorter clips a reflection would reach beyond the other end.
        self.least_samples = fft_size // 2 + 1 + self._lost
        self.first_center = float(self._lost)
        window = torch.hann_window(window_samples, periodic=periodic)
        left = (fft_size - window_samples) // 2
        window = nn.functional.pad(
            window, (left, fft_size - window_samples - left)
        )
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("mel_filters", self._filters(), persistent=False)

    def _filters(self):
        """Return the mel filters (Fourier bins, n_mels)."""
        if self.mel_scale == "kaldi":
            filters, _ = get_mel_banks(
                self.n_mels,
                self.fft_size,
                self.sample_rate,
                self.low_hz,
                self.high_hz,
                100.0,
                -500.0,
                1.0,
            )
            # Kaldi's filters do not use the Nyquist bin.
            return nn.functional.pad(filters, (0, 1)).t().contiguous()
        return melscale_fbanks(
            self.fft_size // 2 + 1,
            self.low_hz,
            self.high_hz,
            self.n_mels,
            self.sample_rate,
            "slaney" if self.mel_scale == "slaney" else None,
            self.mel_scale,
        )

    @property
    def settings(self):
        """The arguments, without sampling rate and number of mel bins."""
        names = ("fft_size", "window_samples", "hop_samples", "low_hz")
        names += ("high_hz", "mel_scale", "offset", "top_db", "periodic")
        return {name: getattr(self, name) for name in (*names, "pre_emphasis")}

    def samples_of(self, n_frames):
        """Return the fewest samples that give this many frames.

        A clip needs at least `least_samples` in any case.
        """
        return (n_frames - 1) * self.hop_samples + self._lost

    def frames_of(self, n_samples):
        """Return the number of frames of a clip.

        Arguments
        ---------
        n_samples : int or torch.Tensor
            Clip length in samples, a number or (B,) int64.

        Returns
        -------
        int or torch.Tensor
            Frame count; 0 for a clip shorter than `least_samples`.

        Example
        -------
        >>> MelSpectrogram().frames_of(16000)
        101
        """
        count = (n_samples - self._lost) // self.hop_samples + 1
        short = n_samples < self.least_samples
        if isinstance(n_samples, torch.Tensor):
            return count.masked_fill(short, 0)
        return 0 if short else count

    def _log_mel(self, wav, n_samples, n_frames):
        """Return the log-mel (B, T, n_mels) of waveforms (B, S)."""
        if self._lost:
            wav = wav[:, 1:] - self.pre_emphasis * wav[:, :-1]
            n_samples = n_samples - 1
        frames = self._frames(wav, n_samples)
        if wav.is_cuda:
            # TF32 products would be wrong in the third digit.
            frames = frames.double()
        spectrum = torch.fft.rfft(frames * self.window)
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        energies = power @ self.mel_filters.to(power.dtype)
        padding = ~length_to_mask(n_frames, energies.shape[1])[:, :, None]
        if self.top_db is None:
            feats = (energies + self.offset).log()
        else:
            # Padding must not become the maximum of a clip.
            energies = energies.masked_fill(padding, 0.0)
            feats = 10 * energies.clamp(min=_LEAST_ENERGY).log10()
            least = feats.amax((1, 2), keepdim=True) - self.top_db
            feats = feats.maximum(least)
        return feats.float().masked_fill_(padding, 0.0)

    def _frames(self, wav, n_samples):
        """Return frames (B, T, fft_size) of clips reflected at both ends."""
        if wav.shape[1] == 0:
            wav = nn.functional.pad(wav, (0, 1))
        half = self.fft_size // 2
        n_frames = max(1, self.frames_of(wav.shape[1] + self._lost))
        reach = (n_frames - 1) * self.hop_samples + self.fft_size
        place = (torch.arange(reach, device=wav.device) - half).abs()
        last = n_samples[:, None] - 1
        place = torch.where(place > last, 2 * last - place, place)
        place = place.clamp(0, wav.shape[1] - 1)
        wav = wav.gather(1, place.expand(wav.shape[0], -1))
        return wav.unfold(1, self.fft_size, self.hop_samples)
