#!/usr/bin/env python3
"""Is SSAMBA faster and smaller than SSAST? Time and memory by token count.

> python benchmarks/ssamba_claim.py

The SSAMBA paper measures its tiny model against tiny SSAST: 92.7 % less time
and 95.4 % less memory at 22 thousand tokens, batch 4. Its SSAST writes the
attention matrix out, as the official code does. Here both are measured, and
SSAST as this package runs it, with scaled-dot-product attention. Each cell of
the table is a fresh process: it runs the model once, to warm up and for the
peak of the memory, then again for the median of the time. Memory is what is
needed beyond model and input: on the CPU the growth of the resident set, on
CUDA of PyTorch's allocations. A cell that would not fit, or take too long, as
one expects from the last cell that was measured, is left out, and says so. A
command that is rerun keeps what this machine has measured, and measures
what the present options let in.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import describe_machine, peak_memory, start_peak_memory
from matplotlib.figure import Figure
from official_way import MaterialisedAttention
from tqdm import tqdm

from ssast_lobes import SpectrogramEncoder
from ssast_lobes.models.selective_scan import fused_scan
from ssast_lobes.utils.files import write_json

# Name: model size, and whether the attention matrix is written out.
MODELS = {
    "SSAST, matrix": ("tiny", True),
    "SSAST, SDPA": ("tiny", False),
    "SSAMBA": ("ssamba_tiny", False),
    "SSAMBA, released graph": ("ssamba_tiny_reference", False),
}
PASSES = ("forward", "forward + backward")
BATCHES = (1, 4)
TOKENS = (512, 1024, 2048, 4096, 8192, 16384, 22016)
QUICK = (512, 1024, 2048)
# Patches of 16 x 16 over 128 mel bins: so many frames are one token.
FRAMES_PER_TOKEN = 2
KEY = ("model", "batch", "pass", "tokens")
# Share of the free memory that a cell may need.
ROOM = 0.8
MiB = 2**20


def build(name, device):
    """One of the models, with random weights."""
    size, written_out = MODELS[name]
    encoder = SpectrogramEncoder.from_size(size)
    if written_out:
        for block in encoder.blocks:
            block.attn = MaterialisedAttention(block.attn)
    return encoder.to(device)


class Cell:
    """One model on one input, to be run again and again."""

    def __init__(self, model, tokens, batch, backward, bf16, device):
        torch.manual_seed(0)
        self.encoder, self.device = build(model, device), device
        self.backward, self.bf16 = backward, bf16
        shape = (batch, FRAMES_PER_TOKEN * tokens, 128)
        self.feats = torch.randn(shape, device=device)

    def run(self, feats):
        """Run once; the seconds it took."""
        self._wait()
        start = time.perf_counter()
        with torch.set_grad_enabled(self.backward):
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.bf16
            ):
                clip = self.encoder(feats).clip()
            if self.backward:
                clip.float().square().mean().backward()
                self.encoder.zero_grad(set_to_none=True)
        self._wait()
        return time.perf_counter() - start

    def measure(self, budget, most=5):
        """Median of the seconds, and MiB at the peak (None: not known)."""
        # Kernels and libraries are loaded before memory is counted.
        self.run(self.feats[:1, : 64 * FRAMES_PER_TOKEN])
        before = start_peak_memory(self.device)
        spent = self.run(self.feats)
        peak = peak_memory(self.device)
        times = []
        while not times or (len(times) < most and spent < budget):
            times.append(self.run(self.feats))
            spent += times[-1]
        return {
            "seconds": statistics.median(times),
            "runs": len(times),
            "mib": None if before is None else (peak - before) / MiB,
        }

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def free_memory(device):
    """Bytes that can be had (None: not known)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable"):
            return 1024 * int(line.split()[1])


def expected(row, tokens):
    """Seconds and MiB to expect of more tokens, from a smaller cell."""
    growth = tokens / row["tokens"]
    mib = row["mib"] or 0.0
    squared = MODELS[row["model"]][1]
    return (
        row["seconds"] * growth ** (2 if "SSAST" in row["model"] else 1),
        mib * growth ** (2 if squared else 1),
    )


def reason_to_skip(row, tokens, options, device):
    """Why a cell is left out, or None."""
    if row is None:
        return None
    seconds, mib = expected(row, tokens)
    free = free_memory(device)
    if free is not None and mib * MiB > ROOM * free:
        return f"needs about {mib / 1024:.0f} GiB"
    # It runs twice at least.
    if 2 * seconds > options.longest:
        return f"takes about {seconds:.0f} s"
    return None


