"""Wrong settings: one line that names setting, value and what is allowed.

Every key of the recipes' YAMLs is given a value of a wrong type, and one out
of range: what is told before an object is built, and what a constructor says
as the YAML is loaded. No audio is there to be blamed.
"""

import functools
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

import ssast_lobes
from ssast_lobes.training import losses, parse_arguments, yaml_errors
from ssast_lobes.training.errors import SettingsError, exit_on_user_error
from ssast_lobes.utils.checks import ArgumentError
from ssast_lobes.utils.presets import read_tree, tag_of

RECIPES = Path(__file__).parents[2] / "recipes"
PRETRAIN = RECIPES / "CustomData/pretrain/hparams/pretrain.yaml"
CLASSIFY = RECIPES / "CustomData/classify/hparams/classify.yaml"
LEFT_OUT = ("compare", "transfer", "SyntheticCommands")
YAMLS = [
    path
    for path in sorted(RECIPES.glob("*/*/hparams/*.yaml"))
    if not set(path.parts) & set(LEFT_OUT)
    # Those that still have their settings in presets.
    and "!include" not in path.read_text("utf-8")
]

ORDER = [
    CLASSIFY,
    PRETRAIN,
    *(y for y in YAMLS if y not in (CLASSIFY, PRETRAIN)),
]

