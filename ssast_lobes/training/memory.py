"""Memory of the CPU during training: kept from step to step.

Each step allocates what the step before has freed. glibc gives freed memory
back to the system, which clears every page of it again when it is next used.
"""

import ctypes
import sys

# Numbers of mallopt(3) for its options of these names.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory():
    """Keep the memory that tensors free, as PyTorch does on a GPU.

    The process holds its peak from then on. Does nothing where the C library
    is not glibc.

    Example
    -------
    >>> keep_freed_memory()
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
