"""Command lines: words for presets, changes, replacements, and mistakes."""

import re
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references

from ssast_lobes import load_teachers, objectives
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives import maskers as masking
from ssast_lobes.training import (
    losses,
    parse_arguments,
    plain_settings,
    with_settings,
)
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.utils.checks import ArgumentError
from ssast_lobes.utils.presets import (
    hparams_folder,
    read_preset,
    read_tree,
    tag_of,
)

RECIPES = Path(__file__).parents[2] / "recipes"
PRETRAIN = RECIPES / "CustomData/pretrain/hparams/pretrain.yaml"
CLASSIFY = RECIPES / "CustomData/classify/hparams/classify.yaml"
OBJECTIVES = sorted(p.stem for p in hparams_folder().glob("objective/*.yaml"))
# What an objective cannot do without.
WORDS = {"distillation": ["--teachers=[ssast-lobes-micro-1]"]}
RECIPE = """
crop_seconds: 1.0
seed: 1
lr: 0.1
number_of_epochs: 3
folder: !ref results/<seed>
schedule: !new:ssast_lobes.utils.schedules.WarmupCosine
    start: 1.0
    end: 0.5
opt_class: !name:torch.optim.AdamW
    lr: !ref <lr>
degradation: null
norm: !new:torch.nn.LayerNorm
    normalized_shape: 4
source: null
model_size: micro
geometry: patch
lobe: !new:ssast_lobes.SSAST
    model_size: !ref <model_size>
    geometry: !ref <geometry>
    source: !ref <source>
    table_frames: 100
mask_ratio: 0.75
cluster_sizes: [3, 4]
masker: !new:ssast_lobes.ClusterMasker
    ratio: !ref <mask_ratio>
    cluster_sizes: !ref <cluster_sizes>
objective: !new:ssast_lobes.objectives.MaskedAutoencoder
    encoder: !ref <lobe.encoder>
    masker: !ref <masker>
    decoder: {width: 1.0, depth: 0.5, head_size: 32}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(RECIPE)
    return path


def load(path, *words):
    """Hyperparameters of a command line, as a train.py has them."""
    hparams_file, _, overrides = parse_arguments([str(path), *words])
    with open(hparams_file, encoding="utf-8") as file:
        return load_hyperpyyaml(file, overrides)


def write(path, text):
    path.write_text(text)
    return str(path)


# Words --------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_word_gives_what_python_gives(name, recipe):
    hparams = load(recipe, "--objective", name, *WORDS.get(name, []))
    objective, own = hparams["objective"], {}
    if name in WORDS:
        own = {"teachers": load_teachers("ssast-lobes-micro-1")}
    expected = load_objective(name)(hparams["lobe"].encoder, **own)
    assert type(objective) is type(expected)
    assert objective.config == expected.config
    assert objective.encoder is hparams["lobe"].encoder
    if hparams["masker"] is not None:
        assert objective.masker is hparams["masker"]
        assert objective.masker.ratio == hparams["mask_ratio"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_key_is_left_that_says_what_is_not_so(name):
    """What an objective has no use for is null, not the number of another."""
    preset = read_preset("objective", name)
    text = (hparams_folder() / "objective" / f"{name}.yaml").read_text()
    own = set(re.findall("<(.*?)>", text)) if "base:" not in text else None
    for key in ("mask_ratio", "cluster_sizes", "masker"):
        assert key in preset
        if own is not None:
            assert (preset[key] is None) == (key not in own), key


def test_a_preset_of_ones_own_with_a_base(recipe, tmp_path, monkeypatch):
    write(tmp_path / "mine.yaml", "base: m2d\nobjective: {momentum: [0, 1]}\n")
    write(tmp_path / "small.yaml", "base: mine.yaml\nmask_ratio: 0.25\n")
    monkeypatch.chdir(tmp_path.parent)
    hparams = load(recipe, f"--objective={tmp_path.name}/small.yaml")
    objective = hparams["objective"]
    assert type(objective) is objectives.M2D
    assert objective.config["momentum"] == [0, 1]
    assert objective.masker.config == masking.RandomMasker(0.25).config


def test_a_preset_brings_settings_of_its_own(recipe, tmp_path):
    """They are put where the preset uses them: the recipe has no such key."""
    words = ["--objective=distillation", "--teachers=ssast-lobes-micro-1"]
    hparams = load(recipe, *words, f"--teacher_cache={tmp_path}/cache")
    assert "teachers" not in hparams
    objective = hparams["objective"]
    assert objective.config["teachers"] == ["ssast-lobes-micro-1"]
    assert objective.cache.folder == tmp_path / "cache"
    assert objective.crop_seconds == hparams["crop_seconds"] == 1.0
    mine = write(
        tmp_path / "mine.yaml",
        "base: distillation\nteachers: [ssast-lobes-micro-1]\n"
        "objective: {pairs: 2}\n",
    )
    objective = load(recipe, "--objective", mine)["objective"]
    assert objective.layers == [[(3, 3), (6, 6)]]
    with pytest.raises(SettingsError, match="has no key teachers"):
        load(recipe, "--objective=m2d", "--teachers=ssast-lobes-micro-1")
    with pytest.raises(ArgumentError, match="teachers must be exported fol"):
        load(recipe, "--objective=distillation")


def test_a_recipe_says_what_its_preset_says():
    """Numbers stand where they are read; the preset has their sources."""
    mspm = read_preset("objective", "mspm")
    for path in (PRETRAIN, *RECIPES.glob("AudioSet/pretrain/hparams/*.yaml")):
        tree = read_tree(path)
        for key, node in mspm.items():
            assert same(tree[key], node), (path, key)
    path = RECIPES / "ASVspoof2019/classify/hparams/asvspoof2019.yaml"
    speech = read_preset("degradation", "speech")
    assert same(read_tree(path)["degradation"], speech["degradation"])


def same(one, other):
    """Whether two nodes of YAML have the same tags and values."""
    if tag_of(one) != tag_of(other) or type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(
            same(one[key], other[key]) for key in one
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return getattr(one, "value", one) == getattr(other, "value", other)


def test_degradation_by_its_word(recipe):
    steps = load(recipe, "--degradation=speech")["degradation"].steps
    assert len(steps) == 5
    assert load(recipe, "--degradation=null")["degradation"] is None


@pytest.mark.parametrize(
    "word", ["cross_entropy", "binary_cross_entropy", "focal_loss"]
)
def test_a_loss_by_its_word(word):
    hparams = load(CLASSIFY, "--manifest=a.csv", "--compute_cost", word)
    cost = hparams["compute_cost"]
    assert cost.func is getattr(losses, word)
    assert cost.keywords == read_preset("compute_cost", word)["compute_cost"]


def test_a_loss_of_ones_own_takes_the_place():
    word = "--compute_cost=!name:torch.nn.functional.cross_entropy {}"
    cost = load(CLASSIFY, "--manifest=a.csv", word)["compute_cost"]
    cost = getattr(cost, "func", cost)
    assert cost is torch.nn.functional.cross_entropy


def test_a_word_of_a_training_sets_what_the_script_has():
    words = ["--manifest=a.csv", "--training=ssast_esc50_patch", "--lr=0.5"]
    hparams = load(CLASSIFY, *words)
    assert hparams["opt_class"].func is torch.optim.Adam
    # A setting of the command line is put over the word's.
    assert hparams["opt_class"].keywords["lr"] == hparams["lr"] == 0.5
    assert (hparams["batch_size"], hparams["mixup"]) == (48, None)


def test_a_table_of_weights_is_a_setting():
    """It takes the place of null, which has no settings to change."""
    table = "--class_weights={cat: 2, 7: 0.5}"
    hparams = load(CLASSIFY, "--manifest=a.csv", table)
    assert hparams["class_weights"] == {"cat": 2, 7: 0.5}


# Changes and replacements -------------------------------------------------


@pytest.mark.parametrize(
    "words, config",
    [
        ([], {"name": "ClusterMasker", "ratio": 0.75, "cluster_sizes": [3, 4]}),
        (["--mask_ratio=0.5"], {"name": "ClusterMasker", "ratio": 0.5}),
        (["--cluster_sizes=[2]"], {"ratio": 0.75, "cluster_sizes": [2]}),
        (
            ["--masker={ratio: null, count: 9}"],
            {"name": "ClusterMasker", "ratio": None, "count": 9},
        ),
        (
            ["--masker=!new:ssast_lobes.SpanMasker {ratio: 0.5, span: 5}"],
            {"name": "SpanMasker", "ratio": 0.5, "span": 5},
        ),
        (
            # The arguments would do for the old class too.
            ["--masker=!new:ssast_lobes.RandomMasker {ratio: 0.5}"],
            {"name": "RandomMasker", "ratio": 0.5},
        ),
        (
            ["--objective=eat_small_data", "--masker={block_size: 3}"],
            {"name": "InverseBlockMasker", "ratio": 0.8, "block_size": 3},
        ),
        (
            ["--objective=m2d", "--mask_ratio=0.6"],
            {"name": "RandomMasker", "ratio": 0.6},
        ),
    ],
)
def test_the_mask_is_a_setting(recipe, words, config):
    hparams = load(recipe, *words)
    assert hparams["objective"].masker is hparams["masker"]
    assert hparams["masker"].config.items() >= config.items()


def test_a_class_replaces_and_a_mapping_changes(recipe):
    schedule = load(recipe, "--schedule={end: 0.1}")["schedule"]
    assert (type(schedule).__name__, schedule.end) == ("WarmupCosine", 0.1)
    # Without a replacement HyperPyYAML would keep WarmupCosine and its start.
    linear = "!new:ssast_lobes.utils.schedules.Linear {end: 0.1}"
    schedule = load(recipe, f"--schedule={linear}")["schedule"]
    assert (type(schedule).__name__, schedule.end) == ("Linear", 0.1)
    hparams = load(recipe, "--objective={decoder: {depth: 1.0}}")
    assert hparams["objective"].decoder_config == {
        "width": 1.0,
        "depth": 1.0,
        "head_size": 32,
    }


def test_a_class_inside_of_a_mapping_replaces(tmp_path):
    recipe = tmp_path / "train.yaml"
    recipe.write_text(
        "modules:\n    norm: !new:torch.nn.Softmax {dim: 1}\n    other: 1\n"
    )
    override = "--modules={norm: !new:torch.nn.LogSoftmax {dim: 0}}"
    modules = load(recipe, override)["modules"]
    assert type(modules["norm"]) is torch.nn.LogSoftmax
    assert (modules["norm"].dim, modules["other"]) == (0, 1)


def test_hyperpyyaml_is_as_we_take_it():
    """A mapping keeps the class it overrides; what a call gives does not."""
    text = "x: !new:torch.nn.Softmax {dim: 1}\ny: 3"
    override = "x: !new:torch.nn.LogSoftmax {dim: 0}"
    kept = load_hyperpyyaml(text, override)["x"]
    assert (type(kept), kept.dim) == (torch.nn.Softmax, 0)
    override = (
        "x: !applyref:ssast_lobes.utils.presets.replace "
        "[!new:torch.nn.LogSoftmax {dim: !ref <y>}]"
    )
    replaced = load_hyperpyyaml(text, override)["x"]
    assert (type(replaced), replaced.dim) == (torch.nn.LogSoftmax, 3)


def test_the_saved_yaml_is_a_whole_recipe(recipe, tmp_path):
    """What `create_experiment_directory` writes can be run by itself."""
    words = ["--objective=m2d_small_data", "--mask_ratio=0.6", "--lr=0.2"]
    _, _, overrides = parse_arguments([str(recipe), *words])
    saved = tmp_path / "hyperparams.yaml"
    with open(recipe, encoding="utf-8") as file:
        saved.write_text(resolve_references(file, overrides).read())
    assert "applyref" not in saved.read_text()
    one, other = load(saved), load(recipe, *words)
    assert one.keys() == other.keys() and one["lr"] == 0.2
    assert type(one["objective"]) is objectives.M2D
    assert one["objective"].config == other["objective"].config


# Mistakes -----------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (["--lrr=1"], "train.yaml has no key lrr; did you mean lr?"),
        (
            ["--learning_rate=1", "--nothing_like_it=1", "--lrr=1"],
            "no key learning_rate; did you mean lr.; it has no key "
            "nothing_like_it; it has no key lrr; did you mean lr.",
        ),
        (["--objectiv=m2d"], "no key objectiv; did you mean objective?"),
        (["--lr=1", "--lr=2"], "lr is given twice"),
        (["--lr=[1"], "expected ',' or ']'"),
        (["stray"], "stray belongs to no --KEY"),
        (["--objective=nope"], "'nope'; there are: asit, .*mspm_small_data"),
        (["--objective=msmp"], "'msmp' .did you mean mspm.."),
        (["--objective=nope.yaml"], "nope.yaml cannot be read: .*No such file"),
        (["--objective=!include:m2d.yaml"], "name of a file of hparams/objec"),
        (
            ["--training=finetune_default"],
            "no key batch_size, which --training finetune_default sets$",
        ),
        (["--masker={rato: 1}"], "ClusterMasker: .*'rato'; it takes ratio, c"),
        (["--objective={taks: 1}"], "objective: .*MaskedAuto.*: .*'taks'"),
        (
            ["--masker=!new:ssast_lobes.SpanMasker {ratio: 0.5}"],
            "masker: ssast_lobes.SpanMasker: .*'span'",
        ),
        (
            ["--masker=!new:ssast_lobes.SpanMaskr {ratio: 0.5}"],
            "masker: there is no ssast_lobes.SpanMaskr",
        ),
        (["--opt_class={momentun: 1}"], "torch.optim.AdamW: .*'momentun'"),
        (["--degradation={probability: 1}"], "degradation has no settings to"),
        (
            ["--objective=m2d", "--cluster_sizes=[2]"],
            "cluster_sizes has no effect with --objective m2d: leave it out",
        ),
        (
            ["--objective=asit", "--masker={ratio: 0.5}"],
            "masker has no effect with --objective asit",
        ),
        (["--objective=atst_clip", "--mask_ratio=0.5"], "mask_ratio has no ef"),
        (
            [
                "--mask_ratio=0.5",
                "--masker=!new:ssast_lobes.RandomMasker {ratio: 0.6}",
            ],
            "mask_ratio has no effect with --masker",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(recipe, words, message):
    with pytest.raises(SettingsError, match=message) as info:
        parse_arguments([str(recipe), *words])
    assert "\n" not in str(info.value)


def test_settings_that_a_source_brings_are_told(recipe, caplog):
    words = ["--source=run/export", "--model_size=micro", "--geometry=frame"]
    parse_arguments([str(recipe), *words])
    assert [record.getMessage() for record in caplog.records] == [
        "--geometry has no effect: the model has that of --source",
        "--model_size has no effect: the model has that of --source",
    ]
    caplog.clear()
    parse_arguments([str(recipe), *words[1:]])
    parse_arguments([str(recipe), *words[:1]])
    assert not caplog.records


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(SettingsError, match="none.yaml cannot be read"):
        parse_arguments([str(tmp_path / "none.yaml")])


@pytest.mark.parametrize(
    "text, message",
    [
        ("- 1\n", "mine.yaml holds no keys of a recipe"),
        ("a: [\n", "mine.yaml cannot be read"),
        ("base: mine.yaml\n", "mine.yaml: it is its own base"),
        ("base: nope\n", "no objective preset named 'nope'"),
        ("base: asit\nmasker: {ratio: 0.5}\n", "mine.yaml: masker has no sett"),
        ("mask_ratoi: 0.5\n", "no key mask_ratoi, which --objective .*mine"),
    ],
)
def test_a_wrong_preset_is_named(recipe, tmp_path, text, message):
    mine = write(tmp_path / "mine.yaml", text)
    with pytest.raises(SettingsError, match=message):
        parse_arguments([str(recipe), "--objective", mine])


def test_a_plain_setting_that_others_take_up_has_an_effect(recipe):
    """The folder is given, and the seed that its default refers to."""
    hparams = load(recipe, "--folder=out", "--seed=5")
    assert (hparams["folder"], hparams["seed"]) == ("out", 5)


# Values without objects ---------------------------------------------------


def test_further_settings_count(recipe):
    words = ["--objective=m2d", "--lr=0.2"]
    _, _, overrides = parse_arguments([str(recipe), *words])
    overrides = with_settings(overrides, lr=0.3, folder="fold_1", seed=None)
    settings = plain_settings(recipe, overrides)
    assert settings["lr"] == 0.3
    assert (settings["folder"], settings["seed"]) == ("fold_1", None)
    assert settings["mask_ratio"] == 0.7
    assert settings["objective"] is None and settings["lobe"] is None
    assert plain_settings(recipe, with_settings("", lr=1))["lr"] == 1
