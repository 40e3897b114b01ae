"""The base of all Brains: the training step, skipped steps, exact resume.

SpeechBrain's `Brain` clips only the first parameter group. With gradient
accumulation, it drops the last batches of an epoch, and may save a checkpoint
between two steps. It steps even if the loss is not finite, and has no schedule
by step. `SpectrogramBrain` solves these problems; ``docs/upstream.md``
describes each. All random numbers are a function of seed, epoch, step and
process, so a resumed run equals an uninterrupted one.
"""

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
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger
from torch.nn.parallel import DistributedDataParallel

from ssast_lobes.dataio.scan import check_unreadable
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.models.features import FrontEnd
from ssast_lobes.training.errors import NonfiniteLoss, SettingsError
from ssast_lobes.training.loaders import loader_options
from ssast_lobes.training.logs import EpochLog, draw_curves, read_log
from ssast_lobes.training.memory import keep_freed_memory
from ssast_lobes.training.report import Progress, readable
from ssast_lobes.utils.distributed import (
    gather_in_turn,
    gather_sums,
    n_processes,
)
from ssast_lobes.utils.files import append_row
from ssast_lobes.utils.random import place_seed
from ssast_lobes.utils.schedules import (
    WarmupPlateau,
    apply_learning_rate,
    apply_weight_decay,
)

logger = get_logger(__name__)

# Drawing takes a second: with short epochs it would take most of the time.
SECONDS_BETWEEN_PICTURES = 60

# Number of shapes to compile code for; PyTorch's own limit is 8.
RECOMPILE_LIMIT = 64


