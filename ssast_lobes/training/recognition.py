"""Speech recognition: the base of a recipe's Brain.

The base sets learning rates by block, writes logs, chooses the epoch by word
error rate, and writes the words of a test. A recipe derives its Brain from this
base, and defines how scores and loss are computed.
"""

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.metric_stats import ErrorRateStats

from ssast_lobes.training.base import SpectrogramBrain, unwrap
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.training.optimizers import parameter_groups
from ssast_lobes.training.report import readable
from ssast_lobes.utils.files import atomic_write


def load_tokenizer(tokenizer_class):
    """Return a tokenizer; the main process trains it if none is saved.

    Arguments
    ---------
    tokenizer_class : callable
        Trains and saves a tokenizer, or loads the one that is saved, such as
        ``speechbrain.tokenizers.SentencePiece.SentencePiece`` with all its
        arguments.

    Returns
    -------
    object
        The tokenizer from `tokenizer_class`.

    Raises
    ------
    SettingsError
        If the transcripts yield fewer pieces than requested. The message states
        the possible number.

    Example
    -------
    >>> load_tokenizer(dict)
    {}
    """
    run_on_main(_train, [tokenizer_class])
    return tokenizer_class()


def _train(tokenizer_class):
    try:
        tokenizer_class()
    except (RuntimeError, ValueError) as error:
        # The message begins with a line of SentencePiece's source, in brackets.
        reason = str(error).rpartition("]")[2].strip()
        raise SettingsError(
            f"vocabulary_size does not fit these transcripts: {reason}"
        ) from error


class RecognitionBrain(SpectrogramBrain):
    """Keep words, logs and checkpoints; valid chooses the best epoch.

    A subclass defines `compute_forward` and `compute_objectives`. They must
    call `accumulate` and, outside of training, `keep_words`. ``modules`` holds
    ``model``, a `SpectrogramRecognizer` or another module with ``encoder`` and
    ``head``.

    Arguments
    ---------
    *args, **kwargs
        Arguments of `SpectrogramBrain`.
    tokenizer : speechbrain.tokenizers.SentencePiece.SentencePiece
        Tokenizer, for the subclass.
    compute_cost, decode : callable
        Loss and decoder, for the subclass.
    augment : list of callable
        Augmentations of features in training, for the subclass.
    head_lr_scale, layer_decay : float
        Scales of the learning rates; see `parameter_groups`.
    """

    def __init__(
        self,
        *args,
        tokenizer=None,
        compute_cost=None,
        decode=None,
        augment=(),
        head_lr_scale=1.0,
        layer_decay=1.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.tokenizer = tokenizer
        self.compute_cost = compute_cost
        self.decode = decode
        self.augment = augment or ()
        self.head_lr_scale = head_lr_scale
        self.layer_decay = layer_decay
        self.part = None  # name of the split that is tested
        self.test_stats = {}
        self._n_tested = {}
        self._train_stats = {}

    @property
    def model(self):
        """The recognizer, without DDP or compile wrappers."""
        return unwrap(self.modules.model)

    def parameter_groups(self):
        """Group parameters; learning rates fall from head to first block."""
        return parameter_groups(
            self.model,
            head_lr_scale=self.head_lr_scale,
            layer_decay=self.layer_decay,
            decay_vectors=not self.remove_vector_weight_decay,
        )

    def keep_words(self, heard, batch):
        """Keep the words of a batch for the word error rate.

        Arguments
        ---------
        heard : list of list of str
            Recognized words of each clip.
        batch : speechbrain.dataio.batch.PaddedBatch
            Batch with the transcripts as ``label``.
        """
        # SpeechBrain's tokenizer returns one empty word if there are no pieces.
        heard = [[word for word in words if word] for words in heard]
        said = [text.split() for text in batch.label]
        self.keep(ids=batch.id, heard=heard, said=said)

    def test(self, parts, **kwargs):
        """Test the best epoch on each of several splits.

        Arguments
        ---------
        parts : dict of str to DynamicItemDataset
            Datasets by name.
        **kwargs
            Arguments of SpeechBrain's `Brain.evaluate`.
        """
        for self.part, dataset in parts.items():
            self._n_tested[self.part] = len(dataset)
            self.evaluate(dataset, min_key="wer", **kwargs)

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
        # All processes must call `log_stats`, since it broadcasts.
        self.train_logger.log_stats(
            stats_meta={
                "best epoch": self.hparams.epoch_counter.current,
                "part": self.part,
            },
            test_stats=readable(stats),
        )
        self.draw()
        if if_main_process():
            path = self.output_folder / f"wer_{self.part}.txt"
            with atomic_write(path) as file:
                errors.write_stats(file)

    def result(self):
        """Return the test results for ``test_result.json``.

        Returns
        -------
        dict
            The tested epoch, and for each split the number of clips and the
            metrics.
        """
        return {
            "clips": self._n_tested,
            "epoch": self.hparams.epoch_counter.current,
            "number_of_epochs": self.hparams.epoch_counter.limit,
            "debug": self.debug,
            "metrics": self.test_stats,
        }
