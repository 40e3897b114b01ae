"""Patches of a spectrogram, and positions of tokens.

`Grid` counts and cuts the patches, `PatchEmbedding` projects them, and
`PositionTable` fits the positions to the length of each clip.
"""

from dataclasses import asdict, dataclass

import torch
from torch import nn

from ssast_lobes.utils.checks import (
    ArgumentError,
    flag,
    one_of,
    require,
    whole,
)
from ssast_lobes.utils.lengths import length_to_mask

# SSAST (section 2.1) has square patches, or "frames" that span all mel bins.
_PATCH_OF_GEOMETRY = {"patch": (16, 16), "frame": (None, 2)}

# Parts of a position table that a short clip may use.
CROPS = ("center", "start")


@dataclass(frozen=True)
class Grid:
    """Geometry of the patches over a log-mel spectrogram.

    Tokens are in frequency-major order (all times of the lowest band first), as
    in SSAST. Along time, a partial last patch is kept and filled with zeros.
    Along frequency, patches start at the lowest mel bin, and a partial last
    patch is dropped.

    Arguments
    ---------
    n_mels : int
        Mel bins of the spectrogram.
    patch : tuple of int
        Patch size (mel bins, frames).
    stride : tuple of int, optional
        Step between patches (mel bins, frames); by default the patch size.
    keep_partial : bool
        Whether to keep a partial last patch along time; the official code drops
        it.

    Raises
    ------
    ValueError
        If a patch is larger than the mel axis or a size is not positive.

    Example
    -------
    >>> grid = Grid(n_mels=128, patch=(16, 16))
    >>> grid.n_freq, grid.n_time(1024), grid.n_time(1025)
    (8, 64, 65)
    """

    n_mels: int = 128
    patch: tuple = (16, 16)
    stride: tuple = None
    keep_partial: bool = True

    def __post_init__(self):
        whole("n_mels", self.n_mels)
        flag("keep_partial", self.keep_partial)
        # A YAML contains lists, not tuples. Only `object` can set a field of a
        # frozen dataclass.
        object.__setattr__(self, "patch", _size("patch", self.patch))
        stride = self.patch if self.stride is None else self.stride
        object.__setattr__(self, "stride", _size("stride", stride))
        if self.patch[0] > self.n_mels:
            raise ArgumentError(
                f"a patch of {self.patch[0]} mel bins does not fit into "
                f"{self.n_mels} mel bins"
            )

    @classmethod
    def from_geometry(
        cls, geometry="patch", n_mels=128, stride=None, keep_partial=True
    ):
        """Return the grid of a named geometry or a patch size.

        Arguments
        ---------
        geometry : str or tuple of int
            ``"patch"`` (16 x 16), ``"frame"`` (all mel bins x 2 frames), or
            any patch size (mel bins, frames).
        n_mels : int
            Mel bins of the spectrogram.
        stride : tuple of int, optional
            Step between patches (mel bins, frames); by default the patch size.
        keep_partial : bool
            Whether to keep a partial last patch along time.

        Returns
        -------
        Grid

        Raises
        ------
        ValueError
            If the geometry is unknown.

        Example
        -------
        >>> Grid.from_geometry("frame", n_mels=80).patch
        (80, 2)
        """
        if isinstance(geometry, str) and geometry in _PATCH_OF_GEOMETRY:
            bins, frames = _PATCH_OF_GEOMETRY[geometry]
            geometry = (bins or n_mels, frames)
        require(
            _is_size(geometry),
            "geometry",
            f"one of {', '.join(_PATCH_OF_GEOMETRY)}, or a patch size "
            "[mel bins, frames]",
            geometry,
        )
        return cls(n_mels, geometry, stride, keep_partial)

    @property
    def config(self):
        """The arguments that rebuild this grid."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @property
    def patch_size(self):
        """Number of values in one patch: mel bins times frames."""
        return self.patch[0] * self.patch[1]

    @property
    def n_freq(self):
        """F', the number of patches along frequency."""
        return (self.n_mels - self.patch[0]) // self.stride[0] + 1

    def n_time(self, n_frames):
        """Return T', the number of patches along time; at least one.

        Arguments
        ---------
        n_frames : int or torch.Tensor
            Number of frames, an int or (B,) int64.

        Returns
        -------
        int or torch.Tensor
            Number of patches along time, of the same type as `n_frames`.
        """
        size, step = self.patch[1], self.stride[1]
        if self.keep_partial:
            # With gaps between patches, the last patch must begin in the clip.
            reach = n_frames - max(size, step) + step - 1
        else:
            reach = n_frames - size
        count = reach // step + 1
        if isinstance(n_frames, torch.Tensor):
            return count.clamp(min=1)
        return max(count, 1)

    def unfold(self, feats):
        """Cut a batch of spectrograms into flattened patches.

        Arguments
        ---------
        feats : torch.Tensor
            (B, T, n_mels).

        Returns
        -------
        torch.Tensor
            (B, F' * T', patch_size), in frequency-major order. Each patch is
            flattened mel bin by mel bin.

        Raises
        ------
        ValueError
            If `feats` does not have the grid's number of mel bins.

        Example
        -------
        >>> Grid(4, (2, 2)).unfold(torch.zeros(1, 5, 4)).shape
        torch.Size([1, 6, 4])
        """
        if feats.dim() != 3 or feats.shape[2] != self.n_mels:
            raise ValueError(
                f"expected features (batch, frames, {self.n_mels} mel bins), "
                f"got {tuple(feats.shape)}"
            )
        frames = feats.shape[1]
        needed = (self.n_time(frames) - 1) * self.stride[1] + self.patch[1]
        if needed > frames:
            feats = nn.functional.pad(feats, (0, 0, 0, needed - frames))
        cut = feats[:, :needed].transpose(1, 2)
        cut = cut.unfold(1, self.patch[0], self.stride[0])
        cut = cut.unfold(2, self.patch[1], self.stride[1])
        return cut.reshape(feats.shape[0], -1, self.patch_size)

    def fold(self, patches, n_frames):
        """Put patches back into a spectrogram; overlaps are averaged.

        Arguments
        ---------
        patches : torch.Tensor
            (B, F' * T', patch_size), as `unfold` returns them.
        n_frames : int
            Frames T of the spectrogram.

        Returns
        -------
        torch.Tensor
            (B, T, n_mels); mel bins that no patch covers are 0.

        Example
        -------
        >>> grid, feats = Grid(4, (2, 2)), torch.randn(1, 6, 4)
        >>> torch.equal(grid.fold(grid.unfold(feats), 6), feats)
        True
        """
        n_time = self.n_time(n_frames)
        covered = (
            (self.n_freq - 1) * self.stride[0] + self.patch[0],
            (n_time - 1) * self.stride[1] + self.patch[1],
        )

        def overlap_add(x):
            return nn.functional.fold(
                x.transpose(1, 2), covered, self.patch, stride=self.stride
            )

        covers = overlap_add(torch.ones_like(patches)).clamp(min=1)
        total = overlap_add(patches) / covers
        feats = total[:, 0].transpose(1, 2)[:, :n_frames]
        missing = (
            0,
            self.n_mels - feats.shape[2],
            0,
            n_frames - feats.shape[1],
        )
        return nn.functional.pad(feats, missing)

    def is_token(self, n_time, max_time):
        """Return the mask of the tokens that are audio.

        Arguments
        ---------
        n_time : torch.Tensor
            Valid patches along time of each clip, (B,).
        max_time : int
            T' of the batch.

        Returns
        -------
        torch.Tensor
            Boolean (B, F' * T').

        Example
        -------
        >>> Grid(4, (2, 2)).is_token(torch.tensor([1]), 2).int().tolist()
        [[1, 0, 1, 0]]
        """
        is_token = length_to_mask(n_time, max_time)
        return is_token[:, None].expand(-1, self.n_freq, -1).flatten(1)


