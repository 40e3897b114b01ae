"""Pretraining: any objective, on unlabelled audio."""

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process

from ssast_lobes.brains.base import SpectrogramBrain, unwrap
from ssast_lobes.brains.optimizers import parameter_groups
from ssast_lobes.data.dataset import clip_keys
from ssast_lobes.metrics import effective_rank, mean_deviation
from ssast_lobes.plots import plot_reconstruction
from ssast_lobes.schedules import WarmupPlateau

# Clips whose embeddings tell the effective rank.
RANK_CLIPS = 1000


class PretrainingBrain(SpectrogramBrain):
    """Trains an objective; watches it on held-out audio without labels.

    ``modules`` holds ``features`` (waveform to normalised log-mel) and
    ``objective`` (owns the encoder). Validation masks are a function of the
    clip. Beside the objective's logs it reports the effective rank of the
    clip embeddings and their mean deviation per dimension, which fall when a
    representation collapses. The arguments are those of `SpectrogramBrain`.

    Reads from ``hparams``, beside the base's: ``weight_decay_schedule``, a
    schedule of the optimizer's weight decay, or None to keep it.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._n_watched = 0
        self._picture = None
        self._train_stats = {}

    @property
    def objective(self):
        """The objective without wrappers."""
        return unwrap(self.modules.objective)

    def parameter_groups(self):
        """All trainable parameters at one rate."""
        decay = not self.remove_vector_weight_decay
        return parameter_groups(self.objective, decay_vectors=decay)

    def compute_forward(self, batch, stage):
        """Objective output of a batch of waveforms, and how many clips count.

        A clip of a single token hides nothing and has no loss.
        """
        # Looked up while the batch is on the CPU: asking the device would wait.
        padded = bool((batch.sig.lengths < 1).any())
        batch = batch.to(self.device, non_blocking=True)
        feats, n_frames = self.modules.features(*batch.sig)
        if stage == sb.Stage.TRAIN:
            if self.objective.n_frames_optional and not padded:
                n_frames = None
            own = {}
            if self.objective.uses_takes and hasattr(batch, "takes"):
                own["takes"] = batch.takes
            return self.modules.objective(feats, n_frames, **own), len(batch.id)
        keys = clip_keys(batch.id).to(feats.device)
        mask = self.objective.draw_mask(feats, n_frames, clip_keys=keys)
        self._watch(feats, n_frames, keys, batch.id)
        objective = self.network("objective", stage)
        output = objective(feats, n_frames, mask, clip_keys=keys)
        if mask is None:
            return output, len(batch.id)
        return output, mask.flatten(1).any(1).sum()

    def _watch(self, feats, n_frames, keys, ids):
        if self._n_watched == 0:
            # The liveliest clip of the first batch shows most.
            one = int(feats.var(1).mean(1).argmax())
            parts = (part[one : one + 1] for part in (feats, n_frames, keys))
            self.keep(picture=(*(part.cpu() for part in parts), ids[one]))
        if self._n_watched < RANK_CLIPS:
            encoded = self.objective.encoder(feats, n_frames)
            self.keep(embeddings=encoded.clip().float())
            self._n_watched += len(ids)

    def compute_objectives(self, output, batch, stage):
        """The objective's loss; its logs go into the averages."""
        output, count = output
        self.accumulate({"loss": output.loss, **output.logs}, count)
        return output.loss

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Let the objective follow the step (teacher, schedules)."""
        if should_step:
            self.objective.after_step(self.optimizer_step, self.total_steps)

    def on_stage_start(self, stage, epoch=None):
        """Watch the first clips of each validation anew."""
        super().on_stage_start(stage, epoch)
        self._n_watched = 0
        self._picture = None

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log, and save a checkpoint; after validation if there is any."""
        self.check_audio()
        stats = self.averages()
        if stage == sb.Stage.TRAIN:
            self._train_stats = stats
            if self.hparams.has_valid:
                return
            self.log_epoch(epoch, stats, {})
        else:
            stats |= self._watched()
            self.log_epoch(epoch, self._train_stats, stats)
        if isinstance(self.hparams.schedule, WarmupPlateau):
            self.hparams.schedule.update(stats.get("accuracy", -stats["loss"]))
        self.checkpointer.save_and_keep_only(
            meta={"epoch": epoch, "loss": stats["loss"]},
            min_keys=["loss"] if self.hparams.has_valid else [],
        )

    def _watched(self):
        """Spread of the first clips' embeddings; keeps the first picture."""
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
        """Go back to the best epoch on held-out audio; last pictures.

        Returns
        -------
        dict
            What was logged of the epoch whose weights the objective has now.
        """
        if self.hparams.has_valid:
            self.checkpointer.recover_if_possible(min_key="loss")
        self.draw()
        epoch = self.hparams.epoch_counter.current
        rows = [row for row in self.log_rows() if row["epoch"] == epoch]
        return rows[0] if rows else {}

    @torch.no_grad()
    def draw(self):
        """The curves, and a reconstruction where the objective has one."""
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
