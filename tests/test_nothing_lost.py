"""Runs that meet damaged checkpoints, or a disk that is full.

Of the checkpointer alone see `test_checkpointer.py`.
"""

import json

import brain_kit as kit
import pytest
from brain_kit import BRAINS, TASKS, build, evaluate, fit, same, weights
from export_kit import export, make_classifier
from full_disk import full_disk, resource

from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.inference import AudioClassifier
from ssast_lobes.training.errors import exit_on_user_error
from ssast_lobes.utils.files import atomic_write

# Damaged checkpoints ------------------------------------------------------


def spoil(checkpoint):
    """Flip a byte in the middle of the weights."""
    path = max(checkpoint.paramfiles.values(), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@TASKS
def test_run_goes_on_from_the_checkpoint_before(task, rows, tmp_path, caplog):
    def prepared(name, **more):
        steps = {"ckpt_interval_steps": 1}
        return build(task, rows, tmp_path / name, run_opts=steps, **more)

    whole = fit(prepared("whole"))
    dying = kit.dying(BRAINS[task], epoch=2, batch=3)
    killed = prepared("killed", brain_class=dying)
    with pytest.raises(kit.Killed):
        fit(killed)
    newest = killed.brain.checkpointer.find_checkpoint()
    assert not newest.meta["end-of-epoch"]
    spoil(newest)
    resumed = fit(prepared("killed"))
    assert f"{newest.path} is damaged" in caplog.text
    assert same(weights(resumed), weights(whole))
    assert resumed.brain.log_rows() == whole.brain.log_rows()


def test_next_best_epoch_is_tested_where_the_best_is_damaged(
    rows, tmp_path, caplog
):
    run = fit(build("classify", rows, tmp_path, epochs=1))
    expected = evaluate(run)
    saver = run.brain.checkpointer
    spoil(saver.save_checkpoint({"accuracy": 2.0, "epoch": 2}, name="best"))
    assert evaluate(build("classify", rows, tmp_path)) == expected
    assert "CKPT+best is damaged" in caplog.text


def test_run_does_not_start_anew_over_damaged_checkpoints(
    rows, tmp_path, capsys
):
    run = fit(build("pretrain", rows, tmp_path, epochs=1))
    for checkpoint in run.brain.checkpointer.list_checkpoints():
        spoil(checkpoint)
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped, exit_on_user_error():
            fit(build("pretrain", rows, tmp_path, epochs=2))
        assert stopped.value.code == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("CheckpointError: no checkpoint is left")
        assert str(tmp_path / "save" / "damaged-CKPT+") in message
    assert len(run.brain.log_rows()) == 1


# A full disk --------------------------------------------------------------


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("size", [100, 30_000])
def test_older_export_stays(size, tmp_path):
    # The weights do not fit, or not even the first file that is written.
    folder = export(tmp_path / "export", make_classifier())
    before = files_of(folder)
    with full_disk(size):
        with pytest.raises(WeightsError, match="cannot be written") as info:
            export(folder, make_classifier())
        assert str(folder) in str(info.value)
    assert files_of(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    AudioClassifier.from_hparams(folder)


def test_no_part_of_a_first_export_is_left(tmp_path):
    with full_disk(30_000), pytest.raises(WeightsError):
        export(tmp_path / "export", make_classifier())
    assert list(tmp_path.iterdir()) == []


def test_result_file_stays_as_it_was(tmp_path, capsys):
    path = tmp_path / "result.json"
    path.write_text("old")
    with full_disk(1000), pytest.raises(SystemExit), exit_on_user_error():
        with atomic_write(path) as file:
            file.write(2000 * "x")
    message = capsys.readouterr().err
    assert message.splitlines() == [message.strip()]
    assert str(path) in message and "Make room" in message
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_file_that_cannot_be_opened_says_why(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            with atomic_write(tmp_path / "result.json"):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_log_goes_on_after_a_line_that_was_cut_short(rows, tmp_path, capsys):
    whole = fit(build("pretrain", rows, tmp_path / "whole"))
    expected = whole.brain.log_rows()
    folder = tmp_path / "full"
    dying = kit.dying(BRAINS["pretrain"], epoch=2, batch=1)
    with pytest.raises(kit.Killed):
        fit(build("pretrain", rows, folder, brain_class=dying))
    log = folder / "metrics.jsonl"
    train_log = folder / "train_log.txt"
    room = log.stat().st_size + 20
    assert train_log.stat().st_size < room
    run = build("pretrain", rows, folder)
    with pytest.raises(SystemExit), exit_on_user_error():
        run.brain.batches_per_epoch = 4
        run.brain.on_fit_start()
        with full_disk(room):
            run.brain.log_epoch(2, {"loss": 1.0}, {"loss": 1.0})
    assert f"'{log}'. Make room" in capsys.readouterr().err
    cut = log.read_text()
    assert len(cut) == room and not cut.endswith("\n")
    assert [row["epoch"] for row in run.brain.log_rows()] == [1]

    resumed = build("pretrain", rows, folder)
    fit(resumed)
    for line in log.read_text().splitlines():
        json.loads(line)
    assert resumed.brain.log_rows() == expected
    assert same(weights(resumed), weights(whole))


def test_ctrl_c_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert capsys.readouterr().err.splitlines() == [
        "Stopped: the same command resumes at the last checkpoint"
    ]
