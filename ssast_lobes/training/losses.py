"""Losses of classifiers, for soft targets.

Targets are (B, C): one-hot, multi-hot, or mixed by mixup. A recipe's YAML can
use any other function of scores and targets instead:
``compute_cost: !name:my_module.my_loss``.
"""

import torch
from speechbrain.nnet.losses import AdditiveAngularMargin
from torch.nn import functional

from ssast_lobes.utils.checks import ArgumentError, real


def cross_entropy(scores, targets, weight=None, label_smoothing=0.0):
    """Return the cross-entropy of clips with one label each.

    Arguments
    ---------
    scores : torch.Tensor
        Logits (B, C).
    targets : torch.Tensor
        Soft targets (B, C).
    weight : torch.Tensor, optional
        (C,): weight of each class.
    label_smoothing : float
        Fraction of the targets that is distributed over all classes, 0 to 1
        (Szegedy et al., CVPR 2016, section 7).

    Returns
    -------
    torch.Tensor
        Scalar, the mean over clips.

    Example
    -------
    >>> loss = cross_entropy(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]]))
    >>> round(loss.item(), 4)
    0.6931
    """
    real("label_smoothing", label_smoothing, 0, 1)
    return functional.cross_entropy(
        scores.float(),
        targets,
        weight=_on(scores, weight),
        label_smoothing=label_smoothing,
    )


def binary_cross_entropy(scores, targets, weight=None, label_smoothing=0.0):
    """Return the binary cross-entropy of clips with any number of labels.

    Arguments
    ---------
    scores, targets
        As for `cross_entropy`.
    weight : torch.Tensor, optional
        (C,): weight of each class in the clips that have its label.
    label_smoothing : float
        Fraction of the way that targets move towards 0.5, from 0 to 1.

    Returns
    -------
    torch.Tensor
        Scalar, the mean over clips and classes.

    Example
    -------
    >>> binary_cross_entropy(torch.zeros(1, 2), torch.ones(1, 2)).item()
    0.6931471824645996
    """
    if real("label_smoothing", label_smoothing, 0, 1):
        targets = targets * (1 - label_smoothing) + label_smoothing / 2
    return functional.binary_cross_entropy_with_logits(
        scores.float(), targets, pos_weight=_on(scores, weight)
    )


def focal_loss(scores, targets, weight=None, gamma=2.0):
    """Return the cross-entropy with less weight on easy clips.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Arguments
    ---------
    scores, targets, weight
        As for `cross_entropy`.
    gamma : float
        Power of 1 - p, where p is the probability of the right class; 0
        gives the cross-entropy.

    Returns
    -------
    torch.Tensor
        Scalar, the mean over clips.

    Example
    -------
    >>> scores, target = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    >>> ratio = focal_loss(scores, target) / cross_entropy(scores, target)
    >>> round(ratio.item(), 4)
    0.25
    """
    real("gamma", gamma, 0)
    log_p = scores.float().log_softmax(-1)
    # A power below 1 has no finite gradient at 0.
    wrong = (1 - log_p.exp()).clamp(min=1e-9)
    losses = -targets * wrong**gamma * log_p
    if weight is not None:
        losses = losses * _on(scores, weight)
    return losses.sum(-1).mean()


def aam_softmax(scores, targets, weight=None, margin=0.2, scale=30.0):
    """Return the additive angular margin loss, for speaker recognition.

    Deng et al., "ArcFace", CVPR 2019, with SpeechBrain's
    `AdditiveAngularMargin`. The head of the classifier must return cosines
    times `scale`: set `cosine_scale` of `SpectrogramClassifier` to `scale`.

    Arguments
    ---------
    scores : torch.Tensor
        Cosines times `scale`, (B, C).
    targets, weight
        As for `cross_entropy`; the targets must be one-hot (no mixup).
    margin : float
        Angle in radians that is added to the angle of the right class.
    scale : float
        Factor of the cosines in `scores`.

    Returns
    -------
    torch.Tensor
        Scalar, the mean over clips.

    Example
    -------
    >>> cosines = torch.tensor([[0.6, 0.5]])
    >>> target = torch.tensor([[1.0, 0.0]])
    >>> margin = aam_softmax(30 * cosines, target)
    >>> (margin > cross_entropy(30 * cosines, target)).item()
    True
    """
    real("margin", margin, 0)
    real("scale", scale, 0, inside=True)
    cosines = scores.float() / scale
    with_margin = AdditiveAngularMargin(margin, scale)(cosines, targets)
    return cross_entropy(with_margin, targets, weight)


