"""What pretraining and classification share: steps, logs, checkpoints.

SpeechBrain's `Brain` with some things mended (it clips the first parameter
group only, drops the tail of an epoch under gradient accumulation, saves amid
an accumulation, and knows no schedule by step), and with randomness that is a
function of its place, so that a resumed run equals an uninterrupted one.
"""

import json
import math
import time
from pathlib import Path

import speechbrain as sb
import torch
import yaml
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import (
    if_main_process,
    is_distributed_initialized,
)
from speechbrain.utils.logger import get_logger

from ssast_lobes.brains.batches import ForgivingCollate
from ssast_lobes.data.audio import UnreadableAudio
from ssast_lobes.data.dataset import collate
from ssast_lobes.data.manifest import check_unreadable
from ssast_lobes.plots import plot_training_curves
from ssast_lobes.schedules import (
    WarmupPlateau,
    apply_learning_rate,
    apply_weight_decay,
)

logger = get_logger(__name__)

_BITS = (1 << 64) - 1
# Pictures while training: not more often than this.
SECONDS_BETWEEN_PICTURES = 60


def unwrap(module):
    """The module inside the wrappers of DDP and ``torch.compile``.

    Arguments
    ---------
    module : torch.nn.Module
        Wrapped or not.

    Returns
    -------
    torch.nn.Module

    Example
    -------
    >>> layer = torch.nn.Linear(1, 1)
    >>> unwrap(torch.compile(layer)) is layer
    True
    """
    for wrapper in ("module", "_orig_mod"):
        while wrapper in getattr(module, "_modules", {}):
            module = module._modules[wrapper]
    return module


def place_seed(*place):
    """A seed that is a function of a place in the training.

    Arguments
    ---------
    *place : int
        Such as seed, epoch, step and rank.

    Returns
    -------
    int
        Below 2 ** 63.

    Example
    -------
    >>> place_seed(0, 1, 2) == place_seed(0, 1, 2) != place_seed(0, 2, 1)
    True
    """
    # Mixed, so that neighbouring places have unrelated seeds (splitmix64).
    state = 0
    for number in place:
        state = (state ^ (number & _BITS)) * 0x9E3779B97F4A7C15 & _BITS
        state = (state ^ (state >> 29)) * 0xBF58476D1CE4E5B9 & _BITS
        state ^= state >> 32
    return state >> 1


def one_interval(hparams, run_opts):
    """Heed ``--ckpt_interval_steps`` though the YAML has an interval too.

    SpeechBrain stops where both intervals are given, wherever they come from.

    Arguments
    ---------
    hparams : dict
        Settings of the YAML.
    run_opts : RunOptions, dict or None
        Options of the command line.

    Returns
    -------
    dict
        The settings, without an interval that the command line replaces.

    Example
    -------
    >>> one_interval({"ckpt_interval_minutes": 15}, {"ckpt_interval_steps": 9})
    {'ckpt_interval_minutes': 0}
    """
    given = run_opts or {}
    given = getattr(given, "overridden_args", given)
    if "ckpt_interval_steps" in given and "ckpt_interval_minutes" not in given:
        return {**hparams, "ckpt_interval_minutes": 0}
    return hparams


