"""Fine-tune or probe a classifier, for one or several labels in a clip."""

import copy
import functools
import itertools

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ssast_lobes.checkpoints.folder import export_classifier
from ssast_lobes.dataio.tables import split_labels
from ssast_lobes.training.base import SpectrogramBrain, unwrap
from ssast_lobes.training.card import model_card, plain_value
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.training.losses import (
    class_weights,
    loss_at_chance,
    needs_one_label,
)
from ssast_lobes.training.optimizers import parameter_groups
from ssast_lobes.training.report import readable
from ssast_lobes.utils.chance import CHANCE
from ssast_lobes.utils.files import write_csv
from ssast_lobes.utils.metrics import ClassificationMetrics
from ssast_lobes.utils.plots import plot_confusion_matrix

logger = get_logger(__name__)

SELECTIONS = {
    False: ("accuracy", "uar", "macro_f1", "eer"),
    True: ("mAP",),
}
LOWER_IS_BETTER = ("eer",)
# Fractions of the way from the initial to the trained weights.
FRACTIONS = tuple(n / 8 for n in range(9))


def best_key(selection):
    """Return the argument of ``Brain.evaluate`` that finds the best epoch.

    Arguments
    ---------
    selection : str
        The metric that chooses the epoch.

    Returns
    -------
    dict

    Example
    -------
    >>> best_key("accuracy"), best_key("eer")
    ({'max_key': 'accuracy'}, {'min_key': 'eer'})
    """
    lower = selection in LOWER_IS_BETTER
    return {"min_key" if lower else "max_key": selection}


