"""Deployment: one graph from waveform to scores, for any batch and length."""

import inspect
import json

import pytest
import torch

from ssast_lobes import (
    FrontEnd,
    Grid,
    SpectrogramClassifier,
    SpectrogramDetector,
    SpectrogramEncoder,
)
from ssast_lobes.checkpoints.folder import (
    export_classifier,
    export_detector,
    export_pretrained,
    label_encoder_of,
)
from ssast_lobes.cli import main
from ssast_lobes.inference import AudioClassifier, AudioEncoder
from ssast_lobes.inference import deployment as deploy
from ssast_lobes.inference.deployment import (
    DeployedModel,
    DeploymentError,
    export_program,
    write_onnx,
    write_program,
)
from ssast_lobes.objectives import MSPM

LABELS = ["cat", "dog", "Krähe"]
GRIDS = {
    "patch": Grid(32, (16, 16)),
    "frame": Grid(32, (32, 2)),
    "overlapping": Grid(32, (16, 16), (10, 10)),
    "overlapping frames": Grid(32, (32, 2), (32, 1)),
    "gaps": Grid(32, (8, 4), (8, 6)),
    "whole patches": Grid(32, (16, 16), keep_partial=False),
}
# Batches by the samples of their clips: from one frame to a full window.
BATCHES = [[400], [16000, 9000, 700], [2960, 2959], [30000, 30000], [163840]]

OPTION = "prefer_deferred_runtime_asserts_over_guards"
needs_torch = pytest.mark.skipif(
    OPTION not in inspect.signature(torch.export.export).parameters,
    reason="torch 2.9 or newer",
)


def encoder_of(grid, **arguments):
    torch.manual_seed(0)
    return SpectrogramEncoder(
        GRIDS[grid], dim=32, depth=1, heads=2, **arguments
    )


