"""Turn scores into events: join windows, filter, and apply thresholds.

Trackers take the scores of a recording in consecutive chunks, so that hours
need no more memory than minutes. Only `ChangePointTracker` keeps all scores.
The size of the chunks does not change the result.
"""

from typing import NamedTuple

import numpy as np

from ssast_lobes.utils.checks import real

_TOLERANCE = 1e-6


class DetectedEvent(NamedTuple):
    """A detected sound.

    Arguments
    ---------
    onset, offset : float
        Seconds from the start of the recording.
    label : str
        Class of the sound.
    score : float
        Mean probability of the class during the event. Frames in gaps that an
        `EventRule` has closed do not count.
    """

    onset: float
    offset: float
    label: str
    score: float


class EventRule(NamedTuple):
    """Turn the scores of a class into events by a threshold.

    A median filter smooths the scores, and frames that reach the threshold are
    active. Then short gaps are closed and short events dropped.

    Arguments
    ---------
    threshold : float
        Lowest probability of an active frame, 0 to 1.
    median_seconds : float
        Length of the median filter. A length of at most one frame has no
        effect.
    min_seconds : float
        Shorter events are dropped.
    gap_seconds : float
        Gaps up to this length are closed.
    """

    threshold: float = 0.5
    median_seconds: float = 0.0
    min_seconds: float = 0.0
    gap_seconds: float = 0.0

    def median_frames(self, step):
        """Return the length of the filter in frames of `step` seconds, odd."""
        return 2 * round((self.median_seconds / step - 1) / 2) + 1


class ChangePointRule(NamedTuple):
    """Turn change points of the scores of a class into events.

    It follows Ebbers et al., "Sound Event Bounding Boxes", Interspeech 2024,
    and uses their package `sebbs`. It needs all scores of a recording in
    memory.

    Arguments
    ---------
    threshold : float
        Events have a mean probability above this.
    step_seconds : float
        Length of the filter that finds changes.
    merge_absolute, merge_relative : float or None
        Two events are merged if the score between them drops by at most this
        difference and this ratio. None means no limit.
    """

    threshold: float = 0.5
    step_seconds: float = 0.48
    merge_absolute: float = None
    merge_relative: float = 2.0


def read_rules(labels, config):
    """Return the rule of each class from an export's configuration.

    Arguments
    ---------
    labels : list of str
        The classes.
    config : dict
        Label -> arguments of `EventRule` or `ChangePointRule`.

    Returns
    -------
    dict of str to EventRule or ChangePointRule
        All rules are of the same kind.

    Raises
    ------
    ValueError
        If a class has no rule, or a rule is damaged.

    Example
    -------
    >>> read_rules(["dog"], {"dog": {"threshold": 0.3}})["dog"].threshold
    0.3
    """
    rules = {}
    for label in labels:
        if label not in config:
            raise ValueError(f"no rule for {label}")
        values = config[label]
        kind = ChangePointRule if "step_seconds" in values else EventRule
        rules[label] = kind(**values)
        for name, value in values.items():
            is_merge = name.startswith("merge_")
            real(f"{name} of {label}", value, 0, null=is_merge)
    if len({type(rule) for rule in rules.values()}) > 1:
        raise ValueError(
            "all rules must be of one kind: thresholds or change points"
        )
    return rules


