"""Lobes for recipes: waveform in, representation out.

`SSAST` can replace the wav2vec 2.0 lobe in a recipe's YAML, since its
``forward(wav, wav_lens)`` returns one tensor. It is a `SpectrogramLobe` that is
built from a preset or a checkpoint. `lobe_of` builds a `SpectrogramLobe` from
loaded weights.
"""

import torch
from torch import nn

from ssast_lobes.checkpoints.format import error_context, load_strictly
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.warm_start import initialize
from ssast_lobes.lobes.chunks import Chunks
from ssast_lobes.models.encoder import SpectrogramEncoder
from ssast_lobes.models.encoders import make_encoder
from ssast_lobes.models.event_head import FrameTiming
from ssast_lobes.models.features import FrontEnd
from ssast_lobes.models.pooling import ClipPooling
from ssast_lobes.utils.checks import ArgumentError, flag, one_of, require, whole

OUTPUTS = ("frames", "patches", "clip")


class SpectrogramLobe(nn.Module):
    """Front end and encoder in one SpeechBrain lobe.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder.
    features : FrontEnd, optional
        The front end; by default with AudioSet's statistics.
    output : str
        Result of ``forward``: ``"frames"`` (B, T', D) in time order,
        ``"patches"`` (B, F', T', D) or ``"clip"`` (B, 1, `clip_size`).
    pooling : ClipPooling, optional
        Pooling of the clip vector; by default the mean of the valid tokens.
    freeze : bool
        Whether to freeze the lobe: no gradients, always evaluation mode.
    chunks : dict, optional
        Arguments of `ssast_lobes.lobes.chunks.Chunks`, which cuts long clips.
        By default long clips are not cut, and their positions are interpolated.

    Raises
    ------
    ValueError
        If `output` is unknown, or features and encoder disagree.

    Example
    -------
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> lobe = SpectrogramLobe(encoder, output="clip")
    >>> lobe(torch.randn(2, 16000), torch.tensor([1.0, 0.4])).shape
    torch.Size([2, 1, 32])
    """

    def __init__(
        self,
        encoder,
        features=None,
        output="frames",
        pooling=None,
        freeze=False,
        chunks=None,
    ):
        super().__init__()
        one_of("output", output, OUTPUTS)
        self.chunks = None if chunks is None else Chunks(**chunks)
        flag("freeze", freeze)
        n_mels = encoder.grid.n_mels
        self.features = features or FrontEnd(n_mels=n_mels)
        if self.features.fbank.n_mels != n_mels:
            raise ArgumentError(
                f"features have {self.features.fbank.n_mels} mel bins, the "
                f"encoder {n_mels}"
            )
        self.encoder = encoder
        self.pooling = pooling or ClipPooling(encoder.depth)
        self.output = output
        self.freeze = freeze
        # DDP would wait for the gradient of a module that the output does not
        # depend on.
        if output != "clip":
            self.pooling.requires_grad_(False)
        elif self.pooling.needs_hidden_states is True:
            encoder.norm.requires_grad_(False)
        if freeze:
            self.requires_grad_(False)
            self.eval()

    @property
    def output_size(self):
        """Size of the output vectors: D, or `clip_size` for clips."""
        return self.clip_size if self.output == "clip" else self.encoder.dim

    @property
    def clip_size(self):
        """Size of a clip vector: D, or more, depending on the pooling."""
        return self.pooling.output_size(self.encoder.dim)

    @property
    def timing(self):
        """The `FrameTiming`: the part of the audio that each frame covers."""
        return FrameTiming(self.encoder.grid, self.features.fbank)

    def train(self, mode=True):
        """Switch the mode; a frozen lobe stays in evaluation mode."""
        return super().train(mode and not self.freeze)

    def forward(self, wav, wav_lens=None):
        """Return the representation of a batch of waveforms.

        Arguments
        ---------
        wav : torch.Tensor
            Mono waveforms (B, S) at the sampling rate of `features` (by default
            16 kHz), floating point with full scale 1.
        wav_lens : torch.Tensor, optional
            Relative lengths (B,) in (0, 1]; by default all clips are full.

        Returns
        -------
        torch.Tensor
            (B, T', D), (B, F', T', D) or (B, 1, `clip_size`), depending on
            `output`; 0 at padding. The dtype is that of the weights. After
            ``half()`` the network computes in float16, but the features stay
            float32.

        Raises
        ------
        ValueError
            If `wav` is not (B, S) or not floating point, or `wav_lens` are not
            relative lengths.
        """
        if self.output != "clip":
            return getattr(self.extract_features(wav, wav_lens), self.output)
        with self._gradients():
            feats, n_frames = self.features(wav, wav_lens)
            if self._in_chunks(feats):
                clips = self.chunks.clips(
                    self.encoder, feats, n_frames, self.pooling
                )
                return clips[:, None]
        return self.pooling(self._encode(feats, n_frames))[:, None]

    def extract_features(self, wav, wav_lens=None, hidden_states=False):
        """Return all outputs of the encoder for a batch of waveforms.

        Arguments
        ---------
        wav, wav_lens
            See `forward`.
        hidden_states : bool
            Whether to return the hidden states, too.

        Returns
        -------
        EncoderOutput
            ``tokens`` (B, N, D) and ``patches`` (B, F', T', D), 0 at padding;
            class tokens (B, C, D); ``hidden_states`` (L + 1, B, N, D) if asked
            for, or if the pooling needs them.

        Raises
        ------
        ValueError
            As in `forward`.

        Example
        -------
        >>> lobe = SpectrogramLobe(SpectrogramEncoder(dim=32, depth=1, heads=2))
        >>> lobe.extract_features(torch.randn(2, 16000)).patches.shape
        torch.Size([2, 8, 7, 32])
        """
        with self._gradients():
            feats, n_frames = self.features(wav, wav_lens)
            return self._encode(feats, n_frames, hidden_states)

    def _gradients(self):
        """Return a context without gradients if the lobe is frozen."""
        return torch.set_grad_enabled(
            torch.is_grad_enabled() and not self.freeze
        )

    def _in_chunks(self, feats):
        if self.chunks is None:
            return False
        # A chunk drops the frames at its end that do not fill a patch, even if
        # it is the only chunk of the clip.
        return feats.shape[1] > self.chunks.whole_patches(self.encoder.grid)

    def _encode(self, feats, n_frames, hidden_states=False):
        wanted = hidden_states or self.pooling.needs_hidden_states
        if self._in_chunks(feats):
            return self.chunks.joined(self.encoder, feats, n_frames, wanted)
        return self.encoder(feats, n_frames, hidden_states=wanted)

    @classmethod
    def from_export(cls, folder, output="frames", freeze=False):
        """Build the lobe of an exported folder; load its weights strictly.

        Arguments
        ---------
        folder : str or path
            A folder that a recipe or ``ssast-lobes convert`` wrote.
        output, freeze
            See the class.

        Returns
        -------
        SpectrogramLobe

        Raises
        ------
        WeightsError
            If the weights do not fit their own configuration.
        """
        weights = load_weights(folder)
        with error_context(folder):
            return lobe_of(weights, output, freeze)


