"""What pretraining and classification share: steps, logs, checkpoints.

SpeechBrain's `Brain` with some things mended (it clips the first parameter
group only, drops the tail of an epoch under gradient accumulation, saves amid
an accumulation, steps where the loss is not finite, and knows no schedule by
step), and with randomness that is a function of its place, so that a resumed
run equals an uninterrupted one.
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
    ddp_barrier,
    if_main_process,
    is_distributed_initialized,
)
from speechbrain.utils.logger import get_logger
from torch.nn.parallel import DistributedDataParallel

from ssast_lobes.dataio.dataset import collate
from ssast_lobes.dataio.samplers import cuda_loading, share_loading
from ssast_lobes.dataio.scan import check_unreadable
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.training.batches import SkipUndecodable
from ssast_lobes.training.errors import NonfiniteLoss, SettingsError
from ssast_lobes.training.memory import keep_freed_memory
from ssast_lobes.utils.distributed import gather_in_turn, n_processes
from ssast_lobes.utils.files import append_row, filename_in_errors
from ssast_lobes.utils.plots import plot_training_curves
from ssast_lobes.utils.random import place_seed
from ssast_lobes.utils.schedules import (
    WarmupPlateau,
    apply_learning_rate,
    apply_weight_decay,
)

logger = get_logger(__name__)

LOG_FILE = "metrics.jsonl"

# Pictures while training: not more often than this.
SECONDS_BETWEEN_PICTURES = 60

# Shapes that compiled code may meet; PyTorch's own limit is 8.
RECOMPILE_LIMIT = 64


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


def read_log(folder):
    """The logged epochs of a run; one that is logged again counts once.

    Arguments
    ---------
    folder : str or os.PathLike
        Output folder of the run.

    Returns
    -------
    list of dict
        In the order of the epochs; empty if nothing is logged yet.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> lines = '{"epoch": 1, "lr": 2}\\n{"epoch": 1, "lr": 3}\\n'
    >>> folder.join("metrics.jsonl").write(lines)
    >>> read_log(folder)
    [{'epoch': 1, 'lr': 3}]
    """
    path, rows = Path(folder) / LOG_FILE, {}
    if path.is_file():
        # A full disk or a kill may have cut the last line short.
        whole = path.read_text("utf-8").rpartition("\n")[0]
        for line in whole.splitlines():
            row = json.loads(line)
            rows[row["epoch"]] = row
    return [rows[epoch] for epoch in sorted(rows)]


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

    Reads from ``hparams`` what every recipe has: ``seed``, ``epoch_counter``,
    ``output_folder`` and ``max_unreadable``.

    A step whose loss or gradients are not finite in any process is skipped in
    all of them: weights, optimizer, teacher and running statistics stay, and
    so do the averages. Its clips are listed in ``nonfinite.csv`` of the output
    folder. More than ``nonfinite_patience`` such steps in an epoch
    (SpeechBrain's run option, or a key of ``hparams``; 3 by default) end the
    run. Clips of evaluated batches are listed too, and do not count.

    Arguments
    ---------
    modules, opt_class, hparams, run_opts, checkpointer
        As for SpeechBrain's `Brain`; all but `run_opts` are needed. The
        learning rate is that of the optimizer.
    schedule : callable
        (step, total steps) -> factor of the learning rate, such as
        `ssast_lobes.utils.schedules.WarmupCosine`.
    weight_decay_schedule : callable, optional
        (step, total steps) -> weight decay; that of the optimizer stays when
        left out.
    train_logger : speechbrain.utils.train_logger.TrainLogger
        Told the statistics of each epoch.
    use_tensorboard : bool
        Whether TensorBoard is told too, in ``<output_folder>/events``.
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
        *,
        schedule,
        train_logger,
        weight_decay_schedule=None,
        use_tensorboard=False,
        readers=(),
        n_files=0,
    ):
        hparams = one_interval(hparams, run_opts)
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        self.schedule = schedule
        self.weight_decay_schedule = weight_decay_schedule
        self.train_logger = train_logger
        self.readers = readers
        self.epoch = 0
        self.batches_per_epoch = None
        self._sums = {}
        self._kept = []
        # Of the batches of a step, and of what there was before them.
        self._group = []
        self._before = None
        self._skipped = 0
        # Of the checkpoint that was loaded.
        self._n_processes_before = None
        self._clips = {}
        self._last_picture = 0.0
        # From the command line it comes as text.
        if self.optimizer_step_limit is not None:
            self.optimizer_step_limit = int(self.optimizer_step_limit)
        if self.debug:
            counter = self.hparams.epoch_counter
            counter.limit = min(counter.limit, self.debug_epochs)
        self.output_folder = Path(self.hparams.output_folder)
        self.unreadable_file = self.output_folder / "unreadable.csv"
        self.nonfinite_file = self.output_folder / "nonfinite.csv"
        self.n_unreadable = self._count_unreadable(n_files=1, share=math.inf)
        self.n_files = n_files + self.n_unreadable
        self.writer = None
        if use_tensorboard and if_main_process():
            self.writer = _tensorboard(self.output_folder / "events")
        self.log_file = self.output_folder / LOG_FILE

    # Steps ----------------------------------------------------------------

    def make_dataloader(self, dataset, stage, *args, **kwargs):
        """Make a loader; that of training tells how long an epoch is.

        Of several processes each evaluates a share of the batches.
        """
        training = stage == sb.Stage.TRAIN
        self._clips[stage] = getattr(dataset, "data", {})
        if not training and self.distributed_launch:
            kwargs = share_loading(dataset, kwargs, self.rank, n_processes())
        if torch.device(self.device).type == "cuda":
            kwargs = cuda_loading(kwargs)
        kwargs["collate_fn"] = SkipUndecodable(
            kwargs.get("collate_fn", collate), dataset if training else None
        )
        loader = super().make_dataloader(dataset, stage, *args, **kwargs)
        if training:
            if self.distributed_launch:
                # SpeechBrain shuffles alike whatever the seed.
                self.train_sampler.seed = self.hparams.seed
                if kwargs.get("batch_sampler") is not None:
                    # Batches of like length stay in the same step.
                    self.train_sampler.shuffle = False
            else:
                # SpeechBrain tells only its own samplers the epoch.
                own = kwargs.get("batch_sampler") or kwargs.get("sampler")
                self.train_sampler = own or self.train_sampler
            self.batches_per_epoch = len(loader)
            if self.debug:
                self.batches_per_epoch = min(len(loader), self.debug_batches)
        return loader

    def on_fit_start(self):
        """Resume; a run that has taken all its steps has no epoch left."""
        if self.compile or self.compile_module_keys:
            # Each length has code of its own, and so have last batches and
            # evaluation; beyond the limit PyTorch runs uncompiled.
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        super().on_fit_start()
        self._check_processes()
        if torch.device(self.device).type == "cpu":
            keep_freed_memory()
        if self._optimizer_step_limit_exceeded and self.step == 0:
            counter = self.hparams.epoch_counter
            counter.limit = counter.current

    def _check_processes(self):
        """Raise where the rest of a resumed epoch would have other clips."""
        before, now = self._n_processes_before, n_processes()
        if before in (None, now):
            return
        if self.step > 0:
            raise SettingsError(
                f"{self.output_folder} was stopped within an epoch of "
                f"{before} processes, each of which took its share of it: "
                f"resume with {before} processes, not {now}"
            )
        logger.info(
            f"Resuming with {now} processes after {before}: from here on a "
            f"step has {now / before:g} times as many clips"
        )

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
            if isinstance(self.schedule, WarmupPlateau):
                self.checkpointer.add_recoverable("schedule", self.schedule)

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
        if (self.step - 1) % factor == 0:
            buffers = [buffer.clone() for buffer in self.modules.buffers()]
            self._before = dict(self._sums), buffers
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            # A loss that is not finite makes all gradients so, and DDP those
            # of all processes, which thus agree without asking each other.
            spoilt = torch.where(loss.isfinite(), 1.0, math.nan)
            self.scaler.scale(loss * spoilt / group).backward()
        value = loss.detach().float()
        if should_step:
            # The one time in a step that the device is waited for.
            value, norm = torch.stack([value, self.clip_gradients()]).cpu()
        self._group.append((batch.id, value))
        stepped = should_step and self._step_or_skip(norm)
        self.on_fit_batch_end(batch, outputs, loss, stepped)
        return value.cpu()

    def clip_gradients(self):
        """Clip all groups together.

        Returns
        -------
        torch.Tensor
            Norm of all gradients before, () float32.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        ]
        limit = self.max_grad_norm if self.max_grad_norm > 0 else math.inf
        return torch.nn.utils.clip_grad_norm_(parameters, limit).float()

    def optimizers_step(self):
        """Set rate and weight decay, step."""
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
        """Step if the gradients are finite; tells whether it did."""
        group, self._group = self._group, []
        if torch.isfinite(norm):
            self.optimizers_step()
            return True
        bad = [(ids, loss) for ids, loss in group if not loss.isfinite()]
        anywhere = any(gather_in_turn([bool(bad)]))
        if self.scaler.is_enabled() and not anywhere:
            # Scaled too much for fp16: the scaler skips it, and scales less.
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
                f"{self.output_folder}, is from before: remove bad clips, "
                "lower lr, or raise nonfinite_patience, and start again"
            )
        return False

    def _list_nonfinite(self, batches, stage):
        """Write down the clips of batches, (ids, loss) each."""
        clips = self._clips.get(stage, {})
        for ids, loss in batches:
            for clip in ids:
                path = clips.get(clip, {}).get("path", "")
                place = stage.name.lower(), self.epoch, self.step
                row = path, clip, *place, f"{float(loss):g}"
                append_row(self.nonfinite_file, row)

    # Evaluation -----------------------------------------------------------

    def network(self, name, stage):
        """A module as a stage calls it: in evaluation without DDP.

        A call of DDP waits for the other processes, which may have fewer
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
        """Evaluate a batch; nothing if not one of its clips was decoded."""
        # A batch without clips has its turn too, which keeps the order.
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
        """Keep something of the batch that is evaluated; see `evaluated`.

        Arguments
        ---------
        **values
            By name; tensors are moved to the CPU.
        """
        self._kept[-1].update(
            (name, value.cpu() if torch.is_tensor(value) else value)
            for name, value in values.items()
        )

    def evaluated(self):
        """What was kept of the evaluated batches, of all the processes.

        Returns
        -------
        list of dict
            In the order of one process; for each batch of which any clip was
            decoded.
        """
        return [values for values in gather_in_turn(self._kept) if values]

    # Logs -----------------------------------------------------------------

    def on_stage_start(self, stage, epoch=None):
        """Tell the readers the epoch; start sums anew."""
        self.epoch = epoch or 0
        for reader in self.readers:
            reader.epoch = self.epoch
        self._kept = []
        if stage != sb.Stage.TRAIN or self.step == 0:
            self._sums = {}
        if stage == sb.Stage.TRAIN and self.step == 0:
            self._skipped = 0

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
                f"decoded, see {self.unreadable_file}, and gives a finite "
                f"loss, see {self.nonfinite_file}"
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
        self.train_logger.log_stats(
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
        _append_line(self.log_file, json.dumps(row))
        if time.time() - self._last_picture > SECONDS_BETWEEN_PICTURES:
            self.draw()
            self._last_picture = time.time()

    def _learning_rate(self):
        """That of the last step, before the scale of any group."""
        group = self.optimizer.param_groups[-1]
        return group["lr"] / group["lr_scale"]

    def log_rows(self):
        """The logged epochs, see `read_log`."""
        return read_log(self.output_folder)

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
        # Not before all processes have read their share.
        ddp_barrier()
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
            "skipped": self._skipped,
            "n_processes": n_processes(),
            "sums": sums,
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


def _append_line(path, line):
    """Append to a text, in place of a last line that was cut short."""
    with filename_in_errors(path), open(path, "a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(f"{line}\n".encode())


def _tensorboard(folder):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "use_tensorboard needs TensorBoard: pip install tensorboard"
        ) from error
    return SummaryWriter(folder)
