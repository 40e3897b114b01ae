"""Classification: fine-tuning and frozen probing, one or many labels."""

import csv

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from ssast_lobes.brains.base import SpectrogramBrain, unwrap
from ssast_lobes.brains.errors import SettingsError
from ssast_lobes.brains.optimizers import parameter_groups
from ssast_lobes.metrics import ClassificationMetrics
from ssast_lobes.plots import plot_confusion_matrix

LOSSES = ("ce", "bce")
SELECTIONS = {
    False: ("accuracy", "uar", "macro_f1", "eer"),
    True: ("mAP",),
}
LOWER_IS_BETTER = ("eer",)


def soft_target_loss(scores, targets, loss):
    """Cross-entropy or binary cross-entropy with soft targets.

    Arguments
    ---------
    scores : torch.Tensor
        Logits (B, C).
    targets : torch.Tensor
        Shares (B, C), from one-hot, multi-hot or mixup targets.
    loss : str
        ``"ce"`` or ``"bce"``.

    Returns
    -------
    torch.Tensor
        Scalar, the mean over clips (and, for ``"bce"``, classes).

    Raises
    ------
    ValueError
        If the loss is unknown.

    Example
    -------
    >>> scores, targets = torch.zeros(1, 2), torch.tensor([[0.5, 0.5]])
    >>> round(soft_target_loss(scores, targets, "ce").item(), 4)
    0.6931
    """
    if loss == "ce":
        return functional.cross_entropy(scores.float(), targets)
    if loss == "bce":
        return functional.binary_cross_entropy_with_logits(
            scores.float(), targets
        )
    raise ValueError(f"loss must be one of {LOSSES}, got '{loss}'")


