"""Compute metrics of sound event detection with `sed_scores_eval`.

- `decided_metrics` returns the segment-based and event-based F1 of decided
  events, for each class and as the mean over classes (Mesaros et al., "Metrics
  for polyphonic sound event detection", Applied Sciences 2016). Segments are
  1 s long. An event counts as found if its onset is within 200 ms of the true
  onset. The offset may differ by 200 ms or 20 % of the event, whichever is
  larger.
- `score_metrics` returns PSDS 1 and 2 of scores (Bilen et al., "A framework for
  the robust evaluation of sound event detection", ICASSP 2020). PSDS integrates
  over all thresholds (Ebbers et al., ICASSP 2022), here with the parameters of
  DCASE 2021 task 4.

This module only converts between formats. It needs the extra `events`.
"""

import numpy as np

SEGMENT_SECONDS = 1.0
COLLAR = {"onset_collar": 0.2, "offset_collar": 0.2, "offset_collar_rate": 0.2}
# https://dcase.community/challenge2021/task-sound-event-detection-and-separation-in-domestic-environments
PSDS = {
    "psds1": {
        "dtc_threshold": 0.7,
        "gtc_threshold": 0.7,
        "alpha_ct": 0.0,
        "alpha_st": 1.0,
    },
    "psds2": {
        "dtc_threshold": 0.1,
        "gtc_threshold": 0.1,
        "cttc_threshold": 0.3,
        "alpha_ct": 0.5,
        "alpha_st": 1.0,
    },
}


def require_metrics():
    """Raise unless the package `sed_scores_eval` is installed.

    Raises
    ------
    ImportError
        If it is not installed. The message says how to install it.
    """
    try:
        import sed_scores_eval  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "metrics of events need the package sed_scores_eval: "
            "pip install 'ssast_lobes[events]'"
        ) from error


def decided_metrics(events, truth, seconds):
    """Return segment-based and event-based F1 of decided events.

    Arguments
    ---------
    events, truth : dict of str to list
        Clip -> list of events. Each event begins with onset, offset (seconds)
        and label. The list of a clip without events is empty.
    seconds : dict of str to float
        Clip -> duration.

    Returns
    -------
    dict of str to dict
        ``segment_f1`` and ``event_f1``: class -> F1, with ``mean`` over the
        classes that occur in the truth. Events of other classes do not count.

    Example
    -------
    >>> import pytest
    >>> _ = pytest.importorskip("sed_scores_eval")
    >>> truth = {"a": [(1.0, 3.0, "dog")]}
    >>> found = {"a": [(1.1, 2.7, "dog"), (5.0, 6.0, "dog")]}
    >>> f1 = decided_metrics(found, truth, {"a": 10.0})
    >>> round(f1["event_f1"]["dog"], 3), round(f1["segment_f1"]["dog"], 3)
    (0.667, 0.8)
    """
    from sed_scores_eval import segment_based

    triples, labels = _triples(truth)
    segment = segment_based.fscore(
        _step_scores(events, seconds, labels),
        triples,
        seconds,
        0.5,
        segment_length=SEGMENT_SECONDS,
    )
    return {
        "segment_f1": _by_class(segment[0], labels),
        "event_f1": event_based_f1(events, truth, seconds),
    }


def event_based_f1(events, truth, seconds):
    """Return only the event-based F1 of decided events.

    Arguments
    ---------
    events, truth, seconds
        See `decided_metrics`.

    Returns
    -------
    dict of str to float
        Class -> F1, and ``mean``.
    """
    from sed_scores_eval import collar_based

    truth, labels = _triples(truth)
    scores = _step_scores(events, seconds, labels)
    return _by_class(
        collar_based.fscore(scores, truth, 0.5, **COLLAR)[0], labels
    )


def score_metrics(scores, truth, seconds, labels, timing):
    """Return PSDS 1 and 2 of scores.

    Arguments
    ---------
    scores : dict of str to numpy.ndarray
        Clip -> scores (T', C), filtered as for the decided events.
    truth, seconds
        See `decided_metrics`.
    labels : list of str
        Class of each column.
    timing : FrameTiming
        Frame timing of the model.

    Returns
    -------
    dict of str to dict
        ``psds1`` and ``psds2``: class -> value, and ``mean``, the PSDS. The
        PSDS is the mean over classes minus a penalty for their standard
        deviation.
    """
    truth, occurring = _triples(truth)
    frames = {
        clip: score_frame(x, seconds[clip], labels, timing, occurring)
        for clip, x in scores.items()
    }
    return psds_of_frames(frames, truth, seconds)


def psds_of_frames(frames, truth, seconds):
    """Return PSDS 1 and 2 of scores in the format of `sed_scores_eval`.

    Arguments
    ---------
    frames : dict
        Clip -> pandas.DataFrame, see `score_frame`.
    truth : dict
        Clip -> list of (onset, offset, label).
    seconds : dict of str to float
        Clip -> duration.

    Returns
    -------
    dict of str to dict
        See `score_metrics`.
    """
    from sed_scores_eval import intersection_based

    classes = {label for events in truth.values() for *_, label in events}
    found = {}
    for name, settings in PSDS.items():
        if len(classes) == 1:
            # A single class has no cross-triggers, and `sed_scores_eval` fails
            # without these settings.
            settings = {**settings, "alpha_ct": 0.0, "cttc_threshold": None}
        mean, by_class, *_ = intersection_based.psds(
            frames, truth, seconds, **settings
        )
        values = {label: float(value) for label, value in by_class.items()}
        found[name] = {**values, "mean": float(mean)}
    return found


def score_frame(scores, seconds, labels, timing, chosen):
    """Return the scores of a clip in the format of `sed_scores_eval`.

    Arguments
    ---------
    scores : numpy.ndarray
        (T', C).
    seconds : float
        Duration of the clip.
    labels : list of str
        Class of each column.
    timing : FrameTiming
        Frame timing of the model.
    chosen : list of str
        Classes to keep.

    Returns
    -------
    pandas.DataFrame
    """
    from sed_scores_eval.base_modules.scores import create_score_dataframe

    columns = [labels.index(label) for label in chosen]
    edges = np.array(timing.edges(len(scores), seconds))
    kept = np.asarray(scores, dtype=np.float64)[:, columns]
    return create_score_dataframe(kept, edges, chosen)


def _triples(truth):
    """Return events as plain tuples, and the classes that occur."""
    plain = {
        clip: [tuple(event[:3]) for event in events]
        for clip, events in truth.items()
    }
    labels = {event[2] for events in plain.values() for event in events}
    if not labels:
        raise ValueError("no clip has an event: there is nothing to measure")
    return plain, sorted(labels)


def _step_scores(events, seconds, labels):
    """Return scores of clips that are 1 during events, and 0 elsewhere."""
    from sed_scores_eval.base_modules.scores import create_score_dataframe

    frames = {}
    for clip, found in events.items():
        found = [event for event in found if event[2] in labels]
        times = {time for event in found for time in event[:2]}
        edges = np.array(sorted({0.0, seconds[clip], *times}))
        scores = np.zeros((len(edges) - 1, len(labels)))
        for onset, offset, label, *_ in found:
            first, last = np.searchsorted(edges, [onset, offset])
            scores[first:last, labels.index(label)] = 1.0
        frames[clip] = create_score_dataframe(scores, edges, labels)
    return frames


def _by_class(values, labels):
    found = {label: float(values[label]) for label in labels}
    return {**found, "mean": float(np.mean(list(found.values())))}
