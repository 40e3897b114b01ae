"""Codes by offline k-means, as in HuBERT and MERT."""

import json

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ssast_lobes.models.patches import Grid
from ssast_lobes.objectives.tokenizers.codes import (
    code_frequency,
    nearest,
    refuse_collapse,
    refuse_other_front_end,
    used_and_entropy,
)
from ssast_lobes.objectives.tokenizers.features import (
    SAMPLE_RATE,
    make_features,
)
from ssast_lobes.utils.checks import ArgumentError, require, whole
from ssast_lobes.utils.files import atomic_write

_TENSORS = ("centers", "mean", "std")


class KMeansTokenizer(nn.Module):
    """Assign the nearest center of a k-means fit to each token.

    With one file, labels are as in HuBERT (Hsu et al., TASLP 2021). With two
    files, labels are as in MERT's first version (Li et al., ICLR 2024). A file
    is complete: for ``--features block`` it also contains the frozen encoder.

    Arguments
    ---------
    grid : Grid
        Grid of the encoder to train.
    files : list of str
        Files of ``ssast-lobes tokenizer fit``, one for each codebook. `n_codes`
        is the size of the largest codebook; smaller codebooks do not use all
        ids.

    Raises
    ------
    ValueError
        If a file is missing, or was fitted for another grid, or with another
        front end than the other files.

    Example
    -------
    >>> from ssast_lobes import FrontEnd, Grid
    >>> folder = getfixture("tmp_path")
    >>> files = [str(folder / "logmel.codes"), str(folder / "cepstra.codes")]
    >>> for name, file in zip(("logmel", "cepstra"), files, strict=True):
    ...     features = make_features(name, Grid())
    ...     x = features(torch.randn(8, 64, 128)).flatten(0, 1)
    ...     used, entropy = fit_kmeans(features, x, file, 8, FrontEnd())
    >>> KMeansTokenizer(Grid(), files)(torch.randn(3, 32, 128)).shape
    torch.Size([3, 16, 2])
    """

    needs_place = False

    def __init__(self, grid, files):
        super().__init__()
        allowed = "a list of files of `ssast-lobes tokenizer fit`"
        require(isinstance(files, list) and files, "files", allowed, files)
        self.grid, self.files = grid, [str(file) for file in files]
        self.books = nn.ModuleList(map(_Book, self.files))
        for file, book in zip(self.files, self.books, strict=True):
            if book.features.grid != grid:
                raise ArgumentError(
                    f"tokenizer: {file} was fitted for "
                    f"{book.features.grid.config}, not {grid.config}"
                )
        self.n_books = len(self.books)
        self.sizes = [len(book.centers) for book in self.books]
        self.n_codes = max(self.sizes)
        self.needs_audio = any(b.features.needs_audio for b in self.books)
        self.sample_rate = SAMPLE_RATE if self.needs_audio else None
        # Features of the waveform do not depend on the front end.
        self.front_ends = {
            file: book.front_end
            for file, book in zip(self.files, self.books, strict=True)
            if not book.features.needs_audio
        }
        if self.front_ends:
            first = next(iter(self.front_ends))
            self._refuse_other(first, self.front_ends[first])

    @property
    def config(self):
        """The arguments, without the grid, that rebuild this."""
        return {"name": "KMeansTokenizer", "files": self.files}

    def check_front_end(self, features):
        """Raise if log-mel features were fitted with another front end."""
        self._refuse_other("the front end of the pretraining", features.config)

    def _refuse_other(self, name, config):
        for file, own in self.front_ends.items():
            # A padded clip has the features of the clip, and silence.
            refuse_other_front_end(file, own, name, config, ("pad_frames",))

    @torch.no_grad()
    def forward(self, feats, n_frames=None, **audio):
        """Return the ids of all tokens.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels), 0 at padding.
        n_frames : torch.Tensor, optional
            Valid frames (B,).
        **audio
            ``wavs`` (B, S) and ``n_samples`` (B,), with `needs_audio`.

        Returns
        -------
        torch.Tensor
            (B, N, n_books) int64, arbitrary at padding.
        """
        with torch.autocast(feats.device.type, enabled=False):
            ids = [book(feats.float(), n_frames, audio) for book in self.books]
        return torch.stack(ids, 2)


