"""SSAST's objective with the behavior of the official code, quirks included.

It serves to reproduce published numbers (YuanGongND/ssast at a1a3eec). It makes
two forward passes with independent masks, and treats padding as audio. The
biased mask generator and the accuracy are those of the official code. For
training, use `MSPM` instead.
"""

import random

import torch

from ssast_lobes.objectives.base import (
    ObjectiveOutput,
    gather_tokens,
    ids_masked,
    matching_logs,
)
from ssast_lobes.objectives.maskers import ClusterMasker
from ssast_lobes.objectives.mspm import MSPM


def official_mask(n_freq, n_time, count, rng):
    """Draw one clip's mask as the official generator does.

    Clusters are laid on the flattened token index, so they wrap into the next
    frequency, grow only towards high frequencies and late times, and never mask
    the first or the last token.

    Arguments
    ---------
    n_freq, n_time : int
        F' and T'.
    count : int
        Number of tokens to mask, at most F' * T' - 2, or F' * T' if F' = 1.
    rng : random.Random
        Source of the draws.

    Returns
    -------
    list of int
        Masked tokens, ascending.

    Raises
    ------
    ValueError
        If more tokens are wanted than the generator can ever mask.

    Example
    -------
    >>> mask = official_mask(8, 64, 400, random.Random(0))
    >>> len(mask), mask[0] > 0, mask[-1] < 511
    (400, True, True)
    """
    total = n_freq * n_time
    limit = total if n_freq == 1 else total - 2
    if count > limit:
        raise ValueError(
            f"the official generator masks at most {limit} of {total} tokens, "
            f"not {count}"
        )
    if n_freq == 1:
        return sorted(rng.sample(range(total), count))
    size = rng.randrange(3) + 3
    masked = set()
    while len(masked) <= count:
        corner = rng.randrange(total)
        cluster = {
            corner + n_time * row + column
            for row in range(size)
            for column in range(size)
        }
        masked |= {token for token in cluster if 0 < token < total}
    return sorted(masked)[:count]


class MSPMReference(MSPM):
    """`MSPM` as the official code computes it: two passes, two masks.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train.
    count : int
        Number of tokens to mask; 400 in the official scripts. The official
        generator draws the masks, so there is no masker to choose.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> output = MSPMReference(encoder, count=40)(torch.randn(1, 128, 128))
    >>> list(output.logs)
    ['nce', 'nce_chance', 'accuracy', 'accuracy_chance', 'mse']
    """

    def __init__(self, encoder, count=400):
        super().__init__(encoder, ClusterMasker(count=count))

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {"count": self.masker.count}

    def forward(
        self, feats, n_frames=None, mask=None, generator=None, clip_keys=None
    ):
        """Return the loss of a batch; see `MSPM.forward`.

        `n_frames` is ignored, since the official code treats padding as audio.
        A given `mask`, or the mask drawn by `clip_keys`, serves both passes.
        """
        if mask is None and clip_keys is not None:
            mask = self.draw_mask(feats, None, clip_keys=clip_keys)
        tokens, targets = self._masked(feats, mask, generator)
        nce, accuracy = official_info_nce(self.discriminator(tokens), targets)
        tokens, targets = self._masked(feats, mask, generator)
        mse = (self.generator_head(tokens) - targets).square().mean()
        loss = nce + self.generative_weight * mse
        n_masked = targets.new_full((1,), targets.shape[1])
        logs = matching_logs(nce, accuracy, n_masked)
        return ObjectiveOutput(loss, {**logs, "mse": mse.detach()})

    def draw_mask(self, feats, n_frames, generator=None, clip_keys=None):
        """Draw the official masks of a batch; see `Objective.draw_mask`."""
        n_freq = self.encoder.grid.n_freq
        n_time = self.encoder.grid.n_time(feats.shape[1])
        if clip_keys is None:
            seeds = torch.randint(
                2**62, (len(feats),), generator=generator, device=feats.device
            )
        else:
            seeds = clip_keys
        mask = torch.zeros(len(feats), n_freq * n_time, dtype=torch.bool)
        for row, seed in zip(mask, seeds.tolist(), strict=True):
            rng = random.Random(seed)
            row[official_mask(n_freq, n_time, self.masker.count, rng)] = True
        return mask.unflatten(1, (n_freq, n_time)).to(feats.device)

    def _masked(self, feats, mask, generator):
        if mask is None:
            mask = self.draw_mask(feats, None, generator)
        encoded = self.encoder(feats, None, mask, self.mask_embedding)
        index, _ = ids_masked(mask, self.masker.count)
        targets = self.encoder.grid.unfold(feats).detach()
        tokens = gather_tokens(encoded.tokens, index)
        return tokens, gather_tokens(targets, index)


def official_info_nce(predictions, targets):
    """Return the official discriminative loss and accuracy.

    For each target, the loss uses a softmax over the predictions. For each
    prediction, the accuracy then takes the target with the highest of these
    probabilities. The result is the accuracy of neither direction of retrieval.

    Arguments
    ---------
    predictions, targets : torch.Tensor
        (B, K, patch_size).

    Returns
    -------
    tuple of torch.Tensor
        Two scalars: loss, accuracy.

    Example
    -------
    >>> x = 9 * torch.eye(4)[None]
    >>> loss, accuracy = official_info_nce(x, x)
    >>> loss.item() < 1e-6, accuracy.item()
    (True, 1.0)
    """
    scores = targets @ predictions.transpose(1, 2)
    log_prob = scores.log_softmax(2)
    loss = -log_prob.diagonal(dim1=1, dim2=2).mean()
    best = log_prob.argmax(1)
    own = torch.arange(best.shape[1], device=best.device)
    return loss, (best == own).float().mean()
