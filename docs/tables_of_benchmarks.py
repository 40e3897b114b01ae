"""Rows of the tables that `benchmarks/` fills; see `tables.py`."""

from statistics import median

RESULTS = "benchmarks/results"
PARTS = {
    "joint": "joint step, {size}, {clips}",
    "finetune": "fine-tuning step, {size}, {clips}, stride 10",
    "inference": "inference, {size}, {clips}",
    "features": "features, {clips}",
}
BASELINES = {
    "official way": "the official way",
    "Hugging Face ASTModel": "`ASTModel`",
    "torchaudio loop": "torchaudio",
}
# Teraflops a second in dense bf16, of the data sheets.
GPUS = {"H200 or H100": 989, "A100": 312}
CLIPS = 19e6  # ten passes over AudioSet-2M and LibriSpeech
CLAIM = {512: "10 s of audio", 4096: "82 s", 8192: "164 s", 22016: "7.3 min"}

# Of each family of other labs its names, and the inputs that are compared.
PEERS = {
    "eat": (
        "EAT, SSLAM",
        "1024 and 496 frames; padded to 1024 and to whole patches",
    ),
    "m2d": (
        "M2D",
        "patches 16 x 16, 16 x 4, 80 x 2, each of the training length and "
        "shorter; 8 s in chunks",
    ),
    "atst_frame": (
        "ATST-Frame",
        "small and base; 1001 and 403 frames; a padded batch; 12 s in chunks",
    ),
    "atst_clip": (
        "ATST-Clip",
        "small and base; 601 and 302 frames; a padded batch; 8 s in chunks",
    ),
    "audiomae": (
        "AudioMAE",
        "1024 frames; pretrained, and fine-tuned with 527 classes",
    ),
    "maskspec": (
        "MaskSpec",
        "992 frames; pretrained, and the pooling of the fine-tuned",
    ),
    "dasheng": ("Dasheng", "base; 1008 and 400 frames; 12 s in chunks"),
    "asit": ("ASiT", "small and base; 592 frames"),
    "audiomosaic": (
        "AudioMosaic",
        "1024 frames; 512 with the table resized; fine-tuned with 527 classes",
    ),
    "beats": (
        "BEATs",
        "1008 and 400 frames; a padded batch with the official mask",
    ),
}


def number(value):
    """Return three digits of a number, or all before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def spread(values, form, unit=""):
    """Return the median of the rounds, and their range."""
    low, high = min(values), max(values)
    return f"{median(values):{form}}{unit} ({low:{form}} to {high:{form}})"


def part(row):
    """Return what a row of `speed.py` has measured."""
    plural = "" if row["clips"] == 1 else "s"
    clips = f"{row['clips']} clip{plural} of {row['seconds']:g} s"
    return PARTS[row["part"]].format(size=row["size"], clips=clips)


def speed_cpu(report):
    """Return the rates on a CPU, next to a product's and a baseline's."""
    table = [
        [
            "",
            "clips/s",
            "of a matrix product's rate",
            "MiB",
            "the baseline's clips/s",
            "its MiB",
            "times as fast",
        ]
    ]
    # Loading has hours in place of clips.
    rows = [row for row in report["rows"] if row["part"] in PARTS]
    for row in sorted(rows, key=lambda row: list(PARTS).index(row["part"])):
        fractions = [100 * one for one in row.get("fractions", [])]
        baseline, ratios = "", ""
        if "baseline" in row:
            rate = number(row["baseline_clips_per_second"])
            baseline = f"{rate}, {BASELINES[row['baseline']]}"
            ratios = spread(row["ratios"], ".2f")
        table.append(
            [
                part(row),
                number(row["clips_per_second"]),
                spread(fractions, ".0f", " %") if fractions else "",
                f"{row['mib']:.0f}" if "mib" in row else "",
                baseline,
                f"{row['baseline_mib']:.0f}" if "baseline_mib" in row else "",
                ratios,
            ]
        )
    return table


def speed_cuda(report):
    """Return the rates of training steps on a GPU, next to a baseline's."""
    table = [
        [
            "",
            "clips/s",
            "of a matrix product's rate",
            "GiB",
            "the official way's clips/s",
            "its GiB",
            "times as fast",
            "with its products in TF32",
        ]
    ]
    for row in report["rows"]:
        rate = number(row["baseline_clips_per_second"])
        table.append(
            [
                part(row),
                number(row["clips_per_second"]),
                spread([100 * one for one in row["fractions"]], ".0f", " %"),
                f"{row['mib'] / 1024:.1f}",
                f"{rate} ({row['baseline_clips']} clips a step)",
                f"{row['baseline_mib'] / 1024:.1f}",
                spread(row["ratios"], ".2g"),
                spread(row["ratios_tf32"], ".2g"),
            ]
        )
    return table


