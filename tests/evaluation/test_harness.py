"""Evaluation harnesses: each finds what it looks for, and the same numbers."""

import importlib
import math

import pytest
import torch

from ssast_lobes import (
    FrontEnd,
    Grid,
    SpectrogramClassifier,
    SpectrogramEncoder,
)
from ssast_lobes.checkpoints.bundled import bundled_model
from ssast_lobes.checkpoints.folder import export_classifier, label_encoder_of
from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.evaluation.harness import hear
from ssast_lobes.evaluation.harness.s3prl import UpstreamExpert
from ssast_lobes.evaluation.harness.windowed_model import WindowedModel
from ssast_lobes.evaluation.harness.xares import XaresEncoder
from ssast_lobes.inference import AudioEncoder

GRIDS = {
    "patch": Grid(32, (8, 8)),
    "frame": Grid(32, (32, 2)),
    "overlapping": Grid(32, (8, 8), (4, 5)),
    "short table": Grid(32, (16, 64)),
}
# 64 frames: windows of 0.655 s.
TABLE_FRAMES = 64
WINDOW = 63 * 160 + 400
LENGTHS = [30000, 400, 9000, WINDOW, WINDOW + 159, WINDOW + 160, 23456]


def export(folder, grid="patch", pad_frames=None, **arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        GRIDS[grid], dim=32, depth=2, heads=2, table_frames=TABLE_FRAMES
    )
    model = SpectrogramClassifier(encoder, 2, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    features = FrontEnd(n_mels=32, pad_frames=pad_frames)
    labels = label_encoder_of(["cat", "dog"])
    return export_classifier(folder, model, features, labels, False, {})


@pytest.fixture(scope="module", params=GRIDS)
def folder(request, tmp_path_factory):
    return export(tmp_path_factory.mktemp("models") / "export", request.param)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    wavs = 0.1 * torch.randn(len(LENGTHS), max(LENGTHS), generator=generator)
    return wavs, torch.tensor(LENGTHS)


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# The windows.


def test_windows_are_those_of_the_interface(folder, batch):
    wavs, lengths = batch
    interface = AudioEncoder.from_hparams(folder)
    model = WindowedModel(folder)
    relative = lengths.double() / wavs.shape[1]
    with torch.no_grad():
        clip, frames = model.clip(wavs, lengths), model.frames(wavs, lengths)
    close(clip, interface.encode_batch(wavs, relative))
    close(frames, interface.encode_batch(wavs, relative, "frames"))
    assert model.n_time(lengths).tolist() == list(
        map(interface.n_time, LENGTHS)
    )


@pytest.mark.parametrize(
    "arguments",
    [{"pooling": "class", "layers": "weighted"}, {"pad_frames": TABLE_FRAMES}],
    ids=["weighted class tokens", "reference padding"],
)
def test_windows_pool_and_pad_as_the_interface(tmp_path, batch, arguments):
    wavs, lengths = batch
    folder = export(tmp_path / "export", **arguments)
    interface = AudioEncoder.from_hparams(folder)
    model = WindowedModel(folder)
    relative = lengths.double() / wavs.shape[1]
    with torch.no_grad():
        clip, frames = model.clip(wavs, lengths), model.frames(wavs, lengths)
    close(clip, interface.encode_batch(wavs, relative))
    close(frames, interface.encode_batch(wavs, relative, "frames"))


def test_layers_end_in_the_frames_and_are_averaged_over_frequency(folder):
    model = WindowedModel(folder)
    wav = 0.1 * torch.randn(1, WINDOW)
    with torch.no_grad():
        frames, states = model.layers(wav)
        encoded = model.lobe.extract_features(wav, hidden_states=True)
    close(frames, model.frames(wav))
    assert len(states) == 3
    tokens = encoded.hidden_states[1, 0]
    bands = encoded.n_freq
    steps = len(tokens) // bands
    for step in range(steps):
        column = torch.stack([tokens[b * steps + step] for b in range(bands)])
        close(states[1, 0, step], column.mean(0))


def test_too_little_audio_is_told(folder):
    with pytest.raises(ValueError, match="at least 400 samples"):
        WindowedModel(folder).frames(torch.zeros(2, 399))


def test_integers_are_refused(folder):
    audio = torch.ones(1, 8000, dtype=torch.int16)
    model = hear.load_model(folder)
    for run in (
        lambda: hear.get_scene_embeddings(audio, model),
        lambda: hear.get_timestamp_embeddings(audio, model),
        lambda: XaresEncoder(folder)(audio),
        lambda: UpstreamExpert(folder)([audio[0]]),
    ):
        with pytest.raises(ValueError, match="int16: convert it with"):
            run()
    double = audio.double() / 9
    found = hear.get_scene_embeddings(double, model)
    assert torch.equal(found, hear.get_scene_embeddings(double.float(), model))


def test_other_things_than_exports_are_told(tmp_path):
    with pytest.raises(WeightsError, match="nothing: no such"):
        hear.load_model(str(tmp_path / "nothing"))


# HEAR, with the checks that hear-validator does.


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.07, 1.98, 4.0])
def test_hear_timestamps(folder, seconds):
    model = hear.load_model(str(folder))
    audio = 2 * torch.rand(2, int(seconds * model.sample_rate)) - 1
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    assert embeddings.shape == (*times.shape, model.timestamp_embedding_size)
    assert len(times) == 2
    assert times.min() > 0
    assert times.max() <= 1000 * seconds
    if times.shape[1] > 1:
        gaps = times.diff()
        close(gaps, gaps.mean().expand_as(gaps), atol=0.01)
        assert times.min() <= gaps.mean()
        assert times.max() >= 1000 * seconds - 2 * gaps.mean()