def lobe_of(weights, output="frames", freeze=False):
    """Build a lobe from loaded weights: encoder, features and pooling.

    Arguments
    ---------
    weights : Weights
        The result of `load_weights`.
    output, freeze
        See `SpectrogramLobe`.

    Returns
    -------
    SpectrogramLobe
    """
    config = weights.config
    encoder = make_encoder(config["encoder"])
    features = FrontEnd(
        **config.get("features", {"n_mels": encoder.grid.n_mels})
    )
    load_strictly(encoder, weights.part("encoder"), "encoder")
    pooling = _pooling_of(weights, encoder)
    chunks = config.get("chunks")
    return SpectrogramLobe(encoder, features, output, pooling, freeze, chunks)


def _pooling_of(weights, encoder):
    config = dict(weights.config.get("pooling", {"depth": encoder.depth}))
    if "n_freq" in config:
        # Another number of mel bins or another stride changes the number of
        # bands.
        config["n_freq"] = encoder.grid.n_freq
    pooling = ClipPooling(**config)
    load_strictly(pooling, weights.part("pooling"), "pooling")
    return pooling


class SSAST(SpectrogramLobe):
    """SSAST as a lobe, from a size and a geometry or from trained weights.

    Gong et al., "SSAST: Self-Supervised Audio Spectrogram Transformer",
    AAAI 2022.

    Arguments
    ---------
    model_size : str
        ``"micro"`` (for CPUs), ``"tiny"``, ``"small"``, ``"base"`` or
        ``"large"``; ignored with a `source`, which determines the size.
    geometry : str or tuple of int
        ``"patch"``, ``"frame"``, or a patch size (mel bins, frames); ignored
        with a `source`.
    source : str or path, optional
        Weights to start from: an exported folder, an official ``.pth``, a
        released checkpoint of another lab (docs/checkpoints.md), a folder of
        Hugging Face's AST, ``user/repo`` on the hub, or a bundled model that
        ``ssast-lobes models`` lists. Clips keep their lengths, even if the
        source has reference padding (see `FrontEnd`).
    freeze : bool
        Whether to freeze the lobe; see `SpectrogramLobe`.
    output : str
        ``"frames"``, ``"patches"`` or ``"clip"``; see `SpectrogramLobe`.
    statistics : str or dict, optional
        Normalization; see `FrontEnd`. By default that of `source`; without a
        `source`, AudioSet's.
    n_mels : int, optional
        Mel bins of the spectrogram. By default those of `source`; without a
        `source`, 128.
    stride : tuple of int, optional
        Step between patches (mel bins, frames), smaller than a patch for
        overlap. For a fine-tuned official checkpoint it must be the stride of
        its training.
    table_frames : int, optional
        Number of frames that the position table spans; ignored with a `source`.
    drop_path : float
        Rate of stochastic depth; see `SpectrogramEncoder`.
    checkpointing : bool, optional
        Whether to save memory by recomputing blocks; see `SpectrogramEncoder`.
        By default only the size ``"large"`` does.
    family : str, optional
        Family of the checkpoint `source`; needed if the keys of the checkpoint
        do not determine it. See docs/checkpoints.md.

    Raises
    ------
    WeightsError
        If `source` does not load.

    Example
    -------
    >>> lobe = SSAST(model_size="micro", geometry="frame", output="frames")
    >>> lobe(torch.randn(1, 16000)).shape, lobe.output_size
    (torch.Size([1, 49, 128]), 128)
    """

    def __init__(
        self,
        model_size="tiny",
        geometry="patch",
        source=None,
        freeze=False,
        output="frames",
        statistics=None,
        n_mels=None,
        stride=None,
        table_frames=1024,
        drop_path=0.0,
        checkpointing=None,
        family=None,
    ):
        # Loading takes long, so check the settings first.
        whole("n_mels", n_mels, null=True)
        require(isinstance(model_size, str), "model_size", "a name", model_size)
        training = {"drop_path": drop_path}
        if checkpointing is not None:
            training["checkpointing"] = checkpointing
        report = []
        chunks = None
        if source is None:
            features, pooling = {}, None
            encoder = SpectrogramEncoder.from_size(
                model_size,
                geometry,
                n_mels or 128,
                stride,
                table_frames=table_frames,
                **training,
            )
        else:
            weights = load_weights(source, stride, family)
            own = weights.config.get("family")
            allowed = f"{own or 'null'} for the source {source}"
            require(family in (None, own), "family", allowed, family)
            chunks = weights.config.get("chunks")
            features = dict(weights.config.get("features", {}))
            config = weights.config["encoder"]
            grid = _adapted_grid(config["grid"], n_mels, stride)
            if features.pop("pad_frames", None) is not None:
                grid["keep_partial"] = True
                weights.report.append(
                    "clips keep their own lengths: the reference padding of "
                    "the source is left out"
                )
            encoder = make_encoder({**config, "grid": grid, **training})
            with error_context(source):
                report = initialize(encoder, weights)
                # Unused parameters would stop distributed training.
                clip = output == "clip"
                pooling = _pooling_of(weights, encoder) if clip else None
        _refuse_gaps(encoder.grid, stride)
        features["n_mels"] = encoder.grid.n_mels
        if statistics is not None:
            features["statistics"] = statistics
        super().__init__(
            encoder, FrontEnd(**features), output, pooling, freeze, chunks
        )
        # What was loaded, adapted or left out, one line each.
        self.report = report


def _adapted_grid(config, n_mels, stride):
    """Return the grid of a checkpoint with other mel bins or another stride."""
    grid = dict(config)
    if n_mels is not None and n_mels != grid["n_mels"]:
        bins, frames = grid["patch"]
        # A patch that spans all mel bins must do so with the new number, too.
        bins = n_mels if bins == grid["n_mels"] else bins
        overlap = grid["stride"] != grid["patch"]
        grid["stride"] = grid["stride"] if overlap else [bins, frames]
        grid.update(n_mels=n_mels, patch=[bins, frames])
    if stride is not None:
        grid["stride"] = stride
    return grid


def _refuse_gaps(grid, stride):
    """Raise if a stride leaves out audio between patches."""
    steps = zip(grid.stride, grid.patch, strict=True)
    allowed = f"no larger than a patch, {list(grid.patch)}"
    right = stride is None or all(step <= size for step, size in steps)
    require(right, "stride", allowed, stride)
