"""Messages of a run: its plan, the time left, and its result."""

import csv
import json
import logging
import os
import shlex
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.logger import get_logger

from ssast_lobes.checkpoints.format import CONFIG_FILE
from ssast_lobes.models.encoder import SpectrogramEncoder
from ssast_lobes.training.card import RESULT_FILE
from ssast_lobes.training.logs import read_log
from ssast_lobes.utils.chance import CHANCE
from ssast_lobes.utils.distributed import n_processes

logger = get_logger(__name__)

# SpeechBrain's messages at each start and epoch go to log.txt, not the screen.
_DETAILS = ("core", "utils.quirks", "utils.checkpoints", "utils.epoch_loop")
# Last words of the names of metrics that are fractions.
_FRACTIONS = ("accuracy", "eer", "f1", "mAP", "uar", "used", "wer")
# Hide the warning that TrainLogger cannot save figures: no run here saves any
# with it.
logging.getLogger("speechbrain.utils.train_logger").addFilter(
    lambda record: "torchvision" not in record.getMessage()
)


class Percentage(float):
    """A fraction that prints as a percentage, whatever the format.

    SpeechBrain's loggers thus keep the number, but print a percentage.

    Example
    -------
    >>> f"{Percentage(0.83):.2e}", Percentage(0.83) + 0
    ('83.0 %', 0.83)
    """

    def __format__(self, spec):
        """Return the percentage with one decimal."""
        return f"{100 * self:.1f} %"


def readable(stats):
    """Return statistics, with fractions such as accuracies as percentages.

    Arguments
    ---------
    stats : dict of str to float
        Values by name, such as ``"accuracy"`` or ``"valid_accuracy"``.

    Returns
    -------
    dict of str to float

    Example
    -------
    >>> told = readable({"loss": 0.5, "accuracy": 0.83, "uar_chance": 0.25})
    >>> [f"{name} {value:.3g}" for name, value in told.items()]
    ['loss 0.5', 'accuracy 83.0 %', 'uar_chance 25.0 %']
    """
    return {
        name: Percentage(value)
        if name.removesuffix(CHANCE).rpartition("_")[2] in _FRACTIONS
        else value
        for name, value in stats.items()
    }


def duration(seconds):
    """Return a duration as text.

    Arguments
    ---------
    seconds : float

    Returns
    -------
    str

    Example
    -------
    >>> duration(8.2), duration(200), duration(7500), duration(200000)
    ('8 s', '3 min', '2 h 5 min', '2 d 7 h')
    """
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def block(title, rows):
    """Return aligned lines under a title, without entries that are None.

    Arguments
    ---------
    title : str
    rows : dict of str to str
        Values by name; None if unknown.

    Returns
    -------
    str

    Example
    -------
    >>> print(block("Run", {"steps": "12", "device": "cpu", "more": None}))
    Run
      steps   12
      device  cpu
    """
    known = {name: value for name, value in rows.items() if value is not None}
    width = max(map(len, known), default=0)
    lines = [f"  {name:<{width}}  {value}" for name, value in known.items()]
    return "\n".join([title, *lines])


class Progress:
    """Print the plan of a run and the time left.

    Arguments
    ---------
    brain : SpectrogramBrain
        A Brain that is ready to train, whether new or resumed.
    rows : dict of str to str
        Lines about the task; see `SpectrogramBrain.task`.
    """

    def __init__(self, brain, rows):
        self.brain = brain
        self.started = time.time()
        self.first_step = brain.optimizer_step
        total, counter = brain.total_steps, brain.hparams.epoch_counter
        steps = (
            f"{total:,} in {counter.limit} epochs of "
            f"{brain.batches_per_epoch:,} batches"
        )
        if self.first_step:
            steps += f"; resumes after step {self.first_step:,}"
        rows = {
            **rows,
            "model": _model(brain),
            "data": _data(brain.clips),
            "steps": steps,
            "device": _device(torch.device(brain.device)),
            "precision": brain.precision,
            "results": brain.output_folder,
        }
        logger.info(block("This run", rows))

    def seconds_left(self):
        """Return the seconds that the remaining steps will take.

        Returns
        -------
        float or None
            None before the first step since this start of the run.
        """
        done = self.brain.optimizer_step - self.first_step
        if done == 0:
            return None
        pace = (time.time() - self.started) / done
        return pace * (self.brain.total_steps - self.brain.optimizer_step)

    def start_epoch(self):
        """Print the number of the epoch, and the time left."""
        brain, left = self.brain, self.seconds_left()
        limit = brain.hparams.epoch_counter.limit
        place = f"Epoch {brain.epoch} of {limit}"
        if brain.step:
            place += f", from batch {brain.step + 1}"
        if left is not None:
            place += f"; about {duration(left)} left"
        logger.info(place)


