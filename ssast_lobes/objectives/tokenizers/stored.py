"""Ids read from files, such as EnCodec's in MERT."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ssast_lobes.objectives.tokenizers.spectral import token_times
from ssast_lobes.utils.checks import ArgumentError, real, whole
from ssast_lobes.utils.files import write_json

CONFIG_FILE = "codes.json"
# This many ids may be missing at a clip's end, since codecs round differently.
_MISSING = 2


class StoredTokenizer(nn.Module):
    """Read the ids of tokens from files, such as those of a codec.

    MERT (Li et al., ICLR 2024) predicts the eight codebooks of EnCodec. A token
    gets the id at its middle. The time of this middle in the file follows from
    the start of the crop. Augmentation must not move sounds in time, as a
    change of speed does, since the ids would not follow.

    The folder contains a file for each clip, ``ID.npy``, where ID is the id of
    the clip's row in the table. The file contains whole numbers (times,
    n_books), or (times, F', n_books) if each band of the grid has its own ids.
    ``codes.json`` states ``rate`` (ids a second), ``n_books``, ``n_codes``, and
    optionally ``start``, the time of the first id in seconds. ``ssast-lobes
    tokenizer encode`` writes such a folder.

    Each call reads files and waits for the device.

    Arguments
    ---------
    grid : Grid
        Grid of the encoder.
    folder : str or os.PathLike
        Folder of the ids.

    Raises
    ------
    ValueError
        If ``codes.json`` is missing, or one of its numbers is out of range.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> folder = getfixture("tmp_path")
    >>> write_stored_config(folder, rate=75, n_books=2, n_codes=1024)
    >>> np.save(folder / "a.wav.npy", np.arange(150).reshape(75, 2))
    >>> tokenizer = StoredTokenizer(Grid(128, (128, 4)), folder)
    >>> ids = tokenizer(
    ...     torch.zeros(1, 40, 128),
    ...     torch.tensor([40]),
    ...     clip_ids=["a.wav"],
    ...     crop_starts=torch.tensor([8000]),
    ... )
    >>> ids.shape, ids[0, :3, 0].tolist()
    (torch.Size([1, 10, 2]), [78, 84, 90])
    """

    needs_audio = False
    needs_place = True
    sample_rate = 16000

    def __init__(self, grid, folder):
        super().__init__()
        self.grid, self.folder = grid, Path(folder)
        file = self.folder / CONFIG_FILE
        try:
            numbers = json.loads(file.read_text("utf-8"))
            self.rate = real("rate", numbers["rate"], 0, inside=True)
            self.n_books = whole("n_books", numbers["n_books"])
            self.n_codes = whole("n_codes", numbers["n_codes"], 2)
            self.start = real("start", numbers.get("start", 0.0))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArgumentError(
                f"tokenizer: {file} needs rate (ids a second), n_books and "
                f"n_codes: {error}"
            ) from error
        self.token_start, self.token_step = token_times(grid)

    @property
    def config(self):
        """The arguments, without the grid, that rebuild this."""
        return {"name": "StoredTokenizer", "folder": str(self.folder)}

    def forward(self, feats, n_frames, clip_ids, crop_starts, **audio):
        """Return the ids of all tokens.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels); only its number of frames is
            used.
        n_frames : torch.Tensor
            Valid frames (B,).
        clip_ids : list of str
            Ids of the clips' rows in their table.
        crop_starts : torch.Tensor
            Start of each crop in its file, (B,) in samples at 16 kHz.
        **audio
            Not used.

        Returns
        -------
        torch.Tensor
            (B, N, n_books) int64, 0 at padding.

        Raises
        ------
        ValueError
            If a file is missing or too short for its clip, or its codebooks
            and ids do not match ``codes.json``.
        """
        n_freq, n_time = self.grid.n_freq, self.grid.n_time(feats.shape[1])
        ids = np.zeros((len(feats), n_freq, n_time, self.n_books), np.int64)
        places = zip(
            clip_ids, n_frames.tolist(), crop_starts.tolist(), strict=True
        )
        for row, (clip_id, count, first) in zip(ids, places, strict=True):
            tokens = self.grid.n_time(count)
            begin = first / self.sample_rate
            middles = self.token_start + self.token_step * (
                np.arange(tokens) + 0.5
            )
            # The last token may reach beyond the clip's end: there are 100
            # frames a second, and the last frame reaches 15 ms further.
            middles = begin + np.minimum(middles, count / 100 + 0.015)
            row[:, :tokens] = self._at(clip_id, middles)
        return torch.from_numpy(ids).flatten(1, 2).to(feats.device)

    def _at(self, clip_id, times):
        """Return the ids (F' or 1, len(times), n_books) of a clip."""
        file = stored_file(self.folder, clip_id)
        if not file.is_file():
            # The ids of further crops of a long clip end in a suffix; see
            # `repeat_long`.
            file = stored_file(self.folder, re.sub(r"#\d+$", "", clip_id))
        try:
            stored = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArgumentError(
                f"{file}: no ids of the clip {clip_id}: {error}"
            ) from error
        shapes = [(self.n_books,), (self.grid.n_freq, self.n_books)]
        if stored.shape[1:] not in shapes or stored.dtype.kind not in "iu":
            raise ArgumentError(
                f"{file}: whole numbers (times, {self.n_books} books) are "
                f"expected, or (times, {self.grid.n_freq} bands, "
                f"{self.n_books} books); it has {stored.dtype} {stored.shape}"
            )
        place = np.floor((times - self.start) * self.rate).astype(int)
        if place[-1] >= len(stored) + _MISSING:
            raise ArgumentError(
                f"{file}: {len(stored)} ids end at "
                f"{self.start + len(stored) / self.rate:.2f} s, the clip "
                f"reaches to {times[-1]:.2f} s: are they of this audio, at "
                f"{self.rate:g} a second, and is its speed unchanged?"
            )
        found = np.asarray(stored[place.clip(0, len(stored) - 1)])
        if found.min() < 0 or found.max() >= self.n_codes:
            raise ArgumentError(
                f"{file}: ids must be from 0 to {self.n_codes - 1}, found "
                f"{found.min()} to {found.max()}"
            )
        return found.reshape(len(times), -1, self.n_books).swapaxes(0, 1)


def stored_file(folder, clip_id):
    """Return the file with the ids of a clip.

    Arguments
    ---------
    folder : str or os.PathLike
        Folder of the ids of all clips.
    clip_id : str
        Id of the clip's row in its table.

    Returns
    -------
    pathlib.Path

    Example
    -------
    >>> stored_file("codes", "/data/../a.wav").as_posix()
    'codes/data/a.wav.npy'
    """
    parts = [part for part in Path(f"{clip_id}.npy").parts if part != ".."]
    return Path(folder, *(part for part in parts if part != "/"))


def write_stored_config(folder, **numbers):
    """Write ``codes.json``; see `StoredTokenizer`.

    Arguments
    ---------
    folder : str or os.PathLike
        The folder; created if it is missing.
    **numbers
        ``rate``, ``n_books``, ``n_codes``, and optionally ``start`` and
        others.

    Raises
    ------
    ValueError
        If the folder contains a ``codes.json`` with other numbers.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> write_stored_config(folder, rate=75, n_books=8, n_codes=1024)
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    file = Path(folder, CONFIG_FILE)
    if not file.exists():
        write_json(file, numbers)
    elif json.loads(file.read_text("utf-8")) != numbers:
        raise ArgumentError(
            f"{folder} has ids of another tokenizer, or of other windows: "
            "choose another folder, or remove it"
        )