def _is_size(value):
    pair = isinstance(value, list | tuple) and len(value) == 2
    return pair and all(type(size) is int and size >= 1 for size in value)


def _size(name, value):
    allowed = "two whole numbers of at least 1 (mel bins, frames)"
    require(_is_size(value), name, allowed, value)
    return tuple(value)


class PatchEmbedding(nn.Linear):
    """Linear projection of flattened patches: (.., patch_size) to (.., D).

    This is the strided convolution of a vision transformer, for patches in the
    order of `Grid.unfold`.

    Arguments
    ---------
    grid : Grid
        The grid; its patch size is the input size.
    dim : int
        Token size D.

    Example
    -------
    >>> PatchEmbedding(Grid(), 192)(torch.zeros(2, 5, 256)).shape
    torch.Size([2, 5, 192])
    """

    def __init__(self, grid, dim):
        super().__init__(grid.patch_size, dim)


class PositionTable(nn.Module):
    """Learned positions for a grid, fitted to the length of each clip.

    Along time, a clip that is shorter than the table uses the table's center or
    start. For a longer clip, the table is interpolated linearly. Along
    frequency, a grid with fewer bands than the table uses the table's center.
    For a grid with more bands, the table is interpolated. The official code
    does the same, but for batches of clips of one length.

    Arguments
    ---------
    n_freq : int
        F0, the number of rows of the table.
    n_time : int
        T0, the number of columns of the table.
    dim : int
        Token size D.
    crop : str
        Part of the table along time that a short clip uses: the ``"center"``,
        as in SSAST, or the ``"start"``, as in most other models.

    Example
    -------
    >>> table = PositionTable(n_freq=8, n_time=64, dim=4)
    >>> table(8, torch.tensor([64, 10]), 64).shape
    torch.Size([2, 512, 4])
    """

    def __init__(self, n_freq, n_time, dim, crop="center"):
        super().__init__()
        self.crop = one_of("crop", crop, CROPS)
        self.table = nn.Parameter(torch.empty(n_freq, n_time, dim))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.is_loaded = False

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)
        self.is_loaded = True

    def fix_sincos(self):
        """Fix the positions to sines and cosines, as masked autoencoders do.

        See `sincos_positions`. A loaded table keeps its values. A table that is
        loaded later stays fixed, too.

        Raises
        ------
        ValueError
            If the token size is not a multiple of 4.

        Example
        -------
        >>> table = PositionTable(n_freq=2, n_time=3, dim=4)
        >>> table.fix_sincos()
        >>> table.table[0, 0].tolist(), table.table.requires_grad
        ([0.0, 1.0, 0.0, 1.0], False)
        """
        if not self.is_loaded:
            with torch.no_grad():
                self.table.copy_(sincos_positions(*self.table.shape))
        self.table.requires_grad_(False)

    def forward(self, n_freq, n_time, max_time):
        """Return the positions of a batch.

        Arguments
        ---------
        n_freq : int
            F' of the encoder's grid.
        n_time : torch.Tensor
            Valid patches along time of each clip, (B,) int64.
        max_time : int
            T' of the batch.

        Returns
        -------
        torch.Tensor
            Positions (B, F' * T', D), arbitrary at padding.
        """
        table_freq, table_time, _ = self.table.shape
        freq = torch.arange(n_freq, device=n_time.device)
        # `torch.tensor` would copy to a GPU and wait for it; `full_like` does
        # not.
        low, high, weight = _resample(
            freq, torch.full_like(freq, n_freq), table_freq
        )
        table = torch.lerp(
            _taken(self.table, 0, low),
            _taken(self.table, 0, high),
            weight[:, None, None].to(self.table.dtype),
        )
        time = torch.arange(max_time, device=n_time.device)
        low, high, weight = _resample(
            time, n_time[:, None], table_time, self.crop
        )
        positions = torch.lerp(
            _taken(table, 1, low),
            _taken(table, 1, high),
            weight[None, :, :, None].to(self.table.dtype),
        )
        return positions.transpose(0, 1).flatten(1, 2)


