"""Exported folders: complete, movable, strict, read by SpeechBrain alone."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from export_kit import (
    FEATURES,
    LABELS,
    PATCH,
    export,
    make_classifier,
    make_encoder,
)
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file, save_file
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.encoders import WaveformEncoder
from speechbrain.inference.speaker import SpeakerRecognition
from speechbrain.utils.fetching import FetchConfig, FetchFrom, FetchSource

import ssast_lobes
from ssast_lobes import FrontEnd, Grid, SpectrogramEncoder, SpectrogramLobe
from ssast_lobes.checkpoints.bundled import bundled_model
from ssast_lobes.checkpoints.folder import (
    check_export_folder,
    export_classifier,
    export_pretrained,
    label_encoder_of,
)
from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.hyperparams import hyperparams_text
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.model_card import read_card
from ssast_lobes.checkpoints.official import to_official
from ssast_lobes.checkpoints.warm_start import initialize
from ssast_lobes.inference import AudioClassifier, AudioEncoder
from ssast_lobes.objectives import MSPM, load_objective

FRAME = Grid(32, (32, 2))


def scores_of(model, wav, wav_lens):
    with torch.no_grad():
        return model(*FrontEnd(**FEATURES)(wav, wav_lens))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    return torch.randn(3, 16000) / 9, torch.tensor([1.0, 0.31, 0.6])


CASES = {
    "patch": {},
    "frame, class tokens": {"grid": FRAME, "pooling": "class"},
    "weighted layers": {"layers": "weighted"},
    "SUPERB's head": {"layers": "weighted", "projection": 5},
    "frozen blocks": {"frozen_blocks": 1},
    "lora": {"lora_rank": 2},
    "lora, weighted class tokens": {
        "grid": FRAME,
        "lora_rank": 2,
        "pooling": "class",
        "layers": "weighted",
    },
    "other stride than pretrained": {
        "grid": Grid(32, (8, 8), (5, 5)),
        "source_grid": PATCH,
    },
    "other mel bins than pretrained": {
        "grid": PATCH,
        "source_grid": Grid(40, (8, 8)),
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_speechbrain_and_we_classify_as_the_model(tmp_path, batch, case):
    model = make_classifier(**case)
    folder = export(tmp_path / "export", model)
    expected = scores_of(model, *batch).log_softmax(1)
    # The test would be empty if all clips got the same scores.
    assert expected.std(0).min() > 1e-3

    theirs = EncoderClassifier.from_hparams(source=str(folder))
    log_probabilities, _, index, labels = theirs.classify_batch(*batch)
    torch.testing.assert_close(log_probabilities, expected, atol=1e-5, rtol=0)
    assert labels == [LABELS[i] for i in expected.argmax(1)]
    assert index.tolist() == expected.argmax(1).tolist()

    ours = AudioClassifier.from_hparams(folder).classify_batch(*batch)
    logs = torch.tensor([list(x.scores.values()) for x in ours]).log()
    torch.testing.assert_close(logs, expected, atol=1e-5, rtol=0)
    assert [result.label for result in ours] == labels


def test_speechbrain_hears_a_file_of_another_rate_as_we_do(tmp_path):
    path = tmp_path / "stereo.wav"
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    soundfile.write(path, 0.1 * noise.numpy(), 8000)
    folder = export(tmp_path / "export", make_classifier())
    theirs = EncoderClassifier.from_hparams(source=str(folder))
    log_probabilities = theirs.classify_file(str(path))[0][0]
    ours = AudioClassifier.from_hparams(folder).classify_file(path)
    scores = torch.tensor(list(ours.scores.values()))
    torch.testing.assert_close(
        log_probabilities.exp(), scores, atol=1e-5, rtol=0
    )


# Of the exports here: windows of 128 frames that start every 64.
WINDOW, HOP = 127 * 160 + 400, 64 * 160
# The last samples that make no frame more make no window more.
ONE, TWO, THREE = WINDOW + 159, WINDOW + 160, WINDOW + 160 + HOP
LENGTHS = {
    "one window": [ONE],
    "two windows": [TWO],
    "three windows": [THREE],
    "seven windows": [WINDOW + 6 * HOP],
    "different lengths": [WINDOW + 4 * HOP + 1, 400, TWO, 9000, THREE, ONE],
}


def changing_noise(length):
    """Noise whose level changes, so that no two windows are alike."""
    time = torch.arange(length) / 16000
    return torch.randn(length) / 9 * (0.01 + (2 * time).sin().abs())


def padded(lengths):
    """Return clips of some lengths as a batch with noise at the padding."""
    wavs = torch.full((len(lengths), max(lengths)), 0.7)
    for wav, length in zip(wavs, lengths, strict=True):
        wav[:length] = changing_noise(length)
    return wavs, torch.tensor(lengths) / max(lengths)


def probabilities_of(results):
    return torch.tensor([list(result.scores.values()) for result in results])


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_speechbrain_and_we_agree_at_any_length(tmp_path, lengths, multi_label):
    folder = export(tmp_path / "export", make_classifier(), multi_label)
    batch = padded(lengths)
    theirs = EncoderClassifier.from_hparams(source=str(folder))
    log_probabilities, score, index, labels = theirs.classify_batch(*batch)
    ours = AudioClassifier.from_hparams(folder).classify_batch(*batch)
    expected = probabilities_of(ours)
    for found in (log_probabilities, theirs(*batch)[0]):
        torch.testing.assert_close(found.exp(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        score.exp(), expected.max(1).values, atol=1e-5, rtol=0
    )
    assert index.tolist() == expected.argmax(1).tolist()
    assert labels == [LABELS[i] for i in expected.argmax(1)]
    for result in ours:
        if len(result.windows) > 1:
            assert probabilities_of(result.windows).std(0).max() > 1e-3


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("seconds", [1.3, 1.31, 4.0])
def test_speechbrain_and_we_agree_on_files(tmp_path, seconds, rate):
    path = tmp_path / "stereo.wav"
    wav = changing_noise(2 * round(seconds * rate)).reshape(-1, 2)
    soundfile.write(path, wav.numpy(), rate)
    folder = export(tmp_path / "export", make_classifier())
    theirs = EncoderClassifier.from_hparams(source=str(folder))
    log_probabilities, _, _, [label] = theirs.classify_file(str(path))
    ours = AudioClassifier.from_hparams(folder).classify_file(path)
    torch.testing.assert_close(
        log_probabilities.exp(), probabilities_of([ours]), atol=1e-5, rtol=0
    )
    assert label == ours.label


@pytest.mark.parametrize("kind", ["classifier", "pretrained"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_embeddings_agree_at_any_length(tmp_path, pretrained, lengths, kind):
    folder = pretrained[1]
    if kind == "classifier":
        folder = export(tmp_path / "export", make_classifier())
    batch = padded(lengths)
    theirs = SpeakerRecognition.from_hparams(source=str(folder))
    found = theirs.encode_batch(*batch)
    ours = AudioEncoder.from_hparams(folder).encode_batch(*batch)
    torch.testing.assert_close(found[:, 0], ours, atol=1e-5, rtol=0)
    torch.save(found, tmp_path / "embeddings.pt")
    again = torch.load(tmp_path / "embeddings.pt", weights_only=True)
    assert torch.equal(again, found)


def test_embedding_for_speechbrain_has_a_time_axis(tmp_path, batch):
    folder = export(tmp_path / "export", make_classifier())
    theirs = EncoderClassifier.from_hparams(source=str(folder))
    embeddings = theirs.encode_batch(*batch)
    assert embeddings.shape == (3, 1, 32)
    ours = AudioEncoder.from_hparams(folder).encode_batch(*batch)
    torch.testing.assert_close(embeddings[:, 0], ours, atol=1e-5, rtol=0)


def test_multi_label_gives_speechbrain_log_sigmoid(tmp_path, batch):
    model = make_classifier()
    folder = export(tmp_path / "export", model, multi_label=True)
    expected = scores_of(model, *batch)
    theirs = EncoderClassifier.from_hparams(source=str(folder))
    logs = theirs.classify_batch(*batch)[0]
    torch.testing.assert_close(
        logs, torch.nn.functional.logsigmoid(expected), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("savedir", ["elsewhere", "export", None])
def test_moved_folder_loads_with_and_without_savedir(
    tmp_path, monkeypatch, batch, savedir
):
    model = make_classifier()
    export(tmp_path / "first", model)
    (tmp_path / "away").mkdir()
    shutil.move(tmp_path / "first", tmp_path / "away" / "export")
    monkeypatch.chdir(tmp_path / "away")
    theirs = EncoderClassifier.from_hparams(source="export", savedir=savedir)
    expected = scores_of(model, *batch).log_softmax(1)
    logs = theirs.classify_batch(*batch)[0]
    torch.testing.assert_close(logs, expected, atol=1e-5, rtol=0)
    assert AudioClassifier.from_hparams("export").labels == LABELS


def hub_cache(cache, folder):
    """Lay a folder out as the cache of a model hub does."""
    model = cache / "models--someone--a-model"
    shutil.copytree(folder, model / "snapshots" / ("0" * 40))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)
    return FetchConfig(huggingface_cache_dir=str(cache), allow_network=False)


@pytest.mark.parametrize("savedir", ["saved", None])
@pytest.mark.parametrize(
    "source",
    [
        "someone/a-model",
        FetchSource(FetchFrom.HUGGING_FACE, "someone/a-model"),
    ],
    ids=["name", "FetchSource"],
)
def test_speechbrain_loads_from_a_hub(tmp_path, batch, source, savedir):
    model = make_classifier()
    config = hub_cache(tmp_path / "cache", export(tmp_path / "export", model))
    theirs = EncoderClassifier.from_hparams(
        source=source,
        savedir=savedir and tmp_path / savedir,
        fetch_config=config,
    )
    expected = scores_of(model, *batch).log_softmax(1)
    logs = theirs.classify_batch(*batch)[0]
    torch.testing.assert_close(logs, expected, atol=1e-5, rtol=0)


@pytest.fixture
def pretrained(tmp_path):
    objective = MSPM(make_encoder()).eval()
    features = FrontEnd(**FEATURES)
    folder = tmp_path / "pretrained"
    return objective, export_pretrained(folder, objective, features, card={})


def test_yaml_builds_models_by_public_names(tmp_path, pretrained):
    classifier = export(tmp_path / "export", make_classifier())
    public = "|".join(dir(ssast_lobes))
    allowed = r"!ref|!name:ssast_lobes\.(load_modules|load_labels|to_mono)"
    allowed += rf"|!new:(ssast_lobes\.({public})|(speechbrain|torch)\.[\w.]+)"
    for folder in (classifier, pretrained[1], bundled_model()):
        text = (folder / "hyperparams.yaml").read_text()
        tags = set(re.findall(r"!\S+", text))
        wrong = {tag for tag in tags if not re.fullmatch(allowed, tag)}
        assert tags and not wrong, wrong
        assert str(tmp_path) not in text


def test_bundled_model_is_as_exports_are_written():
    text = (bundled_model() / "hyperparams.yaml").read_text()
    config = json.loads((bundled_model() / "config.json").read_text())
    assert text == hyperparams_text(config)


def test_speechbrain_encodes_with_the_bundled_model(batch):
    ours = AudioEncoder.from_hparams().encode_batch(*batch)
    for interface in (EncoderClassifier, SpeakerRecognition):
        theirs = interface.from_hparams(source=str(bundled_model()))
        clip = theirs.encode_batch(*batch)[:, 0]
        torch.testing.assert_close(clip, ours, atol=1e-5, rtol=1e-5)


def test_pretrained_export_brings_back_the_objective(pretrained):
    objective, folder = pretrained
    fresh = MSPM(make_encoder())
    initialize(fresh.encoder, load_weights(folder), fresh)
    for key, value in objective.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key
    config = json.loads((folder / "config.json").read_text())
    assert config["kind"] == "pretrained"
    assert config["objective"] == {"name": "MSPM", **objective.config}
    # 127 hops of 160 samples and one window of 400.
    assert config["window_seconds"] == (127 * 160 + 400) / 16000


@pytest.mark.parametrize("trained, window", [(0.5, 1.295), (3.0, 3.0)])
def test_windows_are_as_long_as_what_was_trained_on(tmp_path, trained, window):
    features = FrontEnd(**FEATURES)
    folders = [
        export_pretrained(
            tmp_path / "pretrained",
            MSPM(make_encoder()),
            features,
            card={},
            least_window=trained,
        ),
        export_classifier(
            tmp_path / "classifier",
            make_classifier(),
            features,
            label_encoder_of(LABELS),
            False,
            card={},
            least_window=trained,
        ),
    ]
    for folder in folders:
        assert load_weights(folder).config["window_seconds"] == window


def test_speechbrain_encodes_with_pretrained_export(pretrained, batch):
    objective, folder = pretrained
    features = FrontEnd(**FEATURES)
    with torch.no_grad():
        encoded = objective.encoder(*features(*batch))
    clips = SpeakerRecognition.from_hparams(source=str(folder))
    clip = clips.encode_batch(*batch)[:, 0]
    torch.testing.assert_close(clip, encoded.clip(), atol=1e-5, rtol=0)
    frames = WaveformEncoder.from_hparams(source=str(folder))
    frames = frames.encode_batch(*batch)
    torch.testing.assert_close(frames, encoded.frames, atol=1e-5, rtol=0)


def test_lobe_of_export(pretrained, batch):
    objective, folder = pretrained
    lobe = SpectrogramLobe.from_export(folder, output="patches", freeze=True)
    with torch.no_grad():
        expected = objective.encoder(*FrontEnd(**FEATURES)(*batch)).patches
    torch.testing.assert_close(lobe(*batch), expected, atol=1e-5, rtol=0)


def test_only_heads_of_the_official_size_go_to_its_layout(pretrained):
    _, folder = pretrained
    with pytest.raises(WeightsError, match="2 heads for 32"):
        to_official(load_weights(folder))


def tamper(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def delete_block(state):
    for key in [key for key in state if key.startswith("encoder.blocks.1.")]:
        del state[key]


DAMAGE = {
    "a block deleted": delete_block,
    "no positions": lambda state: state.pop("encoder.positions.table"),
    "no head": lambda state: state.pop("head.linear.bias"),
    "one more": lambda state: state.update(
        {"encoder.blocks.2.norm1.bias": torch.zeros(32)}
    ),
    "unknown part": lambda state: state.update(extra=torch.zeros(1)),
    "other shape": lambda state: state.update(
        {"head.linear.weight": torch.zeros(4, 32)}
    ),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_wrong_weights_raise(tmp_path, change):
    folder = export(tmp_path / "export", make_classifier())
    tamper(folder, change)
    for load in (
        lambda: EncoderClassifier.from_hparams(source=str(folder)),
        lambda: AudioClassifier.from_hparams(folder),
    ):
        with pytest.raises(WeightsError, match="export/model.safetensors"):
            load()


def test_training_cannot_go_on_from_damaged_weights(pretrained):
    _, folder = pretrained
    tamper(folder, DAMAGE["no positions"])
    with pytest.raises(WeightsError, match="missing positions.table"):
        initialize(make_encoder(), load_weights(folder))


def truncate(path):
    os.truncate(path, path.stat().st_size - 4)


@pytest.mark.parametrize("damage", [truncate, os.remove])
@pytest.mark.parametrize("name", ["model.safetensors", "label_encoder.txt"])
def test_damaged_or_missing_files_raise(tmp_path, damage, name):
    folder = export(tmp_path / "export", make_classifier())
    damage(folder / name)
    with pytest.raises(WeightsError, match=f"export/{name}"):
        EncoderClassifier.from_hparams(source=str(folder))
    if name == "model.safetensors":
        with pytest.raises(WeightsError, match="export.*model.safetensors"):
            AudioClassifier.from_hparams(folder)


def test_damaged_weights_raise_through_savedir_too(tmp_path):
    folder = export(tmp_path / "export", make_classifier())
    tamper(folder, delete_block)
    with pytest.raises(WeightsError, match="encoder: missing blocks.1"):
        EncoderClassifier.from_hparams(
            source=str(folder), savedir=str(tmp_path / "saved")
        )


def test_export_replaces_an_older_one_and_keeps_the_rest(tmp_path):
    folder = tmp_path / "export"
    export(folder, make_classifier())
    (folder / "notes.txt").write_text("mine")
    objective = MSPM(make_encoder(FRAME))
    export_pretrained(folder, objective, FrontEnd(**FEATURES), card={})
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "hyperparams.yaml",
        "model.safetensors",
        "notes.txt",
    ]
    assert AudioEncoder.from_hparams(folder).lobe.encoder.grid == FRAME
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


class Unprintable:
    """A value whose printing fails half-way."""

    def __str__(self):
        raise RuntimeError("half-way")


def test_failed_export_leaves_the_older_one(tmp_path, batch):
    folder = tmp_path / "export"
    export(folder, make_classifier())
    before = AudioClassifier.from_hparams(folder).classify_batch(*batch)
    with pytest.raises(RuntimeError, match="half-way"):
        export(folder, make_classifier(), card={"data": Unprintable()})
    after = AudioClassifier.from_hparams(folder).classify_batch(*batch)
    assert [x.scores for x in before] == [x.scores for x in after]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_export_after_a_kill_between_renames(tmp_path):
    folder = export(tmp_path / "export", make_classifier())
    (folder / "notes.txt").write_text("mine")
    folder.rename(tmp_path / ".export.old")
    (tmp_path / ".export.partial").mkdir()
    export(folder, make_classifier())
    assert (folder / "notes.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_export_after_a_kill_behind_the_renames(tmp_path):
    folder = export(tmp_path / "export", make_classifier())
    (folder / "notes.txt").write_text("mine")
    # The new folder is in place, but the notes are still in the old one.
    folder.rename(tmp_path / ".export.old")
    export(tmp_path / "new", make_classifier()).rename(folder)
    export(folder, make_classifier())
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_export_never_replaces_something_else(tmp_path, kind):
    target = tmp_path / "thesis"
    if kind == "folder":
        target.mkdir()
        (target / "README.md").write_text("my thesis")
    else:
        target.write_text("my thesis")
    with pytest.raises(FileExistsError, match="thesis"):
        check_export_folder(target)
    with pytest.raises(FileExistsError, match="thesis"):
        export(target, make_classifier())
    kept = target / "README.md" if kind == "folder" else target
    assert kept.read_text() == "my thesis"


def test_export_never_replaces_a_model_of_another_library(tmp_path):
    """Those of Hugging Face have files of the same names."""
    export(tmp_path, make_classifier())
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FileExistsError, match="not an exported folder"):
        export(tmp_path, make_classifier())
    assert (tmp_path / "config.json").read_text() == '{"model_type": "bert"}'


def test_heads_of_older_weights_are_removed_and_named(tmp_path, caplog):
    folder = export(tmp_path / "export", make_classifier())
    (folder / "heads").mkdir()
    (folder / "heads" / "pets.safetensors").touch()
    export(folder, make_classifier())
    assert not (folder / "heads").exists()
    assert f"{folder / 'heads'} is removed" in caplog.text


def test_new_empty_and_older_exports_may_be_written(tmp_path):
    folder = tmp_path / "export"
    check_export_folder(folder)
    assert not folder.exists()
    folder.mkdir()
    check_export_folder(folder)
    export(folder, make_classifier())
    (folder / "notes.txt").write_text("mine")
    check_export_folder(str(folder))


def test_labels_must_be_those_of_the_head(tmp_path):
    with pytest.raises(WeightsError, match="head.*linear.weight"):
        export_classifier(
            tmp_path / "export",
            make_classifier(),
            FrontEnd(**FEATURES),
            label_encoder_of(["one", "two"]),
            False,
            card={},
        )
    assert list(tmp_path.iterdir()) == []


def test_files_may_be_read_by_others(tmp_path):
    before = os.umask(0o022)
    try:
        folder = export(tmp_path / "export", make_classifier())
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o644, path.name


CARD = {
    "recipe": "CustomData/classify",
    "data": "24 clips",
    "settings": {"lr": 1e-4, "augment": {"mixup": 0.5}, "split": "a|b"},
    "metrics": {"accuracy": 0.875},
}


def blocks(card, language):
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


@pytest.mark.parametrize("kind", ["classifier", "pretrained"])
def test_model_card_runs_as_printed(tmp_path, monkeypatch, pretrained, kind):
    folder = pretrained[1]
    if kind == "classifier":
        folder = export(tmp_path / "my_model", make_classifier(), card=CARD)
    monkeypatch.chdir(tmp_path)
    soundfile.write("audio.wav", torch.randn(16000).numpy() / 9, 16000)
    text = (folder / "README.md").read_text()
    python = blocks(text, "python")
    assert len(python) == 2
    for block in python:
        exec(block, {})
    (yaml,) = blocks(text, "yaml")
    lobe = load_hyperpyyaml(yaml)["ssl_model"]
    assert lobe(torch.randn(1, 16000)).shape[2] == 32


def test_model_card_tells_what_it_is(tmp_path):
    folder = export(tmp_path / "my_model", make_classifier(), card=CARD)
    text = (folder / "README.md").read_text()
    for line in (
        "library_name: speechbrain",
        "# my_model",
        "CustomData/classify",
        "| lr | 0.0001 |",
        "| augment.mixup | 0.5 |",
        "| split | a\\|b |",
        "| accuracy | 0.875 |",
    ):
        assert line in text.splitlines()
    assert "AAAI" not in text
    assert "the mean of its tokens after the last layer" in text
    assert "one of 3 labels: it's, a=b" in text
    assert Path(folder).name in text


def test_model_card_tells_what_chance_gives(tmp_path):
    metrics = {"uar": 0.75, "accuracy": 0.875, "accuracy_chance": 0.5}
    front = {"license": "mit", "base_model": "me/barks"}
    card = {**CARD, **front, "metrics": metrics}
    text = export(tmp_path / "my_model", make_classifier(), card=card)
    text = (text / "README.md").read_text()
    rows = "| name | value | chance |", "| uar | 0.75 |  |"
    for line in (*rows, "| accuracy | 0.875 | 0.5 |"):
        assert line in text.splitlines()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head.items() >= {**front, "metrics": ["uar", "accuracy"]}.items()
    assert "## License" not in text


def test_model_card_names_the_objective_and_its_paper(tmp_path):
    class Mine(MSPM):
        paper = None

    encoder = {"grid": {"n_mels": 32}, "dim": 32, "depth": 1, "heads": 2}
    told = {}
    for build in (load_objective("m2d"), Mine):
        objective = build(SpectrogramEncoder(**encoder))
        # What it began from does not count.
        card = {"pretraining": "another one"}
        folder = tmp_path / "export"
        export_pretrained(folder, objective, FrontEnd(n_mels=32), card)
        text = (folder / "README.md").read_text()
        told[build] = read_card(folder)["Pretraining"]
        assert "another one" not in text and "AAAI" not in text
    m2d, mine = told.values()
    assert m2d.startswith("M2D: masked modeling duo (Niizumi et al., ")
    assert mine == f"{__name__}.Mine"


# No line of the project names a folder of a person.
HOMES = Path("/", "home")


@pytest.mark.parametrize(
    "path, name",
    [
        (f"{HOMES}/ann/My data/barks.csv", "barks.csv"),
        ("/tmp/tmpx1/runs/first/export", "first/export"),
        (f"{HOMES}/ann/export/", "export"),
        (f"{HOMES}/ann", "~"),
        ("~/runs/first/export", "first/export"),
        ("C:\\Users\\ann\\clips", "clips"),
        ("../shared/barks.csv", "../shared/barks.csv"),
        ("https://example.org/a/b.csv", "https://example.org/a/b.csv"),
    ],
)
def test_model_card_tells_no_private_path(tmp_path, path, name):
    card = {
        "data": f"{path}: 3 training clips",
        "recipe": f"python train.py --audio='[{path}, {path}]' --a={path}",
        "settings": {"source": path, "several": [path], "half": "1/2 a / b"},
    }
    folder = export(tmp_path / "my_model", make_classifier(), card=card)
    text = (folder / "README.md").read_text().partition("## Use")[0]
    assert "ann" not in text.replace("channel", "") and "tmp" not in text
    assert f"| source | {name} |" in text or "My data" in path
    assert "| half | 1/2 a / b |" in text
    assert str(tmp_path) not in text
