"""Degrade clips as recording, transmission and storage do, for training.

A detector of fakes that is trained only on clean studio speech mistakes a
telephone line for a forgery. Each step here degrades the waveforms of a batch
and keeps their length. A step works on the device of the waveforms and does not
wait for this device. It draws random numbers for each clip, from an optional
generator on the same device. `Degradation` applies each step with a
probability, and keeps the padding at 0.
"""

import math

import torch
from torch import nn

from ssast_lobes.utils.checks import real, reals, require, whole
from ssast_lobes.utils.lengths import length_to_mask


class Degradation(nn.Module):
    """Apply steps of degradation in order, each with a probability.

    Arguments
    ---------
    steps : list of torch.nn.Module
        Modules of this file, in the order in which the degradations really
        occur: noise before clipping, band limits before a codec.
    probability : float
        Probability that a step is applied to a clip.

    Example
    -------
    >>> wav, lens = torch.randn(2, 8000), torch.tensor([1.0, 0.5])
    >>> degradation = Degradation([AddedNoise(), Clipping()], probability=0.5)
    >>> degraded = degradation(wav * (torch.arange(8000) < 4000), lens)
    >>> degraded.shape, degraded[1, 4000:].abs().sum().item()
    (torch.Size([2, 8000]), 0.0)
    """

    def __init__(self, steps, probability=0.3):
        super().__init__()
        right = isinstance(steps, list | tuple | nn.ModuleList)
        right = right and all(isinstance(step, nn.Module) for step in steps)
        require(right, "steps", "a list of modules", steps)
        self.steps = nn.ModuleList(steps)
        self.probability = real("probability", probability, 0, 1)

    def forward(self, wav, lens, generator=None):
        """Degrade a batch.

        Arguments
        ---------
        wav : torch.Tensor
            Waveforms (B, S), between -1 and 1.
        lens : torch.Tensor
            Relative lengths (B,) in (0, 1].
        generator : torch.Generator, optional
            Source of the draws, on the device of `wav`.

        Returns
        -------
        torch.Tensor
            Waveforms (B, S), 0 at padding.
        """
        n_samples = (lens.to(wav.device, torch.float64) * wav.shape[1]).round()
        is_audio = length_to_mask(n_samples, wav.shape[1])
        for step in self.steps:
            chosen = _draw(wav, 0.0, 1.0, generator) < self.probability
            degraded = step(wav, is_audio, generator)
            wav = torch.where(chosen & is_audio, degraded, wav)
        return wav


class AddedNoise(nn.Module):
    """Add noise of a drawn color at a drawn signal-to-noise ratio.

    Arguments
    ---------
    snr_db : tuple of float
        Lowest and highest ratio in dB, computed without padding.
    slope : tuple of float
        Lowest and highest slope. The power of the noise is proportional to
        1 / frequency ** slope. 0 is white, 1 pink, 2 brown noise.

    Example
    -------
    >>> wav = torch.ones(1, 1000)
    >>> is_audio = torch.ones(1, 1000, dtype=torch.bool)
    >>> noise = AddedNoise(snr_db=(20.0, 20.0))(wav, is_audio) - wav
    >>> round(noise.square().mean().item(), 4)
    0.01
    """

    def __init__(self, snr_db=(5.0, 40.0), slope=(0.0, 2.0)):
        super().__init__()
        self.snr_db = reals("snr_db", snr_db)
        self.slope = reals("slope", slope)

    def forward(self, wav, is_audio, generator=None):
        """Degrade waveforms (B, S); `is_audio` (B, S) is False at padding."""
        noise = torch.randn(
            wav.shape, device=wav.device, generator=generator, dtype=wav.dtype
        )
        spectrum = torch.fft.rfft(noise)
        bins = torch.arange(spectrum.shape[1], device=wav.device).clamp(min=1)
        slope = _draw(wav, *self.slope, generator)
        noise = torch.fft.irfft(spectrum * bins ** (-slope / 2), n=wav.shape[1])
        snr = 10 ** (_draw(wav, *self.snr_db, generator) / 10)
        wanted = _power(wav, is_audio) / snr
        return wav + noise * (wanted / _power(noise, is_audio)).sqrt()


