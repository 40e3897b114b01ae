"""Linear heads, and the bundled model: small, found, and as measured."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score

from ssast_lobes import SSAST, FrontEnd, Grid, SpectrogramEncoder
from ssast_lobes.checkpoints import bundled as bundled_models
from ssast_lobes.checkpoints.bundled import BUNDLED, bundled_model
from ssast_lobes.checkpoints.folder import export_pretrained
from ssast_lobes.checkpoints.format import CARD_FILE, WeightsError
from ssast_lobes.checkpoints.linear_heads import (
    LinearHead,
    head_names,
    read_head,
    write_head,
)
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.cli import main
from ssast_lobes.evaluation.probing import (
    logistic_regression,
    read_task,
    train_heads,
)
from ssast_lobes.evaluation.probing.classifiers import linear_weights
from ssast_lobes.evaluation.probing.embeddings import PooledEncoder
from ssast_lobes.inference import AudioClassifier, AudioEncoder
from ssast_lobes.inference.deployment import DeployedModel
from ssast_lobes.models.pooling import ClipPooling
from ssast_lobes.objectives import MSPM
from ssast_lobes.training import load_pretrained

MEBIBYTE = 2**20
LICENSES = "- tones: made here, CC0"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A small encoder with a card of its own."""
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        Grid(32, (32, 4)), dim=32, depth=2, heads=2, table_frames=200
    )
    folder = tmp_path_factory.mktemp("model") / "export"
    card = {"data": "tones: 12 clips", "settings": {"lr": 0.1}}
    return export_pretrained(folder, MSPM(encoder), FrontEnd(n_mels=32), card)


@pytest.fixture(scope="module")
def tasks(tones):
    return [
        read_task(tones.manifest, "sounds"),
        read_task(tones.manifest, "kinds", metric="uar"),
    ]


@pytest.fixture(scope="module")
def with_heads(pretrained, tasks, tmp_path_factory):
    """What stands in for the bundled model, and its scores."""
    folder = tmp_path_factory.mktemp("bundled") / "small"
    return folder, train_heads(pretrained, tasks, folder, LICENSES)


@pytest.fixture
def bundled(with_heads, monkeypatch):
    monkeypatch.setattr(bundled_models, "BUNDLED", with_heads[0].parent)


def test_home_folder(with_heads, monkeypatch):
    folder = with_heads[0]
    monkeypatch.setenv("HOME", str(folder.parent))
    short = f"~/{folder.name}"
    assert head_names(short) == head_names(folder) == ["kinds", "sounds"]
    assert AudioClassifier(short, task="kinds").labels


def test_encoder_is_stored_in_half_precision_and_read_in_full(
    pretrained, with_heads
):
    folder, _ = with_heads
    before, after = load_weights(pretrained), load_weights(folder)
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    encoder = before.part("encoder")
    assert after.part("encoder").keys() == encoder.keys()
    assert len(after.state) == len(encoder)
    for name, value in after.part("encoder").items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, encoder[name].half().float())
    for key in ("encoder", "features", "window_seconds"):
        assert after.config[key] == before.config[key]


def test_heads_do_in_use_what_was_measured(with_heads, tasks):
    folder, scores = with_heads
    assert head_names(folder) == ["kinds", "sounds"]
    task = tasks[0]
    classifier = AudioClassifier.from_hparams(folder, task="sounds")
    assert classifier.labels == task.labels == ["chirp", "noise", "tone"]
    results = classifier.classify_files(task.paths("test"))
    predicted = [task.labels.index(result.label) for result in results]
    valid, test, vectors = scores["sounds"]
    assert accuracy_score(task.targets("test"), predicted) == test
    assert 0 <= valid <= 1
    chosen = read_head(folder, "sounds")
    assert vectors.startswith(chosen.pooling)
    assert f"| sounds | {vectors} |" in (folder / "README.md").read_text()
    for result in results:
        assert sum(result.scores.values()) == pytest.approx(1, abs=1e-5)
    # On clips that it was trained on a linear head of 32 numbers is better.
    seen = classifier.classify_files(task.paths("train"))
    predicted = [task.labels.index(result.label) for result in seen]
    assert accuracy_score(task.targets("train"), predicted) > 0.6


