"""Losses of sound event detection: of frames, of clips, or of both."""

from torch.nn import functional

from ssast_lobes.utils.checks import real
from ssast_lobes.utils.lengths import length_to_mask


def event_cross_entropy(
    scores, frame_targets, clip_targets, is_strong, weak_weight=1.0
):
    """Return the binary cross-entropy of frames and of clips.

    Clips with known frame targets (strong labels) count in both terms. Other
    clips (weak labels) count only in the clip term. Padding never counts. A
    term without clips is 0.

    Arguments
    ---------
    scores : EventScores
        Logits of frames (B, T', C) and of clips (B, C).
    frame_targets : torch.Tensor
        (B, T', C). The padding may have any value.
    clip_targets : torch.Tensor
        (B, C).
    is_strong : torch.Tensor
        (B,) bool.
    weak_weight : float
        Weight of the clip term; 0 leaves it out.

    Returns
    -------
    torch.Tensor
        Scalar: the frame term plus `weak_weight` times the clip term. The frame
        term is a mean over frames and classes within a clip, then over strong
        clips. The clip term is a mean over clips and classes.

    Example
    -------
    >>> import torch
    >>> from ssast_lobes.models.event_head import EventScores
    >>> zeros = torch.zeros(1, 4, 2), torch.zeros(1, 2)
    >>> scores = EventScores(*zeros, torch.tensor([3]))
    >>> loss = event_cross_entropy(scores, *zeros, torch.tensor([True]))
    >>> round(loss.item(), 4)
    1.3863
    """
    real("weak_weight", weak_weight, 0)
    frames, strong = scores.frames.float(), is_strong.float()
    losses = functional.binary_cross_entropy_with_logits(
        frames, frame_targets, reduction="none"
    )
    is_frame = length_to_mask(scores.n_time, frames.shape[1])
    losses = (losses.mean(2) * is_frame).sum(1) / scores.n_time
    loss = (losses * strong).sum() / strong.sum().clamp(min=1)
    if weak_weight > 0:
        weak = functional.binary_cross_entropy_with_logits(
            scores.clip.float(), clip_targets
        )
        loss = loss + weak_weight * weak
    return loss
