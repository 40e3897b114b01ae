"""The base class of masked autoencoders, M2D and JEPA.

The encoder sees visible tokens only, and a light decoder predicts all tokens.
"""

from torch import nn

from ssast_lobes.models.decoders import TransformerDecoder
from ssast_lobes.objectives.base import (
    Objective,
    gather_tokens,
    refuse_overlap,
    split_tokens,
)


class MaskedPrediction(Objective):
    """Base class of objectives that encode visible and predict all tokens.

    The encoder gets fixed sin-cos positions.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train; its patches must not overlap.
    masker : Masker or dict or None
        Draws the masks; see `Objective`.
    output_size : int
        Number of values to predict at each token.
    decoder : dict
        Arguments of `TransformerDecoder`: width, depth and head_size.

    Raises
    ------
    ValueError
        If the patches overlap, or the token size is not a multiple of 4.
    """

    def __init__(self, encoder, masker, output_size, decoder):
        refuse_overlap(encoder.grid)
        super().__init__(encoder, masker)
        encoder.fix_positions()
        self.decoder_config = dict(decoder)
        self.decoder = TransformerDecoder(encoder, **decoder)
        self.head = nn.Linear(self.decoder.dim, output_size)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {**super().config, "decoder": self.decoder_config}

    def split(self, feats, n_frames, mask=None, generator=None, clip_keys=None):
        """Split the tokens of a batch into masked and visible ones.

        Arguments
        ---------
        feats : torch.Tensor
            (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        mask : torch.Tensor, optional
            Boolean (B, F', T'), True where masked; by default drawn.
        generator, clip_keys
            Source of the mask; see `Objective.random_source`.

        Returns
        -------
        TokenSplit
        """
        n_time, max_time = self.encoder.token_lengths(n_frames, feats.shape[1])
        is_token = self.encoder.grid.is_token(n_time, max_time)
        n_masked = None
        if mask is None:
            mask = self.draw_mask(feats, n_frames, generator, clip_keys)
            n_masked = self.masker.max_masked(*mask.shape[1:])
        return split_tokens(mask, is_token, n_masked)

    def decode(self, feats, n_frames, split):
        """Return decoder outputs at all tokens, from the visible ones.

        Arguments
        ---------
        feats, n_frames
            As in `split`.
        split : TokenSplit
            Positions of the tokens that the encoder sees.

        Returns
        -------
        torch.Tensor
            (B, F' * T', decoder.dim), arbitrary at padding.
        """
        encoded = self.encoder(feats, n_frames, keep=split.keep)
        return self.decoder(encoded, split, self.encoder.grid.n_freq)

    def decode_masked(self, feats, n_frames, split):
        """Return decoder outputs at the masked tokens, (B, K, decoder.dim)."""
        return gather_tokens(
            self.decode(feats, n_frames, split), split.ids_masked
        )
