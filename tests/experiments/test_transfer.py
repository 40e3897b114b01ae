"""The transfer experiment: tuned blind, tested once, resumed, added up."""

import importlib.util
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import speechbrain as sb
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml

from ssast_lobes import FrontEnd, SpectrogramEncoder
from ssast_lobes.checkpoints.folder import export_pretrained
from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.projections import write_projection
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.evaluation.probing import Task, read_task
from ssast_lobes.evaluation.probing.discriminants import fit_projection
from ssast_lobes.evaluation.probing.embeddings import PooledEncoder
from ssast_lobes.objectives import MSPM
from ssast_lobes.training.errors import SettingsError

RECIPE = Path(__file__).parents[2] / "experiments/transfer"
SMALL = {"crop_seconds": 0.6, "batch_size": 4}
MASKED = {"objective": "mspm_small_data"}
ALL_LAYERS = {"pooling": "dynamics", "layers": "all"}


@pytest.fixture(scope="session")
def script():
    """The module of the recipe, as Python finds its neighbors."""
    sys.path.insert(0, str(RECIPE))
    spec = importlib.util.spec_from_file_location(
        "train_transfer", RECIPE / "train.py"
    )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(RECIPE))
    return module


@pytest.fixture(scope="session")
def reports(script):
    return sys.modules["transfer_report"]


