"""Predict discrete codes of masked tokens, as BEST-RQ, HuBERT and BEATs do.

Chiu et al., "Self-supervised Learning with Random-projection Quantizer for
Speech Recognition", ICML 2022; Hsu et al., "HuBERT", TASLP 2021; Chen et al.,
"BEATs: Audio Pre-Training with Acoustic Tokenizers", ICML 2023.
"""

import math

import torch
from torch import nn

from ssast_lobes.models.decoders import TransformerDecoder
from ssast_lobes.objectives.base import (
    Objective,
    ObjectiveOutput,
    clip_mean,
    gather_tokens,
    refuse_overlap,
    split_tokens,
)
from ssast_lobes.objectives.tokenizers import (
    CodeChance,
    CodeUsage,
    code_frequency,
    make_tokenizer,
)
from ssast_lobes.utils.checks import real
from ssast_lobes.utils.lengths import length_to_mask


class Codes(Objective):
    """Predict the codes of masked tokens from the visible tokens.

    With a `decoder`, the encoder sees only the visible tokens, as in BEATs.
    Without one, a learned vector replaces the masked tokens, as in BEST-RQ and
    HuBERT. The loss is the cross-entropy of the codes of masked tokens,
    averaged within a clip, then over clips. With several codebooks, their
    losses are summed. The encoder gets fixed sin-cos positions, because learned
    positions begin so small that masked tokens stay alike for hundreds of
    steps. (BEATs uses convolutional and relative positions instead.)

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train; its patches must not overlap.
    masker : Masker or dict, optional
        Draws the masks; by default it masks single tokens, 75 % of them.
    tokenizer : callable or dict or torch.nn.Module
        `RandomProjectionTokenizer`, `KMeansTokenizer`, or your own; see
        `ssast_lobes.objectives.tokenizers`. Its tensors are not exported.
    decoder : dict or None
        Arguments of `TransformerDecoder`; if None, a learned vector replaces
        masked tokens.
    label_smoothing : float
        Label smoothing of the cross-entropy; 0.1 in BEATs.

    Raises
    ------
    ValueError
        If patches overlap, or an argument is out of range.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> objective = load_objective("beats")(encoder)
    >>> output = objective(torch.randn(2, 128, 128), torch.tensor([128, 90]))
    >>> "cross_entropy" in output.logs, "codes_used" in output.logs
    (True, True)
    """

    preset = "beats"
    paper = (
        "prediction of discrete codes (Chiu et al., BEST-RQ, ICML 2022; Hsu "
        "et al., HuBERT, TASLP 2021; Chen et al., BEATs, ICML 2023)"
    )
    training_only = ("tokenizer", "usage", "chance")

    def __init__(
        self, encoder, masker=None, *, tokenizer, decoder, label_smoothing=0.0
    ):
        refuse_overlap(encoder.grid)
        super().__init__(encoder, masker)
        self.label_smoothing = real("label_smoothing", label_smoothing, 0, 1)
        encoder.fix_positions()
        self.tokenizer = make_tokenizer(tokenizer, encoder.grid)
        self.tokenizer.requires_grad_(False)
        self.needs_audio = getattr(self.tokenizer, "needs_audio", False)
        self.needs_place = getattr(self.tokenizer, "needs_place", False)
        self.sample_rate = getattr(self.tokenizer, "sample_rate", None)
        self.decoder_config = None if decoder is None else dict(decoder)
        width = encoder.dim
        if decoder is None:
            self.mask_embedding = nn.Parameter(torch.empty(width))
            nn.init.trunc_normal_(self.mask_embedding, std=0.02)
        else:
            self.decoder = TransformerDecoder(encoder, **decoder)
            width = self.decoder.dim
        n_books, n_codes = self.tokenizer.n_books, self.tokenizer.n_codes
        self.head = nn.Linear(width, n_books * n_codes)
        self.usage = CodeUsage(n_books, n_codes)
        self.chance = CodeChance(n_books, n_codes)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {
            **super().config,
            "tokenizer": self.tokenizer.config,
            "decoder": self.decoder_config,
            "label_smoothing": self.label_smoothing,
        }

    def forward(
        self,
        feats,
        n_frames,
        mask=None,
        generator=None,
        clip_keys=None,
        **audio,
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
        **audio
            Further inputs of the tokenizer, such as waveforms; see `Objective`.

        Returns
        -------
        ObjectiveOutput
            Logs: ``cross_entropy`` in nats, without label smoothing, and
            ``accuracy``, each with its chance level. Chance is a guess that
            knows only how frequent each code was in the training batches
            before; see `CodeChance`. ``codes_used`` is the fraction of the
            codes that occur at masked tokens of the batch.
            ``codes_recently_used`` is this fraction over the last hundred
            training batches. All logs are means over the codebooks.
        """
        mask, split = self.split(feats, n_frames, mask, generator, clip_keys)
        outputs = self.outputs(feats, n_frames, mask, split)
        ids = self.ids(feats, n_frames, split, **audio)
        return self.losses(outputs, ids, split.weight)

    def split(self, feats, n_frames, mask, generator, clip_keys):
        """Return the mask of a batch and its split; draw a missing mask."""
        n_masked = None
        if mask is None:
            mask = self.draw_mask(feats, n_frames, generator, clip_keys)
            n_masked = self.masker.max_masked(*mask.shape[1:])
        n_time, max_time = self.encoder.token_lengths(n_frames, feats.shape[1])
        is_token = self.encoder.grid.is_token(n_time, max_time)
        return mask, split_tokens(mask, is_token, n_masked)

    def outputs(self, feats, n_frames, mask, split):
        """Return encoder or decoder outputs at masked tokens, (B, K, D)."""
        if self.decoder_config is None:
            encoded = self.encoder(feats, n_frames, mask, self.mask_embedding)
            outputs = encoded.tokens
        else:
            encoded = self.encoder(feats, n_frames, keep=split.keep)
            n_freq = self.encoder.grid.n_freq
            outputs = self.decoder(encoded, split, n_freq)
        return gather_tokens(outputs, split.ids_masked)

    def ids(self, feats, n_frames, split, **audio):
        """Return the codes of masked tokens, (B, K, n_books) int64."""
        # Set padding to 0, so that codes describe only what the encoder sees.
        feats = feats * length_to_mask(n_frames, feats.shape[1])[:, :, None]
        ids = self.tokenizer(feats, n_frames, **audio)
        return gather_tokens(ids, split.ids_masked)

    def losses(self, outputs, ids, weight):
        """Return the loss on masked tokens.

        Arguments
        ---------
        outputs : torch.Tensor
            Outputs of encoder or decoder (B, K, D).
        ids : torch.Tensor
            Codes (B, K, n_books) int64.
        weight : torch.Tensor
            (B, K), 1 at masked tokens, 0 at surplus entries.

        Returns
        -------
        ObjectiveOutput
        """
        n_codes = self.tokenizer.n_codes
        logits = self.head(outputs).float().unflatten(2, (-1, n_codes))
        log_prob = logits.log_softmax(3)
        own = -log_prob.gather(3, ids[..., None])[..., 0]
        smooth = self.label_smoothing
        smoothed = (1 - smooth) * own - smooth * log_prob.mean(3)
        loss = clip_mean(smoothed.sum(2), weight)
        with torch.no_grad():
            right = (logits.argmax(3) == ids).float().mean(2)
            frequency = code_frequency(ids, n_codes, weight)
            guess, guessed = self.chance(ids)
            if self.training:
                self.chance.record(frequency)
            logs = {
                "cross_entropy": clip_mean(own.mean(2), weight),
                # Equally likely codes are the worst guess that is needed.
                "cross_entropy_chance": clip_mean(guess.mean(2), weight).clamp(
                    max=math.log(n_codes)
                ),
                "accuracy": clip_mean(right, weight),
                "accuracy_chance": clip_mean(guessed.float().mean(2), weight),
                "codes_used": (frequency > 0).float().mean(),
                "codes_recently_used": self.usage(frequency),
            }
        return ObjectiveOutput(loss, logs)

    def after_step(self, step, total_steps):
        """Warn of few codes, and raise if the codes have collapsed."""
        self.usage.warn_of_collapse(step, total_steps)
        self.chance.refuse_collapse(step)

    def check_front_end(self, features):
        """Raise if the codes were fitted with another front end."""
        super().check_front_end(features)
        if hasattr(self.tokenizer, "check_front_end"):
            self.tokenizer.check_front_end(features)
