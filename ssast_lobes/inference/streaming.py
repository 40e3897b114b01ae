"""Classify a stream of audio, window by window.

Audio comes in pieces of any size, from a microphone, a socket or a long file.
Labels with times are returned as soon as a window is full. Memory holds one
window, not the recording.
"""

import torch

from ssast_lobes.dataio.waveforms import check_samples, to_float
from ssast_lobes.inference.classifier import WindowScores

# If a piece has at most this many entries along one axis, and more along the
# other, the short axis is that of the channels.
_MAX_CHANNELS = 8


def cut_stream(pieces, window, hop):
    """Cut a stream into windows that overlap.

    Arguments
    ---------
    pieces : iterable of torch.Tensor or numpy.ndarray
        Parts of one waveform, in order, of any sizes. Their shape is (samples,)
        for mono, (samples, channels) as from sounddevice and soundfile, or
        (channels, samples) as from torchaudio. Channels are averaged. Integers
        are scaled by `ssast_lobes.dataio.waveforms.to_float`.
    window : int
        Length of a window in samples.
    hop : int
        Samples between the starts of two windows.

    Yields
    ------
    start : int
        First sample of the window.
    wav : torch.Tensor
        Waveform (samples,), float32. The last window ends with the stream and
        may be shorter. It is omitted if the previous window already reaches the
        end.

    Raises
    ------
    ValueError
        If `hop` is below 1, or above `window` so that audio would be lost, or
        if a piece has another shape or type.
    UnreadableAudio
        If a piece has NaN, infinite or absurdly loud samples.

    Example
    -------
    >>> pieces = torch.arange(10.0).split(3)
    >>> [(start, wav.tolist()) for start, wav in cut_stream(pieces, 4, 4)]
    [(0, [0.0, 1.0, 2.0, 3.0]), (4, [4.0, 5.0, 6.0, 7.0]), (8, [8.0, 9.0])]
    """
    if not 1 <= hop <= window:
        raise ValueError(
            f"hop must be from 1 to {window}, the window, got {hop}"
        )
    start, kept = 0, torch.empty(0)
    for piece in _mono_pieces(pieces):
        kept = torch.cat([kept, piece])
        while len(kept) >= window:
            yield start, kept[:window]
            start, kept = start + hop, kept[hop:]
    # The last full window contains this overlap already.
    seen = window - hop if start > 0 else 0
    if len(kept) > seen:
        yield start, kept


def classify_stream(
    classifier, pieces, window_seconds=None, hop_seconds=None, threshold=0.5
):
    """Classify a stream; yield a result as soon as a window is full.

    Arguments
    ---------
    classifier : AudioClassifier
        The classifier.
    pieces : iterable of torch.Tensor or numpy.ndarray
        Parts of one waveform at the classifier's rate; see `cut_stream`.
    window_seconds : float, optional
        Length of a window, at least 25 ms. Short windows give results sooner,
        long windows contain more context. By default the window of the
        classifier.
    hop_seconds : float, optional
        Time between the starts of two windows. By default half a window.
    threshold : float
        Lowest score of a label, for multi-label models only.

    Yields
    ------
    WindowScores
        Start and end in seconds since the start of the stream, labels and
        scores. A last window of less than 25 ms is dropped.

    Raises
    ------
    ValueError
        If the window is too short for one frame, or the hop is longer than the
        window.
    ValueError, UnreadableAudio
        See `cut_stream`.

    Example
    -------
    >>> from ssast_lobes import (
    ...     FrontEnd,
    ...     SpectrogramClassifier,
    ...     SpectrogramEncoder,
    ... )
    >>> from ssast_lobes.checkpoints.folder import (
    ...     export_classifier,
    ...     label_encoder_of,
    ... )
    >>> from ssast_lobes.inference import AudioClassifier
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> folder = getfixture("tmpdir") / "export"
    >>> _ = export_classifier(
    ...     folder,
    ...     SpectrogramClassifier(encoder, n_classes=2),
    ...     FrontEnd(),
    ...     label_encoder_of(["cat", "dog"]),
    ...     multi_label=False,
    ...     card={},
    ... )
    >>> classifier = AudioClassifier.from_hparams(folder)
    >>> microphone = torch.randn(32000).split(1600)
    >>> results = classify_stream(classifier, microphone, window_seconds=1.0)
    >>> [(result.start, result.end) for result in results]
    [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)]
    """
    rate = classifier.sample_rate
    if window_seconds is None:
        window_seconds = classifier.window_seconds
    window = round(window_seconds * rate)
    hop = max(1, window // 2)
    if hop_seconds is not None:
        hop = round(hop_seconds * rate)
    shortest = classifier.fbank.least_samples
    if window < shortest:
        raise ValueError(
            f"a window of {window / rate:g} s is too short: the model needs "
            f"at least {shortest / rate:g} s"
        )
    for start, wav in cut_stream(pieces, window, hop):
        if len(wav) < shortest:
            return
        [result] = classifier.classify_batch(wav, threshold=threshold)
        end = (start + len(wav)) / rate
        yield WindowScores(start / rate, end, result.labels, result.scores)


def _mono_pieces(pieces):
    """Yield the pieces of a stream as float32 (samples,) on the CPU."""
    # The first piece shows the axis of the channels. The last piece may be too
    # short to show it.
    axis = channels = None
    for number, piece in enumerate(pieces):
        name = f"piece {number} of the stream"
        piece = to_float(piece).cpu()
        if piece.numel() == 0:
            continue
        if piece.dim() == 2 and axis is None:
            axis = int(piece.shape[0] > piece.shape[1])
            channels = piece.shape[axis]
            if not channels <= _MAX_CHANNELS < piece.shape[1 - axis]:
                raise _wrong_shape(name, piece)
        if piece.dim() == 2 and piece.shape[axis] == channels:
            piece = piece.mean(axis)
        if piece.dim() != 1:
            raise _wrong_shape(name, piece)
        check_samples(name, piece)
        yield piece


def _wrong_shape(name, piece):
    return ValueError(
        f"{name} has the shape {tuple(piece.shape)}: pieces must be mono "
        "(samples,), or all (samples, channels) or all (channels, samples), "
        f"of at most {_MAX_CHANNELS} channels and more samples in the first"
    )
