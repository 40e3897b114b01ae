"""Metrics against numbers worked out elsewhere.

Those marked "scikit-learn" were printed by scikit-learn 1.9.1 for the same
inputs; for the equal error rate ``roc_curve(drop_intermediate=False)`` met with
the line ``1 - x``. The others are worked out by hand next to them.
"""

import numpy as np
import pytest
import torch

from ssast_lobes.utils.metrics import (
    ClassificationMetrics,
    average_precision,
    effective_rank,
    equal_error_rate,
    unweighted_average_recall,
)

PREDICTED = [0, 2, 1, 1, 0, 3, 2, 2, 0, 1, 3, 3]
TARGET = [0, 2, 1, 0, 0, 3, 1, 2, 2, 1, 0, 3]

# Ties among positives, among negatives, and across them.
SCORES = [
    [0.9, 0.2, 0.5],
    [0.9, 0.8, 0.5],
    [0.4, 0.8, 0.5],
    [0.4, 0.8, 0.1],
    [0.4, 0.1, 0.9],
    [0.1, 0.1, 0.9],
    [0.7, 0.5, 0.2],
    [0.1, 0.3, 0.5],
]
LABELS = [
    [1, 0, 0],
    [0, 1, 1],
    [1, 0, 0],
    [0, 1, 0],
    [1, 0, 1],
    [0, 0, 0],
    [0, 1, 0],
    [1, 0, 0],
]
AVERAGE_PRECISION = [0.5, 0.6944444444444444, 0.41666666666666663]


def summary_of(predicted, target, n_classes=5):
    """Evaluate predictions as batches of scores."""
    predicted, target = torch.tensor(predicted), torch.tensor(target)
    scores = torch.nn.functional.one_hot(predicted, n_classes).float()
    metrics = ClassificationMetrics()
    for part in (slice(0, 2), slice(2, 3), slice(3, None)):
        metrics.append(scores[part].log_softmax(1).bfloat16(), target[part])
    return metrics.summary()


def test_single_label_batches_sum_to_the_whole():
    summary = summary_of(PREDICTED, TARGET)
    assert summary["accuracy"] == pytest.approx(0.6666666666666666)
    assert summary["uar"] == pytest.approx(0.7083333333333333)
    # Chance: the best that the same class for all clips can reach.
    same = [summary_of([n] * len(TARGET), TARGET) for n in range(5)]
    for name in ("accuracy", "uar"):
        best = max(one[name] for one in same)
        assert summary[f"{name}_chance"] == pytest.approx(best)
    # Hits 2, 2, 2, 2; predicted 3, 3, 3, 3; true 4, 3, 3, 2.
    expected = (4 / 7 + 4 / 6 + 4 / 6 + 4 / 5) / 4
    assert summary["macro_f1"] == pytest.approx(expected)
    assert "eer" not in summary
    assert summary["confusion_matrix"].dtype == torch.int64
    assert summary["confusion_matrix"].tolist() == [
        [2, 1, 0, 1, 0],
        [0, 2, 1, 0, 0],
        [1, 0, 2, 0, 0],
        [0, 0, 0, 2, 0],
        [0, 0, 0, 0, 0],
    ]


def test_classes_that_never_occur_are_left_out():
    # Class 2 is predicted but nowhere true: it has an F1, and no recall.
    summary = summary_of([0, 2, 0, 1, 0], [0, 0, 0, 1, 1])
    assert summary["uar"] == pytest.approx(0.5833333333333333)
    summary = summary_of([0, 3, 0, 1, 0], [0, 0, 0, 1, 1])
    assert summary["macro_f1"] == pytest.approx(4 / 9)


def test_uar_is_not_the_accuracy_of_unequal_classes():
    summary = summary_of([0] * 100, [0] * 90 + [1] * 10)
    assert summary["uar"] == 0.5
    assert summary["accuracy"] == pytest.approx(0.9)


def test_average_precision_with_ties_equals_scikit_learn():
    result = average_precision(SCORES, LABELS)
    assert result.tolist() == pytest.approx(AVERAGE_PRECISION, abs=1e-12)


def test_average_precision_of_all_scores_equal_is_the_prevalence():
    result = average_precision(torch.zeros(10, 1), torch.eye(10)[:, :1])
    assert result.tolist() == pytest.approx([0.1])


def test_average_precision_does_not_depend_on_the_order_of_clips():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (100, 8), generator=generator).float()
    targets = torch.randint(0, 2, (100, 8), generator=generator)
    order = torch.randperm(100, generator=generator)
    expected = average_precision(scores, targets)
    shuffled = average_precision(scores[order], targets[order])
    assert torch.allclose(shuffled, expected, atol=1e-12, rtol=0)


def multi_label_summary(scores, targets):
    metrics = ClassificationMetrics(multi_label=True)
    for part in (slice(0, 3), slice(3, 8)):
        metrics.append(scores[part].requires_grad_(), targets[part])
    return metrics.summary()


def test_multi_label_batches_sum_to_the_whole():
    summary = multi_label_summary(torch.tensor(SCORES), torch.tensor(LABELS))
    assert summary["mAP"] == pytest.approx(0.5370370370370371, abs=1e-12)
    per_class = summary["average_precision"].tolist()
    assert per_class == pytest.approx(AVERAGE_PRECISION, abs=1e-12)
    assert summary["classes_scored"] == 3
    same = multi_label_summary(torch.zeros(8, 3), torch.tensor(LABELS))
    assert summary["mAP_chance"] == pytest.approx(same["mAP"])


