"""Pretrain with any objective, on unlabeled audio."""

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from ssast_lobes.checkpoints.folder import export_pretrained
from ssast_lobes.training.base import SpectrogramBrain, unwrap
from ssast_lobes.training.card import model_card
from ssast_lobes.training.optimizers import parameter_groups
from ssast_lobes.utils.chance import CHANCE, is_at_chance
from ssast_lobes.utils.metrics import effective_rank, mean_deviation
from ssast_lobes.utils.plots import plot_reconstruction
from ssast_lobes.utils.random import clip_keys
from ssast_lobes.utils.schedules import WarmupPlateau, count_steps

logger = get_logger(__name__)

# Number of clips whose embeddings give the effective rank.
RANK_CLIPS = 1000

# A run that is at chance after this many steps logs a warning. Of the runs that
# learned, the slowest began to learn after 1,100 steps
# (hparams/objective/mspm_small_data.yaml).
STEPS_TO_BEGIN = 1200


class PretrainingBrain(SpectrogramBrain):
    """Train an objective, and evaluate it on held-out audio without labels.

    The arguments are those of `SpectrogramBrain`. ``modules`` holds
    ``pretrainer``, a `PretrainingLobe`. In addition to the logs of the
    objective, validation logs the effective rank of the clip embeddings, and
    their standard deviation averaged over dimensions. Both fall when a
    representation collapses.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.has_valid = False
        self._n_watched = 0
        self._picture = None
        self._train_stats = {}

    @property
    def objective(self):
        """The objective, without DDP or compile wrappers."""
        return unwrap(self.modules.pretrainer).objective

    def task(self):
        """Return the name of the objective."""
        return {"objective": type(self.objective).__name__}

    def parameter_groups(self):
        """Group the trainable parameters; all have one learning rate."""
        decay = not self.remove_vector_weight_decay
        return parameter_groups(self.objective, decay_vectors=decay)

    def fit(self, epoch_counter, train_set, valid_set=None, **kwargs):
        """Train; see SpeechBrain's `Brain.fit`."""
        self.has_valid = valid_set is not None
        super().fit(epoch_counter, train_set, valid_set, **kwargs)

    def compute_forward(self, batch, stage):
        """Return the loss and the logs of the objective."""
        # Check this on the CPU: without padding, attention needs no mask.
        is_padded = bool((batch.sig.lengths < 1).any())
        batch = batch.to(self.device, non_blocking=True)
        wavs, wav_lens = batch.sig
        pretrainer = self.network("pretrainer", stage)
        if stage == sb.Stage.TRAIN:
            # The objective draws a new mask in every step.
            wav_lens = wav_lens if is_padded else None
            return pretrainer(wavs, wav_lens, **items_of(batch))
        # The mask of a clip is the same in every epoch.
        keys = clip_keys(batch.id).to(self.device)
        self.watch(wavs, wav_lens, keys, batch.id)
        return pretrainer(wavs, wav_lens, keys, **items_of(batch))

    def compute_objectives(self, output, batch, stage):
        """Return the loss; average it and the logs over the epoch."""
        self.accumulate({"loss": output.loss, **output.logs}, output.n_clips)
        return output.loss

    @torch.no_grad()
    def watch(self, wavs, wav_lens, keys, ids):
        """Keep the embeddings of the first clips, and one clip to draw.

        Arguments
        ---------
        wavs, wav_lens : torch.Tensor
            The batch.
        keys : torch.Tensor
            Keys of the clips; see `clip_keys`.
        ids : list of str
            Ids of the clips.
        """
        if self._n_watched >= RANK_CLIPS:
            return
        features = unwrap(self.modules.pretrainer).features
        feats, n_frames = features(wavs, wav_lens)
        if self._n_watched == 0:
            # Draw the clip of the first batch that varies most.
            one = int(feats.var(1).mean(1).argmax())
            parts = (part[one : one + 1] for part in (feats, n_frames, keys))
            self.keep(picture=(*(part.cpu() for part in parts), ids[one]))
        encoded = self.objective.encoder(feats, n_frames)
        self.keep(embeddings=encoded.clip().float())
        self._n_watched += len(ids)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Update the teacher and the schedules of the objective."""
        if should_step:
            self.objective.after_step(self.optimizer_step, self.total_steps)

    def on_stage_start(self, stage, epoch=None):
        """Reset the number of watched clips, and the picture."""
        super().on_stage_start(stage, epoch)
        self._n_watched = 0
        self._picture = None

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log and save a checkpoint, after the validation if there is one."""
        self.check_audio()
        stats = self.averages()
        if stage == sb.Stage.TRAIN:
            self._train_stats = stats
            if self.has_valid:
                return
            self.log_epoch(epoch, stats, {})
        else:
            stats |= self._watched()
            self.log_epoch(epoch, self._train_stats, stats)
        if if_main_process():
            self._warn_at_chance([self._train_stats, stats])
        if isinstance(self.schedule, WarmupPlateau):
            self.schedule.update(stats.get("accuracy", -stats["loss"]))
        self.checkpointer.save_and_keep_only(
            meta={"epoch": epoch, "loss": stats["loss"]},
            min_keys=["loss"] if self.has_valid else [],
        )

    def _warn_at_chance(self, stages):
        """Warn once if a run has not begun to learn.

        The check is made after the first epoch that ends after both the warm-up
        and `STEPS_TO_BEGIN`. In a shorter run, it is made after the last epoch.

        Arguments
        ---------
        stages : list of dict of str to float
            Averages of training, and of validation if there is one.
        """
        if not all(map(is_at_chance, stages)):
            return
        total = self.total_steps
        warmup = count_steps(getattr(self.schedule, "warmup", 0), total)
        due = min(max(STEPS_TO_BEGIN, warmup), total)
        *before, row = [0, *(row["step"] for row in self.log_rows())]
        if not before[-1] < due <= row:
            return
        name = next(n for n in stages[0] if f"{n}{CHANCE}" in stages[0])
        # With learned positions, a model distinguishes masked patches late.
        told_apart = getattr(self.objective, "sincos_positions", True)
        logger.warning(
            f"After {row} steps the model is no better than chance "
            f"({name} {stages[0][name]:.4g}, chance "
            f"{stages[0][f'{name}{CHANCE}']:.4g}): it has not begun to learn. "
            f"Change lr ({self.optimizer.defaults['lr']:g}), its warm-up "
            f"({warmup} steps) or batch_size, mask fewer or other patches "
            "(mask_ratio or geometry), give more hours of audio or epochs"
            + ("" if told_apart else ", or take --objective mspm_small_data")
        )

    def _watched(self):
        """Return rank and spread of the embeddings; keep the first picture."""
        kept = self.evaluated()
        pictures = (part["picture"] for part in kept if "picture" in part)
        self._picture = next(pictures, None)
        parts = [part["embeddings"] for part in kept if "embeddings" in part]
        embeddings = torch.cat(parts)[:RANK_CLIPS]
        return {
            "effective_rank": effective_rank(embeddings),
            "embedding_std": mean_deviation(embeddings),
        }

    def finish(self):
        """Load the best epoch on held-out audio; draw the last pictures.

        Returns
        -------
        dict
            Logged values of the epoch whose weights are loaded.
        """
        if self.has_valid:
            self.checkpointer.recover_if_possible(min_key="loss")
        self.draw()
        epoch = self.hparams.epoch_counter.current
        rows = [row for row in self.log_rows() if row["epoch"] == epoch]
        return rows[0] if rows else {}

    def export(self, folder, hparams_file, rows, metrics, window, **settings):
        """Write the encoder and its objective to a folder, on the main process.

        Arguments
        ---------
        folder : str or os.PathLike
            The folder; see `export_pretrained`.
        hparams_file, rows
            For the model card; see `model_card`.
        metrics : dict of str to float
            From `finish`. The card states those of validation or, without
            validation, those of training.
        window : float
            Seconds of audio that the export processes at once; see
            `export_window`.
        **settings
            Further entries of the model card.
        """
        if if_main_process():
            part = "valid_" if self.has_valid else "train_"
            masker = self.objective.config.get("masker", {})
            masker = ", ".join(
                value if key == "name" else f"{key} {value}"
                for key, value in masker.items()
                if value is not None
            )
            card = model_card(
                hparams_file,
                rows,
                {k: v for k, v in metrics.items() if k.startswith(part)},
                **settings,
                masker=masker or None,
                epochs=self.epochs_text(),
                steps=self.optimizer_step,
                seed=self.hparams.seed,
            )
            features = unwrap(self.modules.pretrainer).features
            export_pretrained(folder, self.objective, features, card, window)

    @torch.no_grad()
    def draw(self):
        """Draw the curves and, if the objective reconstructs, a picture."""
        super().draw()
        if self._picture is None or not self.objective.reconstructs:
            return
        if not if_main_process():
            return
        *parts, clip = self._picture
        feats, n_frames, keys = (part.to(self.device) for part in parts)
        hidden, filled = self.objective.picture(feats, n_frames, keys)
        length = int(n_frames[0])
        plot_reconstruction(
            feats[0, :length],
            hidden[0, :length],
            filled[0, :length],
            self.output_folder / "reconstruction.png",
            title=clip,
        )


def items_of(batch):
    """Return the items of a batch that some objectives need.

    Arguments
    ---------
    batch : speechbrain.dataio.batch.PaddedBatch
        Batch of a dataset from `make_dataset`.

    Returns
    -------
    dict
        Items by their names in `PretrainingLobe`. An item that the batch lacks
        is None.

    Example
    -------
    >>> from ssast_lobes import collate
    >>> batch = collate([{"id": "a", "sig": torch.zeros(4)}])
    >>> items_of(batch)
    {'clip_ids': ['a'], 'crop_starts': None, 'positive_pairs': None}
    """
    return {
        "clip_ids": batch.id,
        "crop_starts": getattr(batch, "crop_starts", None),
        "positive_pairs": getattr(batch, "positive_pairs", None),
    }
