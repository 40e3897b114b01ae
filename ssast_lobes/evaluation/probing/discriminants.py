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
from ssast_lobes.evaluation.probing.embeddings import cached_vectors, pooled
from ssast_lobes.evaluation.probing.tasks import split_options, table_name

# Chosen for spoken words, on clips of train and valid: of 32 to 192 directions
# and of weights from 0.02 to 0.95, these scored highest with five and ten
# labels for each class.
SIZE = 64
SHRINKAGE = 0.4
# With more features, the covariances take too much memory and time.
_MOST_FEATURES = 4096


def linear_discriminants(x, groups, size=SIZE, shrinkage=SHRINKAGE):
    """Return the directions in which groups differ most.

    The directions have the largest ratio of the covariance between groups to
    the covariance within groups. Features are standardized first, and the
    covariance within groups is shrunk towards a multiple of the identity.

    Arguments
    ---------
    x : torch.Tensor
        Features (N, D).
    groups : sequence of str
        What each row contains (N). At least one group has two rows.
    size : int
        Number of directions K. It is reduced to what groups and features
        allow.
    shrinkage : float
        Weight of the identity, above 0 and at most 1.

    Returns
    -------
    weight : torch.Tensor
        (K, D), float32. Along each direction, the (shrunk) variance within
        groups is 1.
    bias : torch.Tensor
        (K,), float32. The mean of ``x @ weight.T + bias`` is 0.

    Raises
    ------
    ValueError
        If there are fewer than two groups, or no group has two rows.

    Example
    -------
    >>> x = torch.tensor([[0.0, 5], [0.1, -5], [1.0, 5], [1.1, -5]])
    >>> weight, bias = linear_discriminants(x, ["no", "no", "yes", "yes"], 1)
    >>> weight.abs()[0, 0] > weight.abs()[0, 1]
    tensor(True)
    >>> (x @ weight.T + bias).mean().abs() < 1e-6
    tensor(True)
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2 or len(names) == len(x):
        raise ValueError(
            f"{len(x)} clips of {len(names)} groups: discriminants need two "
            "groups, one of them of two clips"
        )
    scaler = StandardScaler()
    z, axes = scaler.fit_transform(x.double().numpy()), None
    if z.shape[1] > _MOST_FEATURES:
        axes = PCA(min(_MOST_FEATURES, len(z) - 1), svd_solver="full")
        z = axes.fit_transform(z)
    z, index = torch.from_numpy(z), torch.from_numpy(index)
    counts = index.bincount()[:, None]
    means = z.new_zeros(len(names), z.shape[1]).index_add(0, index, z) / counts
    residuals = z - means[index]
    within = residuals.T @ residuals / (len(x) - len(names))
    between = (counts * means).T @ means / len(names)
    identity = torch.eye(len(within)).double() * within.diagonal().mean()
    within = (1 - shrinkage) * within + shrinkage * identity
    # Rotate and scale so that the covariance within groups is the identity.
    whitening = torch.linalg.inv(torch.linalg.cholesky(within))
    _, directions = torch.linalg.eigh(whitening @ between @ whitening.T)
    size = min(size, len(names) - 1, len(within))
    weight = directions[:, -size:].T.flip(0) @ whitening
    if axes is not None:
        weight = weight @ torch.from_numpy(axes.components_)
    weight = weight / torch.from_numpy(scaler.scale_)
    bias = -weight @ torch.from_numpy(scaler.mean_)
    return weight.float(), bias.float()


def fit_projection(text, encoder, cache_folder):
    """Fit a projection to recordings whose contents repeat.

    Arguments
    ---------
    text : str
        ``[NAME=]CSV[,group=COLUMN]``. The column, by default ``group``, says
        what each recording contains: the word, the speaker or the sound.
    encoder : PooledEncoder
        Computes the vectors.
    cache_folder : str or path
        Folder of the cache of vectors.

    Returns
    -------
    Projection
        Of the dynamics of all layers.

    Raises
    ------
    ManifestError
        If the table is bad, or no group has two readable clips.
    """
    name, csv_path, columns = split_options(text, ["group"])
    name, unreadable = name or table_name(csv_path), []
    rows = read_manifest(csv_path, ["path", "group"], columns=columns)
    vectors = cached_vectors(
        encoder, name, [row["path"] for row in rows], cache_folder, unreadable
    )
    rows = [row for row in rows if row["path"] in vectors]
    groups = [row["group"] for row in rows]
    if not 1 < len(set(groups)) < len(groups):
        raise ManifestError(
            f"{csv_path}: {len(rows)} readable clips of {len(set(groups))} "
            "groups; a projection needs two groups, one of them of two clips"
        )
    x = torch.stack([vectors[row["path"]] for row in rows])
    x = pooled(x, "dynamics", "all")
    return Projection(name, *linear_discriminants(x, groups))