def shaken(module):
    """The same with weights that are no longer those of a fresh start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def classifier_export(
    folder, grid="patch", multi_label=False, pad_frames=None, **arguments
):
    model = shaken(SpectrogramClassifier(encoder_of(grid), 3, **arguments))
    features = FrontEnd(n_mels=32, pad_frames=pad_frames)
    labels = label_encoder_of(LABELS)
    return export_classifier(folder, model, features, labels, multi_label, {})


def pretrained_export(folder, grid="frame", pad_frames=None):
    objective = shaken(MSPM(encoder_of(grid)))
    features = FrontEnd(n_mels=32, pad_frames=pad_frames)
    return export_pretrained(folder, objective, features, {})


def batch_of(lengths):
    wav = 0.1 * torch.randn(len(lengths), max(lengths))
    return wav, torch.tensor(lengths)


def scores_of(folder, wav, lengths):
    classifier = AudioClassifier.from_hparams(folder)
    relative = lengths.double() / wav.shape[1]
    results = classifier.classify_batch(wav, relative)
    return torch.tensor([list(x.scores.values()) for x in results])


def close(a, b, atol=1e-4):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def close_to_interface(folder, run):
    """Compare a function of (wav, lengths) with the interface."""
    for lengths in BATCHES:
        wav, counts = batch_of(lengths)
        (scores,) = run(wav, counts)
        close(scores, scores_of(folder, wav, counts))
        # What stands behind a clip's end is nobody's business.
        noisy = wav.clone()
        for row, length in zip(noisy, lengths, strict=True):
            row[length:] = 9.0
        close(run(noisy, counts)[0], scores)


def onnx_of(path):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(wav, lengths):
        inputs = {"wav": wav.numpy(), "lengths": lengths.numpy()}
        return [torch.from_numpy(x) for x in session.run(None, inputs)]

    return session, run


# The module.


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": "weighted", "pooling": "class"},
        {"layers": "all", "pooling": "dynamics"},
        {"multi_label": True},
        {"pad_frames": 1024},
        *({"grid": grid} for grid in GRIDS),
    ],
    ids=str,
)
def test_module_is_as_the_interface(tmp_path, arguments):
    folder = classifier_export(tmp_path / "export", **arguments)
    close_to_interface(folder, DeployedModel(folder))


@pytest.mark.parametrize("grid", ["patch", "frame", "whole patches"])
def test_embeddings_are_those_of_the_interface(tmp_path, grid):
    folder = pretrained_export(tmp_path / "export", grid)
    encoder, model = AudioEncoder.from_hparams(folder), DeployedModel(folder)
    assert model.outputs == ("clip", "frames", "n_time")
    for lengths in BATCHES:
        wav, counts = batch_of(lengths)
        relative = counts.double() / wav.shape[1]
        clip, frames, n_time = model(wav, counts)
        close(clip, encoder.encode_batch(wav, relative))
        expected = encoder.encode_batch(wav, relative, "frames")
        close(frames[:, : expected.shape[1]], expected)
        assert not frames[:, expected.shape[1] :].any()
        assert n_time.tolist() == list(map(encoder.n_time, lengths))


def test_steps_end_with_the_reference_padding(tmp_path):
    model = DeployedModel(pretrained_export(tmp_path / "a", "patch", 128))
    wav, counts = batch_of([48000, 9000])
    clip, frames, n_time = model(wav, counts)
    # 298 and 54 frames of audio, of which 128 are heard.
    assert frames.shape == (2, 8, 32)
    assert n_time.tolist() == [8, 4]
    heard = 127 * 160 + 400
    close(clip, model(wav[:, :heard], counts.clamp(max=heard))[0])


def test_blocks_that_scan_are_refused(tmp_path):
    objective = MSPM(SpectrogramEncoder(dim=32, depth=1, blocks="mamba"))
    folder = tmp_path / "export"
    export_pretrained(folder, objective, FrontEnd(), {})
    with pytest.raises(DeploymentError, match="mamba blocks scan"):
        DeployedModel(folder)


def test_detectors_are_refused(tmp_path):
    model = SpectrogramDetector(encoder_of("frame"), n_classes=1)
    folder, labels = tmp_path / "export", label_encoder_of(["dog"])
    rules = {"dog": {"threshold": 0.5}}
    export_detector(folder, model, FrontEnd(n_mels=32), labels, rules, {})
    with pytest.raises(DeploymentError, match="a detector of events has no"):
        DeployedModel(folder)


# Graphs. Tracing takes seconds: one in the quick run, all kinds in the slow.


@needs_torch
@pytest.mark.slow
def test_command_writes_both_graphs(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    folder = classifier_export(tmp_path / "export")
    onnx, pt2 = str(tmp_path / "out" / "m.onnx"), str(tmp_path / "m.pt2")
    words = ["onnx", str(folder), "--output", onnx, "--program", pt2]
    assert main(words) == 0, capsys.readouterr().err
    assert "ONNX Runtime gives the model's results" in capsys.readouterr().out

    session, run = onnx_of(onnx)
    close_to_interface(folder, run)
    about = session.get_modelmeta().custom_metadata_map
    about = {key: json.loads(value) for key, value in about.items()}
    assert about["labels"] == LABELS
    assert about["sample_rate"] == 16000
    assert about["window_seconds"] == pytest.approx(10.255)
    assert [x.shape for x in session.get_inputs()] == [
        ["batch", "samples"],
        ["batch"],
    ]

    extra = {"metadata.json": ""}
    program = torch.export.load(pt2, extra_files=extra)
    close_to_interface(folder, program.module())
    assert json.loads(extra["metadata.json"]) == about
    assert not list(tmp_path.rglob("*.partial*"))

    # The check before a file is written sees another model's weights.
    other = classifier_export(tmp_path / "other", pooling="class")
    assert deploy._compare(DeployedModel(other), onnx) > 1e-3


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": "weighted", "pooling": "class", "grid": "frame"},
        {"layers": "all", "pooling": "dynamics"},
        {"multi_label": True, "pad_frames": 1024, "grid": "whole patches"},
        {"grid": "overlapping"},
        {"grid": "gaps"},
    ],
    ids=str,
)
def test_onnx_of_classifiers(tmp_path, arguments):
    pytest.importorskip("onnxscript")
    folder = classifier_export(tmp_path / "export", **arguments)
    path = tmp_path / "model.onnx"
    assert write_onnx(folder, path) <= 1e-4
    close_to_interface(folder, onnx_of(path)[1])


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize(
    "arguments",
    [{"grid": "patch"}, {"grid": "frame"}, {"pad_frames": 128}],
    ids=str,
)
def test_onnx_of_pretrained_models(tmp_path, arguments):
    pytest.importorskip("onnxscript")
    folder = pretrained_export(tmp_path / "export", **arguments)
    path = tmp_path / "model.onnx"
    write_onnx(folder, path)
    session, run = onnx_of(path)
    assert [x.name for x in session.get_outputs()] == [
        "clip",
        "frames",
        "n_time",
    ]
    model, program = DeployedModel(folder), export_program(folder).module()
    for lengths in BATCHES:
        wav, counts = batch_of(lengths)
        for result in (run(wav, counts), program(wav, counts)):
            for given, expected in zip(result, model(wav, counts), strict=True):
                close(given, expected)


# What goes wrong is told in a line, and leaves nothing behind.


def test_what_fails_leaves_no_file_behind(tmp_path, monkeypatch):
    folder = classifier_export(tmp_path / "export")

    def break_off(program, path, **_):
        with open(path, "w") as file:
            file.write("half a gra")
        raise OSError("disk full")

    monkeypatch.setattr(deploy, "_trace", lambda model, source: None)
    monkeypatch.setattr(torch.export, "save", break_off)
    with pytest.raises(OSError, match="disk full"):
        write_program(folder, tmp_path / "model.pt2")
    assert [x.name for x in tmp_path.iterdir()] == ["export"]


def test_missing_packages_are_told(tmp_path, monkeypatch):
    folder = classifier_export(tmp_path / "export")
    monkeypatch.setattr(deploy, "_ONNX_PACKAGES", ("no_such_package",))
    with pytest.raises(DeploymentError, match=r"pip install .*\[onnx\]"):
        write_onnx(folder, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "words",
    [[], ["--program", "{tmp}/a.pt2", "--output", "{tmp}/a.onnx"]],
    ids=str,
)
def test_command_tells_mistakes_in_a_line(tmp_path, capsys, words):
    words = [word.format(tmp=tmp_path) for word in words]
    assert main(["onnx", str(tmp_path / "none"), *words]) == 2
    assert capsys.readouterr().err.startswith("ssast-lobes onnx: ")
    assert not list(tmp_path.iterdir())


def test_help_tells_of_the_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["onnx", "--help"])
    assert stop.value.code == 0
    assert "example:\n  ssast-lobes onnx " in capsys.readouterr().out


def test_program_of_an_unknown_folder_writes_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="none: no such"):
        write_program(tmp_path / "none", tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())
