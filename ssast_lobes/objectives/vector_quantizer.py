"""Train a tokenizer: codes from which a decoder restores a teacher's tokens.

Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers", ICML 2023:
the self-distilled tokenizer of its second iteration and later ones.
"""

import torch
from speechbrain.utils.logger import get_logger
from torch import nn

from ssast_lobes.models.ema_teacher import EMATeacher
from ssast_lobes.models.patches import sincos_positions
from ssast_lobes.models.transformer import (
    NORM_EPS,
    TransformerBlock,
    init_transformer,
)
from ssast_lobes.objectives.base import Objective, ObjectiveOutput, clip_mean
from ssast_lobes.objectives.tokenizers import CodeUsage, code_frequency
from ssast_lobes.objectives.tokenizers.quantizer import Quantizer
from ssast_lobes.utils.checks import real, whole

logger = get_logger(__name__)


class VectorQuantizer(Objective):
    """Quantize tokens so that a decoder restores a frozen teacher's tokens.

    The encoder sees all tokens. `Quantizer` assigns a code to each token. A
    light decoder predicts the teacher's tokens from the codes alone, with the
    error 1 - cosine. Gradients pass straight through the quantization, and a
    second error pulls the vectors towards their codes. The teacher is a frozen
    copy of the initial encoder, so start from a pretrained encoder with
    ``--source``. (BEATs starts the tokenizer from random weights, with a
    pretrained teacher.) The export is a tokenizer for `Codes`; see
    `VectorQuantizerTokenizer`.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder of the tokenizer, to train.
    n_codes, dim : int
        Number of codes, and size of each.
    code_momentum : float
        Weight of the old code in an update.
    restart_after : int or None
        Number of batches after which a vector of the batch replaces an unused
        code, and again after as many; None to keep unused codes.
    commitment : float
        Weight of the mean squared distance between vector and code.
    decoder : dict
        ``depth``, the number of blocks as a fraction of the encoder's, and
        ``head_size``, the least size of an attention head.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> objective = load_objective("vector_quantizer")(encoder, n_codes=16)
    >>> output = objective(torch.randn(2, 128, 128), torch.tensor([128, 90]))
    >>> sorted(output.logs)[:3]
    ['code_entropy', 'codes_recently_used', 'codes_used']
    """

    paper = (
        'self-distilled tokenizer (Chen et al., "BEATs: Audio Pre-Training '
        'with Acoustic Tokenizers", ICML 2023)'
    )

    def __init__(
        self,
        encoder,
        *,
        n_codes,
        dim,
        code_momentum,
        restart_after,
        commitment,
        decoder,
    ):
        super().__init__(encoder)
        self.n_codes = whole("n_codes", n_codes, 2)
        self.dim = whole("dim", dim)
        self.code_momentum = real("code_momentum", code_momentum, 0, 1)
        self.restart_after = whole("restart_after", restart_after, null=True)
        self.commitment = real("commitment", commitment, 0)
        self.decoder_config = dict(decoder)
        self.teacher = EMATeacher(encoder=encoder)
        self._has_source = False
        self.quantizer = Quantizer(encoder.dim, n_codes, dim, code_momentum)
        self.usage = CodeUsage(1, n_codes)
        self.decoder = _Decoder(encoder, dim, **decoder)
        self.quantizer.apply(init_transformer)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {
            "n_codes": self.n_codes,
            "dim": self.dim,
            "code_momentum": self.code_momentum,
            "restart_after": self.restart_after,
            "commitment": self.commitment,
            "decoder": self.decoder_config,
        }

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
        mask, generator, clip_keys
            Not used: nothing is drawn here.

        Returns
        -------
        ObjectiveOutput
            Logs: ``cosine_error``, 1 - cosine to the teacher's tokens;
            ``commitment``; ``codes_used``, the fraction of the codes that occur
            in the batch; ``codes_recently_used``, this fraction over the last
            hundred batches; ``code_entropy`` in nats, at most ln n_codes.
        """
        encoded = self.encoder(feats, n_frames)
        weight = encoded.is_token.float()
        vectors, ids, codes = self.quantizer(encoded.tokens, weight)
        straight = vectors + (codes - vectors).detach()
        with torch.no_grad():
            target = self.teacher.encoder(feats, n_frames).tokens
        told = self.decoder(straight, encoded.is_token, encoded.n_freq)
        cosine = nn.functional.cosine_similarity(
            told.float(), target.float(), dim=2
        )
        error = clip_mean(1 - cosine, weight)
        commitment = clip_mean((codes - vectors).square().mean(2), weight)
        with torch.no_grad():
            frequency = code_frequency(ids[..., None], self.n_codes, weight)
            logs = {
                "cosine_error": error.detach(),
                "commitment": commitment.detach(),
                "codes_used": (frequency > 0).float().mean(),
                "codes_recently_used": self.usage(frequency),
                "code_entropy": torch.special.entr(frequency).sum(),
            }
            if self.training and self.restart_after is not None:
                # A new code has as many batches to occur as the old one had.
                unused_for = self.usage.unused_for[0]
                unused = unused_for % self.restart_after == 0
                unused &= unused_for > 0
                self.quantizer.restart(unused, vectors, weight)
        return ObjectiveOutput(error + self.commitment * commitment, logs)

    def restart_teacher(self):
        """Copy the encoder into the teacher, and keep any loaded codes."""
        super().restart_teacher()
        self._has_source = True
        self.quantizer.started = bool(self.quantizer.codes.any())

    def after_step(self, step, total_steps):
        """Stop the initialization of the codes, and warn of collapse."""
        self.quantizer.started = True
        self.usage.warn_of_collapse(step, total_steps)
        if step == 1 and not self._has_source:
            logger.warning(
                "The teacher of vector_quantizer is an untrained encoder: "
                "give a pretrained one, --source FOLDER"
            )


class _Decoder(nn.Module):
    """Transformer blocks as wide as the encoder, from codes to tokens."""

    def __init__(self, encoder, code_dim, depth, head_size):
        super().__init__()
        self.dim = encoder.dim
        most = max(1, self.dim // head_size)
        heads = next(h for h in range(most, 0, -1) if self.dim % h == 0)
        self.embedding = nn.Linear(code_dim, self.dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(self.dim, heads)
            for _ in range(max(1, round(depth * encoder.depth)))
        )
        self.norm = nn.LayerNorm(self.dim, eps=NORM_EPS)
        self.apply(init_transformer)

    def forward(self, codes, is_token, n_freq):
        """Return tokens (B, N, D) for codes (B, N, dim)."""
        n_time = codes.shape[1] // n_freq
        positions = sincos_positions(n_freq, n_time, self.dim, codes.device)
        x = self.embedding(codes) + positions.flatten(0, 1)
        for block in self.blocks:
            x = block(x, is_token[:, None, None, :])
        return self.norm(x)