class ClassificationBrain(SpectrogramBrain):
    """Train a `SpectrogramClassifier`; valid chooses the best epoch.

    ``modules`` holds ``features`` and ``model``.

    Arguments
    ---------
    *args, **kwargs
        Arguments of `SpectrogramBrain`.
    label_encoder : speechbrain.dataio.encoder.CategoricalEncoder
        The classes.
    multi_label : bool
        Whether a clip may have several labels.
    selection : str
        The metric on valid that chooses the epoch. If a clip has one label:
        accuracy, uar, macro_f1 or, for two classes, eer (equal error rate). If
        it may have several: mAP.
    compute_cost : callable
        (scores (B, C), soft targets (B, C)) -> loss, such as
        `ssast_lobes.training.losses.cross_entropy`.
    class_weights : str or dict, optional
        Weights that `compute_cost` gets as ``weight``; see
        `ssast_lobes.training.losses.class_weights`.
    mixup : callable, optional
        Mixes clips in training; see `ssast_lobes.augment.augmentation.Mixup`.
    augment : list of callable
        Augmentations of features in training; see
        `ssast_lobes.augment.augmentation`.
    degradation : callable, optional
        Degradation of waveforms in training; see
        `ssast_lobes.augment.degradation`.
    head_lr_scale, layer_decay : float
        Scales of the learning rates; see `parameter_groups`.
    swa_start_epoch : int, optional
        If it is set, no epoch is chosen. The tested weights are the mean of
        those at the end of this epoch and of all later ones, as in PSLA (Gong
        et al., IEEE/ACM TASLP 2021). Validation uses the mean so far, which the
        checkpoints contain.
    wise_ft : bool
        Whether to keep the initial weights, which `mix_with_start` needs.

    Raises
    ------
    SettingsError
        If the loss or the selection does not fit the kind of labels, or
        `swa_start_epoch` is not one of the epochs.
    """

    def __init__(
        self,
        *args,
        label_encoder,
        multi_label,
        selection,
        compute_cost,
        class_weights=None,
        mixup=None,
        augment=(),
        degradation=None,
        head_lr_scale=1.0,
        layer_decay=1.0,
        swa_start_epoch=None,
        wise_ft=False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.label_encoder = label_encoder
        # Without this, SpeechBrain warns that the number of classes is unknown.
        label_encoder.expect_len(len(label_encoder))
        self.multi_label = multi_label
        self.selection = selection
        self.compute_cost = compute_cost
        self._cost_name = plain_value(compute_cost)
        self.class_weights = class_weights
        self.mixup = mixup
        self.augment = augment or ()
        self.degradation = degradation
        self._set_rate(getattr(degradation, "steps", ()))
        self.head_lr_scale = head_lr_scale
        self.layer_decay = layer_decay
        self.swa_start_epoch = swa_start_epoch
        self._check_settings()
        self._train_stats = {}
        self.test_stats = None
        self.average = None
        self._own_weights = {}
        if swa_start_epoch is not None:
            self._start_average()
        self.start, self.fraction = None, None
        if wise_ft:
            self.start = copy.deepcopy(self.model)
            self.checkpointer.add_recoverable("start", self.start)

    def _check_settings(self):
        kind = "several labels" if self.multi_label else "one label"
        allowed = SELECTIONS[bool(self.multi_label)]
        if self.selection not in allowed:
            raise SettingsError(
                f"selection must be one of {allowed} where a clip has {kind}, "
                f"got '{self.selection}'"
            )
        if self.multi_label and needs_one_label(self.compute_cost):
            raise SettingsError(
                "compute_cost must be binary_cross_entropy, or a function of "
                f"your own, where a clip has {kind}"
            )
        if self.selection == "eer" and len(self.label_encoder) != 2:
            raise SettingsError(
                "selection eer needs two classes, there are "
                f"{len(self.label_encoder)}"
            )

    def _start_average(self):
        last = self.hparams.epoch_counter.limit
        if self.debug:
            self.swa_start_epoch = min(self.swa_start_epoch, last)
        if not 1 <= self.swa_start_epoch <= last:
            raise SettingsError(
                f"swa_start_epoch must be one of the epochs 1 to {last}, got "
                f"{self.swa_start_epoch}"
            )
        self.average = AveragedModel(self.model)
        self.checkpointer.add_recoverable("average", self.average)

    @property
    def model(self):
        """The classifier, without DDP or compile wrappers."""
        return unwrap(self.modules.model)

    def task(self):
        """Return the number of classes, the loss and the selection metric."""
        many = ", several a clip" if self.multi_label else ""
        return {
            "task": f"{len(self.label_encoder)} classes{many}",
            "loss": self._cost_name,
            "epoch by": f"{self.selection} on valid",
        }

    def parameter_groups(self):
        """Group parameters; learning rates fall from head to first block."""
        return parameter_groups(
            self.model,
            head_lr_scale=self.head_lr_scale,
            layer_decay=self.layer_decay,
            decay_vectors=not self.remove_vector_weight_decay,
        )

    def fit_head(self, clips, penalty, batch_size):
        """Start from the head of a linear probe, unless a run is resumed.

        Arguments
        ---------
        clips : speechbrain.dataio.dataset.DynamicItemDataset
            Training clips that are read whole, like those of valid and test.
        penalty, batch_size
            Penalty of the weights, and number of clips computed at once; see
            `ssast_lobes.training.lp_init.fit_head`.

        Raises
        ------
        SettingsError
            If clips may have several labels.
        """
        # Import scikit-learn here: few runs need it, and it loads for a second.
        from ssast_lobes.training.lp_init import fit_head

        if self.multi_label:
            raise SettingsError(
                "lp_init_penalty needs clips with one label each"
            )
        if not self.checkpointer.list_checkpoints():
            # Sort, since the longest clip of a batch determines its memory.
            clips = clips.filtered_sorted(sort_key="duration")
            features = self.modules.features
            fit_head(self.model, features, clips, penalty, batch_size)
            if self.start is not None:
                self.start.load_state_dict(self.model.state_dict())

    def fit(self, epoch_counter, train_set, valid_set=None, **kwargs):
        """Train; see SpeechBrain's `Brain.fit`."""
        if self.class_weights is not None:
            cells = [train_set.data[key]["label"] for key in train_set.data_ids]
            labels = [
                split_labels(cell) if self.multi_label else [cell]
                for cell in cells
            ]
            weight = class_weights(
                self.class_weights, labels, self.classes, self.multi_label
            )
            self.compute_cost = functools.partial(
                self.compute_cost, weight=weight
            )
        self._try_cost()
        super().fit(epoch_counter, train_set, valid_set, **kwargs)

    def _try_cost(self):
        """Raise unless `compute_cost` gives one number for a batch."""
        n_classes = len(self.label_encoder)
        targets = torch.eye(max(2, n_classes), device=self.device)
        targets = targets[:2, :n_classes]
        devices = [targets.device] if targets.is_cuda else []
        try:
            with torch.random.fork_rng(devices):
                loss = self.compute_cost(torch.zeros_like(targets), targets)
        except TypeError as error:
            raise SettingsError(
                f"compute_cost: {error}; it takes scores and targets (B, C) "
                "and, with class_weights, `weight` (C,)"
            ) from error
        if getattr(loss, "shape", None) != ():
            raise SettingsError(
                f"compute_cost: {self._cost_name} must return one number, got "
                f"{getattr(loss, 'shape', loss)} for two clips"
            )

    @property
    def classes(self):
        """Names of the classes (list of str), in the order of the scores."""
        names = self.label_encoder.ind2lab
        return [names[index] for index in range(len(names))]

    def compute_forward(self, batch, stage):
        """Return the scores (B, C) of a batch, and its targets (B, C)."""
        batch = batch.to(self.device, non_blocking=True)
        wavs, wav_lens = batch.sig
        targets = self.soft_targets(batch.target)
        is_training = stage == sb.Stage.TRAIN
        if is_training and self.degradation is not None:
            wavs = self.degradation(wavs, wav_lens)
        if is_training and self.mixup is not None:
            wavs, wav_lens, targets = self.mixup(wavs, wav_lens, targets)
        feats, n_frames = self.modules.features(wavs, wav_lens)
        for augment in self.augment if is_training else ():
            feats = augment(feats, n_frames)
        return self.network("model", stage)(feats, n_frames), targets

    def compute_objectives(self, output, batch, stage):
        """Return the loss; keep the scores for evaluation."""
        scores, targets = output
        loss = self.compute_cost(scores, targets)
        self.accumulate({"loss": loss}, len(batch.id))
        if stage != sb.Stage.TRAIN:
            self.keep_scores(scores, batch)
        return loss

    def soft_targets(self, target):
        """Return the targets of a batch as (B, C) float.

        Arguments
        ---------
        target : torch.Tensor
            Class indices (B,), or multi-hot (B, C).

        Returns
        -------
        torch.Tensor
        """
        if self.multi_label:
            return target
        return functional.one_hot(target, len(self.label_encoder)).float()

    def keep_scores(self, scores, batch):
        """Keep the scores of a batch for metrics and predictions.

        Arguments
        ---------
        scores : torch.Tensor
            (B, C).
        batch : speechbrain.dataio.batch.PaddedBatch
            The batch.
        """
        self.keep(
            ids=batch.id,
            labels=batch.label,
            scores=scores.float(),
            targets=batch.target,
        )

    def on_stage_start(self, stage, epoch=None):
        """Load the mean of the weights before validation, if it is used."""
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.VALID and self._validates_mean(epoch):
            self.average.update_parameters(self.model)
            own = self.model.state_dict()
            self._own_weights = {k: v.clone() for k, v in own.items()}
            self.model.load_state_dict(self.average.module.state_dict())

    def _validates_mean(self, epoch):
        return self.average is not None and epoch >= self.swa_start_epoch

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log and save after validation; write the results after the test."""
        self.check_audio()
        if stage == sb.Stage.TRAIN:
            self._train_stats = self.averages()
            return
        kept = self.evaluated()
        stats, summary = self._measured(kept)
        targets = torch.cat([batch["targets"] for batch in kept])
        chance = loss_at_chance(self.compute_cost, self.soft_targets(targets))
        if chance is not None:
            stats[f"loss{CHANCE}"] = chance
        if stage == sb.Stage.VALID:
            self.log_epoch(epoch, self._train_stats, stats)
            # The few batches of --debug may contain only one class.
            if not self.debug:
                self._check_selection(stats)
            if self._validates_mean(epoch):
                self.model.load_state_dict(self._own_weights)
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, **stats},
                **{
                    f"{kind}s": [key]
                    for kind, key in best_key(self.selection).items()
                },
            )
        else:
            self._write_test(stats, summary, kept)

    def _measured(self, kept):
        """Return the numbers to log, and all metrics of a split."""
        # Without a usable clip, this raises the error that names the files.
        averages = self.averages()
        metrics = ClassificationMetrics(self.multi_label)
        for batch in kept:
            metrics.append(batch["scores"], batch["targets"])
        summary = metrics.summary()
        numbers = {k: v for k, v in summary.items() if isinstance(v, float)}
        return {**averages, **numbers}, summary

    def _check_selection(self, stats):
        if self.selection not in stats:
            raise SettingsError(
                f"selection {self.selection} cannot be computed: the "
                "valid part has clips of one class only"
            )

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Load the weights of the best epoch, or the mean of the last epochs.

        After `mix_with_start`, mix them with the initial weights.
        """
        if self.average is None:
            super().on_evaluate_start(max_key, min_key)
        else:
            super().on_evaluate_start()
            if self.average.n_averaged == 0:
                raise SettingsError(
                    "there is no mean of weights yet: epoch "
                    f"{self.swa_start_epoch} (swa_start_epoch) has not ended"
                )
            self.model.load_state_dict(self.average.module.state_dict())
        if self.fraction is not None:
            self._mix(self.model.state_dict(), self.fraction)

    @torch.no_grad()
    def mix_with_start(self, valid_set, loader_kwargs):
        """Mix the trained and the initial weights; valid chooses the fraction.

        This is WiSE-FT (Wortsman et al., "Robust fine-tuning of zero-shot
        models", CVPR 2022). The candidates are the `FRACTIONS` of the way from
        the initial to the trained weights. On valid, the selection metric of a
        candidate must not be worse than that of the initial weights. Among
        these candidates, the one with the lowest loss on valid is chosen: if
        valid is small, the loss chooses better than the metric.

        Arguments
        ---------
        valid_set : speechbrain.dataio.dataset.DynamicItemDataset
            The clips on which the fraction is chosen.
        loader_kwargs : dict
            Options of the loader of these clips.
        """
        key, self.fraction = best_key(self.selection), None
        self.on_evaluate_start(**key)
        end = {k: v.clone() for k, v in self.model.state_dict().items()}
        loader = self.make_dataloader(
            valid_set, sb.Stage.VALID, ckpt_prefix=None, **loader_kwargs
        )
        self.modules.eval()
        found = {}
        for fraction in tqdm(FRACTIONS, "Mixing with the start", delay=2):
            self._mix(end, fraction)
            self._kept, self._sums = [], {}
            for batch in loader:
                self.evaluate_batch(batch, sb.Stage.VALID)
            found[fraction], _ = self._measured(self.evaluated())
            self._check_selection(found[fraction])
        sign = -1 if "min_key" in key else 1
        # Averages of equal recalls may differ in their last digits.
        score = {
            fraction: round(sign * stats[self.selection], 9)
            for fraction, stats in found.items()
        }
        self.fraction = min(
            (f for f in FRACTIONS if score[f] >= score[FRACTIONS[0]]),
            key=lambda fraction: found[fraction]["loss"],
        )
        start, end, mixed = (
            readable(found[fraction])[self.selection]
            for fraction in (FRACTIONS[0], FRACTIONS[-1], self.fraction)
        )
        logger.info(
            f"Weights: {self.fraction:g} of the way from the start to the end "
            f"of the training. {self.selection} on valid: {mixed} (start "
            f"{start}, end {end})"
        )

    def _mix(self, end, fraction):
        """Load a mixture of the initial and the trained weights."""
        start = self.start.state_dict()
        self.model.load_state_dict(
            {key: torch.lerp(start[key], end[key], fraction) for key in end}
        )

    def _write_test(self, stats, summary, kept):
        self.test_stats = stats
        meta = {"best epoch": self.hparams.epoch_counter.current}
        if self.average is not None:
            last = self.hparams.epoch_counter.current
            meta = {"mean of epochs": f"{self.swa_start_epoch} to {last}"}
        if self.fraction is not None:
            meta["fraction from the start"] = f"{self.fraction:g}"
        # All processes must call `log_stats`, since it broadcasts.
        self.train_logger.log_stats(stats_meta=meta, test_stats=readable(stats))
        self.draw()
        if not if_main_process():
            return
        names = self.classes
        if not self.multi_label:
            plot_confusion_matrix(
                summary["confusion_matrix"],
                names,
                self.output_folder / "confusion_matrix.png",
            )
        rows = (self._predictions(batch, names) for batch in kept)
        head = ["id", "label", "predicted", *names]
        write_csv(
            self.output_folder / "test_predictions.csv",
            itertools.chain([head], *rows),
        )

    def _predictions(self, batch, names):
        """Return the predictions of a kept batch, one row for each clip."""
        scores, multi = batch["scores"], self.multi_label
        probabilities = torch.sigmoid(scores) if multi else scores.softmax(-1)
        clips = zip(batch["ids"], batch["labels"], probabilities, strict=True)
        for clip, label, of_clip in clips:
            row = [f"{value:.6f}" for value in of_clip.tolist()]
            yield clip, label, self._decide(names, of_clip), *row

    def _decide(self, names, probabilities):
        if not self.multi_label:
            return names[int(probabilities.argmax())]
        likely = (probabilities > 0.5).tolist()
        return ";".join(n for n, yes in zip(names, likely, strict=True) if yes)

    def result(self):
        """Return the test result for ``test_result.json``.

        Returns
        -------
        dict
            The tested epoch, settings of its training, and the metrics.
        """
        return {
            "epoch": self.hparams.epoch_counter.current,
            "number_of_epochs": self.hparams.epoch_counter.limit,
            "swa_start_epoch": self.swa_start_epoch,
            "wise_ft": self.fraction,
            "compute_cost": self._cost_name,
            "class_weights": self.class_weights,
            "debug": self.debug,
            "metrics": self.test_stats,
        }

    def export(self, folder, hparams_file, rows, window, **settings):
        """Write the tested model to a folder, on the main process.

        Arguments
        ---------
        folder : str or os.PathLike
            The folder; see `export_classifier`.
        hparams_file, rows
            For the model card; see `model_card`.
        window : float
            Seconds of audio that the export processes at once; see
            `export_window`.
        **settings
            Further entries of the model card.
        """
        if if_main_process():
            known = {
                "compute_cost": self._cost_name,
                "class_weights": self.class_weights,
                "freeze_encoder": self.model.freeze_encoder,
                "frozen_blocks": self.model.frozen_blocks or None,
                "lora_rank": self.model.lora_rank or None,
                "epochs": self.epochs_text(),
                "steps": self.optimizer_step,
                "swa_start_epoch": self.swa_start_epoch,
                "wise_ft": self.fraction,
                "seed": self.hparams.seed,
            }
            card = model_card(
                hparams_file, rows, self.test_stats, **settings, **known
            )
            export_classifier(
                folder,
                self.model,
                self.modules.features,
                self.label_encoder,
                self.multi_label,
                card,
                window,
            )