def needs_one_label(compute_cost):
    """Return whether a loss is known to need one label for each clip.

    Arguments
    ---------
    compute_cost : callable
        A loss, or a `functools.partial` of one.

    Returns
    -------
    bool

    Example
    -------
    >>> needs_one_label(cross_entropy), needs_one_label(binary_cross_entropy)
    (True, False)
    """
    function = getattr(compute_cost, "func", compute_cost)
    known = cross_entropy, focal_loss, aam_softmax, functional.cross_entropy
    return function in known


def loss_at_chance(compute_cost, targets):
    """Return the loss of a model that knows only the class frequencies.

    Arguments
    ---------
    compute_cost : callable
        A loss, or a `functools.partial` of one.
    targets : torch.Tensor
        (N, C): one-hot, or multi-hot for `binary_cross_entropy`.

    Returns
    -------
    float or None
        None if the loss is neither `cross_entropy` nor `binary_cross_entropy`.

    Example
    -------
    >>> targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(loss_at_chance(cross_entropy, targets), 4)
    0.6931
    """
    function = getattr(compute_cost, "func", compute_cost)
    frequencies = targets.double().mean(0)
    if function is cross_entropy:
        scores = frequencies.clamp(min=1e-9).log()
    elif function is binary_cross_entropy:
        scores = frequencies.logit(eps=1e-9)
    else:
        return None
    return compute_cost(scores.expand_as(targets), targets.float()).item()


def _on(scores, weight):
    return None if weight is None else weight.to(scores.device)


def class_weights(kind, labels, classes, multi_label=False):
    """Return a weight for each class.

    Arguments
    ---------
    kind : str or dict
        With ``"balanced"``, a weight is inversely proportional to the number of
        clips of the class, and the mean weight of the training clips is 1. If a
        clip may have several labels, a weight is the number of clips without
        the class, divided by the number with it. A dict states weights by
        label; other labels have weight 1.
    labels : list of list of str
        The labels of each training clip.
    classes : list of str
        The classes, in the order of the scores.
    multi_label : bool
        Whether a clip may have several labels.

    Returns
    -------
    torch.Tensor
        (C,) float32.

    Raises
    ------
    ArgumentError
        If `kind` is anything else, or names an unknown label.

    Example
    -------
    >>> labels = [["cat"], ["cat"], ["cat"], ["dog"]]
    >>> class_weights("balanced", labels, ["cat", "dog"])
    tensor([0.6667, 2.0000])
    >>> class_weights({"dog": 3}, labels, ["cat", "dog"])
    tensor([1., 3.])
    """
    if isinstance(kind, dict):
        # YAML reads a label such as 7 as a number.
        kind = {str(name): weight for name, weight in kind.items()}
        unknown = sorted(set(kind) - set(classes))
        if unknown:
            raise ArgumentError(
                f"class_weights of {', '.join(unknown)}: no such class; there "
                f"are {', '.join(classes)}"
            )
        return torch.tensor([float(kind.get(name, 1)) for name in classes])
    if kind != "balanced":
        raise ArgumentError(
            "class_weights must be null, balanced or a mapping such as "
            f"{{{classes[0]}: 2.0}}, got {kind}"
        )
    counts = dict.fromkeys(classes, 0)
    for own in labels:
        for name in own:
            counts[name] += 1
    counts = torch.tensor([float(counts[name]) for name in classes])
    if multi_label:
        return (len(labels) - counts) / counts
    return len(labels) / (len(classes) * counts)
