#!/usr/bin/env python3
"""What a training step of each objective costs, relative to SSAST's.

> python benchmarks/objectives.py

Each objective takes turns with joint MSPM, round by round, in one process. The
ratio is taken within each round, and on a CPU of the CPU time, so that a
machine that is busy with other things does not change it. A step is forward,
backward, optimizer and teacher.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from machine import describe_machine
from tqdm import tqdm

from ssast_lobes import SpectrogramEncoder, SpectrogramLobe, Teacher
from ssast_lobes.objectives import load_objective
from ssast_lobes.utils.files import write_json

# Name of the preset: geometry and mel bins, each method's own.
OBJECTIVES = {
    "mspm": ("patch", 128),
    "contrastive_mspm": ("patch", 128),
    "maskspec": ("patch", 128),
    "audiomae": ("patch", 128),
    "mae_ast": ("patch", 128),
    "m2d": ("patch", 128),
    "eat": ("patch", 128),
    "sslam": ("patch", 128),
    "jepa": ("patch", 128),
    "asit": ("patch", 128),
    "audiomosaic": ("patch", 128),
    "beats": ("patch", 128),
    "best_rq": ("patch", 128),
    "mert": ("frame", 128),
    "vector_quantizer": ("patch", 128),
    "distillation": ("patch", 128),  # of a teacher of the same size
    "atst_clip": ((64, 4), 64),
    "atst_frame": ((64, 4), 64),
}
BASELINE = "mspm"
N_FRAMES = 1024
N_SAMPLES = 400 + 1023 * 160


class Step:
    """One training step of an objective on random clips of 10.24 s."""

    def __init__(self, name, model_size, batch_size, device):
        geometry, n_mels = OBJECTIVES[name]
        torch.manual_seed(0)
        encoder = SpectrogramEncoder.from_size(model_size, geometry, n_mels)
        own = {}
        if name == "distillation":
            lobe = SpectrogramEncoder.from_size(model_size, geometry, n_mels)
            own["teachers"] = [Teacher(SpectrogramLobe(lobe))]
        objective = load_objective(name)(encoder, **own)
        self.objective = objective.to(device).train()
        self.optimizer = torch.optim.AdamW(self.objective.parameters(), 1e-4)
        self.feats = torch.randn(batch_size, N_FRAMES, n_mels, device=device)
        self.n_frames = torch.full((batch_size,), N_FRAMES, device=device)
        self.audio = {}
        if self.objective.needs_audio:
            wavs = torch.randn(batch_size, N_SAMPLES, device=device)
            n_samples = torch.full_like(self.n_frames, wavs.shape[1])
            self.audio = {"wavs": wavs, "n_samples": n_samples}
        self.steps = 0

    def __call__(self):
        """Take a step; return its seconds."""
        device = self.feats.device
        clock = time.process_time if device.type == "cpu" else _gpu_time
        start = clock()
        output = self.objective(self.feats, self.n_frames, **self.audio)
        output.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.objective.after_step(self.steps, 1000)
        return clock() - start


def _gpu_time():
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(model_size, batch_size, rounds, device):
    """Rows of the table for one size of model."""
    rows = []
    baseline = Step(BASELINE, model_size, batch_size, device)
    baseline()
    for name in tqdm(OBJECTIVES, desc=model_size):
        step = Step(name, model_size, batch_size, device)
        step()
        pairs = [(step(), baseline()) for _ in range(rounds)]
        ratios = sorted(one / other for one, other in pairs)
        own = [one for one, _ in pairs]
        rows.append(
            {
                "objective": name,
                "model": model_size,
                "seconds_per_clip": statistics.median(own) / batch_size,
                "ratio": statistics.median(ratios),
                "lowest_ratio": ratios[0],
                "highest_ratio": ratios[-1],
                "parameters": sum(
                    p.numel()
                    for p in step.objective.parameters()
                    if p.requires_grad
                ),
            }
        )
    return rows


def table(rows):
    """The rows as a Markdown table."""
    lines = [
        "| model | objective | trained parameters (M) | ms per clip "
        "| relative to joint MSPM (range) |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['objective']} "
            f"| {row['parameters'] / 1e6:.1f} "
            f"| {1000 * row['seconds_per_clip']:.0f} "
            f"| {row['ratio']:.2f} ({row['lowest_ratio']:.2f} to "
            f"{row['highest_ratio']:.2f}) |"
        )
    return "\n".join(lines)


def main(arguments):
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", default=["tiny", "base"])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder of objectives_DEVICE.md and .json",
    )
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    rows = []
    for size in options.sizes:
        rows += measure(size, options.batch_size, options.rounds, device)
    machine = describe_machine(device)
    text = (
        f"Machine: {machine}. Clips of 10.24 s, batches of "
        f"{options.batch_size}, {options.rounds} rounds, medians.\n\n"
        f"{table(rows)}\n"
    )
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"objectives_{device.type}"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    write_json(stem.with_suffix(".json"), {"machine": machine, "rows": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
