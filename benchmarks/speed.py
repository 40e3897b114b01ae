#!/usr/bin/env python3
"""How fast everything is, in one table.

> python benchmarks/speed.py

A step of joint MSPM, and the same work done the official way (two forward
passes, attention matrices written out, masks and losses clip by clip, float32;
features are in neither, nor is what DataParallel costs; on CUDA a second time
with TF32 products, PyTorch's default before 1.12); a fine-tuning step;
inference, and Hugging Face's `ASTModel` with the same weights; the features,
and torchaudio's clip by clip; data loading alone. A step is forward, backward
and optimizer.

In each row ours, its baseline and a large matrix product take turns, round by
round, and ratios are taken within a round, so that a machine that is busy with
other things slows all of them. The work of a step is counted by PyTorch's flop
counter, attention as plain matrix products. Memory is what a step needs beyond
the weights and the state of the optimizer: on the CPU the growth of the
resident set in a process of its own, on CUDA that of PyTorch's allocations.
"""

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import data_loading
import torch
import transformers
from machine import describe_machine, peak_memory, start_peak_memory
from official_way import OfficialWay
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchaudio.compliance.kaldi import fbank
from tqdm import tqdm

from ssast_lobes import SpectrogramClassifier, SpectrogramEncoder
from ssast_lobes.checkpoints.folder import export_pretrained
from ssast_lobes.checkpoints.huggingface_export import to_huggingface
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.models.features import FrontEnd, KaldiFbank
from ssast_lobes.objectives import load_objective
from ssast_lobes.training.losses import binary_cross_entropy
from ssast_lobes.training.memory import keep_freed_memory
from ssast_lobes.utils.files import write_json
from ssast_lobes.utils.lengths import full_lengths

PARTS = ("joint", "features", "inference", "finetune", "loading")
N_MELS, N_CLASSES, SAMPLE_RATE = 128, 527, 16000
LONG, SHORT = 10.24, 1.28
# Clips of 10.24 s in a batch; as much audio of shorter ones.
CLIPS = {
    "cpu": {"tiny": 8, "base": 2},
    "cuda": {"tiny": 512, "base": 128},
}
# Overlapping patches are 2.4 times as many.
FINETUNE_SHARE = {"cpu": 2, "cuda": 4}
# What the official way leaves room for: a share of these.
OFFICIAL_SHARE = {"cpu": 1, "cuda": 4}
FEATURE_CLIPS = {"cpu": 32, "cuda": 128}
# Side of the matrices, and products in a row.
PRODUCT = {"cpu": (2048, 1), "cuda": (8192, 20)}
WARM_UPS = {"cpu": 1, "cuda": 3}


