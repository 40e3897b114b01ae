"""Keep the memory of the CPU from one training step to the next.

Each step allocates as much memory as the step before has freed. glibc returns
freed memory to the system, which clears every page before its next use.
"""

import ctypes
import sys

# Numbers of mallopt(3) for its options of these names.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory():
    """Keep the memory that tensors free, as PyTorch does on a GPU.

    The process then always keeps its peak memory. The function does nothing if
    the C library is not glibc.

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
