"""The masked autoencoder of spectrograms, as in MaskSpec.

Chong et al., "Masked Spectrogram Prediction for Self-Supervised Audio
Pre-Training", ICASSP 2023, after He et al., "Masked Autoencoders Are Scalable
Vision Learners", CVPR 2022.
"""

import torch

from ssast_lobes.objectives.base import (
    ObjectiveOutput,
    clip_mean,
    gather_tokens,
)
from ssast_lobes.objectives.masked_prediction import MaskedPrediction
from ssast_lobes.utils.lengths import length_to_mask

# The code of both papers adds this to the variance of a patch.
_EPS = 1e-6


class MaskedAutoencoder(MaskedPrediction):
    """Reconstruct masked patches from the visible ones.

    The loss is the mean squared error. The target is the patch, standardized
    by its own mean and standard deviation.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train; its patches must not overlap.
    masker : Masker or dict, optional
        Draws the masks; by default it masks single tokens, 75 % of them.
    decoder : dict
        See `MaskedPrediction`.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> objective = load_objective("maskspec")(encoder)
    >>> output = objective(torch.randn(2, 128, 128), torch.tensor([128, 90]))
    >>> sorted(output.logs)
    ['mse']
    """

    paper = (
        "masked patches filled in from the visible ones (Chong et al., "
        '"Masked Spectrogram Prediction for Self-Supervised Audio '
        'Pre-Training", ICASSP 2023)'
    )
    preset = "maskspec"

    def __init__(self, encoder, masker=None, *, decoder):
        super().__init__(encoder, masker, encoder.grid.patch_size, decoder)

    def forward(
        self, feats, n_frames, mask=None, generator=None, clip_keys=None
    ):
        """Return the loss of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        mask : torch.Tensor, optional
            Boolean (B, F', T'), True where masked; by default drawn.
        generator, clip_keys
            Source of the mask; see `Objective.random_source`.

        Returns
        -------
        ObjectiveOutput
            Logs: ``mse``.
        """
        split = self.split(feats, n_frames, mask, generator, clip_keys)
        decoded = self.decode_masked(feats, n_frames, split)
        patches = gather_tokens(
            self._patches(feats, n_frames), split.ids_masked
        )
        return self.losses(decoded, patches, split.weight)

    def losses(self, decoded, patches, weight):
        """Return the loss on masked tokens.

        Arguments
        ---------
        decoded : torch.Tensor
            Decoder outputs (B, K, decoder.dim).
        patches : torch.Tensor
            Masked patches (B, K, patch_size).
        weight : torch.Tensor
            (B, K), 1 at masked tokens, 0 at surplus entries.

        Returns
        -------
        ObjectiveOutput
        """
        mean, deviation = self.scale(patches)
        difference = self.head(decoded).float() - (patches - mean) / deviation
        mse = clip_mean(difference.square().mean(2), weight)
        return ObjectiveOutput(mse, {"mse": mse.detach()})

    @staticmethod
    def scale(patches):
        """Return the mean and the standard deviation of each patch.

        Arguments
        ---------
        patches : torch.Tensor
            (.., patch_size).

        Returns
        -------
        tuple of torch.Tensor
            Both (.., 1).
        """
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return mean, (variance + _EPS).sqrt()

    @property
    def reconstructs(self):
        """Return True, as the decoder predicts patches."""
        return True

    def reconstruct(self, feats, n_frames, mask):
        """Return spectrograms with the masked patches filled in by the model.

        The model predicts standardized patches. Here they get the mean and the
        standard deviation of the true patch, as usual in pictures of such
        models.

        Arguments
        ---------
        feats, n_frames, mask
            As in `forward`.

        Returns
        -------
        torch.Tensor
            (B, T, n_mels).
        """
        split = self.split(feats, n_frames, mask)
        known = self._patches(feats, n_frames)
        mean, deviation = self.scale(known)
        shape = self.head(self.decode(feats, n_frames, split)).float()
        kept = split.visible | ~split.is_token
        filled = torch.where(kept[:, :, None], known, shape * deviation + mean)
        return self.encoder.grid.fold(filled, feats.shape[1])

    def _patches(self, feats, n_frames):
        """Return flattened patches, 0 beyond the end of each clip."""
        is_frame = length_to_mask(n_frames, feats.shape[1])
        return self.encoder.grid.unfold(feats * is_frame[:, :, None]).detach()
