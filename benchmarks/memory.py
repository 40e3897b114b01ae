#!/usr/bin/env python3
"""Memory and work of a pretraining step, counted: which batch fits on a GPU.

> python benchmarks/memory.py

Nothing is computed, and no GPU is needed: PyTorch runs a step of joint MSPM in
bf16 autocast on tensors without contents, and what waits for the backward
pass is added up. So the numbers are counts, not measurements. What they leave
out (temporaries, fragmentation, the kernels' workspaces) has to fit into the
share of the memory that the batches do not take.
"""

import argparse
import math
import sys
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ssast_lobes import SpectrogramEncoder
from ssast_lobes.objectives import MSPM
from ssast_lobes.utils.files import write_json

SIZES = ("tiny", "small", "base", "large")
# In float32: weights, gradients and the two averages of Adam.
BYTES_PER_PARAMETER = 4 * 4
GPU_GB = (24, 40, 80, 141)
# Share of a GPU's memory that is counted on.
USED = 0.9


def step(size, clips, frames, geometry, checkpointing):
    """Objective, and its arguments, of tensors without contents."""
    # It looks at the values that it draws, and here are none.
    with mock.patch("torch.nn.init.trunc_normal_"):
        encoder = SpectrogramEncoder.from_size(
            size, geometry, table_frames=frames, checkpointing=checkpointing
        )
        objective = MSPM(encoder)
    feats = torch.randn(clips, frames, encoder.grid.n_mels)
    return objective, (feats, torch.full((clips,), frames))


def saved_bytes(objective, arguments):
    """Bytes that wait for the backward pass, next to the weights."""
    weights = {p.untyped_storage()._cdata for p in objective.parameters()}
    sizes = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        output = objective(*arguments)
        total = sum(sizes.values())
    del output
    return total


def count(size, frames, geometry):
    """The counts of a size, a dict.

    Arguments
    ---------
    size : str
        A file of ``hparams/model/``.
    frames : int
        Frames of a clip.
    geometry : str
        ``"patch"`` or ``"frame"``.

    Returns
    -------
    dict
        Parameters, floating-point operations of a step for each clip, bytes
        that do not depend on the batch, bytes for each clip with and without
        activation checkpointing.
    """

    def saved(clips, checkpointing):
        return saved_bytes(*step(size, clips, frames, geometry, checkpointing))

    # The encoder looks for padding on the CPU, but not where it is compiled.
    compiled = mock.patch("torch.compiler.is_compiling", lambda: True)
    with FakeTensorMode(), compiled:
        plain = saved(4, False) - saved(2, False)
        less = saved(4, True) - saved(2, True)
        casts = saved(2, False) - plain
        objective, arguments = step(size, 1, frames, geometry, False)
        # Kernels that do attention at once are not in the counter's books.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as f:
            objective(*arguments).loss.backward()
        parameters = sum(p.numel() for p in objective.parameters())
    # A block that is computed again has all of its own for a while.
    again = (plain - less) / objective.encoder.depth
    return {
        "size": size,
        "parameters": parameters,
        "flops_per_clip": f.get_total_flops(),
        "fixed_bytes": parameters * BYTES_PER_PARAMETER + casts,
        "bytes_per_clip": plain / 2,
        "bytes_per_clip_checkpointed": (less + again) / 2,
    }


def largest_batch(row, gigabytes, checkpointing):
    """Clips of a batch that fits into a GPU's memory."""
    key = "bytes_per_clip" + ("_checkpointed" if checkpointing else "")
    free = USED * gigabytes * 1e9 - row["fixed_bytes"]
    return max(0, math.floor(free / row[key]))


def table(rows):
    """The rows as a Markdown table."""
    gpus = "".join(f" {gpu} GB |" for gpu in GPU_GB)
    lines = [
        "| size | parameters (M) | GFLOP a clip | fixed (GB) | MB a clip "
        f"|{gpus}",
        "|---" * (5 + len(GPU_GB)) + "|",
    ]
    for row in rows:
        batches = [
            f" {largest_batch(row, gpu, False):,} / "
            f"{largest_batch(row, gpu, True):,} |"
            for gpu in GPU_GB
        ]
        lines.append(
            f"| {row['size']} | {row['parameters'] / 1e6:.1f} "
            f"| {row['flops_per_clip'] / 1e9:.0f} "
            f"| {row['fixed_bytes'] / 1e9:.2f} "
            f"| {row['bytes_per_clip'] / 1e6:.0f} / "
            f"{row['bytes_per_clip_checkpointed'] / 1e6:.0f} "
            f"|{''.join(batches)}"
        )
    return "\n".join(lines)


def main(arguments):
    """Count, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--geometry", default="patch")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder of memory.md and memory.json",
    )
    options = parser.parse_args(arguments)
    rows = [
        count(size, options.frames, options.geometry)
        for size in tqdm(options.sizes)
    ]
    text = (
        f"Joint MSPM, {options.geometry}, clips of {options.frames} frames, "
        "bf16 autocast, Adam in float32; without / with activation "
        f"checkpointing. Batches take {USED:.0%} of the memory. Counted, not "
        f"measured.\n\n{table(rows)}\n"
    )
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / "memory"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    content = {"frames": options.frames, "rows": rows}
    write_json(stem.with_suffix(".json"), content)


if __name__ == "__main__":
    main(sys.argv[1:])
