"""The comparison of objectives: several pretrainings, one probe."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peer_kit import tiny, wrapped

from ssast_lobes.checkpoints.convert import convert

RECIPE = Path(__file__).parents[2] / "recipes/CustomData/compare"


def compare(folder, tones, *flags):
    return subprocess.run(
        [sys.executable, "train.py", "hparams/compare.yaml"]
        + [f"--audio={tones.folder}"]
        + [f"--tasks=[{{name: tones, csv_path: {tones.manifest}}}]"]
        + ["--objectives=[mspm_short_clips, m2d_small_data]"]
        + [f"--output_folder={folder}", *flags],
        cwd=RECIPE,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_objectives_are_compared_and_finished_ones_stay(tones, tmp_path):
    settings = (
        "--pretraining={crop_seconds: 0.6, batch_size: 4, num_workers: 0, "
        "valid_fraction: 0.2, number_of_epochs: %d}"
    )
    done = compare(tmp_path, tones, settings % 2)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "comparison.md").read_text()
    for name in ("mspm_short_clips", "m2d_small_data", "untrained", "log-mel"):
        assert f"| {name} " in text
    assert (tmp_path / "probe.png").is_file()
    cost = json.loads((tmp_path / "m2d_small_data/cost.json").read_text())
    assert cost["settings"]["lr"] == 0.001 and cost["steps"] > 0

    # The folder of the audio has the clips of valid and test too.
    splits = json.loads(
        (tmp_path / "m2d_small_data/save/splits.json").read_text()
    )
    seen = {Path(row["path"]).name for row in splits["train"].values()}
    assert seen and tones.held_out and not seen & tones.held_out

    weights = tmp_path / "m2d_small_data/export/model.safetensors"
    before = weights.stat().st_mtime_ns
    again = compare(tmp_path, tones, settings % 2)
    assert again.returncode == 0, again.stderr
    assert weights.stat().st_mtime_ns == before
    assert (tmp_path / "comparison.md").read_text() == text

    path = tmp_path / "beats.pth"
    torch.save(wrapped("beats", tiny("beats")), path)
    convert(path, tmp_path / "peer")
    models = f"--models={{BEATs: {tmp_path / 'peer'}}}"
    further = compare(tmp_path, tones, settings % 2, models)
    assert further.returncode == 0, further.stderr
    assert "| BEATs " in (tmp_path / "comparison.md").read_text()

    other = compare(tmp_path, tones, settings % 3)
    assert other.returncode != 0
    assert "choose another output_folder" in other.stderr


@pytest.mark.slow
def test_quickstart_takes_another_objective(tmp_path):
    quickstart = RECIPE.parents[1] / "SyntheticCommands"
    path = quickstart / "hparams/quickstart.yaml"
    settings = yaml.safe_load(path.read_text())
    sizes = {"train_per_word": 2, "valid_per_word": 1, "test_per_word": 1}
    settings["corpus"].update(
        n_unlabelled=40, **{f"n_{key}": n for key, n in sizes.items()}
    )
    settings["pretrain"]["number_of_epochs"] = 1
    settings["classify"]["number_of_epochs"] = 1
    settings["fine_tuning_seeds"] = [1]
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, quickstart / "quickstart.py", small]
        + ["--objective=m2d_small_data", f"--output_folder={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    config = json.loads(
        (tmp_path / "pretrained_export/config.json").read_text()
    )
    assert config["objective"]["name"] == "M2D"
