"""The base class of objectives, maskers by name, and helpers for tokens.

The clips of a batch differ in their number of masked tokens. Masked tokens are
therefore padded to one length that fits all clips, and surplus entries get the
weight 0. The caller gives this length, so nothing is read back from the device.
"""

from typing import NamedTuple

import torch
from torch import nn

from ssast_lobes.objectives.block_maskers import (
    ChunkMasker,
    InverseBlockMasker,
    PeriodicMasker,
    RowMasker,
    SpanMasker,
)
from ssast_lobes.objectives.maskers import ClusterMasker, Masker, RandomMasker
from ssast_lobes.objectives.multi_block_masker import MultiBlockMasker
from ssast_lobes.utils.checks import ArgumentError
from ssast_lobes.utils.lengths import full_lengths
from ssast_lobes.utils.presets import build, read_preset
from ssast_lobes.utils.random import RandomSource


class ObjectiveOutput(NamedTuple):
    """Loss of a batch and what to log next to it.

    Arguments
    ---------
    loss : torch.Tensor
        Scalar to minimize.
    logs : dict of str to torch.Tensor
        Detached scalars. The chance level of a log, if known, is the log
        ``NAME_chance``; see `matching_logs`. A log whose name ends in
        ``accuracy`` should be above chance, any other log below.
    """

    loss: torch.Tensor
    logs: dict


class Objective(nn.Module):
    """Base class of objectives: an encoder and a masker.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train.
    masker : Masker or dict, optional
        The masker of an objective that masks tokens, or the `config` of a
        masker. By default the masker of `preset`.

    Raises
    ------
    ValueError
        If `masker` is neither a masker nor a `config`; see `make_masker`.
    """

    # File of ``hparams/objective/`` with the published masker of the class;
    # None for an objective that masks no tokens.
    preset = None

    # Prefixes of the names of tensors that only pretraining needs. Checkpoints
    # contain these tensors, exports do not. So after an export is loaded, the
    # teacher starts as a copy of the student.
    training_only = ("teacher",)
    # Whether `forward` takes `positive_pairs`; see `ContrastiveMSPM`.
    uses_positive_pairs = False
    # Whether `forward` takes the waveforms too: ``wavs`` (B, S), ``n_samples``
    # (B,) and, if the data state them, ``crop_starts`` (B,) in samples.
    needs_audio = False
    # Whether `forward` takes the source of each clip: ``clip_ids``, a list of B
    # strings, and ``crop_starts`` (B,) in samples.
    needs_place = False
    # Sampling rate in Hz that all audio must have; None if any rate is allowed.
    sample_rate = None
    # Whether `forward` takes None for `n_frames`, if no clip has padding. The
    # attention then needs no mask.
    n_frames_optional = False

    def __init__(self, encoder, masker=None):
        super().__init__()
        self.encoder = encoder
        if masker is None and self.preset is not None:
            published = read_preset("objective", self.preset)
            del published["objective"]
            masker = build(published)["masker"]
        self.masker = None if masker is None else make_masker(masker)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {} if self.masker is None else {"masker": self.masker.config}

    def random_source(self, feats, generator=None, clip_keys=None):
        """Return the random source for a batch.

        Arguments
        ---------
        feats : torch.Tensor
            (B, T, n_mels).
        generator : torch.Generator, optional
            On the device of `feats`.
        clip_keys : torch.Tensor, optional
            (B,) int64; see `RandomSource`.

        Returns
        -------
        RandomSource
        """
        return RandomSource(len(feats), feats.device, generator, clip_keys)

    def draw_mask(self, feats, n_frames, generator=None, clip_keys=None):
        """Draw a mask that fits a batch.

        Arguments
        ---------
        feats : torch.Tensor
            (B, T, n_mels).
        n_frames : torch.Tensor or None
            Valid frames (B,); None if all frames are valid.
        generator, clip_keys
            See `random_source`.

        Returns
        -------
        torch.Tensor or None
            Boolean (B, F', T'); None for an objective that masks no tokens.
        """
        if self.masker is None:
            return None
        if n_frames is None:
            n_frames = full_lengths(feats)
        n_time, max_time = self.encoder.token_lengths(n_frames, feats.shape[1])
        n_freq = self.encoder.grid.n_freq
        return self.masker(n_time, n_freq, max_time, generator, clip_keys)

    def check_front_end(self, features):
        """Raise if the objective needs another front end.

        By default, any front end with the sampling rate of the objective will
        do.

        Arguments
        ---------
        features : FrontEnd
            The front end that computes the features of the training.

        Raises
        ------
        ValueError
            If it needs another one.
        """
        rate = features.fbank.sample_rate
        if self.sample_rate not in (None, rate):
            raise ArgumentError(
                f"the objective needs audio at {self.sample_rate} Hz, the "
                f"front end takes {rate} Hz: choose another source, or "
                "another objective or tokenizer"
            )

    def exported_state(self):
        """Return the tensors for an export.

        Returns
        -------
        dict of str to torch.Tensor
            The tensors, without those that `training_only` names.
        """
        return {
            key: value
            for key, value in self.state_dict().items()
            if key.split(".")[0] not in self.training_only
        }

    def restart_teacher(self):
        """Copy the student into the teacher, if there is one."""
        teacher = getattr(self, "teacher", None)
        if teacher is not None:
            teacher.restart(self)

    @property
    def reconstructs(self):
        """Whether the objective has ``reconstruct(feats, n_frames, mask)``."""
        return False

    def picture(self, feats, n_frames, clip_keys):
        """Return the masked pixels of clips, and the model's reconstruction.

        Only objectives that reconstruct have pictures; see `reconstructs`.

        Arguments
        ---------
        feats, n_frames, clip_keys
            As in `draw_mask`.

        Returns
        -------
        masked : torch.Tensor
            Boolean (B, T, n_mels).
        filled : torch.Tensor
            (B, T, n_mels).
        """
        mask = self.draw_mask(feats, n_frames, clip_keys=clip_keys)
        filled = self.reconstruct(feats, n_frames, mask)
        grid = self.encoder.grid
        masked = mask.flatten(1)[:, :, None].expand(-1, -1, grid.patch_size)
        return grid.fold(masked.float(), feats.shape[1]) > 0.5, filled

    def after_step(self, step, total_steps):
        """Update after an optimizer step; do nothing by default.

        Arguments
        ---------
        step : int
            Optimizer steps done.
        total_steps : int
            Steps of the whole training.
        """