@pytest.fixture
def run(script, monkeypatch):
    """Function of flags: runs the recipe here."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("SB_GLOBAL_SEED", "0")
    return lambda flags: script.main([str(RECIPE / flags[0]), *flags[1:]])


def flags_of(folder, tasks, **more):
    """The smallest experiment with everything in it."""
    method = {"settings": {"number_of_epochs": 1}, "candidates": []}
    tuned = {**method, "candidates": [{}, {"lr": 0.004}]}
    settings = {
        "tasks": tasks,
        "output_folder": str(folder),
        "seeds": [1, 2],
        "num_workers": 0,
        "classification": SMALL,
        "methods": {"scratch": tuned, "fine_tuned": method},
        **more,
    }
    words = [
        f"--{key}={yaml.safe_dump(value, default_flow_style=True).strip()}"
        for key, value in settings.items()
    ]
    words = [word.removesuffix("\n...") for word in words]
    words = [word.replace("\n", " ") for word in words]
    return ["hparams/transfer.yaml", *words, "--noprogressbar", "--device=cpu"]


@pytest.fixture(scope="session")
def export(tmp_path_factory):
    """An encoder of the architecture in the YAML, as if it were pretrained."""
    torch.manual_seed(0)
    encoder = SpectrogramEncoder.from_size("micro", (128, 4), table_frames=200)
    folder = tmp_path_factory.mktemp("pretrained") / "export"
    return export_pretrained(folder, MSPM(encoder), FrontEnd(), card={})


def task_of(labels, groups=None, metric="accuracy"):
    """A task whose test part has these labels."""

    def rows(part, some):
        return [
            {
                "id": f"{part}{n}",
                "path": f"{part}{n}.wav",
                "label": label,
                "group": groups[n] if groups else f"{part}{n}",
            }
            for n, label in enumerate(some)
        ]

    parts = {
        "train": rows("train", sorted(set(labels)) * 5),
        "valid": rows("valid", labels),
        "test": rows("test", labels),
    }
    return Task("words", metric, parts, grouped=groups is not None)


def predictions(labels, wrong):
    """All right but for some clips."""
    return {
        f"test{n}": label if n not in wrong else {"a": "b", "b": "a"}[label]
        for n, label in enumerate(labels)
    }


LABELS = ["a", "b"] * 20


@pytest.fixture
def scored(reports):
    """Scores of a baseline (30 and 50 % wrong) and of what halves that."""
    scratch = reports.System("scratch", "trained")
    tuned = reports.System("pretrained", "fine-tuned", scratch)
    found, n_clips = reports.scores(
        task_of(LABELS),
        {
            scratch: [predictions(LABELS, range(n)) for n in (12, 20)],
            tuned: [predictions(LABELS, range(n)) for n in (6, 10)],
        },
    )
    assert n_clips == 40
    return found[scratch], found[tuned]


def test_scores_and_gains_are_those_of_the_definition(reports, scored):
    scratch, tuned = scored
    assert scratch.seeds == pytest.approx([0.7, 0.5])
    assert scratch.mean == pytest.approx(0.6)
    assert scratch.sd == pytest.approx(math.sqrt(0.02))
    gain = reports.gain(tuned, scratch)
    assert gain.relative == pytest.approx(0.8 / 0.6 - 1)
    assert gain.error_reduction == pytest.approx(0.5)
    assert gain.low < 0.5 < gain.high


def test_bootstrap_is_paired_and_pools_the_seeds(reports, scored):
    scratch, tuned = scored
    # In any draw the errors that are left are among those of scratch.
    gain = reports.gain(tuned, scratch)
    errors = 1 - scratch.draws
    assert (1 - tuned.draws <= errors + 1e-12).all()
    torch.testing.assert_close(
        gain.draws, 1 - (1 - tuned.draws) / errors, rtol=0, atol=1e-12
    )
    same = reports.gain(scratch, scratch)
    assert (same.error_reduction, same.low, same.high) == (0, 0, 0)
    # The mean over two seeds of 40 clips, as two binomials would have it.
    single = math.sqrt((6 * 34 + 10 * 30) / 40**3 / 4)
    assert tuned.draws.std().item() == pytest.approx(
        math.hypot(single, math.sqrt(2 * 6 * 30 / 40**3 / 4)), rel=0.1
    )


def test_average_is_the_mean_of_tasks_and_undefined_where_one_is(
    reports, scored
):
    scratch, tuned = scored
    gain = reports.gain(tuned, scratch)
    none = reports.gain(scratch, scratch)
    mean = reports.average([gain, none])
    assert mean.relative == pytest.approx(gain.relative / 2)
    assert mean.error_reduction == pytest.approx(0.25)
    assert mean.low == pytest.approx(gain.low / 2)
    perfect = scratch._replace(
        seeds=[1.0, 1.0], draws=torch.ones_like(scratch.draws)
    )
    undefined = reports.gain(perfect, perfect)
    assert undefined.relative == 0
    assert undefined[1:4] == (None, None, None)
    assert reports.average([gain, undefined]).error_reduction is None


def test_clips_that_one_system_could_not_read_count_for_none(reports):
    systems = [reports.System(name, "linear") for name in ("a", "b")]
    whole = predictions(LABELS, {0, 1})
    less = {clip: label for clip, label in whole.items() if clip != "test0"}
    found, n_clips = reports.scores(
        task_of(LABELS), {systems[0]: [whole], systems[1]: [less]}
    )
    assert n_clips == 39
    assert found[systems[0]].seeds == [1 - 1 / 39]
    assert found[systems[0]].sd is None
    with pytest.raises(ValueError, match="no test clip has all"):
        reports.scores(task_of(LABELS), {systems[0]: [whole, {}]})


def test_groups_are_drawn_whole(reports):
    system = reports.System("a", "linear")
    groups = ["x"] * 20 + ["y"] * 20
    task = task_of(LABELS, groups)
    found, _ = reports.scores(task, {system: [predictions(LABELS, range(20))]})
    assert set(found[system].draws.tolist()) == {0.0, 0.5, 1.0}


def test_few_labels_are_drawn_by_seed_and_named(script, reports):
    item = script.Item(task_of(LABELS), 2, {}, {})
    one, again, other = (item.drawn(seed) for seed in (1, 1, 2))
    assert one == again
    assert one.rows["train"] != other.rows["train"]
    labels = [row["label"] for row in one.rows["train"]]
    assert sorted(labels) == ["a", "a", "b", "b"]
    assert one.rows["test"] is item.task.rows["test"]
    assert reports.title(item) == "words (accuracy, 2 labels per class)"
    assert item._replace(labels_per_class=None).drawn(1) is item.task


def test_a_part_is_done_once_and_refuses_other_settings(script, tmp_path):
    calls = []

    def work():
        calls.append(1)
        (tmp_path / "save").mkdir()
        return {"valid": 0.5}

    def killed():
        raise KeyboardInterrupt

    asked = {"seed": 1, "settings": {"lr": 0.1, "crop": (1, 2)}}
    with pytest.raises(KeyboardInterrupt):
        script.once(tmp_path, asked, killed)
    for _ in range(2):
        result = script.once(tmp_path, asked, work, remove=("save",))
        assert result["valid"] == 0.5
    assert calls == [1] and not (tmp_path / "save").exists()
    other = {"seed": 1, "settings": {"lr": 0.2, "crop": (1, 2)}}
    with pytest.raises(SettingsError, match="otherwise: lr 0.1, now 0.2"):
        script.once(tmp_path, other, work)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"methods": {"scratch": {"settings": {"lrr": 1}}}}, "lrr"),
        ({"pretraining": {"epochs": 1}}, "epochs"),
        ({"classification": {"source": "a"}}, "source"),
        ({"pretrainings": {"scratch": {}}}, "none of them"),
        ({"pretrainings": {"a/b": {}}}, "letters"),
        ({"exports": {"pretrained": "none"}}, "no exported"),
        # The bundled model is found by its name.
        (
            {
                "exports": {"pretrained": "ssast-lobes-micro-1"},
                "model": {"model_size": "tiny", "geometry": [128, 4]},
            },
            "dim 128, not 192",
        ),
        ({"methods": {"finetuned": {}}}, "finetuned"),
        ({"probing": {"pooling": "max"}}, "pooling must be one of"),
        (
            {"probing": {**ALL_LAYERS, "projection": "words"}},
            "pretrained is pretrained here",
        ),
        ({"pretrainings": {"other": {"objective": "x"}}}, "named 'x'"),
        ({"stages": {"pretrained": MASKED}}, "a stage and a pretraining"),
        ({"stages": {"a": {**MASKED, "source": "a"}}}, "that one before it"),
        ({"stages": {"a": MASKED}}, "nothing starts from the stage a"),
        (
            {"pretraining": {"crop_seconds": 2.0, "window_seconds": 1.0}},
            "window_seconds of pretrained is 1.0",
        ),
        (
            {"pretrainings": {"b": {**MASKED, "source": "pretrained"}}},
            "only st",
        ),
        (
            {"pretrainings": {"b": {**MASKED, "average_with": ["a"]}}},
            "average_with of b: a is no stage",
        ),
        ({"audio": "{csv}.gone"}, "csv.gone is not there"),
        (
            {
                "stages": {"a": {**MASKED, "model_size": "tiny"}},
                "pretrainings": {"b": {**MASKED, "source": "a"}},
            },
            "b needs a and has another model",
        ),
        ({"tasks": [{"csv_path": "{csv}", "metric": "f2"}]}, "f2"),
        ({"tasks": [{"csv_path": "{csv}", "labels": "a"}]}, "labels"),
        ({"tasks": [{"name": "words"}]}, "csv_path, its table, is missing"),
    ],
)
def test_wrong_settings_show_before_anything_runs(
    more, message, run, tones, tmp_path
):
    tasks = [{"name": "tones", "csv_path": str(tones.manifest)}]
    flags = flags_of(tmp_path / "out", **{"tasks": tasks, **more})
    with pytest.raises(SettingsError, match=message):
        run([flag.replace("{csv}", str(tones.manifest)) for flag in flags])
    assert not (tmp_path / "out").exists()


def test_export_of_another_architecture_is_refused(
    run, export, tones, tmp_path
):
    tasks = [{"name": "tones", "csv_path": str(tones.manifest)}]
    flags = flags_of(
        tmp_path / "out",
        tasks,
        model={"geometry": "patch"},
        exports={"pretrained": str(export)},
    )
    with pytest.raises(SettingsError, match="another architecture"):
        run(flags)


@pytest.mark.slow
def test_a_pretraining_resumes_from_its_stage(run, tones, tmp_path):
    out = tmp_path / "out"
    text = (RECIPE / "hparams/ablation.yaml").read_text()
    settings = yaml.safe_load(text.replace("!PLACEHOLDER", "null"))
    settings |= {
        "tasks": [{"name": "tones", "csv_path": str(tones.manifest)}],
        "audio": str(tones.folder),
        "output_folder": str(out),
        "pretraining": {
            **{**SMALL, **MASKED, "number_of_epochs": 1, "lr": 0.002},
            "valid_fraction": 0.2,
        },
        "stages": {"first": {}, "later": {"source": "first"}},
        # Steps so small that they leave what they start from as it is.
        "pretrainings": {
            "second": {
                "source": "first",
                "audio": [[str(tones.manifest)]],
                "lr": 1e-9,
            },
            "third": {
                "source": "first",
                "lr": 1e-9,
                "average_with": ["first", "later"],
            },
        },
    }
    experiment = tmp_path / "stages.yaml"
    experiment.write_text(yaml.safe_dump(settings))
    flags = [experiment, "--noprogressbar", "--device=cpu"]
    content = run(flags)
    costs = content["pretraining"]
    assert list(costs) == ["first", "later", "second", "third"]
    folder, manifest = tones.folder, tones.manifest
    table = (out / "transfer.md").read_text()
    assert f"{folder.parent.name}/{folder.name}" in table
    assert f"{manifest.parent.name}/{manifest.name}" in table
    assert costs["second"]["asked"]["audio"] == [str(tones.manifest)]
    # Clips that are valid or test are left out, of their folder too.
    for name in costs:
        text = (out / "pretrain" / name / "save/splits.json").read_text()
        rows = [*json.loads(text)["train"].values()]
        assert len(rows) == costs[name]["clips"] > 0
        assert not tones.held_out & {Path(row["path"]).name for row in rows}
    first, later, second, mean = (
        load_weights(out / "pretrain" / name / "export").state for name in costs
    )
    moved = 0
    for key, value in first.items():
        assert torch.allclose(second[key], value, atol=1e-6)
        assert torch.allclose(
            mean[key], (2 * value + later[key]) / 3, atol=1e-6
        )
        moved += not torch.allclose(later[key], value, atol=1e-4)
    assert moved > 10
    assert {row["system"] for row in content["scores"]} == {
        *("log-mel", "MFCC", "untrained", "second", "third")
    }
    assert run(flags) == content
    # What started from a stage that has changed since is not what is asked.
    weights = out / "pretrain/first/export/model.safetensors"
    weights.write_bytes(
        (out / "pretrain/second/export/model.safetensors").read_bytes()
    )
    with pytest.raises(SettingsError, match="begun otherwise: started_from"):
        run(flags)


def test_pretraining_on_what_is_held_out_is_noticed(script, tones, tmp_path):
    task = script.read_item(name="tones", csv_path=str(tones.manifest)).task
    [one, *_] = task.paths("valid")
    rows = {"train": {"a": {"path": one}}, "valid": {}}
    (tmp_path / "save").mkdir()
    (tmp_path / "save/splits.json").write_text(json.dumps(rows))
    with pytest.raises(SettingsError, match=f"trained on 1 clips.*{one}"):
        script.check_held_out([task], tmp_path)


def test_no_candidate_is_tried_after_the_test(run, export, tones, tmp_path):
    out = tmp_path / "out"
    tasks = [{"name": "tones", "csv_path": str(tones.manifest)}]
    flags = flags_of(out, tasks, exports={"pretrained": str(export)})
    tested = out / "runs/tones/scratch/pretrained/1/result.json"
    tested.parent.mkdir(parents=True)
    tested.write_text("{}")
    with pytest.raises(SettingsError, match="scratch/pretrained is tested al"):
        run(flags)
    assert not list(out.glob("tuning/**/result.json"))


@pytest.fixture
def without_test_audio(tones, tmp_path):
    """The corpus with noise bytes where the audio of its test part was."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for line in tones.manifest.read_text().splitlines()[1:]:
        name, _, _, split = line.split(",")
        audio = (tones.folder / name).read_bytes()
        (folder / name).write_bytes(b"no audio" if split == "test" else audio)
    table = folder / "manifest.csv"
    table.write_text(tones.manifest.read_text())
    return table


