"""What every pretraining objective has in common."""

from typing import NamedTuple

import torch
from torch import nn


class ObjectiveOutput(NamedTuple):
    """Loss of a batch and what to log beside it.

    Arguments
    ---------
    loss : torch.Tensor
        Scalar to minimise.
    logs : dict of str to torch.Tensor
        Detached scalars.
    """

    loss: torch.Tensor
    logs: dict


class Objective(nn.Module):
    """Base class: an encoder, a masker, and how the two meet.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train.
    masker : Masker
        Draws the masks.
    """

    def __init__(self, encoder, masker):
        super().__init__()
        self.encoder = encoder
        self.masker = masker

    def draw_mask(self, feats, n_frames, generator=None, clip_keys=None):
        """A mask that fits a batch.

        Arguments
        ---------
        feats : torch.Tensor
            (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,).
        generator, clip_keys
            See `Masker.forward`.

        Returns
        -------
        torch.Tensor
            Boolean (B, F', T').
        """
        n_steps, max_steps = self.encoder.token_steps(n_frames, feats.shape[1])
        bands = self.encoder.grid.n_bands
        return self.masker(n_steps, bands, max_steps, generator, clip_keys)

    @property
    def reconstructs(self):
        """Whether there is a ``reconstruct(feats, n_frames, mask)``."""
        return False

    def after_step(self, step, total_steps):
        """Called once after each optimizer step; nothing to do by default.

        Arguments
        ---------
        step : int
            Optimizer steps done.
        total_steps : int
            Steps of the whole training.
        """
