"""Classifiers on fixed features: logistic regression and nearest neighbors.

Both are scikit-learn's. They standardize every feature on the training part,
choose their one setting on the validation part and classify the test part.
They compute in float64 on the CPU, without random numbers.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Of the gradient. All predictions on the audio compared were those of L-BFGS
# at a tolerance of 1e-9, which takes four times as long for 109 classes.
_TOLERANCE = 1e-7
_MAX_STEPS = 1000


class Fit(NamedTuple):
    """Predictions of a classifier on the test part.

    Arguments
    ---------
    predictions : torch.Tensor
        Class indices (M,), int64.
    setting : float
        The penalty, or the number of neighbors, that was chosen.
    valid_score : float
        The metric on the validation part under this setting.
    valid_loss : float
        The cross-entropy there, in nats.
    """

    predictions: torch.Tensor
    setting: float
    valid_score: float
    valid_loss: float

    @property
    def rank(self):
        """Return the metric and minus the cross-entropy, to be made large."""
        # Averages of the same recalls may differ in their last digits.
        return round(self.valid_score, 9), -self.valid_loss


def logistic_regression(
    train_x,
    train_y,
    valid_x,
    valid_y,
    test_x,
    penalties=tuple(10.0**k for k in range(1, -6, -1)),
    metric=accuracy_score,
):
    """Fit a multinomial logistic regression and classify the test part.

    Every feature is brought to mean 0 and deviation 1 on the training part.
    The loss is the mean cross-entropy plus `penalty / 2` times the squared
    weights (not the biases), minimized by Newton's method. The penalty with the
    highest validation score is taken; of equals, the one with the lowest
    validation cross-entropy; of equals again, the strongest.

    Arguments
    ---------
    train_x : torch.Tensor
        Features (N, D).
    train_y : torch.Tensor
        Class indices (N,), int64.
    valid_x : torch.Tensor
        Features (V, D) on which the penalty is chosen.
    valid_y : torch.Tensor
        Class indices (V,), int64.
    test_x : torch.Tensor
        Features (M, D) to classify.
    penalties : iterable of float
        Penalties to choose from.
    metric : callable
        Takes true and predicted classes, as scikit-learn's do; gives a score
        to make large.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        If features are not finite, or `penalties` is empty.

    Example
    -------
    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> y = torch.tensor([0, 0, 1, 1])
    >>> test_x = torch.tensor([[-3.0], [3.0]])
    >>> logistic_regression(x, y, x, y, test_x).predictions.tolist()
    [0, 1]
    """
    penalties = sorted(penalties, reverse=True)
    if not penalties:
        raise ValueError("penalties is empty: name at least one")
    train_x, valid_x, test_x = _transformed(
        _principal_axes(), train_x, valid_x, test_x
    )
    model, fits = _solver(), []
    # Fit from strong to weak penalties; each fit starts at the last result.
    for penalty in penalties:
        with warnings.catch_warnings():
            # The weakest penalties may need more steps. What they have
            # reached is judged on valid, like any other setting.
            warnings.simplefilter("ignore", ConvergenceWarning)
            _fit(model, train_x, train_y, penalty)
        valid = _validated(model, valid_x, valid_y, metric)
        predictions = torch.from_numpy(model.predict(test_x))
        fits.append(Fit(predictions, penalty, *valid))
    return max(fits, key=lambda fit: fit.rank)


def nearest_neighbors(
    train_x,
    train_y,
    valid_x,
    valid_y,
    test_x,
    counts=(1, 5, 10, 20, 50, 100),
    temperature=0.07,
    metric=accuracy_score,
):
    """Classify by the most similar training clips.

    The k training clips of the highest cosine similarity s vote for their
    class with weight `exp(s / temperature)`, as in DINO (Caron et al., ICCV
    2021), whose temperature is the default. Here the features are
    standardized on the training part before, since the mean of pooled
    features would make all of them similar. The k with the highest validation
    score is taken; of equals, the one with the lowest validation
    cross-entropy; of equals again, the largest. The probability of a class
    there is its share of the votes and of one vote more, split evenly among
    all classes: else one neighbor would be sure.

    Arguments
    ---------
    train_x, train_y, valid_x, valid_y, test_x, metric
        As in `logistic_regression`.
    counts : iterable of int
        Numbers of neighbors k to choose from; those above the number of
        training clips are skipped.
    temperature : float
        Smaller: the nearest count more.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        If features are not finite, or `counts` has no number that fits.

    Example
    -------
    >>> x = torch.tensor([[-2.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> y = torch.tensor([0, 0, 1, 1])
    >>> test_x = torch.tensor([[-3.0, 1.0], [3.0, 1.0]])
    >>> nearest_neighbors(x, y, x, y, test_x).predictions.tolist()
    [0, 1]
    """
    counts = sorted((k for k in counts if k <= len(train_x)), reverse=True)
    if not counts:
        raise ValueError(
            f"counts: name at least one from 1 to {len(train_x)}, the number "
            "of training clips"
        )
    train_x, valid_x, test_x = _transformed(
        StandardScaler(), train_x, valid_x, test_x
    )

    def weights(distances):
        # Of the weights only the ratios matter: none underflows.
        return np.exp(
            (distances.min(1, keepdims=True) - distances) / temperature
        )

    fits = []
    for k in counts:
        model = KNeighborsClassifier(k, weights=weights, metric="cosine")
        model.fit(train_x, train_y.numpy())
        even = 1 / (k + 1)
        valid = _validated(model, valid_x, valid_y, metric, even)
        predictions = torch.from_numpy(model.predict(test_x))
        fits.append(Fit(predictions, k, *valid))
    return max(fits, key=lambda fit: fit.rank)


def linear_weights(x, y, n_classes, penalty):
    """Fit a logistic regression, and return it as a linear layer.

    The fit is that of `logistic_regression`, with one penalty. The layer takes
    raw features, since it contains their standardization.

    Arguments
    ---------
    x : torch.Tensor
        Features (N, D) to learn from.
    y : torch.Tensor
        Class indices (N,), int64.
    n_classes : int
        Number of classes C.
    penalty : float
        Weight of the squared weights, on standardized features.

    Returns
    -------
    weight : torch.Tensor
        (C, D), float64.
    bias : torch.Tensor
        (C,), float64: class scores (logits) are ``x @ weight.T + bias``.

    Raises
    ------
    ValueError
        If features are not finite.

    Example
    -------
    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> weight, bias = linear_weights(x, torch.tensor([0, 0, 1, 1]), 2, 0.1)
    >>> (torch.tensor([[-3.0], [3.0]]).double() @ weight.T + bias).argmax(1)
    tensor([0, 1])
    """
    axes, model = _principal_axes(), _solver()
    _fit(model, axes.fit_transform(_array(x, "x")), y, penalty)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        # The solver has one row for two classes: the difference of theirs.
        weight, bias = (np.stack([-v[0], v[0]]) / 2 for v in (weight, bias))
    scaler, rotation = (step for _, step in axes.steps)
    weight = weight @ rotation.components_
    bias = bias - weight @ rotation.mean_
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    # A class without clips is less likely than any other.
    all_weights = np.zeros((n_classes, weight.shape[1]))
    all_biases = np.full(n_classes, bias.min() - np.log(len(x)))
    all_weights[model.classes_], all_biases[model.classes_] = weight, bias
    return torch.from_numpy(all_weights), torch.from_numpy(all_biases)


def _validated(model, x, y, metric, even=0.0):
    """Return metric and cross-entropy; a part of all probability is even."""
    probabilities, y = model.predict_proba(x), y.numpy()
    predicted = model.classes_[probabilities.argmax(1)]
    own = np.where(y[:, None] == model.classes_, probabilities, 0).sum(1)
    own = (1 - even) * own + even / len(model.classes_)
    # A class without training clips has no probability.
    own = own.clip(np.finfo(np.float64).tiny)
    return metric(y, predicted), float(-np.log(own).mean())


def _array(x, name):
    """Return features in float64, as scikit-learn takes them."""
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} has values that are not finite")
    return x.detach().cpu().double().numpy()


def _transformed(transform, train_x, valid_x, test_x):
    """Return all features by a transform that is fitted on the first."""
    parts = {"train_x": train_x, "valid_x": valid_x, "test_x": test_x}
    parts = [_array(x, name) for name, x in parts.items()]
    transform.fit(parts[0])
    return map(transform.transform, parts)


def _principal_axes():
    # Along its principal axes the problem is the same, but the solver needs
    # far fewer steps.
    return make_pipeline(StandardScaler(), PCA())


def _solver():
    return LogisticRegression(
        solver="newton-cg",
        tol=_TOLERANCE,
        max_iter=_MAX_STEPS,
        warm_start=True,
    )


def _fit(model, x, y, penalty):
    """Fit; the penalty is that of the mean loss and a weight vector a class."""
    n_classes = len(y.unique())
    # scikit-learn has one weight vector for two classes, half of whose square
    # the two vectors have together.
    factor = 2 if n_classes == 2 else 1
    model.C = factor / (penalty * len(x))
    model.fit(x, y.numpy())
