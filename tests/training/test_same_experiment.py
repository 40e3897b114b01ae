"""A second start in the same folder: what may change, and what may not."""

import hashlib
from pathlib import Path

import pytest

from ssast_lobes.training import experiment, parse_arguments, with_settings
from ssast_lobes.training.errors import SettingsError

CUSTOM_DATA = Path(__file__).parents[2] / "recipes" / "CustomData"
YAML = {
    task: CUSTOM_DATA / task / "hparams" / f"{task}.yaml"
    for task in ("pretrain", "classify")
}


def start(task, folder, *words, yaml=None):
    """Start an experiment, as a train.py does."""
    data = "audio" if task == "pretrain" else "manifest"
    hparams_file, _, overrides = parse_arguments(
        [str(yaml or YAML[task]), f"--{data}=a.csv"]
        + [f"--output_folder={folder}", *words]
    )
    with experiment(hparams_file, overrides, folder):
        pass


def begun(task, folder, *words, yaml=None):
    """Start an experiment and let something be trained in it."""
    start(task, folder, *words, yaml=yaml)
    (folder / "save" / "CKPT+1").mkdir(parents=True)


@pytest.fixture(params=list(YAML))
def first(request, tmp_path):
    """Task and folder of an experiment that has begun."""
    begun(request.param, tmp_path / "out")
    return request.param, tmp_path / "out"


def state_of(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }


# What may change ----------------------------------------------------------


def test_nothing_or_what_is_free_has_changed(first):
    task, folder = first
    before = state_of(folder)
    start(task, folder)
    free = ["--number_of_epochs=300", "--num_workers=7", "--pad_seconds=2.56"]
    free += ["--export_folder=elsewhere", "--use_tensorboard=True"]
    free += ["--window_seconds=20", "--max_unreadable=0.5"]
    free += ["--checkpointing=True", "--nonfinite_patience=9"]
    free += ["--ckpt_interval_minutes=3", "--device=cpu"]
    data = "audio" if task == "pretrain" else "manifest"
    start(task, folder, *free)
    hparams_file, _, overrides = parse_arguments(
        [str(YAML[task]), f"--{data}=/node/7/a.csv"]
    )
    with experiment(hparams_file, overrides, folder):
        pass
    assert state_of(folder) == before


def test_a_moved_output_folder_is_the_same_experiment(first, tmp_path):
    task, folder = first
    moved = folder.rename(tmp_path / "moved")
    before = state_of(moved)
    start(task, moved)
    assert state_of(moved) == before


@pytest.mark.parametrize(
    "task, word",
    [
        ("pretrain", "--objective=mspm"),
        ("pretrain", "--training=pretrain_default"),
        ("classify", "--training=finetune_default"),
        ("classify", "--compute_cost=cross_entropy"),
    ],
)
def test_words_of_the_defaults_are_the_same_experiment(task, word, tmp_path):
    begun(task, tmp_path)
    start(task, tmp_path, word)


def test_settings_that_say_what_is_there_already(tmp_path):
    begun("pretrain", tmp_path)
    start(
        "pretrain", tmp_path, "--mask_ratio=0.78125", "--schedule={end: 0.01}"
    )
    start("pretrain", tmp_path, "--cluster_sizes=[3, 4, 5]", "--source=null")


def test_a_saved_yaml_of_the_experiment(tmp_path):
    """An override and the same value in a YAML are the same experiment."""
    text = YAML["pretrain"].read_text().replace("lr: 0.001", "lr: 0.5")
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    begun("pretrain", tmp_path / "out", "--lr=0.5")
    start("pretrain", tmp_path / "out", yaml=mine)


def test_other_comments_and_order_of_keys(tmp_path):
    own, mine = tmp_path / "own.yaml", tmp_path / "mine.yaml"
    own.write_text("manifest: a\nlr: 0.1  # high\noutput_folder: b\nn: [1]\n")
    mine.write_text("n:\n    - 1\noutput_folder: b\nmanifest: a\nlr: 0.1\n")
    begun("classify", tmp_path / "out", yaml=own)
    start("classify", tmp_path / "out", yaml=mine)


# What may not -------------------------------------------------------------

RANDOM = "!new:ssast_lobes.RandomMasker {ratio: 0.5}"


