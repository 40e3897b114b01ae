"""Statistics of a stage over several processes."""

import torch
from speechbrain.utils.distributed import is_distributed_initialized

from ssast_lobes.utils.distributed import n_processes


def gather_sums(sums):
    """Return the sums over the processes, each of which sees other clips.

    Arguments
    ---------
    sums : dict of str to tuple
        The sum and the number of clips of each name in this process, as
        numbers or scalar tensors.

    Returns
    -------
    dict of str to tuple
        The same in all processes, as floats.

    Example
    -------
    >>> gather_sums({"loss": (torch.tensor(2.0), 1)})
    {'loss': (2.0, 1.0)}
    """
    own = {
        name: (float(total), float(clips))
        for name, (total, clips) in sums.items()
    }
    if not is_distributed_initialized():
        return own
    parts = [None] * n_processes()
    torch.distributed.all_gather_object(parts, own)
    gathered = {}
    for name in dict.fromkeys(key for part in parts for key in part):
        pairs = [part[name] for part in parts if name in part]
        gathered[name] = tuple(map(sum, zip(*pairs, strict=True)))
    return gathered
