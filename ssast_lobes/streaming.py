"""Streams: a recording without end, classified window by window.

Audio comes in pieces of any size, from a microphone, a socket or a long file;
labels with times go out as soon as a window is full. No more than a window is
kept.
"""

import torch

from ssast_lobes.inference import WindowScores


def cut_stream(pieces, window, hop):
    """Cut a stream into windows that overlap.

    Arguments
    ---------
    pieces : iterable of torch.Tensor or numpy.ndarray
        Parts of one waveform (samples,), in order, of any sizes.
    window : int
        Length of a window in samples.
    hop : int
        Samples from the start of a window to that of the next.

    Yields
    ------
    start : int
        First sample of the window.
    wav : torch.Tensor
        Waveform (samples,), float32. The last one ends with the stream and
        may be shorter; there is none if the one before it reaches the end.

    Raises
    ------
    ValueError
        If `hop` is not between 1 and `window`: audio would be left out.

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
    for piece in pieces:
        piece = torch.as_tensor(piece, dtype=torch.float32)
        kept = torch.cat([kept, piece.cpu()])
        while len(kept) >= window:
            yield start, kept[:window]
            start, kept = start + hop, kept[hop:]
    # What the last full window has in common with the next is not new.
    seen = window - hop if start > 0 else 0
    if len(kept) > seen:
        yield start, kept


def classify_stream(
    classifier, pieces, window_seconds=None, hop_seconds=None, threshold=0.5
):
    """Classify a stream, a result a window as soon as it is full.

    Arguments
    ---------
    classifier : AudioClassifier
        The classifier.
    pieces : iterable of torch.Tensor or numpy.ndarray
        Parts of one mono waveform (samples,) at the classifier's rate, in
        order, of any sizes.
    window_seconds : float, optional
        Length of a window, at least 25 ms: short ones answer sooner, long
        ones hear more. The classifier's own, what it was trained on, when
        left out.
    hop_seconds : float, optional
        From the start of a window to that of the next; half a window when
        left out.
    threshold : float
        Least score of a label; multi-label models only.

    Yields
    ------
    WindowScores
        Start and end in seconds since the start of the stream, labels and
        scores. A last window of less than 25 ms is left out.

    Raises
    ------
    ValueError
        If the window is too short for one frame, or the hop longer than it.

    Example
    -------
    >>> from ssast_lobes import (
    ...     FrontEnd,
    ...     SpectrogramClassifier,
    ...     SpectrogramEncoder,
    ... )
    >>> from ssast_lobes.export import export_classifier, label_encoder_of
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
    window = round((window_seconds or classifier.window_seconds) * rate)
    hop = max(1, window // 2)
    if hop_seconds is not None:
        hop = round(hop_seconds * rate)
    shortest = classifier.fbank.window_samples
    if window < shortest:
        raise ValueError(
            f"a window of {window / rate:g} s is too short, at least "
            f"{shortest / rate:g} s are needed"
        )
    for start, wav in cut_stream(pieces, window, hop):
        if len(wav) < shortest:
            return
        [result] = classifier.classify_batch(wav, threshold=threshold)
        end = (start + len(wav)) / rate
        yield WindowScores(start / rate, end, result.labels, result.scores)