def measure_apart(key, options):
    """A cell in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--cell", json.dumps(key)]
        + ["--device", options.device, "--budget", str(options.budget)]
        + ["--threads", str(options.threads)]
        + (["--bf16"] if options.bf16 else []),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines() or [f"rc {done.returncode}"]
        return {"skipped": f"failed: {last[-1][:80]}"}
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(options, device, known, save):
    """Rows of all cells; `known` has rows of an earlier run."""
    rows, last = [], {}
    known = {tuple(row[name] for name in KEY): row for row in known}
    tokens = QUICK if options.quick else TOKENS
    tokens = [n for n in tokens if n <= options.most_tokens]
    cells = [
        {"model": model, "batch": batch, "pass": way, "tokens": n}
        for n in tokens
        for way in PASSES
        for batch in BATCHES
        for model in MODELS
    ]
    bar = tqdm(cells, unit="cell")
    for key in bar:
        bar.set_description(f"{key['model']}, {key['tokens']} tokens")
        line = (key["model"], key["batch"], key["pass"])
        row = known.get(tuple(key[name] for name in KEY), {})
        if "seconds" not in row:
            reason = "not asked for"
            if key["pass"] in options.passes and key["batch"] in options.batch:
                before = last.get(line)
                reason = reason_to_skip(before, key["tokens"], options, device)
            elif line in last:
                seconds, _ = expected(last[line], key["tokens"])
                reason = f"takes about {seconds:.0f} s"
            row = {**key, "skipped": reason}
            if reason is None:
                row = {**key, **measure_apart(key, options)}
        if "seconds" in row:
            last[line] = row
        rows.append(row)
        # What comes later in the table stays in the file.
        save(rows + list(known.values())[len(rows) :])
    return rows


def _known(stem, machine):
    """Rows that were measured on this machine before."""
    file = stem.with_suffix(".json")
    if not file.is_file():
        return []
    content = json.loads(file.read_text("utf-8"))
    return content["rows"] if content["machine"] == machine else []


def _find(rows, **key):
    wanted = key.items()
    return next(row for row in rows if wanted <= row.items())


def _cell_text(row):
    if "skipped" in row:
        return row["skipped"]
    memory = "-" if row["mib"] is None else f"{row['mib']:.0f} MiB"
    return f"{row['seconds']:.3g} s, {memory}"


def _ratio(row, base):
    """Time and memory of a row over those of another."""
    if "skipped" in row or "skipped" in base:
        return "-"
    ratios = [
        f"{row[value] / base[value]:.2f}"
        for value in ("seconds", "mib")
        if row[value] and base[value]
    ]
    return ", ".join(ratios)


def table(rows):
    """The rows as a Markdown table; the last columns are ratios."""
    against = [name for name in MODELS if "SSAST" in name]
    lines = [
        "| pass | batch | tokens | "
        + " | ".join(MODELS)
        + " | "
        + " | ".join(f"SSAMBA over {name}" for name in against)
        + " |",
        "|---" * (3 + len(MODELS) + len(against)) + "|",
    ]
    groups = sorted(
        {(r["pass"], r["batch"], r["tokens"]) for r in rows},
        key=lambda x: (PASSES.index(x[0]), *x[1:]),
    )
    for way, batch, tokens in groups:
        key = {"pass": way, "batch": batch, "tokens": tokens}
        own = {name: _find(rows, model=name, **key) for name in MODELS}
        cells = [_cell_text(row) for row in own.values()]
        cells += [_ratio(own["SSAMBA"], own[name]) for name in against]
        lines.append(f"| {way} | {batch} | {tokens} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows, title, path):
    """Time and memory over tokens, a column for each pass and batch."""
    columns = [(way, batch) for way in PASSES for batch in BATCHES]
    figure = Figure(figsize=(4 * len(columns), 7), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(2, len(columns), sharex=True, sharey="row")
    values = (("seconds", "time (s)"), ("mib", "peak memory (MiB)"))
    styles = ("o-", "s-", "^-", "v--")
    for column, (way, batch) in enumerate(columns):
        for line, (value, label) in enumerate(values):
            ax = axes[line][column]
            for name, style in zip(MODELS, styles, strict=True):
                found = [
                    (row["tokens"], row[value])
                    for row in rows
                    if (row["model"], row["pass"], row["batch"])
                    == (name, way, batch)
                    and row.get(value)
                ]
                if found:
                    ax.plot(*zip(*found, strict=True), style, label=name)
            ax.set(xscale="log", yscale="log")
            ax.grid(True, which="both", alpha=0.25)
            if column == 0:
                ax.set_ylabel(label)
            if line == 0:
                ax.set_title(f"{way}, batch {batch}")
            else:
                ax.set_xlabel("tokens")
    tokens = sorted({row["tokens"] for row in rows})[::2]
    for ax in axes[1]:
        ax.set_xticks(tokens, [str(n) for n in tokens], fontsize=8)
        ax.minorticks_off()
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def describe(options, device):
    """Machine and conditions, in a sentence."""
    number = "bfloat16 autocast" if options.bf16 else "float32"
    text = f"{describe_machine(device)}, {number}."
    if device.type == "cuda":
        scan = "by the kernel of mamba_ssm" if fused_scan() else "in PyTorch"
        text += f" SSAMBA scans {scan}."
    return text


def main(arguments):
    """Measure, print and write table and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"only {QUICK} tokens"
    )
    parser.add_argument(
        "--most-tokens", type=int, default=TOKENS[-1], help="leave out longer"
    )
    parser.add_argument(
        "--passes", nargs="+", choices=PASSES, default=PASSES, metavar="PASS"
    )
    parser.add_argument(
        "--batch", nargs="+", type=int, choices=BATCHES, default=BATCHES
    )
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument(
        "--budget",
        type=float,
        default=20.0,
        help="seconds after which a cell is not run again (5 times at most)",
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=600.0,
        help="leave out cells that would take more seconds",
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of a CPU"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder of ssamba_claim_DEVICE.md, .json and .png",
    )
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    if options.cell:
        key = json.loads(options.cell)
        backward = key["pass"] == PASSES[1]
        cell = Cell(
            key["model"],
            key["tokens"],
            key["batch"],
            backward,
            options.bf16,
            device,
        )
        print(json.dumps(cell.measure(options.budget)))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    suffix = "_bf16" if options.bf16 else ""
    stem = options.output / f"ssamba_claim_{device.type}{suffix}"
    machine = describe(options, device)

    def save(rows):
        content = {"machine": machine, "rows": rows}
        write_json(stem.with_suffix(".json"), content)

    rows = measure_all(options, device, _known(stem, machine), save)
    text = f"{machine}\n\n{table(rows)}\n"
    print(text)
    stem.with_suffix(".md").write_text(text, "utf-8")
    plot(rows, machine, stem.with_suffix(".png"))


if __name__ == "__main__":
    main(sys.argv[1:])
