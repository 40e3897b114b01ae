"""Metrics: how good a classifier or an embedding is.

Every function takes tensors or arrays of a whole evaluation set, computes on
the CPU in float64 and returns a fraction between 0 and 1, never a percentage
(``effective_rank`` apart, which is a number of dimensions).
`ClassificationMetrics` collects the batches of an evaluation and hands back
the numbers that belong to its kind of label. Numbers that cannot be defined
(no clips, scores that are NaN) raise ``ValueError`` instead of passing for a
result.
"""

import torch


def accuracy(predicted, target):
    """Return the fraction of clips whose predicted class is right.

    Arguments
    ---------
    predicted : torch.Tensor
        Predicted class of each clip, integers of shape (N,).
    target : torch.Tensor
        True class of each clip, integers of shape (N,).

    Returns
    -------
    float
        Accuracy, 0 to 1.

    Raises
    ------
    ValueError
        If the shapes differ, there are no clips, or classes are not integers.

    Example
    -------
    >>> accuracy([0, 1, 1, 1], [0, 0, 1, 1])
    0.75
    """
    predicted, target = _class_pair(predicted, target)
    return (predicted == target).double().mean().item()


def unweighted_average_recall(predicted, target):
    """Return the mean over the classes of each class's recall (UAR).

    Also called balanced accuracy. A class that no clip truly belongs to has
    no recall and is left out of the mean.

    Arguments
    ---------
    predicted : torch.Tensor
        Predicted class of each clip, integers of shape (N,).
    target : torch.Tensor
        True class of each clip, integers of shape (N,).

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
    >>> unweighted_average_recall([0, 0, 0, 0, 1], [0, 0, 0, 1, 1])
    0.75
    """
    predicted, target = _class_pair(predicted, target)
    n_classes = int(torch.maximum(predicted, target).max()) + 1
    return _mean_recall(confusion_matrix(predicted, target, n_classes))


def macro_f1(predicted, target):
    """Return the mean over the classes of each class's F1 score.

    A class that no clip belongs to and none is taken for has no score and is
    left out of the mean, as scikit-learn does.

    Arguments
    ---------
    predicted : torch.Tensor
        Predicted class of each clip, integers of shape (N,).
    target : torch.Tensor
        True class of each clip, integers of shape (N,).

    Returns
    -------
    float
        Macro F1, 0 to 1.

    Raises
    ------
    ValueError
        If the shapes differ, there are no clips, or classes are not integers.

    Example
    -------
    >>> round(macro_f1([0, 0, 0, 1], [0, 0, 1, 1]), 4)
    0.7333
    """
    predicted, target = _class_pair(predicted, target)
    n_classes = int(torch.maximum(predicted, target).max()) + 1
    return _mean_f1(confusion_matrix(predicted, target, n_classes))


def confusion_matrix(predicted, target, n_classes):
    """Count how often each true class was taken for each class.

    Arguments
    ---------
    predicted : torch.Tensor
        Predicted class of each clip, integers of shape (N,).
    target : torch.Tensor
        True class of each clip, integers of shape (N,).
    n_classes : int
        Number of classes C.

    Returns
    -------
    torch.Tensor
        Counts, int64 of shape (C, C): rows are the truth, columns the
        prediction.

    Raises
    ------
    ValueError
        If the shapes differ, there are no clips, or a class is not an integer
        from 0 to C - 1.

    Example
    -------
    >>> confusion_matrix([0, 1, 1], [0, 0, 1], n_classes=2)
    tensor([[1, 1],
            [0, 1]])
    """
    predicted, target = _class_pair(predicted, target)
    for name, classes in (("predicted", predicted), ("target", target)):
        lowest, highest = int(classes.min()), int(classes.max())
        if lowest < 0 or highest >= n_classes:
            raise ValueError(
                f"{name} classes run from {lowest} to {highest}, but "
                f"n_classes={n_classes} allows 0 to {n_classes - 1}"
            )
    cells = torch.bincount(
        target * n_classes + predicted, minlength=n_classes**2
    )
    return cells.view(n_classes, n_classes)


