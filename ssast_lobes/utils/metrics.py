"""Compute metrics of classifiers and embeddings.

scikit-learn computes the metrics of classification. Every function takes
tensors or arrays of a whole evaluation set. It returns a fraction between 0 and
1, never a percentage. Only ``effective_rank`` returns a number of dimensions.
`ClassificationMetrics` collects the batches of an evaluation and returns the
metrics for its kind of label. If a metric is undefined (no clips, scores that
are NaN), a ``ValueError`` is raised.
"""

import numpy as np
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_curve,
)

from ssast_lobes.utils.chance import CHANCE


def unweighted_average_recall(target, predicted):
    """Return the mean of the recalls of all classes (UAR).

    UAR is also called balanced accuracy. A class without clips has no recall,
    and is left out of the mean.

    Arguments
    ---------
    target : torch.Tensor
        True class of each clip, integers of shape (N,).
    predicted : torch.Tensor
        Predicted class of each clip, integers of shape (N,).

    Returns
    -------
    float
        Unweighted average recall, 0 to 1.

    Raises
    ------
    ValueError
        If the shapes differ, there are no clips, or classes are not integers.

    Example
    -------
    >>> unweighted_average_recall([0, 0, 0, 1, 1], [0, 0, 0, 0, 1])
    0.75
    """
    occurring = np.unique(target)
    return float(
        recall_score(target, predicted, labels=occurring, average="macro")
    )


def average_precision(scores, targets):
    """Return the average precision of each class, over all clips.

    Average precision is the sum of ``(R_n - R_(n-1)) * P_n`` over the distinct
    thresholds n, with precision P and recall R, without interpolation, as in
    scikit-learn and the AudioSet literature. Clips with equal scores pass a
    threshold together, so the order of the clips does not matter.

    Arguments
    ---------
    scores : torch.Tensor
        Score of each clip for each class, shape (N, C). Only the order within
        a class counts, so logits give the same result as probabilities.
    targets : torch.Tensor
        1 if the clip has the class, else 0, shape (N, C).

    Returns
    -------
    torch.Tensor
        Average precision, float64 of shape (C,); NaN for a class without a
        positive clip.

    Raises
    ------
    ValueError
        If the shapes differ, there are no clips, a score is NaN, or a
        target is neither 0 nor 1.

    Example
    -------
    >>> scores = [[0.9, 0.1], [0.8, 0.7], [0.1, 0.3]]
    >>> average_precision(scores, [[1, 0], [0, 0], [1, 0]])
    tensor([0.8333,    nan], dtype=torch.float64)
    """
    scores, targets = _on_cpu(scores).double(), _on_cpu(targets)
    if scores.dim() != 2:
        raise ValueError(
            f"expected scores of shape (N, C), got {tuple(scores.shape)}"
        )
    _check_binary(scores, targets)
    found = torch.full((scores.shape[1],), torch.nan, dtype=torch.float64)
    for number in targets.any(0).nonzero()[:, 0].tolist():
        found[number] = average_precision_score(
            targets[:, number].int(), scores[:, number]
        )
    return found


def equal_error_rate(scores, labels):
    """Return the rate at which false acceptances equal false rejections (EER).

    Between neighboring thresholds, the ROC curve is a straight line. The rate
    is thus exact even for few trials, and does not depend on their order.

    Arguments
    ---------
    scores : torch.Tensor
        Similarity of each trial, shape (N,); higher means "same".
    labels : torch.Tensor
        1 for a target trial (same speaker), 0 for an impostor, shape (N,).

    Returns
    -------
    float
        Equal error rate, 0 to 1; 0.5 is chance.

    Raises
    ------
    ValueError
        If the shapes differ, a score is NaN, a label is neither 0 nor 1, or
        one of the two kinds of trial is missing.

    Example
    -------
    >>> equal_error_rate([0.9, 0.6, 0.7, 0.1], [1, 1, 0, 0])
    0.5
    """
    scores, labels = _on_cpu(scores).double(), _on_cpu(labels).double()
    if scores.dim() != 1:
        raise ValueError(
            f"expected scores of shape (N,), got {tuple(scores.shape)}"
        )
    _check_binary(scores, labels)
    targets, impostors = labels.sum(), (1 - labels).sum()
    if targets == 0 or impostors == 0:
        raise ValueError(
            "the equal error rate needs target and impostor trials, got "
            f"{int(targets)} and {int(impostors)}"
        )
    false_accepts, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    # False rejections are 1 - hits. Both false accepts and hits rise along the
    # thresholds: the rates are equal where their sum passes 1.
    return float(np.interp(1.0, false_accepts + hits, false_accepts))