class Setting(NamedTuple):
    """Where and how ours computes; the official way is always float32."""

    device: str
    threads: int
    bf16: bool
    compile: bool

    def autocast(self):
        """Context of a forward pass."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)

    def prepared(self, module):
        """A module on the device, compiled if asked for."""
        module = module.to(self.device)
        # SpeechBrain does not let shapes vary within a graph either.
        return torch.compile(module, dynamic=False) if self.compile else module


class Case(NamedTuple):
    """What a step is given."""

    size: str
    seconds: float
    clips: int

    @property
    def frames(self):
        """Of a clip: 10 ms each."""
        return round(100 * self.seconds)

    def feats(self, device):
        """Random features (B, T, n_mels)."""
        return torch.randn(self.clips, self.frames, N_MELS, device=device)


def _objective(case):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder.from_size(case.size, table_frames=case.frames)
    return load_objective("mspm")(encoder).train()


class Step:
    """One training step, to be called again and again."""

    def __init__(self, loss_of, optimizer):
        self.loss_of = loss_of
        self.optimizer = optimizer

    def __call__(self):
        """Forward, backward, optimizer."""
        self.loss_of().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def joint_step(case, setting):
    """A pretraining step, ours."""
    objective = setting.prepared(_objective(case))
    feats = case.feats(setting.device)

    def loss():
        with setting.autocast():
            # As a recipe has it: no clip is padded.
            return objective(feats, None).loss

    return Step(loss, torch.optim.AdamW(objective.parameters(), fused=True))


def official_step(case, setting):
    """A pretraining step, the official way."""
    official = OfficialWay(_objective(case)).to(setting.device)
    feats = case.feats(setting.device)
    optimizer = torch.optim.Adam(official.parameters())
    return Step(lambda: official(feats)[0], optimizer)


def finetuning_step(case, setting):
    """A step of classification as on AudioSet: overlapping patches."""
    encoder = SpectrogramEncoder.from_size(
        case.size, stride=(10, 10), table_frames=case.frames
    )
    model = setting.prepared(SpectrogramClassifier(encoder, N_CLASSES).train())
    feats = case.feats(setting.device)
    n_frames = full_lengths(feats)
    targets = torch.rand(case.clips, N_CLASSES, device=setting.device)

    def loss():
        with setting.autocast():
            scores = model(feats, n_frames)
        return binary_cross_entropy(scores, targets)

    return Step(loss, torch.optim.AdamW(model.parameters(), fused=True))


STEPS = {
    "joint": joint_step,
    "official": official_step,
    "finetune": finetuning_step,
}


def encoders(case, setting):
    """Our encoder and Hugging Face's with the same weights, to be called."""
    with tempfile.TemporaryDirectory() as folder:
        front = FrontEnd(pad_frames=case.frames)
        ours, theirs = Path(folder, "ours"), Path(folder, "theirs")
        objective = _objective(case)
        export_pretrained(ours, objective, front, {})
        to_huggingface(load_weights(ours), theirs)
        model = transformers.ASTModel.from_pretrained(theirs)
    model = setting.prepared(model.eval())
    encoder = setting.prepared(objective.encoder.eval())
    feats = case.feats(setting.device)

    @torch.inference_mode()
    def run_ours():
        with setting.autocast():
            return encoder(feats).clip("class")

    @torch.inference_mode()
    def run_theirs():
        with setting.autocast():
            return model(feats).pooler_output

    tolerance = 0.1 if setting.bf16 else 1e-4
    torch.testing.assert_close(
        run_ours(), run_theirs(), atol=tolerance, rtol=0, check_dtype=False
    )
    return run_ours, run_theirs


def extractors(setting):
    """Our features and torchaudio's of a batch, to be called."""
    device = setting.device
    clips = FEATURE_CLIPS[device]
    wav = 0.1 * torch.randn(clips, round(LONG * SAMPLE_RATE))
    ours, there = setting.prepared(KaldiFbank()), wav.to(device)

    def loop():
        clips = [
            fbank(
                clip[None] - clip.mean(),
                htk_compat=True,
                sample_frequency=SAMPLE_RATE,
                use_energy=False,
                window_type="hanning",
                num_mel_bins=N_MELS,
                dither=0.0,
            )
            for clip in wav
        ]
        return torch.stack(clips).to(device)

    return lambda: ours(there)[0], loop


def matrix_product(setting):
    """A product of large matrices, and its floating-point operations."""
    kind = torch.bfloat16 if setting.bf16 else torch.float32
    size, times = PRODUCT[setting.device]
    one, other, result = torch.randn(
        3, size, size, device=setting.device, dtype=kind
    )

    def run():
        for _ in range(times):
            torch.mm(one, other, out=result)

    return run, times * 2 * size**3


def seconds(run, device):
    """Seconds that a call takes; on CUDA between two events."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def take_turns(contestants, rounds, device, name):
    """Seconds of each contestant in each round."""
    for _ in range(WARM_UPS[device]):
        for run in contestants.values():
            run()
    found = {key: [] for key in contestants}
    for _ in tqdm(range(rounds), desc=name, unit="round"):
        for key, run in contestants.items():
            found[key].append(seconds(run, device))
    return found


def flops_of(run):
    """Floating-point operations of a call, attention as matrix products."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return counter.get_total_flops()


@contextmanager
def tf32_products(allowed):
    """Products of float32 matrices on CUDA in TF32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def peak_of(step, device):
    """MiB of a step at the peak, or None where that is not known."""
    before = start_peak_memory(torch.device(device))
    step()
    peak = peak_memory(torch.device(device))
    return None if before is None else (peak - before) / 2**20


def peak_of_first(name, case, setting):
    """MiB of a first step at the peak; for a process of its own."""
    torch.set_num_threads(setting.threads)
    return peak_of(STEPS[name](case, setting), setting.device)


def apart(function, *arguments):
    """What a function gives in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def row_of(part, case, found, baseline_clips=None, **more):
    """A row of the table from the seconds of ours and of its baselines."""
    row = {**case._asdict(), **more, "seconds_of": found}
    row["part"], row["seconds"] = part, case.seconds
    row["clips_per_second"] = case.clips / statistics.median(found["ours"])
    row["hours_per_second"] = row["clips_per_second"] * case.seconds / 3600
    theirs = baseline_clips or case.clips
    for name in ("baseline", "baseline_tf32"):
        if name not in found:
            continue
        row["baseline_clips"] = theirs
        both = zip(found[name], found["ours"], strict=True)
        row[name.replace("baseline", "ratios")] = sorted(
            (their_time / theirs) / (our_time / case.clips)
            for their_time, our_time in both
        )
        row[f"{name}_clips_per_second"] = theirs / statistics.median(
            found[name]
        )
    return row