# Of each kind a wrong type, and a value out of range.
_NOT_A_COUNT = ("abc", "0")
_COUNT_OR_NULL = ("true", "0")
_AMOUNT = ("abc", "-1")
_SHARE = ("null", "1.5")
_LENGTH = ("[1]", "0")
_LENGTH_OR_NULL = ("true", "0")
_FLAG = ("3", "null")
_FLAG_OR_NULL = ("3",)
_PATH = ("2024", "null")
_PATH_OR_NULL = ("2024",)
_OBJECT = ("3", "null")
_OBJECT_OR_NULL = ("3",)
_NAMES = ("3", "[]")
# Values that a setting must not have. All keys of all recipes are here.
WRONG = {
    # Objects and paths of single recipes.
    "decode": (),
    "model": (),
    "reader": (),
    "tokenizer": (),
    "table": (),
    # Told as `main` builds the detector, before it makes a folder's model.
    "context": (),
    "hidden": (),
    "rule_kind": (),
    "weak_pooling": (),
    # Prepare scripts tell those of their corpus.
    "test_set": (),
    "train_sets": (),
    "allow_download": _FLAG,
    "audio": ("2024", "[]"),
    "augment": ("3", "abc", "[3]"),
    "balanced_sampling": _FLAG,
    "batch_size": _NOT_A_COUNT,
    "blank_index": (),  # follows vocabulary_size
    "checkpointer": _OBJECT,
    "checkpointing": _FLAG_OR_NULL,
    "ckpt_interval_minutes": (),
    "class_weights": ("3", "abc", "{cat: -1}", "{cat: much}"),
    "clip_order": _OBJECT,
    "clips_per_evaluation": _COUNT_OR_NULL,
    "cluster_sizes": ("3", "[0]"),
    "collate": _OBJECT,
    "compute_cost": ("3", "null", "[1]", "no_such_loss"),
    "cosine_scale": _LENGTH_OR_NULL,
    "cover_long": _FLAG,
    "crop_seconds": _LENGTH,
    "data_folder": _PATH_OR_NULL,
    "degradation": ("3", "[1]", "no_such_word"),
    "drop_path": _SHARE,
    "epoch_chosen_on": ("3", "train", "null"),
    "epoch_counter": _OBJECT,
    "esc10": _FLAG,
    "export_folder": _PATH,
    "fold": (),  # `chosen_folds` tells the folds there are
    "folds": (),
    "freeze_encoder": _FLAG,
    "frozen_blocks": ("abc", "99", "-1"),
    "geometry": ("16", "hexagon", "[16]", "[16, 0]", "[200, 2]", "null"),
    "grad_accumulation_factor": ("0",),
    "head_lr_scale": _AMOUNT,
    "held_out_of": ("2024",),
    "label_column": ("null", "[1]", "true"),
    "label_encoder": _OBJECT,
    "layer_decay": _SHARE,
    "layers": ("3", "first", "null", "[1]"),
    "length_buckets": _COUNT_OR_NULL,
    "librispeech_folder": _PATH_OR_NULL,
    "librispeech_parts": _NAMES,
    "lobe": _OBJECT,
    "lora_rank": ("abc", "-1"),
    "lp_init_penalty": _LENGTH_OR_NULL,
    "lr": _AMOUNT,
    "manifest": _PATH,
    "mask_ratio": ("abc", "0", "1"),
    "masker": ("3", "abc", "[1]"),
    "max_grad_norm": ("abc", "nan"),
    "max_unreadable": _SHARE,
    "min_seconds": _AMOUNT,
    "mixup": _OBJECT_OR_NULL,
    "model_class": _OBJECT,
    "model_size": ("3", "huge", "null", "[1]"),
    "modules": ("3", "abc", "null", "[1]"),
    "multi_label": _FLAG,
    "n_mels": ("abc", "0"),
    "nonfinite_patience": ("-1", "abc"),
    "num_workers": ("abc", "-1"),
    "number_of_epochs": _NOT_A_COUNT,
    "objective": ("3", "null", "[1]", "no_such_word"),
    "opt_class": _OBJECT,
    "optimizer_step_limit": ("0", "abc", "2.5"),
    "output_folder": _PATH,
    "pad_seconds": _LENGTH_OR_NULL,
    "passes_per_epoch": _NOT_A_COUNT,
    "pooling": ("3", "max", "null", "[1]"),
    "prepare_corpus": _OBJECT,
    "pretrainer": _OBJECT,
    "projection": _COUNT_OR_NULL,
    "protocol": (),  # prepare scripts tell those of their corpus
    "remove_vector_weight_decay": (),  # takes no value
    "require_counts": _FLAG,
    "schedule": _OBJECT,
    "seed": ("abc", "-1", "4294967296"),
    "selection": ("3", "f1", "null"),
    "shards": _PATH_OR_NULL,
    "source": _PATH_OR_NULL,
    "split_column": ("null", "[1]", "true"),
    "splits_file": _PATH,
    "statistics": ("3", "nope", "none.yaml", "{mean: 1}", "{mean: 1, std: 0}"),
    "stride": ("10", "[200, 200]", "[0, 1]", "[1]", "abc", "{a: 1}"),
    "subset": (),  # as protocol
    "swa_start_epoch": (*_COUNT_OR_NULL, "1000000"),
    "test_parts": _NAMES,
    "test_seconds": _LENGTH_OR_NULL,
    "train_dataloader_opts": (
        *("3", "null", "{batch_size: 0}"),
        *("{num_workers: -1}", "{shuffle: 3}"),
    ),
    "train_logger": _OBJECT,
    "train_parts": _NAMES,
    "train_reader": _OBJECT,
    "use_tensorboard": _FLAG,
    "valid_dataloader_opts": ("3", "null", "{batch_size: 0}"),
    "valid_fraction": _SHARE,
    "valid_group": (),
    "valid_on_eval": _FLAG,
    "valid_parts": _NAMES,
    "valid_reader": _OBJECT,
    "vocabulary_size": _NOT_A_COUNT,
    "weight_decay_schedule": _OBJECT_OR_NULL,
    "window_seconds": _LENGTH_OR_NULL,
    "wise_ft": _FLAG,
}
# The same for the arguments of objects, by class.
ARGUMENTS = {
    "torch.optim.AdamW": {
        "betas": ("3", "abc", "[2, 0.9]"),
        "weight_decay": ("abc", "-1"),
        "eps": ("-1",),
    },
    # SpeechBrain checks its own, as the CTC recipe is built.
    "speechbrain.tokenizers.SentencePiece.SentencePiece": {},
    "speechbrain.nnet.losses.ctc_loss": {},
    "speechbrain.decoders.ctc.ctc_greedy_decode": {},
    "ssast_lobes.SpectrogramRecognizer": {},
    "torch.optim.Adam": {
        "betas": ("3", "abc", "[2, 0.9]"),
        "weight_decay": ("abc", "-1"),
        "eps": ("-1",),
    },
    "ssast_lobes.ClipOrder": {
        "seed": ("abc", "-1"),
        "passes_per_epoch": ("0", "abc"),
        "balanced": ("3",),
        "multi_label": ("3",),
        "length_buckets": ("0",),
        "crop_seconds": ("0", "abc"),
        "clips_per_epoch": ("0", "2.5"),
    },
    "ssast_lobes.ClipReader": {
        "crop_seconds": ("0", "abc"),
        "seed": ("-1", "abc"),
        "random_crop": ("3",),
        "sample_rate": ("0", "abc"),
    },
    "ssast_lobes.ClusterMasker": {
        "ratio": ("0", "2", "abc"),
        "cluster_sizes": ("3", "[]", "[0]"),
    },
    "ssast_lobes.Constant": {"value": ("abc",)},
    "ssast_lobes.MSPM": {
        "task": ("3", "contrastive"),
        "generative_weight": ("abc", "-1"),
        "softmax_over": ("3", "rows"),
        "sincos_positions": ("3",),
    },
    "ssast_lobes.Mixup": {
        "probability": ("2", "-1", "abc", "null"),
        "alpha": ("0", "abc"),
    },
    "ssast_lobes.SSAST": {
        "table_frames": ("0", "abc"),
        "freeze": ("3",),
        "output": ("3", "words"),
        "drop_path": ("2", "abc"),
        "checkpointing": ("3",),
    },
    "ssast_lobes.SpectrogramClassifier": {
        "pooling": ("max",),
        "frozen_blocks": ("99",),
    },
    "ssast_lobes.WarmupCosine": {
        "start": ("abc",),
        "end": ("abc", "null"),
        "warmup": ("abc", "-1", "1.5", "null"),
        "duration": ("abc", "-1", "1.5"),
    },
    "ssast_lobes.WarmupPlateau": {
        "warmup": ("abc", "-1", "1.5"),
        "factor": ("abc", "-1"),
        "patience": ("abc", "-1"),
        "threshold": ("abc", "-1"),
    },
    "ssast_lobes.WarmupStepDecay": {
        "epochs": ("0", "abc"),
        "factor": ("-1", "abc"),
        "first": ("-1", "abc"),
        "every": ("0", "abc"),
        "warmup": ("-1", "abc"),
    },
    # Told as `main` builds the detector.
    "ssast_lobes.SpectrogramDetector": {},
    "ssast_lobes.event_cross_entropy": {},
    "ssast_lobes.cross_entropy": {"label_smoothing": ("2", "abc")},
    "ssast_lobes.binary_cross_entropy": {"label_smoothing": ("2", "abc")},
}
# Third parties' own, or nothing but paths and other objects.
NO_ARGUMENTS = {
    "speechbrain.dataio.encoder.CategoricalEncoder",
    "speechbrain.utils.epoch_loop.EpochCounter",
    "speechbrain.utils.train_logger.FileTrainLogger",
    "ssast_lobes.AtomicCheckpointer",
    "ssast_lobes.Degradation",  # its word's file, in a test below
    "ssast_lobes.PretrainingLobe",
    "ssast_lobes.collate",  # its arguments are settings
}
# Of steps and of what stands in lists.
CLASSES = {
    "AddedNoise": {"snr_db": [3, [9, 1], ["a", 1]], "slope": [None]},
    "BandLimit": {
        "low_hz": [[-1, 3]],
        "high_hz": [3],
        "order": [0, 2.5],
        "sample_rate": [0],
    },
    "Clipping": {"level": [[0, 2], 0.5]},
    "Companding": {"bits": [[0, 8], 8]},
    "Degradation": {"steps": [3, [3]], "probability": [2, "abc"]},
    "FrontEnd": {
        "statistics": [3, {"mean": 1}, {"mean": "a", "std": 1}],
        "sample_rate": [0, "abc"],
        "n_mels": [0, 2.5],
        "pad_frames": [0, "abc"],
        "fbank": [{"kind": "linear"}, {"window": "povey"}],
    },
    "Grid": {
        "n_mels": [0, "abc", 8],
        "patch": [16, [16, 0], [16], "ab"],
        "stride": [10, [0, 1], "ab"],
        "keep_partial": [3],
    },
    "KaldiFbank": {
        "n_mels": [0, None],
        "sample_rate": [0, "abc"],
        "window": [3, "square"],
        "gain": [0, "abc"],
    },
    "NoiseAndRoll": {"noise": [-1, "abc"], "shift": [-1, 2.5]},
    "SpectrogramEncoder": {
        "dim": [0, 2.5],
        "depth": [0, "abc"],
        "heads": [0, None],
        "mlp_ratio": [0, "abc"],
        "table_frames": [0, "abc"],
        "drop_path": [2, "abc"],
        "blocks": [3, "conv"],
        "checkpointing": [3],
        "n_class_tokens": [3, "abc"],
        "norms": [3, ["middle"]],
        "crop": [3, "end"],
        "qkv_bias": [3],
    },
    "SpectrogramMasking": {"freq_width": [-1, "abc"], "time_width": [2.5]},
    "TransformCoding": {"step": [3], "window": [0, 5], "surroundings": [0, 2]},
}
COSTS = {
    "cross_entropy": {"label_smoothing": [2, "abc", None]},
    "binary_cross_entropy": {"label_smoothing": [-1, "abc"]},
    "focal_loss": {"gamma": [-1, "abc"]},
    "aam_softmax": {"margin": [-1, "abc"], "scale": [0, None]},
}
REQUIRED = {
    "Degradation": {"steps": []},
    "SpectrogramMasking": {"freq_width": 1, "time_width": 1},
}