def mean_deviation(embeddings):
    """Return the standard deviation of embeddings, averaged over dimensions.

    Each embedding is scaled to length sqrt(D). The standard deviation of each
    dimension over the clips is computed, and averaged over dimensions. The
    result is near 1 if the directions of the embeddings are evenly distributed,
    and near 0 if all are the same. Bardes et al., "VICReg", ICLR 2022, use a
    similar measure.

    Arguments
    ---------
    embeddings : torch.Tensor
        One embedding for each clip, shape (N, D).

    Returns
    -------
    float
        Mean standard deviation, from 0 to about 1.

    Example
    -------
    >>> mean_deviation(torch.ones(10, 5))
    0.0
    >>> round(mean_deviation(torch.tensor([[1.0, -1.0], [-1.0, 1.0]])), 4)
    1.0
    """
    embeddings = _on_cpu(embeddings).double()
    scale = embeddings.shape[1] ** 0.5
    unit = torch.nn.functional.normalize(embeddings, dim=1) * scale
    return unit.std(0, correction=0).mean().item()


def effective_rank(embeddings):
    """Return the number of dimensions that a set of embeddings fills.

    The singular values are divided by their sum. The effective rank is the
    exponential of the entropy of these quotients (Roy & Vetterli, "The
    effective rank", EUSIPCO 2007). As in RankMe (Garrido et al., ICML 2023),
    the embeddings are not centered. RankMe's small constant is left out. No
    labels are needed. During pretraining, a value that falls towards 1 shows a
    collapse.

    Compare values only for the same number of clips, because the result is at
    most min(N, D).

    Arguments
    ---------
    embeddings : torch.Tensor
        One embedding for each clip, shape (N, D).

    Returns
    -------
    float
        Effective rank, 1 to min(N, D); 0 if every embedding is zero.

    Raises
    ------
    ValueError
        If the shape is not (N, D), there are no clips, or a value is not
        finite.

    Example
    -------
    >>> round(effective_rank(torch.eye(5)), 6)
    5.0
    >>> round(effective_rank(torch.ones(10, 5)), 6)
    1.0
    """
    embeddings = _on_cpu(embeddings).double()
    if embeddings.dim() != 2 or embeddings.numel() == 0:
        raise ValueError(
            "expected embeddings of shape (N, D) with at least one clip, "
            f"got {tuple(embeddings.shape)}"
        )
    if not embeddings.isfinite().all():
        raise ValueError("embeddings hold values that are not finite")
    singular = torch.linalg.svdvals(embeddings)
    total = singular.sum()
    if total == 0:
        return 0.0
    return torch.special.entr(singular / total).sum().exp().item()


