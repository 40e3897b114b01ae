"""Hugging Face's folders in and out: exact, strict, the same scores there."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
import transformers
from safetensors.torch import load_file, save_file
from speechbrain.inference.classifiers import EncoderClassifier

from ssast_lobes import (
    SSAST,
    FrontEnd,
    Grid,
    SpectrogramClassifier,
    SpectrogramEncoder,
)
from ssast_lobes.checkpoints.folder import (
    export_classifier,
    export_pretrained,
    label_encoder_of,
)
from ssast_lobes.checkpoints.format import Weights, WeightsError
from ssast_lobes.checkpoints.huggingface import from_huggingface
from ssast_lobes.checkpoints.huggingface_export import to_huggingface
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.official import to_official
from ssast_lobes.checkpoints.warm_start import initialize
from ssast_lobes.cli import main
from ssast_lobes.inference import AudioClassifier, AudioEncoder
from ssast_lobes.objectives import MSPM

LABELS = ["cat", "dog", "say yes"]
STATISTICS = {"mean": -6.5, "std": 5.25}
LENGTH = 120
# Overlapping patches, the last frames of a clip in none: as AST.
GRID = Grid(64, (16, 16), (10, 10), keep_partial=False)
WHOLE = Grid(64, (16, 16), keep_partial=False)
PADDED = FrontEnd(STATISTICS, n_mels=64, pad_frames=LENGTH)
UNPADDED = FrontEnd(STATISTICS, n_mels=64)


def make_encoder(grid=GRID, frames=LENGTH, **arguments):
    return SpectrogramEncoder(
        grid, dim=64, depth=2, heads=2, table_frames=frames, **arguments
    )


def shaken(module):
    """A module whose every tensor matters, as after training."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def export(folder, features=PADDED, multi_label=False, encoder=None, **pooling):
    model = SpectrogramClassifier(
        make_encoder() if encoder is None else encoder,
        len(LABELS),
        **{"pooling": "class", **pooling},
    )
    labels = label_encoder_of(LABELS)
    shaken(model)
    return export_classifier(folder, model, features, labels, multi_label, {})


def export_encoder(folder, features=PADDED, encoder=None):
    encoder = make_encoder(WHOLE) if encoder is None else encoder
    objective = shaken(MSPM(encoder))
    return export_pretrained(folder, objective, features, card={})


def save_theirs(folder, classifier=True, **settings):
    """A folder that transformers itself has written."""
    config = transformers.ASTConfig(
        **{
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "num_mel_bins": 64,
            "max_length": LENGTH,
            "layer_norm_eps": 1e-6,
            "id2label": dict(enumerate(LABELS)),
            "label2id": {label: i for i, label in enumerate(LABELS)},
            **settings,
        }
    )
    kind = transformers.ASTForAudioClassification
    model = shaken((kind if classifier else transformers.ASTModel)(config))
    model.save_pretrained(folder)
    transformers.ASTFeatureExtractor(
        num_mel_bins=64, max_length=LENGTH, **STATISTICS
    ).save_pretrained(folder)
    return model


