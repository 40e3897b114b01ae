"""Memory of the CPU that a step frees serves the next."""

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from ssast_lobes.training.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    return [torch.ones(10_000_000) for _ in range(2)]

if {kept}:
    keep_freed_memory()
for _ in range(2):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


def page_faults(kept):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(kept=kept)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_of_a_step_serves_the_next():
    # Tensors of more than 32 MiB: without it all their pages are new. With it
    # one may find a better place in the heap after the first steps.
    pages = 5 * 2 * 10_000_000 * 4 // resource.getpagesize()
    assert page_faults(kept=True) <= 0.11 * pages
    assert page_faults(kept=False) > 0.9 * pages