def test_classes_without_positives_are_left_out_of_the_mean():
    targets = torch.tensor(LABELS).float()
    targets[:, 1] = 0
    summary = multi_label_summary(torch.tensor(SCORES), targets)
    nan = summary["average_precision"].isnan().tolist()
    assert nan == [False, True, False]
    assert summary["mAP"] == pytest.approx((0.5 + 0.41666666666666663) / 2)
    assert summary["classes_scored"] == 2
    with pytest.raises(ValueError, match="no class has a positive"):
        multi_label_summary(torch.tensor(SCORES), 0 * targets)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        # scikit-learn; ties across the two kinds of trial.
        (
            [0.95, 0.9, 0.9, 0.8, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4, 0.3],
            [1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0],
            0.2727272727272727,
        ),
        # scikit-learn; 3 and 4 trials, no threshold has equal errors.
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], [1, 1, 0, 1, 0, 0, 0], 0.25),
        ([3.0, 2.0, 1.0, 0.0], [1, 1, 0, 0], 0.0),
        ([0.0, 1.0, 2.0, 3.0], [1, 1, 0, 0], 1.0),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 0.5),
    ],
)
def test_equal_error_rate(scores, labels, expected):
    assert equal_error_rate(scores, labels) == pytest.approx(expected)
    backwards = equal_error_rate(scores[::-1], labels[::-1])
    assert backwards == pytest.approx(expected)


def test_equal_error_rate_needs_both_kinds_of_trial():
    with pytest.raises(ValueError, match="target and impostor"):
        equal_error_rate([0.1, 0.2], [1, 1])


def test_effective_rank_of_known_spectra():
    # Singular values 3 and 1: 1 / (0.75 ** 0.75 * 0.25 ** 0.25).
    rank = effective_rank(torch.diag(torch.tensor([3.0, 1.0])))
    assert rank == pytest.approx(1.754765350603323, abs=1e-9)
    # From the eigenvalues of X'X in NumPy.
    x = [[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [2.0, 0.0, 1.0], [4.0, 1.0, 1.0]]
    assert effective_rank(x) == pytest.approx(2.7489083547087825, abs=1e-9)


def test_effective_rank_shows_a_collapse_and_ignores_scale():
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(200, 16, generator=generator)
    assert 15 < effective_rank(spread) <= 16
    assert effective_rank(100 * spread) == pytest.approx(effective_rank(spread))
    one_direction = spread[:, :1] * torch.randn(1, 16, generator=generator)
    assert effective_rank(one_direction) == pytest.approx(1, abs=1e-4)
    # Not centered: a common offset counts as one large direction.
    assert effective_rank(spread + 100) < 2
    assert effective_rank(torch.zeros(4, 3)) == 0


def test_two_classes_have_an_equal_error_rate():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(40) % 4 == 0
    scores = torch.randn(40, 2, generator=generator)
    scores[:, 1] += targets
    margin = scores[:, 1] - scores[:, 0]
    expected = equal_error_rate(margin, targets)
    assert 0.05 < expected < 0.5
    # Scores of any kind, and whichever class is called the first.
    kinds = (scores, scores.log_softmax(1), scores.softmax(1))
    for kind in kinds:
        for order in ([0, 1], [1, 0]):
            metrics = ClassificationMetrics()
            truth = targets.long() if order == [0, 1] else 1 - targets.long()
            for part in (slice(0, 7), slice(7, 40)):
                metrics.append(kind[part][:, order], truth[part])
            assert metrics.summary()["eer"] == pytest.approx(expected)
    one_class = ClassificationMetrics()
    one_class.append(scores[targets], targets[targets].long())
    assert "eer" not in one_class.summary()


def test_numpy_arrays_are_accepted():
    result = average_precision(np.array(SCORES), np.array(LABELS))
    assert result.tolist() == pytest.approx(AVERAGE_PRECISION)
    uar = unweighted_average_recall(np.array([1, 1]), np.array([1, 0]))
    assert uar == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ClassificationMetrics().append(
                torch.rand(2, 3), torch.tensor([0, 3])
            ),
            "0 to 2",
        ),
        (
            lambda: ClassificationMetrics().append(
                torch.rand(2, 3), torch.tensor([0, -1])
            ),
            "0 to 2",
        ),
        (lambda: average_precision([[float("nan")]], [[1]]), "NaN"),
        (lambda: average_precision([[0.1]], [[0.5]]), "0 or 1"),
        (lambda: average_precision([0.1], [1]), r"\(N, C\)"),
        (lambda: average_precision([[0.1]], [[1], [0]]), "one shape"),
        (lambda: effective_rank([[1.0, float("inf")]]), "not finite"),
        (lambda: effective_rank(torch.zeros(0, 3)), "at least one"),
        (lambda: ClassificationMetrics().summary(), "no batch"),
        (lambda: ClassificationMetrics(True).summary(), "no batch"),
        (
            lambda: ClassificationMetrics().append(
                torch.full((1, 2), float("nan")), torch.tensor([0])
            ),
            "NaN",
        ),
        (
            lambda: ClassificationMetrics(True).append(
                torch.rand(2, 3), torch.tensor([0, 1])
            ),
            r"targets \(B, C\)",
        ),
        (
            lambda: ClassificationMetrics(True).append(
                torch.rand(1, 2), torch.tensor([[0.3, 0.7]])
            ),
            "0 or 1",
        ),
    ],
)
def test_undefined_numbers_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