_MASKERS = {
    masker.__name__: masker
    for masker in (
        RandomMasker,
        ClusterMasker,
        InverseBlockMasker,
        SpanMasker,
        RowMasker,
        ChunkMasker,
        PeriodicMasker,
        MultiBlockMasker,
    )
}


def make_masker(masker):
    """Return a masker, or build one from a `Masker.config`.

    Arguments
    ---------
    masker : Masker or dict
        A masker, which is returned unchanged, or the configuration of one.

    Returns
    -------
    Masker

    Raises
    ------
    ValueError
        If `masker` is neither a masker nor a configuration, names no masker of
        this package, or contains arguments that do not fit.

    Example
    -------
    >>> masker = make_masker({"name": "RandomMasker", "ratio": 0.5})
    >>> make_masker(masker.config).config
    {'name': 'RandomMasker', 'ratio': 0.5, 'count': None}
    """
    if isinstance(masker, Masker):
        return masker
    if not isinstance(masker, dict) or "name" not in masker:
        raise ValueError(
            "masker must be a Masker, or a dict with its name and arguments, "
            f"got {masker!r}"
        )
    arguments = dict(masker)
    name = arguments.pop("name")
    if name not in _MASKERS:
        raise ValueError(
            f"no masker of this package is named {name!r}; there are: "
            f"{', '.join(_MASKERS)}. Pass a masker of your own as an object"
        )
    try:
        return _MASKERS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"masker {name}: {error}") from error


