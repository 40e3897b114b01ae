"""The logistic regression: its optimum, its penalty, its errors."""

import pytest
import torch

from ssast_lobes import probing
from ssast_lobes.probing import logistic_regression


def blobs(n, distance, seed, n_classes=3, n_features=5):
    """Gaussian classes around corners, and their class indices."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % n_classes
    x = torch.randn(n, n_features, generator=generator)
    return x + distance * torch.eye(n_classes, n_features)[y], y


def fit(train, valid, test_x, n_classes=3, **settings):
    return logistic_regression(*train, *valid, test_x, n_classes, **settings)


def test_separable_classes_are_learnt():
    test_x, test_y = blobs(300, 6.0, seed=2)
    predictions, penalty = fit(
        blobs(60, 6.0, seed=0), blobs(60, 6.0, seed=1), test_x
    )
    assert predictions.dtype == torch.int64
    assert (predictions == test_y).float().mean() > 0.97
    # All penalties that do equally well: the strongest of them.
    assert penalty >= 0.1


def test_solution_is_the_optimum():
    """The gradient that the textbook gives vanishes at the fitted weights."""
    x, y = blobs(90, 1.0, seed=0)
    x = x.double()
    penalty = 0.01
    zeros = torch.zeros(5, 3, dtype=torch.float64)
    weight, bias = probing._fit(x, y, zeros, zeros[0], penalty)
    probabilities = (x @ weight + bias).softmax(-1)
    surplus = probabilities - torch.nn.functional.one_hot(y, 3)
    gradient = x.T @ surplus / len(x) + penalty * weight
    assert gradient.abs().max() < 1e-5
    assert surplus.mean(0).abs().max() < 1e-5


def few_clips_useless_features(n, seed):
    """What calls for a strong penalty."""
    x, y = blobs(n, 2.0, seed)
    generator = torch.Generator().manual_seed(seed + 10)
    return torch.cat([x, torch.randn(n, 60, generator=generator)], 1), y


def many_clips_shared_noise(n, seed):
    """Classes that only a difference of features tells apart: a weak one."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(10 * n) % 3
    noise = 30 * torch.randn(10 * n, 1, generator=generator)
    x, _ = blobs(10 * n, 3.0, seed + 10)
    return torch.cat([x + noise, noise], 1), y


@pytest.mark.parametrize(
    ("part", "best"),
    [(few_clips_useless_features, 1.0), (many_clips_shared_noise, 1e-5)],
)
def test_penalty_is_chosen_on_valid(part, best):
    train, valid = part(90, seed=0), part(300, seed=1)
    test_x, test_y = part(300, seed=2)
    accuracy = {}
    for penalty in (1.0, 1e-5):
        predictions, _ = fit(train, valid, test_x, penalties=(penalty,))
        accuracy[penalty] = (predictions == test_y).float().mean().item()
    predictions, chosen = fit(train, valid, test_x, penalties=(1e-5, 1.0))
    assert chosen == best
    assert (predictions == test_y).float().mean() == accuracy[best]
    assert accuracy[best] > min(accuracy.values()) + 0.03


def test_scale_and_shift_of_features_do_not_matter():
    train, valid = blobs(60, 1.5, seed=0), blobs(60, 1.5, seed=1)
    test_x, _ = blobs(60, 1.5, seed=2)
    scale = torch.tensor([1e-3, 1.0, 10.0, 100.0, 1e3])

    def moved(x):
        return x * scale + 7

    plain, _ = fit(train, valid, test_x)
    scaled, _ = fit(
        (moved(train[0]), train[1]), (moved(valid[0]), valid[1]), moved(test_x)
    )
    assert (plain == scaled).float().mean() > 0.98


def test_constant_feature_is_harmless():
    def with_constant(part):
        return torch.cat([part[0], torch.full((60, 1), 3.0)], 1), part[1]

    train = with_constant(blobs(60, 6.0, seed=0))
    predictions, _ = fit(train, train, train[0])
    assert torch.equal(predictions, train[1])


def test_works_without_gradients_and_repeats():
    train, valid = blobs(60, 1.0, seed=0), blobs(60, 1.0, seed=1)
    first = fit(train, valid, valid[0])
    with torch.no_grad():
        second = fit(train, valid, valid[0])
    assert torch.equal(first[0], second[0]) and first[1] == second[1]


def test_clear_errors():
    train = blobs(60, 1.0, seed=0)
    bad = train[0].clone()
    bad[0, 0] = float("nan")
    with pytest.raises(ValueError, match="test_x"):
        fit(train, train, bad)
    with pytest.raises(ValueError, match="penalties"):
        fit(train, train, train[0], penalties=())
