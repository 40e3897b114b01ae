"""Sound event detection: train, choose rules on valid, test, export."""

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process

from ssast_lobes.checkpoints.folder import export_detector
from ssast_lobes.dataio.event_tables import row_events, write_events
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.evaluation.event_metrics import require_metrics
from ssast_lobes.evaluation.event_tuning import (
    KINDS,
    evaluate_events,
    tune_rules,
)
from ssast_lobes.inference.events import require_sebbs
from ssast_lobes.training.base import SpectrogramBrain, unwrap
from ssast_lobes.training.card import model_card, plain_value
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.training.optimizers import parameter_groups
from ssast_lobes.training.report import readable
from ssast_lobes.utils.files import write_csv
from ssast_lobes.utils.metrics import average_precision


class EventBrain(SpectrogramBrain):
    """Train a `SpectrogramDetector`; valid chooses the epoch and the rules.

    The best epoch has the highest mean average precision of frames on valid.
    `tune` then chooses how the scores of this epoch become events. ``modules``
    holds ``features`` and ``model``.

    Arguments
    ---------
    *args, **kwargs
        Arguments of `SpectrogramBrain`.
    label_encoder : speechbrain.dataio.encoder.CategoricalEncoder
        The classes.
    timing : FrameTiming
        Frame timing of the model.
    compute_cost : callable
        (scores, frame targets, clip targets, is strong) -> loss, such as
        `ssast_lobes.training.event_losses.event_cross_entropy`.
    rule_kind : str
        ``"median"`` or ``"sebbs"``; see `tune_rules`.
    augment : list of callable
        Augmentations of features in training, which must not move sounds in
        time; see `ssast_lobes.augment.augmentation.SpectrogramMasking`.
    degradation : callable, optional
        Degradation of waveforms in training; see
        `ssast_lobes.augment.degradation`.
    head_lr_scale, layer_decay : float
        Scales of the learning rates; see `parameter_groups`.

    Raises
    ------
    SettingsError
        If `rule_kind` is unknown, or a package for metrics or rules is not
        installed.
    """

    def __init__(
        self,
        *args,
        label_encoder,
        timing,
        compute_cost,
        rule_kind="median",
        augment=(),
        degradation=None,
        head_lr_scale=1.0,
        layer_decay=1.0,
        **kwargs,
    ):
        # Fail before the training, not after it.
        if rule_kind not in KINDS:
            raise SettingsError(
                f"rule_kind must be one of {KINDS}, got '{rule_kind}'"
            )
        try:
            require_metrics()
            if rule_kind == "sebbs":
                require_sebbs()
        except ImportError as error:
            raise SettingsError(str(error)) from error
        super().__init__(*args, **kwargs)
        label_encoder.expect_len(len(label_encoder))
        self.label_encoder = label_encoder
        self.timing = timing
        self.compute_cost = compute_cost
        self._cost_name = plain_value(compute_cost)
        self.rule_kind = rule_kind
        self.augment = augment or ()
        self.degradation = degradation
        self._set_rate(getattr(degradation, "steps", ()))
        self.head_lr_scale = head_lr_scale
        self.layer_decay = layer_decay
        self.rules = None
        self.test_stats = None
        self._rows = {}
        self._train_stats = {}

    @property
    def model(self):
        """The detector, without DDP or compile wrappers."""
        return unwrap(self.modules.model)

    @property
    def classes(self):
        """Names of the classes (list of str), in the order of the scores."""
        names = self.label_encoder.ind2lab
        return [names[index] for index in range(len(names))]

    def task(self):
        """Return the number of classes, the loss and the selection metric."""
        return {
            "task": f"events of {len(self.label_encoder)} classes",
            "loss": self._cost_name,
            "epoch by": "mean average precision of frames on valid",
        }

    def parameter_groups(self):
        """Group parameters; learning rates fall from head to first block."""
        return parameter_groups(
            self.model,
            head_lr_scale=self.head_lr_scale,
            layer_decay=self.layer_decay,
            decay_vectors=not self.remove_vector_weight_decay,
        )

    def compute_forward(self, batch, stage):
        """Return the `EventScores` of a batch."""
        batch = batch.to(self.device, non_blocking=True)
        wavs, wav_lens = batch.sig
        is_training = stage == sb.Stage.TRAIN
        if is_training and self.degradation is not None:
            wavs = self.degradation(wavs, wav_lens)
        feats, n_frames = self.modules.features(wavs, wav_lens)
        for augment in self.augment if is_training else ():
            feats = augment(feats, n_frames)
        return self.network("model", stage)(feats, n_frames)

    def compute_objectives(self, output, batch, stage):
        """Return the loss; keep the scores for evaluation."""
        targets = self.frame_targets(batch.frame_target.data, output.frames)
        loss = self.compute_cost(output, targets, batch.target, batch.is_strong)
        self.accumulate({"loss": loss}, len(batch.id))
        if stage != sb.Stage.TRAIN:
            self.keep_scores(output, targets, batch)
        return loss

    def frame_targets(self, targets, scores):
        """Return targets padded to the length of the scores, (B, T', C).

        Arguments
        ---------
        targets : torch.Tensor
            (B, T, C), as long as the longest clip.
        scores : torch.Tensor
            (B, T', C). T' exceeds T if batches are padded to few lengths.
        """
        missing = scores.shape[1] - targets.shape[1]
        return torch.nn.functional.pad(targets, (0, 0, 0, max(missing, 0)))

    def keep_scores(self, scores, targets, batch):
        """Keep the scores and targets of a batch for metrics and events.

        Arguments
        ---------
        scores : EventScores
            Scores of the batch.
        targets : torch.Tensor
            (B, T', C).
        batch : speechbrain.dataio.batch.PaddedBatch
            The batch.
        """
        counts = scores.n_time.tolist()
        probabilities = scores.frames.detach().float().sigmoid()
        self.keep(
            ids=batch.id,
            scores=[
                x[:n].cpu() for x, n in zip(probabilities, counts, strict=True)
            ],
            targets=[x[:n].cpu() for x, n in zip(targets, counts, strict=True)],
        )

    def fit(self, epoch_counter, train_set, valid_set=None, **kwargs):
        """Train; see SpeechBrain's `Brain.fit`."""
        if valid_set is not None:
            _require_strong("valid", valid_set)
        super().fit(epoch_counter, train_set, valid_set, **kwargs)

    def tune(self, rows, valid_set, **kwargs):
        """Choose how the scores of the best epoch become events.

        Arguments
        ---------
        rows : dict
            Rows of valid, from `dataio.splits.read_splits`.
        valid_set : speechbrain.dataio.dataset.DynamicItemDataset
            The dataset of these rows.
        **kwargs
            Arguments of SpeechBrain's `Brain.evaluate`.
        """
        self.rules, self._rows = None, rows
        super().evaluate(valid_set, max_key="frame_mAP", **kwargs)

    def test(self, rows, test_set, **kwargs):
        """Test the best epoch with the chosen rules.

        Arguments
        ---------
        rows, test_set, **kwargs
            As for `tune`, but of the test split.

        Raises
        ------
        SettingsError
            If `tune` was not called, since test must not choose the rules.
        """
        if self.rules is None:
            raise SettingsError("call tune, with the valid part, before test")
        _require_strong("test", test_set)
        self._rows = rows
        super().evaluate(test_set, max_key="frame_mAP", **kwargs)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log; save the checkpoint; choose rules; write the test results."""
        self.check_audio()
        stats = self.averages()
        if stage == sb.Stage.TRAIN:
            self._train_stats = stats
            return
        scores, targets = {}, []
        for batch in self.evaluated():
            parts = [x.numpy() for x in batch["scores"]]
            scores |= dict(zip(batch["ids"], parts, strict=True))
            targets += batch["targets"]
        precision = average_precision(
            torch.from_numpy(np.concatenate(list(scores.values()))),
            torch.cat(targets),
        )
        stats["frame_mAP"] = precision.nanmean().item()
        if stage == sb.Stage.VALID:
            self.log_epoch(epoch, self._train_stats, stats)
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, **stats}, max_keys=["frame_mAP"]
            )
            return
        truth = {clip: row_events(self._rows[clip]) for clip in scores}
        seconds = {clip: self._rows[clip]["duration"] for clip in scores}
        if self.rules is None:
            self.rules = tune_rules(
                scores,
                truth,
                seconds,
                self.classes,
                self.timing,
                self.rule_kind,
            )
            return
        metrics, events = evaluate_events(
            scores, truth, seconds, self.rules, self.timing
        )
        stats |= {name: values["mean"] for name, values in metrics.items()}
        self._write_test(stats, metrics, events)

    def _write_test(self, stats, metrics, events):
        self.test_stats = stats
        # All processes must call `log_stats`, since it broadcasts.
        self.train_logger.log_stats(
            stats_meta={"best epoch": self.hparams.epoch_counter.current},
            test_stats=readable(stats),
        )
        self.draw()
        if not if_main_process():
            return
        clips = [(clip, events[clip]) for clip in events]
        write_events(self.output_folder / "test_events.csv", clips)
        rows = [["label", *metrics, "rule"]]
        for label, rule in self.rules.items():
            values = [of.get(label, "") for of in metrics.values()]
            rows.append([label, *values, rule])
        write_csv(self.output_folder / "test_classes.csv", rows)

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
            "compute_cost": self._cost_name,
            "rule_kind": self.rule_kind,
            "debug": self.debug,
            "metrics": self.test_stats,
        }

    def export(self, folder, hparams_file, rows, window, **settings):
        """Write the tested detector to a folder, on the main process.

        Arguments
        ---------
        folder : str or os.PathLike
            The folder; see `export_detector`.
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
                "rule_kind": self.rule_kind,
                "freeze_encoder": self.model.freeze_encoder,
                "epochs": self.epochs_text(),
                "steps": self.optimizer_step,
                "seed": self.hparams.seed,
            }
            card = model_card(
                hparams_file, rows, self.test_stats, **settings, **known
            )
            export_detector(
                folder,
                self.model,
                self.modules.features,
                self.label_encoder,
                {label: rule._asdict() for label, rule in self.rules.items()},
                card,
                window,
            )


def _require_strong(part, dataset):
    weak = [clip for clip, row in dataset.data.items() if not row["strong"]]
    if weak:
        raise ManifestError(
            f"{len(weak)} clips of {part} have labels without times, such as "
            f"{weak[0]}: events are measured by onset and offset"
        )
