"""Compute clip vectors for probes, by frozen encoders or as baselines.

A source computes the vectors of a clip for all ways of pooling in one pass. The
cache identifies a source by its weights and settings, never by its path. If an
audio file has changed, its vectors are recomputed. If the weights have changed,
all vectors are recomputed.
"""

import copy
import json
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.utils.logger import get_logger
from torch import nn
from torchaudio.functional import compute_deltas, create_dct
from tqdm import tqdm

from ssast_lobes.checkpoints.format import window_seconds
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.projections import Projection
from ssast_lobes.dataio.addresses import stamp_of
from ssast_lobes.dataio.audio import audio_info
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.evaluation.statistics import frame_blocks
from ssast_lobes.inference.encoder import AudioEncoder
from ssast_lobes.models.encoders import make_encoder
from ssast_lobes.models.features import FrontEnd, KaldiFbank
from ssast_lobes.models.pooling import POOLINGS
from ssast_lobes.utils.files import atomic_write
from ssast_lobes.utils.fingerprint import fingerprint

logger = get_logger(__name__)

LAYERS = ("last", "all-mean", "all")

# Probes choose from these ways of pooling: pairs of a pooling and layers.
VARIANTS = (
    ("mean", "last"),
    ("class", "last"),
    ("statistics", "last"),
    ("dynamics", "last"),
    ("mean", "all-mean"),
    ("class", "all-mean"),
    ("statistics", "all"),
    ("dynamics", "all"),
)

# The vectors that projections take.
PROJECTED = ("dynamics", "all")

# Vectors of a layer: the dynamics of its tokens, and the mean of its class
# tokens.
_PER_LAYER = POOLINGS["dynamics"] + 1

# This is a part of every key. Increase it when the same weights give new
# vectors.
_VERSION = 3
_FLUSH_SECONDS = 120


class PooledEncoder(AudioEncoder):
    """A frozen encoder that returns the vectors of all `VARIANTS`.

    If the source is a classifier, only its encoder is used, without head and
    pooling.

    Arguments
    ---------
    source : str or path
        Exported folder, or official ``.pth`` file, which gets AudioSet's
        normalization.
    device : str
        Device that computes the vectors.
    batch_size : int
        Windows computed at once.

    Raises
    ------
    WeightsError
        If the source does not load.
    """

    def __init__(self, source, device="cpu", batch_size=16):
        # The parent needs a configuration, which an official checkpoint lacks.
        self.source = source
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.precision = torch.float32
        weights = load_weights(source)
        _complete(weights.config)
        self._build(weights)
        self.lobe.pooling = _AllLayers()
        # These configurations state all settings, including those that the
        # source omits.
        self.architecture = {
            "encoder": self.lobe.encoder.config,
            "features": self.lobe.features.config,
            "window_seconds": weights.config["window_seconds"],
        }

    def untrained(self, seed=0):
        """Return the same encoder before any training.

        Arguments
        ---------
        seed : int
            Seed of the random weights.

        Returns
        -------
        PooledEncoder
        """
        other = copy.copy(self)
        other.lobe = copy.deepcopy(self.lobe)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = make_encoder(self.architecture["encoder"])
        other.lobe.encoder = encoder.requires_grad_(False).eval()
        other.lobe.to(self.device)
        return other

    def check_variants(self, variants):
        """Raise if this encoder can compute none of the requested variants.

        Arguments
        ---------
        variants : list of tuple
            Items of `VARIANTS`.

        Raises
        ------
        ValueError
            If all variants pool class tokens, and the encoder has none.
        """
        asked = {pooling for pooling, _ in variants}
        if asked == {"class"} and self.lobe.encoder.n_class_tokens == 0:
            raise ValueError(
                f"{self.source}: pooling 'class': this encoder has no class "
                "tokens, choose mean or best"
            )

    @property
    def key(self):
        """Hash of the weights and of all settings that change the vectors."""
        settings = json.dumps([_VERSION, VARIANTS, self.architecture])
        return fingerprint(self.lobe.encoder, settings)

    def vectors(self, paths, name, unreadable):
        """Embed files, with a progress bar.

        Arguments
        ---------
        paths : list of str
            The files, preferably sorted by duration.
        name : str
            Name of the encoder in the progress bar.
        unreadable : list
            Collects (path, reason) of unreadable files.

        Yields
        ------
        path : str
            The file.
        vectors : torch.Tensor
            (5 (L + 2), D). Each layer has five vectors: four of the dynamics
            of the tokens (see `ssast_lobes.models.pooling.pool`), and the mean
            of the class tokens. The layers are the output of the final norm,
            the input of the first block, and the output of each block.
        """
        yield from self._encode(paths, "clip", unreadable, f"Embedding, {name}")


def _complete(config):
    """Complete the configuration of an official checkpoint."""
    n_mels = config["encoder"]["grid"]["n_mels"]
    config.setdefault("kind", "pretrained")
    config.setdefault("features", FrontEnd(n_mels=n_mels).config)
    if "window_seconds" not in config:
        config["window_seconds"] = window_seconds(
            config["encoder"], config["features"]
        )


