"""Logs of a run: metrics.jsonl, TensorBoard, and the curves."""

import json
from pathlib import Path

from ssast_lobes.utils.files import filename_in_errors
from ssast_lobes.utils.plots import plot_training_curves

LOG_FILE = "metrics.jsonl"


def read_log(folder):
    """Return the logged epochs of a run; a repeated epoch counts once.

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


def draw_curves(folder):
    """Draw the logged epochs of a run to ``curves.png``, if there are any.

    Arguments
    ---------
    folder : str or os.PathLike
        Output folder of the run.

    Example
    -------
    >>> draw_curves(getfixture("tmpdir"))
    """
    rows = [
        {key: value for key, value in row.items() if key != "step"}
        for row in read_log(folder)
    ]
    if rows:
        plot_training_curves(rows, Path(folder) / "curves.png")


class EpochLog:
    """Write the statistics of each epoch; use it only on the main process.

    Arguments
    ---------
    folder : str or os.PathLike
        Output folder of the run.
    use_tensorboard : bool
        Whether to write to ``events`` in this folder too.

    Raises
    ------
    ImportError
        If TensorBoard is requested but not installed.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> EpochLog(folder).write({"epoch": 1}, {"loss": 2.0}, {})
    >>> read_log(folder)
    [{'epoch': 1, 'train_loss': 2.0}]
    """

    def __init__(self, folder, use_tensorboard=False):
        self.path = Path(folder) / LOG_FILE
        self.writer = None
        if use_tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    "use_tensorboard needs TensorBoard: pip install tensorboard"
                ) from error
            self.writer = SummaryWriter(Path(folder) / "events")

    def write(self, meta, train, valid):
        """Write one epoch.

        Arguments
        ---------
        meta : dict of str to float
            Contains ``epoch``. TensorBoard also needs ``lr``.
        train, valid : dict of str to float
            Statistics of the two stages.
        """
        stages = {"train": train, "valid": valid}
        if self.writer is not None:
            self.writer.add_scalar("lr", meta["lr"], meta["epoch"])
            for stage, stats in stages.items():
                for key, value in stats.items():
                    name = f"{key}/{stage}"
                    self.writer.add_scalar(name, value, meta["epoch"])
            self.writer.flush()
        row = dict(meta)
        for stage, stats in stages.items():
            row.update({f"{stage}_{key}": v for key, v in stats.items()})
        with filename_in_errors(self.path), open(self.path, "a+b") as file:
            # Replace a last line that a full disk or a kill has cut short.
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(f"{json.dumps(row)}\n".encode())
