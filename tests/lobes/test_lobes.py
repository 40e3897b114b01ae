"""The lobe in another recipe's place of wav2vec 2.0."""

import copy
import json

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import save_file

from ssast_lobes import (
    SSAST,
    ClipPooling,
    FrontEnd,
    Grid,
    PretrainingLobe,
    SpectrogramClassifier,
    SpectrogramEncoder,
    SpectrogramLobe,
)
from ssast_lobes.checkpoints.format import Weights, WeightsError
from ssast_lobes.checkpoints.official import to_official
from ssast_lobes.objectives.base import Objective, ObjectiveOutput

GRIDS = {"patch": Grid(), "frame": Grid(128, (128, 2))}


def small(geometry="patch", **arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        GRIDS[geometry], dim=64, depth=2, heads=1, table_frames=160
    )
    return SpectrogramLobe(encoder, **arguments)


def waveforms(lengths=(16000, 9000, 300)):
    draw = torch.Generator().manual_seed(0)
    wav = torch.zeros(len(lengths), max(lengths))
    for row, length in zip(wav, lengths, strict=True):
        row[:length] = 0.1 * torch.randn(length, generator=draw)
    return wav, torch.tensor([length / max(lengths) for length in lengths])


SHAPES = {
    ("patch", "frames"): (3, 7, 64),
    ("patch", "patches"): (3, 8, 7, 64),
    ("patch", "clip"): (3, 1, 64),
    ("frame", "frames"): (3, 49, 64),
    ("frame", "patches"): (3, 1, 49, 64),
    ("frame", "clip"): (3, 1, 64),
}


@pytest.mark.parametrize("geometry, output", SHAPES)
@torch.no_grad()
def test_one_tensor_of_the_promised_size(geometry, output):
    lobe = small(geometry, output=output).eval()
    out = lobe(*waveforms())
    assert out.shape == SHAPES[geometry, output]
    assert out.shape[-1] == lobe.output_size
    assert out.isfinite().all()


@pytest.mark.parametrize("geometry, output", SHAPES)
@torch.no_grad()
def test_a_clip_alone_equals_the_clip_in_a_batch(geometry, output):
    lobe = small(geometry, output=output).eval()
    lengths = (16000, 9000, 300)
    wav, relative = waveforms(lengths)
    together = lobe(wav, relative)
    for row, length in enumerate(lengths):
        alone = lobe(wav[row : row + 1, :length])[0]
        own = together[row]
        if output != "clip":
            steps = alone.shape[-2]
            assert (own[..., steps:, :] == 0).all()
            own = own[..., :steps, :]
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_full_clips_need_no_lengths():
    lobe, (wav, _) = small().eval(), waveforms((16000, 16000))
    assert torch.equal(lobe(wav), lobe(wav, torch.ones(2)))


@torch.no_grad()
def test_outputs_are_views_of_the_same_encoding():
    wav, lengths = waveforms()
    output = small().eval().extract_features(wav, lengths, hidden_states=True)
    assert output.hidden_states.shape == (3, 3, 56, 64)
    for name in ("frames", "patches"):
        out = small(output=name).eval()(wav, lengths)
        assert torch.equal(out, getattr(output, name))
    clip = small(output="clip").eval()(wav, lengths)
    assert torch.equal(clip[:, 0], output.clip())


def test_gradients_flow_unless_frozen():
    lobe = small()
    lobe(*waveforms()).square().sum().backward()
    learned = [n for n, p in lobe.named_parameters() if p.grad is not None]
    assert len(learned) == len(list(lobe.parameters()))
    frozen = small(freeze=True)
    out = frozen(*waveforms())
    assert not out.requires_grad
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("output", ["frames", "clip"])
def test_what_is_trained_is_on_the_way_out(output):
    lobe = small(output=output, pooling=ClipPooling(2, layers="weighted"))
    lobe(*waveforms()).square().sum().backward()
    trained = [p for p in lobe.parameters() if p.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)


