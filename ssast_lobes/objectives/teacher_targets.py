"""Targets of `Distillation`: pairs of layers, at the student's steps."""

import torch
from torch.nn.functional import layer_norm


def layer_pairs(pairs, student, teacher):
    """Return the pairs of layers to compare.

    Arguments
    ---------
    pairs : int
        K.
    student, teacher : int
        Numbers of layers.

    Returns
    -------
    list of tuple of int
        (student's layer, teacher's layer) of each pair, counted from 1,
        without duplicates.

    Example
    -------
    >>> layer_pairs(4, 6, 12), layer_pairs(4, 12, 1)
    ([(1, 3), (3, 6), (4, 9), (6, 12)], [(12, 1)])
    """
    found = [
        (k * student // pairs, k * teacher // pairs)
        for k in range(1, pairs + 1)
    ]
    return list(dict.fromkeys(pair for pair in found if all(pair)))


def resampled(output, timing, max_time):
    """Return a teacher's outputs at the student's steps.

    Arguments
    ---------
    output : TeacherOutput
        Outputs of K layers.
    timing : FrameTiming
        Times of the student's steps.
    max_time : int
        Number of the student's steps T'.

    Returns
    -------
    torch.Tensor
        (K, B, T', D), with layer norm, 0 at steps without audio.

    Example
    -------
    >>> from ssast_lobes import SSAST, Teacher
    >>> lobe = SSAST(model_size="micro", geometry=(128, 4))
    >>> teacher = Teacher(lobe)
    >>> output = teacher(torch.randn(1, 16000), torch.tensor([16000]), [3, 6])
    >>> resampled(output, lobe.timing, 25).shape
    torch.Size([2, 1, 25, 128])
    """
    place = torch.arange(max_time, device=output.states.device) + 0.5
    weights = time_weights(
        output.centers,
        output.step,
        timing.start + place * timing.step,
        timing.step,
    )
    weights = weights * output.is_step[:, None]
    total = weights.sum(2, keepdim=True)
    weights = weights / torch.where(total > 0, total, 1)
    # Resampling must be exact under bf16 too.
    with torch.autocast(weights.device.type, enabled=False):
        values = weights @ output.states.float()
    return layer_norm(values, values.shape[3:])


def time_weights(centers, step, own_centers, own_step):
    """Return the weight of each teacher step for each student step.

    Arguments
    ---------
    centers : torch.Tensor
        Middles of the teacher's steps in seconds, (B, T).
    step : torch.Tensor
        Seconds from one step of the teacher to the next, (B,).
    own_centers : torch.Tensor
        Middles of the student's steps in seconds, (T',).
    own_step : float
        Seconds from one step of the student to the next.

    Returns
    -------
    torch.Tensor
        (B, T', T), not normalized: the overlap in seconds or, if the teacher's
        steps are longer, the weights of linear interpolation.

    Example
    -------
    >>> fine, coarse = torch.arange(4) + 0.5, torch.arange(2) * 2 + 1.0
    >>> time_weights(fine[None], torch.tensor([1.0]), coarse, 2.0)
    tensor([[[1., 1., 0., 0.],
             [0., 0., 1., 1.]]])
    >>> time_weights(coarse[None], torch.tensor([2.0]), fine, 1.0) / 2
    tensor([[[0.7500, 0.0000],
             [0.7500, 0.2500],
             [0.2500, 0.7500],
             [0.0000, 0.7500]]])
    """
    step = step[:, None, None]
    distance = (own_centers[:, None] - centers[:, None, :]).abs()
    overlap = ((step + own_step) / 2 - distance).clamp(min=0)
    overlap = torch.minimum(overlap, step.clamp(max=own_step))
    linear = (step - distance).clamp(min=0)
    return torch.where(step > own_step, linear, overlap)