def average_precision(scores, targets):
    """Average precision of each class, over all clips.

    The sum over the distinct thresholds n of ``(R_n - R_(n-1)) * P_n`` with
    precision P and recall R, not interpolated: the definition of
    scikit-learn and of the AudioSet literature. Clips with equal scores
    pass a threshold together, so that the order of the clips never matters.

    Arguments
    ---------
    scores : torch.Tensor
        Score of each clip for each class, shape (N, C). Only the order
        within a class counts: logits and probabilities serve alike.
    targets : torch.Tensor
        1 where the clip has the class, else 0, shape (N, C).

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
    scores, targets = _on_cpu(scores).double(), _on_cpu(targets).double()
    if scores.dim() != 2:
        raise ValueError(
            f"expected scores of shape (N, C), got {tuple(scores.shape)}"
        )
    _check_binary(scores, targets)
    order = scores.argsort(dim=0, descending=True)
    hits = targets.gather(0, order)
    rank = torch.arange(1, len(scores) + 1, dtype=torch.float64)[:, None]
    precision = hits.cumsum(0) / rank
    precision = precision.gather(0, _last_equal(scores.gather(0, order)))
    # 0 / 0 for a class without positives: the NaN that is promised.
    return (precision * hits).sum(0) / targets.sum(0)


def mean_average_precision(scores, targets):
    """Return the mean of the classes' average precisions (mAP, macro).

    Classes without a positive clip have no average precision and are left
    out of the mean; `average_precision` shows which.

    Arguments
    ---------
    scores : torch.Tensor
        Score of each clip for each class, shape (N, C).
    targets : torch.Tensor
        1 where the clip has the class, else 0, shape (N, C).

    Returns
    -------
    float
        Mean average precision, 0 to 1.

    Raises
    ------
    ValueError
        As `average_precision`, and if no class has a positive clip.

    Example
    -------
    >>> scores = [[0.9, 0.1], [0.8, 0.7], [0.1, 0.3]]
    >>> mean_average_precision(scores, [[1, 0], [0, 1], [0, 0]])
    1.0
    """
    return _mean_of_scored_classes(average_precision(scores, targets))


def equal_error_rate(scores, labels):
    """Return the rate where false acceptances equal false rejections (EER).

    Between two neighboring thresholds the ROC curve is taken as a straight
    line, so that the rate is exact and the same for any order of the trials,
    however few they are.

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
    order = scores.argsort(descending=True)
    hits = labels[order]
    last = _last_equal(scores[order])
    start = torch.zeros(1, dtype=torch.float64)
    accepted = torch.cat([start, (1 - hits).cumsum(0)[last] / impostors])
    rejected = torch.cat([start + 1, 1 - hits.cumsum(0)[last] / targets])
    # The gap falls from 1 to -1: find the segment on which it passes 0.
    gap = rejected - accepted
    after = int((gap > 0).sum())
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return torch.lerp(accepted[after - 1], accepted[after], share).item()