# How a line may call a setting.
ALIASES = {
    "geometry": "a patch of",
    "mask_ratio": "mask ratio",
    "model_size": "model preset",
    "statistics": "features preset",
}


def name_of(value):
    return value.relative_to(RECIPES).as_posix()


each_yaml = pytest.mark.parametrize("yaml", YAMLS, ids=name_of)


def flags_of(yaml, *more):
    """Return a command line that is right, with further flags."""
    holes = re.findall(
        r"^(\w+): !PLACEHOLDER", yaml.read_text("utf-8"), re.MULTILINE
    )
    flags = [*(f"--{key}=given" for key in holes), "--model_size=micro"]
    given = {flag.split("=")[0] for flag in more}
    return [str(yaml), *(f for f in flags if f.split("=")[0] not in given)] + [
        *more
    ]


def load(yaml, *more):
    """Parse and load, as the `main` of a recipe does it."""
    path, _, overrides = parse_arguments(flags_of(yaml, *more))
    with yaml_errors(path), open(path, encoding="utf-8") as file:
        return load_hyperpyyaml(file, overrides)


@pytest.fixture(autouse=True)
def neighbors(monkeypatch):
    """Prepare scripts that a YAML names are next to its recipe."""
    for folder in {path.parents[2] for path in YAMLS}:
        monkeypatch.syspath_prepend(folder)


