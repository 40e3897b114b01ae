"""Training augmentation: mixup, spectrogram masking, noise and roll.

All modules work on a whole batch, on its device, and never wait for the device.
They draw random numbers for each clip, from an optional generator on the same
device. Padding stays 0.
"""

import torch
from torch import nn

from ssast_lobes.utils.checks import real, whole
from ssast_lobes.utils.lengths import length_to_mask


def _uniform(like, *shape, generator=None):
    return torch.rand(*shape, device=like.device, generator=generator)


class Mixup(nn.Module):
    """Mix the waveforms of two clips, and their targets with the same weights.

    Follows SSAST (Gong et al., 2022, `src/dataloader.py`) and, before it,
    Tokozume et al. (2018). The mean of each waveform is subtracted. The second
    waveform is cut or padded to the length of the first. Then the mean of the
    mixture is subtracted. The second clip comes from a random permutation of
    the batch. The soft targets fit both cross-entropy and binary cross-entropy.

    Arguments
    ---------
    alpha : float
        The weight of the first clip is drawn from Beta(alpha, alpha).
    probability : float
        Fraction of the clips that are mixed; the others stay unchanged.

    Example
    -------
    >>> wav, lens = torch.randn(4, 800), torch.tensor([1.0, 1.0, 0.5, 1.0])
    >>> targets = torch.eye(4)
    >>> generator = torch.Generator().manual_seed(0)
    >>> mixed, lens, soft = Mixup(probability=1.0)(
    ...     wav, lens, targets, generator
    ... )
    >>> mixed.shape, soft.sum(dim=1)
    (torch.Size([4, 800]), tensor([1., 1., 1., 1.]))
    """

    def __init__(self, alpha=10.0, probability=0.5):
        super().__init__()
        self.alpha = real("alpha", alpha, 0, inside=True)
        self.probability = real("probability", probability, 0, 1)

    def forward(self, wav, lens, targets, generator=None):
        """Mix clips with random clips of the same batch.

        Arguments
        ---------
        wav : torch.Tensor
            Waveforms (B, S).
        lens : torch.Tensor
            Relative lengths (B,) in (0, 1].
        targets : torch.Tensor
            One-hot, multi-hot or soft targets (B, C).
        generator : torch.Generator, optional
            Source of the draws, on the device of `wav`.

        Returns
        -------
        wav : torch.Tensor
            Waveforms (B, S), 0 at the padding of mixed clips.
        lens : torch.Tensor
            Relative lengths (B,), unchanged: a mixture is as long as its first
            clip.
        targets : torch.Tensor
            Soft targets (B, C).

        Raises
        ------
        ValueError
            If `targets` are class indices.
        """
        if targets.dim() != 2:
            raise ValueError(
                "mixup needs targets of shape (batch, classes), got "
                f"{tuple(targets.shape)}; turn class indices into one-hot "
                "vectors first"
            )
        batch = wav.shape[0]
        chosen = _uniform(wav, batch, generator=generator) < self.probability
        partner = _uniform(wav, batch, generator=generator).argsort()
        ratio = self._ratio(wav, generator)[:, None]

        n_samples = (lens.to(wav.device, torch.float64) * wav.shape[1]).round()
        is_audio = length_to_mask(n_samples, wav.shape[1])
        centered = _remove_mean(wav, is_audio)
        mixture = ratio * centered + (1 - ratio) * centered[partner]
        mixture = _remove_mean(mixture, is_audio)
        soft = ratio * targets + (1 - ratio) * targets[partner]
        chosen = chosen[:, None]
        return (
            torch.where(chosen, mixture, wav),
            lens,
            torch.where(chosen, soft, targets),
        )

    def _ratio(self, wav, generator):
        # torch.distributions.Beta accepts no generator. A Beta draw is one
        # Gamma draw, divided by the sum of this draw and a second one.
        alpha = torch.full((2, wav.shape[0]), self.alpha, device=wav.device)
        first, second = torch._standard_gamma(alpha, generator=generator)
        return first / (first + second)


def _remove_mean(wav, is_audio):
    total = torch.where(is_audio, wav, 0.0).sum(1, keepdim=True)
    mean = total / is_audio.sum(1, keepdim=True).clamp(min=1)
    return torch.where(is_audio, wav - mean, 0.0)


