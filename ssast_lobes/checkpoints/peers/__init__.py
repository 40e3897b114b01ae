"""Released checkpoints of other labs: a module for each family.

A module states the tensor names, geometry, front end, pooling, license and
paper of a family. `family.Family` does the work that all families share. It
translates each tensor of a file, reports it as left out, or raises. No code of
the families was copied.
"""

from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.peers.asit import ASiT
from ssast_lobes.checkpoints.peers.atst import ATSTClip, ATSTFrame
from ssast_lobes.checkpoints.peers.audiomae import AudioMAE
from ssast_lobes.checkpoints.peers.audiomosaic import AudioMosaic
from ssast_lobes.checkpoints.peers.beats import BEATs
from ssast_lobes.checkpoints.peers.dasheng import Dasheng
from ssast_lobes.checkpoints.peers.eat import EAT
from ssast_lobes.checkpoints.peers.family import unwrap
from ssast_lobes.checkpoints.peers.m2d import M2D
from ssast_lobes.checkpoints.peers.maskspec import MaskSpec
from ssast_lobes.utils.checks import one_of

FAMILIES = {
    family.name: family
    for family in (
        *(EAT(), M2D(), ATSTFrame(), ATSTClip(), AudioMAE(), MaskSpec()),
        *(Dasheng(), ASiT(), AudioMosaic(), BEATs()),
    )
}


def family_of(content):
    """Return the family of a checkpoint, recognized by its keys.

    Arguments
    ---------
    content : object
        The result of ``torch.load``.

    Returns
    -------
    Family or None
        None if the keys match no family, or several.

    Example
    -------
    >>> family_of({"model": {"time_pos_embed": 0, "freq_pos_embed": 0}}).name
    'dasheng'
    """
    state, _ = unwrap(content)
    found = [family for family in FAMILIES.values() if family.fits(state)]
    return found[0] if len(found) == 1 else None


def is_plain_vit(content):
    """Return whether a checkpoint contains the keys of a vision transformer.

    Several families share these keys.

    Arguments
    ---------
    content : object
        The result of ``torch.load``.

    Returns
    -------
    bool
    """
    state, _ = unwrap(content)
    names = {key.rpartition("backbone.")[2] for key in state}
    return {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= names


def from_peer(content, path, family=None):
    """Translate a checkpoint of another lab.

    Arguments
    ---------
    content : object
        The result of ``torch.load``.
    path : pathlib.Path
        The file. For M2D, the name of its folder states the geometry.
    family : str, optional
        Name in `FAMILIES`; needed if several families have the keys of the
        file.

    Returns
    -------
    Weights
        With the configuration of an exported folder.

    Raises
    ------
    ValueError
        If `family` is unknown.
    WeightsError
        If `family` is missing and the keys do not determine it, or if a tensor
        is missing, unknown or of the wrong shape.

    Example
    -------
    >>> from pathlib import Path
    >>> vit = ("cls_token", "pos_embed", "patch_embed.proj.weight")
    >>> from_peer({"model": dict.fromkeys(vit)}, Path("model.pth"))
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: several families have these keys: ...
    """
    one_of("family", family, FAMILIES, null=True)
    known = FAMILIES[family] if family else family_of(content)
    if known is None:
        shared = [name for name, f in FAMILIES.items() if not f.marks]
        raise WeightsError(
            "several families have these keys: name the family by family=... "
            "or `ssast-lobes convert FILE FOLDER --family NAME`; "
            f"{', '.join(shared)}, or m2d of 2022"
        )
    return known.translate(content, path)