def told(yaml, *flags):
    """Return what wrong flags are told; None where they are taken."""
    try:
        load(yaml, *flags)
    except SettingsError as error:
        return str(error)
    return None


def wrong_flags(yaml):
    """Yield (setting, flag) of all that a YAML must not be given."""
    for key, node in read_tree(yaml).items():
        for value in WRONG.get(key, ()):
            yield key, f"--{key}={value}"
        kind, _, path = tag_of(node).partition(":")
        for name, values in ARGUMENTS.get(path, {}).items():
            for value in values:
                yield name, f"--{key}={{{name}: {value}}}"


@each_yaml
def test_each_setting_is_in_the_table(yaml):
    for key, node in read_tree(yaml).items():
        if key.startswith("__"):
            continue
        assert key in WRONG, key
        kind, _, path = tag_of(node).partition(":")
        if kind in ("!new", "!name") and key != "prepare_corpus":
            assert path in ARGUMENTS or path in NO_ARGUMENTS, path


@pytest.mark.parametrize(
    "yaml",
    [
        pytest.param(
            yaml, marks=[] if "pretrain" in yaml.parts else pytest.mark.slow
        )
        for yaml in YAMLS
    ],
    ids=name_of,
)
def test_wrong_settings_are_one_line(yaml):
    """In the order of the YAML; all that are not told are listed."""
    problems, seen = [], set()
    for name, flag in wrong_flags(yaml):
        if not is_news(yaml, flag):
            continue
        seen.add(name)
        line = told(yaml, flag)
        # The place of an object names the setting, where a word does not.
        key = flag.split("=")[0].removeprefix("--")
        if line is None:
            problems.append(f"{flag} is taken")
        elif "\n" in line:
            problems.append(f"{flag} is told in more than a line: {line}")
        elif not any(x in line for x in (name, key, ALIASES.get(key, key))):
            problems.append(f"{flag} is not named: {line}")
    assert not problems, "\n".join(problems)
    assert seen or yaml not in (PRETRAIN, CLASSIFY)