def _taken(table, dim, places):
    """Return entries of a table along one dimension.

    With several threads, the gradient of ``table[places]`` would be summed in
    an arbitrary order.
    """
    taken = table.index_select(dim, places.flatten())
    return taken.unflatten(dim, places.shape)


def sincos_positions(n_freq, n_time, dim, device=None):
    """Return sine and cosine positions (Vaswani et al., NeurIPS 2017).

    The first half of a vector encodes the frequency, the second half the time.
    Each half contains sines and cosines with rates from 1 down to 1/10000 (He
    et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022).

    Arguments
    ---------
    n_freq, n_time : int
        F' and T'.
    dim : int
        Token size D, a multiple of 4.
    device : torch.device, optional
        Device of the result.

    Returns
    -------
    torch.Tensor
        Positions (F', T', D), float32. The vector of a place does not depend on
        the size of the grid.

    Raises
    ------
    ValueError
        If `dim` is not a multiple of 4.

    Example
    -------
    >>> sincos_positions(1, 2, 4)[0, :, 2:].round(decimals=3)
    tensor([[0.0000, 1.0000],
            [0.8410, 0.5400]])
    """
    if dim % 4:
        raise ValueError(
            f"sin-cos positions need a multiple of 4 dimensions, got {dim}"
        )
    quarter = dim // 4
    rates = 10000 ** (-torch.arange(quarter, device=device) / quarter)
    angle = torch.arange(max(n_freq, n_time), device=device)[:, None] * rates
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)
    of_freq = waves[:n_freq, None].expand(-1, n_time, -1)
    of_time = waves[None, :n_time].expand(n_freq, -1, -1)
    return torch.cat([of_freq, of_time], dim=2)


def replace_masked(tokens, mask, mask_embedding, shape):
    """Return tokens with the mask embedding in place of masked ones.

    Arguments
    ---------
    tokens : torch.Tensor
        (B, F' * T', D).
    mask : torch.Tensor
        Boolean (B, F', T'), True where masked.
    mask_embedding : torch.Tensor or None
        (D,).
    shape : tuple of int
        F' and T' of the batch.

    Returns
    -------
    torch.Tensor
        (B, F' * T', D).

    Raises
    ------
    ValueError
        If there is no mask embedding, or the mask has another shape.

    Example
    -------
    >>> mask = torch.tensor([[[True, False]]])
    >>> replace_masked(torch.ones(1, 2, 1), mask, torch.zeros(1), (1, 2))
    tensor([[[0.],
             [1.]]])
    """
    if mask_embedding is None:
        raise ValueError("mask needs mask_embedding")
    if mask.shape[1:] != shape:
        n_freq, n_time = shape
        raise ValueError(
            f"mask must be (B, {n_freq}, {n_time}), got {tuple(mask.shape)}"
        )
    return torch.where(mask.flatten(1)[:, :, None], mask_embedding, tokens)


def _resample(index, size, full, crop="center"):
    """Map entry `index` of `size` entries to a table of `full` entries.

    The result is the two neighboring entries of the table, and the weight of
    the second one.
    """
    first = full // 2 - size // 2 if crop == "center" else 0
    stretch = (index + 0.5) * (full / size) - 0.5
    place = torch.where(size < full, (first + index).float(), stretch)
    place = place.clamp(0, full - 1)
    low = place.floor()
    high = (low + 1).clamp(max=full - 1)
    return low.long(), high.long(), place - low
