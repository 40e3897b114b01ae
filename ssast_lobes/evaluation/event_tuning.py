"""Choose the rules that turn scores into events, on the validation split."""

import itertools

import numpy as np
from tqdm import tqdm

from ssast_lobes.evaluation.event_metrics import (
    COLLAR,
    decided_metrics,
    event_based_f1,
    psds_of_frames,
    score_frame,
    score_metrics,
)
from ssast_lobes.inference.events import (
    ChangePointRule,
    EventRule,
    change_point_boxes,
    find_events,
    median_filter,
    require_sebbs,
)

MEDIAN_SECONDS = (0.0, 0.12, 0.2, 0.36, 0.52, 0.76, 1.0)
MIN_SECONDS = (0.0, 0.1, 0.2, 0.4)
GAP_SECONDS = (0.0, 0.1, 0.2, 0.4, 0.8)
KINDS = ("median", "sebbs")
# The tuning of `sebbs` tries these values too, with one limit at a time.
STEP_SECONDS = (0.32, 0.48, 0.64)
LIMITS = (
    *((absolute, None) for absolute in (0.15, 0.2, 0.3)),
    *((None, relative) for relative in (1.5, 2.0, 3.0)),
)


def tune_rules(scores, truth, seconds, labels, timing, kind="median"):
    """Choose the rule of each class by event-based F1.

    First, the filter and the threshold are chosen; all thresholds are tried.
    For ``"median"``, the shortest event and the longest gap are chosen next.
    Among rules of equal F1, the one that changes the scores least is chosen.

    Arguments
    ---------
    scores : dict of str to numpy.ndarray
        Clip -> probabilities (T', C), unfiltered.
    truth : dict of str to list
        Clip -> events: onset, offset, label.
    seconds : dict of str to float
        Clip -> duration.
    labels : list of str
        Class of each column.
    timing : FrameTiming
        Frame timing of the model.
    kind : str
        ``"median"`` for `EventRule`, ``"sebbs"`` for `ChangePointRule`.

    Returns
    -------
    dict of str to EventRule or ChangePointRule
        By class. A class without events gets the default rule.

    Raises
    ------
    ImportError
        If a required package is not installed.
    ValueError
        If `kind` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got '{kind}'")
    truth = {c: [tuple(e[:3]) for e in events] for c, events in truth.items()}
    known = {event[2] for events in truth.values() for event in events}
    chosen = [label for label in labels if label in known]
    parts = [truth, seconds, labels, timing, chosen]
    if kind == "sebbs":
        require_sebbs()
        found = _change_points(scores, *parts)
        default = ChangePointRule()
    else:
        found = _gaps(scores, _medians(scores, *parts), *parts)
        default = EventRule()
    return {label: found.get(label, default) for label in labels}


def _medians(scores, truth, seconds, labels, timing, chosen):
    """Return the best filter and threshold of each class."""
    best = {}
    for median in tqdm(MEDIAN_SECONDS, "Choosing filters", delay=2):
        rule = EventRule(median_seconds=median)
        widths = [rule.median_frames(timing.step)] * len(labels)
        frames = {
            clip: score_frame(
                median_filter(x, widths), seconds[clip], labels, timing, chosen
            )
            for clip, x in scores.items()
        }
        for label, (f1, threshold) in _best_thresholds(frames, truth).items():
            if label not in best or f1 > best[label][0] + 1e-9:
                best[label] = f1, rule._replace(threshold=threshold)
    return {label: rule for label, (_, rule) in best.items()}


def _best_thresholds(frames, truth):
    """Return the best F1 and its threshold by class."""
    from sed_scores_eval import collar_based

    f1, _, _, threshold, _ = collar_based.best_fscore(frames, truth, **COLLAR)
    # If no threshold finds an event, the best threshold is infinite.
    return {
        label: (float(f1[label]), float(value) if 0 <= value <= 1 else 0.5)
        for label, value in threshold.items()
        if not label.endswith("_average")
    }


def _gaps(scores, rules, truth, seconds, labels, timing, chosen):
    """Return the rules with the best `min_seconds` and `gap_seconds`."""
    best = {}
    pairs = list(itertools.product(MIN_SECONDS, GAP_SECONDS))
    for shortest, gap in tqdm(pairs, "Choosing durations", delay=2):
        tried = {
            label: rules.get(label, EventRule())._replace(
                min_seconds=shortest, gap_seconds=gap
            )
            for label in labels
        }
        found = {
            clip: find_events(x, seconds[clip], tried, timing)
            for clip, x in scores.items()
        }
        f1 = event_based_f1(found, truth, seconds)
        for label in chosen:
            if label not in best or f1[label] > best[label][0] + 1e-9:
                best[label] = f1[label], tried[label]
    return {label: rule for label, (_, rule) in best.items()}


def _change_points(scores, truth, seconds, labels, timing, chosen):
    """Return the best `ChangePointRule` of each class."""
    best = {}
    settings = list(itertools.product(STEP_SECONDS, LIMITS))
    for step, limits in tqdm(settings, "Choosing change points", delay=2):
        rule = ChangePointRule(0.5, step, *limits)
        frames = boxed_frames(
            scores, seconds, dict.fromkeys(labels, rule), timing, chosen
        )
        for label, (f1, threshold) in _best_thresholds(frames, truth).items():
            if label not in best or f1 > best[label][0] + 1e-9:
                best[label] = f1, rule._replace(threshold=threshold)
    return {label: rule for label, (_, rule) in best.items()}


def boxed_frames(scores, seconds, rules, timing, chosen):
    """Return the scores of event candidates of `sebbs`, and 0 elsewhere.

    Arguments
    ---------
    scores, seconds, timing
        See `tune_rules`.
    rules : dict of str to ChangePointRule
        By class.
    chosen : list of str
        Classes to keep.

    Returns
    -------
    dict
        Clip -> pandas.DataFrame of `sed_scores_eval`.
    """
    from sed_scores_eval.base_modules.scores import create_score_dataframe

    frames = {}
    for clip, x in scores.items():
        edges = timing.edges(len(x), seconds[clip])
        boxes = change_point_boxes(x, edges, rules)
        boxes = [box for box in boxes if box.label in chosen]
        times = {time for box in boxes for time in box[:2]}
        cuts = np.array(sorted({0.0, seconds[clip], *times}))
        values = np.zeros((len(cuts) - 1, len(chosen)))
        for onset, offset, label, score in boxes:
            first, last = np.searchsorted(cuts, [onset, offset])
            values[first:last, chosen.index(label)] = score
        frames[clip] = create_score_dataframe(values, cuts, chosen)
    return frames


def evaluate_events(scores, truth, seconds, rules, timing):
    """Find events by the chosen rules; return all metrics and the events.

    Arguments
    ---------
    scores, truth, seconds, timing
        See `tune_rules`.
    rules : dict of str to EventRule or ChangePointRule
        By class, in the order of the scores.

    Returns
    -------
    metrics : dict of str to dict
        ``segment_f1``, ``event_f1``, ``psds1`` and ``psds2``; see
        `ssast_lobes.evaluation.event_metrics`.
    events : dict of str to list of DetectedEvent
        By clip.
    """
    truth = {c: [tuple(e[:3]) for e in events] for c, events in truth.items()}
    labels, events = list(rules), {}
    for clip, x in tqdm(scores.items(), "Finding events", delay=2):
        events[clip] = find_events(x, seconds[clip], rules, timing)
    metrics = decided_metrics(events, truth, seconds)
    if isinstance(rules[labels[0]], ChangePointRule):
        known = {event[2] for of_clip in truth.values() for event in of_clip}
        chosen = [label for label in labels if label in known]
        frames = boxed_frames(scores, seconds, rules, timing, chosen)
        return {**metrics, **psds_of_frames(frames, truth, seconds)}, events
    widths = [rule.median_frames(timing.step) for rule in rules.values()]
    filtered = {clip: median_filter(x, widths) for clip, x in scores.items()}
    more = score_metrics(filtered, truth, seconds, labels, timing)
    return {**metrics, **more}, events