class Clipping(nn.Module):
    """Clip the waveform at a drawn fraction of its peak.

    Arguments
    ---------
    level : tuple of float
        Lowest and highest fraction, 0 to 1.

    Example
    -------
    >>> wav = torch.tensor([[0.1, -0.8, 0.4]])
    >>> is_audio = torch.ones(1, 3, dtype=torch.bool)
    >>> Clipping(level=(0.5, 0.5))(wav, is_audio)
    tensor([[ 0.1000, -0.4000,  0.4000]])
    """

    def __init__(self, level=(0.1, 0.7)):
        super().__init__()
        self.level = reals("level", level, 0, 1)

    def forward(self, wav, is_audio, generator=None):
        """Degrade waveforms (B, S); `is_audio` (B, S) is False at padding."""
        peak = torch.where(is_audio, wav, 0.0).abs().amax(1, keepdim=True)
        limit = peak * _draw(wav, *self.level, generator)
        return wav.clamp(-limit, limit)


class BandLimit(nn.Module):
    """Remove low and high frequencies, as lines and microphones do.

    The gain is that of a Butterworth filter of the given order. The phase does
    not change.

    Arguments
    ---------
    low_hz, high_hz : tuple of float
        Lowest and highest frequency in Hz of the lower and of the upper edge.
        At an edge, the power is halved (-3 dB).
    order : int
        Steepness of the edges: 6 dB an octave for each order.
    sample_rate : int
        Sampling rate in Hz. In training, the Brain sets that of the front end.

    Example
    -------
    >>> time = torch.arange(16000) / 16000
    >>> wav = torch.sin(2 * torch.pi * 6000 * time)[None]
    >>> is_audio = torch.ones(1, 16000, dtype=torch.bool)
    >>> limit = BandLimit(high_hz=(3000.0, 3000.0))
    >>> bool(limit(wav, is_audio).abs().max() < 0.01)
    True
    """

    def __init__(
        self,
        low_hz=(20.0, 300.0),
        high_hz=(3000.0, 8000.0),
        order=8,
        sample_rate=16000,
    ):
        super().__init__()
        self.low_hz = reals("low_hz", low_hz, 0)
        self.high_hz = reals("high_hz", high_hz, 1)
        self.order = whole("order", order)
        self.sample_rate = whole("sample_rate", sample_rate)

    def forward(self, wav, is_audio, generator=None):
        """Degrade waveforms (B, S); `is_audio` (B, S) is False at padding."""
        spectrum = torch.fft.rfft(wav)
        hertz = torch.arange(spectrum.shape[1], device=wav.device)
        hertz = hertz * (self.sample_rate / wav.shape[1])
        low = _draw(wav, *self.low_hz, generator)
        high = _draw(wav, *self.high_hz, generator)
        power = 2 * self.order
        # 1 / (1 + (low / f) ** power), written so that it is 0 at f = 0.
        above = 1 / (1 + (low / hertz.clamp(min=1e-3)) ** power)
        below = 1 / (1 + (hertz / high) ** power)
        gain = (above * below).sqrt()
        return torch.fft.irfft(spectrum * gain, n=wav.shape[1])