class _AllLayers(nn.Module):
    """A pooling to (B, 5 (L + 2), D); see `PooledEncoder.vectors`."""

    needs_hidden_states = True

    def forward(self, encoded):
        parts = [(encoded.tokens, encoded.class_tokens)]
        parts += zip(
            encoded.hidden_states, encoded.class_hidden_states, strict=True
        )
        vectors = []
        for tokens, classes in parts:
            of_tokens = encoded.pool_tokens(tokens, classes, "dynamics")
            vectors += of_tokens.chunk(POOLINGS["dynamics"], dim=1)
            # Without class tokens, repeat the mean. This copy is never chosen,
            # since the first of equal choices wins. See `check_variants`.
            pooling = "class" if classes.shape[1] else "mean"
            vectors.append(encoded.pool_tokens(tokens, classes, pooling))
        return torch.stack(vectors, dim=1)


def pooled(vectors, pooling, layers):
    """Return the clip vectors of one way of pooling.

    Arguments
    ---------
    vectors : torch.Tensor
        (N, 5 (L + 2), D); see `PooledEncoder.vectors`.
    pooling : str
        ``"mean"`` of the tokens, mean of the ``"class"`` tokens,
        ``"statistics"`` or ``"dynamics"`` of the tokens; see
        `ssast_lobes.models.pooling.pool`.
    layers : str
        ``"last"``: the output of the final norm; ``"all-mean"``: the mean of
        the outputs of all blocks, before the norm; ``"all"``: the input of the
        first block and the outputs of all blocks, concatenated.

    Returns
    -------
    torch.Tensor
        (N, D'), equal to that of `ssast_lobes.models.pooling.ClipPooling`.

    Example
    -------
    >>> vectors = torch.randn(5, 5 * (12 + 2), 192)
    >>> pooled(vectors, "statistics", "all").shape
    torch.Size([5, 4992])
    """
    by_layer = vectors.unflatten(1, (-1, _PER_LAYER))
    first = _PER_LAYER - 1 if pooling == "class" else 0
    chosen = by_layer[:, :, first : first + POOLINGS[pooling]]
    if layers == "last":
        return chosen[:, 0].flatten(1)
    if layers == "all":
        return chosen[:, 1:].flatten(1)
    return chosen[:, 2:].mean(1).flatten(1)


class Readout(NamedTuple):
    """A way to make one vector of the vectors of a clip.

    Arguments
    ---------
    pooling, layers : str or None
        See `pooled`; None for sources that have one vector for each clip.
    projection : Projection, optional
        Maps the pooled vector.

    Example
    -------
    >>> Readout("mean", "last")(torch.randn(3, 5 * (12 + 2), 192)).shape
    torch.Size([3, 192])
    """

    pooling: str = None
    layers: str = None
    projection: Projection = None

    def __call__(self, vectors):
        """Return the vectors (N, D') of clips, from vectors (N, R, D)."""
        if self.pooling is None:
            return vectors[:, 0]
        one = pooled(vectors, self.pooling, self.layers)
        return one if self.projection is None else self.projection(one)


class LogMelStatistics:
    """Mean and standard deviation of each log-mel bin over time.

    Arguments
    ---------
    sample_rate : int
        Rate in Hz to convert audio to.
    n_mels : int
        Number of mel bins M.

    Example
    -------
    >>> import soundfile
    >>> path = str(getfixture("tmpdir").join("noise.wav"))
    >>> soundfile.write(path, np.random.default_rng(0).normal(size=800), 8000)
    >>> [(_, vectors)] = LogMelStatistics().vectors([path], "log-mel", [])
    >>> vectors.shape
    torch.Size([1, 256])
    """

    def __init__(self, sample_rate=16000, n_mels=128):
        self.fbank = KaldiFbank(sample_rate, n_mels)

    @property
    def key(self):
        """Text with all settings that change the vectors."""
        fbank = self.fbank
        return f"log-mel-{fbank.sample_rate}-{fbank.n_mels}-{_VERSION}"

    def vectors(self, paths, name, unreadable):
        """Yield vectors (1, 2 M); see `PooledEncoder.vectors`."""
        for path in tqdm(paths, f"Measuring, {name}", unit="file"):
            try:
                yield path, self._statistics(path)[None]
            except UnreadableAudio as error:
                unreadable.append((path, error.reason(path)))

    def _statistics(self, path):
        """Return the vector (2 M,) of a file of any length."""
        count = total = squares = 0
        for wav in frame_blocks(path, self.fbank):
            feats, n_frames = self.fbank(wav[None])
            feats = self._frames(feats[0, : n_frames[0]].double())
            count += len(feats)
            total = total + feats.sum(0)
            squares = squares + feats.square().sum(0)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        return torch.cat([mean, deviation]).float()

    def _frames(self, feats):
        """Return the features (T, M') to measure, from log-mel energies."""
        return feats


