"""Frozen lobes as teachers: waveforms in, the outputs of their layers out."""

from typing import NamedTuple

import torch
from torch import nn

from ssast_lobes.checkpoints.format import error_context
from ssast_lobes.lobes.spectrogram import SSAST, SpectrogramLobe
from ssast_lobes.utils.checks import ArgumentError, require
from ssast_lobes.utils.fingerprint import fingerprint
from ssast_lobes.utils.lengths import length_to_mask


class TeacherOutput(NamedTuple):
    """The outputs of a teacher for a batch.

    Arguments
    ---------
    states : torch.Tensor
        Vectors (K, B, T, D) of each time step after each requested layer.
    centers : torch.Tensor
        Time of the middle of each step in the clip, in seconds, (B, T).
    step : torch.Tensor
        Seconds between steps of each clip, (B,).
    is_step : torch.Tensor
        Boolean (B, T), False at padding.
    """

    states: torch.Tensor
    centers: torch.Tensor
    step: torch.Tensor
    is_step: torch.Tensor


class Teacher(nn.Module):
    """A frozen lobe that teaches a student; see `Distillation`.

    It has no gradients and stays in evaluation mode. Its output for a clip is a
    function of the clip alone. For lobes of this package, the vector of a time
    step is the mean of its patches over frequency, and its time is exact. For
    other lobes, only the outputs are known, so the steps are assumed to be
    spread evenly over the clip. This is wrong for a lobe that returns several
    patches for each time step, as SpeechBrain's BEATs does: name its checkpoint
    as the source instead. Clips of the same length are computed together,
    without padding. Comparing the lengths waits for the device.

    Arguments
    ---------
    source : str, path or torch.nn.Module
        A source of ``SSAST(source=...)``, or a lobe, which is a module with
        ``forward(wav, wav_lens)``. The lobe returns (B, T, D), or all hidden
        states (L + 1, B, T, D), or a tuple whose first entry is one of these.
        Hidden states begin with the input of the first layer, as in
        SpeechBrain's wav2vec 2.0 lobes with ``output_all_hiddens``. A lobe that
        returns (B, T, D) counts as one layer.

    Raises
    ------
    WeightsError
        If the source does not load.
    ArgumentError
        If the module is not a lobe, or the lobe does not return frames, or it
        returns equally many for any clip.

    Example
    -------
    >>> from ssast_lobes import SSAST
    >>> teacher = Teacher(SSAST(model_size="micro", geometry=(128, 4)))
    >>> wavs, n_samples = torch.randn(2, 16000), torch.tensor([16000, 9600])
    >>> output = teacher(wavs, n_samples, layers=[3, 6])
    >>> output.states.shape, output.is_step.sum(1).tolist()
    (torch.Size([2, 2, 25, 128]), [25, 15])
    """

    def __init__(self, source):
        super().__init__()
        if isinstance(source, nn.Module):
            self.lobe, self.name = source, type(source).__name__
        else:
            self.name = str(source)
            with error_context("teachers"):
                self.lobe = SSAST(source=source)
        self.requires_grad_(False)
        self.train()
        self.is_ours = isinstance(self.lobe, SpectrogramLobe)
        if self.is_ours:
            self.sample_rate = self.lobe.timing.sample_rate
            self.depth = self.lobe.encoder.depth
            self.dim = self.lobe.encoder.dim
        else:
            # Most lobes take 16 kHz, so this is assumed if a lobe states no
            # rate.
            self.sample_rate = getattr(self.lobe, "sample_rate", 16000)
            clip = torch.linspace(-0.1, 0.1, self.sample_rate)[None]
            try:
                states = self._layers_of(clip)
                n_steps = self._layers_of(clip.repeat(1, 2)).shape[2]
            except (TypeError, RuntimeError) as error:
                raise ArgumentError(
                    f"the teacher {self.name} does not take lobe(wav, "
                    f"wav_lens), waveforms (B, S) and (B,): {error}"
                ) from error
            require(
                states.shape[2] > 1,
                f"the output of the teacher {self.name}",
                "frames (B, T, D), not one vector a clip",
                tuple(states.shape[1:]),
            )
            if n_steps == states.shape[2]:
                raise ArgumentError(
                    f"the teacher {self.name} returns {n_steps} frames for "
                    "clips of 1 s and of 2 s: it pads clips to one length, so "
                    "the times of its frames are unknown. Wrap it in a lobe "
                    "that returns only the frames of the clip"
                )
            self.depth, self.dim = len(states) - 1, states.shape[3]

    def train(self, mode=True):
        """Keep evaluation mode; ignore `mode`."""
        return super().train(False)

    def fingerprint(self):
        """Return a text that identifies the weights and settings.

        Returns
        -------
        str
        """
        described = repr(self.lobe)
        if self.is_ours:
            lobe = self.lobe
            chunks = None if lobe.chunks is None else vars(lobe.chunks)
            described += f"{lobe.features.config}{lobe.encoder.config}{chunks}"
        return fingerprint(self.lobe, described)

    @torch.no_grad()
    def forward(self, wavs, n_samples, layers):
        """Return the outputs of layers for a batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms (B, S) at `sample_rate`, with any values at padding.
        n_samples : torch.Tensor
            Length of each clip, (B,) int64.
        layers : list of int
            Numbers of the K layers, from 1 to `depth`.

        Returns
        -------
        TeacherOutput
        """
        if self.is_ours:
            return self._of_ours(wavs, n_samples, layers)
        lengths = n_samples.tolist()
        clips = [None] * len(lengths)
        for length in set(lengths):
            same = [row for row, own in enumerate(lengths) if own == length]
            states = self._layers_of(wavs[same, :length])[layers]
            for row, clip in zip(same, states.unbind(1), strict=True):
                clips[row] = clip
        n_time = torch.tensor([c.shape[1] for c in clips], device=wavs.device)
        most = max(clip.shape[1] for clip in clips)
        states = torch.stack(
            [
                nn.functional.pad(clip, (0, 0, 0, most - clip.shape[1]))
                for clip in clips
            ],
            dim=1,
        )
        step = n_samples / n_time.clamp(min=1) / self.sample_rate
        place = torch.arange(most, device=wavs.device) + 0.5
        is_step = length_to_mask(n_time, most)
        return TeacherOutput(states, place * step[:, None], step, is_step)

    def _of_ours(self, wavs, n_samples, layers):
        """Return the outputs of layers of a lobe of this package."""
        wav_lens = n_samples.double() / wavs.shape[1]
        encoded = self.lobe.extract_features(wavs, wav_lens, True)
        grid = (encoded.n_freq, -1)
        states = torch.stack(
            [
                encoded.hidden_states[layer].unflatten(1, grid).mean(1)
                for layer in layers
            ]
        )
        timing, shape = self.lobe.timing, states.shape[1:3]
        place = torch.arange(shape[1], device=wavs.device) + 0.5
        return TeacherOutput(
            states,
            (timing.start + place * timing.step).expand(shape),
            torch.full((shape[0],), timing.step, device=wavs.device),
            encoded.is_token.unflatten(1, grid)[:, 0],
        )

    @torch.no_grad()
    def _layers_of(self, wavs):
        """Return the outputs (L + 1, B, T, D) of a lobe of another package."""
        output = self.lobe(wavs, wavs.new_ones(len(wavs)))
        if isinstance(output, tuple | list):
            output = output[0]
        shape = tuple(getattr(output, "shape", ()))
        require(
            shape[-3:-2] == (len(wavs),) and len(shape) in (3, 4),
            f"the output of the teacher {self.name}",
            "frames (B, T, D), or hidden states (L + 1, B, T, D)",
            shape or type(output).__name__,
        )
        return output.expand(2, *shape) if len(shape) == 3 else output


def load_teachers(sources):
    """Return the teachers of one or several sources.

    Arguments
    ---------
    sources : str, path, torch.nn.Module, Teacher or list of these
        See `Teacher`.

    Returns
    -------
    list of Teacher

    Raises
    ------
    ArgumentError
        If there is no source.

    Example
    -------
    >>> [teacher.depth for teacher in load_teachers("ssast-lobes-micro-1")]
    [6]
    """
    named = sources if isinstance(sources, list | tuple) else [sources]
    require(
        named and None not in named,
        "teachers",
        "exported folders or lobes, one or several: --teachers '[FOLDER]'",
        sources,
    )
    return [
        source if isinstance(source, Teacher) else Teacher(source)
        for source in named
    ]
