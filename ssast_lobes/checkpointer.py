"""Checkpoints that are written whole or not at all.

SpeechBrain's `Checkpointer` writes into the folder that recovery looks at,
its meta file first: a run killed in mid-save then cannot resume. Here a
checkpoint grows in a hidden folder beside, reaches the disk, and appears under
its name by one rename.
"""

import logging
import os
import shutil

from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    Checkpoint,
    Checkpointer,
)
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

# Hidden, and without the prefix by which recovery finds checkpoints.
_PARTIAL_PREFIX = f".partial-{CKPT_PREFIX}"
# Still has that prefix: until its successor is in place, it is the checkpoint.
_REPLACED_SUFFIX = "+replaced"


class CheckpointError(RuntimeError):
    """A checkpoint does not fit what is to be resumed; says what to do."""


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, safe against being killed at any moment.

    The arguments are those of `speechbrain.utils.checkpoints.Checkpointer`,
    and it takes its place in any recipe. What a killed save has left is never
    listed, and removed at the next save.

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

    def save_checkpoint(
        self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        """Save a checkpoint, on every process of the run.

        Arguments
        ---------
        meta : dict, optional
            What to note in the meta file, for example the validation metric.
        end_of_epoch : bool
            Whether the epoch is over.
        name : str, optional
            Name instead of the time. A checkpoint saved again under the same
            name replaces the older one once it is whole.
        verbosity : int
            Logging level of the message.

        Returns
        -------
        Checkpoint or None
            The saved checkpoint; None on other than the main process.
        """
        if if_main_process():
            self._remove_leftovers()
        # The parent would report the hidden folder: it logs at no level.
        partial = super().save_checkpoint(
            meta or {}, end_of_epoch, name, verbosity=logging.NOTSET
        )
        # Some saver may run on every process and still be writing.
        ddp_barrier()
        saved = None
        if if_main_process():
            saved = self._publish(partial)
            logger.log(verbosity, f"Saved a checkpoint in {saved.path}")
        # No process may look for the checkpoint before it is there.
        ddp_barrier()
        return saved

    def save_and_keep_only(self, *args, importance_keys=(), **kwargs):
        """Save a checkpoint, then delete the least important ones.

        The parent adds to its own default list of importance keys each time:
        a later `keep_recent=False` is not heeded, and each save searches the
        folder more often than the one before. A fresh list mends both.

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

    def load_checkpoint(self, checkpoint):
        """Load a checkpoint into the recoverables.

        Arguments
        ---------
        checkpoint : Checkpoint
            As `find_checkpoint` gives it.

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
            raise CheckpointError(
                f"{checkpoint.path} cannot be resumed: {error}\n"
                f"{_what_to_do(checkpoint)}"
            ) from error

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

    def _publish(self, partial):
        path = self.checkpoints_dir / _visible_name(partial.path)
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
            half_saved = path.name.startswith(_PARTIAL_PREFIX)
            # The meta file goes with the rest when a deletion is killed.
            half_deleted = (
                path.name.startswith(f"{CKPT_PREFIX}+")
                and path.is_dir()
                and not (path / METAFNAME).exists()
            )
            if half_saved or half_deleted:
                shutil.rmtree(path)
                logger.info(f"Removed what a killed run has left: {path}")


def _hidden(path):
    return path.with_name(_PARTIAL_PREFIX + path.name[len(CKPT_PREFIX) :])


def _visible_name(path):
    return CKPT_PREFIX + path.name[len(_PARTIAL_PREFIX) :]


def _discard(path):
    # Out of sight first: half a deletion must not look like a checkpoint.
    if path.exists():
        hidden = _hidden(path)
        os.replace(path, hidden)
        shutil.rmtree(hidden)


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
