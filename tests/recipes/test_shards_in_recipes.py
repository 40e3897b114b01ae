"""Training from shards is training from files: bit for bit, killed or not."""

import csv
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import test_recipes
from test_recipes import (  # noqa: F401 (fixtures)
    KILLED,
    exported,
    flags_of,
    log_of,
    same,
    scripts,
    train,
    yaml_of,
)
from test_voxceleb import voxceleb  # noqa: F401 (fixture)

from ssast_lobes import cli
from ssast_lobes.dataio.shards import pack
from ssast_lobes.dataio.tables import ManifestError, read_manifest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manifests(tones, tmp_path_factory):
    """CSVs of the same 16-bit audio: files, and flac shards of them."""
    folder = tmp_path_factory.mktemp("manifests")
    packed = pack(read_manifest(tones.manifest), folder / "wav", "int16")
    rows = read_manifest(packed.manifest, ("path", "label", "split"))
    with tarfile.open(folder / "wav" / "000000.tar") as tar:
        for row, name in zip(rows, tar.getnames()[::2], strict=True):
            row["path"] = str(folder / row["id"])
            Path(row["path"]).write_bytes(tar.extractfile(name).read())
    files = folder / "files.csv"
    with open(files, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    shards = pack(read_manifest(files), folder / "shards", shard_bytes=2**17)
    assert shards.shards > 1
    return {"files": files, "shards": Path(shards.manifest)}


def data_of(task, manifest):
    return f"--{'audio' if task == 'pretrain' else 'manifest'}={manifest}"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pretrain", "classify"])
def test_same_weights_from_shards_and_files(task, train, manifests, tmp_path):  # noqa: F811
    folders = []
    for name, manifest in manifests.items():
        folder = tmp_path / name
        # Crops of all but the shortest clips.
        flags = [data_of(task, manifest), "--crop_seconds=0.4"]
        folders.append(train(task, *flags, folder=folder))
    one, other = folders
    assert same(exported(one), exported(other))
    assert log_of(one) == log_of(other)


@pytest.mark.slow
def test_killed_run_goes_on_with_the_next_clip(
    train,  # noqa: F811
    tones,
    manifests,
    tmp_path,
):
    task, folder = "pretrain", tmp_path / "killed"
    data = data_of(task, manifests["shards"])
    whole = train(task, data, folder=tmp_path / "whole")
    more = [data, "--ckpt_interval_steps=1", "--num_workers=2"]
    flags = [yaml_of(task), *flags_of(task, tones, folder, *more)]
    here = Path(test_recipes.__file__).parent
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, here, ROOT, task, *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    train(task, *more, folder=folder)
    assert same(exported(folder), exported(whole))
    assert log_of(folder) == log_of(whole)


@pytest.mark.slow
def test_dataset_recipe_reads_the_shards_of_its_manifest(
    voxceleb,  # noqa: F811
    tmp_path,
):
    folder, shards = tmp_path / "out", tmp_path / "shards"
    with pytest.raises(ManifestError, match="there are no shards") as error:
        voxceleb(folder, f"--shards={shards}")
    command = re.search("`ssast-lobes (.*)`", str(error.value))[1]
    assert cli.main([*command.split(), "--workers=1"]) == 0
    # In the same folder: what was asked for is still the same experiment.
    voxceleb(folder, f"--shards={shards}")
    assert same(exported(folder), exported(voxceleb(tmp_path / "files")))