def in_names_of_5(key):
    for former, newer in (
        (r"encoder\.layer\.", "layers."),
        (r"attention\.attention\.(q|k|v)[a-z]+", r"attention.\1_proj"),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"(\d)\.intermediate\.dense", r"\1.mlp.fc1"),
        (r"(\d)\.output\.dense", r"\1.mlp.fc2"),
    ):
        key = re.sub(former, newer, key)
    return key


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def change_json(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def ours(tmp_path):
    return export(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path, ours):
    to_huggingface(load_weights(ours), tmp_path / "theirs")
    return tmp_path / "theirs"


# From one analysis window to more than Hugging Face looks at.
SECONDS = (0.025, 0.4, 1.0, 1.205, 1.21)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_pipeline_gives_our_scores(tmp_path, multi_label):
    ours = export(tmp_path / "ours", multi_label=multi_label)
    assert to_huggingface(load_weights(ours), tmp_path / "theirs") == []
    pipe = transformers.pipeline(
        "audio-classification", model=str(tmp_path / "theirs"), device="cpu"
    )
    function = "sigmoid" if multi_label else "softmax"
    classifiers = [
        AudioClassifier.from_hparams(folder)
        for folder in (ours, tmp_path / "theirs")
    ]
    seen = []
    for number, seconds in enumerate(SECONDS):
        path = tmp_path / f"{number}.wav"
        time = np.arange(round(16000 * seconds)) / 16000
        clip = 0.3 * np.sin(2 * np.pi * 300 * (1 + number) * time)
        clip += 0.05 * np.random.default_rng(number).standard_normal(len(time))
        soundfile.write(path, clip, 16000)
        wav, _ = soundfile.read(path, dtype="float32")
        features = pipe.feature_extractor(
            wav, sampling_rate=16000, return_tensors="pt"
        ).input_values
        found = pipe(wav, top_k=len(LABELS), function_to_apply=function)
        wanted = {entry["label"]: entry["score"] for entry in found}
        for classifier in classifiers:
            own, _ = classifier.lobe.features(torch.from_numpy(wav)[None])
            torch.testing.assert_close(own, features, atol=1e-4, rtol=0)
            result = classifier.classify_file(path)
            assert result.scores == pytest.approx(wanted, abs=1e-4)
            assert list(result.scores) == LABELS
        seen.append(list(wanted.values()))
    # The test would be empty if all clips got the same scores.
    assert np.std(seen, axis=0).min() > 1e-3


def test_speechbrain_gives_the_scores_of_reference_padding(tmp_path, ours):
    wav, lengths = torch.randn(2, 16000) / 9, torch.tensor([1.0, 0.4])
    theirs = EncoderClassifier.from_hparams(source=str(ours))
    log_probabilities, *_ = theirs.classify_batch(wav, lengths)
    results = AudioClassifier.from_hparams(ours).classify_batch(wav, lengths)
    scores = torch.tensor([list(x.scores.values()) for x in results])
    torch.testing.assert_close(
        log_probabilities.exp(), scores, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", ["classifier", "encoder"])
def test_out_and_in_is_exact(tmp_path, kind):
    make = export if kind == "classifier" else export_encoder
    before = load_weights(make(tmp_path / "ours"))
    to_huggingface(before, tmp_path / "theirs")
    after = load_weights(tmp_path / "theirs")
    state = {
        key: value
        for key, value in before.state.items()
        if not key.startswith("objective.")
    }
    assert_same(after.state, state)
    for key in ("kind", "encoder", "features", "window_seconds"):
        assert after.config[key] == before.config[key]
    for key in ("labels", "multi_label"):
        assert after.config.get(key) == before.config.get(key)
    assert after.report == []
    to_huggingface(after, tmp_path / "again")
    for name in ("config.json", "preprocessor_config.json"):
        text = (tmp_path / "theirs" / name).read_text()
        assert (tmp_path / "again" / name).read_text() == text
    assert_same(
        load_file(tmp_path / "again" / "model.safetensors"),
        load_file(tmp_path / "theirs" / "model.safetensors"),
    )


@pytest.mark.parametrize("names", ["4", "5"])
@pytest.mark.parametrize("classifier", [True, False])
def test_in_and_out_is_exact(tmp_path, names, classifier):
    first, second = tmp_path / "first", tmp_path / "second"
    save_theirs(first, classifier)
    # Copied: older safetensors look into the file, which is written again.
    wanted = load_file(first / "model.safetensors")
    wanted = {name: value.clone() for name, value in wanted.items()}
    if names == "5":
        change_tensors(
            first,
            lambda state: {in_names_of_5(x): y for x, y in state.items()},
        )
        assert load_file(first / "model.safetensors").keys() != wanted.keys()
    weights = from_huggingface(first)
    assert weights.config["kind"] == (
        "classifier" if classifier else "pretrained"
    )
    to_huggingface(weights, second)
    assert_same(load_file(second / "model.safetensors"), wanted)
    before, after = (
        {
            name: json.loads((folder / name).read_text())
            for name in ("config.json", "preprocessor_config.json")
        }
        for folder in (first, second)
    )
    assert (
        after["preprocessor_config.json"] == before["preprocessor_config.json"]
    )
    for key, value in after["config.json"].items():
        if key != "problem_type":
            assert before["config.json"].get(key, value) == value, key


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5,
    reason="names that transformers 5 brought",
)
def test_the_names_in_the_memory_of_transformers_5(tmp_path):
    model = save_theirs(tmp_path / "first")
    wanted = from_huggingface(tmp_path / "first").state
    model.save_pretrained(tmp_path / "second", save_original_format=False)
    shutil.copy(
        tmp_path / "first" / "preprocessor_config.json", tmp_path / "second"
    )
    keys = load_file(tmp_path / "second" / "model.safetensors")
    assert any(key.endswith("attention.q_proj.weight") for key in keys)
    assert_same(from_huggingface(tmp_path / "second").state, wanted)


@torch.no_grad()
def test_the_encoder_gives_the_same_tokens(tmp_path):
    weights = load_weights(export_encoder(tmp_path / "ours"))
    report = to_huggingface(weights, tmp_path / "theirs")
    assert any("pretraining objective" in line for line in report)
    assert any("class tokens" in line for line in report)
    model = transformers.AutoModel.from_pretrained(tmp_path / "theirs").eval()
    encoder = make_encoder(WHOLE).eval()
    initialize(encoder, weights)
    feats = torch.randn(2, LENGTH, 64)
    wanted = encoder(feats, torch.tensor([LENGTH, LENGTH]))
    found = model(feats)
    torch.testing.assert_close(
        found.last_hidden_state[:, 2:], wanted.tokens, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        found.pooler_output, wanted.clip("class"), atol=1e-5, rtol=0
    )


TABLES = {
    "another stride": {"grid": Grid(64, (16, 16), (8, 12)), "table": (4, 7)},
    "partial patches": {"grid": Grid(64, (16, 16), (10, 10))},
    "longer": {"frames": 200},
    "shorter": {"frames": 80},
}


@pytest.mark.parametrize("case", TABLES.values(), ids=TABLES)
def test_positions_are_fitted_to_another_length(tmp_path, case):
    """As our own encoder fits them to clips of that length."""
    encoder = make_encoder(**case)
    ours = export(tmp_path / "ours", UNPADDED, encoder=encoder)
    report = to_huggingface(load_weights(ours), tmp_path / "theirs", 96)
    assert sum("positions for" in line for line in report) == 1
    assert sum("pads or cuts every clip to 96" in line for line in report) == 1
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["max_length"] == 96
    # Both see the same: as many whole patches as 96 frames hold.
    stride = encoder.grid.stride[1]
    frames = (96 - 16) // stride * stride + 16
    feats = torch.randn(1, frames, 64)
    own = SpectrogramClassifier(encoder, len(LABELS), pooling="class").eval()
    model = transformers.AutoModelForAudioClassification.from_pretrained(
        tmp_path / "theirs"
    ).base_model.eval()
    padded = torch.nn.functional.pad(feats, (0, 0, 0, 96 - frames))
    with torch.no_grad():
        wanted = own.embed(feats, torch.tensor([frames]))
        found = model(padded).pooler_output
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_lobe_takes_clips_at_their_own_length(tmp_path, ours, theirs):
    one, other = SSAST(source=ours), SSAST(source=theirs)
    assert any("own lengths" in line for line in other.report)
    wav, lengths = torch.randn(2, 16000) / 9, torch.tensor([1.0, 0.4])
    with torch.no_grad():
        frames = one.eval()(wav, lengths)
        assert torch.equal(other.eval()(wav, lengths), frames)
        alone = other(wav[1:, :6400])
    # 98 frames; 38 of the other clip. The last part of a patch is kept.
    assert frames.shape == (2, 10, 64) and alone.shape == (1, 4, 64)
    torch.testing.assert_close(frames[1:, :4], alone, atol=1e-5, rtol=0)


def test_frames_end_with_the_audio_under_reference_padding(theirs):
    encoder = AudioEncoder.from_hparams(theirs)
    for samples in (6400, 16000, 50000):
        frames = encoder.encode_batch(torch.randn(samples), output="frames")
        assert frames.shape == (1, encoder.n_time(samples), 64)
        assert torch.isfinite(frames).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path, theirs, dtype):
    change_tensors(
        theirs, lambda state: {key: x.to(dtype) for key, x in state.items()}
    )
    state = load_weights(theirs).state
    assert all(value.dtype == torch.float32 for value in state.values())