def is_news(yaml, flag):
    """Tell whether no YAML before this one has the same under this key.

    One is enough for what they share: a flag takes a tenth of a second.
    """
    key = flag.removeprefix("--").partition("=")[0]
    kind = tag_of(tree(yaml)[key])
    before = ORDER[: ORDER.index(yaml)]
    return not any(
        key in tree(other) and tag_of(tree(other)[key]) == kind
        for other in before
    )


# Reading takes a quarter of a second.
tree = functools.cache(read_tree)


@each_yaml
def test_the_settings_as_they_are_are_right(yaml):
    load(yaml)


@pytest.mark.parametrize(
    "yaml, flags, message",
    [
        (
            CLASSIFY,
            ["--lr=abc"],
            "lr must be a number of at least 0, got 'abc'",
        ),
        (CLASSIFY, ["--lr=1e-3"], None),
        (CLASSIFY, ["--max_grad_norm=inf"], None),
        (CLASSIFY, ["--label_column=1"], None),
        (CLASSIFY, ["--opt_class={betas: '(0.9, 0.9)'}"], None),
        (CLASSIFY, ["--augment=[]"], None),
        (CLASSIFY, ["--degradation=speech"], None),
        (
            CLASSIFY,
            ["--augment=[!new:ssast_lobes.NoiseAndRoll {noise: -1}]"],
            "augment: noise must be a number of at least 0, got -1",
        ),
        (
            CLASSIFY,
            ["--batch_size=2", "--batch_size=3"],
            "batch_size is given twice",
        ),
        (
            CLASSIFY,
            ["--batch_size"],
            "batch_size must be a whole number .* None",
        ),
        (
            CLASSIFY,
            ["--batch_size=0", "--lr=-1"],
            "batch_size must be .* got 0; lr must be .* got -1",
        ),
        (
            CLASSIFY,
            ["--frozen_blocks=99"],
            "frozen_blocks must be a whole number from 0 to 6, got 99",
        ),
        (
            CLASSIFY,
            ["--freeze_encoder=True", "--lora_rank=4"],
            "choose one of freeze_encoder, frozen_blocks and lora_rank",
        ),
        (
            CLASSIFY,
            ["--mixup={probability: 3}"],
            "classify.yaml: mixup: probability must be a number from 0 to 1, "
            "got 3",
        ),
        (
            CLASSIFY,
            ["--opt_class={betas: [2, 1]}"],
            "opt_class: AdamW does not take .*: Invalid beta parameter",
        ),
        (
            CLASSIFY,
            ["--training=ssast_esc50_patch", "--schedule={factor: -3}"],
            "schedule: factor must be a number of at least 0, got -3",
        ),
        (
            PRETRAIN,
            ["--objective=m2d", "--mask_ratio=2"],
            "masker: mask ratio must be a number between 0 and 1, got 2",
        ),
        (
            PRETRAIN,
            ["--objective={task: x}"],
            "objective: task must be one of joint, .* got 'x'",
        ),
        # Options of a run.
        (CLASSIFY, ["--device=cpu"], None),
        (CLASSIFY, ["--device=tpu9"], "device must be a device that is there"),
        (CLASSIFY, ["--device=cuda:99"], "device must be .* got 'cuda:99'"),
        (CLASSIFY, ["--max_grad_norm=x"], "max_grad_norm: invalid float .*'x'"),
        (CLASSIFY, ["--precision=fp8"], "precision: invalid choice: 'fp8'"),
        (CLASSIFY, ["--ckpt_interval_steps=x"], "ckpt_interval_steps: .* 'x'"),
        (CLASSIFY, ["--distributed_backend=x"], "distributed_backend must be"),
        (CLASSIFY, ["--compile_mode=x"], "compile_mode must be one of"),
        (CLASSIFY, ["--debug_batches=0"], "debug_batches must be"),
        (CLASSIFY, ["--log_config=none.yaml"], "log_config must be a file"),
    ],
)
def test_the_line_says_what_is_allowed(yaml, flags, message):
    if message is None:
        load(yaml, *flags)
    else:
        with pytest.raises(SettingsError, match=message) as info:
            load(yaml, *flags)
        assert "\n" not in str(info.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as ended, exit_on_user_error():
        parse_arguments(flags_of(CLASSIFY, "--device=cuda"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "SettingsError: the command line: device must be a device that is "
        "there, such as cpu, got 'cuda'\n"
    )


def test_what_main_builds_is_told_in_one_line(capsys):
    """With a source, only the encoder itself tells how deep it is."""
    encoder = ssast_lobes.SpectrogramEncoder(dim=8, depth=2, heads=1)
    with pytest.raises(SystemExit), exit_on_user_error():
        ssast_lobes.SpectrogramClassifier(encoder, 2, frozen_blocks=3)
    assert capsys.readouterr().err == (
        "ArgumentError: frozen_blocks must be a whole number from 0 to 2, "
        "got 3\n"
    )


def cases(table):
    return [
        (name, argument, value)
        for name, arguments in table.items()
        for argument, values in arguments.items()
        for value in values
    ]


@pytest.mark.parametrize("name, argument, value", cases(CLASSES))
def test_constructors_check_their_arguments(name, argument, value):
    arguments = {**REQUIRED.get(name, {}), argument: value}
    with pytest.raises(ArgumentError):
        getattr(ssast_lobes, name)(**arguments)


@pytest.mark.parametrize("name, argument, value", cases(COSTS))
def test_losses_check_their_arguments(name, argument, value):
    with pytest.raises(ArgumentError, match=f"{argument} must be"):
        getattr(losses, name)(
            torch.zeros(2, 2), torch.eye(2), **{argument: value}
        )


def test_every_argument_of_these_classes_is_tried():
    for name, tried in CLASSES.items():
        signature = inspect.signature(getattr(ssast_lobes, name))
        left = set(signature.parameters) - set(tried)
        assert left <= {"grid", "table"}, name


def test_the_state_of_python_is_as_before():
    """A load that ends in an error leaves HyperPyYAML as it was."""
    before = torch.random.get_rng_state()
    assert told(CLASSIFY, "--stride=10")
    assert "ssast_lobes.utils.presets" in sys.modules
    load(CLASSIFY)
    with pytest.raises(SettingsError):
        parse_arguments(flags_of(CLASSIFY, "--pooling=max"))
    torch.random.set_rng_state(before)
    parse_arguments(flags_of(CLASSIFY))
    assert torch.equal(torch.random.get_rng_state(), before)