def test_clips_of_several_windows_are_scored_as_their_mean_vector(
    tones, tasks, tmp_path
):
    torch.manual_seed(0)
    # 0.4 s of table: most clips are cut into windows.
    encoder = SpectrogramEncoder(
        Grid(32, (32, 4)), dim=32, depth=2, heads=2, table_frames=40
    )
    model = export_pretrained(
        tmp_path / "export", MSPM(encoder), FrontEnd(n_mels=32), {}
    )
    folder = tmp_path / "with_heads"
    pooling = {"pooling": "statistics", "layers": "all"}
    measured = train_heads(model, tasks[:1], folder, **pooling)["sounds"].test
    test = tasks[0].paths("test")
    classifier = AudioClassifier.from_hparams(folder, task="sounds")
    results = classifier.classify_files(test)
    assert any(len(result.windows) > 1 for result in results)
    predicted = [tasks[0].labels.index(result.label) for result in results]
    assert accuracy_score(tasks[0].targets("test"), predicted) == measured

    encoder, head = AudioEncoder(folder), read_head(folder, "sounds")
    write_head(
        folder, "own", head._replace(**pooling, weight=torch.randn(3, 192))
    )
    classifier = AudioClassifier.from_hparams(folder, task="own")
    head = read_head(folder, "own")
    for path in test:
        clip = encoder.encode_file(path)
        assert clip.shape == (192,) and encoder.clip_size == 192
        expected = (head.weight @ clip + head.bias).softmax(0)
        result = classifier.classify_file(path)
        found = torch.tensor([result.scores[label] for label in head.labels])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        for window in result.windows:
            assert sum(window.scores.values()) == pytest.approx(1, abs=1e-5)


def test_heads_know_the_length_of_their_clips(with_heads, tasks):
    folder, _ = with_heads
    longest = max(soundfile.info(path).duration for path in tasks[0].paths())
    head = read_head(folder, "sounds")
    assert longest <= head.seconds < longest + 0.0101
    classifier = AudioClassifier.from_hparams(folder, task="sounds")
    assert classifier.fitted_seconds == head.seconds
    # None of its clips is long.
    results = classifier.classify_files(tasks[0].paths())
    assert all(len(result.windows) == 1 for result in results)
    assert max(r.seconds for r in results) <= classifier.fitted_seconds