def test_the_released_epsilon_is_reported(theirs):
    change_json(theirs, "config.json", layer_norm_eps=1e-12)
    assert load_weights(theirs).report == ["norms: epsilon 1e-06, not 1e-12"]
    wav = torch.randn(16000) / 9
    pipe = transformers.pipeline(
        "audio-classification", model=str(theirs), device="cpu"
    )
    wanted = {x["label"]: x["score"] for x in pipe(wav.numpy())}
    [found] = AudioClassifier.from_hparams(theirs).classify_batch(wav)
    assert found.scores == pytest.approx(wanted, abs=1e-4)


def without(key):
    return lambda state: {x: y for x, y in state.items() if x != key}


def with_value(key, value):
    return lambda state: {**state, key: value}


BASE = "audio_spectrogram_transformer."
TENSORS = {
    "a bias is lost": (
        without(f"{BASE}encoder.layer.1.attention.attention.key.bias"),
        rf"missing {BASE}encoder\.layer\.1\.attention\.attention\.key\.bias$",
    ),
    "the head is lost": (
        without("classifier.dense.weight"),
        r"missing classifier\.dense\.weight$",
    ),
    "a block more": (
        with_value(f"{BASE}encoder.layer.2.output.dense.bias", torch.zeros(64)),
        r"unexpected .*layer\.2\.output\.dense\.bias$",
    ),
    "no square patches": (
        with_value(
            f"{BASE}embeddings.patch_embeddings.projection.weight",
            torch.zeros(64, 1, 8, 32),
        ),
        r"projection\.weight is \(64, 1, 8, 32\), .* \(64, 1, 16, 16\)",
    ),
    "positions of another length": (
        with_value(
            f"{BASE}embeddings.position_embeddings", torch.zeros(1, 9, 64)
        ),
        r"position_embeddings is \(1, 9, 64\), .* \(1, 57, 64\)",
    ),
    "other classes": (
        with_value("classifier.dense.weight", torch.zeros(4, 64)),
        r"head: linear\.weight is \(4, 64\), the model has \(3, 64\)",
    ),
    "another width": (
        with_value(f"{BASE}layernorm.weight", torch.zeros(32)),
        r"encoder: norm\.weight is \(32,\), the model has \(64,\)",
    ),
}


