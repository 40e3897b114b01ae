"""Rows of the tables of objectives and sizes; see `tables.py`.

A test holds the names, papers and parameters to the package.
"""

# By preset: what it does, and where it was published.
OBJECTIVES = {
    "mspm": (
        "tells masked patches apart and fills them in",
        "SSAST, AAAI 2022",
    ),
    "contrastive_mspm": (
        "the same, and tells clips apart by two crops (ours)",
        "SSAST; COLA, ICASSP 2021",
    ),
    "maskspec": (
        "fills in masked patches from the visible ones",
        "MaskSpec, ICASSP 2023",
    ),
    "audiomae": ("the same with 80 % masked", "AudioMAE, NeurIPS 2022"),
    "mae_ast": (
        "computes SSAST's two losses from the visible patches",
        "MAE-AST, Interspeech 2022",
    ),
    "m2d": (
        "predicts a teacher's vectors of the masked patches",
        "M2D, ICASSP 2023",
    ),
    "eat": (
        "predicts a teacher's vectors of the whole clip from a fifth of it",
        "EAT, IJCAI 2024",
    ),
    "sslam": (
        "the same, and on mixtures of two clips",
        "SSLAM, ICLR 2025",
    ),
    "jepa": (
        "predicts a teacher's vectors of several blocks from one context",
        "WavJEPA, 2025",
    ),
    "asit": (
        "restores corrupted pixels, and matches a teacher on clip and patches",
        "ASiT, TASLP 2024",
    ),
    "atst_clip": (
        "predicts a teacher's clip vector of another crop",
        "ATST-Clip, Interspeech 2022",
    ),
    "atst_frame": (
        "predicts a teacher's frame vectors of another view",
        "ATST-Frame, TASLP 2024",
    ),
    "audiomosaic": (
        "tells clips apart by views that lack times or frequencies",
        "AudioMosaic, ICML 2026",
    ),
    "beats": (
        "predicts codes of masked patches from the visible ones",
        "BEATs, ICML 2023",
    ),
    "best_rq": (
        "predicts codes of masked patches; with fitted codes, this is HuBERT",
        "BEST-RQ, ICML 2022",
    ),
    "mert": (
        "predicts two books of codes and a spectrum, with a clip mixed in",
        "MERT, ICLR 2024",
    ),
    "vector_quantizer": (
        "learns codes from a frozen encoder, for `beats`",
        "BEATs, ICML 2023",
    ),
    "distillation": (
        "predicts the layers of frozen teachers",
        "USAD, 2025; DistilHuBERT, ICASSP 2022",
    ),
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
        ["`--objective`", "what it does", "paper", "cost of a step"],
        *(
            [f"`{name}`", what, paper, ratios.get(name, "-")]
            for name, (what, paper) in OBJECTIVES.items()
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