def test_long_recordings_are_cut_as_the_head_was_fitted(
    with_heads, tmp_path, capsys
):
    folder, words = with_heads[0], ["classify", "--task", "sounds"]
    seconds = read_head(folder, "sounds").seconds
    path = tmp_path / "long.wav"
    noise = np.random.default_rng(0).standard_normal(16000 * 5) / 9
    soundfile.write(path, noise, 16000)
    soundfile.write(tmp_path / "short.wav", noise[:16000], 16000)
    words += [str(folder), str(path), str(tmp_path / "short.wav")]
    assert main([*words, "--windows"]) == 0
    shown = capsys.readouterr()
    assert f"1 of 2 files longer than the {seconds:g} s that" in shown.err
    assert f"cut into windows of {seconds:g} s" in shown.err
    [_, *lines] = [line.split() for line in shown.out.splitlines()]
    spans = [tuple(map(float, line[2:4])) for line in lines[:-1]]
    assert len(spans) > 5 and spans[-1][1] == 5.0
    for start, end in spans[:-1]:
        assert end - start == pytest.approx(seconds, abs=0.011)
    # Whoever knows better says so.
    words += ["--window-seconds", "0.5", "--hop-seconds", "0.5"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "cut into windows of 0.5 s" in shown.err
    assert len(shown.out.splitlines()) == 3
    _, *lines = shown.out.splitlines()
    least = sum(float(line.split()[1]) for line in lines) / 2
    assert main([*words, "--min-score", str(least)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main([*words[:4], str(tmp_path / "short.wav")]) == 0
    assert "longer" not in capsys.readouterr().err


def test_a_head_that_does_not_know_its_clips_takes_all_the_model_does(
    with_heads, tmp_path
):
    shutil.copytree(with_heads[0], tmp_path / "older")
    head = read_head(tmp_path / "older", "sounds")
    path = tmp_path / "older" / "heads" / "sounds.safetensors"
    plain = {"labels": head.labels, "pooling": head.pooling}
    tensors = {"weight": head.weight, "bias": head.bias}
    # As it was written before heads had `seconds`.
    metadata = {"head": json.dumps({**plain, "layers": head.layers})}
    save_file(tensors, path, metadata)
    assert read_head(tmp_path / "older", "sounds").seconds is None
    classifier = AudioClassifier(tmp_path / "older", task="sounds")
    window = load_weights(tmp_path / "older").config["window_seconds"]
    assert classifier.window_seconds == classifier.fitted_seconds == window
    with pytest.raises(ValueError, match="'pets/small' cannot be the name"):
        write_head(tmp_path / "older", "pets/small", head)
    write_head(tmp_path / "older", "sounds", head._replace(seconds=-1.0))
    with pytest.raises(WeightsError, match="damaged.*clips of -1.0 s"):
        read_head(tmp_path / "older", "sounds")


def test_weights_of_a_head_are_those_of_the_regression():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = 50 + 3 * torch.randn(60, 8, generator=generator)
    x[:, :3] += 4 * torch.eye(3)[y]
    x[:, 7] = 2.0
    weight, bias = linear_weights(x, y, 3, penalty=0.1)
    assert weight.shape == (3, 8) and not weight[:, 7].any()
    fit = logistic_regression(x, y, x, y, x, penalties=[0.1])
    found = (x.double() @ weight.T + bias).argmax(1)
    assert torch.equal(found, fit.predictions)
    with pytest.raises(ValueError, match="not finite"):
        linear_weights(x / 0, y, 3, penalty=0.1)


def test_card_tells_of_training_heads_and_licenses(with_heads):
    folder, scores = with_heads
    text = (folder / CARD_FILE).read_text()
    assert "## Licenses of the training audio\n\n- tones: made here" in text
    assert "## Data\n\ntones: 12 clips\n" in text
    assert "| lr | 0.1 |" in text
    assert "| name | value | chance |" in text
    assert f"| sounds (accuracy) | {scores['sounds'][1]:.6g} | 0." in text
    assert text.count("## Use\n") == text.count("## Settings\n") == 1


def test_a_copy_of_the_bundled_model_has_its_own_heads(tasks, tmp_path):
    """The card, too, has no heads of the model that was copied."""
    folder = tmp_path / "copy"
    train_heads(
        bundled_model(), tasks[:1], folder, pooling="mean", layers="last"
    )
    text = (folder / CARD_FILE).read_text()
    assert text.count("## Linear heads on test") == 1
    assert "keywords (accuracy)" not in text and "frame_heads" not in text
    # The only head needs no name.
    path = tasks[0].paths("test")[0]
    one, named = (
        AudioClassifier.from_hparams(folder, task=task).classify_file(path)
        for task in (None, "sounds")
    )
    assert one == named


def test_older_heads_go_and_the_model_itself_stays(pretrained, tasks, tmp_path):
    folder = tmp_path / "copy"
    train_heads(pretrained, tasks[:1], folder)
    head = read_head(folder, "sounds")
    write_head(folder, "old", head)
    train_heads(pretrained, tasks[1:], folder)
    assert head_names(folder) == ["kinds"]
    with pytest.raises(WeightsError, match="another folder"):
        train_heads(pretrained, tasks, pretrained)
    with pytest.raises(ValueError, match="a name of its own"):
        train_heads(pretrained, [tasks[0], tasks[0]], folder)


def test_heads_of_all_layers_are_pooled_so(
    pretrained, with_heads, tmp_path, tones
):
    folder, _ = with_heads
    [path] = [str(tones.folder / "tone_0.wav")]
    scores = {}
    for pooling in ("mean", "class", "statistics", "dynamics"):
        for layers in ("last", "weighted", "all"):
            torch.manual_seed(0)
            size = ClipPooling(2, pooling, layers).output_size(32)
            head = LinearHead(
                *(torch.randn(2, size), torch.zeros(2), ["a", "b"]),
                *(pooling, layers),
            )
            write_head(folder, f"{pooling}-{layers}", head)
            classifier = AudioClassifier.from_hparams(
                folder, task=f"{pooling}-{layers}"
            )
            scores[pooling, layers] = classifier.classify_file(path).scores["a"]
            (folder / "heads" / f"{pooling}-{layers}.safetensors").unlink()
    assert len({round(score, 5) for score in scores.values()}) == 12


def test_wrong_heads_are_one_clear_error(with_heads, tmp_path):
    folder, _ = with_heads
    with pytest.raises(WeightsError, match="there are: kinds, sounds"):
        read_head(folder, "moods")
    with pytest.raises(WeightsError, match="or --task: kinds, sounds"):
        AudioClassifier.from_hparams(folder)
    with pytest.raises(WeightsError, match="none .`ssast-lobes heads`"):
        read_head(tmp_path, "moods")
    head = LinearHead(torch.zeros(3, 32), torch.zeros(3), ["a", "b"])
    write_head(tmp_path, "moods", head)
    with pytest.raises(WeightsError, match="moods.safetensors: damaged"):
        read_head(tmp_path, "moods")
    (tmp_path / "heads" / "moods.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="moods.safetensors: .*damaged"):
        read_head(tmp_path, "moods")


def test_without_a_model_the_bundled_one_is_used(bundled, with_heads, tones):
    path = tones.folder / "tone_0.wav"
    default, named = AudioEncoder.from_hparams(), AudioEncoder(with_heads[0])
    assert torch.equal(default.encode_file(path), named.encode_file(path))
    classifier = AudioClassifier.from_hparams(task="sounds")
    assert classifier.classify_file(path).label in classifier.labels


def test_commands_without_a_model(bundled, tones, tmp_path, capsys):
    path, output = str(tones.folder / "tone_0.wav"), tmp_path / "clips.npz"
    # Inputs on both sides, a folder, a table, and no model among them.
    for inputs in ([path], [str(tones.folder)], [str(tones.manifest), path]):
        words = ["embed", inputs[0], "--output", str(output), *inputs[1:]]
        assert main(words) == 0
        assert np.load(output)["embeddings"].shape[1] == 32
    assert main(["classify", "--task", "sounds", path]) == 0
    assert path in capsys.readouterr().out
    assert main(["classify", path]) == 2
    error = capsys.readouterr().err
    assert "choose one by task=, or --task: kinds, sounds" in error


def test_a_model_is_told_from_inputs(
    with_heads, pretrained, tones, tmp_path, capsys
):
    folder, path = str(with_heads[0]), str(tones.folder / "tone_0.wav")
    output = str(tmp_path / "clips.npz")
    assert main(["embed", folder, "--output", output, path]) == 0
    assert main(["embed", folder, "--output", output]) == 2
    assert "is a model: name audio after it" in capsys.readouterr().err
    assert main(["embed", str(tmp_path), path, "--output", output]) == 2
    assert "not an exported folder" in capsys.readouterr().err
    assert main(["embed", "nowhere.wav", "--output", output]) == 2
    assert "nowhere.wav: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["embed", folder, path, "--output", output, "--wat"])
    assert "unrecognized arguments: --wat" in capsys.readouterr().err


def test_without_a_bundled_model_the_error_names_the_fix(
    tones, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(bundled_models, "BUNDLED", tmp_path)
    path = str(tones.folder / "tone_0.wav")
    assert main(["classify", "--task", "sounds", path]) == 2
    error = capsys.readouterr().err
    assert "this installation of ssast_lobes has no bundled model" in error
    assert "name an exported folder" in error


def test_heads_command(pretrained, tones, tmp_path, capsys):
    licenses = tmp_path / "licenses.md"
    licenses.write_text(LICENSES)
    output = tmp_path / "with_heads"
    words = ["heads", pretrained, "--data", f"sounds={tones.manifest}"]
    words += ["--output", output, "--licenses", licenses]
    assert main(list(map(str, words))) == 0
    assert "sounds: " in capsys.readouterr().out
    assert LICENSES in (output / CARD_FILE).read_text()
    assert head_names(output) == ["sounds"]
    assert json.loads((output / "config.json").read_text())["kind"] == (
        "pretrained"
    )


SHIPPED_FOLDERS = sorted(path.parent for path in BUNDLED.glob("*/config.json"))


@pytest.mark.parametrize("folder", SHIPPED_FOLDERS, ids=lambda path: path.name)
def test_shipped_model_is_small_and_says_where_it_is_from(folder, tones):
    assert len(SHIPPED_FOLDERS) == 1
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
    assert sum(sizes) <= 12 * MEBIBYTE
    text = (folder / CARD_FILE).read_text()
    assert "## Licenses of the training audio\n" in text
    path = tones.folder / "tone_0.wav"
    assert AudioEncoder.from_hparams().encode_file(path).isfinite().all()
    assert head_names(folder)
    for task in head_names(folder):
        classifier = AudioClassifier.from_hparams(task=task)
        assert classifier.classify_file(path).label in classifier.labels


NAME = "ssast-lobes-micro-1"


@pytest.fixture(scope="module")
def weights():
    return load_weights(BUNDLED / NAME).state


def same(module, weights):
    state = module.state_dict()
    return all(
        torch.equal(state[key.removeprefix("encoder.")], value)
        for key, value in weights.items()
        if key.startswith("encoder.")
    )


def test_a_name_stands_for_the_model_in_python(weights):
    assert weights
    assert same(SSAST(source=NAME).encoder, weights)
    assert same(AudioEncoder.from_hparams(NAME).lobe.encoder, weights)
    classifier = AudioClassifier.from_hparams(NAME, task="keywords")
    assert "yes" in classifier.labels
    assert same(PooledEncoder(NAME).lobe.encoder, weights)
    assert same(DeployedModel(NAME).lobe.encoder, weights)
    encoder = SSAST(source=BUNDLED / NAME).encoder
    with torch.no_grad():
        encoder.class_tokens.zero_()
    load_pretrained(NAME, encoder, None)
    assert same(encoder, weights)


@pytest.mark.slow
def test_a_name_stands_for_the_model_in_commands(weights, tones, tmp_path):
    path = str(tones.folder / "tone_0.wav")
    for model, output in (
        (NAME, "name.npz"),
        (str(BUNDLED / NAME), "path.npz"),
    ):
        assert (
            main(["embed", model, path, "--output", f"{tmp_path}/{output}"])
            == 0
        )
    name, folder = (np.load(tmp_path / f"{x}.npz") for x in ("name", "path"))
    np.testing.assert_array_equal(name["embeddings"], folder["embeddings"])
    labels = tmp_path / "labels.json"
    words = ["classify", NAME, path, "--task", "keywords"]
    assert main([*words, "--output", str(labels)]) == 0
    assert json.loads(labels.read_text())[0]["scores"].keys() >= {"yes", "no"}
    assert main(["convert", NAME, f"{tmp_path}/official.pth"]) == 0
    found = load_weights(tmp_path / "official.pth").part("encoder")
    assert torch.equal(found["class_tokens"], weights["encoder.class_tokens"])
    data = f"sounds={tones.manifest}"
    report = tmp_path / "probe"
    words = ["probe", NAME, "--data", data, "--output", str(report)]
    assert main(words) == 0
    assert f"| {NAME} |" in (report / "probe.md").read_text()
    copy = tmp_path / "copy"
    assert main(["heads", NAME, "--data", data, "--output", str(copy)]) == 0
    assert load_weights(copy).state.keys() >= weights.keys()
    # The copy's card has what the model was trained on.
    assert "12.2 hours of synthetic words" in (copy / CARD_FILE).read_text()


def test_a_folder_of_a_name_needs_a_dot(pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pretrained, NAME)
    shutil.copytree(pretrained, "ssast-lobes-mine")
    assert load_weights(NAME).config["encoder"]["dim"] == 128
    for folder in (f"./{NAME}", tmp_path / NAME, "ssast-lobes-mine"):
        assert load_weights(folder).config["encoder"]["dim"] == 32


def test_models_command_lists_what_the_files_say(capsys, weights):
    assert main(["models"]) == 0
    titles, *lines = capsys.readouterr().out.splitlines()
    assert titles.split() == "name parameters size heads trained on".split()
    [line] = [line for line in lines if line.startswith(f"{NAME} ")]
    n_parameters = sum(tensor.numel() for tensor in weights.values())
    assert f" {n_parameters / 1e6:.1f} M " in line
    assert all(head in line for head in head_names(bundled_model(NAME)))
    assert line.endswith("synthetic words")
    assert len(lines) == 1


def test_an_unknown_name_is_told_the_names(capsys, tones, tmp_path):
    path = str(tones.folder / "tone_0.wav")
    words = ["embed", "ssast-lobes-micro-2", path, "--output"]
    assert main([*words, str(tmp_path / "x.npz")]) == 2
    error = capsys.readouterr().err
    assert "ssast-lobes-micro-2: neither a bundled model" in error
    assert f"the bundled models are: {NAME}\n" in error
    with pytest.raises(WeightsError, match=f"the bundled models are: {NAME}"):
        SSAST(source="ssast-lobes-micro")
    assert main(["embed", NAME, "--output", str(tmp_path / "x.npz")]) == 2
    assert "name audio after it" in capsys.readouterr().err


def test_a_folder_of_a_run_is_told_its_export(
    pretrained, tones, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(pretrained, run / "export")
    (run / "train_log.txt").write_text("epoch 1")
    with pytest.raises(WeightsError, match=f"did you mean {run}/export.$"):
        SSAST(source=str(run))
    path = str(tones.folder / "tone_0.wav")
    words = ["embed", str(run), path, "--output", str(tmp_path / "x.npz")]
    assert main(words) == 2
    assert f"did you mean {run}/export?" in capsys.readouterr().err
    (run / "export" / "config.json").unlink()
    with pytest.raises(WeightsError, match="model.safetensors missing$"):
        SSAST(source=str(run))
