"""Lengths of the clips of a padded batch."""

import torch

# Rounding error that a relative length of 1 may have.
_LENGTH_NOISE = 1e-6


def length_to_mask(lengths, max_len):
    """Return a mask, True where there is no padding.

    Arguments
    ---------
    lengths : torch.Tensor
        Lengths, such as frame counts, (B,), int64.
    max_len : int
        Number of columns of the mask.

    Returns
    -------
    torch.Tensor
        Boolean (B, max_len), False at padding.

    Example
    -------
    >>> length_to_mask(torch.tensor([1, 3]), 3).int().tolist()
    [[1, 0, 0], [1, 1, 1]]
    """
    place = torch.arange(max_len, device=lengths.device)
    return place[None, :] < lengths[:, None]


def full_lengths(clips):
    """Return the lengths of clips without padding.

    Arguments
    ---------
    clips : torch.Tensor
        Waveforms (B, S) or features (B, T, M).

    Returns
    -------
    torch.Tensor
        S or T for each clip, (B,), int64.

    Example
    -------
    >>> full_lengths(torch.zeros(2, 5, 128)).tolist()
    [5, 5]
    """
    return torch.full((clips.shape[0],), clips.shape[1], device=clips.device)


def sample_counts(wav, wav_lens=None):
    """Return the length of each clip in samples.

    Arguments
    ---------
    wav : torch.Tensor
        Waveforms (B, S).
    wav_lens : torch.Tensor, optional
        Relative lengths (B,) in (0, 1]; by default no clip is padded.

    Returns
    -------
    torch.Tensor
        Samples of each clip, (B,), int64, on the device of `wav`.

    Raises
    ------
    ValueError
        If there is not one length for each clip, or a length is not in (0, 1].
        The function does not wait for lengths on a GPU. A wrong length there
        ends the process with CUDA's "device-side assert", which quotes the same
        reason.

    Example
    -------
    >>> sample_counts(torch.zeros(2, 16000), torch.tensor([1.0, 0.5])).tolist()
    [16000, 8000]
    >>> sample_counts(torch.zeros(1, 16000), torch.tensor([16000]))
    Traceback (most recent call last):
    ...
    ValueError: relative lengths (1: the longest clip) must be above 0 and ...
    """
    if wav_lens is None:
        return full_lengths(wav)
    if wav_lens.shape != wav.shape[:1]:
        raise ValueError(
            f"{wav.shape[0]} clips, but lengths of shape "
            f"{tuple(wav_lens.shape)}: wav_lens must be (batch,)"
        )
    _require_relative(wav_lens)
    exact = wav_lens.to(wav.device, torch.float64) * wav.shape[1]
    return exact.round().long()


def _require_relative(wav_lens):
    # An exported graph takes lengths in samples, and raises nothing.
    # `is_exporting` is True also while Dynamo compiles.
    compiling = torch.compiler.is_dynamo_compiling()
    if torch.compiler.is_exporting() and not compiling:
        return
    # NaN is not in the range either.
    good = (wav_lens > 0) & (wav_lens <= 1 + _LENGTH_NOISE)
    reason = (
        "relative lengths (1: the longest clip) must be above 0 and at most "
        "1; divide lengths in samples by wav.shape[1]"
    )
    # A check of the values would make each training step wait for the GPU, and
    # would split a compiled graph.
    if wav_lens.device.type != "cpu" or compiling:
        torch._assert_async(good.all(), reason)
    elif not good.all():
        raise ValueError(f"{reason}; got {wav_lens[~good][0].item():g}")