@pytest.mark.slow
def test_tuning_reads_no_test_clip(
    run, script, export, without_test_audio, tmp_path
):
    entry = {"name": "tones", "csv_path": str(without_test_audio)}
    out = tmp_path / "out"
    flags = flags_of(
        out,
        [entry],
        exports={"pretrained": str(export)},
        tune_only=True,
    )
    assert run(flags) is None
    tried = sorted(out.glob("tuning/tones/scratch/pretrained/*/result.json"))
    assert len(tried) == 2
    tuning = json.loads((out / "tuning.json").read_text())
    assert len(tuning["tones/scratch/pretrained"]["tried"]) == 2
    task = script.read_item(**entry).task
    for path in tried:
        result = json.loads(path.read_text())
        valid = {row["id"] for row in task.rows["valid"]}
        assert result["predicted"].keys() == valid
        right = [
            result["predicted"][row["id"]] == row["label"]
            for row in task.rows["valid"]
        ]
        assert result["valid"] == pytest.approx(sum(right) / len(right))
    names = [row["id"] for row in task.rows["test"]]
    for path in filter(Path.is_file, out.rglob("*")):
        content = path.read_bytes()
        assert not [name for name in names if name.encode() in content], path
    # The test part itself would not have gone unnoticed.
    flags = [flag.replace("only=true", "only=false") for flag in flags]
    with pytest.raises(ManifestError, match="the unreadable files"):
        run(flags)