def data_loading(report):
    """Return how fast a core reads files and shards."""
    sources = ["FLAC files", "FLAC shards", "int16 shards"]
    hours = {(r["audio"], r["source"]): r["read_hours"] for r in report["rows"]}
    return [
        ["hours of audio per core-second", *sources],
        *(
            [label, *(f"{hours[audio, source]:.2f}" for source in sources)]
            for audio, label in (
                ("whole", "whole clips"),
                ("1.28 s of each", "random crops of 1.28 s (hours of crops)"),
            )
        ),
    ]


def training_hours(report):
    """Return the hours of a pretraining at 50 and 30 % of a GPU's rate."""
    gflop = {
        row["size"]: round(row["flops_per_clip"] / 1e9)
        for row in report["rows"]
    }
    # With checkpointing blocks are computed twice.
    sizes = {
        "base": gflop["base"],
        "large, checkpointed": gflop["large"] * 4 / 3,
    }
    table = [
        ["", *(head for gpu in GPUS for head in (f"1 {gpu}", "8 of them"))]
    ]
    for size, own in sizes.items():
        cells = []
        for tflops in GPUS.values():
            fast, slow = (
                CLIPS * own * 1e9 / (fraction * tflops * 1e12) / 3600
                for fraction in (0.5, 0.3)
            )
            cells += [
                f"{fast:.1f} to {slow:.1f} h",
                f"{fast / 8:.1f} to {slow / 8:.1f} h",
            ]
        table.append([size, *cells])
    return table


def ssamba_claim(report):
    """Return time and memory of a forward pass over the number of tokens."""
    found = {
        (row["tokens"], row["model"]): row
        for row in report["rows"]
        if (row["pass"], row["batch"]) == ("forward", 1)
    }

    def cost(row):
        if "skipped" in row:
            return f"not run ({row['skipped']})"
        seconds = row["seconds"]
        digits = 2 if seconds < 1 else 1
        return f"{seconds:.{digits}f} s, {row['mib']:.0f} MiB"

    table = [
        [
            "forward, batch 1: tokens",
            "SSAST, matrix written out",
            "SSAST as it runs here",
            "SSAMBA",
            "SSAMBA over SSAST as it runs here: time, memory",
        ]
    ]
    for tokens, audio in CLAIM.items():
        matrix, ssast, ssamba = (
            found[tokens, model]
            for model in ("SSAST, matrix", "SSAST, SDPA", "SSAMBA")
        )
        ratios = [ssamba[key] / ssast[key] for key in ("seconds", "mib")]
        table.append(
            [
                f"{tokens:,} ({audio})",
                *map(cost, (matrix, ssast, ssamba)),
                ", ".join(f"{ratio:.1f}" for ratio in ratios),
            ]
        )
    return table


def objective_costs(report):
    """Return what a step of each objective costs, relative to joint MSPM."""
    ratios = {}
    for row in report["rows"]:
        ratios.setdefault(row["objective"], {})[row["model"]] = row["ratio"]
    sizes = ("tiny", "base")
    return [
        ["objective", *sizes],
        *(
            [f"`{name}`", *(f"{own[size]:.1f}" for size in sizes)]
            for name, own in ratios.items()
        ),
    ]


def peer_parity(rows):
    """Return the largest differences from the official codes."""
    columns = {
        "tokens": "tokens and layers",
        "clip": "clip vectors",
        "features": "normalized features",
        "waveform": "outputs from the waveform",
    }
    found = {row["family"]: row for row in rows}
    return [
        ["model", *columns.values(), "cases"],
        *(
            [
                name,
                *(
                    f"{found[family][key]:.1e}".replace("e-0", "e-")
                    if key in found[family]
                    else "-"
                    for key in columns
                ),
                cases,
            ]
            for family, (name, cases) in PEERS.items()
        ),
    ]


TABLES = {
    "speed_cpu": (speed_cpu, f"{RESULTS}/speed_cpu.json"),
    "speed_cuda": (speed_cuda, f"{RESULTS}/speed_cuda.json"),
    "data_loading": (data_loading, f"{RESULTS}/data_loading_cpu.json"),
    # The script writes the same table, with the batches that fit.
    "memory": (list, f"{RESULTS}/memory.md"),
    "training_hours": (training_hours, f"{RESULTS}/memory.json"),
    "ssamba_claim": (ssamba_claim, f"{RESULTS}/ssamba_claim_cpu.json"),
    "peer_parity": (peer_parity, f"{RESULTS}/peer_parity.json"),
    "objective_costs": (objective_costs, f"{RESULTS}/objectives_cpu.json"),
}