def median_filter(scores, widths):
    """Smooth scores over time by median filters with repeated edges.

    Arguments
    ---------
    scores : numpy.ndarray
        (T', C).
    widths : sequence of int
        Length of each class's filter in frames, odd.

    Returns
    -------
    numpy.ndarray
        (T', C).

    Example
    -------
    >>> scores = np.array([[0.0], [1.0], [0.0], [0.0]])
    >>> median_filter(scores, [3])[:, 0].tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    reach = max(widths) // 2
    padded = np.pad(scores, ((reach, reach), (0, 0)), "edge")
    return _filter_inside(padded, widths, reach)


def _filter_inside(scores, widths, reach):
    """Filter all but the first and last `reach` frames."""
    count = len(scores) - 2 * reach
    if count <= 0:
        return scores[:0]
    filtered = np.empty((count, scores.shape[1]), scores.dtype)
    widths = np.asarray(widths)
    for width in np.unique(widths):
        start = reach - width // 2
        part = scores[start : len(scores) - start, widths == width]
        if width > 1:
            views = np.lib.stride_tricks.sliding_window_view(part, width, 0)
            part = np.partition(views, width // 2, -1)[..., width // 2]
        filtered[:, widths == width] = part
    return filtered


class ScoreMerger:
    """Join the scores of windows that overlap.

    Where windows overlap, the result is a weighted mean of their scores. The
    weights fall from the middle of a window to its edges.

    Example
    -------
    >>> merger = ScoreMerger()
    >>> first = merger.add(0, np.ones((4, 1)))
    >>> parts = [first, merger.add(2, np.zeros((4, 1))), merger.finish()]
    >>> np.concatenate(parts)[:, 0].round(2).tolist()
    [1.0, 1.0, 0.67, 0.33, 0.0, 0.0]
    """

    def __init__(self):
        self._first = 0
        self._sum = self._weight = None

    def add(self, start, scores):
        """Add a window; return the scores that are final.

        Arguments
        ---------
        start : int
            First frame of the window, not before that of the previous window.
        scores : numpy.ndarray
            (frames, C).

        Returns
        -------
        numpy.ndarray
            (frames, C), directly after the frames returned so far.
        """
        place = np.arange(len(scores), dtype=scores.dtype)
        weight = np.minimum(place + 1, place[::-1] + 1)[:, None]
        if self._sum is None:
            self._sum, self._weight = scores[:0], weight[:0]
        done = self._take(start - self._first)
        missing = max(0, len(scores) - len(self._sum))
        self._sum = np.pad(self._sum, ((0, missing), (0, 0)))
        self._weight = np.pad(self._weight, ((0, missing), (0, 0)))
        self._sum[: len(scores)] += weight * scores
        self._weight[: len(scores)] += weight
        return done

    def finish(self):
        """Return the remaining scores (frames, C)."""
        return self._take(len(self._sum))

    def _take(self, count):
        done = self._sum[:count] / self._weight[:count]
        self._sum, self._weight = self._sum[count:], self._weight[count:]
        self._first += count
        return done


class EventTracker:
    """Find events in scores that come in chunks, by `EventRule`.

    An event is returned when no later score can change it. The size of the
    chunks does not change the events.

    Arguments
    ---------
    rules : dict of str to EventRule
        By class, in the order of the scores.
    timing : FrameTiming
        Frame timing of the model.

    Example
    -------
    >>> from ssast_lobes import Grid, KaldiFbank
    >>> from ssast_lobes.models.event_head import FrameTiming
    >>> timing = FrameTiming(Grid(128, (128, 4)), KaldiFbank())
    >>> tracker = EventTracker({"dog": EventRule(0.5)}, timing)
    >>> tracker.add(np.array([[0.1], [0.9]])), tracker.add(np.array([[0.7]]))
    ([], [])
    >>> [(e.onset, e.offset, e.score) for e in tracker.finish(0.12)]
    [(0.0475, 0.12, 0.8)]
    """

    def __init__(self, rules, timing):
        self.labels = list(rules)
        self.rules = list(rules.values())
        self.timing = timing
        self._widths = [rule.median_frames(timing.step) for rule in self.rules]
        self._reach = max(self._widths) // 2
        # The filter still needs these scores.
        self._kept = None
        self._n_done = 0
        # The open event of each class: first frame, frame after the last, sum
        # and number of scores of active frames.
        self._open = [None] * len(rules)

    def add(self, scores):
        """Return the events that are complete after a chunk of scores.

        Arguments
        ---------
        scores : numpy.ndarray
            Probabilities (frames, C).

        Returns
        -------
        list of DetectedEvent
            The events of each class are in order of time.
        """
        if len(scores) == 0:
            return []
        if self._kept is None:
            self._kept = np.repeat(scores[:1], self._reach, axis=0)
        self._kept = np.concatenate([self._kept, scores])
        return self._advance(None)

    def finish(self, seconds):
        """Return the last events, given the duration of the recording."""
        if self._kept is None:
            return []
        tail = np.repeat(self._kept[-1:], self._reach, axis=0)
        self._kept = np.concatenate([self._kept, tail])
        return self._advance(seconds)

    def _advance(self, seconds):
        filtered = _filter_inside(self._kept, self._widths, self._reach)
        self._kept = self._kept[len(filtered) :]
        first, self._n_done = self._n_done, self._n_done + len(filtered)
        done = []
        for number, rule in enumerate(self.rules):
            column = filtered[:, number]
            on = np.flatnonzero(
                np.diff(np.r_[False, column >= rule.threshold, False])
            )
            for start, stop in on.reshape(-1, 2).tolist():
                run = first + start, first + stop
                self._extend(number, *run, column[start:stop].sum(), done)
            last = self._open[number]
            if last and (
                seconds is not None or self._is_over(number, self._n_done)
            ):
                self._close(number, done, seconds)
        return sorted(done)

    def _is_over(self, number, frame):
        """Return whether a frame is too late to belong to the open event."""
        gap = (frame - self._open[number][1]) * self.timing.step
        return gap > self.rules[number].gap_seconds + _TOLERANCE

    def _extend(self, number, start, stop, total, done):
        last = self._open[number]
        if last and start > last[1] and self._is_over(number, start):
            self._close(number, done, None)
            last = None
        before = last or (start, start, 0.0, 0)
        total, count = before[2] + total, before[3] + stop - start
        self._open[number] = before[0], stop, total, count

    def _close(self, number, done, seconds):
        start, stop, total, count = self._open[number]
        self._open[number] = None
        onset, offset = self.timing.edge(start), self.timing.edge(stop)
        if seconds is not None and stop == self._n_done:
            offset = seconds
        if offset - onset >= self.rules[number].min_seconds - _TOLERANCE:
            score = round(float(total) / count, 6)
            event = DetectedEvent(onset, offset, self.labels[number], score)
            done.append(event)


class ChangePointTracker:
    """Find events by `ChangePointRule`, after all scores were added.

    Arguments
    ---------
    rules : dict of str to ChangePointRule
        By class, in the order of the scores.
    timing : FrameTiming
        Frame timing of the model.

    Raises
    ------
    ImportError
        If `sebbs` is not installed.
    """

    def __init__(self, rules, timing):
        require_sebbs()
        self.rules = rules
        self.timing = timing
        self._parts = []

    def add(self, scores):
        """Keep a chunk of scores (frames, C); return no events yet."""
        self._parts.append(scores)
        return []

    def finish(self, seconds):
        """Return the events, given the duration of the recording."""
        scores = np.concatenate(self._parts)
        if len(scores) == 0:
            return []
        edges = self.timing.edges(len(scores), seconds)
        boxes = change_point_boxes(scores, edges, self.rules)
        return sorted(
            event
            for event in boxes
            if event.score > self.rules[event.label].threshold
        )


def change_point_boxes(scores, edges, rules):
    """Return the event candidates of `sebbs`, without a threshold.

    Arguments
    ---------
    scores : numpy.ndarray
        Probabilities (T', C).
    edges : list of float
        T' + 1 times in seconds; see `FrameTiming.edges`.
    rules : dict of str to ChangePointRule
        By class, in the order of the scores.

    Returns
    -------
    list of DetectedEvent
    """
    from sebbs.csebbs import CSEBBsPredictor
    from sed_scores_eval.base_modules.scores import create_score_dataframe

    labels = list(rules)
    limit = {"merge_absolute": {}, "merge_relative": {}}
    for label, rule in rules.items():
        for name, values in limit.items():
            value = getattr(rule, name)
            values[label] = np.inf if value is None else value
    predictor = CSEBBsPredictor(
        {label: rule.step_seconds for label, rule in rules.items()},
        limit["merge_absolute"],
        limit["merge_relative"],
        sound_classes=labels,
    )
    frame = create_score_dataframe(
        np.asarray(scores, dtype=np.float64), np.asarray(edges), labels
    )
    [boxes] = predictor.predict({"clip": frame}).values()
    return [
        DetectedEvent(float(onset), float(offset), label, float(score))
        for onset, offset, label, score in boxes
    ]


def require_sebbs():
    """Raise unless the package `sebbs` is installed.

    Raises
    ------
    ImportError
        If it is not installed. The message says how to install it.
    """
    try:
        import sebbs  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "change-point rules need the package sebbs, which is under "
            "AGPL-3.0: pip install 'ssast_lobes[sebbs]'"
        ) from error


def make_tracker(rules, timing):
    """Return a tracker for rules of either kind.

    Arguments
    ---------
    rules : dict of str to EventRule or ChangePointRule
        By class, in the order of the scores.
    timing : FrameTiming
        Frame timing of the model.

    Returns
    -------
    EventTracker or ChangePointTracker

    Raises
    ------
    ImportError
        If `sebbs` is needed but not installed.
    """
    whole = isinstance(next(iter(rules.values())), ChangePointRule)
    return (ChangePointTracker if whole else EventTracker)(rules, timing)


def find_events(scores, seconds, rules, timing):
    """Return the events in the scores of a whole clip.

    Arguments
    ---------
    scores : numpy.ndarray
        Probabilities (T', C).
    seconds : float
        Duration of the clip.
    rules, timing
        See `make_tracker`.

    Returns
    -------
    list of DetectedEvent
        In order of time.

    Example
    -------
    >>> from ssast_lobes import Grid, KaldiFbank
    >>> from ssast_lobes.models.event_head import FrameTiming
    >>> timing = FrameTiming(Grid(128, (128, 4)), KaldiFbank())
    >>> scores = np.array([[0.9], [0.1], [0.7]])
    >>> rules = {"dog": EventRule(0.5, gap_seconds=0.04)}
    >>> find_events(scores, 0.12, rules, timing)
    [DetectedEvent(onset=0.0, offset=0.12, label='dog', score=0.8)]
    """
    tracker = make_tracker(rules, timing)
    return sorted([*tracker.add(scores), *tracker.finish(seconds)])
