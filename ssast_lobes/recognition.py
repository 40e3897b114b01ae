"""Speech recognition by CTC: a score of every unit at every time step.

Graves et al., "Connectionist temporal classification", ICML 2006. The steps are
the encoder's ``frames``, so that a frame model (50 steps a second) has more of
them than there are units in the words; a patch model has 6.
"""

import torch
from torch import nn

from ssast_lobes.heads import ClassificationHead


class SpectrogramRecognizer(nn.Module):
    """Encoder and head: features in, scores of units at each step out.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder, usually pretrained.
    n_units : int
        Number of units U, the blank among them.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> grid = {"patch": (128, 2)}
    >>> encoder = SpectrogramEncoder(grid, dim=32, depth=1, heads=2)
    >>> model = SpectrogramRecognizer(encoder, n_units=7)
    >>> scores, n_steps = model(torch.randn(2, 50, 128), torch.tensor([50, 20]))
    >>> scores.shape, n_steps
    (torch.Size([2, 25, 7]), tensor([25, 10]))
    """

    def __init__(self, encoder, n_units):
        super().__init__()
        self.encoder = encoder
        self.head = ClassificationHead(encoder.dim, n_units)

    def forward(self, feats, n_frames=None):
        """Scores of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalised log-mel (B, T, n_mels).
        n_frames : torch.Tensor, optional
            Valid frames (B,); see `SpectrogramEncoder.forward`.

        Returns
        -------
        log_probabilities : torch.Tensor
            (B, T', U), float32.
        n_steps : torch.Tensor
            Valid steps of each clip, (B,) int64.
        """
        encoded = self.encoder(feats, n_frames)
        scores = self.head(encoded.frames)
        return scores.float().log_softmax(-1), encoded.n_steps


def ctc_loss(log_probabilities, n_steps, targets, blank):
    """Loss of a batch: nats for each unit, the mean over the clips.

    Arguments
    ---------
    log_probabilities : torch.Tensor
        (B, T', U).
    n_steps : torch.Tensor
        Valid steps of each clip, (B,) int64.
    targets : list of list of int
        Units of each clip.
    blank : int
        Number of the blank.

    Returns
    -------
    torch.Tensor
        Scalar. A clip that has fewer steps than its units need adds nothing.

    Example
    -------
    >>> log_probabilities = torch.full((1, 4, 3), 1 / 3).log()
    >>> ctc_loss(log_probabilities, torch.tensor([4]), [[0, 1]], 2).item() > 0
    True
    """
    device = log_probabilities.device
    lengths = torch.tensor([len(units) for units in targets])
    units = torch.tensor([unit for own in targets for unit in own])
    losses = nn.functional.ctc_loss(
        log_probabilities.transpose(0, 1),
        units.to(device),
        n_steps,
        lengths.to(device),
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    return (losses / lengths.to(device).clamp(min=1)).mean()


def greedy_units(log_probabilities, n_steps, blank):
    """The units of the best path: the best of each step, repeats merged.

    Arguments
    ---------
    log_probabilities : torch.Tensor
        (B, T', U).
    n_steps : torch.Tensor
        Valid steps of each clip, (B,) int64.
    blank : int
        Number of the blank.

    Returns
    -------
    list of list of int
        Units of each clip, without blanks.

    Example
    -------
    >>> best = torch.tensor([[1, 1, 2, 1, 0, 0]])
    >>> scores = torch.nn.functional.one_hot(best).float()
    >>> greedy_units(scores, torch.tensor([5]), blank=2)
    [[1, 1, 0]]
    """
    best = log_probabilities.argmax(-1)
    before = torch.cat([torch.full_like(best[:, :1], blank), best[:, :-1]], 1)
    steps = torch.arange(best.shape[1], device=best.device)
    kept = (best != blank) & (best != before) & (steps < n_steps[:, None])
    return [
        own[keep].tolist()
        for own, keep in zip(best.cpu(), kept.cpu(), strict=True)
    ]
