"""Metrics of events, worked by hand, and the rules that they choose."""

import importlib.util
import sys

import numpy as np
import pytest

from ssast_lobes import Grid, KaldiFbank
from ssast_lobes.evaluation.event_metrics import (
    decided_metrics,
    require_metrics,
    score_metrics,
)
from ssast_lobes.evaluation.event_tuning import evaluate_events, tune_rules
from ssast_lobes.inference.events import (
    ChangePointRule,
    DetectedEvent,
    EventRule,
    find_events,
    require_sebbs,
)
from ssast_lobes.models.event_head import FrameTiming

measured = pytest.mark.skipif(
    importlib.util.find_spec("sed_scores_eval") is None,
    reason="metrics of events need the extra `events`",
)

TIMING = FrameTiming(Grid(128, (128, 4)), KaldiFbank())
SECONDS = {"a": 10.0, "b": 10.0, "none": 10.0}
TRUTH = {
    "a": [(1.0, 3.0, "dog"), (5.0, 6.0, "cat")],
    "b": [(2.0, 4.0, "dog")],
    "none": [],
}


@measured
def test_f1_by_hand():
    found = {
        # dog: onset within 0.2 s, offset within 20 % of 2 s; then a false
        # one. cat: 0.3 s too early, so a miss and a false one.
        "a": [(1.15, 2.7, "dog"), (8.0, 8.5, "dog"), (4.7, 6.0, "cat")],
        "b": [],
        "none": [],
    }
    f1 = decided_metrics(found, TRUTH, SECONDS)
    # dog: 1 right, 1 false, 1 missed: 2 / (2 + 1 + 1).
    assert f1["event_f1"] == pytest.approx({"dog": 0.5, "cat": 0, "mean": 0.25})
    # Segments of 1 s. dog: 1, 2 of 1, 2; 8 false; 2, 3 of b missed:
    # 4 / (4 + 1 + 2). cat: 4 false, 5 right: 2 / (2 + 1).
    mean = (4 / 7 + 2 / 3) / 2
    wanted = {"dog": 4 / 7, "cat": 2 / 3, "mean": mean}
    assert f1["segment_f1"] == pytest.approx(wanted)


def scores_of(events, seconds=10.0, labels=("dog", "cat")):
    """Scores of frames: 0.9 within an event, 0.1 elsewhere."""
    count = TIMING.n_time(round(seconds * 16000))
    parts = [(a, b, labels.index(label)) for a, b, label in events]
    target = TIMING.targets(parts, round(seconds * 16000), len(labels))
    return 0.1 + 0.8 * target.numpy()[:count]


@measured
def test_psds_by_hand():
    labels = ["dog", "cat"]
    scores = {clip: scores_of(events) for clip, events in TRUTH.items()}
    right = score_metrics(scores, TRUTH, SECONDS, labels, TIMING)
    assert right["psds1"]["mean"] == pytest.approx(1)
    assert right["psds2"]["mean"] == pytest.approx(1)
    # One of two dogs is missed at any rate of false alarms, no cat: the mean
    # of 0.5 and 1, less their deviation of 0.25.
    scores["b"] = np.full_like(scores["b"], 0.1)
    one = score_metrics(scores, TRUTH, SECONDS, labels, TIMING)
    assert one["psds1"]["dog"] == pytest.approx(0.5)
    assert one["psds1"]["mean"] == pytest.approx(0.75 - 0.25)


@measured
def test_psds_of_one_class():
    truth = {"a": [(1.0, 3.0, "dog")], "b": [(2.0, 4.0, "dog")], "none": []}
    scores = {clip: scores_of(events) for clip, events in truth.items()}
    found = score_metrics(scores, truth, SECONDS, ["dog", "cat"], TIMING)
    assert found["psds1"] == pytest.approx({"dog": 1, "mean": 1})
    assert found["psds2"] == pytest.approx({"dog": 1, "mean": 1})
    scores["b"] = np.full_like(scores["b"], 0.1)
    found = score_metrics(scores, truth, SECONDS, ["dog", "cat"], TIMING)
    assert found["psds2"] == pytest.approx({"dog": 0.5, "mean": 0.5})


@measured
def test_no_events_at_all_is_an_error():
    with pytest.raises(ValueError, match="no clip has an event"):
        decided_metrics({"a": []}, {"a": []}, {"a": 1.0})


@pytest.fixture(scope="module")
def noisy():
    """Scores of twelve clips: dropouts within events, and false clicks."""
    rng = np.random.default_rng(0)
    truth, scores = {}, {}
    for number in range(12):
        onset = rng.uniform(1, 4)
        truth[number] = [(onset, onset + rng.uniform(1, 3), "dog")]
        if number % 2:
            truth[number].append((7.0, 8.0, "cat"))
        x = scores_of(truth[number]) - 0.3
        on = np.flatnonzero(x[:, 0] > 0.5)
        x[rng.choice(on[5:-5], 2, replace=False), 0] = 0.42
        x[rng.choice(np.arange(220, 240), 2, replace=False), 0] = 0.6
        scores[number] = x.clip(0, 1)
    truth = {str(k): v for k, v in truth.items()}
    scores = {str(k): v for k, v in scores.items()}
    return scores, truth, dict.fromkeys(truth, 10.0)


@measured
def test_rules_are_chosen_by_class(noisy):
    scores, truth, seconds = noisy
    labels = ["dog", "cat"]
    rules = tune_rules(scores, truth, seconds, labels, TIMING)
    # The dog needs a filter, the cat needs none.
    assert rules["dog"].median_seconds > 0.04
    assert rules["cat"] == EventRule(rules["cat"].threshold)
    metrics, events = evaluate_events(scores, truth, seconds, rules, TIMING)
    assert metrics["event_f1"]["mean"] == pytest.approx(1)
    default = {label: EventRule(0.5) for label in labels}
    before, _ = evaluate_events(scores, truth, seconds, default, TIMING)
    assert before["event_f1"]["dog"] < 0.7
    # A class that validation lacks keeps the default.
    labels = [*labels, "cow"]
    wide = {k: np.c_[x, np.zeros(len(x))] for k, x in scores.items()}
    rules = tune_rules(wide, truth, seconds, labels, TIMING)
    assert rules["cow"] == EventRule()


@measured
def test_change_points(noisy):
    pytest.importorskip("sebbs", reason="needs the extra `sebbs`")
    scores, truth, seconds = noisy
    labels = ["dog", "cat"]
    rules = tune_rules(scores, truth, seconds, labels, TIMING, "sebbs")
    assert {type(rule) for rule in rules.values()} == {ChangePointRule}
    metrics, events = evaluate_events(scores, truth, seconds, rules, TIMING)
    assert metrics["event_f1"]["mean"] > 0.9
    found = find_events(scores["0"], 10.0, rules, TIMING)
    assert found == events["0"]
    assert isinstance(found[0], DetectedEvent)
    assert found[0].onset == pytest.approx(truth["0"][0][0], abs=0.1)


@pytest.mark.parametrize(
    "module, extra, ask",
    [
        ("sed_scores_eval", "events", require_metrics),
        ("sebbs", "sebbs", require_sebbs),
    ],
)
def test_missing_packages_are_named(module, extra, ask, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"ssast_lobes\[{extra}\]"):
        ask()
