"""Features for k-means: log-mel, cepstra, chroma, or an encoder's block."""

import torch
from torch import nn

from ssast_lobes.models.encoders import make_encoder
from ssast_lobes.models.event_head import FrameTiming
from ssast_lobes.models.features import FrontEnd
from ssast_lobes.objectives.tokenizers.spectral import (
    Cepstra,
    LogMel,
    token_times,
)
from ssast_lobes.utils.checks import one_of, whole
from ssast_lobes.utils.lengths import length_to_mask

# Bins of 7.8 Hz at 16 kHz resolve semitones from C3 (131 Hz) on.
_CHROMA_WINDOW = 2048
_CHROMA_RANGE = (130.0, 4200.0)
# Sampling rate of the waveforms.
SAMPLE_RATE = 16000


class Chroma(LogMel):
    """Compute the strength of the twelve pitch classes at each token.

    A Fourier transform is computed over 128 ms of the waveform (16 kHz) around
    the middle of the token. Its magnitudes from 130 to 4,200 Hz are summed for
    each class. A bin counts for the two classes nearest to its pitch. The
    vector of twelve values is scaled to length 1, and is 0 in silence. All
    tokens of a time step have the same vector. Mel bins are too wide for
    chroma, since they do not resolve low pitches.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> tone = (440 * torch.pi / 8000 * torch.arange(16000.0)).sin()[None]
    >>> chroma = Chroma(Grid(128, (128, 4)))
    >>> x = chroma(torch.zeros(1, 98, 128), None, tone, torch.tensor([16000]))
    >>> x.shape, x[0, 12].argmax().item()  # A, as C is 0
    (torch.Size([1, 25, 12]), 9)
    """

    name = "chroma"
    needs_audio = True

    def __init__(self, grid):
        super().__init__(grid)
        bins = torch.arange(_CHROMA_WINDOW // 2 + 1)
        hertz = bins.double() * SAMPLE_RATE / _CHROMA_WINDOW
        # These are semitones above a C.
        pitch = 12 * (hertz.clamp(min=1) / 440).log2() + 9
        distance = (pitch[:, None] - torch.arange(12) + 6) % 12 - 6
        weights = (1 - distance.abs()).clamp(min=0)
        low, high = _CHROMA_RANGE
        weights[(hertz < low) | (hertz > high)] = 0
        self.register_buffer("weights", weights.float(), persistent=False)
        window = torch.hann_window(_CHROMA_WINDOW)
        self.register_buffer("window", window, persistent=False)
        self.start, self.step = token_times(grid)

    def forward(self, feats, n_frames, wavs, n_samples, **place):
        """Return the features of the tokens.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels); only its number of frames is
            used.
        n_frames : torch.Tensor
            Valid frames (B,).
        wavs : torch.Tensor
            Waveforms (B, S), 16 kHz.
        n_samples : torch.Tensor
            Valid samples (B,).
        **place
            Not used.

        Returns
        -------
        torch.Tensor
            (B, N, 12).
        """
        n_time = self.grid.n_time(feats.shape[1])
        middle = round((self.start + self.step / 2) * SAMPLE_RATE)
        hop = round(self.step * SAMPLE_RATE)
        wavs = wavs.float() * length_to_mask(n_samples, wavs.shape[1])
        reach = (n_time - 1) * hop + _CHROMA_WINDOW
        wavs = nn.functional.pad(wavs, (_CHROMA_WINDOW // 2, middle + reach))
        wavs = wavs[:, middle : middle + reach]
        parts = wavs.unfold(1, _CHROMA_WINDOW, hop) * self.window
        chroma = torch.fft.rfft(parts).abs() @ self.weights
        chroma = nn.functional.normalize(chroma, dim=2, eps=1e-3)
        return chroma.repeat(1, self.grid.n_freq, 1)


class EncoderBlock(LogMel):
    """Return the output of a frozen encoder's block at the time of each token.

    These are the features of HuBERT's second iteration. The frozen encoder has
    its own front end, so its mel bins, patches and steps may differ. A token
    gets the frame (the mean over frequency) that is nearest to it in time. All
    tokens of a time step have the same vector.

    Arguments
    ---------
    grid : Grid
        Grid of the encoder to train.
    encoder : dict
        `config` of the frozen encoder.
    features : dict
        `config` of its front end.
    block : int
        Number of the block, from 1.

    Raises
    ------
    ValueError
        If the encoder has no such block.

    Example
    -------
    >>> from ssast_lobes import Grid, SpectrogramEncoder
    >>> frozen = SpectrogramEncoder(Grid(64, (64, 4)), dim=32, depth=2, heads=2)
    >>> block = EncoderBlock(Grid(), frozen.config, {"n_mels": 64}, block=1)
    >>> wavs, n_samples = torch.randn(1, 5520), torch.tensor([5520])
    >>> block(torch.zeros(1, 33, 128), None, wavs, n_samples).shape
    torch.Size([1, 24, 32])
    """

    name = "block"
    needs_audio = True

    def __init__(self, grid, encoder, features, block):
        super().__init__(grid)
        self.start, self.step = token_times(grid)
        self.front_end = FrontEnd(**features)
        self.encoder = make_encoder(encoder)
        # The blocks of some encoders depend on how many there are, so a file
        # keeps the configuration of the whole encoder.
        self.encoder_config = dict(encoder)
        self.block = whole("block", block, 1, self.encoder.depth)
        # Later blocks are not needed. Without them, the fitted file is smaller.
        del self.encoder.blocks[block:]
        self.requires_grad_(False)
        self.eval()

    @property
    def config(self):
        """The arguments, without the grid, that rebuild this."""
        return {
            "encoder": self.encoder_config,
            "features": self.front_end.config,
            "block": self.block,
        }

    def train(self, mode=True):
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, feats, n_frames, wavs, n_samples, **place):
        """Return features (B, N, D); see `Chroma.forward`."""
        own, n_own = self.front_end(wavs, n_samples / wavs.shape[1])
        output = self.encoder(own, n_own, hidden_states=True)
        grid = self.encoder.grid
        frames = output.hidden_states[-1].unflatten(1, (grid.n_freq, -1))
        frames = frames.mean(1)
        theirs = FrameTiming(grid, self.front_end.fbank)
        steps = torch.arange(self.grid.n_time(feats.shape[1])) + 0.5
        times = self.start + self.step * steps.double()
        place = ((times - theirs.start) / theirs.step).floor().long()
        place = place.to(wavs.device).clamp(min=0)
        place = place.minimum(output.n_time[:, None] - 1)
        place = place[:, :, None].expand(-1, -1, frames.shape[2])
        return frames.gather(1, place).repeat(1, self.grid.n_freq, 1)


_FEATURES = {
    kind.name: kind for kind in (LogMel, Cepstra, Chroma, EncoderBlock)
}


def make_features(name, grid, **block):
    """Return the module that computes a kind of features.

    Arguments
    ---------
    name : str
        ``"logmel"``, ``"cepstra"``, ``"chroma"`` or ``"block"``.
    grid : Grid
        Grid of the encoder to train.
    **block
        Arguments of `EncoderBlock`, for ``"block"``.

    Returns
    -------
    torch.nn.Module
        Its ``forward(feats, n_frames)`` returns (B, N, D). If it sets
        ``needs_audio``, it also takes ``wavs`` (B, S) and ``n_samples`` (B,).

    Raises
    ------
    ValueError
        If the name or the block is unknown.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> make_features("chroma", Grid()).needs_audio
    True
    """
    return _FEATURES[one_of("features", name, _FEATURES)](grid, **block)
