"""What frozen teachers have said of clips, kept in files."""

import hashlib
from pathlib import Path

import torch
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
    >>> cache = TargetCache(getfixture("tmpdir") / "targets", "doubled")
    >>> clip, calls = torch.tensor([0.5, 1.0]), []
    >>> def double(clip):
    ...     calls.append(len(clip))
    ...     return {"targets": 2 * clip}
    >>> _ = cache.get(clip, double)
    >>> cache.get(clip, double)["targets"], calls
    (tensor([1., 2.], dtype=torch.float16), [2])
    """

    def __init__(self, folder, maker):
        self.folder = Path(folder).expanduser()
        self.maker = maker

    def get(self, clip, make, keep=True):
        """Return the targets of a clip.

        Arguments
        ---------
        clip : torch.Tensor
            Its samples (S,), without padding.
        make : callable
            (S,) -> dict of str to torch.Tensor; called unless there is a file.
        keep : bool
            Whether to look for a file, and to write one.

        Returns
        -------
        dict of str to torch.Tensor
            float16, on the device of `clip`.
        """
        if not keep:
            return {name: x.half() for name, x in make(clip).items()}
        digest = hashlib.blake2b(self.maker.encode(), digest_size=20)
        digest.update(clip.detach().cpu().float().numpy().tobytes())
        name = digest.hexdigest()
        path = self.folder / name[:2] / f"{name}.safetensors"
        try:
            return load_file(path, device=str(clip.device))
        except FileNotFoundError:
            pass
        except SafetensorError:
            # A damaged file is made again.
            path.unlink()
        made = {name: x.half().contiguous() for name, x in make(clip).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            file.write(save({name: x.cpu() for name, x in made.items()}))
        return made
