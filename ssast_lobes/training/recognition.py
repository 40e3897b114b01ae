"""Speech recognition: fine-tuning by CTC, word error rate."""

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.metric_stats import ErrorRateStats

from ssast_lobes.recognition import ctc_loss, greedy_units
from ssast_lobes.training.base import SpectrogramBrain, unwrap
from ssast_lobes.training.optimizers import parameter_groups


class RecognitionBrain(SpectrogramBrain):
    """Trains a `SpectrogramRecognizer`; the best epoch is chosen on valid.

    The arguments are those of `SpectrogramBrain`.

    ``modules`` holds ``features`` and ``model``. Of ``hparams`` it uses, beside
    the base's: ``vocabulary``, ``augment`` (a list of modules on features),
    ``head_lr_scale`` and ``layer_decay``. The labels of the clips are what is
    said. Words are read off the best path, without a language model.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.part = None  # name of what is tested
        self.test_stats = {}
        self._train_stats = {}

    @property
    def model(self):
        """The recogniser without wrappers."""
        return unwrap(self.modules.model)

    def parameter_groups(self):
        """Groups for encoder blocks and head."""
        return parameter_groups(
            self.model,
            head_lr_scale=self.hparams.head_lr_scale,
            layer_decay=self.hparams.layer_decay,
            decay_vectors=not self.remove_vector_weight_decay,
        )

    def compute_forward(self, batch, stage):
        """Log-probabilities (B, T', U) and valid steps (B,) of a batch."""
        batch = batch.to(self.device, non_blocking=True)
        feats, n_frames = self.modules.features(*batch.sig)
        if stage == sb.Stage.TRAIN:
            for augment in self.hparams.augment or ():
                feats = augment(feats, n_frames)
        return self.network("model", stage)(feats, n_frames)

    def compute_objectives(self, output, batch, stage):
        """Loss of a batch; outside training the words are kept too."""
        vocabulary = self.hparams.vocabulary
        targets = vocabulary.encode(batch.label)
        loss = ctc_loss(*output, targets, vocabulary.blank)
        self.accumulate({"loss": loss}, len(batch.id))
        if stage != sb.Stage.TRAIN:
            units = greedy_units(*output, vocabulary.blank)
            heard = [text.split() for text in vocabulary.decode(units)]
            said = [text.split() for text in batch.label]
            self.keep(ids=batch.id, heard=heard, said=said)
        return loss

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log; save the checkpoint; write the test results."""
        self.check_audio()
        stats = self.averages()
        if stage == sb.Stage.TRAIN:
            self._train_stats = stats
            return
        errors = ErrorRateStats()
        for batch in self.evaluated():
            errors.append(batch["ids"], batch["heard"], batch["said"])
        stats["wer"] = errors.summarize("WER") / 100
        if stage == sb.Stage.VALID:
            self.log_epoch(epoch, self._train_stats, stats)
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, **stats}, min_keys=["wer"]
            )
        else:
            self._write_test(stats, errors)

    def _write_test(self, stats, errors):
        self.test_stats[self.part] = stats
        # On all processes: it has a broadcast in it.
        self.hparams.train_logger.log_stats(
            stats_meta={
                "best epoch": self.hparams.epoch_counter.current,
                "part": self.part,
            },
            test_stats=stats,
        )
        if if_main_process():
            path = self.output_folder / f"wer_{self.part}.txt"
            with open(path, "w", encoding="utf-8") as file:
                errors.write_stats(file)