def test_a_frozen_lobe_stays_in_evaluation():
    frozen = small(freeze=True)
    parent = torch.nn.Sequential(frozen, torch.nn.Linear(64, 3)).train()
    assert parent.training and not frozen.training
    assert not any(module.training for module in frozen.modules())
    assert small().train().encoder.training


def test_a_head_learns_on_a_frozen_lobe():
    frozen = small(freeze=True, output="clip")
    head = torch.nn.Linear(64, 3)
    head(frozen(*waveforms())).sum().backward()
    assert head.weight.grad.any()


@torch.no_grad()
@pytest.mark.parametrize(
    ("pooling", "layers", "size"),
    [
        ("statistics", "last", 128),
        ("statistics", "all", 384),
        ("dynamics", "last", 256),
        ("dynamics", "all", 768),
        ("mean", "all", 192),
    ],
)
def test_wide_clip_vectors(pooling, layers, size):
    lobe = small(pooling=ClipPooling(2, pooling, layers), output="clip").eval()
    wavs, lens = torch.randn(2, 8000), torch.tensor([1.0, 0.5])
    out = lobe(wavs, lens)
    assert out.shape == (2, 1, size)
    assert lobe.output_size == lobe.clip_size == size
    alone = lobe(wavs[1:, :4000])
    assert (alone - out[1:]).abs().max() < 1e-5


def test_weighted_pooling_reads_all_layers():
    pooling = ClipPooling(2, layers="weighted")
    lobe = small(pooling=pooling, output="clip").eval()
    first = lobe(*waveforms())
    pooling.layer_scores.data = torch.tensor([5.0, -5.0])
    assert not torch.allclose(lobe(*waveforms()), first, atol=1e-3)


def test_a_lobe_stands_in_a_yaml():
    hparams = load_hyperpyyaml("""
        lobe: !new:ssast_lobes.SSAST
            model_size: micro
            geometry: frame
            output: frames
            freeze: True
        linear: !new:torch.nn.Linear
            in_features: 128
            out_features: 5
    """)
    feats = hparams["lobe"](*waveforms())
    assert feats.shape == (3, 49, hparams["lobe"].output_size)
    assert hparams["linear"](feats).shape == (3, 49, 5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"output": "words"}, "output must be one of"),
        ({"features": FrontEnd(n_mels=80)}, "80 mel bins, the encoder 128"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@pytest.mark.parametrize("model_size, dim", [("micro", 128), ("tiny", 192)])
@pytest.mark.parametrize(
    "geometry, patch",
    [("patch", (16, 16)), ("frame", (64, 2)), ([16, 8], (16, 8))],
)
def test_ssast_by_size_and_geometry(model_size, dim, geometry, patch):
    lobe = SSAST(model_size, geometry, n_mels=64)
    assert lobe.output_size == dim
    assert lobe.encoder.grid.patch == patch
    assert lobe.features.fbank.n_mels == 64


def exported(folder, lobe, pooling=None):
    state = {
        f"encoder.{key}": value
        for key, value in lobe.encoder.state_dict().items()
    }
    config = {
        "format_version": 1,
        "encoder": lobe.encoder.config,
        "features": lobe.features.config,
    }
    if pooling is not None:
        config["pooling"] = pooling.config
        for key, value in pooling.state_dict().items():
            state[f"pooling.{key}"] = value
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def own_lobe():
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        Grid(80, (80, 2)), dim=64, depth=2, heads=1, table_frames=160
    )
    features = FrontEnd({"mean": -5.0, "std": 3.0}, n_mels=80)
    return SpectrogramLobe(encoder, features).eval()


@torch.no_grad()
def test_ssast_from_a_folder_brings_everything(tmp_path):
    lobe, audio = own_lobe(), waveforms()
    expected = lobe(*audio)
    folder = exported(tmp_path, lobe)
    assert torch.equal(SSAST(source=folder).eval()(*audio), expected)
    other = SpectrogramLobe.from_export(folder).eval()
    assert torch.equal(other(*audio), expected)