class _Book(nn.Module):
    """Hold the centers of a file, and the module of their features."""

    def __init__(self, file):
        super().__init__()
        fitted, tensors = read_fitted(file)
        for name in _TENSORS:
            self.register_buffer(name, tensors.pop(name))
        grid = Grid(**fitted["grid"])
        self.front_end = fitted["front_end"]
        self.features = make_features(grid=grid, **fitted["features"])
        self.features.load_state_dict(tensors)

    def forward(self, feats, n_frames, audio):
        if self.features.needs_audio:
            x = self.features(feats, n_frames, **audio)
        else:
            x = self.features(feats)
        x = (x - self.mean) / self.std
        return nearest(x[:, None], self.centers[None])[:, 0]


def read_fitted(file):
    """Read a file of `fit_kmeans`.

    Arguments
    ---------
    file : str or os.PathLike

    Returns
    -------
    fitted : dict
        Arguments of `make_features` (``features``), of the grid (``grid``)
        and of the front end (``front_end``).
    tensors : dict of str to torch.Tensor
        ``centers`` (K, D), ``mean`` and ``std`` (D,), and the weights of the
        frozen encoder.

    Raises
    ------
    ValueError
        If `file` is not a file of `fit_kmeans`.

    Example
    -------
    >>> read_fitted("nowhere")
    Traceback (most recent call last):
    ...
    ssast_lobes...ArgumentError: tokenizer: nowhere is no file of ...
    """
    try:
        with safe_open(file, framework="pt") as content:
            fitted = json.loads(content.metadata()["tokenizer"])
            tensors = {key: content.get_tensor(key) for key in content.keys()}
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise ArgumentError(
            f"tokenizer: {file} is no file of `ssast-lobes tokenizer fit`: "
            f"{error}"
        ) from error
    return fitted, tensors


def fit_kmeans(features, x, file, n_codes, front_end, seed=0):
    """Fit k-means to tokens, and save it for `KMeansTokenizer`.

    Arguments
    ---------
    features : torch.nn.Module
        Module of `make_features`.
    x : torch.Tensor
        Outputs of `features` for N tokens, (N, D).
    file : str or os.PathLike
        The safetensors file to write.
    n_codes : int
        Number of centers.
    front_end : FrontEnd
        Front end that computed the log-mel; the file keeps its configuration.
    seed : int
        Seed of scikit-learn's `MiniBatchKMeans`.

    Returns
    -------
    used, entropy : float
        See `used_and_entropy`.

    Raises
    ------
    ValueError
        If there are fewer tokens than codes, or the codes have collapsed.
    """
    # The import takes a second, and only this function needs it.
    from sklearn.cluster import MiniBatchKMeans

    whole("n_codes", n_codes, 2)
    if len(x) < n_codes:
        raise ArgumentError(
            f"{n_codes} codes need as many tokens, there are {len(x)}: give "
            "more audio, or fewer codes"
        )
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    model = MiniBatchKMeans(n_codes, random_state=seed, n_init=3)
    ids = model.fit_predict(((x - mean) / std).double().numpy())
    ids = torch.from_numpy(ids).long()[:, None]
    frequency = code_frequency(ids, n_codes, torch.ones(len(ids)))
    refuse_collapse(frequency, file)
    centers = torch.from_numpy(model.cluster_centers_).float()
    tensors = dict(zip(_TENSORS, (centers, mean, std), strict=True))
    fitted = {
        "features": {"name": features.name, **features.config},
        "grid": features.grid.config,
        "front_end": front_end.config,
    }
    tensors |= features.state_dict()
    with atomic_write(file, "wb") as content:
        content.write(save(tensors, {"tokenizer": json.dumps(fitted)}))
    return used_and_entropy(frequency)
