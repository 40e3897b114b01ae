"""Checkpoints that are written completely or not at all.

SpeechBrain's `Checkpointer` writes directly to the folder that recovery reads,
and writes the meta file first. A run that is killed during a save then cannot
resume. Here a checkpoint is written to a hidden folder, flushed to the disk,
and renamed once. It contains the checksums of its files. A damaged checkpoint
is reported, renamed and skipped.
"""

import hashlib
import logging
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    Checkpointer,
    ckpt_recency,
)
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

from ssast_lobes.checkpoints.tensors import load_refusal

logger = get_logger(__name__)


# Hidden, and without the prefix by which recovery finds checkpoints.
_PARTIAL_PREFIX = f".partial-{CKPT_PREFIX}"
_DELETED_PREFIX = f".deleted-{CKPT_PREFIX}"
_DAMAGED_PREFIX = f"damaged-{CKPT_PREFIX}"

# A replaced checkpoint keeps the prefix of checkpoints, so that it can be
# loaded until its successor is there.
_REPLACED_SUFFIX = "+replaced"

# In the format of the command sha256sum: `sha256sum -c SHA256SUMS` checks too.
_SUMS_FILE = "SHA256SUMS"
_BLOCK = 1 << 20


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written; the message names a fix."""


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, safe if the run is killed at any moment.

    It takes the arguments of `speechbrain.utils.checkpoints.Checkpointer`, and
    can replace it in any recipe. The files of a killed save are never listed,
    and the next save removes them. A damaged checkpoint is renamed to
    ``damaged-CKPT+...``, and the previous one is loaded. Checkpoints of
    SpeechBrain's own checkpointer have no checksums, and are not checked.

    Example
    -------
    >>> import torch
    >>> model = torch.nn.Linear(1, 1)
    >>> folder = getfixture("tmpdir")
    >>> checkpointer = AtomicCheckpointer(folder, {"model": model})
    >>> checkpoint = checkpointer.save_checkpoint(meta={"accuracy": 0.5})
    >>> checkpointer.recover_if_possible().meta["accuracy"]
    0.5
    """

    def __init__(
        self,
        checkpoints_dir,
        recoverables=None,
        custom_load_hooks=None,
        custom_save_hooks=None,
        allow_partial_load=False,
    ):
        # Only the first process writes; the parent class would make the folder
        # in all processes.
        super().__init__(
            checkpoints_dir if if_main_process() else os.curdir,
            recoverables,
            custom_load_hooks,
            custom_save_hooks,
            allow_partial_load,
        )
        self.checkpoints_dir = Path(checkpoints_dir)

    def save_checkpoint(
        self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        """Save a checkpoint; all processes of the run must call this.

        Arguments
        ---------
        meta : dict, optional
            Entries of the meta file, for example the validation metric.
        end_of_epoch : bool
            Whether the epoch is over.
        name : str, optional
            Name instead of the time. An older checkpoint of the same name is
            replaced as soon as the new one is complete.
        verbosity : int
            Logging level of the message.

        Returns
        -------
        Checkpoint or None
            The saved checkpoint; None on all processes but the main one.

        Raises
        ------
        CheckpointError
            If it cannot be written, for example because the disk is full. The
            earlier checkpoints do not change, and this one leaves no files.
        """
        if if_main_process():
            self._remove_leftovers()
        with self._writing():
            # The parent class would log the hidden folder: log nothing.
            partial = super().save_checkpoint(
                meta or {}, end_of_epoch, name, verbosity=logging.NOTSET
            )
        # Some saver may run on every process and still be writing.
        ddp_barrier()
        saved = None
        if if_main_process():
            with self._writing():
                saved = self._publish(partial)
            logger.log(verbosity, f"Saved a checkpoint in {saved.path}")
        # No process may look for the checkpoint before it is there.
        ddp_barrier()
        return saved

    def save_and_keep_only(self, *args, importance_keys=(), **kwargs):
        """Save a checkpoint, then delete the least important ones.

        The parent class extends its own default list of importance keys at each
        call. It then ignores a later `keep_recent=False`, and each save
        searches the folder more often. A new list at each call avoids both.

        Arguments
        ---------
        *args : tuple
            As for the parent, up to `keep_recent`.
        importance_keys : sequence of callable
            As for the parent.
        **kwargs : dict
            As for the parent.
        """
        super().save_and_keep_only(
            *args, importance_keys=list(importance_keys), **kwargs
        )

    def delete_checkpoints(
        self,
        *,
        num_to_keep=1,
        min_keys=None,
        max_keys=None,
        importance_keys=(ckpt_recency,),
        ckpt_predicate=None,
        verbosity=logging.INFO,
    ):
        """Delete all but the most important checkpoints, each in one step.

        If a deletion of the parent class is killed, it leaves a folder without
        some of its files, which looks like a damaged checkpoint.

        Arguments
        ---------
        num_to_keep : int
            How many to keep in each order of importance.
        min_keys, max_keys : list of str, optional
            Entries of the meta whose lowest and highest values are important.
        importance_keys : sequence of callable
            Further orders: functions of a checkpoint whose highest values are
            important.
        ckpt_predicate : callable, optional
            Which checkpoints may be deleted; all by default.
        verbosity : int
            Logging level of the messages.
        """
        orders = [{"min_key": key} for key in min_keys or ()]
        orders += [{"max_key": key} for key in max_keys or ()]
        orders += [{"importance_key": key} for key in importance_keys]
        known, kept = {}, set()
        for order in orders:
            found = self.find_checkpoints(
                **order, ckpt_predicate=ckpt_predicate
            )
            known |= {checkpoint.path: checkpoint for checkpoint in found}
            kept |= {checkpoint.path for checkpoint in found[:num_to_keep]}
        # No process may still be reading a deleted checkpoint.
        ddp_barrier()
        if if_main_process():
            for path in known.keys() - kept:
                _discard(path)
                logger.log(verbosity, f"Deleted checkpoint in {path}")
        ddp_barrier()

    def recover_if_possible(self, *args, **kwargs):
        """Load the newest or the best of the undamaged checkpoints.

        Arguments
        ---------
        *args, **kwargs
            Arguments of the parent that choose the checkpoint; by default, the
            newest one is loaded.

        Returns
        -------
        Checkpoint or None
            The loaded checkpoint; None if there is none yet.

        Raises
        ------
        CheckpointError
            If all checkpoints are damaged, or the chosen one does not fit the
            recoverables.
        """
        if if_main_process():
            self._put_damaged_aside()
        ddp_barrier()
        found = super().recover_if_possible(*args, **kwargs)
        damaged = sorted(self.checkpoints_dir.glob(f"{_DAMAGED_PREFIX}*"))
        if found is None and damaged:
            raise CheckpointError(
                "no checkpoint is left to resume from: "
                + "; ".join(f"{path}: {_damage(path)}" for path in damaged)
                + ". To start from the beginning, delete these folders or "
                "choose another output_folder"
            )
        return found

    def load_checkpoint(self, checkpoint):
        """Load a checkpoint into the recoverables.

        Arguments
        ---------
        checkpoint : Checkpoint
            From `find_checkpoint`.

        Raises
        ------
        CheckpointError
            If it lacks the state of a recoverable, or the state does not fit.
        """
        missing = sorted(
            name for name in self.recoverables if self._lacks(checkpoint, name)
        )
        if missing:
            raise CheckpointError(
                f"{checkpoint.path} holds no state for "
                f"{', '.join(missing)}. {_what_to_do(checkpoint)}"
            )
        try:
            super().load_checkpoint(checkpoint)
        except Exception as error:
            refusal = load_refusal(error)
            raise CheckpointError(
                f"{checkpoint.path} cannot be resumed: {refusal or error}\n"
                f"{_what_to_do(checkpoint)}"
            ) from (None if refusal else error)

    def _lacks(self, checkpoint, name):
        # SpeechBrain skips a missing data loader with a warning.
        return not (
            name in checkpoint.paramfiles
            or self.allow_partial_load
            or self.optional_recoverables.get(name)
            or "dataloader" in name
        )

    def _new_checkpoint_dirpath(self):
        return _hidden(super()._new_checkpoint_dirpath())

    def _custom_checkpoint_dirpath(self, name):
        return _hidden(super()._custom_checkpoint_dirpath(name))

    @contextmanager
    def _writing(self):
        """Say where writing fails, and why."""
        try:
            yield
        # PyTorch's writer raises RuntimeError if the disk is full.
        except (OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            free = shutil.disk_usage(self.checkpoints_dir).free / 2**20
            if if_main_process():
                self._remove_leftovers()
            raise CheckpointError(
                f"{self.checkpoints_dir}: no checkpoint can be written "
                f"({reason}; {free:.0f} MiB are free there). Free disk space "
                "if it is full, and rerun the command: it resumes from the "
                "last checkpoint"
            ) from error

    def _put_damaged_aside(self):
        for path in sorted(self.checkpoints_dir.glob(f"{CKPT_PREFIX}+*")):
            damage = _damage(path) if path.is_dir() else None
            if damage is not None:
                aside = path.with_name(
                    _DAMAGED_PREFIX + path.name[len(CKPT_PREFIX) :]
                )
                _discard(aside)
                os.replace(path, aside)
                logger.warning(
                    f"The checkpoint {path} is damaged ({damage}). It is "
                    f"skipped, and kept as {aside.name}"
                )

    def _publish(self, partial):
        path = self.checkpoints_dir / _visible_name(partial.path)
        _write_sums(partial.path)
        _sync_tree(partial.path)
        replaced = path.with_name(path.name + _REPLACED_SUFFIX)
        if path.exists():
            _discard(replaced)
            os.replace(path, replaced)
        os.replace(partial.path, path)
        _sync(self.checkpoints_dir)
        _discard(replaced)
        paramfiles = {
            name: path / file.name for name, file in partial.paramfiles.items()
        }
        return Checkpoint(path, partial.meta, paramfiles)

    def _remove_leftovers(self):
        for path in self.checkpoints_dir.iterdir():
            if path.name.startswith((_PARTIAL_PREFIX, _DELETED_PREFIX)):
                shutil.rmtree(path)
                logger.info(f"Removed what a killed run has left: {path}")


def _hidden(path):
    return path.with_name(_PARTIAL_PREFIX + path.name[len(CKPT_PREFIX) :])


def _visible_name(path):
    return CKPT_PREFIX + path.name[len(_PARTIAL_PREFIX) :]


def _discard(path):
    # Rename first: a half-deleted folder must not look like a checkpoint.
    if path.exists():
        hidden = path.with_name(f"{_DELETED_PREFIX}{path.name}")
        os.replace(path, hidden)
        shutil.rmtree(hidden)


def _files(folder):
    """Return the files of a checkpoint by name, without the checksums."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _SUMS_FILE
    }


def _sum(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _write_sums(folder):
    lines = [f"{_sum(path)}  {name}\n" for name, path in _files(folder).items()]
    (folder / _SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def _damage(folder):
    """Return what is wrong with the files of a checkpoint, or None."""
    files = _files(folder)
    if METAFNAME not in files:
        return f"{METAFNAME} is missing"
    if not (folder / _SUMS_FILE).is_file():
        return _unreadable_meta(files[METAFNAME])
    lines = (folder / _SUMS_FILE).read_text("utf-8", "replace").splitlines()
    sums = {
        name: value for value, _, name in (x.partition("  ") for x in lines)
    }
    expected = {METAFNAME} | {x for x in files if x.endswith(PARAMFILE_EXT)}
    problems = [f"{name} is missing" for name in sums if name not in files]
    problems += [
        f"{_SUMS_FILE} does not have {name}"
        for name in sorted(expected - sums.keys())
    ]
    problems += [
        f"{name}, {files[name].stat().st_size} bytes, is not as it was written"
        for name in sums
        if name in files and _sum(files[name]) != sums[name]
    ]
    return ", ".join(problems) or _unreadable_meta(files[METAFNAME])


def _unreadable_meta(path):
    try:
        meta = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        return f"{METAFNAME} is unreadable: {' '.join(str(error).split())}"
    known = isinstance(meta, dict) and {"unixtime", "end-of-epoch"} <= set(meta)
    return None if known else f"{METAFNAME} is not that of a checkpoint"


def _what_to_do(checkpoint):
    return (
        "It was saved by a run with other settings or another version, or is "
        "damaged. Train with the settings it was saved with, or start anew in "
        f"another output_folder; to resume from an earlier checkpoint of "
        f"{checkpoint.path.parent}, delete this one."
    )


def _sync_tree(folder):
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync(os.path.join(parent, name))
        _sync(parent)


def _sync(path):
    if os.name == "nt":
        return  # Windows flushes neither folders nor files opened to read.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
