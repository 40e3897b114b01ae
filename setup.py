"""Packaging of ssast_lobes: what it is called and what it needs to run.

The wheel carries the importable package, and in it the YAML fragments of
`hparams/`, where `ssast_lobes.presets` looks for them. The recipes stay in the
repository, as SpeechBrain's do: they are experiments to copy and change.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# torch and torchaudio are bounded together: torchaudio ends at 2.11, and a
# later torch beside it is another CUDA build, which torchaudio refuses.
REQUIRES = [
    "speechbrain>=1.1.2,<1.2",
    "torch>=2.7.1,<2.12",
    "torchaudio>=2.7.1,<2.12",
    "hyperpyyaml>=1.2.3",
    "sentencepiece>=0.2.0",
    "numpy>=1.26.4",
    "soundfile>=0.13.0",
    "safetensors>=0.4.3",
    "matplotlib>=3.8.0",
    "tqdm>=4.66.0",
    "pyyaml>=6.0.1",
]

QUICKSTART = ["espeakng-loader>=0.2.4"]
TENSORBOARD = ["tensorboard>=2.18.0"]

setup(
    name="ssast_lobes",
    version=(ROOT / "ssast_lobes" / "version.txt").read_text().strip(),
    description=(
        "Self-supervised audio spectrogram transformers as SpeechBrain "
        "lobes, recipes and pretrained interfaces"
    ),
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["ssast_lobes", "ssast_lobes.*"]),
        "ssast_lobes.hparams",
    ],
    package_dir={"ssast_lobes.hparams": "hparams"},
    package_data={
        "ssast_lobes": ["version.txt"],
        "ssast_lobes.hparams": ["**/*.yaml"],
    },
    install_requires=REQUIRES,
    extras_require={
        "quickstart": QUICKSTART,
        "tensorboard": TENSORBOARD,
        # Exact: what the formatter accepts depends on its version.
        "test": [
            "pytest==9.2.0",
            "pytest-xdist==3.8.0",
            "ruff==0.17.5",
            *QUICKSTART,
            *TENSORBOARD,
        ],
    },
    entry_points={"console_scripts": ["ssast-lobes=ssast_lobes.cli:main"]},
)
