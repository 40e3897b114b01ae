"""Base class of the pretraining objectives, and their output."""

from typing import NamedTuple

import torch
from torch import nn

from ssast_lobes.objectives.maskers import make_masker
from ssast_lobes.utils.lengths import full_lengths
from ssast_lobes.utils.presets import build, read_preset
from ssast_lobes.utils.random import RandomSource


class ObjectiveOutput(NamedTuple):
    """Loss of a batch and what to log next to it.

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
    masker : Masker or dict, optional
        Draws the masks of an objective that masks tokens, or the `config` of
        one; the masker of `preset` when left out.

    Raises
    ------
    ValueError
        If the masker is neither; see `make_masker`.
    """

    # File of ``hparams/objective/`` with the published masker of the class;
    # None of an objective that masks no tokens.
    preset = None

    # First parts of the names of tensors that serve this training only: they
    # are in its checkpoints, not in exports. A teacher starts from a loaded
    # student again.
    training_only = ("teacher",)
    # Whether `forward` takes `positive_pairs`, see `ContrastiveMSPM`.
    uses_positive_pairs = False
    # Whether `forward` takes the waveforms too: ``wavs`` (B, S), ``n_samples``
    # (B,) and, where the data tell them, ``crop_starts`` (B,) in samples.
    needs_audio = False
    # Whether `forward` takes None for `n_frames`: no clip has padding, which
    # saves the attention its mask.
    n_frames_optional = False

    def __init__(self, encoder, masker=None):
        super().__init__()
        self.encoder = encoder
        if masker is None and self.preset is not None:
            published = read_preset("objective", self.preset)
            del published["objective"]
            masker = build(published)["masker"]
        self.masker = None if masker is None else make_masker(masker)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {} if self.masker is None else {"masker": self.masker.config}

    def random_source(self, feats, generator=None, clip_keys=None):
        """Return the source of all the draws of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            (B, T, n_mels).
        generator : torch.Generator, optional
            On the device of `feats`.
        clip_keys : torch.Tensor, optional
            (B,) int64; see `RandomSource`.

        Returns
        -------
        RandomSource
        """
        return RandomSource(len(feats), feats.device, generator, clip_keys)

    def draw_mask(self, feats, n_frames, generator=None, clip_keys=None):
        """Draw a mask that fits a batch.

        Arguments
        ---------
        feats : torch.Tensor
            (B, T, n_mels).
        n_frames : torch.Tensor or None
            Valid frames (B,); None: all.
        generator, clip_keys
            See `random_source`.

        Returns
        -------
        torch.Tensor or None
            Boolean (B, F', T'); None of an objective that masks no tokens.
        """
        if self.masker is None:
            return None
        if n_frames is None:
            n_frames = full_lengths(feats)
        n_time, max_time = self.encoder.token_lengths(n_frames, feats.shape[1])
        n_freq = self.encoder.grid.n_freq
        return self.masker(n_time, n_freq, max_time, generator, clip_keys)

    def exported_state(self):
        """Return the tensors that an export holds.

        Returns
        -------
        dict of str to torch.Tensor
            Without those of `training_only`.
        """
        return {
            key: value
            for key, value in self.state_dict().items()
            if key.split(".")[0] not in self.training_only
        }

    def restart_teacher(self):
        """Copy the student into the teacher, where there is one."""
        teacher = getattr(self, "teacher", None)
        if teacher is not None:
            teacher.restart(self)

    @property
    def reconstructs(self):
        """Whether there is a ``reconstruct(feats, n_frames, mask)``."""
        return False

    def picture(self, feats, n_frames, clip_keys):
        """Return the masked pixels of clips, and the model's reconstruction.

        Only objectives that reconstruct have it.

        Arguments
        ---------
        feats, n_frames, clip_keys
            As in `draw_mask`.

        Returns
        -------
        hidden : torch.Tensor
            Boolean (B, T, n_mels).
        filled : torch.Tensor
            (B, T, n_mels).
        """
        mask = self.draw_mask(feats, n_frames, clip_keys=clip_keys)
        filled = self.reconstruct(feats, n_frames, mask)
        grid = self.encoder.grid
        hidden = mask.flatten(1)[:, :, None].expand(-1, -1, grid.patch_size)
        return grid.fold(hidden.float(), feats.shape[1]) > 0.5, filled

    def after_step(self, step, total_steps):
        """Update after an optimizer step; do nothing by default.

        Arguments
        ---------
        step : int
            Optimizer steps done.
        total_steps : int
            Steps of the whole training.
        """
