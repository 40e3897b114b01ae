"""Run the command line on audio of all kinds, and on all kinds of mistakes."""

import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from classifier_kit import LABELS, classifier_of
from torchaudio.compliance.kaldi import fbank

from ssast_lobes import FrontEnd, Grid, SpectrogramEncoder, __version__
from ssast_lobes.checkpoints.folder import (
    export_classifier,
    export_pretrained,
    label_encoder_of,
)
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.official import to_official
from ssast_lobes.cli import common, main
from ssast_lobes.cli.probe import name_models
from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.inference import AudioClassifier, AudioEncoder
from ssast_lobes.objectives import MSPM


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "export"
    return export_classifier(
        folder,
        classifier_of(Grid(128, (16, 16))),
        FrontEnd(),
        label_encoder_of(LABELS),
        False,
        card={},
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Write five good files of five kinds, a corrupt, a short and a text."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    kinds = {
        "a.wav": (1.0, 16000, 1),
        "b.mp3": (1.5, 22050, 2),
        "deep/c.flac": (0.4, 8000, 2),
        "deep/d.ogg": (0.8, 44100, 1),
        "long.wav": (4.0, 8000, 1),
    }
    (folder / "deep").mkdir()
    for name, (seconds, rate, channels) in kinds.items():
        clip = rng.standard_normal((round(seconds * rate), channels)) / 9
        soundfile.write(folder / name, clip, rate)
    (folder / "corrupt.wav").write_bytes(b"RIFF of nothing")
    soundfile.write(folder / "short.wav", np.zeros(100), 16000)
    (folder / "notes.txt").write_text("no audio")
    return folder


GOOD = ["a.wav", "b.mp3", "deep/c.flac", "deep/d.ogg", "long.wav"]
BAD = ["corrupt.wav", "short.wav"]