def test_one_candidate_may_be_chosen_for_all_tasks(
    script, export, tones, tmp_path
):
    tasks = [{"name": n, "csv_path": str(tones.manifest)} for n in ("a", "b")]
    candidates = [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}]
    method = {"settings": {}, "candidates": candidates}
    # A task with candidates of its own is left out of the average.
    own = {"fine_tuned": {"candidates": [{"lr": 0.4}, {"lr": 0.5}]}}
    tasks.append({"name": "c", "csv_path": str(tones.manifest), "methods": own})
    flags = flags_of(
        tmp_path / "out",
        tasks,
        exports={"pretrained": str(export)},
        methods={
            "scratch": method,
            "fine_tuned": {**method, "one_for_all": True},
        },
    )
    yaml_file, _, overrides = sb.parse_arguments(
        [str(RECIPE / flags[0]), *flags[1:]]
    )
    with open(yaml_file) as file:
        experiment = script.Transfer(load_hyperpyyaml(file, overrides))
    scores = {
        "a": [0.9, 0.8, 0.1],
        "b": [0.2, 0.8, 0.9],
        "c": [0.9, 0.1, 0.0],
    }
    chosen = {
        (item.task.name, method.kind): experiment._best(
            item,
            method,
            {(name, method): valid for name, valid in scores.items()},
        )["lr"]
        for item in experiment.items
        for method in experiment.methods
    }
    assert chosen == {
        ("a", "scratch"): 0.1,
        ("b", "scratch"): 0.3,
        ("a", "fine_tuned"): 0.2,
        ("b", "fine_tuned"): 0.2,
        ("c", "scratch"): 0.1,
        ("c", "fine_tuned"): 0.4,
    }


