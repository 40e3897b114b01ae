"""The recipes as people run them: their YAML, command line and exports.

Most runs are made in this process, by the `main` of a recipe, on the corpus of
the fixture `tones`. In the tables next to this file `{corpus}` stands for its
folder.
"""

import csv
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from speechbrain.inference.classifiers import EncoderClassifier

from ssast_lobes import cli
from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.dataio.audio import audio_info, read_audio
from ssast_lobes.dataio.scan import find_audio, folder_rows
from ssast_lobes.dataio.shards import pack
from ssast_lobes.dataio.splits import OtherClips, read_splits
from ssast_lobes.dataio.tables import ManifestError, read_manifest
from ssast_lobes.evaluation.probing.classifiers import linear_weights
from ssast_lobes.inference import AudioClassifier, AudioEncoder
from ssast_lobes.training.errors import SettingsError, exit_on_user_error
from ssast_lobes.utils.files import write_csv

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "CustomData"
TASKS = ("pretrain", "classify")
TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node=2"
# The Brains' own tests try the same with both tasks, faster.
ONE_OF_BOTH = pytest.mark.parametrize(
    "task", [pytest.param("pretrain", marks=pytest.mark.slow), "classify"]
)


def table_rows():
    with open(Path(__file__).with_name("CustomData.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    # The comparison has a test of its own.
    return [row for row in rows if Path(row["Script_file"]).parts[2] in TASKS]


def yaml_of(task):
    return RECIPES / task / "hparams" / f"{task}.yaml"


def flags_of(task, corpus, folder, *more):
    """The smallest run that is like a real one: 2 epochs of 3 to 5 batches.

    Further flags replace those of the same name.
    """
    source = {"pretrain": f"--audio={corpus.folder}"}
    source["classify"] = f"--manifest={corpus.manifest}"
    flags = [source[task], f"--output_folder={folder}"]
    flags += ["--model_size=micro", "--crop_seconds=0.6", "--batch_size=4"]
    flags += ["--number_of_epochs=2", "--num_workers=0", "--device=cpu"]
    if task == "pretrain":
        flags += ["--valid_fraction=0.2"]
    more = [str(flag) for flag in more]
    given = {flag.split("=")[0] for flag in more}
    if "--source" in given:
        given.add("--model_size")  # the source brings it
    kept = [flag for flag in flags if flag.split("=")[0] not in given]
    return [*kept, "--noprogressbar", *more]


def load_script(task):
    """The module of a recipe, as Python finds its neighbors when it is run."""
    sys.path.insert(0, str(RECIPES))
    path = RECIPES / task / "train.py"
    spec = importlib.util.spec_from_file_location(f"train_{task}", path)
    script = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(script)
    finally:
        sys.path.remove(str(RECIPES))
    return script


@pytest.fixture(scope="session")
def scripts():
    return {task: load_script(task) for task in TASKS}


@pytest.fixture
def train(scripts, tones, tmp_path, monkeypatch):
    """Function of a task and further flags: runs it, gives its folder."""
    # Where a recipe logs to and who hears of errors is its own business.
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("SB_GLOBAL_SEED", "0")

    def run(task, *flags, folder=None):
        folder = folder or tmp_path / task
        own = flags_of(task, tones, folder, *flags)
        scripts[task].main([str(yaml_of(task)), *own])
        return folder

    return run


@pytest.fixture(scope="session")
def pretrained(scripts, tones, tmp_path_factory):
    """Folder of a small pretraining."""
    folder = tmp_path_factory.mktemp("pretrained")
    flags = flags_of("pretrain", tones, folder)
    scripts["pretrain"].main([str(yaml_of("pretrain")), *flags])
    return folder


@pytest.fixture(scope="session")
def classified(scripts, tones, pretrained, tmp_path_factory):
    """Folder of a small fine-tuning of `pretrained`."""
    folder = tmp_path_factory.mktemp("classified")
    more = [f"--source={pretrained / 'export'}", "--lr=0.002"]
    flags = flags_of("classify", tones, folder, *more)
    scripts["classify"].main([str(yaml_of("classify")), *flags])
    return folder


def command(task, *flags, launcher=()):
    """Run a recipe as a process of its own, from its folder."""
    return subprocess.run(
        [sys.executable, *launcher, "train.py", f"hparams/{task}.yaml"]
        + [str(flag) for flag in flags],
        cwd=RECIPES / task,
        capture_output=True,
        text=True,
        timeout=300,
    )


def log_of(folder):
    """The last row of each epoch."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = {row["epoch"]: row for row in map(json.loads, lines)}
    return [rows[epoch] for epoch in sorted(rows)]


def exported(folder):
    return load_file(folder / "export" / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) for key in one
    )


# As a process of its own --------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("row", table_rows(), ids=lambda row: row["Task"])
def test_debug_mode(row, tones, tmp_path):
    task = Path(row["Script_file"]).parent.name
    flags = row["test_debug_flags"].format(corpus=tones.folder)
    result = command(
        task,
        *shlex.split(flags),
        f"--output_folder={tmp_path}",
        *"--debug --debug_persistently --device cpu".split(),
    )
    assert result.returncode == 0, result.stderr
    found = re.search(r"file_exists=\[(.*)\]", row["test_debug_checks"])
    for name in found[1].split(","):
        assert (tmp_path / name).is_file(), name
    # Two epochs of two batches, whatever the settings say.
    assert [entry["step"] for entry in log_of(tmp_path)] == [2, 4]
    interface = {"pretrain": AudioEncoder, "classify": AudioClassifier}[task]
    interface.from_hparams(tmp_path / "export")


def test_clips_of_two_takes_next_to_others(train, tones, tmp_path):
    clips = find_audio(tones.folder)[:12]
    lines = [f"{path},{2 if n % 2 else ''}" for n, path in enumerate(clips)]
    manifest = tmp_path / "takes.csv"
    manifest.write_text("\n".join(["path,takes", *lines]) + "\n")
    folder = train(
        "pretrain",
        f"--audio=[{manifest}]",
        "--objective=contrastive_mspm",
        "--crop_seconds=2.0",
        "--cover_long=True",
    )
    last = log_of(folder)[-1]
    assert {"train_pair_nce", "train_clip_nce"} <= last.keys()
    assert not {"valid_pair_nce", "valid_clip_nce"} & last.keys()
    AudioEncoder.from_hparams(folder / "export")


@pytest.mark.slow
def test_a_student_of_two_teachers(train, pretrained, tmp_path):
    """They are named, and nowhere in what the run leaves behind."""
    teachers = f"[ssast-lobes-micro-1, {pretrained / 'export'}]"
    folder = train(
        "pretrain",
        "--objective=distillation",
        f"--teachers={teachers}",
        f"--teacher_cache={tmp_path / 'heard'}",
        "--crop_seconds=2.0",
    )
    assert {"train_cosine_1", "valid_cosine_2"} <= log_of(folder)[-1].keys()
    # Clips shorter than a crop come whole.
    assert len(list((tmp_path / "heard").glob("*/*.safetensors"))) > 5
    for path in folder.glob("save/CKPT*/objective.ckpt"):
        state = torch.load(path, weights_only=True)
        assert {k.split(".")[0] for k in state} == {"encoder", "heads"}
    card = (folder / "export" / "README.md").read_text()
    assert "taught by ssast-lobes-micro-1, " in card
    assert str(pretrained) not in card
    AudioEncoder.from_hparams(folder / "export")


@pytest.mark.slow
def test_epochs_of_several_passes(train, pretrained, tmp_path):
    one = log_of(pretrained)
    longer = log_of(train("pretrain", "--passes_per_epoch=3"))
    assert [row["step"] for row in longer] == [3 * row["step"] for row in one]
    with pytest.raises(SettingsError, match="at least 1, got 0.5"):
        train("pretrain", "--passes_per_epoch=0.5", folder=tmp_path / "no")


# Runs a recipe that the power leaves in the second batch of the last epoch.
KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[1:3]
import test_recipes
from ssast_lobes.training.base import SpectrogramBrain

def start(brain, batch, should_step):
    if (brain.epoch, brain.step) == (2, 3):
        os.kill(os.getpid(), signal.SIGKILL)

SpectrogramBrain.on_fit_batch_start = start
test_recipes.load_script(sys.argv[3]).main(sys.argv[4:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, own",
    [
        ("pretrain", []),
        # Teachers are read again.
        (
            "pretrain",
            ["--objective=distillation", "--teachers=ssast-lobes-micro-1"],
        ),
        # The head that training begins with must not come again.
        ("classify", ["--training=finetune_few_labels", "--swa_start_epoch=1"]),
    ],
)
def test_killed_run_resumes_where_it_was(task, own, train, tones, tmp_path):
    whole = train(task, *own, folder=tmp_path / "whole")
    folder = tmp_path / "killed"
    more = [*own, "--ckpt_interval_steps=1", "--num_workers=2"]
    flags = [yaml_of(task), *flags_of(task, tones, folder, *more)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, Path(__file__).parent, ROOT, task]
        + [str(flag) for flag in flags],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (folder / "export").exists()
    assert len(log_of(folder)) == 1
    train(task, *more, folder=folder)
    assert same(exported(folder), exported(whole))
    assert log_of(folder) == log_of(whole)
    if task == "classify":
        name = "test_predictions.csv"
        assert (folder / name).read_text() == (whole / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes(task, tones, train, tmp_path):
    folder = tmp_path / "two"
    result = command(
        task,
        *flags_of(task, tones, folder),
        "--distributed_backend=gloo",
        launcher=TORCHRUN.split(),
    )
    assert result.returncode == 0, result.stderr
    assert (
        result.stdout.count("Exported to") + result.stderr.count("Exported to")
        == 1
    )
    # The main process alone prints.
    for line in ("- This run", "- Epoch 2 of 2", "- Finished"):
        assert (result.stdout + result.stderr).count(line) == 1
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    if task == "classify":
        # One process finds the same numbers for the same weights.
        name, state = "test_predictions.csv", exported(folder)
        several = (folder / name).read_text()
        train(task, folder=folder)
        assert (folder / name).read_text() == several
        assert same(exported(folder), state)
    else:
        # Likewise; here it starts from the weights that were exported, and a
        # rate of 0 leaves them as they are.
        best = min(log_of(folder), key=lambda row: row["valid_loss"])
        flags = [f"--source={folder / 'export'}", "--lr=0"]
        again = train(task, *flags, "--number_of_epochs=1")
        [row] = log_of(again)
        found = {key: row[key] for key in row if key.startswith("valid_")}
        assert len(found) >= 5
        assert found == pytest.approx({k: best[k] for k in found}, rel=1e-6)


def test_bad_rows_are_one_message(train, tones, tmp_path, capsys):
    table = tmp_path / "table.csv"
    text = tones.manifest.read_text().replace("speaker0,train", "speaker0,tain")
    table.write_text(text + "gone.wav,tone,speaker9,test\n")
    for name in tones.folder.glob("*.wav"):
        (tmp_path / name.name).symlink_to(name)
    with pytest.raises(SystemExit) as ended, exit_on_user_error():
        train("classify", f"--manifest={table}")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    message = told[told.index("ManifestError:") :]
    assert "table.csv: 4 bad lines" in message
    for line in (2, 3, 4):
        assert f'line {line}: split "tain" is none of' in message
    assert f"line 26: no such file: {tmp_path / 'gone.wav'}" in message


# Exports ------------------------------------------------------------------


def test_export_of_pretraining(pretrained, tones):
    encoder = AudioEncoder.from_hparams(pretrained / "export")
    vector = encoder.encode_file(str(tones.folder / "tone_1.wav"))
    assert vector.shape == (128,)
    assert torch.isfinite(vector).all()
    state = exported(pretrained)
    assert {key.split(".")[0] for key in state} == {"encoder", "objective"}
    assert "objective.mask_embedding" in state


def test_export_says_what_it_was_trained_on(pretrained, tones):
    rows = log_of(pretrained)
    best = min(rows, key=lambda row: row["valid_loss"])
    card = (pretrained / "export" / "README.md").read_text()
    own, chance = best["valid_accuracy"], best["valid_accuracy_chance"]
    assert f"| valid_accuracy | {own:.6g} | {chance:.6g} |" in card
    assert f"| valid_loss | {best['valid_loss']:.6g} |" in card
    assert f"| epochs | {best['epoch']} of {len(rows)} |" in card
    assert f"| steps | {best['step']} |" in card
    assert "| source | none: random weights |" in card
    assert "MSPM: masked spectrogram patch modeling (Gong et al., " in card
    # Names, but nothing of where things lie.
    assert f"{tones.folder.name}: " in card and str(tones.folder) not in card
    assert str(pretrained.parent) not in card


@pytest.mark.slow
def test_mean_of_pretrainings(train, pretrained, tmp_path):
    export = pretrained / "export"
    # It ends where it starts from, but for a loss of other masks.
    still = ["--number_of_epochs=1", f"--source={export}", "--lr=0"]
    folder = train("pretrain", *still, "--seed=1", folder=tmp_path / "moved")
    state = {key: value + 1 for key, value in exported(folder).items()}
    save_file(state, folder / "export" / "model.safetensors")
    folders = [str(export), str(folder / "export")]
    assert cli.main(["average", *folders, str(tmp_path / "mean")]) == 0
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    for key, value in exported(pretrained).items():
        torch.testing.assert_close(mean[key], value + 0.5)
    card = (tmp_path / "mean" / "README.md").read_text()
    names = [f"{Path(one).parent.name}/export" for one in folders]
    assert all(one in card for one in names) and "valid_loss" not in card
    # A training continues from it.
    flags = [f"--source={tmp_path / 'mean'}", "--number_of_epochs=1", "--lr=0"]
    again = exported(train("pretrain", *flags, folder=tmp_path / "again"))
    assert same(again, mean)


@pytest.mark.slow
def test_window_of_the_export(train, pretrained):
    assert load_weights(pretrained / "export").config["window_seconds"] < 0.65
    folder = train("pretrain", "--number_of_epochs=1", "--window_seconds=0.9")
    assert load_weights(folder / "export").config["window_seconds"] == 0.9
    told = {
        "0.5": "at least 0.615 seconds, the",
        ".inf": "above 0, or null, got inf",
    }
    for seconds, message in told.items():
        with pytest.raises(SettingsError, match=message):
            train("pretrain", f"--window_seconds={seconds}")
    # The refused ones left the experiment as it was.
    train("pretrain", "--number_of_epochs=1", "--window_seconds=1.5")
    assert load_weights(folder / "export").config["window_seconds"] == 1.5


def test_export_of_fine_tuning(classified, tones):
    with open(classified / "test_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = ["chirp", "noise", "tone"]
    window = load_weights(classified / "export").config["window_seconds"]
    assert len(rows) == 6
    classifier = AudioClassifier.from_hparams(classified / "export")
    other = EncoderClassifier.from_hparams(
        source=str(classified / "export"),
        savedir=str(classified / "fetched"),
    )
    for row in rows:
        path = str(tones.folder / row["id"])
        result = classifier.classify_file(path)
        # With our resampling: SpeechBrain's lets other aliases through.
        log_shares, _, _, [label] = other.classify_batch(read_audio(path)[None])
        assert label == result.label
        found = [result.scores[name] for name in labels]
        torch.testing.assert_close(
            log_shares.exp().squeeze(), torch.tensor(found), rtol=0, atol=1e-5
        )
        # The recipe takes test clips whole, the interface in windows.
        whole = audio_info(path).seconds <= window
        assert result.scores == pytest.approx(
            {label: float(row[label]) for label in labels},
            abs=1e-4 if whole else 0.2,
        )
        assert not whole or result.label == row["predicted"]


def test_fine_tuning_starts_from_the_pretrained_weights(pretrained, train):
    folder = train(
        "classify", f"--source={pretrained / 'export'}", "--lr=0", "--mixup="
    )
    before, after = exported(pretrained), exported(folder)
    for key in after:
        if key.startswith("encoder."):
            assert torch.equal(before[key], after[key]), key


def test_finished_run_evaluates_and_exports_again(
    classified, pretrained, train
):
    state = exported(classified)
    predictions = (classified / "test_predictions.csv").read_text()
    steps = (classified / "metrics.jsonl").read_text()
    shutil.rmtree(classified / "export")
    train(
        "classify",
        f"--source={pretrained / 'export'}",
        "--lr=0.002",
        folder=classified,
    )
    assert same(exported(classified), state)
    assert (classified / "test_predictions.csv").read_text() == predictions
    assert (classified / "metrics.jsonl").read_text() == steps
    log = (classified / "train_log.txt").read_text().splitlines()
    assert len(log) == 4
    assert log[2] == log[3]


def test_test_only(classified, pretrained, train):
    source = f"--source={pretrained / 'export'}"
    settings = [source, "--lr=0.002"]
    train("classify", "--test_only", *settings, folder=classified)
    log = (classified / "train_log.txt").read_text().splitlines()
    assert log[-1] == log[2]


def test_other_settings_in_the_same_folder_are_refused(classified, train):
    with pytest.raises(SettingsError, match=r"lr \(0.002, now 0.1\)"):
        train("classify", "--lr=0.1", folder=classified)


# Settings of the command line ---------------------------------------------


@pytest.mark.slow
def test_pretraining_frames_in_bf16_with_a_step_limit(train):
    pytest.importorskip("tensorboard")
    folder = train(
        "pretrain",
        *"--geometry=frame --precision=bf16 --use_tensorboard=True".split(),
        *"--remove_vector_weight_decay --optimizer_step_limit 3".split(),
        *"--grad_accumulation_factor=2".split(),
    )
    assert [row["step"] for row in log_of(folder)] == [3]
    assert all(np.isfinite(list(row.values())).all() for row in log_of(folder))
    assert {value.dtype for value in exported(folder).values()} == {
        torch.float32
    }
    assert load_weights(folder / "export").config["encoder"]["grid"][
        "patch"
    ] == [128, 2]
    assert list((folder / "events").iterdir())


def test_pretraining_without_held_out_audio_in_other_patches(train):
    folder = train(
        "pretrain",
        *["--geometry=[64, 4]", "--n_mels=64", "--valid_fraction=0"],
        "--training=ssast_pretrain_tiny",
    )
    grid = load_weights(folder / "export").config["encoder"]["grid"]
    assert (grid["n_mels"], grid["patch"]) == (64, [64, 4])
    rows = log_of(folder)
    assert len(rows) == 2
    assert not any(key.startswith("valid") for key in rows[-1])
    # Six batches of the 24 clips, warming up to step 1000.
    assert rows[-1]["lr"] == pytest.approx(0.0005 * 12 / 1000)


def test_continued_pretraining_with_other_mels_and_length(pretrained, train):
    folder = train(
        "pretrain",
        f"--source={pretrained / 'export'}",
        *["--n_mels=64", "--crop_seconds=0.9"],
    )
    before, after = (
        load_weights(run / "export").config["encoder"]
        for run in (pretrained, folder)
    )
    assert after["grid"]["n_mels"] == 64
    assert after["dim"] == before["dim"] == 128
    # Its own tables: the log begins where the other one ended.
    first, last = log_of(folder)[0], log_of(pretrained)[-1]
    fresh = log_of(pretrained)[0]
    assert first["train_loss"] < fresh["train_loss"]
    assert last["train_loss"] < fresh["train_loss"]


def official_checkpoint(path):
    """A released pretraining checkpoint in small, its numbers by formula."""
    dim, depth, frames = 64, 2, 96
    block = {
        "norm1.weight": (dim,),
        "norm1.bias": (dim,),
        "attn.qkv.weight": (3 * dim, dim),
        "attn.qkv.bias": (3 * dim,),
        "attn.proj.weight": (dim, dim),
        "attn.proj.bias": (dim,),
        "norm2.weight": (dim,),
        "norm2.bias": (dim,),
        "mlp.fc1.weight": (4 * dim, dim),
        "mlp.fc1.bias": (4 * dim,),
        "mlp.fc2.weight": (dim, 4 * dim),
        "mlp.fc2.bias": (dim,),
    }
    shapes = {
        "v.cls_token": (1, 1, dim),
        "v.dist_token": (1, 1, dim),
        "v.pos_embed": (1, 2 + 8 * frames // 16, dim),
        "v.patch_embed.proj.weight": (dim, 1, 16, 16),
        "v.patch_embed.proj.bias": (dim,),
        "v.norm.weight": (dim,),
        "v.norm.bias": (dim,),
        "v.head.weight": (10, dim),
        "v.head.bias": (10,),
        "mask_embed": (1, 1, dim),
    }
    for head in ("cpredlayer", "gpredlayer"):
        for layer, rows in (("0", dim), ("2", 256)):
            shapes[f"{head}.{layer}.weight"] = (rows, dim)
            shapes[f"{head}.{layer}.bias"] = (rows,)
    for number in range(depth):
        for name, shape in block.items():
            shapes[f"v.blocks.{number}.{name}"] = shape
    state = {
        f"module.{name}": torch.arange(int(np.prod(shape)))
        .add(seed)
        .sin()
        .mul(0.1)
        .reshape(shape)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    state["module.p_input_fdim"] = torch.tensor(128)
    state["module.p_input_tdim"] = torch.tensor(frames)
    torch.save(state, path)
    return state


def test_adapters_on_a_released_checkpoint(train, tmp_path):
    state = official_checkpoint(tmp_path / "released.pth")
    folder = train(
        "classify",
        f"--source={tmp_path / 'released.pth'}",
        *["--lora_rank=4", "--lr=0.01", "--layer_decay=0.7"],
    )
    after = exported(folder)
    kept = state["module.v.norm.weight"]
    assert torch.equal(after["encoder.norm.weight"], kept)
    merged = after["encoder.blocks.0.attn.qkv.weight"]
    change = merged - state["module.v.blocks.0.attn.qkv.weight"]
    assert change.abs().max() > 0
    assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 4


def test_pretraining_a_released_checkpoint_further(train, tmp_path):
    state = official_checkpoint(tmp_path / "released.pth")
    folder = train(
        "pretrain", f"--source={tmp_path / 'released.pth'}", "--lr=0"
    )
    after = exported(folder)
    for ours, theirs in (
        ("objective.generator_head.2.weight", "module.gpredlayer.2.weight"),
        ("encoder.blocks.1.mlp.fc1.bias", "module.v.blocks.1.mlp.fc1.bias"),
    ):
        assert torch.equal(after[ours], state[theirs])


def test_frozen_encoder_with_weighted_layers(pretrained, train):
    folder = train(
        "classify",
        f"--source={pretrained / 'export'}",
        *["--layers=weighted", "--freeze_encoder=True", "--precision=bf16"],
        "--head_lr_scale=5",
    )
    before, after = exported(pretrained), exported(folder)
    encoder = {key for key in after if key.startswith("encoder.")}
    assert all(torch.equal(before[key], after[key]) for key in encoder)
    assert after["pooling.layer_scores"].abs().max() > 0
    # The rate of the log is that before any scale.
    assert log_of(folder)[0]["lr"] <= 0.0005


def test_lp_init(pretrained, train, tmp_path):
    folder = train(
        "classify",
        f"--source={pretrained / 'export'}",
        *["--lp_init_penalty=0.01", "--pooling=statistics", "--layers=all"],
        *["--lr=0", "--mixup=null", "--augment=[]"],
    )
    # Without a step of training the head of the regression knows the clips.
    rows = log_of(folder)
    assert rows[0]["train_loss"] < 0.5 * math.log(3)
    assert load_weights(folder / "export").config["pooling"]["layers"] == "all"
    clip = exported(folder)["head.linear.weight"]
    assert clip.shape == (3, 2 * 7 * 128)
    wav = torch.randn(1, 8000)
    own = AudioClassifier.from_hparams(folder / "export").classify_batch(wav)
    other = EncoderClassifier.from_hparams(
        source=str(folder / "export"), savedir=str(tmp_path / "speechbrain")
    )
    share = other.classify_batch(wav)[1].exp().item()
    assert share == pytest.approx(max(own[0].scores.values()), abs=1e-5)


def test_lp_init_knows_whole_clips(pretrained, train, tones):
    """As valid and test are read; many clips are longer than a crop."""
    folder = train(
        "classify",
        f"--source={pretrained / 'export'}",
        *["--lp_init_penalty=0.01", "--lr=0", "--crop_seconds=0.4"],
        "--window_seconds=2.0",
    )
    with open(tones.manifest, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    paths = [str(tones.folder / row["path"]) for row in rows]
    encoder = AudioEncoder.from_hparams(folder / "export")
    clips = torch.stack([clip for _, clip in encoder.encode_files(paths)])
    labels = ["chirp", "noise", "tone"]
    y = torch.tensor([labels.index(row["label"]) for row in rows])
    state = exported(folder)
    norm = (state["head.norm.weight"], state["head.norm.bias"])
    x = torch.nn.functional.layer_norm(clips, clips.shape[1:], *norm)
    weight, _ = linear_weights(x, y, 3, 0.01)
    assert torch.allclose(
        state["head.linear.weight"], weight.float(), atol=1e-4, rtol=0.01
    )


@pytest.mark.slow
def test_few_labels(pretrained, train, tmp_path):
    source = f"--source={pretrained / 'export'}"
    folder = train("classify", source)
    told = "A class has 4 training clips (median). With fewer than 50, try "
    assert told in (folder / "log.txt").read_text()
    folder = train(
        "classify",
        *[source, "--training=finetune_few_labels", "--swa_start_epoch=2"],
        # No step of such a training is better than its start.
        *["--lr=10.0", "--batch_size=3"],
        folder=tmp_path / "few",
    )
    log = (folder / "log.txt").read_text()
    assert told not in log
    assert "Weights: 0 of the way from the start to the end of the" in log
    result = json.loads((folder / "test_result.json").read_text())
    assert result["wise_ft"] == 0
    before, after = exported(pretrained), exported(folder)
    shared = before.keys() & after.keys()
    assert len(shared) > 20
    assert all(torch.equal(after[key], before[key]) for key in shared)


def test_lp_init_is_for_single_labels(pretrained, train, tones, tmp_path):
    rows = read_manifest(tones.manifest, ("path", "label", "split"))
    rows[0]["label"] = "tone;noise"
    table = tmp_path / "several.csv"
    cells = [(row["path"], row["label"], row["split"]) for row in rows]
    write_csv(table, [("path", "label", "split"), *cells])
    with pytest.raises(SettingsError, match="one label"):
        train(
            "classify",
            *[f"--manifest={table}", f"--source={pretrained / 'export'}"],
            *["--multi_label=True", "--compute_cost=binary_cross_entropy"],
            *["--selection=mAP", "--lp_init_penalty=0.1"],
        )
    # The preset for few labels would be refused too.
    log = (tmp_path / "classify" / "log.txt").read_text()
    assert "finetune_few_labels" not in log


def test_official_settings(train):
    folder = train(
        "classify",
        "--training=ssast_esc50_patch",
        *["--stride=[10, 10]", "--pooling=class"],
    )
    rows = log_of(folder)
    # Fifty epochs of its schedule are squeezed into the two of this run.
    assert rows[0]["lr"] < 0.0001
    assert rows[1]["lr"] < rows[0]["lr"] / 10
    config = load_weights(folder / "export").config
    assert config["encoder"]["grid"]["stride"] == [10, 10]
    assert config["pooling"]["pooling"] == "class"


def test_one_label_with_bce_and_mixup(train):
    folder = train("classify", "--training=ssast_speechcommands")
    assert log_of(folder)[-1]["valid_accuracy"] >= 0


def test_several_labels(tones, train, tmp_path):
    table = tmp_path / "several.csv"
    with open(tones.manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "tags", "path", "fold"])
        for row in rows:
            tags = row["label"] + (";loud" if "1" in row["speaker"] else "")
            tags += "; odd" if int(row["speaker"][-1]) % 2 else ""
            path = tones.folder / row["path"]
            writer.writerow([row["path"], tags, path, row["split"]])
    folder = train(
        "classify",
        f"--manifest={table}",
        *["--label_column=tags", "--split_column=fold", "--multi_label=True"],
        *["--compute_cost=binary_cross_entropy", "--selection=mAP"],
    )
    assert 0 < log_of(folder)[-1]["valid_mAP"] <= 1
    classifier = AudioClassifier.from_hparams(folder / "export")
    result = classifier.classify_file(str(tones.folder / "tone_1.wav"))
    assert len(result.scores) == 5
    assert not (folder / "confusion_matrix.png").exists()


def prepared_names(
    scripts, audio, folder, valid_fraction=0.2, held_out_of=None
):
    """File names by split, as pretraining prepares them."""
    path = scripts["pretrain"].prepare_pretraining(
        audio, str(folder), valid_fraction, 0.1, 0, held_out_of
    )
    splits = json.loads(Path(path).read_text())
    return {
        name: sorted(Path(row["path"]).name for row in splits[name].values())
        for name in ("train", "valid")
    }


def test_a_folder_leaves_out_what_a_table_holds_out(scripts, tones, tmp_path):
    apart = prepared_names(
        scripts, str(tones.folder), tmp_path, held_out_of=str(tones.manifest)
    )
    alone = prepared_names(scripts, str(tones.folder), tmp_path / "alone")
    held_out = tones.held_out
    everything = {*alone["train"], *alone["valid"]}
    assert held_out < everything
    assert {*apart["train"], *apart["valid"]} == everything - held_out
    # The folder has forgotten the splits, and so have shards of it.
    shards = tmp_path / "shards"
    pack(folder_rows(tones.folder), shards, workers=1, max_unreadable=1)
    path = scripts["pretrain"].prepare_pretraining(
        str(shards / "manifest.csv"),
        str(tmp_path / "of_shards"),
        *(0.2, 0.1, 0),
        [str(tones.manifest)],
    )
    splits = json.loads(Path(path).read_text())
    rows = [*splits["train"].values(), *splits["valid"].values()]
    names = {Path(row["source_path"]).name for row in rows}
    assert names == everything - held_out


def test_audio_from_several_places_leaves_test_clips_out(
    scripts, tones, tmp_path
):
    extra = tmp_path / "extra"
    extra.mkdir()
    for name in ("tone_0.wav", "noise_0.wav"):
        shutil.copy(tones.folder / name, extra / name)
    plain = tmp_path / "plain.csv"
    plain.write_text(f"{extra / 'tone_0.wav'}\n")
    # The folder holds the valid and test clips of the table too.
    audio = [str(tones.manifest), str(tones.folder), str(plain)]
    names = prepared_names(scripts, audio, tmp_path)
    expected = [
        f"{label}_{speaker}.wav"
        for label in ("tone", "chirp", "noise")
        for speaker in range(4)
    ]
    assert sorted(names["train"] + names["valid"]) == sorted(
        [*expected, "tone_0.wav"]
    )


def test_held_out_share(scripts, tones, tmp_path):
    def held(share):
        audio = str(tones.folder)
        return prepared_names(scripts, audio, tmp_path, share)["valid"]

    assert held(0) == []
    [one] = held(0.0001)
    assert one in held(0.5)
    assert 4 < len(held(0.5)) < 20
    assert set(held(0.2)) <= set(held(0.5))


# Errors -------------------------------------------------------------------


@pytest.mark.parametrize("geometry", ["patch", "frame"])
def test_reference_count_that_does_not_fit(geometry, train):
    with pytest.raises(ValueError, match=r"masks at most \d+ of \d+ tokens"):
        train(
            "pretrain",
            "--objective=mspm_reference",
            f"--geometry={geometry}",
        )


def test_wrong_source(train, tmp_path):
    (tmp_path / "notes.pth").write_text("no weights")
    for name in ("nowhere", "notes.pth"):
        with pytest.raises(WeightsError, match=name):
            train("classify", f"--source={tmp_path / name}")


@pytest.mark.slow
def test_unreadable_audio_is_listed_up_to_a_limit(tones, train, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(tones.folder, corpus)
    (corpus / "empty.wav").touch()
    (corpus / "text.flac").write_text("not audio")
    soundfile.write(
        corpus / "nan.wav", np.full(8000, np.nan), 16000, subtype="FLOAT"
    )
    flags = [f"--audio={corpus}"]
    with pytest.raises(ManifestError, match="2 of 27 audio files"):
        train("pretrain", *flags)
    # The third opens and fails to decode: known when it is trained on.
    with pytest.raises(ManifestError, match="3 of 27 audio files"):
        train("pretrain", *flags, "--max_unreadable=0.1")
    folder = train("pretrain", *flags, "--max_unreadable=0.2")
    listed = (folder / "unreadable.csv").read_text()
    for name in ("empty.wav", "text.flac", "nan.wav"):
        assert str(corpus / name) in listed
    assert (folder / "export").is_dir()


def test_a_mistyped_path_does_not_take_the_folder(tones, train, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ManifestError, match="No such file"):
        train("pretrain", f"--audio={tones.folder}s", folder=folder)
    train("pretrain", f"--audio={tones.folder}", folder=folder)
    with pytest.raises(OtherClips, match="is not there now"):
        train("pretrain", f"--audio={tones.manifest}", folder=folder)


def test_environment_is_quiet():
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_speakers_of_two_splits_are_told(scripts, tones, tmp_path, caplog):
    rows = read_manifest(tones.manifest)
    table = tmp_path / "two_speakers.csv"
    with open(table, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["path", "label", "split", "speaker"])
        for row in rows:
            speaker = "anna" if row["label"] == "tone" else "bert"
            lines.writerow([row["path"], row["label"], row["split"], speaker])
    prepare = scripts["classify"].prepare_classification
    prepare(table, tmp_path, "label", "split", False, 0.0, 0.0)
    assert "2 speakers of test are in train too, such as anna" in caplog.text
    caplog.clear()
    prepare(table, tmp_path, "speaker", "split", False, 0.0, 0.0)
    assert "are in train too" not in caplog.text


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "'manifest' is a !PLACEHOLDER .* --KEY VALUE"),
        (
            ["--manifest=a.csv", "--modelsize=tiny"],
            "no key modelsize; did you mean model_size",
        ),
        (["--manifest=a.csv", "--model_size=huge"], "no model preset named"),
    ],
)
def test_wrong_settings_are_one_message(flags, message, scripts, tmp_path):
    flags = [*flags, f"--output_folder={tmp_path}"]
    with pytest.raises(SettingsError, match=f"classify.yaml:? .*{message}"):
        scripts["classify"].main([str(yaml_of("classify")), *flags])


def test_a_column_may_have_a_number_as_its_name(scripts, tones, tmp_path):
    table = tmp_path / "numbers.csv"
    text = tones.manifest.read_text().replace("label,", "1,", 1)
    text = re.sub(
        "^([a-z]*_.)", f"{tones.folder}/\\1", text, flags=re.MULTILINE
    )
    table.write_text(text)
    prepare = scripts["classify"].prepare_classification
    rest = "split", False, 0.0, 0.0
    rows = read_splits(prepare(table, tmp_path, 1, *rest))
    assert rows["labels"] == ["chirp", "noise", "tone"]
    with pytest.raises(ManifestError, match="numbers.csv: no column 2; "):
        prepare(table, tmp_path, 2, *rest)
    with pytest.raises(ManifestError, match="column of label has no name"):
        prepare(table, tmp_path, None, *rest)