class MFCCStatistics(LogMelStatistics):
    """Mean and standard deviation over time of cepstra and their slopes.

    Mel-frequency cepstral coefficients are the orthonormal cosine transform
    (DCT-II) of the log-mel energies. Their slopes over five frames are
    appended, and the slopes of these slopes. These features were usual before
    neural networks. Long files are read in blocks of 30 s, and slopes do not
    cross the borders of blocks.

    Arguments
    ---------
    sample_rate : int
        Rate in Hz to convert audio to.
    n_mels : int
        Number of mel bins.
    n_mfcc : int
        Number of coefficients C to keep, including the first.

    Example
    -------
    >>> import soundfile
    >>> path = str(getfixture("tmpdir").join("noise.wav"))
    >>> soundfile.write(path, np.random.default_rng(0).normal(size=800), 8000)
    >>> [(_, vectors)] = MFCCStatistics().vectors([path], "MFCC", [])
    >>> vectors.shape
    torch.Size([1, 120])
    """

    def __init__(self, sample_rate=16000, n_mels=40, n_mfcc=20):
        super().__init__(sample_rate, n_mels)
        self.transform = create_dct(n_mfcc, n_mels, norm="ortho").double()

    @property
    def key(self):
        """Text with all settings that change the vectors."""
        n_mfcc = self.transform.shape[1]
        return super().key.replace("log-mel", f"mfcc-{n_mfcc}")

    def _frames(self, feats):
        cepstra = (feats @ self.transform).T
        slopes = compute_deltas(cepstra)
        return torch.cat([cepstra, slopes, compute_deltas(slopes)]).T


class ClipDuration:
    """Duration of each clip, in seconds, and its logarithm.

    Where classes differ in this alone, such as sounds that are cut in one way
    and speech that is cut in another, high scores say little about the audio.

    Example
    -------
    >>> import soundfile
    >>> path = str(getfixture("tmpdir").join("silence.wav"))
    >>> soundfile.write(path, np.zeros(8000), 8000)
    >>> [(_, vectors)] = ClipDuration().vectors([path], "duration", [])
    >>> vectors
    tensor([[1., 0.]])
    """

    key = f"duration-{_VERSION}"

    def vectors(self, paths, name, unreadable):
        """Yield vectors (1, 2); see `PooledEncoder.vectors`."""
        for path in tqdm(paths, f"Measuring, {name}", unit="file"):
            try:
                seconds = torch.tensor(audio_info(path).seconds)
            except UnreadableAudio as error:
                unreadable.append((path, error.reason(path)))
            else:
                yield path, torch.stack([seconds, seconds.log()])[None]


def cached_vectors(source, name, paths, folder, unreadable):
    """Return the vectors of files, from the cache if it contains them.

    The cache is written every two minutes, and when the run is stopped.

    Arguments
    ---------
    source : PooledEncoder, LogMelStatistics or ClipDuration
        Computes the vectors.
    name : str
        Name of the source in the progress bar.
    paths : iterable of str
        The files.
    folder : str or path
        Folder of the cache, with a file for each source.
    unreadable : list
        Collects (path, reason) of unreadable files.

    Returns
    -------
    dict of str to torch.Tensor
        Vectors of the source by path, without the unreadable files.
    """
    file = Path(folder) / f"{source.key}.npz"
    known = _read(file)
    paths = list(dict.fromkeys(paths))
    stamps = {path: stamp_of(path) for path in paths}
    new = [p for p in paths if p not in known or known[p][0] != stamps[p]]
    if new:
        _compute(source, name, new, stamps, known, file, unreadable)
    left_out = {path for path, _ in unreadable}
    return {
        path: torch.from_numpy(known[path][1])
        for path in paths
        if path not in left_out
    }


def _compute(source, name, paths, stamps, known, file, unreadable):
    """Add the vectors of files to the known ones, and to the cache."""
    written = time.monotonic()
    ordered = _by_duration(paths, unreadable)
    try:
        for path, vectors in source.vectors(ordered, name, unreadable):
            known[path] = stamps[path], vectors.numpy()
            if time.monotonic() - written > _FLUSH_SECONDS:
                _write(file, known)
                written = time.monotonic()
    finally:
        _write(file, known)


def _by_duration(paths, unreadable):
    """Sort readable paths from long to short; list the unreadable ones.

    In this order, batches need little padding, and a lack of memory shows at
    once.
    """
    seconds = {}
    for path in paths:
        try:
            seconds[path] = audio_info(path).seconds
        except UnreadableAudio as error:
            unreadable.append((path, error.reason(path)))
    return sorted(seconds, key=seconds.get, reverse=True)


def _read(file):
    """Return (stamp, vectors) by path; empty without a usable cache."""
    if not file.exists():
        return {}
    try:
        with np.load(file) as stored:
            paths, stamps = stored["paths"].tolist(), stored["stamps"].tolist()
            vectors = stored["vectors"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        logger.warning(f"{file}: damaged cache, computed anew")
        return {}
    return {
        path: (tuple(stamp), row)
        for path, stamp, row in zip(paths, stamps, vectors, strict=True)
    }


def _write(file, known):
    """Write the cache, complete or not at all."""
    if not known:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    stamps, vectors = zip(*known.values(), strict=True)
    with atomic_write(file, "wb") as out:
        np.savez(
            out,
            paths=list(known),
            stamps=np.array(stamps, dtype=np.int64),
            vectors=np.stack(vectors),
        )
