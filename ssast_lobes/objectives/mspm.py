"""Masked spectrogram patch modeling, SSAST's objective.

Gong et al., "SSAST: Self-Supervised Audio Spectrogram Transformer", AAAI 2022,
section 2.3. A discriminative task tells masked patches apart (InfoNCE within
the clip). A generative task reconstructs the masked patches (mean squared
error).
"""

import torch
from torch import nn

from ssast_lobes.objectives.base import (
    Objective,
    ObjectiveOutput,
    clip_mean,
    gather_tokens,
    ids_masked,
    matching_logs,
    refuse_overlap,
)
from ssast_lobes.utils.checks import flag, one_of, real
from ssast_lobes.utils.lengths import length_to_mask
from ssast_lobes.utils.presets import read_preset

TASKS = ("joint", "discriminative", "generative")
SOFTMAX_OVER = ("predictions", "targets")


class MSPM(Objective):
    """Tell masked patches apart, and reconstruct them.

    One forward pass and one mask serve both losses, as in Algorithm 1 of the
    paper: ``loss = nce + generative_weight * mse``. Losses are averaged
    within a clip, then over clips.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train; its patches must not overlap.
    masker : Masker or dict, optional
        Draws the masks; by default the paper's clusters, 400 of 512 tokens.
    task : str
        ``"joint"``, ``"discriminative"`` or ``"generative"``.
    generative_weight : float, optional
        Weight of the reconstruction in the joint loss; 10 in the paper.
    softmax_over : str
        ``"predictions"``: for each target, the softmax is over the predictions
        of all masked tokens, as in the official code. ``"targets"``: for each
        prediction, the softmax is over all targets, as in equation 1 of the
        paper.
    sincos_positions : bool
        Whether to use fixed sin-cos positions, as masked autoencoders do.
        Learned positions begin so small that masked tokens, which differ in
        nothing else, stay alike for hundreds of steps. The paper uses learned
        positions.

    Raises
    ------
    ValueError
        If a name is unknown or the patches overlap.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> objective = MSPM(SpectrogramEncoder(dim=32, depth=1, heads=2))
    >>> output = objective(torch.randn(2, 128, 128), torch.tensor([128, 90]))
    >>> list(output.logs)
    ['nce', 'nce_chance', 'accuracy', 'accuracy_chance', 'mse']
    """

    paper = (
        'masked spectrogram patch modeling (Gong et al., "SSAST: '
        'Self-Supervised Audio Spectrogram Transformer", AAAI 2022)'
    )
    preset = "mspm"
    n_frames_optional = True

    def __init__(
        self,
        encoder,
        masker=None,
        task="joint",
        generative_weight=None,
        softmax_over="predictions",
        sincos_positions=False,
    ):
        one_of("task", task, TASKS)
        one_of("softmax_over", softmax_over, SOFTMAX_OVER)
        real("generative_weight", generative_weight, 0, null=True)
        flag("sincos_positions", sincos_positions)
        refuse_overlap(encoder.grid)
        if generative_weight is None:
            paper = read_preset("objective", "mspm")["objective"]
            generative_weight = paper["generative_weight"]
        super().__init__(encoder, masker)
        self.task = task
        self.generative_weight = generative_weight
        self.softmax_over = softmax_over
        self.sincos_positions = sincos_positions
        if sincos_positions:
            encoder.fix_positions()
        self.mask_embedding = nn.Parameter(torch.empty(encoder.dim))
        # This is the standard deviation of Xavier's initialization for the
        # official (1, 1, D) tensor.
        nn.init.normal_(self.mask_embedding, std=(2 / (2 * encoder.dim)) ** 0.5)
        size = encoder.grid.patch_size
        if task != "generative":
            self.discriminator = _pretext_head(encoder.dim, size)
        if task != "discriminative":
            self.generator_head = _pretext_head(encoder.dim, size)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {
            **super().config,
            "task": self.task,
            "generative_weight": self.generative_weight,
            "softmax_over": self.softmax_over,
            "sincos_positions": self.sincos_positions,
        }

    def forward(
        self, feats, n_frames, mask=None, generator=None, clip_keys=None
    ):
        """Return the loss of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels).
        n_frames : torch.Tensor or None
            Valid frames (B,) int64; None if no clip has padding.
        mask : torch.Tensor, optional
            Boolean (B, F', T'), True where masked; by default drawn.
        generator, clip_keys
            Source of the mask; see `Objective.random_source`.

        Returns
        -------
        ObjectiveOutput
            Logs: for the discriminative task ``nce``, ``accuracy`` (the
            fraction of masked patches whose prediction fits its own target
            best) and their chance levels. For the generative task ``mse``.
        """
        if mask is None:
            mask = self.draw_mask(feats, n_frames, generator, clip_keys)
            max_masked = self.masker.max_masked(*mask.shape[1:])
        else:
            max_masked = mask[0].numel()
        if n_frames is not None:
            # Set padding to 0, so that targets are what the encoder sees.
            is_frame = length_to_mask(n_frames, feats.shape[1])
            feats = feats * is_frame[:, :, None]
        encoded = self.encoder(feats, n_frames, mask, self.mask_embedding)
        return self.masked_losses(encoded, feats, mask, max_masked)

    def masked_losses(self, encoded, feats, mask, max_masked):
        """Return the losses at the masked tokens of a batch.

        Arguments
        ---------
        encoded : EncoderOutput
            Encoder outputs of the masked batch.
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels), 0 at padding.
        mask : torch.Tensor
            Boolean (B, F', T'), True where masked.
        max_masked : int
            At least the number of masked tokens of any clip.

        Returns
        -------
        ObjectiveOutput
        """
        # Padding is never a target, whatever mask the caller passes.
        mask = mask.flatten(1) & encoded.is_token
        index, weight = ids_masked(mask, max_masked)
        tokens = gather_tokens(encoded.tokens, index)
        targets = gather_tokens(self.encoder.grid.unfold(feats).detach(), index)
        return self.losses(tokens, targets, weight)

    def losses(self, tokens, targets, weight):
        """Return the losses of the task on masked tokens.

        Arguments
        ---------
        tokens : torch.Tensor
            Encoder outputs (B, K, D).
        targets : torch.Tensor
            Flattened patches (B, K, patch_size).
        weight : torch.Tensor
            (B, K), 1 at masked tokens, 0 at surplus entries.

        Returns
        -------
        ObjectiveOutput
        """
        loss, logs = 0.0, {}
        if self.task != "generative":
            nce, accuracy = info_nce(
                self.discriminator(tokens), targets, weight, self.softmax_over
            )
            loss = loss + nce
            logs.update(matching_logs(nce, accuracy, weight.sum(1)))
        if self.task != "discriminative":
            difference = self.generator_head(tokens).float() - targets
            mse = clip_mean(difference.square().mean(2), weight)
            scale = self.generative_weight if self.task == "joint" else 1.0
            loss = loss + scale * mse
            logs.update(mse=mse.detach())
        return ObjectiveOutput(loss, logs)

    @property
    def reconstructs(self):
        """Whether the task has a generative part."""
        return self.task != "discriminative"

    def reconstruct(self, feats, n_frames, mask):
        """Return spectrograms with the masked patches filled in by the model.

        Arguments
        ---------
        feats, n_frames, mask
            As in `forward`.

        Returns
        -------
        torch.Tensor
            (B, T, n_mels).

        Raises
        ------
        ValueError
            If the task has no generative part.
        """
        if not self.reconstructs:
            raise ValueError("a discriminative model does not reconstruct")
        encoded = self.encoder(feats, n_frames, mask, self.mask_embedding)
        patches = self.generator_head(encoded.tokens).float()
        known = self.encoder.grid.unfold(feats)
        filled = torch.where(mask.flatten(1)[:, :, None], patches, known)
        return self.encoder.grid.fold(filled, feats.shape[1])