@pytest.mark.slow
def test_what_is_chosen_for_all_tasks_was_trained_for_each(
    run, export, tones, tmp_path
):
    tasks = [{"name": n, "csv_path": str(tones.manifest)} for n in ("a", "b")]
    tasks[1]["labels_per_class"] = 2
    candidates = [{"lr": 1e-9}, {"lr": 0.003, "swa_start_epoch": 2}]
    methods = {
        "scratch": {"settings": {"number_of_epochs": 1}, "candidates": [{}]},
        "fine_tuned": {
            "settings": {"number_of_epochs": 12},
            "candidates": candidates,
            "one_for_all": True,
        },
    }
    out = tmp_path / "out"
    exports = {"pretrained": str(export)}
    run(flags_of(out, tasks, exports=exports, methods=methods, tune_only=True))
    tuning = json.loads((out / "tuning.json").read_text())
    found = [tuning[f"{name}/fine_tuned/pretrained"] for name in ("a", "b")]
    sums = {
        rate: sum(
            tried["valid"]
            for one in found
            for tried in one["tried"]
            if tried["settings"]["lr"] == rate
        )
        for rate in (1e-9, 0.003)
    }
    assert [len(one["tried"]) for one in found] == [2, 2]
    assert sums[0.003] > sums[1e-9]
    assert [one["settings"]["lr"] for one in found] == [0.003, 0.003]


# Runs the recipe until it opens a file, which is where the power goes.
KILLED = """
import os, signal, sys

def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith(last):
        os.kill(os.getpid(), signal.SIGKILL)

last = sys.argv[1]
sys.addaudithook(watch)
sys.path.insert(0, os.getcwd())
import train
train.main(sys.argv[2:])
"""


