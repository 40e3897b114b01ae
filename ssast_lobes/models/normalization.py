"""Mean and standard deviation of spectrograms: normalize and measure."""

from pathlib import Path

import torch
import yaml

from ssast_lobes.models.filterbank import ExactBuffers
from ssast_lobes.utils.checks import real, reals, require
from ssast_lobes.utils.lengths import length_to_mask
from ssast_lobes.utils.presets import load_preset


class SpectrogramNorm(ExactBuffers):
    """Fixed normalization ``(x - mean) / (2 * std)``, which keeps padding at 0.

    Arguments
    ---------
    mean : float or list of float
        Mean of the log-mel energies over the valid frames of a data set, or
        the mean of each mel bin.
    std : float or list of float
        Standard deviation of the same energies. A value of a list may be
        negative, for a batch norm with a negative weight.

    Raises
    ------
    ValueError
        If `std` is a number that is not positive, or a list with a 0.

    Example
    -------
    >>> norm = SpectrogramNorm(mean=1.0, std=2.0)
    >>> norm(torch.full((1, 2, 1), 5.0), torch.tensor([1])).flatten().tolist()
    [1.0, 0.0]
    """

    def __init__(self, mean, std):
        super().__init__()
        if isinstance(mean, list | tuple):
            self.mean = list(reals("mean", mean, count=None))
            self.std = list(reals("std", std, count=len(mean)))
            require(0 not in self.std, "std", "a list without 0", std)
            self.register_buffer("means", torch.tensor(mean), persistent=False)
            self.register_buffer("stds", torch.tensor(std), persistent=False)
            return
        self.mean = float(real("mean", mean))
        self.std = float(real("std", std, 0, inside=True))
        self.means, self.stds = self.mean, self.std

    @classmethod
    def from_preset(cls, name):
        """Build the normalization with the official statistics of a data set.

        Arguments
        ---------
        name : str
            A file of ``hparams/features/``: ``"audioset"``, ``"esc50"``,
            ``"speechcommands"`` or ``"maskspec"``.

        Returns
        -------
        SpectrogramNorm

        Example
        -------
        >>> SpectrogramNorm.from_preset("audioset").mean
        -4.2677393
        """
        return cls(**load_preset("features", name))

    @property
    def silence(self):
        """The normalized value of a raw log-mel energy of 0.

        It is the padding of the official code, which pads before it normalizes.
        """
        return -self.means / (2 * self.stds)

    def forward(self, feats, n_frames=None):
        """Normalize a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Log-mel energies (B, T, M).
        n_frames : torch.Tensor, optional
            Valid frames (B,); by default all are valid.

        Returns
        -------
        torch.Tensor
            Normalized features (B, T, M), 0 at padding.
        """
        feats = (feats - self.means) / (2 * self.stds)
        if n_frames is None:
            return feats
        return feats * length_to_mask(n_frames, feats.shape[1])[:, :, None]


def read_statistics(name):
    """Read mean and standard deviation from a preset or a YAML file.

    Arguments
    ---------
    name : str
        A file of ``hparams/features/``, or the path of a YAML file with the
        keys ``mean`` and ``std``.

    Returns
    -------
    dict
        ``{"mean": .., "std": ..}`` with floats. A preset may contain lists of
        one value for each mel bin.

    Raises
    ------
    ValueError
        If there is no such preset or file, or if the file does not contain both
        numbers.

    Example
    -------
    >>> read_statistics("audioset")["std"]
    4.5689974
    """
    if not name.endswith((".yaml", ".yml")):
        return load_preset("features", name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"{name}: no such statistics file")
    try:
        numbers = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {key: float(numbers[key]) for key in ("mean", "std")}
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name}: expected the keys 'mean' and 'std' with numbers "
            f"({reason})"
        ) from error


class RunningStatistics:
    """Mean and standard deviation of log-mel energies, in float64.

    `update` adds a batch of raw features; only valid frames count.

    Example
    -------
    >>> stats = RunningStatistics()
    >>> stats.update(torch.tensor([[[1.0], [3.0], [99.0]]]), torch.tensor([2]))
    >>> stats.mean, stats.std
    (2.0, 1.0)
    """

    def __init__(self):
        self.count = 0
        self.total = 0.0
        self.squares = 0.0

    def update(self, feats, n_frames):
        """Add a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Log-mel energies (B, T, M).
        n_frames : torch.Tensor
            Valid frames (B,).
        """
        is_frame = length_to_mask(n_frames, feats.shape[1])[:, :, None]
        values = torch.where(is_frame, feats, 0.0).double()
        self.count += int(n_frames.sum()) * feats.shape[2]
        self.total += float(values.sum())
        self.squares += float(values.square().sum())

    @property
    def mean(self):
        """Mean over all valid frames and mel bins so far."""
        self._require_audio()
        return self.total / self.count

    @property
    def std(self):
        """Population standard deviation so far."""
        variance = self.squares / self._require_audio() - self.mean**2
        return max(variance, 0.0) ** 0.5

    def _require_audio(self):
        if self.count == 0:
            raise ValueError("no audio frame was given: nothing to average")
        return self.count
