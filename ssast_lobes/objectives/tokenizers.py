"""Tokenizers of the objective `Codes`: discrete codes of a grid's tokens.

A tokenizer is a module with ``n_books``, ``n_codes`` and ``config``, which maps
normalized log-mel (B, T, n_mels) to ids (B, N, n_books). It is frozen, and its
tensors are buffers: what an optimizer or a change of precision does to
parameters must not move a code.
"""

import functools
import json
import math
from itertools import pairwise

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ssast_lobes.utils.checks import flag, one_of, whole
from ssast_lobes.utils.files import atomic_write

NORMS = ("layer", "l2")
FEATURES = ("logmel", "cepstra")
# Fewer are a collapse: most clusters hold nothing.
_LEAST_USED = 0.5
_TENSORS = ("centers", "mean", "std")
# As of MFCC: the first coefficients, without the zeroth, describe the spectral
# envelope.
_CEPSTRA = 20


class RandomProjectionTokenizer(nn.Module):
    """Nearest random code of a random projection of each patch.

    Nothing is fitted. With ``norm="layer"`` as in the first iteration of BEATs
    (Chen et al., ICML 2023; ESPnet's ``espnet2/beats/random_tokenizer.py``): a
    projection to twice the code size, layer norm, a projection to the code
    size, layer norm, and the code at the least distance. With ``norm="l2"``
    as in BEST-RQ (Chiu et al., ICML 2022): one projection, and codes and
    vectors of length 1.

    Arguments
    ---------
    grid : Grid
        Of the encoder.
    n_codes : int
        Codes of a book.
    dim : int
        Size of a code.
    n_books : int
        Independent tokenizers side by side.
    norm : str
        ``"layer"`` or ``"l2"``.
    center : bool
        Take its mean off each patch first. Loud and quiet patches then share
        codes, and more codes are used: of 1,024, ten seconds each of 150
        clips of LibriSpeech used 40 % without and 61 % with it.
    seed : int
        Of projections and codes.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> tokenizer = RandomProjectionTokenizer(
    ...     Grid(), n_codes=64, dim=16, n_books=2
    ... )
    >>> tokenizer(torch.randn(3, 32, 128)).shape
    torch.Size([3, 16, 2])
    """

    def __init__(
        self,
        grid,
        n_codes=1024,
        dim=256,
        n_books=1,
        norm="layer",
        center=False,
        seed=0,
    ):
        super().__init__()
        self.n_codes = whole("n_codes", n_codes, 2)
        self.dim = whole("dim", dim, 1)
        self.n_books = whole("n_books", n_books, 1)
        self.norm = one_of("norm", norm, NORMS)
        self.center = flag("center", center)
        self.seed = whole("seed", seed, 0)
        self.grid = grid
        draw = torch.Generator().manual_seed(seed)

        def normal(*size):
            return torch.randn(n_books, *size, generator=draw)

        patch = grid.patch_size
        if norm == "layer":
            # Xavier's deviations, with which ESPnet starts both projections.
            sizes = [patch, 2 * dim, dim]
            spreads = [(2 / (a + b)) ** 0.5 for a, b in pairwise(sizes)]
            codes = normal(n_codes, dim)
        else:
            sizes, spreads = [patch, dim], [(2 / (patch + dim)) ** 0.5]
            codes = nn.functional.normalize(normal(n_codes, dim), dim=2)
        self.n_projections = len(spreads)
        for number, spread in enumerate(spreads):
            matrix = spread * normal(sizes[number], sizes[number + 1])
            self.register_buffer(f"projection{number}", matrix)
        self.register_buffer("codes", codes)

    @property
    def config(self):
        """The arguments, without the grid, that rebuild this."""
        return {
            "name": "RandomProjectionTokenizer",
            "n_codes": self.n_codes,
            "dim": self.dim,
            "n_books": self.n_books,
            "norm": self.norm,
            "center": self.center,
            "seed": self.seed,
        }

    @torch.no_grad()
    def forward(self, feats):
        """Return the ids of all tokens.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels), 0 at padding.

        Returns
        -------
        torch.Tensor
            (B, N, n_books) int64, arbitrary at padding.
        """
        # Codes near each other would change places with the roundings of bf16.
        with torch.autocast(feats.device.type, enabled=False):
            x = self.grid.unfold(feats.float())[:, None]
            if self.center:
                x = x - x.mean(-1, keepdim=True)
            for number in range(self.n_projections):
                x = x @ getattr(self, f"projection{number}")
                if self.norm == "layer":
                    x = nn.functional.layer_norm(x, x.shape[-1:])
                else:
                    x = nn.functional.normalize(x, dim=-1)
            return nearest(x, self.codes).transpose(1, 2)


