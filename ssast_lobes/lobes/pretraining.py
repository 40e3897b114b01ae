"""Objectives as lobes: waveforms in, loss out."""

from typing import NamedTuple

import torch
from torch import nn

from ssast_lobes.utils.checks import ArgumentError
from ssast_lobes.utils.lengths import full_lengths


class PretrainingOutput(NamedTuple):
    """The loss of a batch, and what to log next to it.

    Arguments
    ---------
    loss : torch.Tensor
        Scalar to minimise.
    logs : dict of str to torch.Tensor
        Detached scalars, means over the clips.
    n_clips : int or torch.Tensor
        Number of these clips: one with a single token has no mask.
    """

    loss: torch.Tensor
    logs: dict
    n_clips: int


class PretrainingLobe(nn.Module):
    """A pretraining objective as a lobe: waveforms in, loss out.

    Arguments
    ---------
    objective : Objective
        Such as `MSPM`; owns the encoder that is trained. One that sets
        ``needs_audio`` is given the waveforms too, and one that sets
        ``needs_place`` where the clips come from.
    features : FrontEnd
        Waveforms to normalized log-mel, such as ``SSAST(...).features``.

    Example
    -------
    >>> from ssast_lobes import SSAST
    >>> from ssast_lobes.objectives import MSPM
    >>> lobe = SSAST(model_size="micro")
    >>> pretrainer = PretrainingLobe(MSPM(lobe.encoder), lobe.features)
    >>> output = pretrainer(torch.randn(2, 16000), torch.tensor([1.0, 0.4]))
    >>> output.loss.backward()
    >>> list(output.logs)
    ['nce', 'nce_chance', 'accuracy', 'accuracy_chance', 'mse']
    """

    def __init__(self, objective, features):
        super().__init__()
        self.objective = objective
        self.features = features

    def forward(self, wavs, wav_lens=None, clip_keys=None, **items):
        """Return the loss of a batch of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            16 kHz mono waveforms (B, S).
        wav_lens : torch.Tensor, optional
            Relative lengths (B,); all clips are full when left out, which
            saves the attention its mask.
        clip_keys : torch.Tensor, optional
            (B,) int64: masks become a function of a clip's key alone, for
            validation. Drawn from PyTorch's generator when left out.
        **items
            Other items of a batch, each for the objectives that ask for it, or
            None: ``positive_pairs`` (B,), which count in training alone;
            ``clip_ids``, a list of texts, and ``crop_starts`` (B,), in
            samples.

        Returns
        -------
        PretrainingOutput

        Raises
        ------
        ValueError
            If the objective needs the places of clips, and they are not told.
        """
        if clip_keys is not None:
            items.pop("positive_pairs", None)
        items = self._asked_for(items)
        feats, n_frames = self.features(wavs, wav_lens)
        if self.objective.needs_audio:
            n_samples = full_lengths(wavs)
            if wav_lens is not None:
                n_samples = (wav_lens * wavs.shape[1]).round().long()
            items |= {"wavs": wavs, "n_samples": n_samples}
        if clip_keys is None:
            if wav_lens is None and self.objective.n_frames_optional:
                n_frames = None
            output = self.objective(feats, n_frames, **items)
            return PretrainingOutput(*output, len(wavs))
        mask = self.objective.draw_mask(feats, n_frames, clip_keys=clip_keys)
        output = self.objective(
            feats, n_frames, mask, clip_keys=clip_keys, **items
        )
        if mask is None:
            return PretrainingOutput(*output, len(wavs))
        return PretrainingOutput(*output, mask.flatten(1).any(1).sum())

    def _asked_for(self, items):
        """Return those of the items that the objective takes, and there are."""
        objective = self.objective
        asked = {
            "positive_pairs": objective.uses_positive_pairs,
            "clip_ids": objective.needs_place,
            "crop_starts": objective.needs_place or objective.needs_audio,
        }
        told = {key for key, value in items.items() if value is not None}
        if objective.needs_place and not {"clip_ids", "crop_starts"} <= told:
            raise ArgumentError(
                "the objective needs the place of each clip: give its "
                "clip_ids and crop_starts (`ssast_lobes.ClipReader` tells "
                "where it crops)"
            )
        return {key: items[key] for key in told if asked.get(key, True)}
