"""Run an exported model on batches of audio of any length.

The windows and results are those of `ssast_lobes.inference.AudioEncoder`. But
this model is a module, which moves between devices and can be trained. It never
waits for the device.
"""

import torch
from torch import nn

from ssast_lobes.inference.encoder import AudioEncoder
from ssast_lobes.inference.windows import Windowing
from ssast_lobes.utils.lengths import full_lengths, length_to_mask


class WindowedModel(nn.Module):
    """Run an exported model on waveforms of any length.

    Audio longer than the window of the export is cut into windows that overlap
    by half; see `ssast_lobes.inference`.

    Arguments
    ---------
    source : str or path
        Exported folder.

    Raises
    ------
    WeightsError
        See `AudioEncoder.from_hparams`.

    Example
    -------
    >>> from ssast_lobes import FrontEnd, SpectrogramEncoder
    >>> from ssast_lobes.checkpoints.folder import export_pretrained
    >>> from ssast_lobes.objectives import MSPM
    >>> objective = MSPM(SpectrogramEncoder(dim=32, depth=1, heads=2))
    >>> folder = getfixture("tmpdir") / "export"
    >>> _ = export_pretrained(folder, objective, FrontEnd(), card={})
    >>> model = WindowedModel(folder)
    >>> wav, lengths = torch.randn(2, 480000), torch.tensor([480000, 16000])
    >>> model.frames(wav, lengths).shape, model.n_time(lengths).tolist()
    (torch.Size([2, 188, 32]), [188, 7])
    """

    def __init__(self, source):
        super().__init__()
        interface = AudioEncoder.from_hparams(source)
        self.lobe = interface.lobe
        self.fbank = self.lobe.features.fbank
        self.grid = self.lobe.encoder.grid
        self.sample_rate = interface.sample_rate
        self.samples_per_step = self.grid.stride[1] * self.fbank.hop_samples
        self._windowing = Windowing(
            self.fbank, self.grid, interface.window_seconds
        )

    @property
    def output_size(self):
        """D, the size of the vector of a time step."""
        return self.lobe.encoder.dim

    def n_time(self, n_samples):
        """Count the time steps T' of a clip.

        Arguments
        ---------
        n_samples : int or torch.Tensor
            Length in samples, a number or (B,) int64.

        Returns
        -------
        int or torch.Tensor
        """
        return self.grid.n_time(self.fbank.frames_of(n_samples))

    def clip(self, wav, lengths=None):
        """Return one vector for each clip, by the pooling of the export.

        Arguments
        ---------
        wav : torch.Tensor
            Mono waveforms (B, S) at the model's rate, floating point with full
            scale 1. Padding may have any values.
        lengths : torch.Tensor, optional
            Samples of each clip (B,), int64; by default all clips are full.

        Returns
        -------
        torch.Tensor
            (B, D), or more than D, depending on the pooling.

        Raises
        ------
        ValueError
            If `wav` is shorter than one analysis window (25 ms), or is not
            floating point. Lengths are not checked, since that would wait for
            the device.
        """
        lengths = self._lengths(wav, lengths)
        vectors, weights = self._windowing.clips(self.lobe, wav, lengths)
        return torch.einsum("bw,bwd->bd", weights, vectors)

    def frames(self, wav, lengths=None):
        """Return one vector for each time step; see `clip` for arguments.

        Returns
        -------
        torch.Tensor
            (B, T', D), the mean over frequency, 0 at padding.
        """
        lengths = self._lengths(wav, lengths)
        windows = self._windowing.encode(self.lobe, wav, lengths)
        parts = [encoded.frames for encoded in windows]
        return self._stitch(parts, lengths, self.n_time(wav.shape[1]))

    def layers(self, wav, lengths=None):
        """Return `frames` of the last layer and of every layer.

        Returns
        -------
        frames : torch.Tensor
            (B, T', D), after the final norm, 0 at padding.
        states : torch.Tensor
            (L + 1, B, T', D), before the final norm: the input of the first
            block, then the output of each block; 0 at padding.
        """
        lengths = self._lengths(wav, lengths)
        parts = []
        for encoded in self._windowing.encode(
            self.lobe, wav, lengths, hidden_states=True
        ):
            states = encoded.hidden_states.unflatten(2, (encoded.n_freq, -1))
            parts.append(torch.cat([states.mean(2), encoded.frames[None]]))
        states = self._stitch(parts, lengths, self.n_time(wav.shape[1]))
        return states[-1], states[:-1]

    def _lengths(self, wav, lengths):
        if wav.dim() != 2 or wav.shape[1] < self.fbank.least_samples:
            raise ValueError(
                "wav must be (batch, samples), with at least "
                f"{self.fbank.least_samples} samples at {self.sample_rate} "
                f"Hz, got {tuple(wav.shape)}"
            )
        if lengths is None:
            return full_lengths(wav)
        return lengths.to(wav.device)

    def _stitch(self, parts, lengths, n_time):
        """Join windows (.., B, W, D) to (.., B, T', D); 0 at padding.

        Where two windows overlap, each step comes from the window whose center
        is nearer.
        """
        steps, hop = self._windowing.n_time, self._windowing.hop_time
        missing = max(0, steps - parts[-1].shape[-2])
        parts[-1] = nn.functional.pad(parts[-1], (0, 0, 0, missing))
        # With reference padding, a window has more steps than its audio.
        joined = torch.cat([part[..., :steps, :] for part in parts], dim=-2)
        time = torch.arange(n_time, device=lengths.device)
        number = ((time - (hop + steps) // 2) // hop + 1).clamp(min=0)
        last = self._windowing.count(lengths) - 1
        number = torch.minimum(number, last[:, None])
        place = number * steps + time - number * hop
        place = place.clamp(max=joined.shape[-2] - 1)
        size = (*joined.shape[:-2], n_time, joined.shape[-1])
        frames = joined.gather(-2, place[..., None].expand(size))
        is_frame = length_to_mask(self.n_time(lengths), n_time)
        return frames * is_frame[..., None]