class KMeansTokenizer(nn.Module):
    """Nearest center of features that k-means has fitted offline.

    As the labels of HuBERT's first iteration (Hsu et al., TASLP 2021).

    Arguments
    ---------
    grid : Grid
        Of the encoder.
    file : str or os.PathLike
        What `fit_kmeans` has written.

    Raises
    ------
    ValueError
        If there is no such file, or it was fitted for another grid.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> file = getfixture("tmp_path") / "codes.safetensors"
    >>> x = describe(Grid(), torch.randn(8, 64, 128), "cepstra").flatten(0, 1)
    >>> fit_kmeans(Grid(), x, file, n_codes=8, features="cepstra")[0]
    1.0
    >>> KMeansTokenizer(Grid(), file)(torch.randn(3, 32, 128)).shape
    torch.Size([3, 16, 1])
    """

    n_books = 1

    def __init__(self, grid, file):
        super().__init__()
        self.grid, self.file = grid, str(file)
        try:
            with safe_open(file, framework="pt") as content:
                fitted = json.loads(content.metadata()["tokenizer"])
                tensors = {key: content.get_tensor(key) for key in _TENSORS}
        except (OSError, SafetensorError, TypeError, KeyError) as error:
            raise ValueError(
                f"tokenizer: {file} is no file of `ssast-lobes tokenizer fit`: "
                f"{error}"
            ) from error
        if fitted["grid"] != grid.config:
            raise ValueError(
                f"tokenizer: {file} was fitted for {fitted['grid']}, the "
                f"encoder has {grid.config}"
            )
        self.features = fitted["features"]
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.n_codes = len(self.centers)

    @property
    def config(self):
        """The arguments, without the grid, that rebuild this."""
        return {"name": "KMeansTokenizer", "file": self.file}

    @torch.no_grad()
    def forward(self, feats):
        """Return ids; see `RandomProjectionTokenizer.forward`."""
        with torch.autocast(feats.device.type, enabled=False):
            x = describe(self.grid, feats.float(), self.features)
            x = (x - self.mean) / self.std
            return nearest(x[:, None], self.centers[None]).transpose(1, 2)


_TOKENIZERS = {
    kind.__name__: kind for kind in (RandomProjectionTokenizer, KMeansTokenizer)
}


def make_tokenizer(tokenizer, grid):
    """Return a tokenizer for a grid.

    Arguments
    ---------
    tokenizer : callable or dict or torch.nn.Module
        What makes one of the grid, such as a class, or ``!name:`` with
        arguments in a YAML; the `config` of one of this package; or a
        tokenizer, which is returned as it is.
    grid : Grid
        Of the encoder.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ValueError
        If it is none of these, or the arguments do not fit.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> config = {"name": "RandomProjectionTokenizer", "n_codes": 16}
    >>> make_tokenizer(config, Grid()).n_codes
    16
    """
    if isinstance(tokenizer, nn.Module):
        return tokenizer
    if isinstance(tokenizer, dict) and tokenizer.get("name") in _TOKENIZERS:
        arguments = dict(tokenizer)
        kind = _TOKENIZERS[arguments.pop("name")]
        tokenizer = functools.partial(kind, **arguments)
    if not callable(tokenizer):
        raise ValueError(
            "tokenizer must be a class, !name:CLASS {...} in a YAML, or a "
            f"module, got {tokenizer!r}"
        )
    try:
        return tokenizer(grid)
    except TypeError as error:
        raise ValueError(f"tokenizer: {error}") from error


def nearest(x, codes):
    """Return the ids of the codes at the least distance.

    Arguments
    ---------
    x : torch.Tensor
        (B, n_books or 1, N, D).
    codes : torch.Tensor
        (n_books, n_codes, D).

    Returns
    -------
    torch.Tensor
        (B, n_books, N) int64.

    Example
    -------
    >>> codes = torch.tensor([[[0.0], [1.0]]])
    >>> nearest(torch.tensor([[[[0.2], [0.9]]]]), codes)
    tensor([[[0, 1]]])
    """
    scores = x @ codes.transpose(1, 2) - codes.square().sum(2)[:, None] / 2
    return scores.argmax(3)


