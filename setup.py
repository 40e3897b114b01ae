"""Packages of ssast_lobes; pyproject.toml has all the rest.

The wheel carries the importable package, and in it the presets of `hparams/`
and the recipes, where `ssast_lobes.utils.presets` and
`ssast_lobes.cli.recipe_files` look for them.
"""

from setuptools import find_packages, setup

setup(
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
)
