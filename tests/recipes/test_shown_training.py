"""What the scripts show is what is done: they can be copied and changed."""

import shutil
import subprocess
import sys

import pytest
from hyperpyyaml import load_hyperpyyaml
from test_recipes import (
    ONE_OF_BOTH,
    RECIPES,
    TASKS,
    exported,
    flags_of,
    log_of,
    same,
    scripts,
    train,
    yaml_of,
)

from ssast_lobes import training
from ssast_lobes.training import parse_arguments
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.utils.presets import read_tree, tag_of

__all__ = ["scripts", "train"]  # fixtures
BRAINS = {
    "pretrain": training.PretrainingBrain,
    "classify": training.ClassificationBrain,
}


# The script's own Brain ---------------------------------------------------


@pytest.mark.slow
@ONE_OF_BOTH
def test_the_package_s_brain_does_the_same(task, train, scripts, monkeypatch):
    """What a script overrides, to show it, is what the package does."""
    own = scripts[task].SSASTBrain
    assert own.__mro__[1] is BRAINS[task]
    assert {"compute_forward", "compute_objectives"} <= vars(own).keys()
    flags = ["--degradation=speech"] if task == "classify" else []
    shown = train(task, *flags)
    weights, log = exported(shown), log_of(shown)
    shutil.rmtree(shown)
    monkeypatch.setattr(scripts[task], "SSASTBrain", BRAINS[task])
    folder = train(task, *flags)
    assert same(exported(folder), weights)
    assert log_of(folder) == log


@pytest.mark.slow
@ONE_OF_BOTH
def test_a_copied_recipe_runs_elsewhere_and_can_be_changed(
    task, tones, tmp_path
):
    """With its links followed, a task's folder is all that is needed."""
    copy, folder = tmp_path / "mine", tmp_path / "out"
    shutil.copytree(RECIPES / task, copy)
    assert not any(path.is_symlink() for path in copy.rglob("*"))
    script = copy / "train.py"
    first = "        batch = batch.to(self.device, non_blocking=True)\n"
    text = script.read_text()
    assert text.count(first) == 1
    changed = '        print("Changed", stage)\n'
    script.write_text(text.replace(first, changed + first))
    result = subprocess.run(
        [sys.executable, "train.py", f"hparams/{task}.yaml"]
        + flags_of(task, tones, folder),
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert (
        result.stdout.count("Changed Stage.TRAIN") == log_of(folder)[-1]["step"]
    )
    assert result.stdout.count("Changed Stage.VALID") >= 2
    assert (folder / "train.py").read_text() == script.read_text()
    assert (folder / "export" / "config.json").is_file()


# An object of the YAML for another ----------------------------------------


class Other:
    """Stands in place of any class; gives an object that there is already."""

    given = object_ = None

    def __new__(cls, **given):
        Other.given = given
        return Other.object_


def other_function(**given):
    """Stands in place of any function."""
    return given


def load(task, *words):
    data = "audio" if task == "pretrain" else "manifest"
    path, _, overrides = parse_arguments(
        [str(yaml_of(task)), f"--{data}=none", *words]
    )
    with open(path, encoding="utf-8") as file:
        return load_hyperpyyaml(file, overrides)


def objects_of(task):
    """Task, key and tag of what a YAML names a class or a function for."""
    for key, node in read_tree(yaml_of(task)).items():
        tag = tag_of(node).partition(":")[0]
        if tag in ("!new", "!name"):
            yield task, key, tag


OBJECTS = [each for task in TASKS for each in objects_of(task)]


def test_there_are_objects():
    keys = {(task, key) for task, key, _ in OBJECTS}
    for task in TASKS:
        for key in ("lobe", "opt_class", "schedule", "checkpointer", "collate"):
            assert (task, key) in keys
    assert {("pretrain", "objective"), ("classify", "compute_cost")} <= keys


@pytest.mark.slow
@pytest.mark.parametrize("task, key, tag", OBJECTS)
def test_a_class_takes_the_place_of_an_object(task, key, tag, monkeypatch):
    """Nothing is left of what the YAML says of the other one."""
    if tag == "!name":
        word = f"!name:{__name__}.other_function {{mark: 7}}"
        given = load(task, f"--{key}={word}")[key]
        assert given.func is other_function and given.keywords == {"mark": 7}
        return
    before = load(task)[key]
    monkeypatch.setattr(Other, "object_", before)
    hparams = load(task, f"--{key}=!new:{__name__}.Other {{mark: 7}}")
    assert hparams[key] is before
    assert Other.given == {"mark": 7}
    # Whatever refers to it has it too.
    held = {
        "lobe": lambda: (
            hparams["modules"].get("features", None)
            or hparams["pretrainer"].features
        ),
        "objective": lambda: hparams["pretrainer"].objective,
        "pretrainer": lambda: hparams["modules"]["pretrainer"],
        "masker": lambda: hparams["objective"].masker,
        "epoch_counter": lambda: hparams["checkpointer"].recoverables[
            "counter"
        ],
    }
    expected = before.features if key == "lobe" else before
    if key in held:
        assert held[key]() is expected


@pytest.mark.parametrize("task, key, tag", OBJECTS)
def test_arguments_that_a_class_does_not_know_are_told(task, key, tag):
    told = f"{key}(.*: .*'no_such_argument'| has no settings to change)"
    with pytest.raises(SettingsError, match=told):
        load(task, f"--{key}={{no_such_argument: 1}}")


@pytest.mark.parametrize(
    "task, key",
    [("pretrain", "weight_decay_schedule"), ("classify", "degradation")],
)
def test_a_class_takes_the_place_of_nothing(task, key, monkeypatch):
    monkeypatch.setattr(Other, "object_", Other)
    word = f"!new:{__name__}.Other {{mark: 7}}"
    assert load(task)[key] is None
    assert load(task, f"--{key}={word}")[key] is Other
    assert Other.given == {"mark": 7}
