"""Numbers of objectives that cannot be are told when the object is built."""

import pytest
from objective_kit import SMALL, build_with

from ssast_lobes.utils.checks import ArgumentError

WRONG = {
    "asit": {
        "crop": [0, 2],
        "drop_area": [[0.7, 0.5], 0.5],
        "paste_area": [-1, "x"],
        "paste_probability": [2],
        "block": [2],
        "projection": [0, 1.5],
        "class_prototypes": [0],
        "patch_prototypes": [-1],
        "student_temperature": [0],
        "teacher_temperature": [[0.1, -1], 3],
        "temperature_warmup": [2],
        "center_momentum": [1.5],
        "momentum": [[0.9, 2], 0.9],
        "class_weight": [-1],
        "patch_weight": ["x"],
        "reconstruction_weight": [-1],
    },
    "atst_clip": {
        "crop": [0],
        "freq_scale": [0.6, [2, 1]],
        "time_scale": [[-1, 1]],
        "time_canvas": [0.5],
        "mixup": [2],
        "memory": [0, 1.5],
        "hidden": [0],
        "out": [-1],
        "momentum": [[0.9, 2]],
    },
    "atst_frame": {"freq_scale": [[2, 1]], "hidden": [0]},
    "audiomosaic": {
        "temperature": [0],
        "hidden": [0],
        "out": ["x"],
        "memory": [0, 1.5],
    },
    "beats": {"label_smoothing": [2, "x"]},
    "contrastive_mspm": {
        "crop": [[0.5, 2]],
        "contrast_depth": [1.5],
        "contrast_weight": [-1],
        "pair_weight": ["x"],
        "temperature": [0],
        "projection": [0],
        "background": [{"probability": 2, "snr": [0, 1], "scale": 1}],
        "channel": [{"level": -1, "tilt": 0, "cosines": 1}],
        "generative_weight": [-1],
    },
    "distillation": {
        "pairs": [0, 1.5],
        "cosine_weight": [-1, "x"],
        "crop_seconds": [0],
    },
    "eat": {
        "n_masks": [0, 1.5],
        "momentum": [[0.9, 2]],
        "utterance_weight": [-1],
        "noise_std": ["x"],
    },
    "jepa": {"layers": [2, "x"], "momentum": [[0.9, 2]]},
    "m2d": {"momentum": [[0.9, 2]]},
    "mae_ast": {"generative_weight": [-1]},
    "mert": {"spectrum_weight": [-1, "x"]},
    "sslam": {"clean_window": [0.6, -1, "x"]},
    "vector_quantizer": {
        "n_codes": [1, "x"],
        "dim": [0],
        "code_momentum": [1.5],
        "restart_after": [0, 1.5],
        "commitment": [-1],
    },
}
CASES = [
    (name, key, value)
    for name, keys in WRONG.items()
    for key, values in keys.items()
    for value in values
]


@pytest.mark.parametrize(("name", "key", "value"), CASES)
def test_wrong_numbers_are_named(name, key, value):
    with pytest.raises(ArgumentError, match=f"{key}.* must be .*got"):
        build_with(name, **{**SMALL.get(name, {}), key: value})
