"""Classify fixed features by logistic regression and nearest neighbors.

Both classifiers are scikit-learn's. They standardize every feature on the
training split, choose their only hyperparameter on the validation split and
classify the test split. They compute in float64 on the CPU, without random
numbers.
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

# Tolerance of the gradient. On the audio that was compared, all predictions
# were equal to those of L-BFGS at a tolerance of 1e-9. For 109 classes, L-BFGS
# takes four times as long.
_TOLERANCE = 1e-7
_MAX_STEPS = 1000


class Fit(NamedTuple):
    """Predictions of a classifier on the test split.

    Arguments
    ---------
    predictions : torch.Tensor
        Class indices (M,), int64.
    setting : float
        The chosen penalty, or the chosen number of neighbors.
    valid_score : float
        The metric on the validation split, with this setting.
    valid_loss : float
        The cross-entropy on the validation split, in nats.
    """

    predictions: torch.Tensor
    setting: float
    valid_score: float
    valid_loss: float

    @property
    def rank(self):
        """Metric and negative cross-entropy on valid: the largest wins."""
        # Round, since means of the same recalls may differ in the last digits.
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
    """Fit a multinomial logistic regression and classify the test split.

    Every feature is standardized to mean 0 and standard deviation 1 on the
    training split. The loss is the mean cross-entropy plus `penalty / 2` times
    the sum of the squared weights, without the biases. Newton's method
    minimizes it. The penalty with the highest validation score wins. Among
    equal scores, the lowest validation cross-entropy wins, then the strongest
    penalty.

    Arguments
    ---------
    train_x : torch.Tensor
        Features (N, D).
    train_y : torch.Tensor
        Class indices (N,), int64.
    valid_x : torch.Tensor
        Features (V, D) to choose the penalty on.
    valid_y : torch.Tensor
        Class indices (V,), int64.
    test_x : torch.Tensor
        Features (M, D) to classify.
    penalties : iterable of float
        Penalties to choose from.
    metric : callable
        Maps true and predicted classes to a score, as metrics of scikit-learn
        do. Larger is better.

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
    # Fit from strong to weak penalties, so that each fit starts from the last.
    for penalty in penalties:
        with warnings.catch_warnings():
            # The weakest penalties may need more steps. Their last weights
            # are validated like those of any other setting.
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

    The k training clips of the highest cosine similarity s vote for their class
    with weight `exp(s / temperature)`, as in DINO (Caron et al., ICCV 2021).
    The default temperature is that of DINO. Unlike in DINO, the features are
    first standardized on the training split, since the mean of pooled features
    would make all of them similar.

    The k with the highest validation score wins. Among equal scores, the lowest
    validation cross-entropy wins, then the largest k. For the cross-entropy,
    the probability of a class is its fraction of the votes, after one more vote
    is split evenly among all classes. Without this vote, the class of a single
    neighbor would have probability 1.

    Arguments
    ---------
    train_x, train_y, valid_x, valid_y, test_x, metric
        As in `logistic_regression`.
    counts : iterable of int
        Numbers of neighbors k to choose from. Numbers above the number of
        training clips are skipped.
    temperature : float
        Divisor of the similarities. With a smaller value, the nearest neighbors
        count more.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        If features are not finite, or all `counts` exceed the number of
        training clips.

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
        # Only ratios of weights matter. Scale them so that the largest is 1,
        # since otherwise all of them could underflow.
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
    raw features, since it includes the standardization.

    Arguments
    ---------
    x : torch.Tensor
        Features (N, D) to learn from.
    y : torch.Tensor
        Class indices (N,), int64.
    n_classes : int
        Number of classes C.
    penalty : float
        Factor of the squared weights, for standardized features.

    Returns
    -------
    weight : torch.Tensor
        (C, D), float64.
    bias : torch.Tensor
        (C,), float64. Class scores (logits) are ``x @ weight.T + bias``.

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
        # For two classes, the solver returns one row: the difference of the
        # rows of both classes.
        weight, bias = (np.stack([-v[0], v[0]]) / 2 for v in (weight, bias))
    scaler, rotation = (step for _, step in axes.steps)
    weight = weight @ rotation.components_
    bias = bias - weight @ rotation.mean_
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    # A class without clips gets no weights and the smallest bias, so it is
    # unlikely.
    all_weights = np.zeros((n_classes, weight.shape[1]))
    all_biases = np.full(n_classes, bias.min() - np.log(len(x)))
    all_weights[model.classes_], all_biases[model.classes_] = weight, bias
    return torch.from_numpy(all_weights), torch.from_numpy(all_biases)


def _validated(model, x, y, metric, even=0.0):
    """Return metric and cross-entropy, smoothed by the fraction `even`."""
    probabilities, y = model.predict_proba(x), y.numpy()
    predicted = model.classes_[probabilities.argmax(1)]
    own = np.where(y[:, None] == model.classes_, probabilities, 0).sum(1)
    own = (1 - even) * own + even / len(model.classes_)
    # A class without training clips has probability 0, whose log is infinite.
    own = own.clip(np.finfo(np.float64).tiny)
    return metric(y, predicted), float(-np.log(own).mean())


def _array(x, name):
    """Return features as a float64 array; raise unless they are finite."""
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} has values that are not finite")
    return x.detach().cpu().double().numpy()


def _transformed(transform, train_x, valid_x, test_x):
    """Fit a transform to the training features, and apply it to all."""
    parts = {"train_x": train_x, "valid_x": valid_x, "test_x": test_x}
    parts = [_array(x, name) for name, x in parts.items()]
    transform.fit(parts[0])
    return map(transform.transform, parts)


def _principal_axes():
    # A rotation to the principal axes does not change the problem, but the
    # solver then needs far fewer steps.
    return make_pipeline(StandardScaler(), PCA())


def _solver():
    return LogisticRegression(
        solver="newton-cg",
        tol=_TOLERANCE,
        max_iter=_MAX_STEPS,
        warm_start=True,
    )


def _fit(model, x, y, penalty):
    """Fit with a penalty for the mean loss and one weight vector per class."""
    n_classes = len(y.unique())
    # For two classes, scikit-learn fits one weight vector w. The squared norms
    # of the two vectors w / 2 and -w / 2 sum to half of that of w.
    factor = 2 if n_classes == 2 else 1
    model.C = factor / (penalty * len(x))
    model.fit(x, y.numpy())
