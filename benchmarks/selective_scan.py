#!/usr/bin/env python3
"""What Mamba's scan costs: ours, the plain loop, and a matrix product.

> python benchmarks/selective_scan.py

Ours is `ssast_lobes.models.selective_scan.selective_scan`; the loop is the
recurrence as it is written, a token at a time; the matrix product is a square
one with as many floating-point operations. All take turns, round by round, in
one process, so that a machine that is busy with other things slows all of them.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from machine import describe_machine
from tqdm import tqdm

from ssast_lobes.models.mamba import EXPAND, STATE
from ssast_lobes.models.selective_scan import fused_scan, selective_scan
from ssast_lobes.utils.files import write_json

# Floating-point operations for each token, channel and state, an exponential
# counted as one. Forward: delta A, exp, delta B u, multiply and add for the
# state, multiply and add for the output.
FORWARD = 7
# Backward: decays and states again (5), their gradients (3), those of B, C
# and u (2 each), of the exponents (2), of delta and A (2 each).
BACKWARD = 20
SIZES = {"micro": 96, "tiny": 192, "base": 768}
CASES = [("tiny", 1, 513), ("tiny", 2, 513), ("tiny", 8, 513)]
CASES += [("tiny", 1, 4097), ("micro", 8, 513), ("base", 1, 513)]
QUICK = CASES[:2]


def loop(u, delta, A, B, C, D):
    """The recurrence, a token at a time."""
    decays = (delta[..., None] * A).exp()
    taken = (delta * u)[..., None] * B[:, :, None]
    state, outputs = torch.zeros_like(taken[:, 0]), []
    parts = (x.unbind(1) for x in (decays, taken, C[:, :, None]))
    for decay, new, read in zip(*parts, strict=True):
        state = decay * state + new
        outputs.append((state * read).sum(2))
    return torch.stack(outputs, 1) + u * D


def make_inputs(dim, batch, tokens, device):
    """Inputs of a scan as they are in a model at its start."""
    torch.manual_seed(0)
    channels = EXPAND * dim
    steps = torch.empty(batch, tokens, channels).uniform_(-7, -2.3).exp()
    A = -torch.arange(1.0, STATE + 1).repeat(channels, 1)
    maps = torch.randn(2, batch, tokens, STATE)
    u, D = torch.randn(batch, tokens, channels), torch.ones(channels)
    inputs = [u, steps, A, *maps, D]
    return [x.to(device).requires_grad_() for x in inputs]


def seconds(function, device):
    """Seconds of one call, and what it gives."""
    _wait(device)
    start = time.perf_counter()
    result = function()
    _wait(device)
    return time.perf_counter() - start, result


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_of(operations, device):
    """A square matrix product of so many floating-point operations."""
    size = round((operations / 2) ** (1 / 3))
    one, other = torch.randn(2, size, size, device=device)
    return lambda: one @ other


def measure(size, batch, tokens, rounds, device):
    """A row of the table."""
    inputs = make_inputs(SIZES[size], batch, tokens, device)
    entries = inputs[0].numel() * STATE
    gradient = torch.randn_like(inputs[0])
    scans = {"ours": selective_scan, "loop": loop}
    products = {
        "forward": product_of(FORWARD * entries, device),
        "backward": product_of(BACKWARD * entries, device),
    }
    found = {}
    for number in range(rounds + 1):
        for name, scan in scans.items():
            took, y = seconds(lambda scan=scan: scan(*inputs), device)
            found.setdefault(f"{name}_forward", []).append(took)
            took, _ = seconds(
                lambda y=y: torch.autograd.grad(y, inputs, gradient), device
            )
            found.setdefault(f"{name}_backward", []).append(took)
        for name, product in products.items():
            took, _ = seconds(product, device)
            found.setdefault(f"product_{name}", []).append(took)
        if number == 0:
            found = {}  # warm-up
    medians = {name: statistics.median(all_) for name, all_ in found.items()}
    return {"size": size, "batch": batch, "tokens": tokens, **medians}


def table(rows):
    """The rows as a Markdown table."""
    lines = [
        "| size | batch | tokens | pass | ours (ms) | loop (ms) "
        "| product (ms) | loop / ours | ours / product |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for way in ("forward", "backward"):
            ours, plain, product = (
                1000 * row[f"{name}_{way}"]
                for name in ("ours", "loop", "product")
            )
            lines.append(
                f"| {row['size']} | {row['batch']} | {row['tokens']} | {way} "
                f"| {ours:.1f} | {plain:.1f} | {product:.2f} "
                f"| {plain / ours:.1f} | {ours / product:.1f} |"
            )
    return "\n".join(lines)


def main(arguments):
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--quick", action="store_true", help="two cases, three rounds"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder of selective_scan_DEVICE.md and .json",
    )
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    cases = QUICK if options.quick else CASES
    rounds = 3 if options.quick else options.rounds
    rows = [
        measure(*case, rounds, device)
        for case in tqdm(cases, desc="Scans", unit="case")
    ]
    machine = describe_machine(device)
    fused = device.type == "cuda" and fused_scan() is not None
    text = (
        f"{machine}, float32. Medians of {rounds} rounds"
        + (", ours by the kernel of mamba_ssm" if fused else "")
        + f".\n\n{table(rows)}\n"
    )
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"selective_scan_{device.type}"
    stem.with_suffix(".md").write_text(text, "utf-8")
    content = {"machine": machine, "rounds": rounds, "rows": rows}
    write_json(stem.with_suffix(".json"), content)


if __name__ == "__main__":
    main(sys.argv[1:])