def _rates(found, flops, product_flops):
    """Rate of ours, and its fractions of a matrix product's, sorted."""
    pairs = zip(found["ours"], found["product"], strict=True)
    return {
        "gflops_per_second": flops / statistics.median(found["ours"]) / 1e9,
        "fractions": sorted(
            (flops / ours) / (product_flops / product)
            for ours, product in pairs
        ),
    }


def measure_step(part, case, setting, rounds):
    """A row of a training step; the joint one next to the official way."""
    on_gpu = setting.device == "cuda"
    product, product_flops = matrix_product(setting)
    ours, more, steps = STEPS[part](case, setting), {}, {}
    steps["mib"] = (part, case, ours)
    contestants = {"product": product, "ours": ours}
    if part == "joint":
        share = OFFICIAL_SHARE[setting.device]
        fewer = case._replace(clips=max(1, case.clips // share))
        official = official_step(fewer, setting)
        more.update(baseline="official way", baseline_clips=fewer.clips)
        steps["baseline_mib"] = ("official", fewer, official)
        contestants["baseline"] = tf32_products(False)(official)
        if on_gpu:
            contestants["baseline_tf32"] = tf32_products(True)(official)
    name = f"{part}, {case.size}, {case.seconds:g} s"
    found = take_turns(contestants, rounds, setting.device, name)
    plain = Setting("cpu", setting.threads, bf16=False, compile=False)
    flops = flops_of(STEPS[part](case._replace(clips=1), plain)) * case.clips
    for key, (kind, its_case, step) in steps.items():
        if on_gpu:
            more[key] = peak_of(step, setting.device)
        else:
            more[key] = apart(peak_of_first, kind, its_case, setting)
    more.update(_rates(found, flops, product_flops))
    return row_of(part, case, found, **more)


def measure_inference(case, setting, rounds):
    """A row of the encoder alone, next to Hugging Face's."""
    ours, theirs = encoders(case, setting)
    product, product_flops = matrix_product(setting)
    contestants = {"product": product, "ours": ours, "baseline": theirs}
    name = f"inference, {case.size}"
    found = take_turns(contestants, rounds, setting.device, name)
    plain = Setting("cpu", setting.threads, bf16=False, compile=False)
    flops = flops_of(encoders(case._replace(clips=1), plain)[0]) * case.clips
    more = _rates(found, flops, product_flops)
    baseline = "Hugging Face ASTModel"
    yield row_of("inference", case, found, baseline=baseline, **more)


def measure_features(setting, rounds):
    """A row of the features, next to torchaudio clip by clip on the CPU."""
    ours, loop = extractors(setting)
    contestants = {"ours": ours, "baseline": loop}
    # They take a fraction of a second.
    found = take_turns(contestants, 2 * rounds, setting.device, "features")
    case = Case("-", LONG, FEATURE_CLIPS[setting.device])
    return row_of("features", case, found, baseline="torchaudio loop")


def measure_loading(manifest, rounds):
    """Rows of data loading, in hours of audio alone."""
    return [
        {
            "part": f"loading: {row['source']}, {row['audio']}",
            "hours_per_second": row["load_hours"],
        }
        for row in data_loading.measure(manifest, rounds=rounds)
    ]


def measure(options, setting):
    """Rows of all parts that were asked for, one by one."""
    rounds = options.rounds
    for part in PARTS:
        if part not in options.parts:
            continue
        if part == "features":
            yield measure_features(setting, rounds)
        elif part == "loading":
            yield from measure_loading(options.manifest, rounds)
        else:
            for size in options.sizes:
                clips = options.clips or CLIPS[setting.device][size]
                long = Case(size, LONG, clips)
                yield from MEASURES[part](long, setting, rounds)


def measure_joint(long, setting, rounds):
    """Rows of pretraining: long clips, and as much audio of short ones."""
    clips = round(long.clips * LONG / SHORT)
    for case in (long, long._replace(seconds=SHORT, clips=clips)):
        yield measure_step("joint", case, setting, rounds)


def measure_finetuning(long, setting, rounds):
    """A row of fine-tuning."""
    clips = max(1, long.clips // FINETUNE_SHARE[setting.device])
    case = long._replace(clips=clips)
    yield measure_step("finetune", case, setting, rounds)


MEASURES = {
    "joint": measure_joint,
    "inference": measure_inference,
    "finetune": measure_finetuning,
}


def _range(values, unit="", scale=1):
    """Median, lowest and highest of sorted values."""
    if not values:
        return "-"
    middle, *ends = (
        f"{scale * value:.3g}{unit}"
        for value in (statistics.median(values), values[0], values[-1])
    )
    return f"{middle} ({' to '.join(ends)})"


def _number(value):
    """Three digits, or all before the point; a dash for none."""
    if value is None:
        return "-"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def table(rows):
    """The rows as a Markdown table."""
    lines = [
        "| part | model | clips | clips/s | hours of audio/s | GFLOP/s "
        "| of a matrix product | MiB | baseline | its clips/s | its MiB "
        "| times as fast (range) | with its products in TF32 |",
        "|---" * 13 + "|",
    ]
    for row in rows:
        clips = "-"
        if "clips" in row:
            clips = f"{row['clips']} of {row['seconds']:g} s"
        numbers = [
            _number(row.get(key))
            for key in ("clips_per_second", "hours_per_second")
        ]
        wide = [
            f"{row[key]:.0f}" if row.get(key) is not None else "-"
            for key in ("gflops_per_second", "mib", "baseline_mib")
        ]
        slower = _number(row.get("baseline_clips_per_second"))
        baseline = row.get("baseline", "-")
        if row.get("baseline_clips", row.get("clips")) != row.get("clips"):
            baseline += f", {row['baseline_clips']} clips"
        cells = [
            *(row["part"], row.get("size", "-"), clips),
            *(*numbers, wide[0]),
            _range(row.get("fractions"), " %", 100),
            *(wide[1], baseline),
            *(slower, wide[2]),
            _range(row.get("ratios")),
            _range(row.get("ratios_tf32")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def share_of_features(rows):
    """What the features cost next to a step, a sentence for each size."""
    features = [row for row in rows if row["part"] == "features"]
    steps = [row for row in rows if row["part"] == "joint"]
    return [
        f"Features are {100 * share:.2g} % of the joint step of "
        f"{step['size']} with clips of {LONG:g} s."
        for feature in features
        for step in steps
        if step["seconds"] == LONG
        for share in [step["clips_per_second"] / feature["clips_per_second"]]
    ]


def main(arguments):
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART"
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=CLIPS["cpu"], default=CLIPS["cpu"]
    )
    parser.add_argument(
        "--clips", type=int, help="of 10.24 s in a batch, at every size"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of a CPU"
    )
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="ours under autocast, and products in bfloat16 (CUDA: yes)",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="ours through torch.compile (CUDA: yes)",
    )
    parser.add_argument("--manifest", help="audio to load; noise by default")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder of speed_DEVICE.md and .json",
    )
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    setting = Setting(
        options.device,
        options.threads,
        on_gpu if options.bf16 is None else options.bf16,
        on_gpu if options.compile is None else options.compile,
    )
    torch.set_num_threads(setting.threads)
    keep_freed_memory()
    machine = describe_machine(torch.device(setting.device))
    rows = []
    for row in measure(options, setting):
        rows.append(row)
        # After each: a run that is stopped has what it measured.
        text = write(rows, machine, options, setting)
    print(text)


def write(rows, machine, options, setting):
    """Write the table and its numbers; gives the table."""
    number = "bfloat16 autocast" if setting.bf16 else "float32"
    compiled = ", compiled" if setting.compile else ""
    sentences = [
        f"{machine}. Ours in {number}{compiled}; medians of "
        f"{options.rounds} rounds (range).",
        *share_of_features(rows),
    ]
    text = f"{' '.join(sentences)}\n\n{table(rows)}\n"
    options.output.mkdir(parents=True, exist_ok=True)
    suffix = "_bf16" if setting.bf16 and setting.device == "cpu" else ""
    stem = options.output / f"speed_{setting.device}{suffix}"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    write_json(stem.with_suffix(".json"), {"machine": machine, "rows": rows})
    return text


if __name__ == "__main__":
    main(sys.argv[1:])
