"""Packaging of ssast_lobes: what it is called and what it needs to run.

The wheel carries the importable package, and in it the presets of
`hparams/` and the recipes, where `ssast_lobes.utils.presets` and
`ssast_lobes.cli.recipe_files` look for them. Recipes are experiments to copy
and change: see the command `ssast-lobes recipes`.
"""

import json
import os
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent

# torch and torchaudio are bounded together: torchaudio ends at 2.11, and a
# later torch next to it is another CUDA build, which torchaudio refuses.
REQUIRES = [
    "speechbrain>=1.1.2,<1.2",
    "torch>=2.7.1,<2.12",
    "torchaudio>=2.7.1,<2.12",
    "hyperpyyaml>=1.2.3",
    "sentencepiece>=0.2.0",
    "numpy>=1.26.4",
    "soundfile>=0.13.0",
    "safetensors>=0.4.3",
    "huggingface_hub>=0.34.0",
    "matplotlib>=3.8.0",
    "tqdm>=4.66.0",
    "pyyaml>=6.0.1",
    # In torch's requirements too.
    "filelock>=4.1.0",
    "ruamel.yaml>=0.18.17",
]

# Only for audio that libsndfile does not read (m4a, webm, ...), next to FFmpeg.
# torchcodec does not say which torch it fits: 0.11 to 0.17 fit torch 2.11.
CODEC = ["torchcodec>=0.5"]
# Only to use there what `ssast-lobes convert --to huggingface` writes.
HUGGINGFACE = ["transformers>=4.57.1"]
# Only for `ssast-lobes onnx --output`; what it writes needs onnxruntime alone.
ONNX = ["onnx>=1.19.1", "onnxscript>=0.7.2", "onnxruntime>=1.23.2"]
QUICKSTART = ["espeakng-loader>=0.2.4"]
TENSORBOARD = ["tensorboard>=2.18.0"]
# Only for `recipes/SyntheticCommands/spoken_takes_prepare.py` to choose words.
WORDS = ["wordfreq>=3.1.1"]
# Only to evaluate there.
XARES = ["xares>=0.1.3"]


RECIPES = ROOT / "recipes"


def write_links(recipes):
    """Write down the links among the recipes, which archives do not hold.

    In an unpacked source archive they are written down already.
    """
    if (RECIPES / "links.json").exists():
        return
    links = {
        path.relative_to(RECIPES).as_posix(): os.readlink(path)
        for path in sorted(RECIPES.rglob("*"))
        if path.is_symlink()
    }
    text = json.dumps(links, indent=2) + "\n"
    Path(recipes, "links.json").write_text(text, "utf-8")


class Wheel(build_py):
    """What a wheel holds."""

    def run(self):
        """Build, and add the list of links."""
        super().run()
        if not self.editable_mode:
            write_links(Path(self.build_lib, "ssast_lobes", "recipes"))


class SourceArchive(sdist):
    """What a source archive holds."""

    def make_release_tree(self, base_dir, files):
        """Gather the files, and add the list of links."""
        super().make_release_tree(base_dir, files)
        write_links(Path(base_dir, "recipes"))


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
        "ssast_lobes.recipes",
    ],
    package_dir={
        "ssast_lobes.hparams": "hparams",
        "ssast_lobes.recipes": "recipes",
    },
    package_data={
        "ssast_lobes": ["version.txt", "pretrained/**/*"],
        "ssast_lobes.hparams": ["**/*.yaml"],
        "ssast_lobes.recipes": ["**/*"],
    },
    # What runs of recipes leave there.
    exclude_package_data={
        "ssast_lobes.recipes": ["*/results/*", "*/__pycache__/*"],
    },
    install_requires=REQUIRES,
    extras_require={
        "codec": CODEC,
        "huggingface": HUGGINGFACE,
        "onnx": ONNX,
        "quickstart": QUICKSTART,
        "tensorboard": TENSORBOARD,
        "words": WORDS,
        "xares": XARES,
        # Exact: what the formatter accepts depends on its version.
        "test": [
            "pytest==9.2.0",
            "pytest-xdist==3.8.0",
            "ruff==0.17.5",
            # Readers of what `ssast-lobes shard` writes.
            "webdataset==1.0.2",
            "wids==0.1.11",
            *HUGGINGFACE,
            *ONNX,
            *QUICKSTART,
            *TENSORBOARD,
            *WORDS,
        ],
    },
    cmdclass={"build_py": Wheel, "sdist": SourceArchive},
    entry_points={"console_scripts": ["ssast-lobes=ssast_lobes.cli:main"]},
)
