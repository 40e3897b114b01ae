"""Linear discriminant analysis of clip vectors.

A classifier with few labels cannot know which of thousands of features differ
between words, and which differ between the voices that say them. Recordings of
other words, each in several voices, can tell it. Back ends of x-vectors learn
such a projection for speakers (Snyder et al., ICASSP 2018).
"""

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from ssast_lobes.checkpoints.projections import Projection
from ssast_lobes.dataio.tables import ManifestError, read_manifest
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.evaluation.probing.embeddings import (
    PROJECTED,
    cached_vectors,
    pooled,
)
from ssast_lobes.utils.checks import real, require, whole

# Chosen for spoken words, on clips of train and valid: of 32 to 192 directions
# and of weights from 0.02 to 0.95, these were among the best with five and ten
# labels for each class.
SIZE = 64
SHRINKAGE = 0.4
# With more features, the covariances take too much memory and time. Then only
# the principal components count.
_MOST_FEATURES = 4096
_N_COMPONENTS = 1024
_NEEDS = "a projection needs two labels, one of them of two recordings"


def linear_discriminants(x, labels, size=SIZE, shrinkage=SHRINKAGE):
    """Return the directions in which recordings of different labels differ.

    The directions have the largest ratio of the covariance between labels to
    the covariance within labels. Features are standardized first, and the
    covariance within labels is shrunk towards a multiple of the identity. Of
    more than 4,096 features, only 1,024 principal components count.

    Arguments
    ---------
    x : torch.Tensor
        Features (N, D).
    labels : sequence of str
        What each row contains (N). At least one label has two rows.
    size : int
        Number of directions K. It is reduced to what labels and features
        allow.
    shrinkage : float
        Weight of the identity, above 0 and at most 1.

    Returns
    -------
    weight : torch.Tensor
        (K, D), float32. Along each direction, the (shrunk) variance within
        labels is 1.
    bias : torch.Tensor
        (K,), float32. The mean of ``x @ weight.T + bias`` is 0.

    Raises
    ------
    ValueError
        If an argument is out of range, there are fewer than two labels, no
        label has two rows, or the rows of each label are equal.

    Example
    -------
    >>> x = torch.tensor([[0.0, 5], [0.1, -5], [1.0, 5], [1.1, -5]])
    >>> weight, bias = linear_discriminants(x, ["no", "no", "yes", "yes"], 1)
    >>> weight.abs()[0, 0] > weight.abs()[0, 1]
    tensor(True)
    >>> (x @ weight.T + bias).mean().abs() < 1e-6
    tensor(True)
    """
    whole("size", size)
    real("shrinkage", shrinkage, 0, 1)
    require(shrinkage > 0, "shrinkage", "above 0", shrinkage)
    names, index = np.unique(np.asarray(labels), return_inverse=True)
    if not 1 < len(names) < len(x):
        raise ValueError(
            f"{len(x)} recordings of {len(names)} labels: {_NEEDS}"
        )
    n_features, axes = x.shape[1], None
    scaler = StandardScaler()
    z = scaler.fit_transform(x.double().numpy())
    most = _N_COMPONENTS if n_features > _MOST_FEATURES else n_features
    if min(most, len(z) - 1) < n_features:
        # All components of few recordings change nothing, and are faster.
        axes = PCA(min(most, len(z) - 1), random_state=0)
        z = axes.fit_transform(z)
    z, index = torch.from_numpy(z), torch.from_numpy(index)
    counts = index.bincount()[:, None]
    means = z.new_zeros(len(names), z.shape[1]).index_add(0, index, z) / counts
    residuals = z - means[index]
    within = residuals.T @ residuals / (len(x) - len(names))
    between = (counts * means).T @ means / len(names)
    variance = within.trace() / n_features
    if not variance > 1e-12:
        raise ValueError("the recordings of each label are equal")
    identity = torch.eye(len(within)).double() * variance
    within = (1 - shrinkage) * within + shrinkage * identity
    # Rotate and scale so that the covariance within labels is the identity.
    whitening = torch.linalg.inv(torch.linalg.cholesky(within))
    _, directions = torch.linalg.eigh(whitening @ between @ whitening.T)
    size = min(size, len(names) - 1, len(within))
    weight = directions[:, -size:].T.flip(0) @ whitening
    if axes is not None:
        weight = weight @ torch.from_numpy(axes.components_)
    weight = weight / torch.from_numpy(scaler.scale_)
    bias = -weight @ torch.from_numpy(scaler.mean_)
    return weight.float(), bias.float()


def read_recordings(csv_path, label="label", split="split", held_out=()):
    """Read a table of recordings for a projection.

    Arguments
    ---------
    csv_path : str or path
        Each row has a path, and what the recording contains.
    label, split : str
        Columns of the content and of the split. If there is a split, only rows
        of train count.
    held_out : collection of str
        Paths that must not be among the rows: those that tasks are validated
        and tested on.

    Returns
    -------
    dict of str to str
        Contents by path.

    Raises
    ------
    ManifestError
        If the table is bad, has held-out recordings, or no content is in two
        recordings.

    Example
    -------
    >>> read_recordings("nowhere.csv")
    Traceback (most recent call last):
    ...
    ssast_lobes...ManifestError: ...nowhere.csv: No such file ...
    """
    columns = {"label": label}
    if split != "split":
        columns["split"] = split
    rows = read_manifest(csv_path, ["path", "label"], columns=columns)
    found = {
        row["path"]: row["label"]
        for row in rows
        if row.get("split", "train") == "train"
    }
    leaked = found.keys() & set(held_out)
    if leaked:
        raise ManifestError(
            f"{csv_path}: {len(leaked)} recordings are valid or test in a "
            f"task, such as {min(leaked)}: leave them out, or name the split"
        )
    n_labels = len(set(found.values()))
    if not 1 < n_labels < len(found):
        raise ManifestError(
            f"{csv_path}: {len(found)} recordings of {n_labels} labels: "
            f"{_NEEDS}"
        )
    return found


def fit_projection(name, contents, encoder, cache_folder):
    """Fit a projection of the dynamics of all layers.

    Arguments
    ---------
    name : str
        Name in the progress bar.
    contents : dict of str to str
        From `read_recordings`.
    encoder : PooledEncoder
        Computes the vectors.
    cache_folder : str or path
        Folder of the cache of vectors.

    Returns
    -------
    Projection

    Raises
    ------
    UnreadableAudio
        If a recording cannot be read.
    """
    unreadable = []
    vectors = cached_vectors(encoder, name, contents, cache_folder, unreadable)
    if unreadable:
        raise UnreadableAudio("{}: {}".format(*unreadable[0]))
    x = torch.stack([vectors[path] for path in contents])
    labels = list(contents.values())
    return Projection(
        *linear_discriminants(pooled(x, *PROJECTED), labels),
        len(labels),
        len(set(labels)),
    )
