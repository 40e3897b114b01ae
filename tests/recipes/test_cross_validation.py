"""Folds one after the other: resumed, repeated, on several processes."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import miniature_esc50
import pytest
import torch
from safetensors.torch import load_file

from ssast_lobes.dataio.splits import OtherClips
from ssast_lobes.training.errors import SettingsError

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
TASK = HERE.parents[1] / "recipes" / "ESC50" / "classify"
FOLDS = (1, 2)
# Runs two of the folds, and dies in the last epoch of the second if asked to.
SCRIPT = f"""
import os, signal, sys
sys.path.insert(0, {str(TASK)!r})
from train import main
from ssast_lobes.training import exit_on_user_error
from ssast_lobes.training.base import SpectrogramBrain

def die(brain, batch, should_step):
    if "fold_2" in str(brain.output_folder) and brain.epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)

if os.environ.get("DIE"):
    SpectrogramBrain.on_fit_batch_start = die
with exit_on_user_error():
    main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return miniature_esc50.make(tmp_path_factory.mktemp("esc50"), 0.3)


@pytest.fixture(scope="module")
def main():
    """The function of the recipe."""
    path = TASK / "train.py"
    spec = importlib.util.spec_from_file_location("train_esc50", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(TASK))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TASK))
    return module.main


def flags(data, folder, *more):
    """The smallest run: two epochs of three batches for each of two folds.

    Further flags replace those of the same name.
    """
    own = [
        *(f"--data_folder={data}", f"--output_folder={folder}"),
        *("--esc10=True", "--require_counts=False", "--valid_fraction=0.3"),
        *("--model_size=micro", "--stride=null", "--batch_size=8"),
        "--folds=[1, 2]",
        *("--lr=0.001", "--number_of_epochs=2", "--num_workers=0"),
        *("--device=cpu", "--noprogressbar"),
    ]
    given = {flag.split("=")[0] for flag in more}
    kept = [flag for flag in own if flag.split("=")[0] not in given]
    return [str(TASK / "hparams" / "esc50.yaml"), *kept, *more]


@pytest.fixture
def run(data, main, monkeypatch):
    """Function of a folder and further flags: runs the folds in it."""
    # Where a recipe logs to and who hears of errors is its own business.
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("SB_GLOBAL_SEED", "0")

    def folds(folder, *more):
        return main(flags(data, folder, *more))

    return folds


@pytest.fixture(scope="module")
def whole(data, main, tmp_path_factory):
    """Folder of both folds, run in one go, and what came out."""
    folder = tmp_path_factory.mktemp("whole")
    hook = sys.excepthook
    results = main(flags(data, folder))
    sys.excepthook = hook
    return folder, results


def process(arguments, folder, *launcher, **more):
    """Run the folds as a process of its own."""
    path = folder / "two_folds.py"
    path.write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, *launcher, path, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **more},
    )


def read(folder, name):
    return json.loads((folder / name).read_text())