class ClassificationBrain(SpectrogramBrain):
    """Trains a `SpectrogramClassifier`; the best epoch is chosen on valid.

    The arguments are those of `SpectrogramBrain`.

    ``modules`` holds ``features`` and ``model``. Of ``hparams`` it uses, beside
    the base's: ``n_classes``, ``multi_label``, ``loss``, ``mixup`` (or None),
    ``augment`` (a list of modules on features), ``degradation`` (a module on
    waveforms), ``selection`` (the validation metric that chooses the epoch;
    ``eer``, the equal error rate, needs two classes), ``head_lr_scale``,
    ``layer_decay``, ``label_encoder`` and ``average_from``: where it is an
    epoch, no epoch is chosen, and the test is of the mean of the weights at
    the end of that epoch and all later ones, as in PSLA (Gong et al.,
    IEEE/ACM TASLP 2021). The mean is kept as a running one, in the checkpoint,
    and from that epoch on the validation is of the mean so far.

    Raises
    ------
    ValueError
        If loss or selection do not go with the kind of labels, or there is
        no epoch to average.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        many = bool(self.hparams.multi_label)
        kind = "several labels" if many else "one label"
        if self.hparams.selection not in SELECTIONS[many]:
            raise SettingsError(
                f"selection must be one of {SELECTIONS[many]} where a clip "
                f"has {kind}, got '{self.hparams.selection}'"
            )
        if many and self.hparams.loss != "bce":
            raise SettingsError(
                f"loss must be bce where a clip has {kind}, got "
                f"'{self.hparams.loss}'"
            )
        if self.hparams.selection == "eer" and self.hparams.n_classes != 2:
            raise SettingsError(
                "selection eer needs two classes, there are "
                f"{self.hparams.n_classes}"
            )
        self.degradation = getattr(self.hparams, "degradation", None)
        self._train_stats = {}
        self.test_stats = None
        self.average = None
        self._own_weights = {}
        self.average_from = getattr(self.hparams, "average_from", None)
        if self.average_from is not None:
            self._start_average()

    def _start_average(self):
        last = self.hparams.epoch_counter.limit
        if self.debug:
            self.average_from = min(self.average_from, last)
        if not 1 <= self.average_from <= last:
            raise SettingsError(
                f"average_from must be one of the epochs 1 to {last}, got "
                f"{self.average_from}"
            )
        self.average = AveragedModel(self.model)
        self.checkpointer.add_recoverable("average", self.average)

    @property
    def model(self):
        """The classifier without wrappers."""
        return unwrap(self.modules.model)

    @property
    def best_key(self):
        """Argument of `evaluate` for the best epoch: max_key or min_key."""
        lower = self.hparams.selection in LOWER_IS_BETTER
        return {"min_key" if lower else "max_key": self.hparams.selection}

    def parameter_groups(self):
        """Groups for encoder blocks and head."""
        return parameter_groups(
            self.model,
            head_lr_scale=self.hparams.head_lr_scale,
            layer_decay=self.hparams.layer_decay,
            decay_vectors=not self.remove_vector_weight_decay,
        )

    def compute_forward(self, batch, stage):
        """Scores (B, C) and targets of a batch; soft targets in training."""
        batch = batch.to(self.device, non_blocking=True)
        wav, lens = batch.sig
        if stage != sb.Stage.TRAIN:
            model = self.network("model", stage)
            return model(*self.modules.features(wav, lens)), None
        targets = self._soft_targets(batch.target)
        if self.degradation is not None:
            wav = self.degradation(wav, lens)
        if self.hparams.mixup is not None:
            wav, lens, targets = self.hparams.mixup(wav, lens, targets)
        feats, n_frames = self.modules.features(wav, lens)
        for augment in self.hparams.augment or ():
            feats = augment(feats, n_frames)
        return self.modules.model(feats, n_frames), targets

    def _soft_targets(self, target):
        if self.hparams.multi_label:
            return target
        return functional.one_hot(target, self.hparams.n_classes).float()

    def compute_objectives(self, output, batch, stage):
        """Loss of a batch; outside training the scores are kept too."""
        scores, targets = output
        if targets is None:
            targets = self._soft_targets(batch.target)
            self.keep(
                ids=batch.id,
                labels=batch.label,
                scores=scores.float(),
                targets=batch.target,
            )
        loss = soft_target_loss(scores, targets, self.hparams.loss)
        self.accumulate({"loss": loss}, len(batch.id))
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Validate the mean of the weights, where there is to be one."""
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.VALID and self._validates_mean(epoch):
            self.average.update_parameters(self.model)
            own = self.model.state_dict()
            self._own_weights = {k: v.clone() for k, v in own.items()}
            self.model.load_state_dict(self.average.module.state_dict())

    def _validates_mean(self, epoch):
        return self.average is not None and epoch >= self.average_from

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log; save the checkpoint; write the test results."""
        self.check_audio()
        stats = self.averages()
        if stage == sb.Stage.TRAIN:
            self._train_stats = stats
            return
        kept = self.evaluated()
        metrics = ClassificationMetrics(self.hparams.multi_label)
        for batch in kept:
            metrics.append(batch["scores"], batch["targets"])
        summary = metrics.summary()
        stats |= {k: v for k, v in summary.items() if isinstance(v, float)}
        if stage == sb.Stage.VALID:
            self.log_epoch(epoch, self._train_stats, stats)
            self._check_selection(stats)
            if self._validates_mean(epoch):
                self.model.load_state_dict(self._own_weights)
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, **stats},
                **{f"{kind}s": [key] for kind, key in self.best_key.items()},
            )
        else:
            self._write_test(stats, summary, kept)

    def _check_selection(self, stats):
        # The few batches of a trial may be of one class.
        if self.hparams.selection not in stats and not self.debug:
            raise SettingsError(
                f"selection {self.hparams.selection} cannot be computed: the "
                "valid part has clips of one class only"
            )

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Go back to the best epoch, or take the mean of the last ones."""
        if self.average is None:
            super().on_evaluate_start(max_key, min_key)
            return
        super().on_evaluate_start()
        if self.average.n_averaged == 0:
            raise SettingsError(
                f"there is no mean of weights yet: epoch {self.average_from}, "
                "from which on they are averaged, has not come to its end"
            )
        self.model.load_state_dict(self.average.module.state_dict())

    def _write_test(self, stats, summary, kept):
        self.test_stats = stats
        meta = {"best epoch": self.hparams.epoch_counter.current}
        if self.average is not None:
            last = self.hparams.epoch_counter.current
            meta = {"mean of epochs": f"{self.average_from} to {last}"}
        # On all processes: it has a broadcast in it.
        self.hparams.train_logger.log_stats(stats_meta=meta, test_stats=stats)
        if not if_main_process():
            return
        names = self.hparams.label_encoder.ind2lab
        names = [names[index] for index in range(len(names))]
        if not self.hparams.multi_label:
            plot_confusion_matrix(
                summary["confusion_matrix"],
                names,
                self.output_folder / "confusion_matrix.png",
            )
        path = self.output_folder / "test_predictions.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["id", "label", "predicted", *names])
            for batch in kept:
                table.writerows(self._predictions(batch, names))

    def _predictions(self, batch, names):
        """Rows of the predictions of a batch that was kept."""
        shares = self._shares(batch["scores"])
        clips = zip(batch["ids"], batch["labels"], shares, strict=True)
        for clip, label, share in clips:
            row = [f"{value:.6f}" for value in share.tolist()]
            yield clip, label, self._decide(names, share), *row

    def _shares(self, scores):
        multi = self.hparams.multi_label
        return torch.sigmoid(scores) if multi else scores.softmax(-1)

    def _decide(self, names, share):
        if not self.hparams.multi_label:
            return names[int(share.argmax())]
        likely = (share > 0.5).tolist()
        return ";".join(n for n, yes in zip(names, likely, strict=True) if yes)