def mean_deviation(embeddings):
    """Return how far embeddings differ, a mean over their dimensions.

    The standard deviation of each dimension over clips, of embeddings scaled
    to length sqrt(D): near 1 where they point everywhere, near 0 where all
    are the same (Bardes et al., "VICReg", ICLR 2022, watch the like).

    Arguments
    ---------
    embeddings : torch.Tensor
        One embedding a clip, shape (N, D).

    Returns
    -------
    float
        From 0 to about 1.

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
    """Return the number of dimensions that a set of embeddings really fills.

    The exponential of the entropy of the singular values divided by their
    sum (Roy & Vetterli, "The effective rank", EUSIPCO 2007). The embeddings
    are not centered, as in RankMe (Garrido et al., ICML 2023), which adds a
    small constant that is left out here. Needs no labels: during
    pretraining a value that falls towards 1 shows a collapse.

    Two values compare only for the same number of clips, because the result
    is at most min(N, D).

    Arguments
    ---------
    embeddings : torch.Tensor
        One embedding a clip, shape (N, D).

    Returns
    -------
    float
        Effective rank, 1 to min(N, D); 0 where every embedding is zero.

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
    """Collects the batches of one evaluation and sums them up.

    Make a new one for every evaluation. Single-label batches are kept as a
    confusion matrix, of two classes with the scores of the trials, multi-label
    ones as scores and targets on the CPU.

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
        self._confusion = 0

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
            self._batches.append((scores, targets))
        elif scores.isnan().any():
            raise ValueError("scores hold NaN")
        else:
            self._confusion = self._confusion + confusion_matrix(
                scores.argmax(dim=1), targets, scores.shape[1]
            )
            if scores.shape[1] == 2:
                margin = scores[:, 1].double() - scores[:, 0].double()
                self._batches.append((margin, targets))

    def summary(self):
        """Return the numbers of everything appended so far.

        Returns
        -------
        dict
            Single-label: ``accuracy``, ``uar`` and ``macro_f1`` (float), and
            ``confusion_matrix`` (int64 (C, C), rows are the truth). Where
            there are two classes, and clips of both: ``eer`` (float), the
            equal error rate of telling them apart by the difference of their
            scores, the same whichever class is the target.
            Multi-label: ``mAP`` (float), ``average_precision``
            (float64 (C,), NaN for a class without positives) and
            ``classes_scored`` (int, how many classes the mAP is a mean of).

        Raises
        ------
        ValueError
            If nothing was appended, or no clip has any label (multi-label).
        """
        if self.multi_label:
            return self._multi_label_summary()
        if isinstance(self._confusion, int):
            raise ValueError("no batch was appended")
        correct, total = self._confusion.trace(), self._confusion.sum()
        return {
            "accuracy": (correct.double() / total).item(),
            "uar": _mean_recall(self._confusion),
            "macro_f1": _mean_f1(self._confusion),
            **self._two_class_summary(),
            "confusion_matrix": self._confusion,
        }

    def _two_class_summary(self):
        if len(self._confusion) != 2 or (self._confusion.sum(1) == 0).any():
            return {}
        margins, targets = zip(*self._batches, strict=True)
        rate = equal_error_rate(torch.cat(margins), torch.cat(targets))
        return {"eer": rate}

    def _multi_label_summary(self):
        if not self._batches:
            raise ValueError("no batch was appended")
        scores, targets = (
            torch.cat(part) for part in zip(*self._batches, strict=True)
        )
        per_class = average_precision(scores, targets)
        return {
            "mAP": _mean_of_scored_classes(per_class),
            "average_precision": per_class,
            "classes_scored": int((~per_class.isnan()).sum()),
        }


def _on_cpu(values):
    """Return anything that can become a tensor, detached, on the CPU."""
    return torch.as_tensor(values).detach().cpu()


def _class_pair(predicted, target):
    """Check both, and return them as int64 (N,) on the CPU."""
    predicted, target = _on_cpu(predicted), _on_cpu(target)
    if predicted.dim() != 1 or predicted.shape != target.shape:
        raise ValueError(
            "expected predicted and target classes of one shape (N,), got "
            f"{tuple(predicted.shape)} and {tuple(target.shape)}"
        )
    if len(target) == 0:
        raise ValueError("no clips to evaluate")
    if predicted.is_floating_point() or target.is_floating_point():
        raise ValueError("expected classes as integers, got scores")
    return predicted.long(), target.long()


def _check_binary(scores, targets):
    """Raise unless scores and 0/1 targets of one shape can be ranked."""
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


def _last_equal(ordered):
    """Return the last index along dim 0 with the same, ordered value."""
    n = len(ordered)
    index = torch.arange(n).view(-1, *[1] * (ordered.dim() - 1))
    is_last = torch.ones_like(ordered, dtype=torch.bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    last = torch.where(is_last, index, n)
    return last.flip(0).cummin(0).values.flip(0)


def _mean_recall(confusion):
    """Return the mean recall of the classes that occur in the truth."""
    clips = confusion.sum(dim=1)
    recall = confusion.diagonal().double() / clips
    return recall[clips > 0].mean().item()


def _mean_f1(confusion):
    """Return the mean F1 of the classes that are true or predicted."""
    clips = confusion.sum(dim=0) + confusion.sum(dim=1)
    score = 2 * confusion.diagonal().double() / clips
    return score[clips > 0].mean().item()


def _mean_of_scored_classes(per_class):
    """Return the mean of the average precisions that exist."""
    if per_class.isnan().all():
        raise ValueError(
            "no class has a positive clip: mean average precision is undefined"
        )
    return per_class.nanmean().item()
