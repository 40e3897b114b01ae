"""What a run prints, what its folder holds, and how that is named."""

import io
import json
import os
import re
import runpy
import shlex
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest
from brain_kit import build, corpus_rows, fit
from test_recipes import flags_of, load_script, log_of, yaml_of

from ssast_lobes import cli
from ssast_lobes.training.arguments import parse_arguments, plain_settings
from ssast_lobes.training.report import log_end
from ssast_lobes.utils.files import write_csv

MODULE = """
class Flat:
    def __call__(self, step, total_steps):
        return 1.0
"""
PRETRAINED = "results/pretrain_mine_seed3"


@pytest.fixture(scope="module")
def runs(tones, tmp_path_factory):
    """Screens of a pretraining and of a fine-tuning.

    They run in a folder with a blank in its name, without --output_folder.
    """
    folder = tmp_path_factory.mktemp("my runs")
    (folder / "my_code.py").write_text(MODULE)
    (folder / "base.yaml").write_text("mask_ratio: 0.5\nbase: mspm\n")
    (folder / "mine.yaml").write_text("mask_ratio: 0.6\nbase: base.yaml\n")
    screens = SimpleNamespace(folder=folder)

    def run(name, task, *more):
        words = [
            word
            for word in flags_of(task, tones, folder, *more)
            if not word.startswith("--output_folder")
        ]
        screen = io.StringIO()
        with redirect_stdout(screen), redirect_stderr(screen):
            load_script(task).main([str(yaml_of(task)), *words])
        setattr(screens, name, screen.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setenv("SB_GLOBAL_SEED", "0")
        patch.setattr(sys, "excepthook", sys.excepthook)
        own = ["--objective=mine.yaml", "--seed=3"]
        own += ["--schedule=!new:my_code.Flat {}"]
        run("pretrained", "pretrain", *own)
        # Its paths have the blank.
        export = folder / "other" / "export"
        flags = [f"--source={PRETRAINED}/export", f"--export_folder={export}"]
        run("classified", "classify", *flags)
        yield screens


def rows_of(screen, title):
    """The lines below a title, by their first word."""
    block = screen.rpartition(f" - {title}\n")[2]
    lines = re.match(r"(  .*\n)*", block)[0].splitlines()
    return dict(line.strip().split(maxsplit=1) for line in lines)


# The screen ---------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_start_has_no_false_alarm(capfd, caplog):
    # SpeechBrain's module warns where torchvision is not installed.
    name = "speechbrain.utils.train_logger"
    runpy.run_module(name, run_name=name)
    assert caplog.text == "" and capfd.readouterr() == ("", "")


def test_details_of_speechbrain_are_in_the_log_alone(runs):
    log = (runs.folder / PRETRAINED / "log.txt").read_text()
    for detail in ("Beginning experiment!", "Run option", "Applied quirks"):
        assert f"DEBUG - {detail}" in log
        assert detail not in runs.pretrained
    assert "speechbrain.core" not in runs.pretrained


def test_start_tells_what_will_run(runs):
    rows = rows_of(runs.pretrained, "This run")
    assert rows["objective"] == "MSPM"
    assert re.fullmatch(r"6 blocks of 128, .* M parameters", rows["model"])
    clips = r"train (\d+) clips, \d+ s; valid (\d+) clips, \d+ s"
    trained, _ = map(int, re.fullmatch(clips, rows["data"]).groups())
    batches = -(-trained // 4)
    steps = f"{2 * batches} in 2 epochs of {batches} batches"
    assert rows["steps"] == steps
    assert (rows["device"], rows["precision"]) == ("cpu", "fp32")
    assert rows["results"] == PRETRAINED
    rows = rows_of(runs.classified, "This run")
    assert rows["task"] == "3 classes"
    assert rows["loss"].startswith("cross_entropy")


def test_fractions_are_percentages_on_the_screen_alone(runs):
    name = r"speechbrain.utils.train_logger - .*valid accuracy: (\S+) %"
    shown = re.findall(name, runs.classified)
    found = [
        row["valid_accuracy"]
        for row in log_of(runs.folder / "results/classify")
    ]
    assert [float(one) for one in shown] == [
        pytest.approx(100 * one, abs=0.05) for one in found
    ]
    path = runs.folder / "results/classify/test_result.json"
    accuracy = json.loads(path.read_text())["metrics"]["accuracy"]
    [told] = re.findall(r"test: .*accuracy (\S+) %", runs.classified)
    assert float(told) == pytest.approx(100 * accuracy, abs=0.05)


def test_each_epoch_tells_the_time_left(runs):
    line = r"report - (Epoch .*)"
    first, second = re.findall(line, runs.pretrained)
    assert first == "Epoch 1 of 2"
    assert re.fullmatch(r"Epoch 2 of 2; about \d+ s left", second)


def test_time_left_is_that_of_the_steps_of_this_start(tones, tmp_path, caplog):
    rows = corpus_rows(tones.manifest)
    fit(build("pretrain", rows, tmp_path, epochs=1))
    with caplog.at_level("INFO"):
        brain = fit(build("pretrain", rows, tmp_path, epochs=4)).brain
    per_epoch = brain.total_steps // 4
    assert f"resumes after step {per_epoch}\n" in caplog.text
    # Nothing is known yet of the pace of this start.
    assert "Epoch 2 of 4\n" in caplog.text
    assert re.search(r"Epoch 3 of 4; about \d s left\n", caplog.text)
    assert brain.progress.seconds_left() == 0
    brain.optimizer_step = 2 * per_epoch
    brain.progress.started = time.time() - 60
    assert brain.progress.seconds_left() == pytest.approx(120, abs=1)


def test_end_tells_the_result_and_what_to_open(runs):
    for screen in (runs.pretrained, runs.classified):
        assert screen.count(" - Finished\n") == 1
        rows = rows_of(screen, "Finished")
        for name in ("log", "curves", "model"):
            assert (runs.folder / rows[name]).exists()
    result = rows_of(runs.pretrained, "Finished")["result"]
    best = min(
        log_of(runs.folder / PRETRAINED)[:2], key=lambda row: row["valid_loss"]
    )
    assert f"loss {best['valid_loss']:.3g}, " in result
    assert result.endswith(f"(epoch {best['epoch']})")


@pytest.mark.parametrize("name", ["pretrained", "classified"])
def test_next_command_works_as_printed(runs, name, capsys):
    words = shlex.split(rows_of(getattr(runs, name), "Finished")["next"])
    assert words[0] == "ssast-lobes"
    assert not cli.main(words[1:])
    if name == "pretrained":
        assert (runs.folder / PRETRAINED / "embeddings.npz").stat().st_size
    else:
        assert words[2].endswith("my runs0/other/export")
        assert ".wav" in capsys.readouterr().out


def test_next_command_names_no_clip_that_is_not_utf_8(tmp_path, caplog):
    clip = tmp_path / os.fsdecode(b"caf\xe9.wav")
    clip.touch()
    table = tmp_path / "save" / "manifest.csv"
    table.parent.mkdir()
    write_csv(table, [("path", "split"), (str(clip), "test")])
    (tmp_path / "config.json").write_text('{"kind": "classifier"}')
    with caplog.at_level("INFO"):
        log_end(tmp_path, tmp_path)
    assert f"ssast-lobes classify {tmp_path} {table}" in caplog.text


# The folder ---------------------------------------------------------------


def names(folder, prefix="CKPT+"):
    found = {path.name for path in folder.iterdir()}
    return {name for name in found if not name.startswith(prefix)}


def test_what_people_open_lies_on_top(runs):
    shared = {"log.txt", "train_log.txt", "metrics.jsonl", "curves.png"}
    shared |= {"hyperparams.yaml", "unreadable.csv", "save"}
    own = {"reconstruction.png", "export", "code", "embeddings.npz"}
    folder = runs.folder / PRETRAINED
    assert names(folder) | {"embeddings.npz"} == shared | own
    machine = {"splits.json", "manifest.csv", "durations.csv"}
    machine |= {"settings.json", "env.log", ".lock"}
    assert names(folder / "save") == machine
    own = {"test_result.json", "test_predictions.csv", "confusion_matrix.png"}
    assert names(runs.folder / "results/classify") == shared | own


def test_page_names_all_files(runs):
    page = (yaml_of("pretrain").parents[4] / "docs/run_folder.md").read_text()
    for folder in (PRETRAINED, f"{PRETRAINED}/save", "results/classify"):
        for name in names(runs.folder / folder):
            assert f"`{name}" in page or name == "embeddings.npz", name


def test_files_of_the_user_are_copied(runs):
    code = runs.folder / PRETRAINED / "code"
    assert names(code) == {"mine.yaml", "base.yaml", "my_code.py"}
    assert (code / "my_code.py").read_text() == MODULE


# Its name -----------------------------------------------------------------


def folder_of(task, *words):
    data = {"pretrain": "--audio=a", "classify": "--manifest=a"}[task]
    arguments = [str(yaml_of(task)), data, *words]
    hparams_file, _, overrides = parse_arguments(arguments)
    return plain_settings(hparams_file, overrides)["output_folder"]


@pytest.mark.parametrize(
    ("task", "words", "folder"),
    [
        ("pretrain", [], "pretrain"),
        ("pretrain", ["--lr=1e-4"], "pretrain"),
        ("pretrain", ["--objective=m2d"], "pretrain_m2d"),
        ("pretrain", ["--objective=m2d", "--seed=2"], "pretrain_m2d_seed2"),
        ("pretrain", ["--seed=2", "--output_folder=results/a"], "a"),
        ("pretrain", ["--objective={generative_weight: 1}"], "pretrain"),
        ("classify", ["--compute_cost=focal_loss"], "classify_focal_loss"),
    ],
)
def test_default_name_is_told_by_words_and_seed(task, words, folder):
    assert folder_of(task, *words) == f"results/{folder}"


def test_a_preset_that_names_a_folder_keeps_it():
    recipe = (
        yaml_of("pretrain").parents[3] / "ESC50/classify/hparams/esc50.yaml"
    )
    words = [str(recipe), "--data_folder=a", "--training=esc50_frame"]
    for more, name in ([], "esc50_frame"), (["--seed=1"], "esc50_frame_seed1"):
        file, _, overrides = parse_arguments([*words, *more])
        folder = plain_settings(file, overrides)["output_folder"]
        assert folder == f"results/{name}"


def test_references_in_a_name_stay(tmp_path):
    recipe = tmp_path / "train.yaml"
    recipe.write_text("seed: 1\nsize: tiny\noutput_folder: !ref out/<size>\n")
    words = [str(recipe), "--seed=2", "--size=base"]
    file, _, overrides = parse_arguments(words)
    folder = plain_settings(file, overrides)["output_folder"]
    assert folder == "out/base_seed2"