@torch.no_grad()
def test_an_exported_pooling_is_used(tmp_path):
    lobe, pooling = own_lobe(), ClipPooling(2, "class", "weighted")
    pooling.layer_scores.data = torch.tensor([1.0, -2.0])
    folder = exported(tmp_path, lobe, pooling)
    again = SpectrogramLobe.from_export(folder, output="clip").eval()
    expected = SpectrogramLobe(
        lobe.encoder, lobe.features, "clip", pooling
    ).eval()(*waveforms())
    assert torch.equal(again(*waveforms()), expected)
    named = SSAST(source=folder, output="clip").eval()
    assert torch.equal(named(*waveforms()), expected)
    # Where it is not on the way out, it is no parameter to train.
    frames = SSAST(source=folder, output="frames")
    assert not list(frames.pooling.parameters())


def test_a_folder_with_surplus_or_lost_tensors_is_refused(tmp_path):
    lobe = own_lobe()
    del lobe.encoder.blocks[1].mlp.fc2.bias
    lobe.encoder.register_buffer("leftover", torch.zeros(2))
    folder = exported(tmp_path, lobe)
    for load in (SpectrogramLobe.from_export, lambda f: SSAST(source=f)):
        with pytest.raises(WeightsError, match="fc2.bias") as error:
            load(folder)
        assert "leftover" in str(error.value)


def test_a_family_that_a_source_does_not_have_is_refused(tmp_path):
    folder = exported(tmp_path, own_lobe())
    with pytest.raises(ValueError, match="family must be null for the source"):
        SSAST(source=folder, family="m2d")


def test_ssast_frozen_from_a_source_learns_nothing(tmp_path):
    lobe = SSAST(source=exported(tmp_path, own_lobe()), freeze=True)
    assert not any(p.requires_grad for p in lobe.parameters())
    assert not lobe.train().training


@torch.no_grad()
def test_ssast_from_an_official_file(tmp_path):
    lobe = small("frame").eval()
    state = {
        f"encoder.{key}": value
        for key, value in lobe.encoder.state_dict().items()
    }
    path = tmp_path / "ssast.pth"
    config = {"encoder": lobe.encoder.config}
    torch.save(to_official(Weights(state, config)), path)
    expected = lobe(*waveforms((16000,)))
    with_stride = SSAST(source=path, stride=(128, 2)).eval()
    assert with_stride(*waveforms((16000,))).shape == expected.shape
    assert SSAST(source=path).eval().encoder.grid.patch == (128, 2)


@torch.no_grad()
def test_a_source_with_another_stride_or_mel_bins(tmp_path):
    folder = exported(tmp_path, own_lobe())
    dense = SSAST(source=folder, stride=(80, 1)).eval()
    assert dense(*waveforms()).shape == (3, 97, 64)
    narrow = SSAST(source=folder, n_mels=40).eval()
    assert narrow.encoder.grid.patch == (40, 2)
    assert narrow(*waveforms()).shape == (3, 49, 64)


def test_statistics_may_be_chosen(tmp_path):
    folder = exported(tmp_path, own_lobe())
    assert SSAST(source=folder).features.norm.mean == -5.0
    chosen = SSAST(source=folder, statistics="esc50")
    assert chosen.features.norm.mean == -6.6268077
    assert SSAST("micro").features.norm.mean == -4.2677393


# Largest difference from float32 of a small lobe's output.
CASTS = {"half": 0.01, "bfloat16": 0.1, "double": 1e-5}


@torch.no_grad()
@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("blocks", ["attention", "mamba", "mamba_reference"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"freeze": True},
        {"output": "clip", "pooling": ClipPooling(1, "class", "weighted")},
        {"output": "clip", "pooling": ClipPooling(1, "dynamics", "all")},
    ],
    ids=["frozen frames", "weighted classes", "dynamics of all"],
)
def test_a_cast_lobe_computes_in_its_type(cast, blocks, arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=1, heads=1, blocks=blocks)
    lobe = SpectrogramLobe(encoder, **copy.deepcopy(arguments)).eval()
    wav, lengths = waveforms()
    expected, dtype = lobe(wav, lengths), getattr(torch.empty(1), cast)().dtype
    getattr(lobe, cast)()
    found = lobe(wav, lengths)
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < CASTS[cast]
    # Whatever the type of the waveform.
    assert torch.equal(lobe(wav.double(), lengths), found)