def log_of(folder, fold):
    lines = (folder / f"fold_{fold}" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def predictions(folder, fold):
    return (folder / f"fold_{fold}" / "test_predictions.csv").read_text()


def test_table_of_all_folds(whole):
    folder, results = whole
    assert list(results) == [1, 2]
    table = read(folder, "results.json")
    each = [result["accuracy"] for result in results.values()]
    assert table["mean"]["accuracy"] == pytest.approx(sum(each) / 2)
    assert table["sd"]["loss"] == pytest.approx(
        abs(results[1]["loss"] - results[2]["loss"]) / 2**0.5
    )
    assert table["folds"]["2"] == results[2]
    assert (folder / "results.png").stat().st_size > 5000
    for fold in FOLDS:
        result = read(folder, f"fold_{fold}/test_result.json")
        assert result["data"] == f"ESC-10, test fold {fold}"
        assert result["clips"] == 6
        assert predictions(folder, fold).count("\n") == 7


@pytest.mark.slow
def test_killed_run_goes_on_at_its_fold(run, whole, data, tmp_path, capfd):
    folder, results = whole
    killed = tmp_path / "killed"
    done = process(flags(data, killed), tmp_path, DIE="1")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (killed / "results.json").exists()
    assert not (killed / "fold_2" / "test_result.json").exists()
    log = killed / "fold_1" / "train_log.txt"
    before = log.read_text()
    capfd.readouterr()
    assert run(killed) == results
    shown = capfd.readouterr().out
    head = "fold   epoch      loss  accuracy       uar  macro_f1"
    assert f"{head}       eer\n1  " in shown
    assert log.read_text() == before
    assert read(killed, "results.json") == read(folder, "results.json")
    for fold in FOLDS:
        assert predictions(killed, fold) == predictions(folder, fold)

    # All is finished: nothing is run, and the table is there again.
    (killed / "results.json").unlink()
    assert run(killed) == results
    assert log.read_text() == before
    assert (killed / "results.json").exists()
    with pytest.raises(SettingsError, match=r"lr \(0.001, now 0.1\)"):
        run(killed, "--lr=0.1")


@pytest.mark.slow
def test_one_fold_alone_is_the_same(run, whole, tmp_path):
    folder, results = whole
    # A few batches of a trial are no result.
    run(tmp_path, "--fold=2", "--debug")
    assert log_of(tmp_path, 2)[-1]["step"] == 4
    assert run(tmp_path, "--fold=2") == {2: results[2]}
    assert predictions(tmp_path, 2) == predictions(folder, 2)
    assert not (tmp_path / "results.json").exists()
    # More epochs may be asked for.
    run(tmp_path, "--fold=2", "--number_of_epochs=3")
    assert log_of(tmp_path, 2)[-1]["epoch"] == 3


@pytest.mark.slow
def test_official_selection_takes_one_epoch_for_all_folds(run, tmp_path, capfd):
    results = run(tmp_path, "--training=esc50_patch_reference")
    assert "epoch chosen on test" in capfd.readouterr().out
    logs = [log_of(tmp_path, fold) for fold in FOLDS]
    means = [
        sum(log[epoch]["valid_accuracy"] for log in logs) for epoch in (0, 1)
    ]
    best = means.index(max(means))
    for result, log in zip(results.values(), logs, strict=True):
        assert result["epoch"] == best + 1
        assert result["accuracy"] == log[best]["valid_accuracy"]
        names = {"epoch", "loss", "accuracy", "uar", "macro_f1", "eer"}
        known = {
            f"{name}_chance" for name in ("loss", "accuracy", "uar", "eer")
        }
        assert set(result) == names | known
    table = read(tmp_path, "results.json")
    assert table["epoch_chosen_on"] == "test"
    assert table["folds"]["1"] == results[1]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--fold=3", "fold must be one of 1, 2, got '3'"),
        ("--epoch_chosen_on=train", "must be one of valid, test, got 'train'"),
        (
            "--batch_size=0",
            "batch_size must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_wrong_settings(run, tmp_path, flag, message):
    with pytest.raises(SettingsError, match=message):
        run(tmp_path / "out", flag)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes(run, data, tmp_path):
    folder = tmp_path / "out"
    launcher = "-m torch.distributed.run --standalone --nproc_per_node=2"
    arguments = flags(data, folder, "--distributed_backend=gloo")
    done = process(arguments, tmp_path, *launcher.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy       uar") == 1
    table = read(folder, "results.json")
    several = [predictions(folder, fold) for fold in FOLDS]
    # One process finds the same numbers for the same weights.
    again = run(folder, "--test_only")
    assert [predictions(folder, fold) for fold in FOLDS] == several
    assert table["folds"] == {str(fold): one for fold, one in again.items()}


def test_mean_of_epochs_leaves_none_to_choose_on_test(run, tmp_path):
    folder = tmp_path / "out"
    results = run(
        folder, "--folds=[1]", "--epoch_chosen_on=test", "--swa_start_epoch=1"
    )
    result = read(folder, "fold_1/test_result.json")
    # Of the mean of both epochs, which the last epoch validates: here it is
    # the same fold. The weights trained on are others.
    assert result["swa_start_epoch"] == 1 and result["epoch"] == 2
    assert results[1] == {"epoch": 2, **result["metrics"]}
    logged = log_of(folder, 1)[-1]["valid_loss"]
    assert result["metrics"]["loss"] == pytest.approx(logged, rel=1e-6)
    [checkpoint] = (folder / "fold_1/save").glob("CKPT*")
    own = torch.load(checkpoint / "model.ckpt")
    mean = torch.load(checkpoint / "average.ckpt")
    exported = load_file(folder / "fold_1/export/model.safetensors")
    assert all(torch.equal(v, mean[f"module.{k}"]) for k, v in exported.items())
    assert any(not torch.equal(v, own[k]) for k, v in exported.items())
    assert read(folder, "results.json")["swa_start_epoch"] == 1


def test_the_loss_is_told(run, tmp_path):
    run(
        *(tmp_path, "--fold=1", "--number_of_epochs=1"),
        *("--compute_cost=focal_loss", "--class_weights=balanced"),
        "--balanced_sampling=True",
    )
    result = read(tmp_path, "fold_1/test_result.json")
    assert result["compute_cost"] == "focal_loss(gamma=2.0)"
    assert result["class_weights"] == "balanced"
    card = (tmp_path / "fold_1/export/README.md").read_text()
    for told in ("focal_loss(gamma=2.0)", "class_weights", "balanced_sampling"):
        assert told in card


def test_a_changed_table_is_noticed_in_finished_folds(run, whole, data):
    folder, _ = whole
    table = data / "ESC-50-master" / "meta" / "esc50.csv"
    text = table.read_text()
    before = predictions(folder, 1)
    swapped = text.replace(",dog,", ",@,").replace(",rooster,", ",dog,")
    try:
        table.write_text(swapped.replace(",@,", ",rooster,"))
        with pytest.raises(OtherClips, match="has the label"):
            run(folder)
    finally:
        table.write_text(text)
    assert predictions(folder, 1) == before


@pytest.mark.slow
def test_a_missing_training_is_named_with_those_there_are(tmp_path):
    done = subprocess.run(
        [sys.executable, "train.py", "hparams/esc50.yaml", "--data_folder=x"]
        + ["--training=nope", f"--output_folder={tmp_path / 'out'}"],
        cwd=TASK,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "no training preset named 'nope'" in done.stderr
    assert "esc50_frame" in done.stderr
    assert not (tmp_path / "out").exists()