@contextmanager
def quiet():
    """Log SpeechBrain's messages of starts and epochs at debug level.

    The warning that SpeechBrain's collation raises in each loader worker is
    hidden too.

    Example
    -------
    >>> with quiet():
    ...     logging.getLogger("speechbrain.core").info("in log.txt only")
    """

    def lower(record):
        if record.levelno == logging.INFO:
            record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return True

    loggers = [logging.getLogger(f"speechbrain.{name}") for name in _DETAILS]
    for one in loggers:
        one.addFilter(lower)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")
            yield
    finally:
        for one in loggers:
            one.removeFilter(lower)


def log_end(folder, export_folder):
    """Print the result of a run, its files, and the next command.

    Arguments
    ---------
    folder : str or os.PathLike
        Output folder of the run.
    export_folder : str or os.PathLike
        Folder with the exported model.
    """
    folder, export = Path(folder), Path(export_folder)
    paths = {
        "log": folder / "log.txt",
        "curves": folder / "curves.png",
        "confusions": folder / "confusion_matrix.png",
        "model": export,
    }
    rows = {"result": _result(folder)}
    rows |= {name: path for name, path in paths.items() if path.exists()}
    logger.info(block("Finished", {**rows, **_next(folder, export)}))


def _next(folder, export):
    """Return commands to use next, quoted for a shell."""
    table = folder / "save" / "manifest.csv"
    if not table.is_file():
        return {}
    kind = json.loads((export / CONFIG_FILE).read_text("utf-8"))["kind"]
    if kind != "pretrained":
        # File names on Linux may contain bytes that are not UTF-8, which can be
        # written neither to log.txt nor to a screen.
        text = {"encoding": "utf-8", "errors": "surrogateescape"}
        with open(table, newline="", **text) as file:
            rows = csv.DictReader(file)
            clips = (row["path"] for row in rows if row["split"] == "test")
            clips = filter(str.isprintable, clips)
            # For clips in shards, name the table, which contains the addresses.
            clip = next(filter(os.path.isfile, clips), table)
        command = "events" if kind == "detector" else "classify"
        return {"next": _command(command, export, clip)}
    output = folder / "embeddings.npz"
    return {
        "next": _command("embed", export, table, "--output", output),
        "or": _command("finetune", "LABELS.csv", "--source", export),
    }


def _command(*words):
    return shlex.join(["ssast-lobes", *map(str, words)])


def _result(folder):
    """Return the metrics of the exported weights in one line."""
    path = folder / RESULT_FILE
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        parts = found["metrics"]
        # A recognizer is tested on several splits.
        if not all(isinstance(value, dict) for value in parts.values()):
            parts = {"test": parts}
        told = [f"{part}: {_told(one)}" for part, one in parts.items()]
        return f"{'; '.join(told)} (epoch {found['epoch']})"
    rows = read_log(folder)
    if not rows:
        return None
    best = rows[-1]
    if "valid_loss" in best:
        best = min(rows, key=lambda row: row["valid_loss"])
    stage = "valid" if "valid_loss" in best else "train"
    stats = {
        name.removeprefix(f"{stage}_"): value
        for name, value in best.items()
        if name.startswith(f"{stage}_")
    }
    return f"{stage}: {_told(stats)} (epoch {best['epoch']})"


def _told(stats):
    told = readable(stats).items()
    return ", ".join(f"{name} {value:.3g}" for name, value in told)


def _model(brain):
    """Return the size of the encoder and the number of parameters (str)."""
    parameters = list(brain.modules.parameters())
    n = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    told = f"{n / 1e6:.1f} M parameters"
    if f"{trained / 1e6:.1f}" != f"{n / 1e6:.1f}":
        told += f", {trained / 1e6:.1f} M of them trained"
    modules = brain.modules.modules()
    encoders = (m for m in modules if isinstance(m, SpectrogramEncoder))
    encoder = next(encoders, None)
    if encoder is None:
        return told
    config = encoder.config
    patch = " x ".join(map(str, config["grid"]["patch"]))
    kind = "" if config["blocks"] == "attention" else " Mamba"
    return (
        f"{config['depth']}{kind} blocks of {config['dim']}, patches {patch}; "
        f"{told}"
    )


def _data(clips):
    """Return the number of clips and the hours of train and valid (str)."""
    told = []
    for stage, rows in clips.items():
        if rows and stage != sb.Stage.TEST:
            # A long clip may have one row for each of its crops.
            seconds = {r["path"]: r["duration"] for r in rows.values()}
            seconds = sum(seconds.values())
            hours = f"{seconds / 3600:,.1f} h"
            length = hours if seconds >= 3600 else duration(seconds)
            told.append(f"{stage.name.lower()} {len(rows):,} clips, {length}")
    return "; ".join(told) or None


def _device(device):
    name = str(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif torch.get_num_threads() > 1 and _is_busy():
        # The threads of an operation wait for each other, so one that gets no
        # core stops all.
        name += (
            "; other programs use the cores: OMP_NUM_THREADS=1 may be faster"
        )
    return f"{n_processes()} x {name}" if n_processes() > 1 else name


def _is_busy():
    """Return whether more programs computed in the last minute than fit."""
    has_load = hasattr(os, "getloadavg")  # not on Windows
    return has_load and os.getloadavg()[0] > os.cpu_count()