@register_checkpoint_hooks
class SpectrogramBrain(sb.Brain):
    """Base of the Brains; see `PretrainingBrain`, `ClassificationBrain`.

    Reads from ``hparams``: ``seed``, ``lr``, ``schedule``, ``epoch_counter``,
    ``output_folder``, ``train_logger``, ``use_tensorboard`` and
    ``max_unreadable``.

    Arguments
    ---------
    modules, opt_class, hparams, run_opts, checkpointer
        As for SpeechBrain's `Brain`; all but `run_opts` are needed.
    readers : list of ClipReader
        Told the epoch, for their crops.
    n_files : int
        Clips in all the datasets. Of these and of the files that are listed
        as unreadable already, `max_unreadable` is a share.

    Raises
    ------
    ImportError
        If TensorBoard is asked for and not there.
    """

    # SpeechBrain sets it under DDP only.
    rank = 0

    def __init__(
        self,
        modules,
        opt_class,
        hparams,
        run_opts=None,
        checkpointer=None,
        readers=(),
        n_files=0,
    ):
        hparams = one_interval(hparams, run_opts)
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        self.readers = readers
        self.epoch = 0
        self.batches_per_epoch = None
        self._sums = {}
        self._last_picture = 0.0
        # From the command line it comes as text.
        if self.optimizer_step_limit is not None:
            self.optimizer_step_limit = int(self.optimizer_step_limit)
        if self.debug:
            counter = self.hparams.epoch_counter
            counter.limit = min(counter.limit, self.debug_epochs)
        self.output_folder = Path(self.hparams.output_folder)
        self.unreadable_file = self.output_folder / "unreadable.csv"
        self.n_unreadable = self._count_unreadable(n_files=1, share=math.inf)
        self.n_files = n_files + self.n_unreadable
        self.writer = None
        if self.hparams.use_tensorboard and if_main_process():
            self.writer = _tensorboard(self.output_folder / "events")
        self.log_file = self.output_folder / "metrics.jsonl"

    # Steps ----------------------------------------------------------------

    def make_dataloader(self, dataset, stage, *args, **kwargs):
        """Make a loader; that of training tells how long an epoch is."""
        training = stage == sb.Stage.TRAIN
        kwargs["collate_fn"] = ForgivingCollate(
            kwargs.get("collate_fn", collate), dataset if training else None
        )
        loader = super().make_dataloader(dataset, stage, *args, **kwargs)
        if training:
            if self.distributed_launch:
                # SpeechBrain shuffles alike whatever the seed.
                self.train_sampler.seed = self.hparams.seed
            elif kwargs.get("sampler") is not None:
                # SpeechBrain tells only its own samplers the epoch.
                self.train_sampler = kwargs["sampler"]
            self.batches_per_epoch = len(loader)
            if self.debug:
                self.batches_per_epoch = min(len(loader), self.debug_batches)
        return loader

    def on_fit_start(self):
        """Resume; a run that has taken all its steps has no epoch left."""
        super().on_fit_start()
        if self._optimizer_step_limit_exceeded and self.step == 0:
            counter = self.hparams.epoch_counter
            counter.limit = counter.current

    @property
    def total_steps(self):
        """Optimizer steps of the whole training."""
        per_epoch = math.ceil(
            self.batches_per_epoch / self.grad_accumulation_factor
        )
        steps = per_epoch * self.hparams.epoch_counter.limit
        return min(steps, self.optimizer_step_limit or steps)

    def init_optimizers(self):
        """One optimizer, with the subclass's parameter groups."""
        self.optimizer = self.opt_class(self.parameter_groups())
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)
            if isinstance(self.hparams.schedule, WarmupPlateau):
                schedule = self.hparams.schedule
                self.checkpointer.add_recoverable("schedule", schedule)

    def parameter_groups(self):
        """Parameter groups for the optimizer, each with ``lr_scale``."""
        raise NotImplementedError

    def fit_batch(self, batch):
        """One batch; a step every `grad_accumulation_factor` of them, and at
        the end of the epoch."""
        factor = self.grad_accumulation_factor
        tail = self.batches_per_epoch % factor
        in_tail = self.step > self.batches_per_epoch - tail
        group = tail if in_tail else factor
        should_step = (
            self.step % factor == 0 or self.step == self.batches_per_epoch
        )
        seed = place_seed(self.hparams.seed, self.epoch, self.step, self.rank)
        torch.manual_seed(seed)
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            scaled = self.scaler.scale(loss / group)
            self.check_loss_isfinite(scaled)
            scaled.backward()
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        return loss.detach().cpu()

    def optimizers_step(self):
        """Set rate and weight decay, clip all groups together, step."""
        share = self.hparams.schedule(self.optimizer_step, self.total_steps)
        apply_learning_rate(self.optimizer, self.hparams.lr * share)
        decay = getattr(self.hparams, "weight_decay_schedule", None)
        if decay is not None:
            now = decay(self.optimizer_step, self.total_steps)
            apply_weight_decay(self.optimizer, now)
        self.scaler.unscale_(self.optimizer)
        parameters = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        ]
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if not self.scaler.is_enabled() and self.skip_nonfinite_grads:
            self.check_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def evaluate_batch(self, batch, stage):
        """Evaluate a batch; nothing if not one of its clips was decoded."""
        if batch is None:
            return torch.tensor(math.nan)
        return super().evaluate_batch(batch, stage)

    # Logs -----------------------------------------------------------------

    def on_stage_start(self, stage, epoch=None):
        """Tell the readers the epoch; start sums anew."""
        self.epoch = epoch or 0
        for reader in self.readers:
            reader.epoch = self.epoch
        if stage != sb.Stage.TRAIN or self.step == 0:
            self._sums = {}

    def accumulate(self, logs, count):
        """Add a batch to the averages of the stage, without a device sync.

        Arguments
        ---------
        logs : dict of str to torch.Tensor
            Scalars, means over the batch.
        count : int or torch.Tensor
            Clips in the batch that these are the means of.
        """
        for name, value in logs.items():
            total, clips = self._sums.get(name, (0.0, 0))
            value = value.detach().double() * count
            self._sums[name] = (total + value, clips + count)

    def averages(self):
        """Means of what was accumulated in this stage, as floats.

        Raises
        ------
        UnreadableAudio
            If there was nothing: no clip could be decoded.
        """
        sums = self._sums_of_all()
        if not sums:
            raise UnreadableAudio(
                "none of the clips of a whole part of the data can be "
                f"decoded, see {self.unreadable_file}"
            )
        return {
            name: total / max(clips, 1.0)
            for name, (total, clips) in sums.items()
        }

    def _sums_of_all(self):
        """Sums over the processes, which see a share of the clips each."""
        own = {
            name: (float(total), float(clips))
            for name, (total, clips) in self._sums.items()
        }
        if not is_distributed_initialized():
            return own
        parts = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, own)
        sums = {}
        for name in dict.fromkeys(key for part in parts for key in part):
            pairs = [part[name] for part in parts if name in part]
            sums[name] = tuple(
                sum(numbers) for numbers in zip(*pairs, strict=True)
            )
        return sums

    def log_epoch(self, epoch, train, valid):
        """Write an epoch to the logs, and the curves.

        Arguments
        ---------
        epoch : int
            Number of the epoch, from 1.
        train, valid : dict of str to float
            Statistics of the two stages.
        """
        meta = {
            "epoch": epoch,
            "step": self.optimizer_step,
            "lr": self._learning_rate(),
        }
        # On all processes: it has a broadcast in it.
        self.hparams.train_logger.log_stats(
            stats_meta=meta, train_stats=train, valid_stats=valid or None
        )
        if not if_main_process():
            return
        if self.writer is not None:
            self.writer.add_scalar("lr", meta["lr"], epoch)
            for stage, stats in (("train", train), ("valid", valid)):
                for key, value in stats.items():
                    self.writer.add_scalar(f"{key}/{stage}", value, epoch)
            self.writer.flush()
        row = dict(meta)
        for stage, stats in (("train", train), ("valid", valid)):
            row.update({f"{stage}_{key}": v for key, v in stats.items()})
        with open(self.log_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if time.time() - self._last_picture > SECONDS_BETWEEN_PICTURES:
            self.draw()
            self._last_picture = time.time()

    def _learning_rate(self):
        """That of the last step, before the scale of any group."""
        group = self.optimizer.param_groups[-1]
        return group["lr"] / group["lr_scale"]

    def log_rows(self):
        """The logged epochs, a dict each; a repeated epoch counts once."""
        rows = {}
        if self.log_file.is_file():
            for line in self.log_file.read_text("utf-8").splitlines():
                row = json.loads(line)
                rows[row["epoch"]] = row
        return [rows[epoch] for epoch in sorted(rows)]

    def draw(self):
        """Write the pictures of the training; the curves by default."""
        rows = self.log_rows()
        if rows and if_main_process():
            rows = [
                {key: v for key, v in row.items() if key != "step"}
                for row in rows
            ]
            plot_training_curves(rows, self.output_folder / "curves.png")

    def check_audio(self):
        """Stop if too many files turned out to be unreadable.

        Raises
        ------
        ManifestError
            See `check_unreadable`.
        """
        share = self.hparams.max_unreadable
        count = self._count_unreadable(self.n_files, share)
        if count > self.n_unreadable:
            logger.warning(
                f"{count - self.n_unreadable} more files could not be decoded "
                f"and were left out; listed in {self.unreadable_file}"
            )
        self.n_unreadable = count

    def _count_unreadable(self, n_files, share):
        if not self.unreadable_file.is_file():
            return 0
        return check_unreadable(self.unreadable_file, n_files, share)

    # Checkpoints ----------------------------------------------------------

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        # Gradients are not saved: wait until they are used.
        if self.step % self.grad_accumulation_factor != 0:
            return False
        return super()._should_save_intra_epoch_ckpt(
            last_ckpt_time, steps_since_ckpt
        )

    def _save_intra_epoch_ckpt(self):
        # The main process saves: it takes the sums over from the others.
        sums = self._sums_of_all()
        self._sums = sums if if_main_process() else {}
        super()._save_intra_epoch_ckpt()

    @mark_as_saver
    def _save(self, path):
        sums = {
            name: [float(total), float(clips)]
            for name, (total, clips) in self._sums.items()
        }
        state = {
            "step": self.step,
            "avg_train_loss": float(self.avg_train_loss),
            "optimizer_step": self.optimizer_step,
            "sums": sums,
        }
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(state, file, sort_keys=False)

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        with open(path, encoding="utf-8") as file:
            state = yaml.safe_load(file)
        self.optimizer_step = state["optimizer_step"]
        if not end_of_epoch:
            self.step = state["step"]
            self.avg_train_loss = state["avg_train_loss"]
            sums = {k: tuple(v) for k, v in state["sums"].items()}
            self._sums = sums if if_main_process() else {}


def _tensorboard(folder):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "use_tensorboard needs TensorBoard: pip install tensorboard"
        ) from error
    return SummaryWriter(folder)