class ClassificationMetrics:
    """Collect the batches of an evaluation, and summarize them.

    Make a new object for every evaluation.

    Arguments
    ---------
    multi_label : bool
        Whether a clip may have any number of classes.

    Example
    -------
    >>> metrics = ClassificationMetrics()
    >>> scores = torch.tensor([[2.0, 0.1], [0.3, 0.4]])
    >>> metrics.append(scores, torch.tensor([0, 0]))
    >>> metrics.append(scores, torch.tensor([0, 1]))
    >>> metrics.summary()["accuracy"]
    0.75
    """

    def __init__(self, multi_label=False):
        self.multi_label = multi_label
        self._batches = []

    def append(self, scores, targets):
        """Add one batch.

        Arguments
        ---------
        scores : torch.Tensor
            Score of each clip for each class, shape (B, C), any device and
            floating-point type; logits, log-probabilities or probabilities.
        targets : torch.Tensor
            True classes: int64 of shape (B,), or 0 and 1 of shape (B, C)
            for multi-label.

        Raises
        ------
        ValueError
            If the shapes do not fit, a score is NaN, or a target is not a
            class.
        """
        scores, targets = _on_cpu(scores), _on_cpu(targets)
        expected = scores.shape if self.multi_label else scores.shape[:1]
        if scores.dim() != 2 or targets.shape != expected:
            wanted = "(B, C)" if self.multi_label else "(B,)"
            raise ValueError(
                f"expected scores (B, C) and targets {wanted}, got "
                f"{tuple(scores.shape)} and {tuple(targets.shape)}"
            )
        if self.multi_label:
            _check_binary(scores, targets)
        elif scores.isnan().any():
            raise ValueError("scores hold NaN")
        elif not ((targets >= 0) & (targets < scores.shape[1])).all():
            raise ValueError(
                f"targets must be classes from 0 to {scores.shape[1] - 1}"
            )
        self._batches.append((scores, targets))

    def summary(self):
        """Return the metrics of all batches appended so far.

        Returns
        -------
        dict
            Single-label: ``accuracy``, ``uar`` and ``macro_f1`` (float), and
            ``confusion_matrix`` (int64 (C, C), rows are the truth). If there
            are two classes, both with clips: ``eer`` (float), the equal error
            rate of the difference of their scores. It does not depend on which
            class is the target.
            Multi-label: ``mAP`` (float), ``average_precision``
            (float64 (C,), NaN for a class without positives) and
            ``classes_scored`` (int, number of classes in the mAP).
            For ``accuracy``, ``uar``, ``eer`` and ``mAP``, the chance level is
            added, such as ``accuracy_chance``: the best score of a constant
            answer.

        Raises
        ------
        ValueError
            If nothing was appended, or no clip has any label (multi-label).
        """
        if not self._batches:
            raise ValueError("no batch was appended")
        scores, targets = map(torch.cat, zip(*self._batches, strict=True))
        if self.multi_label:
            per_class = average_precision(scores, targets)
            if per_class.isnan().all():
                raise ValueError(
                    "no class has a positive clip: mean average precision is "
                    "undefined"
                )
            is_scored = ~per_class.isnan()
            return {
                "mAP": per_class.nanmean().item(),
                f"mAP{CHANCE}": targets[:, is_scored].double().mean().item(),
                "average_precision": per_class,
                "classes_scored": int(is_scored.sum()),
            }
        predicted, n_classes = scores.argmax(dim=1), scores.shape[1]
        matrix = confusion_matrix(targets, predicted, labels=range(n_classes))
        counts = matrix.sum(1)
        found = {
            "accuracy": float(accuracy_score(targets, predicted)),
            f"accuracy{CHANCE}": float(counts.max() / counts.sum()),
            "uar": unweighted_average_recall(targets, predicted),
            f"uar{CHANCE}": float(1 / (counts > 0).sum()),
            "macro_f1": float(f1_score(targets, predicted, average="macro")),
        }
        if n_classes == 2 and len(targets.unique()) == 2:
            margin = scores[:, 1].double() - scores[:, 0].double()
            found["eer"] = equal_error_rate(margin, targets)
            found[f"eer{CHANCE}"] = 0.5
        return {**found, "confusion_matrix": torch.from_numpy(matrix)}


def _on_cpu(values):
    """Return values as a detached tensor on the CPU."""
    return torch.as_tensor(values).detach().cpu()


def _check_binary(scores, targets):
    """Raise unless scores can be ranked, and targets are 0 or 1."""
    if scores.shape != targets.shape:
        raise ValueError(
            "expected scores and targets of one shape, got "
            f"{tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    if len(scores) == 0:
        raise ValueError("no clips to evaluate")
    if scores.isnan().any():
        raise ValueError("scores hold NaN")
    if not ((targets == 0) | (targets == 1)).all():
        raise ValueError("targets must be 0 or 1")
