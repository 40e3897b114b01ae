"""Objectives as lobes: waveforms in, loss out."""

from typing import NamedTuple

import torch
from torch import nn

from ssast_lobes.utils.checks import ArgumentError
from ssast_lobes.utils.lengths import sample_counts


class PretrainingOutput(NamedTuple):
    """The loss of a batch, and the values to log next to it.

    Arguments
    ---------
    loss : torch.Tensor
        Scalar to minimize.
    logs : dict of str to torch.Tensor
        Detached scalars, means over the clips.
    n_clips : int or torch.Tensor
        Number of clips in these means. In validation, a clip of a single token
        has no mask, so it does not count.
    """

    loss: torch.Tensor
    logs: dict
    n_clips: int


class PretrainingLobe(nn.Module):
    """A pretraining objective as a lobe: waveforms in, loss out.

    Arguments
    ---------
    objective : Objective
        The objective, such as `MSPM`, which owns the encoder to train. If its
        ``needs_audio`` is true, it also gets the waveforms. If its
        ``needs_place`` is true, it also gets the ids and crop starts of the
        clips.
    features : FrontEnd
        The front end, such as ``SSAST(...).features``.

    Raises
    ------
    ValueError
        If the objective needs audio of another rate, or features of another
        front end.

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
        objective.check_front_end(features)
        self.objective = objective
        self.features = features

    def forward(self, wavs, wav_lens=None, clip_keys=None, **items):
        """Return the loss of a batch of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            Mono waveforms (B, S) at the sampling rate of `features`.
        wav_lens : torch.Tensor, optional
            Relative lengths (B,). By default all clips are full, and attention
            needs no mask.
        clip_keys : torch.Tensor, optional
            Keys (B,), int64, for validation: the mask of a clip is a function
            of its key. By default PyTorch's generator draws the masks.
        **items
            Other items of a batch, for objectives that need them; each may be
            None. ``positive_pairs`` (B,) are used in training only.
            ``clip_ids`` are a list of str. ``crop_starts`` (B,) are in samples.

        Returns
        -------
        PretrainingOutput

        Raises
        ------
        ValueError
            If the objective needs ``clip_ids`` and ``crop_starts``, but one of
            them is missing.
        """
        if clip_keys is not None:
            items.pop("positive_pairs", None)
        items = self._asked_for(items)
        feats, n_frames = self.features(wavs, wav_lens)
        if self.objective.needs_audio:
            n_samples = sample_counts(wavs, wav_lens)
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
        """Return the items that the objective needs and that are not None."""
        objective = self.objective
        asked = {
            "positive_pairs": objective.uses_positive_pairs,
            "clip_ids": objective.needs_place,
            "crop_starts": objective.needs_place or objective.needs_audio,
        }
        told = {key for key, value in items.items() if value is not None}
        if objective.needs_place and not {"clip_ids", "crop_starts"} <= told:
            raise ArgumentError(
                "the objective needs to know where each clip comes from: "
                "pass clip_ids and crop_starts (`ssast_lobes.ClipReader` "
                "returns the latter)"
            )
        return {key: items[key] for key in told if asked.get(key, True)}