class TokenSplit(NamedTuple):
    """A batch of tokens, split into masked and visible ones.

    Arguments
    ---------
    ids_masked : torch.Tensor
        int64 (B, K): positions of the masked tokens, then of surplus entries.
    weight : torch.Tensor
        float32 (B, K), 1 at masked tokens and 0 at surplus entries.
    keep : tuple of torch.Tensor
        Positions of the visible tokens, int64 (B, V), and a boolean (B, V) that
        is False at surplus entries. The encoder takes both as `keep`.
    visible : torch.Tensor
        Boolean (B, N), True at visible tokens.
    is_token : torch.Tensor
        Boolean (B, N), True at tokens that are audio.
    """

    ids_masked: torch.Tensor
    weight: torch.Tensor
    keep: tuple
    visible: torch.Tensor
    is_token: torch.Tensor


def split_tokens(mask, is_token, n_masked=None):
    """Split the tokens of clips into masked and visible ones.

    Arguments
    ---------
    mask : torch.Tensor
        Boolean (B, F', T'), True where masked.
    is_token : torch.Tensor
        Boolean (B, F' * T'), True at tokens that are audio.
    n_masked : int, optional
        Number of masked tokens of a clip without padding. K is this number,
        and V the number of the other tokens. By default K and V are N, which
        fits any mask.

    Returns
    -------
    TokenSplit

    Example
    -------
    >>> mask = torch.tensor([[[True, False, True, False]]])
    >>> split = split_tokens(mask, torch.ones(1, 4).bool(), n_masked=2)
    >>> split.ids_masked.tolist(), split.keep[0].tolist()
    ([[0, 2]], [[1, 3]])
    """
    max_masked = max_kept = is_token.shape[1]
    if n_masked is not None:
        max_masked, max_kept = n_masked, max_kept - n_masked
    masked = mask.flatten(1) & is_token
    return TokenSplit(
        *ids_masked(masked, max_masked),
        keep=ids_keep(masked, is_token, max_kept),
        visible=is_token & ~masked,
        is_token=is_token,
    )


def ids_masked(mask, max_masked):
    """Return the positions of masked tokens, padded to one length.

    Arguments
    ---------
    mask : torch.Tensor
        Boolean (B, F', T').
    max_masked : int
        K, at least the number of masked tokens of any clip. It is an argument,
        so that nothing is read back from the device.

    Returns
    -------
    index : torch.Tensor
        int64 (B, K): positions of masked tokens in order, then of surplus
        entries.
    weight : torch.Tensor
        float32 (B, K), 1 at masked tokens and 0 at surplus entries.

    Example
    -------
    >>> mask = torch.tensor([[[False, True, True, False]]])
    >>> ids_masked(mask, 3)
    (tensor([[1, 2, 0]]), tensor([[1., 1., 0.]]))
    """
    flat = mask.flatten(1).to(torch.uint8)
    index = flat.argsort(dim=1, descending=True, stable=True)
    index = index[:, : max(1, max_masked)]
    return index, flat.gather(1, index).float()


def ids_keep(mask, is_token, max_kept):
    """Return the positions of visible tokens, in the format of the encoder.

    Arguments
    ---------
    mask : torch.Tensor
        Boolean (B, F', T'), True where masked.
    is_token : torch.Tensor
        Boolean (B, F' * T'), True at tokens that are audio.
    max_kept : int
        V, at least the number of visible tokens of any clip.

    Returns
    -------
    index : torch.Tensor
        int64 (B, V): positions of visible tokens in order, then of surplus
        entries.
    is_token : torch.Tensor
        Boolean (B, V), False at surplus entries.

    Example
    -------
    >>> mask = torch.tensor([[[False, True, False, False]]])
    >>> ids_keep(mask, torch.tensor([[True, True, True, False]]), 3)
    (tensor([[0, 2, 1]]), tensor([[ True,  True, False]]))
    """
    index, weight = ids_masked(is_token & ~mask.flatten(1), max_kept)
    return index, weight > 0


