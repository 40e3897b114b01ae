"""What frozen teachers have said of clips, kept in files."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ssast_lobes.utils.files import atomic_write


class TargetCache:
    """A folder with a file for each clip that has been heard.

    A file is found by the samples of the clip themselves, and by what makes
    the targets: whatever differs in either is another file. Numbers are
    float16, those of the first time too, so that a value is the same whether
    it comes from a file or not. Processes may share the folder.

    Arguments
    ---------
    folder : str or os.PathLike
        Made when it is first needed.
    maker : str
        Tells apart what makes the targets, such as weights and layers.

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
            Its samples, without padding.
        make : callable
            Gives a list of tensors for `clip`; called unless there is a file.
        keep : bool
            Whether to look for a file, and to write one.

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
            # A damaged file is made again.
            made = [x.half().contiguous() for x in make(clip)]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            file.write(save({str(n): x.cpu() for n, x in enumerate(made)}))
        return made
