"""The mean of the weights of several models."""

import torch

from ssast_lobes.checkpoints.folder import write_export
from ssast_lobes.checkpoints.format import Weights, WeightsError, compare
from ssast_lobes.checkpoints.loading import load_weights


def export_mean(folder, sources):
    """Write the mean of several pretrained exports of one model to a folder.

    Arguments
    ---------
    folder : str or path
        Folder to write. An older export there is replaced, with its heads and
        projections; other files stay.
    sources : list of str or path
        The exported folders. The settings of the objective and the window are
        those of the first.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder contains files, but no export.
    WeightsError
        If the sources are exports of different models; see `load_alike`.

    Example
    -------
    >>> from ssast_lobes import FrontEnd, SpectrogramEncoder
    >>> from ssast_lobes.checkpoints.folder import export_pretrained
    >>> from ssast_lobes.objectives import MSPM
    >>> places = [getfixture("tmp_path") / name for name in "abc"]
    >>> for place in places[:2]:
    ...     objective = MSPM(SpectrogramEncoder(dim=32, depth=1, heads=2))
    ...     _ = export_pretrained(place, objective, FrontEnd(), card={})
    >>> export_mean(places[2], places[:2]).name
    'c'
    """
    mean = average(load_alike(sources))
    names = ", ".join(f"`{source}`" for source in sources)
    card = {"origin": f"The mean of the weights of {names}."}
    return write_export(folder, mean.state, mean.config, card)


def load_alike(sources):
    """Read pretrained exports of one model, to average them.

    Arguments
    ---------
    sources : list of str or path
        At least two sources; see `load_weights`.

    Returns
    -------
    list of Weights

    Raises
    ------
    WeightsError
        If a source is not a pretrained export, or if its encoder, its front end
        or the shape of a tensor differs from that of the first source.

    Example
    -------
    >>> load_alike(["first"])
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: a mean needs at least two folders, got one
    """
    if len(sources) < 2:
        raise WeightsError("a mean needs at least two folders, got one")
    models = [load_weights(source) for source in sources]
    for source, weights in zip(sources, models, strict=True):
        if weights.config.get("kind") != "pretrained":
            raise WeightsError(f"{source}: not the export of a pretraining")
        for part in ("encoder", "features"):
            found, wanted = weights.config[part], models[0].config[part]
            differ = [
                f"{key} is {found.get(key)}, not {wanted.get(key)}"
                for key in sorted(found.keys() | wanted.keys())
                if found.get(key) != wanted.get(key)
            ]
            if differ:
                raise WeightsError(f"{source}: {part}: {'; '.join(differ)}")
        compare(
            models[0].state,
            weights.state,
            f"{source}: of another objective or size",
        )
    return models


def average(models):
    """Return the mean of the weights of models.

    This is a "model soup" (Wortsman et al., ICML 2022), for models whose
    training started from the same weights.

    Arguments
    ---------
    models : list of Weights
        The result of `load_alike`.

    Returns
    -------
    Weights
        The means of the floating-point tensors. Other tensors, such as counts,
        and the configuration are those of the first model.

    Example
    -------
    >>> first = Weights({"encoder.norm.bias": torch.ones(2)}, config={})
    >>> second = Weights({"encoder.norm.bias": torch.zeros(2)}, config={})
    >>> average([first, second]).state
    {'encoder.norm.bias': tensor([0.5000, 0.5000])}
    """
    first, *others = models
    state = dict(first.state)
    for key, own in first.state.items():
        if own.is_floating_point():
            values = [own, *(each.state[key].to(own) for each in others)]
            state[key] = torch.stack(values).mean(0)
    return Weights(state, first.config)