@pytest.mark.slow
def test_killed_experiment_goes_on_and_adds_up(run, tones, tmp_path):
    out = tmp_path / "out"
    tasks = [
        {"name": "tones", "csv_path": str(tones.manifest)},
        {
            "name": "few",
            "csv_path": str(tones.manifest),
            "metric": "uar",
            "group": "speaker",
            "labels_per_class": 2,
        },
    ]
    flags = flags_of(
        out,
        tasks,
        audio=str(tones.folder),
        pretraining={**SMALL, "number_of_epochs": 1, "valid_fraction": 0.2},
    )
    last = "runs/few/scratch/pretrained/2/metrics.jsonl"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, last, *flags],
        cwd=RECIPE,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert out / "runs/few/scratch/pretrained/1/result.json" in before
    assert not (out / "transfer.json").exists()

    content = run(flags)
    after = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert before.items() <= after.items() and len(after) > len(before)
    assert content == json.loads((out / "transfer.json").read_text())
    assert (out / "transfer.png").stat().st_size > 0
    rows = {
        (row["task"], row["system"], row["how"]): row
        for row in content["scores"]
    }
    for task in ("tones", "few"):
        for system, how, seeds in (
            ("log-mel", "linear", 1 if task == "tones" else 2),
            ("MFCC", "linear", 1 if task == "tones" else 2),
            ("untrained", "k-NN", 2),
            ("pretrained", "linear", 1 if task == "tones" else 2),
            ("scratch", "trained", 2),
            ("pretrained", "fine-tuned", 2),
        ):
            assert len(rows[task, system, how]["seeds"]) == seeds
    assert len(content["tuning"]["tones/scratch/pretrained"]["tried"]) == 2
    text = (out / "transfer.md").read_text()
    assert "| few (UAR, 2 labels per class) |" in text
    assert "| tones/scratch/pretrained | 2 | " in text

    assert run(flags) == content
    assert after == {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}


