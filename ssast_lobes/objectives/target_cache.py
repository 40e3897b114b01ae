"""Targets of frozen teachers, cached in files."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ssast_lobes.utils.files import atomic_write


class TargetCache:
    """Cache the targets of clips in a folder, one file for each clip.

    The name of a file is a hash of the clip's samples and of `maker`. Targets
    are float16 even when they are first computed, so that they do not depend
    on whether they come from a file. Processes may share the folder.

    Arguments
    ---------
    folder : str or os.PathLike
        Folder of the files, created when it is first needed.
    maker : str
        Text that describes all that determines the targets, such as weights and
        layers.

    Example
    -------
    >>> import torch
    >>> cache = TargetCache(getfixture("tmpdir") / "targets", "doubled")
    >>> clip, calls = torch.tensor([0.5, 1.0]), []
    >>> def double(clip):
    ...     calls.append(len(clip))
    ...     return [2 * clip]
    >>> _ = cache.get(clip, double)
    >>> cache.get(clip, double), calls
    ([tensor([1., 2.], dtype=torch.float16)], [2])
    """

    def __init__(self, folder, maker):
        self.folder = Path(folder).expanduser()
        self.maker = maker

    def get(self, clip, make, keep=True):
        """Return the targets of a clip.

        Arguments
        ---------
        clip : torch.Tensor
            Samples of the clip, without padding.
        make : callable
            Function of `clip` that returns a list of tensors; called if there
            is no file.
        keep : bool
            Whether to use the cache for this clip.

        Returns
        -------
        list of torch.Tensor
            float16, on the device of `clip`.
        """
        if not keep:
            return [x.half() for x in make(clip)]
        digest = hashlib.blake2b(self.maker.encode(), digest_size=20)
        digest.update(clip.detach().cpu().float().numpy().tobytes())
        name = digest.hexdigest()
        path = self.folder / name[:2] / f"{name}.safetensors"
        try:
            kept = load_file(path, device=str(clip.device))
            return [kept[str(number)] for number in range(len(kept))]
        except (FileNotFoundError, SafetensorError):
            # This replaces a damaged file too.
            made = [x.half().contiguous() for x in make(clip)]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            file.write(save({str(n): x.cpu() for n, x in enumerate(made)}))
        return made