@pytest.mark.parametrize(
    "task, words, told",
    [
        ("pretrain", ["--lr=0.2"], r"lr \(0.001, now 0.2\)"),
        ("pretrain", ["--seed=2"], r"seed \(1986, now 2\)"),
        ("pretrain", ["--source=a"], r"source \(None, now a\)"),
        # Numbers inside of objects.
        ("pretrain", ["--schedule={end: 0.1}"], r"schedule.end \(0.01, now 0"),
        (
            "pretrain",
            ["--opt_class={betas: [0.9, 0.95]}"],
            r"opt_class.betas.1 \(0.98, now 0.95\)",
        ),
        (
            "pretrain",
            ["--opt_class={weight_decay: 0.2}"],
            r"opt_class.weight_decay \(0.01, now 0.2\)",
        ),
        ("classify", ["--mixup={probability: 1.0}"], r"mixup.probability \(0"),
        (
            "classify",
            ["--mixup=null"],
            r"mixup \(!new:ssast_lobes.Mixup, now N",
        ),
        (
            "classify",
            ["--compute_cost={label_smoothing: 0.1}"],
            r"compute_cost.label_smoothing \(0.0, now 0.1\)",
        ),
        ("classify", ["--augment=[]"], r"augment.0 \(.*Masking, now None\)"),
        (
            "classify",
            ["--augment=[!new:ssast_lobes.NoiseAndRoll {}]"],
            r"augment.0 \(.*SpectrogramMasking, now .*NoiseAndRoll\)",
        ),
        ("classify", ["--class_weights={a: 2}"], r"class_weights.a \(None, n"),
        ("classify", ["--swa_start_epoch=6"], r"swa_start_epoch \(None, now"),
        # Masks.
        ("pretrain", ["--mask_ratio=0.5"], r"mask_ratio \(0.78125, now 0.5"),
        ("pretrain", ["--cluster_sizes=[3]"], r"cluster_sizes.1 \(4, now N"),
        (
            "pretrain",
            ["--cluster_sizes=[3, 4, 6]"],
            r"cluster_sizes.2 \(5, now 6\)",
        ),
        ("pretrain", ["--masker={count: 9, ratio: null}"], r"masker.count \(N"),
        (
            "pretrain",
            [f"--masker={RANDOM}"],
            r"masker \(!new:ssast_lobes.ClusterMasker, now .*RandomMasker\)",
        ),
        # Another class, and the words that bring one.
        (
            "pretrain",
            ["--schedule=!new:ssast_lobes.Constant {}"],
            r"schedule \(!new:ssast_lobes.WarmupCosine, now .*Constant\)",
        ),
        (
            "pretrain",
            ["--opt_class=!name:torch.optim.SGD {lr: !ref <lr>}"],
            r"opt_class \(!name:torch.optim.AdamW, now !name:torch.optim.SGD\)",
        ),
        (
            "pretrain",
            ["--objective=m2d"],
            r"masker \(.*ClusterMasker, now .*RandomMasker\).* objective \(.*"
            r"MSPM, now .*M2D\)",
        ),
        (
            "pretrain",
            ["--training=ssast_pretrain_base"],
            r"lr \(0.001, now 0.0001\)",
        ),
        (
            "classify",
            ["--compute_cost=focal_loss"],
            r"compute_cost \(.*cross_entropy, now .*focal_loss\)",
        ),
        (
            "classify",
            ["--training=ssast_esc50_patch"],
            r"opt_class.weight_decay \(0.01, now 5e-07\)",
        ),
        ("classify", ["--degradation=speech"], r"degradation \(None, now !new"),
    ],
)
def test_another_experiment_is_refused(task, words, told, tmp_path):
    begun(task, tmp_path)
    before = state_of(tmp_path)
    with pytest.raises(SettingsError, match=told):
        start(task, tmp_path, *words)
    assert state_of(tmp_path) == before


def test_back_at_the_words_of_the_first_start(tmp_path):
    begun("pretrain", tmp_path, "--objective=eat", "--mask_ratio=0.7")
    start("pretrain", tmp_path, "--objective=eat", "--mask_ratio=0.7")
    with pytest.raises(SettingsError, match=r"mask_ratio \(0.7, now 0.8\)"):
        start("pretrain", tmp_path, "--objective=eat")
    with pytest.raises(SettingsError, match=r"objective \(.*EAT, now .*MSPM"):
        start("pretrain", tmp_path)


def test_a_changed_yaml_is_another_experiment(tmp_path):
    text = YAML["classify"].read_text()
    mine = tmp_path / "mine.yaml"
    begun("classify", tmp_path / "out")
    for one, other, told in [
        ("probability: 0.5", "probability: 0.6", "mixup.probability"),
        ("head_lr_scale: 1.0", "head_lr_scale: 2.0", "head_lr_scale"),
        ("random_crop: True", "random_crop: False", "train_reader.random_crop"),
        ("shuffle: True", "shuffle: False", "train_dataloader_opts.shuffle"),
        ("pooling: !ref <pooling>", "pooling: class", "model_class.pooling"),
    ]:
        assert one in text
        mine.write_text(text.replace(one, other))
        with pytest.raises(SettingsError, match=rf"settings: {told} \("):
            start("classify", tmp_path / "out", yaml=mine)


def test_folds_have_settings_of_their_own(tmp_path):
    yaml = tmp_path / "folds.yaml"
    yaml.write_text("fold: null\nfolds: [1, 2]\noutput_folder: a\n")
    for fold in (1, 2):
        folder = tmp_path / f"fold_{fold}"
        own = with_settings("", fold=fold, output_folder=str(folder))
        with experiment(yaml, own, folder):
            (folder / "save" / "CKPT+1").mkdir(parents=True)
        with experiment(yaml, own, folder):
            pass
    with pytest.raises(SettingsError, match=r"fold \(2, now 1\)"):
        with experiment(yaml, with_settings("", fold=1), folder):
            pass
    with pytest.raises(SettingsError, match=r"folds.1 \(2, now None\)"):
        with experiment(yaml, with_settings(own, folds=[1]), folder):
            pass


# Where the settings stand -------------------------------------------------


def test_nothing_is_trained_yet(tmp_path):
    start("pretrain", tmp_path)
    start("pretrain", tmp_path, "--lr=0.5")
    (tmp_path / "save" / "CKPT+1").mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"lr \(0.5, now 0.001\)"):
        start("pretrain", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "{", "[1]", "7", "null", '"lr"'])
def test_damaged_settings_are_told(text, first):
    task, folder = first
    (folder / "save/settings.json").write_text(text)
    with pytest.raises(SettingsError, match="settings.json is damaged") as info:
        start(task, folder)
    assert "delete it; else choose another" in str(info.value)
    (folder / "save/settings.json").unlink()
    start(task, folder)
    with pytest.raises(SettingsError, match=r"seed \(1986, now 2\)"):
        start(task, folder, "--seed=2")


def test_the_folder_is_held(tmp_path):
    overrides = with_settings("", audio="a")
    with experiment(YAML["pretrain"], overrides, tmp_path):
        with pytest.raises(SettingsError, match="is in use by process"):
            start("pretrain", tmp_path)
    start("pretrain", tmp_path)
