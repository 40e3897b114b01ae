"""The lines that a run starts with."""

import os

import pytest
import torch

from ssast_lobes.training.report import _device

BUSY = 100.0 * os.cpu_count()


@pytest.mark.parametrize(
    ("threads", "load", "warns"),
    [(2, BUSY, True), (1, BUSY, False), (2, 0.5, False)],
)
def test_busy_cores_are_named(monkeypatch, threads, load, warns):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    shown = _device(torch.device("cpu"))
    assert shown.startswith("cpu")
    assert ("OMP_NUM_THREADS=1" in shown) == warns
