"""Linear probes: how much can a straight line read off fixed features?

An L2-penalised logistic regression, fitted to the optimum, with the penalty
chosen on validation data. On mean log-mel it is the floor that a neural
network has to beat; on frozen embeddings it measures them.
"""

import torch
from torch.nn.functional import cross_entropy


def logistic_regression(
    train_x,
    train_y,
    valid_x,
    valid_y,
    test_x,
    n_classes,
    penalties=tuple(10.0**k for k in range(1, -5, -1)),
):
    """Fits a multinomial logistic regression and classifies the test part.

    Every feature is brought to mean 0 and deviation 1 on the training part.
    The loss is the mean cross-entropy plus `penalty / 2` times the squared
    weights (not the biases), in float64, minimised by L-BFGS. The penalty
    with the highest validation accuracy is taken; of equals, the strongest.

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
    n_classes : int
        Number of classes.
    penalties : iterable of float
        Penalties to choose from.

    Returns
    -------
    predictions : torch.Tensor
        Class indices (M,), int64.
    penalty : float
        The penalty that was chosen.

    Raises
    ------
    ValueError
        If features are not finite, or `penalties` is empty.

    Example
    -------
    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> y = torch.tensor([0, 0, 1, 1])
    >>> test_x = torch.tensor([[-3.0], [3.0]])
    >>> predictions, _ = logistic_regression(x, y, x, y, test_x, n_classes=2)
    >>> predictions.tolist()
    [0, 1]
    """
    penalties = sorted(penalties, reverse=True)
    if not penalties:
        raise ValueError("penalties is empty: name at least one")
    for name, x in (("train", train_x), ("valid", valid_x), ("test", test_x)):
        if not torch.isfinite(x).all():
            raise ValueError(f"{name}_x has values that are not finite")
    train_x, valid_x, test_x = _standardise(train_x, valid_x, test_x)
    weight = train_x.new_zeros(train_x.shape[1], n_classes)
    bias = train_x.new_zeros(n_classes)
    best = (-1.0, None, None)
    # From strong to weak, each fit beginning where the last one ended.
    for penalty in penalties:
        weight, bias = _fit(train_x, train_y, weight, bias, penalty)
        hits = (valid_x @ weight + bias).argmax(-1) == valid_y
        accuracy = hits.double().mean().item()
        if accuracy > best[0]:
            predictions = (test_x @ weight + bias).argmax(-1)
            best = (accuracy, predictions, penalty)
    return best[1], best[2]


def _standardise(train_x, *others):
    """All features in float64, by mean and deviation of the first."""
    train_x = train_x.detach().double()
    mean = train_x.mean(0)
    std = train_x.std(0, correction=0)
    # A constant feature says nothing; do not divide by its 0.
    std = torch.where(std > 0, std, torch.ones_like(std))
    return [(x.detach().double() - mean) / std for x in (train_x, *others)]


@torch.enable_grad()
def _fit(x, y, weight, bias, penalty, max_steps=500):
    """The optimal weight (D, C) and bias (C,), found from those given."""
    weight = weight.clone().requires_grad_()
    bias = bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_steps,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(x @ weight + bias, y)
        loss = loss + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()
