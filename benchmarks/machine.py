"""The machine that a benchmark ran on, in words."""

import os
import platform
from pathlib import Path

import torch


def describe_machine(device):
    """Processor or GPU, threads, and PyTorch's version.

    Arguments
    ---------
    device : torch.device
        Where the benchmark computes.

    Returns
    -------
    str

    Example
    -------
    >>> "PyTorch" in describe_machine(torch.device("cpu"))
    True
    """
    name = _processor()
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}; {name}"
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"PyTorch {torch.__version__.split('+')[0]}"
    )


def _processor():
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