def run(*arguments):
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ssast_lobes.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def unreadable_of(output):
    path = output.with_name(output.name + ".unreadable.csv")
    with open(path, encoding="utf-8") as file:
        return [(row["path"], row["reason"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_embed_as_a_process(tmp_path, model, corpus):
    output = tmp_path / "new" / "clips.npz"
    result = run("embed", model, corpus, "--output", output)
    assert result.returncode == 0, result.stderr
    assert "5 files embedded" in result.stdout
    assert "2 of 7 files could not be read" in result.stderr
    assert "7/7" in result.stderr  # the progress bar
    assert "Traceback" not in result.stderr
    found = np.load(output)
    *_, title, first, second, third = result.stdout.splitlines()
    assert title == f"5 files embedded in {output}"
    for line, name in zip((first, second, third), found, strict=True):
        assert line.split(maxsplit=1) == [name, str(found[name].shape)]
    assert found["ids"].tolist() == GOOD
    assert found["paths"].tolist() == [str(corpus / name) for name in GOOD]
    encoder = AudioEncoder.from_hparams(model)
    for name, row in zip(GOOD, found["embeddings"], strict=True):
        expected = encoder.encode_file(corpus / name).numpy()
        np.testing.assert_allclose(row, expected, atol=1e-5)
    listed = unreadable_of(output)
    assert [path for path, _ in listed] == [str(corpus / name) for name in BAD]
    assert "6.25 ms" in listed[1][1]
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "clips.npz",
        "clips.npz.unreadable.csv",
    ]


@pytest.mark.parametrize("what", ["frames", "patches"])
def test_embed_frames_and_patches(tmp_path, model, corpus, what):
    output = tmp_path / "out.npz"
    arguments = ["embed", model, corpus, "--output", output, "--what", what]
    assert main(list(map(str, arguments))) == 0
    found = np.load(output)
    parts = np.split(found["embeddings"], found["lengths"].cumsum()[:-1])
    assert len(parts) == len(found["ids"]) == 5
    assert found["step_seconds"] == 0.16
    encoder = AudioEncoder.from_hparams(model)
    for name, part in zip(GOOD, parts, strict=True):
        expected = encoder.encode_file(corpus / name, what)
        if what == "patches":
            expected = expected.transpose(0, 1)
        np.testing.assert_allclose(part, expected.numpy(), atol=1e-5)


def test_embed_of_a_pretrained_model(tmp_path, corpus):
    encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    folder = tmp_path / "export"
    export_pretrained(folder, MSPM(encoder), FrontEnd(), card={})
    output = tmp_path / "out.npz"
    files = [str(corpus / "a.wav"), str(corpus / "deep")]
    assert main(["embed", str(folder), *files, "--output", str(output)]) == 0
    found = np.load(output)
    assert found["ids"].tolist() == [files[0], "c.flac", "d.ogg"]
    assert found["embeddings"].shape == (3, 32)


@pytest.fixture
def manifest(tmp_path, corpus):
    """Write a CSV of three files, one of them corrupt, with own ids."""
    path = tmp_path / "some.csv"
    rows = [("x", "a.wav"), ("y", "corrupt.wav"), ("z", "long.wav")]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(
            [("id", "path"), *((i, corpus / name) for i, name in rows)]
        )
    return path


def test_classify_to_csv_json_and_screen(tmp_path, model, manifest, capsys):
    expected = [
        AudioClassifier.from_hparams(model).classify_file(path)
        for path in (
            row["path"]
            for row in csv.DictReader(open(manifest))
            if row["id"] != "y"
        )
    ]
    table = tmp_path / "out.csv"
    assert (
        main(["classify", str(model), str(manifest), "--output", str(table)])
        == 0
    )
    rows = list(csv.DictReader(open(table)))
    assert [row["path"] for row in rows] == [x.path for x in expected]
    assert [row["labels"] for row in rows] == [x.label for x in expected]
    for row, result in zip(rows, expected, strict=True):
        for label in LABELS:
            assert float(row[f"score:{label}"]) == pytest.approx(
                result.scores[label], abs=1e-5
            )
    assert unreadable_of(table)[0][0].endswith("corrupt.wav")

    records = tmp_path / "out.json"
    assert (
        main(["classify", str(model), str(manifest), "--output", str(records)])
        == 0
    )
    found = json.loads(records.read_text())
    assert [len(x["windows"]) for x in found] == [1, 6]
    assert found[1]["windows"][-1]["end"] == 4.0

    capsys.readouterr()
    assert main(["classify", str(model), str(manifest)]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split() == ["labels", "score", "start", "end", "path"]
    assert [line.split()[0] for line in lines[1:]] == [
        x.label for x in expected
    ]
    assert "1 of 3 files could not be read" in shown.err
    assert "corrupt.wav" in shown.err
    assert main(["classify", str(model), str(manifest), "--windows"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 1 + 6


def test_the_list_is_next_to_a_folder(tmp_path, capsys):
    folder = f"{tmp_path / 'codes'}{os.sep}"
    common.report_unreadable([("a.wav", "no audio")], 2, folder)
    assert (tmp_path / "codes.unreadable.csv").exists()


def test_the_list_of_an_earlier_run_is_removed(
    tmp_path, model, corpus, manifest
):
    output = tmp_path / "out.csv"
    arguments = ["classify", str(model), "--output", str(output)]
    assert main([*arguments, str(manifest)]) == 0
    assert len(unreadable_of(output)) == 1
    assert main([*arguments, str(corpus / "a.wav")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.csv",
        "some.csv",
    ]


@pytest.mark.slow
def test_probe_as_a_process(tmp_path, tones):
    torch.manual_seed(1)
    for name in ("first", "second"):
        encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
        folder = tmp_path / "runs" / name / "export"
        export_pretrained(folder, MSPM(encoder), FrontEnd(), card={})
    output = tmp_path / "probe"
    words = [
        f"first={tmp_path / 'runs' / 'first' / 'export'}",
        f"another={tmp_path / 'runs' / 'second' / 'export'}",
        *("--data", f"sounds={tones.manifest}"),
        *("--data", f"{tones.manifest},metric=uar,group=label"),
        *("--output", output),
    ]
    result = run("probe", *words)
    assert result.returncode == 0, result.stderr
    assert "20/20" in result.stderr  # the progress bar
    table = (output / "probe.md").read_text()
    assert table in result.stdout
    for word in ("sounds (accuracy)", "(UAR)", "first", "another"):
        assert word in table
    with open(output / "probe.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["system"] for row in rows[::2]][:6] == [
        "majority class",
        "duration",
        "log-mel",
        "untrained",
        "first",
        "another",
    ]
    assert len(list((output / "embeddings").iterdir())) == 5
    assert (output / "probe.png").stat().st_size > 10000


@pytest.mark.slow
def test_probe_lists_unreadable_clips(tmp_path, model, tones, capsys):
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    with open(tones.manifest, newline="") as file:
        _, *rows = csv.reader(file)
    rows = [[str(tones.folder / row[0]), *row[1:]] for row in rows]
    manifest = tmp_path / "clips.csv"
    lines = [["path", "label", "who", "split"], *rows]
    lines.append([str(bad), "tone", "nobody", "test"])
    manifest.write_text("\n".join(",".join(line) for line in lines))
    output = tmp_path / "probe"
    words = ["probe", model, "--data", manifest, "--output", output]
    assert main(list(map(str, words))) == 0
    shown = capsys.readouterr()
    assert "1 of 25 files could not be read" in shown.err
    [(path, _)] = unreadable_of(output / "probe.csv")
    assert path == str(bad)
    # Six test clips, each by itself: there is no column speaker.
    assert "| 6 clips |" in shown.out


def test_names_of_models(tmp_path):
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    found = name_models([str(folder), "best=runs/b.pth"])
    # What exists is no name and a path.
    assert list(found.values()) == [str(folder), "runs/b.pth"]
    assert list(found)[1] == "best"
    assert list(name_models(["runs/a/export"])) == ["a"]
    # A name ends at the first =.
    assert name_models([f"x={folder}"]) == {"x": str(folder)}


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["best={tmp}/none", "--data", "{manifest}"], "{tmp}/none"),
        (["best={tmp}/lr=1/x", "--data", "{manifest}"], "{tmp}/lr=1/x"),
        (["{tmp}/lr=1/x", "--data", "{manifest}"], "{tmp}/lr=1/x"),
        (["{model}", "--data", "words={tmp}/a.csv"], "{tmp}/a.csv"),
        (["{model}", "--data", "words={tmp}/b=1/a.csv"], "{tmp}/b=1/a.csv"),
        (
            ["{model}", "--data", "{tmp}/b=1/a.csv,metric=uar"],
            "{tmp}/b=1/a.csv",
        ),
    ],
)
def test_probe_names_the_path_that_is_missing(
    tmp_path, model, tones, capsys, words, wrong
):
    places = {"tmp": tmp_path, "model": model, "manifest": tones.manifest}
    words = ["probe", *words, "--output", "{tmp}/probe"]
    assert main([word.format(**places) for word in words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"ssast-lobes probe: {wrong.format(**places)}: ")
    assert "o such file or" in error


@pytest.mark.parametrize(
    ("command", "opened", "told"),
    [
        ("embed", 10, "stopped; nothing was written"),
        ("probe", 40, "stopped; no report was written. The embeddings made"),
    ],
)
def test_ctrl_c_says_what_is_kept(
    tmp_path, model, tones, capsys, monkeypatch, request, command, opened, told
):
    class Stopping(soundfile.SoundFile):
        """Press Ctrl-C as a certain file is opened."""

        count = 0

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            Stopping.count += 1
            if Stopping.count == opened:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(soundfile, "SoundFile", Stopping)
    # A process in the background may have been started to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    output = tmp_path / {"embed": "clips.npz", "probe": "report"}[command]
    inputs = {"embed": [], "probe": ["--data"]}[command]
    words = [command, model, *inputs, tones.manifest, "--output", output]
    assert main(list(map(str, words))) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith(told)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    if command == "embed":
        assert not left
    else:
        [cache] = left
        assert cache.parent == output / "embeddings"
        assert 0 < len(np.load(cache)["paths"]) < 24


def test_recipes_are_listed_and_copied(tmp_path, capsys):
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert "Swaps              The lobe in SpeechBrain's own recipes" in shown
    assert main(["recipes", "SyntheticCommands", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    copy = tmp_path / "recipes" / "SyntheticCommands"
    assert f"SyntheticCommands is in {copy}, with" in shown
    assert "it uses their scripts: CustomData\n" in shown
    assert (copy / "quickstart.py").exists()
    assert shown.splitlines()[-1] == f"How to run it: {copy / 'README.md'}"


def expected_statistics(paths):
    """Return mean and deviation by Kaldi, clip by clip, in float64."""
    frames = []
    for path in paths:
        wav = read_audio(path)
        frames.append(
            fbank(
                (wav - wav.mean())[None],
                htk_compat=True,
                use_energy=False,
                window_type="hanning",
                num_mel_bins=128,
                dither=0.0,
                frame_shift=10,
            )
        )
    frames = torch.cat(frames).double()
    return frames.mean().item(), frames.std(correction=0).item()


def test_stats_are_those_of_kaldi(tmp_path, corpus, monkeypatch, capsys):
    # Short blocks, and so several of most files and several batches.
    monkeypatch.setattr("ssast_lobes.evaluation.statistics.BLOCK_FRAMES", 64)
    output = tmp_path / "stats.yaml"
    assert main(["stats", str(corpus), "--output", str(output)]) == 0
    assert "# Log-mel statistics of 5 files" in output.read_text()
    found = yaml.safe_load(output.read_text())
    mean, std = expected_statistics([corpus / name for name in GOOD])
    assert found["mean"] == pytest.approx(mean, abs=1e-4)
    assert found["std"] == pytest.approx(std, abs=1e-4)
    assert [path for path, _ in unreadable_of(output)] == [
        str(corpus / name) for name in BAD
    ]
    assert FrontEnd(found).norm.mean == found["mean"]


def test_stats_on_the_screen_are_yaml(corpus, capsys):
    assert main(["stats", str(corpus / "a.wav"), "--n-mels", "40"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert set(found) == {"mean", "std"} and found["std"] > 0


def test_stats_leave_held_out_files_out(tmp_path, corpus, capsys):
    table = tmp_path / "table.csv"
    table.write_text(
        "path,split,split_speaker\n"
        "a.wav,train,train\n"
        "b.mp3,train,valid\n"
        "long.wav,test,\n"
    )
    for name in ("a.wav", "b.mp3", "long.wav"):
        (tmp_path / name).symlink_to(corpus / name)
    mean, std = expected_statistics([tmp_path / "a.wav"])
    # The files of the table are in the folder too.
    for inputs in ([str(table)], [str(tmp_path), str(table)]):
        assert main(["stats", *inputs]) == 0
        shown = capsys.readouterr()
        found = yaml.safe_load(shown.out)
        assert found["mean"] == pytest.approx(mean, abs=1e-4)
        assert found["std"] == pytest.approx(std, abs=1e-4)
        assert "of 1 files" in shown.out
        assert "2 files left out: valid or test" in shown.err

    table.write_text("path,split\na.wav,test\n")
    assert main(["stats", str(table)]) == 2
    assert "all 1 files are valid or test" in capsys.readouterr().err
    table.write_text("path,split\na.wav,dev\n")
    assert main(["stats", str(table)]) == 2
    assert 'a.wav: "dev" in column split;' in capsys.readouterr().err


def test_shard_gives_a_manifest_for_other_commands(
    tmp_path, model, corpus, capsys
):
    folder = tmp_path / "shards"
    words = ["shard", str(corpus), str(folder), "--workers=2"]
    assert main(words) == 2
    assert "1 of 7 audio files are unreadable" in capsys.readouterr().err
    assert main([*words, "--max-unreadable=0.2"]) == 0
    shown = capsys.readouterr()
    assert "clips: 6, hours: 0.00, shards: 1" in shown.out
    assert f"listed in {folder / 'unreadable.csv'}" in shown.err
    assert "7/7" in shown.err  # the progress bar

    names = {}
    for source in (corpus, folder / "manifest.csv"):
        output = tmp_path / f"{source.stem}.npz"
        words = ["embed", model, source, "--output", output]
        assert main(list(map(str, words))) == 0
        found = np.load(output)
        names[source] = found["ids"].tolist()
    assert names[corpus] == names[source] == GOOD
    # The others were rounded to 16 bit.
    first = np.load(tmp_path / f"{corpus.stem}.npz")["embeddings"][0]
    assert np.array_equal(found["embeddings"][0], first)


def test_shard_resumes_after_ctrl_c(
    tmp_path, tones, capsys, monkeypatch, request
):
    replace, appeared = os.replace, []

    def stopping(*paths):
        """Press Ctrl-C as the first shard is done."""
        replace(*paths)
        appeared.append(paths)
        if len(appeared) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "replace", stopping)
    # A process in the background may have been started to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    folder = tmp_path / "shards"
    words = ["shard", str(tones.manifest), str(folder), "--workers=2"]
    assert main(words) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("stopped; the shards made so far are kept")
    assert not (folder / "manifest.csv").exists()
    assert main(words) == 0
    assert "clips: 24" in capsys.readouterr().out


@pytest.fixture
def official(tmp_path, model):
    """Write the classifier of `model` as an official checkpoint."""
    path = tmp_path / "model.pth"
    assert main(["convert", str(model), str(path)]) == 0
    return path


def test_convert_there_and_back(tmp_path, model, official, corpus, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS) + "\n")
    folder = tmp_path / "export"
    arguments = ["--labels", str(labels), "--stride", "16,16"]
    assert main(["convert", str(official), str(folder), *arguments]) == 0
    shown = capsys.readouterr()
    assert "tensors converted to" in shown.out
    for step in ("Reading:   0%", "Checking:  33%", "Writing:  67%"):
        assert step in shown.err
    paths = [corpus / name for name in GOOD]
    before = AudioClassifier.from_hparams(model).classify_files(paths)
    after = AudioClassifier.from_hparams(folder).classify_files(paths)
    for one, other in zip(before, after, strict=True):
        assert one.label == other.label
        assert one.scores == pytest.approx(other.scores, abs=1e-6)


def test_convert_without_labels_names_classes_by_number(
    tmp_path, official, capsys
):
    folder = tmp_path / "export"
    arguments = ["--stride", "16,16", "--multi-label", "--pooling", "class"]
    assert main(["convert", str(official), str(folder), *arguments]) == 0
    assert "no labels given: 3 classes" in capsys.readouterr().out
    classifier = AudioClassifier.from_hparams(folder)
    assert classifier.labels == ["0", "1", "2"] and classifier.multi_label
    assert classifier.lobe.pooling.pooling == "class"


def test_convert_pretrained_with_statistics(tmp_path, capsys):
    encoder = SpectrogramEncoder(dim=64, depth=1, heads=1, table_frames=128)
    objective = MSPM(encoder)
    export_pretrained(tmp_path / "first", objective, FrontEnd(), card={})
    checkpoint = to_official(load_weights(tmp_path / "first"))
    checkpoint["module.v.head.weight"] = torch.zeros(1000, 64)
    torch.save(checkpoint, tmp_path / "model.pth")
    (tmp_path / "stats.yaml").write_text("mean: -5.5\nstd: 4.5\n")
    arguments = ["--statistics", str(tmp_path / "stats.yaml")]
    source, dest = str(tmp_path / "model.pth"), tmp_path / "second"
    assert main(["convert", source, str(dest), *arguments]) == 0
    assert "left out (unused ImageNet head)" in capsys.readouterr().out
    weights = load_weights(dest)
    for key, value in load_weights(tmp_path / "first").state.items():
        assert torch.equal(weights.state[key], value), key
    assert weights.config["objective"] == {"name": "MSPM", "task": "joint"}
    statistics = weights.config["features"]["statistics"]
    assert statistics == {"mean": -5.5, "std": 4.5}
    assert main(["convert", source, str(dest), "--pooling", "mean"]) == 2
    assert "--pooling would have no effect" in capsys.readouterr().err


IDLE_OPTIONS = {
    "--stride": ["16,16"],
    "--statistics": ["audioset"],
    "--labels": ["labels.txt"],
    "--multi-label": [],
    "--pooling": ["mean"],
}


@pytest.mark.parametrize("option", IDLE_OPTIONS)
def test_convert_refuses_options_without_effect(
    tmp_path, model, capsys, option
):
    dest = tmp_path / "model.pth"
    words = ["convert", str(model), str(dest), option, *IDLE_OPTIONS[option]]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"is an exported folder: {option} would have no effect" in error
    assert not dest.exists()


def test_average(tmp_path, capsys):
    folders = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        encoder = SpectrogramEncoder(dim=64, depth=1, heads=1)
        export_pretrained(folder, MSPM(encoder), FrontEnd(), card={})
    mean = tmp_path / "mean"
    assert main(["average", *map(str, [*folders, mean])]) == 0
    assert f"the mean of 2 models is in {mean}\n" == capsys.readouterr().out
    first, second, both = (load_weights(f).state for f in [*folders, mean])
    for key, value in both.items():
        torch.testing.assert_close(value, (first[key] + second[key]) / 2)
    AudioEncoder.from_hparams(mean)


MISTAKES = {
    "no model": ["classify", "{tmp}/none", "{good}"],
    "no input": ["classify", "{model}", "{tmp}/none"],
    "no audio": ["stats", "{tmp}"],
    "nothing readable": ["classify", "{model}", "{bad}"],
    "bad manifest": ["stats", "{tmp}/bad.csv"],
    "no device": ["classify", "{model}", "{good}", "--device", "abacus"],
    "no place": ["stats", "{good}", "--output", "{tmp}/bad.csv/x.yaml"],
    "export of an export": ["convert", "{model}", "{tmp}/other"],
    "not an export": ["convert", "{tmp}/bad.csv", "{tmp}/other.pth"],
    "other things there": ["convert", "{official}", "{tmp}"],
    "a file there": ["convert", "{model}", "{official}"],
    "few labels": [
        *("convert", "{official}", "{tmp}/other", "--stride", "16,16"),
        *("--labels", "{tmp}/bad.csv"),
    ],
    "odd statistics": [
        *("convert", "{official}", "{tmp}/other", "--stride", "16,16"),
        *("--statistics", "{tmp}/bad.csv"),
    ],
    "unknown statistics": [
        *("convert", "{official}", "{tmp}/other", "--stride", "16,16"),
        *("--statistics", "mars"),
    ],
    "weights alone": ["classify", "{pretrained}/model.safetensors", "{good}"],
    "pretrained only": ["classify", "{pretrained}", "{good}"],
    "no task": [
        *("probe", "{model}", "--data", "{tmp}/none.csv"),
        *("--output", "{tmp}/probe"),
    ],
    "one name twice": [
        *("probe", "x={model}", "x={pretrained}", "--data", "{manifest}"),
        *("--output", "{tmp}/probe"),
    ],
    "shards among other things": ["shard", "{good}", "{tmp}"],
    "mean of one": ["average", "{pretrained}", "{tmp}/mean"],
    "mean of classifiers": ["average", "{model}", "{model}", "{tmp}/mean"],
    "mean over a model": ["average", *["{pretrained}"] * 2, "{pretrained}"],
    "like a name": [
        "embed",
        "ssast-lobes-9",
        "{good}",
        "--output",
        "{tmp}/x.npz",
    ],
    "name alone": ["embed", "ssast-lobes-micro-1", "--output", "{tmp}/x.npz"],
    "no folder of classes": ["manifest", "{tmp}/none"],
    "no such recipe": ["recipes", "none", "{tmp}/copy"],
    "recipe to nowhere": ["recipes", "CustomData"],
    "no such column": [
        *("probe", "{model}", "--data", "{manifest},label=size"),
        *("--output", "{tmp}/probe"),
    ],
}


@pytest.mark.parametrize("words", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_a_line(
    tmp_path, model, corpus, official, tones, capsys, words
):
    (tmp_path / "bad.csv").write_text("path,label\nnothing.wav,x\n")
    encoder = SpectrogramEncoder(dim=64, depth=1, heads=1)
    pretrained = tmp_path / "pretrained"
    export_pretrained(pretrained, MSPM(encoder), FrontEnd(), card={})
    places = {
        "tmp": tmp_path,
        "model": model,
        "good": corpus / "a.wav",
        "bad": corpus / "corrupt.wav",
        "official": official,
        "pretrained": pretrained,
        "manifest": tones.manifest,
    }
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main([word.format(**places) for word in words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    if "bad.csv" not in words[1]:
        assert error.startswith(f"ssast-lobes {words[0]}: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ["embed", "model", "in", "--output", "out.txt"],
        ["classify", "model", "in", "--output", "out.npz"],
        ["embed", "model", "in"],
        ["stats"],
        ["stats", "in", "--n-mels", "0"],
        ["shard", "in.csv"],
        ["shard", "in.csv", "out", "--codec", "mp3"],
        ["probe", "model", "--output", "out"],
        ["probe", "model", "--data", "a.csv", "--output", "out"]
        + ["--metric", "f1"],
        ["convert", "a", "b", "--stride", "10"],
        ["convert", "a", "b", "--stride", "10,x"],
        ["manifest", "in", "--group", "speaker"],
        ["manifest", "in", "--group", "(speaker)(take)"],
        ["manifest", "in", "--group", "(speaker"],
        ["manifest", "in", "--splits", "0.7,0.1,0.1"],
        ["manifest", "in", "--splits", "0.8,0.2"],
        ["manifest", "in", "--splits", "1.1,-0.1,0"],
        ["manifest", "in", "--splits", "0,0.5,0.5"],
        ["manifest", "in", "--splits", "most,few,some"],
        [],
    ],
    ids=" ".join,
)
def test_bad_options_are_told_before_any_work(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.slow
def test_mistake_as_a_process(tmp_path):
    result = run("classify", tmp_path / "none", tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize(
    "command", ["embed", "classify", "probe", "heads", "convert", "onnx"]
)
def test_help_names_all_that_a_model_may_be(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "exported folder, Hugging Face folder, or user/repo" in text
    assert "or a name that `ssast-lobes models` lists" in text


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"ssast-lobes {__version__}\n"


def test_help_is_instant_and_shows_an_example(capsys):
    code = (
        "import sys; from ssast_lobes.cli import main\n"
        "try: main(['embed', '--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    for command in (
        "embed",
        "classify",
        "events",
        "probe",
        "stats",
        "shard",
        "convert",
        "average",
        "onnx",
        "manifest",
        "models",
        "recipes",
    ):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        _, example = capsys.readouterr().out.split("example:\n")
        assert example.split()[:2] == ["ssast-lobes", command]