def _pretext_head(dim, size):
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, size))


def info_nce(predictions, targets, weight, softmax_over):
    """Return InfoNCE among the masked patches of each clip, and its accuracy.

    It uses dot products without temperature or normalization. Negatives are
    the other masked patches of the same clip.

    Arguments
    ---------
    predictions, targets : torch.Tensor
        (B, K, patch_size).
    weight : torch.Tensor
        (B, K), 0 at surplus entries.
    softmax_over : str
        See `MSPM`.

    Returns
    -------
    loss : torch.Tensor
        Scalar.
    accuracy : torch.Tensor
        Fraction of predictions whose best target is their own; detached.

    Example
    -------
    >>> x = 9 * torch.eye(4)[None]
    >>> loss, accuracy = info_nce(x, x, torch.ones(1, 4), "targets")
    >>> round(loss.item(), 3), accuracy.item()
    (0.0, 1.0)
    """
    # Products of log-mel patches reach hundreds, which bf16 would round to
    # integers.
    with torch.autocast(predictions.device.type, enabled=False):
        scores = targets.float() @ predictions.float().transpose(1, 2)
    absent = weight == 0
    # With -inf, a clip without a mask would turn gradients into NaN.
    lowest = torch.finfo(scores.dtype).min
    over, other = (2, 1) if softmax_over == "predictions" else (1, 2)
    hide = absent.unsqueeze(other).expand_as(scores)
    log_prob = scores.masked_fill(hide, lowest).log_softmax(over)
    own = log_prob.diagonal(dim1=1, dim2=2).masked_fill(absent, 0.0)
    loss = clip_mean(-own, weight)
    with torch.no_grad():
        rows = absent.unsqueeze(2).expand_as(scores)
        best = scores.masked_fill(rows, lowest).argmax(1)
        right = best == torch.arange(best.shape[1], device=best.device)
        accuracy = clip_mean(right.float(), weight)
    return loss, accuracy