def describe(grid, feats, features):
    """Return what k-means sees of each token.

    Arguments
    ---------
    grid : Grid
        Of the encoder.
    feats : torch.Tensor
        Normalized log-mel (B, T, n_mels).
    features : str
        ``"logmel"``: the pixels of the token's patch. ``"cepstra"``: 20
        cepstral coefficients of whole frames, the mean over the frames of
        the token; tokens of one time have the same.

    Returns
    -------
    torch.Tensor
        (B, N, D).

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> describe(Grid(), torch.zeros(2, 32, 128), "cepstra").shape
    torch.Size([2, 16, 20])
    """
    patches = grid.unfold(feats)
    if features == "logmel":
        return patches
    n_mels = feats.shape[2]
    # The cosine transform, type II, of all mel bins.
    places = math.pi / n_mels * (torch.arange(n_mels) + 0.5)
    rows = torch.arange(1, _CEPSTRA + 1)
    cosines = (rows[:, None] * places).cos().to(feats) * (2 / n_mels) ** 0.5
    patches = patches.unflatten(2, grid.patch).mean(3)
    spectra = patches.unflatten(1, (grid.n_freq, -1)).transpose(1, 2).flatten(2)
    return (spectra @ cosines.T).repeat(1, grid.n_freq, 1)


def fit_kmeans(grid, x, file, n_codes, features, seed=0):
    """Fit k-means to tokens, and save it for `KMeansTokenizer`.

    Arguments
    ---------
    grid : Grid
        Of the encoder.
    x : torch.Tensor
        Tokens (N, D), as `describe` gives them.
    file : str or os.PathLike
        Where to write, a safetensors file.
    n_codes : int
        Number of centers.
    features : str
        See `describe`.
    seed : int
        Of scikit-learn's `MiniBatchKMeans`.

    Returns
    -------
    used : float
        Fraction of the codes that the tokens use.
    entropy : float
        Entropy of the codes, over its greatest value: 1 where all are used
        alike.

    Raises
    ------
    ValueError
        If there are fewer tokens than codes, or the codes have collapsed.
    """
    # Takes a second to import, which only this function needs.
    from sklearn.cluster import MiniBatchKMeans

    whole("n_codes", n_codes, 2)
    one_of("features", features, FEATURES)
    if len(x) < n_codes:
        raise ValueError(
            f"{n_codes} codes need as many tokens, there are {len(x)}: give "
            "more audio, or fewer codes"
        )
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    model = MiniBatchKMeans(n_codes, random_state=seed, n_init=3)
    ids = model.fit_predict(((x - mean) / std).double().numpy())
    ids = torch.from_numpy(ids).long()
    frequency = code_frequency(ids, n_codes, torch.ones(len(ids)))
    used = (frequency > 0).float().mean().item()
    entropy = torch.special.entr(frequency).sum().item() / math.log(n_codes)
    if used < _LEAST_USED:
        raise ValueError(
            f"the codes have collapsed: {100 * used:.0f} % of {n_codes} are "
            f"used, entropy {entropy:.2f} of 1; fit fewer codes, or more audio"
        )
    centers = torch.from_numpy(model.cluster_centers_).float()
    tensors = dict(zip(_TENSORS, (centers, mean, std), strict=True))
    fitted = json.dumps({"features": features, "grid": grid.config})
    with atomic_write(file, "wb") as content:
        content.write(save(tensors, {"tokenizer": fitted}))
    return used, entropy


def code_frequency(ids, n_codes, weight):
    """Return how frequent each code is.

    Arguments
    ---------
    ids : torch.Tensor
        int64 (..).
    n_codes : int
        Codes that there are.
    weight : torch.Tensor
        (..), 0 where an id does not count.

    Returns
    -------
    torch.Tensor
        float32 (n_codes,), with a sum of 1.

    Example
    -------
    >>> code_frequency(torch.tensor([0, 1, 1, 0]), 3, torch.ones(4))
    tensor([0.5000, 0.5000, 0.0000])
    """
    total = torch.zeros(n_codes, device=ids.device)
    total.index_add_(0, ids.flatten(), weight.flatten().float())
    return total / total.sum().clamp(min=1)