class SpectrogramMasking(nn.Module):
    """Mask one band of mel bins and one stretch of frames of each clip.

    This is SpecAugment (Park et al., 2019) without time warping. Widths are
    drawn for each clip, as in torchaudio's `FrequencyMasking` and
    `TimeMasking`. All positions where the mask fits are equally likely, whereas
    torchaudio's rounding never masks the last bin. The stretch lies within the
    clip's own frames. Masked values become 0, the value of padding. After the
    fixed normalization, 0 is the mean of the dataset.

    `speechbrain.augment.freq_domain.SpectrogramDrop` is not used because it
    overwrites its input, accepts no generator, copies random numbers to the
    host and also masks padding.

    Arguments
    ---------
    freq_width : int
        The band is 0 to `freq_width` - 1 mel bins wide. Each width is equally
        likely; with 0 there is no band.
    time_width : int
        The stretch is 0 to `time_width` - 1 frames wide, and at most as long as
        the clip.

    Example
    -------
    >>> feats, n_frames = torch.ones(2, 100, 16), torch.tensor([100, 60])
    >>> masking = SpectrogramMasking(freq_width=8, time_width=20)
    >>> masking(feats, n_frames).shape
    torch.Size([2, 100, 16])
    """

    def __init__(self, freq_width, time_width):
        super().__init__()
        self.freq_width = whole("freq_width", freq_width, 0)
        self.time_width = whole("time_width", time_width, 0)

    def forward(self, feats, n_frames, generator=None):
        """Mask one band and one stretch of each clip.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized spectrograms (B, T, M).
        n_frames : torch.Tensor
            Valid frames (B,), int64.
        generator : torch.Generator, optional
            Source of the draws, on the device of `feats`.

        Returns
        -------
        torch.Tensor
            Masked spectrograms (B, T, M).
        """
        _, frames, mels = feats.shape
        all_mels = torch.full_like(n_frames, mels)
        band = self._interval(all_mels, mels, self.freq_width, generator)
        stretch = self._interval(n_frames, frames, self.time_width, generator)
        hidden = band[:, None, :] | stretch[:, :, None]
        return feats.masked_fill(hidden, 0.0)

    @staticmethod
    def _interval(sizes, columns, max_width, generator):
        draws = _uniform(sizes, 2, len(sizes), generator=generator)
        width = (draws[0] * max_width).long().minimum(sizes)
        start = (draws[1] * (sizes - width + 1)).long()
        places = torch.arange(columns, device=sizes.device)
        return (places >= start[:, None]) & (places < (start + width)[:, None])


class NoiseAndRoll(nn.Module):
    """Add uniform noise of a random strength and rotate the clip in time.

    Follows SSAST's `noise=True` (`src/dataloader.py`). For each clip, a
    strength is drawn from U(0, `noise`). To each value, the strength times a
    draw from U(0, 1) is added. Then the frames rotate by -`shift` to
    `shift` - 1 places. Here only the clip's own frames rotate, so that the
    padding stays behind the audio.

    Arguments
    ---------
    noise : float
        Largest strength, in units of the normalized spectrogram.
    shift : int
        Largest rotation in frames.

    Example
    -------
    >>> feats, n_frames = torch.zeros(2, 100, 16), torch.tensor([100, 60])
    >>> noisy = NoiseAndRoll()(feats, n_frames)
    >>> noisy.max() <= 0.1, noisy[1, 60:].abs().sum()
    (tensor(True), tensor(0.))
    """

    def __init__(self, noise=0.1, shift=10):
        super().__init__()
        self.noise = real("noise", noise, 0)
        self.shift = whole("shift", shift, 0)

    def forward(self, feats, n_frames, generator=None):
        """Add noise to the valid frames and rotate them.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized spectrograms (B, T, M).
        n_frames : torch.Tensor
            Valid frames (B,), int64.
        generator : torch.Generator, optional
            Source of the draws, on the device of `feats`.

        Returns
        -------
        torch.Tensor
            Augmented spectrograms (B, T, M), with unchanged padding.
        """
        batch, frames, _ = feats.shape
        strength = _uniform(feats, batch, 1, 1, generator=generator)
        noise = _uniform(feats, *feats.shape, generator=generator)
        # U[0, 1) * 2 * shift, rounded down, is each whole number below
        # 2 * shift.
        shift = _uniform(feats, batch, generator=generator) * 2 * self.shift
        shift = shift.long() - self.shift

        noisy = feats + self.noise * strength * noise
        is_audio = length_to_mask(n_frames, frames)
        places = torch.arange(frames, device=feats.device)
        source = (places - shift[:, None]) % n_frames.clamp(min=1)[:, None]
        rolled = noisy.gather(1, source[:, :, None].expand_as(noisy))
        return torch.where(is_audio[:, :, None], rolled, feats)