def gather_tokens(x, index):
    """Return the rows (B, K, D) of `x` (B, N, D) at positions (B, K)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def clip_mean(values, weight):
    """Return the mean within each clip, averaged over the nonempty clips.

    Arguments
    ---------
    values : torch.Tensor
        (B, K).
    weight : torch.Tensor
        (B, K), 0 where an entry does not count.

    Returns
    -------
    torch.Tensor
        Scalar.

    Example
    -------
    >>> values = torch.tensor([[2.0, 9.0], [4.0, 8.0]])
    >>> clip_mean(values, torch.tensor([[1.0, 0.0], [1.0, 1.0]])).item()
    4.0
    """
    count = weight.sum(1)
    per_clip = (values * weight).sum(1) / count.clamp(min=1)
    return per_clip.sum() / (count > 0).sum().clamp(min=1)


@torch.no_grad()
def matching_logs(nce, accuracy, n_candidates):
    """Return the logs of an InfoNCE loss, each next to its chance level.

    A uniform guess among K candidates gives a loss of ln K and an accuracy of
    1/K. Both chance levels are means over the clips that have candidates.

    Arguments
    ---------
    nce, accuracy : torch.Tensor
        Scalars.
    n_candidates : torch.Tensor
        K of each clip, (B,); 0 or less for a clip that has nothing to match.

    Returns
    -------
    dict of str to torch.Tensor
        ``nce``, ``nce_chance``, ``accuracy`` and ``accuracy_chance``.

    Example
    -------
    >>> logs = matching_logs(*torch.tensor([3.0, 0.2]), torch.tensor([4, 8, 0]))
    >>> [f"{name} {value.item():.3f}" for name, value in logs.items()]
    ['nce 3.000', 'nce_chance 1.733', 'accuracy 0.200', 'accuracy_chance 0.188']
    """
    has_any = (n_candidates > 0).float()
    count = n_candidates.clamp(min=1).float()
    n_clips = has_any.sum().clamp(min=1)
    return {
        "nce": nce.detach(),
        "nce_chance": count.log().sum() / n_clips,
        "accuracy": accuracy.detach(),
        "accuracy_chance": (has_any / count).sum() / n_clips,
    }


@torch.no_grad()
def projection_std(x, weight):
    """Return how much the vectors of a batch differ; 0 means collapse.

    Each vector is scaled to length sqrt(D). The result is the standard
    deviation over the vectors, averaged over the dimensions.

    Arguments
    ---------
    x : torch.Tensor
        (B, K, D).
    weight : torch.Tensor
        (B, K), 1 where a vector counts and 0 elsewhere.

    Returns
    -------
    torch.Tensor
        Scalar: near 1 if the vectors point in all directions, 0 if all point in
        the same direction.

    Example
    -------
    >>> x = torch.tensor([[[1.0, -1.0], [-1.0, 1.0], [7.0, 7.0]]])
    >>> projection_std(x, torch.tensor([[1.0, 1.0, 0.0]])).round(decimals=3)
    tensor(1.)
    """
    x = torch.nn.functional.normalize(x.float(), dim=2) * x.shape[2] ** 0.5
    weight = (weight / weight.sum().clamp(min=1))[:, :, None]
    mean = (x * weight).sum((0, 1))
    variance = ((x - mean).square() * weight).sum((0, 1))
    return variance.sqrt().mean()


def refuse_overlap(grid):
    """Raise if patches overlap.

    Arguments
    ---------
    grid : Grid
        Grid of the encoder to pretrain.

    Raises
    ------
    ValueError
        If the stride is not the patch size.
    """
    if grid.stride != grid.patch:
        raise ValueError(
            "a masked patch must not show in its neighbors: pretrain "
            f"with stride {grid.patch}, not {grid.stride}"
        )


def require_class_tokens(encoder):
    """Raise if an encoder has no class tokens.

    Arguments
    ---------
    encoder : SpectrogramEncoder or BEATsEncoder
        The encoder to pretrain.

    Raises
    ------
    ValueError
        If the encoder has none.
    """
    if encoder.n_class_tokens == 0:
        raise ArgumentError(
            "this objective trains the class tokens, and the encoder has none: "
            "choose another objective or another source"
        )