@pytest.mark.parametrize("case", TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit_are_named(theirs, case):
    change, message = case
    change_tensors(theirs, change)
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(theirs)
    assert str(error.value).startswith(f"{theirs}: ")


SETTINGS = {
    "another model": ("config", {"model_type": "wav2vec2"}, "type 'wav2vec2'"),
    "another task": ("config", {"architectures": ["ASTForX"]}, "ASTForX"),
    "another activation": ("config", {"hidden_act": "relu"}, "hidden_act"),
    "no biases": ("config", {"qkv_bias": False}, "qkv_bias"),
    "coarse norms": ("config", {"layer_norm_eps": 1e-2}, "layer_norm_eps"),
    "raw features": ("front", {"do_normalize": False}, "do_normalize"),
    "two lengths": ("front", {"max_length": 99}, "max_length is 120 .* 99"),
    "labels twice": (
        "config",
        {"id2label": {"0": "a", "1": "a", "2": "b"}},
        r"labels must be unique, duplicates: \['a'\]",
    ),
    "a hole in the labels": ("config", {"id2label": {"7": "a"}}, "damaged"),
    "no spread": (
        "front",
        {"std": 0.0},
        "damaged .*std must be a number above 0",
    ),
    "no number": ("config", {"max_length": "long"}, "max_length|damaged"),
}
FILES = {"config": "config.json", "front": "preprocessor_config.json"}


@pytest.mark.parametrize("case", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_do_not_fit_are_named(theirs, case):
    file, changes, message = case
    change_json(theirs, FILES[file], **changes)
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(theirs)
    assert str(error.value).startswith(f"{theirs}: ")


@pytest.mark.parametrize("name", [*FILES.values(), "model.safetensors"])
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_files_that_do_not_load_are_named(theirs, name, how):
    path = theirs / name
    path.write_text("{") if how == "damaged" else path.unlink()
    with pytest.raises(WeightsError, match=re.escape(name)):
        from_huggingface(theirs)


def in_parts(folder, name, count):
    """Rewrite the weights in one file or several, as transformers did."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, ending = name.split(".")
    files = [name]
    if count > 1:
        files = [f"{stem}-{i}-of-{count}.{ending}" for i in range(count)]
    where = {key: files[i % count] for i, key in enumerate(state)}
    for file in files:
        part = {key: x for key, x in state.items() if where[key] == file}
        write = torch.save if ending == "bin" else save_file
        write(part, folder / file)
    if count > 1:
        index = json.dumps({"metadata": {}, "weight_map": where})
        (folder / f"{name}.index.json").write_text(index)
    return files


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_weights_in_other_files_are_read(theirs, name, count):
    expected = load_weights(theirs)
    in_parts(theirs, name, count)
    found = load_weights(theirs)
    assert_same(found.state, expected.state)
    assert found.config == expected.config
    wav = torch.randn(16000) / 9
    pipe = transformers.pipeline(
        "audio-classification", model=str(theirs), device="cpu"
    )
    wanted = {x["label"]: x["score"] for x in pipe(wav.numpy())}
    [found] = AudioClassifier.from_hparams(theirs).classify_batch(wav)
    assert found.scores == pytest.approx(wanted, abs=1e-4)


def test_safetensors_come_before_pickled_weights(theirs):
    expected = load_weights(theirs).state
    (theirs / "pytorch_model.bin").write_text("never looked at")
    assert_same(load_weights(theirs).state, expected)


def lose(folder, files):
    (folder / files[1]).unlink()
    return f"{files[1]}: missing or damaged"


def point_outside(folder, files):
    change_json(
        folder,
        "pytorch_model.bin.index.json",
        weight_map={"classifier.dense.bias": f"../{folder.name}/{files[0]}"},
    )
    return "index.json: names files outside of its folder"


def forget_the_map(folder, _):
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    return r"index.json: damaged .*weight_map"


def drop_from_the_map(folder, files):
    change_json(
        folder, "pytorch_model.bin.index.json", weight_map={"x": files[0]}
    )
    return "missing audio_spectrogram_transformer"


@pytest.mark.parametrize(
    "damage", [lose, point_outside, forget_the_map, drop_from_the_map]
)
def test_parts_that_do_not_fit_are_named(theirs, damage):
    files = in_parts(theirs, "pytorch_model.bin", 3)
    message = damage(theirs, files)
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(theirs)
    assert str(error.value).startswith(str(theirs))


def test_a_training_checkpoint_for_weights_is_told(theirs):
    state = load_file(theirs / "model.safetensors")
    (theirs / "model.safetensors").unlink()
    torch.save({"state_dict": state, "epoch": 3}, theirs / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="not tensors: state_dict, epoch;"):
        load_weights(theirs)


def mamba(weights):
    encoder = {**weights.config["encoder"], "blocks": "mamba"}
    return Weights(weights.state, {**weights.config, "encoder": encoder})


REFUSED = {
    "frame patches": (
        lambda folder: export(
            folder, encoder=make_encoder(Grid(64, (64, 2)), 120)
        ),
        r"64 mel bins x 2 frames.* square patches only, no frame models",
    ),
    "mean pooling": (
        lambda folder: export(folder, pooling="mean"),
        "sees the 'mean' pooling of the 'last' layers.* class tokens",
    ),
    "weighted layers": (
        lambda folder: export(folder, layers="weighted"),
        "the 'weighted' layers",
    ),
    "projection": (
        lambda folder: export(folder, projection=5),
        "head has a projection.* a layer norm",
    ),
    "cosines": (
        lambda folder: export(folder, cosine_scale=30.0),
        "head scores cosines",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_hugging_face_cannot_hold_is_refused(tmp_path, case):
    make, message = case
    weights = load_weights(make(tmp_path / "ours"))
    with pytest.raises(WeightsError, match=message):
        to_huggingface(weights, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_other_blocks_lengths_and_sources_are_refused(tmp_path, ours):
    weights = load_weights(ours)
    bare = Weights(weights.state, {"encoder": weights.config["encoder"]})
    for refused, length, message in (
        (mamba(weights), None, "blocks of kind 'mamba'"),
        (weights, 15, "max_length must be at least a patch, 16 frames, got 15"),
        (bare, None, "convert it to an exported folder first"),
    ):
        with pytest.raises(WeightsError, match=message):
            to_huggingface(refused, tmp_path / "theirs", length)
        assert not (tmp_path / "theirs").exists()


def test_only_a_hugging_face_folder_is_replaced(tmp_path, ours, theirs):
    weights = load_weights(ours)
    before = (ours / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match="not a Hugging"):
        to_huggingface(weights, ours)
    assert (ours / "config.json").read_bytes() == before
    (theirs / "notes.txt").write_text("mine")
    (theirs / "README.md").write_text("old")
    to_huggingface(weights, theirs)
    assert (theirs / "notes.txt").read_text() == "mine"
    assert (theirs / "README.md").read_text() != "old"
    assert not [path for path in tmp_path.iterdir() if ".partial" in path.name]


def test_another_hugging_face_model_is_not_replaced(tmp_path, ours, capsys):
    bert = tmp_path / "bert"
    bert.mkdir()
    files = {
        "config.json": b'{"model_type": "bert"}',
        "model.safetensors": b"x",
    }
    for name, content in files.items():
        (bert / name).write_bytes(content)
    assert run(ours, bert, "--to", "huggingface") == 2
    error = capsys.readouterr().err
    assert "not a Hugging Face model of type" in error
    assert {x.name: x.read_bytes() for x in bert.iterdir()} == files


def test_the_model_card_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wav = np.random.default_rng(0).standard_normal(8000).astype("float32") / 9
    to_huggingface(load_weights(export(tmp_path / "a")), tmp_path / "barks")
    to_huggingface(
        load_weights(export_encoder(tmp_path / "b")), tmp_path / "ear"
    )
    for name in ("barks", "ear"):
        card = (tmp_path / name / "README.md").read_text()
        [code] = re.findall(r"```python\n(.*?)```", card, re.S)
        known = {"wav": wav}
        exec(code, known)
    assert "'label': 'cat'" in capsys.readouterr().out
    assert known["tokens"].shape == (1, 2 + 4 * 7, 64)


def run(*words):
    return main(["convert", *map(str, words)])


def test_convert_there_and_back(tmp_path, ours, capsys):
    theirs, back = tmp_path / "theirs", tmp_path / "back"
    assert run(ours, theirs, "--to", "huggingface") == 0
    # A shell completes the name of a folder with a slash.
    assert run(f"{theirs}/", back) == 0
    assert "left out" not in capsys.readouterr().out
    assert_same(load_weights(back).state, load_weights(ours).state)
    former, config = (load_weights(x).config for x in (ours, back))
    assert config == former
    card = (back / "README.md").read_text()
    assert "`theirs`, a Hugging Face model" in card
    assert run(theirs, tmp_path / "several", "--multi-label") == 0
    assert load_weights(tmp_path / "several").config["multi_label"] is True


def test_convert_of_an_encoder_says_what_changes(tmp_path, capsys):
    encoder = make_encoder(Grid(64, (16, 16)))
    ours = export_encoder(tmp_path / "ours", UNPADDED, encoder)
    theirs = tmp_path / "theirs"
    words = ("--to", "huggingface", "--pad-frames", "64")
    assert run(ours, theirs, *words) == 0
    shown = capsys.readouterr().out
    for line in (
        "positions for 4 x 8 patches fitted to 4 x 4",
        "pads or cuts every clip to 64 frames (0.66 s)",
        "tensors of the pretraining objective",
    ):
        assert line in shown
    assert run(theirs, tmp_path / "back", "--multi-label") == 2
    assert "--multi-label would have no effect" in capsys.readouterr().err
    assert run(theirs, tmp_path / "back") == 0
    assert load_weights(tmp_path / "back").config["kind"] == "pretrained"


def test_official_ast_to_hugging_face_and_back(tmp_path, capsys):
    """AST's own geometry: 12 x 101 patches of 1024 frames, heads of 64."""
    encoder = SpectrogramEncoder(
        Grid(stride=(10, 10), keep_partial=False), dim=64, depth=1, heads=1
    )
    features = FrontEnd(pad_frames=1024)
    ours = export(tmp_path / "ours", features, encoder=encoder)
    state = to_official(load_weights(ours))
    assert state["module.v.pos_embed"].shape == (1, 2 + 12 * 101, 64)
    torch.save(state, tmp_path / "ast.pth")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    words = ("--pooling", "class", "--pad-frames", 1024)
    words += ("--labels", tmp_path / "labels.txt")
    assert run(tmp_path / "ast.pth", tmp_path / "export", *words) == 0
    assert run(tmp_path / "export", tmp_path / "hf", "--to", "huggingface") == 0
    capsys.readouterr()
    wav = torch.randn(24000) / 9
    pipe = transformers.pipeline(
        "audio-classification", model=str(tmp_path / "hf"), device="cpu"
    )
    wanted = {x["label"]: x["score"] for x in pipe(wav.numpy())}
    for folder in (ours, tmp_path / "export", tmp_path / "hf"):
        [found] = AudioClassifier.from_hparams(folder).classify_batch(wav)
        assert found.scores == pytest.approx(wanted, abs=1e-4)
    assert run(tmp_path / "hf", tmp_path / "back.pth") == 0
    assert_same(torch.load(tmp_path / "back.pth", weights_only=True), state)


MISTAKES = {
    "export again": (
        ("{ours}", "{new}"),
        "is an exported folder already; .* add --to huggingface",
    ),
    "hugging face again": (
        ("{theirs}", "{new}", "--to", "huggingface"),
        "is a Hugging Face folder already",
    ),
    "no folder": (
        ("{ours}", "{new}.pth", "--to", "huggingface"),
        r"--to huggingface writes a folder, .*new\.pth is not one",
    ),
    "no file": (
        ("{ours}", "{new}", "--to", "official"),
        r"--to official writes a file that ends in \.pth, .*new is not one",
    ),
    "a checkpoint at once": (
        ("{official}", "{new}", "--to", "huggingface"),
        "is no exported folder: make one of it first",
    ),
    "statistics of an export": (
        ("{ours}", "{new}", "--to", "huggingface", "--statistics", "esc50"),
        "is an exported folder: --statistics would have no effect",
    ),
    "labels of a folder": (
        ("{theirs}", "{new}", "--labels", "labels.txt"),
        "is a Hugging Face folder: --labels would have no effect",
    ),
    "padding of a file": (
        ("{theirs}", "{new}.pth", "--pad-frames", "9"),
        "is a Hugging Face folder: --pad-frames would have no effect",
    ),
    "an export there": (
        ("{ours}", "{ours}", "--to", "huggingface"),
        "not a Hugging Face model",
    ),
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_of_convert_are_told(tmp_path, ours, theirs, capsys, case):
    words, message = case
    encoder = SpectrogramEncoder(dim=64, depth=1, heads=1)
    source = export_encoder(tmp_path / "source", FrontEnd(), encoder)
    assert run(source, tmp_path / "official.pth") == 0
    places = {
        "ours": ours,
        "theirs": theirs,
        "official": tmp_path / "official.pth",
        "new": tmp_path / "new",
    }
    capsys.readouterr()
    assert run(*(word.format(**places) for word in words)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.pth").exists()