def unwrap(module):
    """Return the module inside DDP and, inside that, ``torch.compile``.

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


@register_checkpoint_hooks
class SpectrogramBrain(sb.Brain):
    """Base of the Brains; see `PretrainingBrain`, `ClassificationBrain`.

    It reads these keys of ``hparams``: ``seed``, ``epoch_counter``,
    ``output_folder`` and ``max_unreadable``.

    If the loss or a gradient is not finite in one process, all processes skip
    the step. Weights, optimizer, teacher, running statistics and averaged
    weights then do not change. ``nonfinite.csv`` in the output folder lists the
    clips. The run ends if more than ``nonfinite_patience`` steps of an epoch
    are skipped. ``nonfinite_patience`` is a run option of SpeechBrain or a key
    of ``hparams``, by default 3. Clips of evaluated batches are listed too, but
    do not end the run.

    Arguments
    ---------
    modules, opt_class, hparams, run_opts, checkpointer
        As for SpeechBrain's `Brain`.
    schedule : callable
        (step, total steps) -> factor of the optimizer's learning rate, such as
        `ssast_lobes.utils.schedules.WarmupCosine`.
    weight_decay_schedule : callable, optional
        (step, total steps) -> weight decay. By default the optimizer's value
        stays constant.
    train_logger : speechbrain.utils.train_logger.TrainLogger
        Gets the statistics of each epoch.
    use_tensorboard : bool
        Whether TensorBoard gets the statistics too, in
        ``<output_folder>/events``.
    readers : list of ClipReader
        In training, the Brain sets the epoch of the readers, on which their
        crops depend. It also sets their sampling rate to that of the front
        end, which may be that of a pretrained model.
    n_files : int
        Number of clips in all datasets. The files already listed as unreadable
        are added, and ``max_unreadable`` is a fraction of the sum.

    Raises
    ------
    ImportError
        If TensorBoard is requested but not installed.
    """

    # SpeechBrain sets the rank under DDP only.
    rank = 0

    def __init__(
        self,
        modules,
        opt_class,
        hparams,
        run_opts=None,
        checkpointer=None,
        *,
        schedule,
        train_logger,
        weight_decay_schedule=None,
        use_tensorboard=False,
        readers=(),
        n_files=0,
    ):
        given = getattr(run_opts, "overridden_args", run_opts) or ()
        steps, minutes = "ckpt_interval_steps", "ckpt_interval_minutes"
        if steps in given and minutes not in given:
            # SpeechBrain allows only one interval, and the YAML sets minutes.
            hparams = {**hparams, minutes: 0}
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        self.schedule = schedule
        self.weight_decay_schedule = weight_decay_schedule
        self.train_logger = train_logger
        self.readers = readers
        self._set_rate(readers)
        self.epoch = 0
        self.batches_per_epoch = None
        self._sums = {}
        self._kept = []
        # Batches of this step; sums and buffers before these batches.
        self._group = []
        self._before = None
        self._skipped = 0
        # Number of processes in the run whose checkpoint was loaded.
        self._n_processes_before = None
        self.clips = {}  # for each stage, rows by id
        self.progress = None
        # Count from now: every run draws at its end.
        self._last_picture = time.time()
        # The command line gives this limit as text.
        if self.optimizer_step_limit is not None:
            self.optimizer_step_limit = int(self.optimizer_step_limit)
        # As in SpeechBrain, 0 or less stands for all epochs.
        if self.debug and self.debug_epochs > 0:
            counter = self.hparams.epoch_counter
            counter.limit = min(counter.limit, self.debug_epochs)
        self.output_folder = Path(self.hparams.output_folder)
        self.unreadable_file = self.output_folder / "unreadable.csv"
        self.nonfinite_file = self.output_folder / "nonfinite.csv"
        self.n_unreadable = self._count_unreadable(1, math.inf)
        self.n_files = n_files + self.n_unreadable
        self.epoch_log = EpochLog(
            self.output_folder, use_tensorboard and if_main_process()
        )

    def _set_rate(self, takers):
        """Give readers or steps the sampling rate of the front end."""
        for features in self.modules.modules():
            if isinstance(features, FrontEnd):
                for taker in takers:
                    taker.sample_rate = features.fbank.sample_rate

    # Steps ----------------------------------------------------------------

    def make_dataloader(self, dataset, stage, *args, **kwargs):
        """Make a loader; the training loader sets the length of an epoch."""
        training = stage == sb.Stage.TRAIN
        self.clips[stage] = getattr(dataset, "data", {})
        rank = self.rank if self.distributed_launch else None
        kwargs = loader_options(kwargs, dataset, training, self.device, rank)
        loader = super().make_dataloader(dataset, stage, *args, **kwargs)
        if training:
            if self.distributed_launch:
                # SpeechBrain ignores the seed of the recipe.
                self.train_sampler.seed = self.hparams.seed
                if kwargs.get("batch_sampler") is not None:
                    # Keep batches of similar length in the same step.
                    self.train_sampler.shuffle = False
            else:
                # SpeechBrain sets only the epoch of its own samplers.
                own = kwargs.get("batch_sampler") or kwargs.get("sampler")
                self.train_sampler = own or self.train_sampler
            self.batches_per_epoch = len(loader)
            if self.debug:
                self.batches_per_epoch = min(len(loader), self.debug_batches)
        return loader

    def on_fit_start(self):
        """Resume; end the epochs if the run has taken all its steps.

        SpeechBrain's `SaveableDataLoader` skips the batches that were used
        before. Samplers and crops are functions of seed and epoch.
        """
        if self.compile or self.compile_module_keys:
            # Each length, the last batch and evaluation need their own compiled
            # code. Beyond the limit, PyTorch runs without compilation.
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        super().on_fit_start()
        self._check_processes()
        if torch.device(self.device).type == "cpu":
            keep_freed_memory()
        if self._optimizer_step_limit_exceeded and self.step == 0:
            counter = self.hparams.epoch_counter
            counter.limit = counter.current
        self.progress = Progress(self, self.task())

    def _check_processes(self):
        """Raise if an epoch is resumed with another number of processes."""
        before, now = self._n_processes_before, n_processes()
        if before in (None, now):
            return
        if self.step > 0:
            raise SettingsError(
                f"{self.output_folder} was stopped within an epoch of "
                f"{before} processes, each with a part of the clips: "
                f"resume with {before} processes, not {now}"
            )
        logger.info(
            f"Resuming with {now} processes after {before}: from here on a "
            f"step has {now / before:g} times as many clips"
        )

    @property
    def total_steps(self):
        """Number of optimizer steps of the whole training (int)."""
        per_epoch = math.ceil(
            self.batches_per_epoch / self.grad_accumulation_factor
        )
        steps = per_epoch * self.hparams.epoch_counter.limit
        return min(steps, self.optimizer_step_limit or steps)

    def init_optimizers(self):
        """Make one optimizer, with the subclass's parameter groups."""
        self.optimizer = self.opt_class(self.parameter_groups())
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)
            if isinstance(self.schedule, WarmupPlateau):
                self.checkpointer.add_recoverable("schedule", self.schedule)

    def parameter_groups(self):
        """Return groups for the optimizer, each with ``lr_scale``."""
        raise NotImplementedError

    def task(self):
        """Return the lines about the task that a run prints first (dict)."""
        return {}

    def fit_batch(self, batch):
        """Train on a batch.

        The optimizer steps every `grad_accumulation_factor` batches, and at
        the end of the epoch.
        """
        factor = self.grad_accumulation_factor
        tail = self.batches_per_epoch % factor
        in_tail = self.step > self.batches_per_epoch - tail
        group = tail if in_tail else factor
        is_last = self.step == self.batches_per_epoch
        should_step = is_last or self.step % factor == 0
        seed = place_seed(self.hparams.seed, self.epoch, self.step, self.rank)
        torch.manual_seed(seed)
        if (self.step - 1) % factor == 0:
            buffers = [buffer.clone() for buffer in self.modules.buffers()]
            self._before = dict(self._sums), buffers
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            # A loss that is not finite makes all gradients of its process NaN,
            # and DDP then makes the gradients of all processes NaN. All of them
            # thus skip the step without further communication.
            spoilt = torch.where(loss.isfinite(), 1.0, math.nan)
            self.scaler.scale(loss * spoilt / group).backward()
        value = loss.detach().float()
        if should_step:
            # A batch that ends a step waits for the device only here.
            value, norm = torch.stack([value, self.clip_gradients()]).cpu()
        self._group.append((batch.id, value))
        stepped = should_step and self._step_or_skip(norm)
        self.on_fit_batch_end(batch, outputs, loss, stepped)
        return value.cpu()

    def clip_gradients(self):
        """Clip the gradients of all groups together.

        Returns
        -------
        torch.Tensor
            Norm of all gradients before clipping, () float32.
        """
        self.scaler.unscale_(self.optimizer)
        groups = self.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        limit = self.max_grad_norm if self.max_grad_norm > 0 else math.inf
        return torch.nn.utils.clip_grad_norm_(parameters, limit).float()

    def optimizers_step(self):
        """Set learning rate and weight decay, then step."""
        place = self.optimizer_step, self.total_steps
        lr = self.optimizer.defaults["lr"] * self.schedule(*place)
        apply_learning_rate(self.optimizer, lr)
        if self.weight_decay_schedule is not None:
            now = self.weight_decay_schedule(*place)
            apply_weight_decay(self.optimizer, now)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def _step_or_skip(self, norm):
        """Step if the gradients are finite; return whether it stepped."""
        group, self._group = self._group, []
        if torch.isfinite(norm):
            self.optimizers_step()
            return True
        bad = [(ids, loss) for ids, loss in group if not loss.isfinite()]
        anywhere = any(gather_in_turn([bool(bad)]))
        if self.scaler.is_enabled() and not anywhere:
            # The scale was too large for fp16: the scaler skips the step and
            # lowers the scale.
            self.optimizers_step()
            return True
        self._list_nonfinite(bad if anywhere else group, sb.Stage.TRAIN)
        sums, buffers = self._before
        self._sums = dict(sums)
        for buffer, before in zip(self.modules.buffers(), buffers, strict=True):
            buffer.copy_(before)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._skipped += 1
        what = "loss" if anywhere else "gradient"
        logger.warning(
            f"The {what} of batch {self.step} of epoch {self.epoch} is not "
            f"finite: its step is skipped, the clips are listed in "
            f"{self.nonfinite_file}"
        )
        if self._skipped > int(self.nonfinite_patience):
            raise NonfiniteLoss(
                f"loss or gradients were not finite in {self._skipped} steps "
                f"of epoch {self.epoch}, more than nonfinite_patience "
                f"({self.nonfinite_patience}); the clips are listed in "
                f"{self.nonfinite_file}. The last checkpoint, in "
                f"{self.output_folder}, is older: remove bad clips, lower lr, "
                "or raise nonfinite_patience, and start again"
            )
        return False

    def _list_nonfinite(self, batches, stage):
        """Add the clips of batches (ids, loss) to ``nonfinite.csv``."""
        clips = self.clips.get(stage, {})
        for ids, loss in batches:
            for clip in ids:
                path = clips.get(clip, {}).get("path", "")
                place = stage.name.lower(), self.epoch, self.step
                row = path, clip, *place, f"{float(loss):g}"
                append_row(self.nonfinite_file, row)

    # Evaluation -----------------------------------------------------------

    def network(self, name, stage):
        """Return the module to call in a stage: without DDP in evaluation.

        At each call, DDP waits for the other processes, which may have fewer
        batches to evaluate.

        Arguments
        ---------
        name : str
            A key of ``modules``.
        stage : speechbrain.Stage
            Training or one of the others.

        Returns
        -------
        torch.nn.Module
        """
        module = self.modules[name]
        parallel = isinstance(module, DistributedDataParallel)
        if parallel and stage != sb.Stage.TRAIN:
            return module.module
        return module

    def evaluate_batch(self, batch, stage):
        """Evaluate a batch; return NaN if none of its clips was decoded."""
        # A batch without clips gets an entry too, which keeps the order.
        self._kept.append({})
        if batch is None:
            return torch.tensor(math.nan)
        sums = dict(self._sums)
        loss = super().evaluate_batch(batch, stage)
        if not torch.isfinite(loss):
            self._sums = sums
            self._kept[-1] = {}
            self._list_nonfinite([(batch.id, loss)], stage)
            logger.warning(
                f"The loss of batch {self.step} is not finite: its clips are "
                f"left out, and listed in {self.nonfinite_file}"
            )
        return loss

    def keep(self, **values):
        """Keep results of the batch for the end of the stage.

        `evaluated` returns them.

        Arguments
        ---------
        **values
            Results by name; tensors are moved to the CPU.
        """
        for name, value in values.items():
            value = value.cpu() if torch.is_tensor(value) else value
            self._kept[-1][name] = value

    def evaluated(self):
        """Return the results that all processes have kept.

        Returns
        -------
        list of dict
            One for each batch with decoded clips and a finite loss, in the
            order in which a single process evaluates them.
        """
        return [values for values in gather_in_turn(self._kept) if values]

    # Logs -----------------------------------------------------------------

    def on_stage_start(self, stage, epoch=None):
        """Set the epoch of the readers; reset the sums."""
        self.epoch = epoch or 0
        for reader in self.readers:
            # Random crops of valid are the same in each epoch.
            reader.epoch = self.epoch if stage == sb.Stage.TRAIN else 0
        self._kept = []
        if stage != sb.Stage.TRAIN or self.step == 0:
            self._sums = {}
        if stage == sb.Stage.TRAIN and self.step == 0:
            self._skipped = 0
        if stage == sb.Stage.TRAIN:
            self.progress.start_epoch()

    def accumulate(self, logs, count):
        """Add a batch to the averages of the stage, without a wait for the GPU.

        Arguments
        ---------
        logs : dict of str to torch.Tensor
            Scalars, means over the batch.
        count : int or torch.Tensor
            Number of clips in the batch.
        """
        for name, value in logs.items():
            total, clips = self._sums.get(name, (0.0, 0))
            value = value.detach().double() * count
            self._sums[name] = (total + value, clips + count)

    def averages(self):
        """Return the means of the values that the stage has accumulated.

        Returns
        -------
        dict of str to float
            Means over the clips of all processes, by name.

        Raises
        ------
        UnreadableAudio
            If no clip could be decoded, or no loss is finite.
        """
        sums = gather_sums(self._sums)
        if not sums:
            raise UnreadableAudio(
                "a part of the data has no usable clip: all are unreadable, "
                f"see {self.unreadable_file}, or have a loss that is not "
                f"finite, see {self.nonfinite_file}"
            )
        return {k: total / max(n, 1.0) for k, (total, n) in sums.items()}

    def log_epoch(self, epoch, train, valid):
        """Write an epoch to the logs, and draw the curves.

        Arguments
        ---------
        epoch : int
            Number of the epoch, from 1.
        train, valid : dict of str to float
            Statistics of the two stages.
        """
        group = self.optimizer.param_groups[-1]
        meta = {
            "epoch": epoch,
            "step": self.optimizer_step,
            "lr": group["lr"] / group["lr_scale"],
        }
        # All processes must call `log_stats`, since it broadcasts.
        self.train_logger.log_stats(
            stats_meta=meta,
            train_stats=readable(train),
            valid_stats=readable(valid) or None,
        )
        if if_main_process():
            self.epoch_log.write(meta, train, valid)
            if time.time() - self._last_picture > SECONDS_BETWEEN_PICTURES:
                self.draw()
                self._last_picture = time.time()

    def epochs_text(self):
        """Return the epoch of the weights and the number of epochs (str)."""
        counter = self.hparams.epoch_counter
        return f"{counter.current} of {counter.limit}"

    def log_rows(self):
        """Return the logged epochs; see `read_log`."""
        return read_log(self.output_folder)

    def draw(self):
        """Draw pictures of the training: the curves by default."""
        if if_main_process():
            draw_curves(self.output_folder)

    def check_audio(self):
        """Raise if too many files turned out to be unreadable.

        Raises
        ------
        ManifestError
            If the fraction of unreadable files is above ``max_unreadable``.
        """
        # Other processes may still be reading and listing their clips.
        ddp_barrier()
        limit = self.hparams.max_unreadable
        count = self._count_unreadable(self.n_files, limit)
        if count > self.n_unreadable:
            logger.warning(
                f"{count - self.n_unreadable} more files could not be decoded "
                f"and were left out; listed in {self.unreadable_file}"
            )
        self.n_unreadable = count

    def _count_unreadable(self, n_files, limit):
        if not self.unreadable_file.is_file():
            return 0
        return check_unreadable(self.unreadable_file, n_files, limit)

    # Checkpoints ----------------------------------------------------------

    def _should_save_intra_epoch_ckpt(self, *args):
        # A checkpoint contains no gradients: wait until a step uses them.
        is_used = self.step % self.grad_accumulation_factor == 0
        return is_used and super()._should_save_intra_epoch_ckpt(*args)

    def _save_intra_epoch_ckpt(self):
        # The main process saves, and takes over the sums of the others.
        sums = gather_sums(self._sums)
        self._sums = sums if if_main_process() else {}
        super()._save_intra_epoch_ckpt()

    @mark_as_saver
    def _save(self, path):
        state = {
            "step": self.step,
            "avg_train_loss": float(self.avg_train_loss),
            "optimizer_step": self.optimizer_step,
            "skipped": self._skipped,
            "n_processes": n_processes(),
            "sums": {k: [*map(float, v)] for k, v in self._sums.items()},
        }
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(state, file, sort_keys=False)

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        with open(path, encoding="utf-8") as file:
            state = yaml.safe_load(file)
        self.optimizer_step = state["optimizer_step"]
        self._n_processes_before = state["n_processes"]
        if not end_of_epoch:
            self.step = state["step"]
            self.avg_train_loss = state["avg_train_loss"]
            self._skipped = state["skipped"]
            sums = {k: tuple(v) for k, v in state["sums"].items()}
            self._sums = sums if if_main_process() else {}
