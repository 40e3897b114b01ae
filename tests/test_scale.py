"""The page and scripts about many GPUs: their numbers, and what they call."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scale.md"


@pytest.fixture(scope="module")
def memory():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import memory
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return memory


@pytest.mark.parametrize("checkpointing", [False, True])
def test_counted_bytes_are_those_of_a_real_step(memory, checkpointing):
    def saved():
        made = memory.step("micro", 2, 128, "patch", checkpointing)
        return memory.saved_bytes(*made)

    with mock.patch("torch.compiler.is_compiling", lambda: True):
        real = saved()
        with FakeTensorMode():
            counted = saved()
    assert real == counted > 0


@pytest.mark.slow
def test_counted_work_is_that_of_the_products(memory):
    row = memory.count("micro", 1024, "patch")
    # Each block: products with 12 D x D weights, and attention; twice the
    # work backwards. Patches and heads are small next to them.
    tokens, dim, depth = 514, 128, 6
    block = 2 * 12 * tokens * dim**2 + 4 * tokens**2 * dim
    assert row["flops_per_clip"] == pytest.approx(3 * depth * block, rel=0.15)
    assert row["fixed_bytes"] > 16 * row["parameters"]
    kept, less = row["bytes_per_clip"], row["bytes_per_clip_checkpointed"]
    assert less < kept / 2
    for checkpointing, size in ((False, kept), (True, less)):
        clips = memory.largest_batch(row, 24, checkpointing)
        assert clips * size <= 0.9 * 24e9 < (clips + 2) * size + 1e9


def test_page_has_the_table_of_the_benchmark():
    table = (ROOT / "benchmarks/results/memory.md").read_text("utf-8")
    assert table[table.index("| size |") :].strip() in PAGE.read_text("utf-8")


def test_slurm_script_starts_a_process_on_each_gpu(tmp_path):
    for name, line in {
        "scontrol": "printf 'node7\\nnode8\\n'",
        "srun": '"$@"',
        "torchrun": 'printf "%s\\n" "$@"',
    }.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/bash\n{line}\n")
        command.chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_ID": "5",
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    own = ["train.py", "hparams/base.yaml", "--output_folder=a folder"]
    shown = subprocess.run(
        ["bash", ROOT / "docs" / "slurm.sh", *own],
        env=slurm,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert {"--nnodes=2", "--nproc_per_node=4"} <= set(shown)
    assert "--rdzv_endpoint=node7:29500" in shown
    assert shown[-3:] == own