class Companding(nn.Module):
    """Quantize the waveform by the mu-law of telephony (ITU-T G.711).

    Arguments
    ---------
    bits : tuple of float
        Fewest and most bits in a sample; G.711 uses 8. The drawn number is
        real: 7.5 means round(2 ** 7.5) levels.

    Example
    -------
    >>> wav = torch.linspace(-1, 1, 1000)[None]
    >>> is_audio = torch.ones(1, 1000, dtype=torch.bool)
    >>> coded = Companding(bits=(4.0, 4.0))(wav, is_audio)
    >>> len(coded.unique())
    16
    """

    MU = 255.0

    def __init__(self, bits=(5.0, 8.0)):
        super().__init__()
        self.bits = reals("bits", bits, 1)

    def forward(self, wav, is_audio, generator=None):
        """Degrade waveforms (B, S); `is_audio` (B, S) is False at padding."""
        steps = (2 ** _draw(wav, *self.bits, generator)).round() - 1
        loud = wav.abs().clamp(max=1.0)
        # Between -1 and 1, equally spaced in loudness.
        place = torch.log1p(self.MU * loud) / math.log1p(self.MU) * wav.sign()
        place = ((place + 1) / 2 * steps).round() / steps * 2 - 1
        loud = torch.expm1(place.abs() * math.log1p(self.MU)) / self.MU
        return loud * place.sign()


class TransformCoding(nn.Module):
    """Quantize the short-time spectrum, as mp3, AAC or Opus do.

    The quantization step is a drawn multiple of the level around each
    frequency. Peaks stay. Weaker components are lost and leave holes in the
    spectrum, as at low bit rates. This imitates the family of codecs, and
    reproduces none of them exactly.

    Arguments
    ---------
    step : tuple of float
        Lowest and highest step, as a multiple of the root mean square of the
        surroundings. A step below 0.5 is hardly audible; above 3, little audio
        is left.
    window : int
        Length of the transform in samples, even.
    surroundings : int
        Number of bins around each frequency that determine its level, odd.

    Example
    -------
    >>> wav = torch.randn(1, 4000)
    >>> is_audio = torch.ones(1, 4000, dtype=torch.bool)
    >>> coded = TransformCoding(step=(1.0, 1.0))(wav, is_audio)
    >>> bool((coded - wav).square().mean() < 0.2 * wav.square().mean())
    True
    """

    def __init__(self, step=(0.5, 2.5), window=512, surroundings=9):
        super().__init__()
        self.step = reals("step", step, 0)
        self.window = whole("window", window, 2)
        self.surroundings = whole("surroundings", surroundings)
        require(window % 2 == 0, "window", "even", window)
        require(surroundings % 2 == 1, "surroundings", "odd", surroundings)

    def forward(self, wav, is_audio, generator=None):
        """Degrade waveforms (B, S); `is_audio` (B, S) is False at padding."""
        samples, half = wav.shape[1], self.window // 2
        # The window is applied before and after coding. The squares of sine
        # windows that overlap by half sum to 1.
        places = torch.arange(self.window, device=wav.device) + 0.5
        sine = torch.sin(places * (math.pi / self.window))
        padded = nn.functional.pad(wav, (half, half + -samples % half))
        spectrum = torch.fft.rfft(padded.unfold(1, self.window, half) * sine)
        # Real and imaginary parts: (B, windows, bins, 2).
        parts = torch.view_as_real(spectrum)
        level = nn.functional.avg_pool1d(
            parts.square().mean(-1),
            self.surroundings,
            stride=1,
            padding=self.surroundings // 2,
            count_include_pad=False,
        ).sqrt()
        coarse = _draw(wav, *self.step, generator)[:, :, None]
        # Digital silence, whose level is 0, stays silent.
        step = (coarse * level).clamp(min=1e-9)[..., None]
        spectrum = torch.view_as_complex((parts / step).round() * step)
        coded = torch.fft.irfft(spectrum, n=self.window) * sine
        coded = coded[:, 1:, :half] + coded[:, :-1, half:]
        return coded.flatten(1)[:, :samples]


def _draw(wav, low, high, generator):
    """Draw a uniform number for each clip, (B, 1)."""
    draw = torch.rand(wav.shape[0], 1, device=wav.device, generator=generator)
    return low + (high - low) * draw


def _power(wav, is_audio):
    """Return the mean square of each clip's own samples, (B, 1)."""
    total = torch.where(is_audio, wav, 0.0).square().sum(1, keepdim=True)
    power = total / is_audio.sum(1, keepdim=True).clamp(min=1)
    return power.clamp(min=torch.finfo(wav.dtype).tiny)