@torch.no_grad()
@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_classifier_computes_in_its_type(cast):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=1, heads=1)
    model = SpectrogramClassifier(encoder, 3, "statistics").eval()
    feats = FrontEnd()(*waveforms())
    expected = model(*feats)
    found = getattr(model, cast)()(*feats)
    assert found.dtype == model.head.linear.weight.dtype
    assert (found.float() - expected).abs().max() < CASTS[cast]


def test_a_lobe_in_bfloat16_trains():
    encoder = SpectrogramEncoder(dim=32, depth=1, blocks="mamba")
    lobe = SpectrogramLobe(encoder).bfloat16()
    lobe(*waveforms()).square().sum().backward()
    for parameter in lobe.parameters():
        assert parameter.grad.dtype == torch.bfloat16
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("output", ["frames", "clip"])
def test_what_is_no_waveform_is_refused(output):
    lobe, (wav, lengths) = small(output=output), waveforms()
    with pytest.raises(ValueError, match="int16: .*ssast_lobes.to_float"):
        lobe((wav * 1000).short(), lengths)
    with pytest.raises(ValueError, match="divide lengths in samples"):
        lobe(wav, lengths * wav.shape[1])


@torch.no_grad()
def test_bf16_autocast_keeps_features_exact():
    lobe, audio = small(output="clip").eval(), waveforms()
    exact = lobe(*audio)
    features = lobe.features(*audio)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lobe.features(*audio)[0], features)
        rounded = lobe(*audio)
    assert (rounded.float() - exact).abs().max() < 0.1


class Louder(Objective):
    """Toy: the loudness of each clip, from its features and its samples."""

    needs_audio = True

    def forward(self, feats, n_frames, mask=None, clip_keys=None, **items):
        """Return the error; keep what is given."""
        self.given = {"n_frames": n_frames, "clip_keys": clip_keys, **items}
        power = items["wavs"].square().sum(1) / items["n_samples"]
        guess = self.encoder(feats, n_frames).clip().mean(1)
        loss = (guess - power).square().mean()
        return ObjectiveOutput(loss, {"error": loss.detach()})


@pytest.mark.parametrize("keys", [None, torch.tensor([3, 1, 2])])
def test_an_objective_that_needs_audio_gets_it(keys):
    wav, lengths = waveforms()
    lobe = small()
    pretrainer = PretrainingLobe(Louder(lobe.encoder), lobe.features)
    output = pretrainer(wav, lengths, clip_keys=keys, crop_starts=lengths)
    given = pretrainer.objective.given
    assert given["wavs"] is wav and given["crop_starts"] is lengths
    assert given["n_samples"].tolist() == [16000, 9000, 300]
    assert given["clip_keys"] is keys
    assert given["n_frames"].tolist() == [98, 54, 0]
    assert output.n_clips == 3 and output.logs.keys() == {"error"}
    output.loss.backward()
    assert lobe.encoder.norm.weight.grad.isfinite().all()


def test_full_clips_need_no_lengths_to_pretrain():
    wav, _ = waveforms((8000, 8000))
    lobe = small()
    pretrainer = PretrainingLobe(Louder(lobe.encoder), lobe.features)
    pretrainer(wav)
    given = pretrainer.objective.given
    assert given["n_samples"].tolist() == [8000, 8000]


def test_lengths_are_exact_in_minutes_of_audio():
    wav, n_samples = torch.zeros(1, 9_600_000), torch.tensor([8_387_041])
    encoder = small().encoder
    fbank = {"kind": "centered", "hop_samples": 100_000}
    features = FrontEnd(n_mels=encoder.grid.n_mels, fbank=fbank)
    pretrainer = PretrainingLobe(Louder(encoder), features)
    pretrainer(wav, n_samples / wav.shape[1])
    assert torch.equal(pretrainer.objective.given["n_samples"], n_samples)
