"""Rows of the tables of objectives and sizes; see `tables.py`.

A test holds the names, papers and parameters to the package.
"""

# By preset: where it was published.
OBJECTIVES = {
    "mspm": "SSAST, AAAI 2022",
    "contrastive_mspm": "ours, with COLA, ICASSP 2021",
    "maskspec": "MaskSpec, ICASSP 2023",
    "audiomae": "AudioMAE, NeurIPS 2022",
    "mae_ast": "MAE-AST, Interspeech 2022",
    "m2d": "M2D, ICASSP 2023",
    "eat": "EAT, IJCAI 2024",
    "sslam": "SSLAM, ICLR 2025",
    "jepa": "WavJEPA, 2025",
    "asit": "ASiT, TASLP 2024",
    "atst_clip": "ATST-Clip, Interspeech 2022",
    "atst_frame": "ATST-Frame, TASLP 2024",
    "audiomosaic": "AudioMosaic, ICML 2026",
    "beats": "BEATs, ICML 2023",
    "best_rq": "BEST-RQ, ICML 2022",
    "mert": "MERT, ICLR 2024",
    "vector_quantizer": "BEATs, ICML 2023",
    "distillation": "USAD, 2025; DistilHuBERT, ICASSP 2022",
}
# Of the encoder alone, for clips of up to 10.24 s.
PARAMETERS = {
    "micro": 1_288_832,
    "tiny": 5_487_168,
    "small": 21_591_168,
    "base": 85_649_664,
    "large": 303_102_976,
    "ssamba_micro": 399_264,
    "ssamba_tiny": 6_922_560,
    "ssamba_small": 25_346_688,
    "ssamba_base": 96_699_648,
}
ORIGIN = {
    "micro": "ours, for CPUs",
    "large": "ViT-Large, with activation checkpointing",
    "ssamba_micro": "ours, for CPUs",
}
TRANSFORMERS = [name for name in PARAMETERS if "ssamba" not in name]
SSAMBA = [name for name in PARAMETERS if "ssamba" in name]


def objectives(report):
    """Return objectives, papers, and the cost of a step relative to MSPM's."""
    ratios = {
        row["objective"]: f"{row['ratio']:.1f}"
        for row in report["rows"]
        if row["model"] == "tiny"
    }
    return [
        ["`--objective`", "paper", "cost of a step"],
        *(
            [f"`{name}`", paper, ratios.get(name, "-")]
            for name, paper in OBJECTIVES.items()
        ),
    ]


def millions(name):
    """Return the parameters of a size, as tables show them."""
    return f"{PARAMETERS[name] / 1e6:.1f} M"


def sizes(*models):
    """Return the sizes of the transformer."""
    return [
        ["size", "D", "blocks", "heads", "parameters", ""],
        *(
            [
                f"`{name}`",
                *(model[key] for key in ("dim", "depth", "heads")),
                millions(name),
                ORIGIN.get(name, "SSAST"),
            ]
            for name, model in zip(TRANSFORMERS, models, strict=True)
        ),
    ]


def ssamba_sizes(*models):
    """Return the sizes of the Mamba encoder."""
    return [
        ["size", "D", "mixers", "parameters", ""],
        *(
            [
                f"`{name}`",
                *(model[key] for key in ("dim", "depth")),
                millions(name),
                ORIGIN.get(name, "SSAMBA"),
            ]
            for name, model in zip(SSAMBA, models, strict=True)
        ),
    ]


TABLES = {
    "objectives": (objectives, "benchmarks/results/objectives_cpu.json"),
    "sizes": (sizes, *(f"hparams/model/{n}.yaml" for n in TRANSFORMERS)),
    "ssamba_sizes": (
        ssamba_sizes,
        *(f"hparams/model/{n}.yaml" for n in SSAMBA),
    ),
}
