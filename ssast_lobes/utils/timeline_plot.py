"""Plot a recording: spectrogram, scores, detected and true events."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.style import context

from ssast_lobes.utils.plots import _STYLE, _save

# Okabe and Ito's palette without black; further curves reuse it with dashes.
_COLORS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #F0E442".split()
_DASHES = ("-", "--", ":")
_MOST_CLASSES = 20


def plot_timeline(features, scores, edges, labels, events, path, truth=None):
    """Plot spectrogram, score curves and events of one recording.

    A class is drawn if it occurs in the events or the truth, or if its score
    reaches 0.3. At most 20 classes are drawn, those with the highest scores.

    Arguments
    ---------
    features : numpy.ndarray
        Log-mel (T, M) of the recording.
    scores : numpy.ndarray
        Probabilities (T', C).
    edges : list of float
        Borders of the T' frames: T' + 1 times in seconds.
    labels : list of str
        Class of each column of `scores`.
    events : list of tuple
        Detected events: onset, offset (seconds), label, and perhaps a score.
    path : str or Path
        File to write; its suffix chooses the format.
    truth : list of tuple, optional
        True events: onset, offset, label.

    Returns
    -------
    matplotlib.figure.Figure
        The figure that was written.

    Example
    -------
    >>> path = getfixture("tmpdir") / "timeline.png"
    >>> figure = plot_timeline(
    ...     np.zeros((100, 64)),
    ...     np.array([[0.1], [0.9]]),
    ...     [0.0, 0.5, 1.0],
    ...     ["dog"],
    ...     [(0.5, 1.0, "dog")],
    ...     path,
    ... )
    >>> path.exists()
    True
    """
    truth = truth or []
    named = {event[2] for event in [*events, *truth]}
    peaks = scores.max(0, initial=0.0)
    chosen = [
        (number, label)
        for number, label in enumerate(labels)
        if label in named or peaks[number] >= 0.3
    ]
    chosen = sorted(chosen, key=lambda pair: -peaks[pair[0]])[:_MOST_CLASSES]
    chosen = sorted(chosen)
    looks = {
        label: (
            _COLORS[place % len(_COLORS)],
            _DASHES[place // len(_COLORS) % len(_DASHES)],
        )
        for place, (_, label) in enumerate(chosen)
    }
    seconds = edges[-1]
    with context(_STYLE):
        height = 4.2 + 0.24 * len(chosen)
        figure = Figure(figsize=(min(24, max(8, seconds * 0.4)), height))
        panels = figure.subplots(
            3,
            1,
            sharex=True,
            height_ratios=[1.6, 1.4, 0.4 + 0.24 * len(chosen)],
        )
        figure.set_layout_engine("constrained")
        top, middle, bottom = panels
        top.imshow(
            features.T,
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=(0, seconds, 0, features.shape[1]),
        )
        top.set_ylabel("Mel bin")
        centers = (np.array(edges[1:]) + np.array(edges[:-1])) / 2
        for number, label in chosen:
            color, dash = looks[label]
            middle.plot(
                centers, scores[:, number], dash, color=color, label=label, lw=1
            )
        middle.set(ylabel="Probability", ylim=(0, 1.02), xlim=(0, seconds))
        if chosen:
            middle.legend(loc="upper left", bbox_to_anchor=(1, 1))
        rows = {label: row for row, (_, label) in enumerate(chosen)}
        for onset, offset, label, *_ in truth:
            if label in rows:
                bottom.barh(
                    rows[label],
                    offset - onset,
                    left=onset,
                    height=0.8,
                    color="0.8",
                )
        for onset, offset, label, *_ in events:
            if label in rows:
                bottom.barh(
                    rows[label],
                    offset - onset,
                    left=onset,
                    height=0.4,
                    color=looks[label][0],
                )
        told = "Events (grey: true)" if truth else "Events"
        bottom.set(
            yticks=range(len(chosen)),
            yticklabels=[label for _, label in chosen],
            ylim=(len(chosen) - 0.4, -0.6),
            xlabel="Time (s)",
            ylabel=told,
        )
        _save(figure, path)
    return figure