@pytest.fixture
def corpora(tones, tmp_path):
    """The sets that the five tasks and their pretraining read, all alike."""
    lines = ["path,label,speaker,split,split_spkid"]
    parts = ("train", "valid", "test")
    for number, line in enumerate(tones.manifest.read_text().splitlines()[1:]):
        name, *rest = line.split(",")
        path = str(tones.folder / name)
        lines.append(",".join([path, *rest, parts[number % 3]]))
    names = "unlabeled_extra librispeech_unlabeled librispeech_spkid "
    names += "speech_commands emodb esc10 fsdd takes/espeak takes/flite"
    for name in names.split():
        folder = tmp_path / "corpora" / name
        folder.mkdir(parents=True)
        (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "corpora"


# The settings that each experiment has to be given.
TASKS = "[{{name: tones, csv_path: {corpora}/fsdd/manifest.csv}}]"
GIVEN = {
    "transfer": ["--audio={corpora}/fsdd/manifest.csv", f"--tasks={TASKS}"],
    "ablation": ["--audio={corpora}/fsdd/manifest.csv", f"--tasks={TASKS}"],
    "five_tasks": ["--corpora={corpora}", "--spoken_takes={corpora}/takes"],
    "few_labels": ["--corpora={corpora}"],
    "fewer_labels": ["--corpora={corpora}"],
}


@pytest.mark.parametrize(
    "path", sorted(RECIPE.glob("hparams/*.yaml")), ids=lambda p: p.stem
)
def test_settings_of_each_experiment_are_known(path, script, corpora):
    flags = [flag.format(corpora=corpora) for flag in GIVEN[path.stem]]
    yaml_file, _, overrides = sb.parse_arguments([str(path), *flags])
    with open(yaml_file) as file:
        script.Transfer(load_hyperpyyaml(file, overrides))


ONCE = {"number_of_epochs": 1}
TRIED_ONCE = {
    method: {"settings": ONCE, "candidates": [{}]}
    for method in ("scratch", "fine_tuned")
}


def words_of(**flags):
    """A command line; what is a dict replaces these keys of the YAML."""
    return [
        f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"
        for key, value in flags.items()
    ]


@pytest.mark.slow
def test_five_tasks(run, corpora, tmp_path):
    words = words_of(
        corpora=corpora,
        spoken_takes=corpora / "takes",
        output_folder=tmp_path / "out",
        seeds=[1],
        stages={"first": ONCE, "words": ONCE},
        pretrainings={"pretrained": ONCE},
        untrained_seeds=[3, 4],
        methods=TRIED_ONCE,
    )
    content = run(["hparams/five_tasks.yaml", *words, "--device=cpu"])
    untrained = [r for r in content["scores"] if r["system"] == "untrained"]
    assert all(list(r["seeds"]) == ["3", "4"] for r in untrained)
    assert len(content["tasks"]) == 5
    costs = content["pretraining"]
    heard = {name: cost["asked"]["audio"][-1] for name, cost in costs.items()}
    assert heard == {
        "first": str(corpora / "takes/espeak/manifest.csv"),
        "words": str(corpora / "takes/flite/manifest.csv"),
        "pretrained": str(corpora / "librispeech_spkid/manifest.csv"),
    }
    shown = {row["how"] for row in content["scores"]}
    assert shown == {"linear", "k-NN", "trained", "fine-tuned"}
    settings = content["tuning"]["emotion/fine_tuned/pretrained"]["settings"]
    assert settings["pooling"] == "dynamics"
    assert settings["crop_seconds"] == 5.0
    export = tmp_path / "out/pretrain/pretrained/export"
    assert load_weights(export).config["window_seconds"] == 10.0


@pytest.mark.slow
def test_few_labels_with_the_bundled_model(run, corpora, tmp_path):
    words = words_of(
        corpora=corpora,
        labels_per_class=2,
        output_folder=tmp_path / "out",
        seeds=[1],
        methods=TRIED_ONCE,
    )
    content = run(["hparams/few_labels.yaml", *words, "--device=cpu"])
    labels = {t["name"]: t["labels_per_class"] for t in content["tasks"]}
    others = dict.fromkeys(["keywords", "digits", "emotion", "events"], 2)
    assert labels == {"speakers": 3, **others}
    assert content["pretraining"] == {}
    gains = {(g["task"], g["how"]) for g in content["gains"]}
    assert ("emotion", "fine-tuned") in gains


@pytest.mark.slow
def test_an_export_needs_neither_its_stages_nor_their_audio(
    run, corpora, export, tmp_path
):
    shutil.rmtree(corpora / "takes")
    words = words_of(
        corpora=corpora,
        spoken_takes=corpora / "takes",
        output_folder=tmp_path / "out",
        exports={"pretrained": str(export)},
        seeds=[1],
        untrained_seeds=[3],
        tasks=f"[{{name: one, csv_path: {corpora / 'fsdd/manifest.csv'}}}]",
        methods=TRIED_ONCE,
    )
    content = run(["hparams/five_tasks.yaml", *words, "--device=cpu"])
    assert content["pretraining"] == {}


@pytest.mark.slow
def test_valid_may_choose_the_projection_of_an_export(
    run, export, tones, tmp_path
):
    folder = shutil.copytree(export, tmp_path / "export")
    rows = read_task(tones.manifest).rows
    labels = {r["path"]: r["label"] for part in rows.values() for r in part}
    # It has seen the answers, so that it wins.
    projection = fit_projection(
        "kinds", labels, PooledEncoder(folder), tmp_path / "cache"
    )
    write_projection(folder, "kinds", projection)
    _, *flags = flags_of(
        tmp_path / "out",
        [{"name": "tones", "csv_path": str(tones.manifest)}],
        exports={"pretrained": str(folder)},
        probing={**ALL_LAYERS, "projection": "kinds"},
        untrained_seeds=[3],
    )
    frozen = (RECIPE / "hparams/transfer.yaml").read_text()
    frozen = frozen.partition("methods:\n")[0] + "methods: {}\n"
    (tmp_path / "frozen.yaml").write_text(frozen)
    flags = [str(tmp_path / "frozen.yaml")] + [
        flag for flag in flags if not flag.startswith("--methods=")
    ]
    run(flags)
    probes = tmp_path / "out/probes/tones"
    found = {
        path.parts[-4]: json.loads(path.read_text())
        for path in probes.glob("*/linear/*/result.json")
    }
    assert found.keys() == {"log-mel", "MFCC", "untrained", "pretrained"}
    projected = {name for name in found if found[name]["projected"]}
    assert projected == {"pretrained"}
    flags = [flag.replace("kinds", "words") for flag in flags]
    with pytest.raises(WeightsError, match="'words'; there are: kinds"):
        run(flags)


def test_fine_tuning_needs_its_baseline(run, tones, tmp_path):
    text = (RECIPE / "hparams/ablation.yaml").read_text()
    yaml_path = tmp_path / "alone.yaml"
    yaml_path.write_text(
        text.replace("methods: {}", "methods: {fine_tuned: {settings: {}}}")
    )
    task = f"[{{name: tones, csv_path: {tones.manifest}}}]"
    flags = [f"--audio={tones.folder}", f"--tasks={task}"]
    with pytest.raises(SettingsError, match="nothing that fine_tuned gains"):
        run([yaml_path, *flags, f"--output_folder={tmp_path / 'out'}"])


def test_a_missing_setting_is_one_message(run, tmp_path):
    with pytest.raises(SettingsError, match="five_tasks.yaml.*corpora"):
        run(["hparams/five_tasks.yaml", f"--output_folder={tmp_path / 'out'}"])