def test_hear_timestamps_are_where_the_sound_is(tmp_path):
    model = hear.load_model(str(export(tmp_path / "export", "frame")))
    audio = 1e-3 * torch.randn(1, 8000)
    louder = audio.clone()
    louder[:, 4000:4160] += torch.randn(160)
    with torch.no_grad():
        patches = [
            model.grid.unfold(model.lobe.features(x)[0])
            for x in (audio, louder)
        ]
    change = (patches[1] - patches[0]).abs().sum((0, 2))
    _, times = hear.get_timestamp_embeddings(audio, model)
    assert abs(times[0, change.argmax()] - 1000 * 4080 / 16000) <= 20


def test_hear_scenes(folder):
    model = hear.load_model(str(folder))
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in (16000, 22050, 44100, 48000)
    for name in ("scene_embedding_size", "timestamp_embedding_size"):
        assert isinstance(getattr(model, name), int)
    audio = 2 * torch.rand(4, int(2.74 * model.sample_rate)) - 1
    embeddings = hear.get_scene_embeddings(audio, model)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (4, model.scene_embedding_size)
    assert not embeddings.requires_grad


def test_hear_scenes_of_all_layers():
    model = hear.load_model(str(bundled_model()))
    audio = 2 * torch.rand(2, 3 * model.sample_rate) - 1
    embeddings = hear.get_scene_embeddings(audio, model)
    assert embeddings.shape == (2, model.scene_embedding_size) == (2, 3584)
    frames, _ = hear.get_timestamp_embeddings(audio, model)
    assert frames.shape[2] == model.timestamp_embedding_size == 128


# X-ARES: its own check, and the way in which it looks a class up.

ENCODER_FILE = """
from ssast_lobes.evaluation.harness import xares


class OurEncoder(xares.XaresEncoder):
    source = {source!r}
"""


def test_xares_accepts_the_encoder(folder, tmp_path, monkeypatch):
    checker = pytest.importorskip("xares.audio_encoder_checker")
    utils = importlib.import_module("xares.utils")
    name = f"our_{folder.parent.name.replace('-', '_')}_encoder"
    text = ENCODER_FILE.format(source=str(folder))
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    encoder = utils.attr_from_py_path(f"{name}.py", endswith="Encoder")()
    with torch.inference_mode():
        assert checker.check_audio_encoder(encoder)
        frames = encoder(torch.randn(2, 50000))
    hop = 50000 / encoder.sampling_rate / frames.shape[1] * 1000
    assert math.isclose(hop, encoder.hop_size_in_ms, rel_tol=0.2)


def test_xares_module_has_one_encoder():
    xares = importlib.import_module("ssast_lobes.evaluation.harness.xares")
    names = [name for name in dir(xares) if name.endswith("Encoder")]
    assert names == ["XaresEncoder"]
    with pytest.raises(ValueError, match="set its source"):
        XaresEncoder()


# s3prl, with the steps that its S3PRLUpstream and Featurizer take.


def s3prl_lengths(lengths, rate):
    return (lengths - 1) // rate + 1


@pytest.mark.parametrize("longest", [800, 2561, 16000, 30000])
def test_s3prl_steps_are_as_many_as_it_counts(folder, longest):
    upstream = UpstreamExpert(ckpt=folder, model_config=None, refresh=False)
    lengths = torch.tensor([longest, 800, max(800, longest // 3)])
    wavs = [0.1 * torch.randn(n) for n in lengths.tolist()]
    result = upstream(wavs)
    rate = upstream.get_downsample_rates("hidden_states")
    states = result["hidden_states"]
    assert len(states) == 3
    expected = s3prl_lengths(lengths, rate)
    for state in [*states, result["last_hidden_state"]]:
        assert state.shape == (3, expected.max(), upstream.output_size)
        for clip, steps in zip(state, expected, strict=True):
            assert clip[:steps].abs().sum(1).min() > 0
            assert not clip[steps:].any()


def test_s3prl_clip_in_a_batch_is_as_alone(folder):
    upstream = UpstreamExpert(folder)
    wavs = [0.1 * torch.randn(n) for n in (30000, 9000, 16000)]
    with torch.no_grad():
        together = upstream(wavs)["hidden_states"]
        for number, wav in enumerate(wavs):
            alone = upstream([wav])["hidden_states"]
            for state, own in zip(together, alone, strict=True):
                close(state[number, : own.shape[1]], own[0])


def test_s3prl_time_is_in_order(tmp_path):
    upstream = UpstreamExpert(export(tmp_path / "export"))
    quiet = 1e-3 * torch.randn(WINDOW)
    loud = quiet.clone()
    loud[8000:] += torch.randn(WINDOW - 8000)
    with torch.no_grad():
        # What enters the first block has not mixed time yet.
        first = [upstream([x])["hidden_states"][0][0] for x in (quiet, loud)]
    change = (first[1] - first[0]).abs().sum(1)
    start = 8000 // upstream.get_downsample_rates()
    assert change[: start - 1].max() < 0.1 * change[start + 1 :].min()


def test_s3prl_can_train_it(folder):
    upstream = UpstreamExpert(folder).train()
    upstream([torch.randn(16000), torch.randn(9000)])[
        "last_hidden_state"
    ].sum().backward()
    missing = {
        name
        for name, parameter in upstream.lobe.encoder.named_parameters()
        if parameter.grad is None
    }
    assert not missing
