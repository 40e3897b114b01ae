"""Weights in and out: strict, lossless, and clear about what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssast_lobes import (
    FrontEnd,
    SpectrogramClassifier,
    SpectrogramDetector,
    SpectrogramEncoder,
)
from ssast_lobes.checkpoints.averaging import average, export_mean, load_alike
from ssast_lobes.checkpoints.convert import convert
from ssast_lobes.checkpoints.folder import (
    export_classifier,
    export_detector,
    export_encoder,
    export_pretrained,
    label_encoder_of,
)
from ssast_lobes.checkpoints.format import Weights, WeightsError, exported_state
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.official import from_official, to_official
from ssast_lobes.checkpoints.warm_start import initialize, resample_patches
from ssast_lobes.models.patches import Grid
from ssast_lobes.objectives import MSPM
from ssast_lobes.objectives.maskers import ClusterMasker

DIM, DEPTH = 64, 2


def small(grid=None, **arguments):
    torch.manual_seed(0)
    settings = {"dim": DIM, "depth": DEPTH, "heads": 1, "table_frames": 160}
    return SpectrogramEncoder(grid, **{**settings, **arguments}).eval()


def official(
    patch=(16, 16),
    stride=None,
    n_mels=128,
    frames=160,
    finetuned=False,
    module="module.",
    depth=DEPTH,
):
    """A state dict as the official code saves it, filled with noise."""
    grid = Grid(n_mels, patch, stride, keep_partial=False)
    tokens = grid.n_freq * grid.n_time(frames)
    shapes = {
        "v.cls_token": (1, 1, DIM),
        "v.dist_token": (1, 1, DIM),
        "v.pos_embed": (1, tokens + 2, DIM),
        "v.patch_embed.proj.weight": (DIM, 1, *patch),
        "v.patch_embed.proj.bias": (DIM,),
    }
    layers = {"v.norm": (DIM,), "v.head": (10, DIM), "v.head_dist": (10, DIM)}
    for number in range(depth):
        block = f"v.blocks.{number}"
        layers[f"{block}.norm1"] = layers[f"{block}.norm2"] = (DIM,)
        layers[f"{block}.attn.qkv"] = (3 * DIM, DIM)
        layers[f"{block}.attn.proj"] = (DIM, DIM)
        layers[f"{block}.mlp.fc1"] = (4 * DIM, DIM)
        layers[f"{block}.mlp.fc2"] = (DIM, 4 * DIM)
    if finetuned:
        layers["mlp_head.0"], layers["mlp_head.1"] = (DIM,), (35, DIM)
    else:
        shapes["mask_embed"] = (1, 1, DIM)
        for head in ("cpredlayer", "gpredlayer"):
            layers[f"{head}.0"] = (DIM, DIM)
            layers[f"{head}.2"] = (patch[0] * patch[1], DIM)
    for name, shape in layers.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    draw = torch.Generator().manual_seed(1)
    state = {
        key: 0.1 * torch.randn(shape, generator=draw)
        for key, shape in shapes.items()
    }
    if not finetuned:
        state["p_input_fdim"] = torch.tensor(n_mels)
        state["p_input_tdim"] = torch.tensor(frames)
    return {module + key: value for key, value in state.items()}


def without(state, text):
    return {key: value for key, value in state.items() if text not in key}


def saved(state, tmp_path):
    torch.save(state, tmp_path / "model.pth")
    return tmp_path / "model.pth"


LAYOUTS = {
    "patch": {},
    "frame": {"patch": (128, 2)},
    "other": {"patch": (8, 4), "n_mels": 64},
    "patch-finetuned": {"stride": (10, 10), "frames": 1024, "finetuned": True},
    "frame-finetuned": {
        "patch": (128, 2),
        "stride": (128, 1),
        "finetuned": True,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("module", ["module.", ""])
def test_official_in_and_out_is_exact(layout, module, tmp_path):
    state = official(**LAYOUTS[layout], module=module)
    weights = load_weights(saved(state, tmp_path))
    back = to_official(weights)
    wanted = {
        "module." + key.removeprefix("module."): value
        for key, value in without(state, "v.head").items()
    }
    assert back.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(back[key], value), key
    assert len([x for x in weights.report if "ImageNet" in x]) == 4
    again = from_official(back)
    assert again.config == weights.config
    assert again.state.keys() == weights.state.keys()


@pytest.mark.parametrize("geometry", ["patch", "frame"])
@torch.no_grad()
def test_ours_out_and_in_gives_the_same_outputs(geometry):
    encoder = small(Grid.from_geometry(geometry))
    first = MSPM(encoder, ClusterMasker(count=20)).eval()
    state = {
        key if key.startswith("encoder.") else f"objective.{key}": value
        for key, value in first.state_dict().items()
    }
    written = to_official(Weights(state, {"encoder": encoder.config}))
    weights = from_official(written)
    second = MSPM(
        SpectrogramEncoder(**weights.config["encoder"]), ClusterMasker(count=20)
    )
    report = initialize(second.encoder, weights, second.eval())
    assert "pretext heads loaded" in report
    feats, frames = torch.randn(2, 160, 128), torch.tensor([160, 90])
    mask = first.draw_mask(feats, frames)
    one, two = first(feats, frames, mask), second(feats, frames, mask)
    assert torch.equal(one.loss, two.loss)


@torch.no_grad()
def test_fine_tuned_layout_brings_grid_and_head():
    weights = from_official(official(**LAYOUTS["patch-finetuned"]))
    config = weights.config["encoder"]
    assert config["grid"]["stride"] == [10, 10]
    assert weights.part("encoder")["positions.table"].shape == (12, 101, DIM)
    encoder = SpectrogramEncoder(**config)
    model = SpectrogramClassifier(encoder, 35)
    initialize(encoder, weights)
    model.head.load_state_dict(weights.part("head"))
    assert model(torch.randn(1, 100, 128)).shape == (1, 35)


def test_supervised_ast_checkpoint_loads():
    """AST's own models: the fine-tuned layout at 10 s, 12 x 101 patches."""
    state = official(stride=(10, 10), frames=1024, finetuned=True)
    assert state["module.v.pos_embed"].shape[1] == 1214
    weights = from_official(state)
    encoder = SpectrogramEncoder(**weights.config["encoder"])
    initialize(encoder, weights)
    head = weights.part("head")
    assert set(head) == {
        f"{layer}.{part}"
        for layer in ("norm", "linear")
        for part in ("weight", "bias")
    }


def test_an_ambiguous_stride_is_asked_for(tmp_path):
    # 12 x 50 patches of 10 x 10, or 8 x 75 of 16 x 16.
    state = official(stride=(10, 10), frames=512, finetuned=True)
    path = saved(state, tmp_path)
    with pytest.raises(WeightsError, match=r"600 positions.*give the stride"):
        load_weights(path)
    weights = load_weights(path, stride=(10, 10))
    assert weights.part("encoder")["positions.table"].shape == (12, 50, DIM)
    assert load_weights(path, stride=(16, 16)).config["encoder"]["grid"][
        "stride"
    ] == [16, 16]
    with pytest.raises(WeightsError, match=r"\(11, 11\) does not fit"):
        load_weights(path, stride=(11, 11))


def test_a_pretraining_length_that_no_patch_divides():
    weights = from_official(official(frames=998))
    table = weights.part("encoder")["positions.table"]
    assert table.shape == (8, 62, DIM)
    encoder = SpectrogramEncoder(**weights.config["encoder"])
    initialize(encoder, weights)
    assert torch.equal(encoder.positions.table, table)
    written = to_official(weights)
    assert (
        from_official(written).part("encoder")["positions.table"].equal(table)
    )


@pytest.mark.parametrize(
    "lost",
    [
        "v.blocks.0.",
        "v.blocks.1.mlp.fc2.bias",
        "v.norm.weight",
        "v.patch_embed.proj.bias",
    ],
)
def test_a_lost_tensor_is_named(lost, tmp_path):
    path = saved(without(official(depth=3), lost), tmp_path)
    ours = lost.replace("v.", "").replace("patch_embed.proj", "patch_embedding")
    with pytest.raises(WeightsError, match=f"model.pth.*missing.*{ours}"):
        load_weights(path)


@pytest.mark.parametrize("lost", ["v.pos_embed", "v.cls_token", "dist_token"])
def test_what_is_no_ssast_is_named(lost):
    with pytest.raises(WeightsError, match=f"not an SSAST layout.*{lost}"):
        from_official(without(official(), lost))


@pytest.mark.parametrize(
    "lost", ["cpredlayer.2.bias", "gpredlayer.0.", "mlp_head.1.bias"]
)
def test_half_a_head_is_refused(lost):
    state = official(finetuned="mlp" in lost, stride=(10, 10), frames=1024)
    if "mlp" not in lost:
        state = official()
    with pytest.raises(WeightsError, match="is incomplete"):
        from_official(without(state, lost))


@pytest.mark.parametrize(
    "key, message",
    [
        ("module.v.blocks.1.attn.extra", "unexpected.*attn.extra"),
        ("module.decoder.weight", "unknown tensor: decoder.weight"),
    ],
)
def test_a_surplus_tensor_is_named(key, message):
    with pytest.raises(WeightsError, match=message):
        from_official({**official(), key: torch.zeros(3)})


def test_a_tensor_of_another_shape_is_named():
    state = official()
    state["module.v.blocks.1.attn.proj.weight"] = torch.zeros(DIM, 7)
    with pytest.raises(WeightsError, match=r"blocks.1.attn.proj.weight.*7"):
        from_official(state)


def test_a_table_that_does_not_fit_its_length_is_refused():
    state = {**official(), "module.p_input_tdim": torch.tensor(1024)}
    with pytest.raises(WeightsError, match="80 patches.*8 x 64"):
        from_official(state)


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), [1, 2], {"epoch": 3, "state": {}}, {}, {"v.pos_embed": 1}],
)
def test_a_file_that_holds_something_else_is_refused(content, tmp_path):
    with pytest.raises(WeightsError, match="model.pth"):
        load_weights(saved(content, tmp_path))


class Harmful:
    """Unpickling this would run code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def test_code_in_a_pickle_is_not_run(tmp_path):
    with pytest.raises(WeightsError, match="a Python object .exec."):
        load_weights(saved({"v.pos_embed": Harmful()}, tmp_path))


def test_a_damaged_file_is_refused(tmp_path):
    path = saved(official(), tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="model.pth"):
        load_weights(path)


@pytest.mark.parametrize("heads, dim", [(2, 64), (1, 32), (2, 96)])
def test_heads_that_the_official_layout_cannot_tell_are_refused(heads, dim):
    encoder = small(heads=heads, dim=dim)
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    with pytest.raises(WeightsError, match="heads"):
        to_official(Weights(state, {"encoder": encoder.config}))


def test_grids_that_the_official_layout_cannot_tell_are_refused():
    # Positions of 128 mel bins, taken over by a model of 64.
    encoder = small(Grid(64))
    initialize(encoder, from_official(official()))
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    with pytest.raises(WeightsError, match="4 bands, the table has 8"):
        to_official(Weights(state, {"encoder": encoder.config}))
    # Without pretext parts nothing tells the number of mel bins.
    encoder = small(Grid(64))
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    with pytest.raises(WeightsError, match="128 mel bins, not 64"):
        to_official(Weights(state, {"encoder": encoder.config}))


def test_a_width_that_is_no_official_one_is_refused():
    state = {
        key: value[:, :, :32] if "token" in key or "pos_embed" in key else value
        for key, value in official().items()
    }
    key = "module.v.patch_embed.proj.weight"
    state[key] = state[key][:32]
    with pytest.raises(WeightsError, match="32"):
        from_official(state)


def test_what_has_no_official_place_is_refused():
    weights = from_official(official())
    weights.state["pooling.layer_scores"] = torch.zeros(DEPTH)
    with pytest.raises(WeightsError, match="pooling.layer_scores"):
        to_official(weights)


HEADS = {
    "cosines": ({"cosine_scale": 30.0}, "cosines"),
    "pooling": (
        {"pooling": "statistics"},
        "'statistics' pooling of the 'last'",
    ),
    "layers": ({"layers": "all"}, "'mean' pooling of the 'all' layers"),
    "detector": (None, "a detector of events"),
}


@pytest.mark.parametrize("arguments, message", HEADS.values(), ids=HEADS)
def test_heads_with_other_scores_are_refused(arguments, message, tmp_path):
    labels, place = label_encoder_of(["cat", "dog"]), tmp_path / "ours"
    if arguments is None:
        model = SpectrogramDetector(small(), 2)
        rules = {label: {"threshold": 0.5} for label in ("cat", "dog")}
        export_detector(place, model, FrontEnd(), labels, rules, card={})
    else:
        model = SpectrogramClassifier(small(), 2, **arguments)
        export_classifier(place, model, FrontEnd(), labels, False, card={})
    with pytest.raises(WeightsError, match=message):
        to_official(load_weights(place))


def test_another_size_is_refused_before_anything_is_loaded():
    weights = from_official(official())
    for arguments in ({"dim": 128, "heads": 2}, {"depth": 3}):
        encoder = small(**arguments)
        before = {k: v.clone() for k, v in encoder.state_dict().items()}
        with pytest.raises(WeightsError, match="size 64|missing blocks.2"):
            initialize(encoder, weights)
        norm = encoder.norm.weight
        assert torch.equal(norm, before["norm.weight"])


@torch.no_grad()
@pytest.mark.parametrize("other", [{"heads": 2}, {"crop": "start"}])
def test_settings_without_tensors_must_agree(other):
    [name] = other
    with pytest.raises(WeightsError, match=f"the checkpoint has {name} "):
        initialize(small(**other), from_official(official()))


def test_the_table_of_the_checkpoint_is_taken_over():
    weights = from_official(official(frames=320))
    encoder = small(table_frames=96)
    initialize(encoder, weights)
    assert torch.equal(
        encoder.positions.table, weights.state["encoder.positions.table"]
    )
    assert encoder.positions.table.shape == (8, 20, DIM)
    assert encoder.table_frames == 320
    again = SpectrogramEncoder(**encoder.config).eval()
    again.load_state_dict(encoder.state_dict())
    feats = torch.randn(1, 200, 128)
    assert torch.equal(again(feats).tokens, encoder(feats).tokens)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_table_that_was_frozen_stays_so(frozen):
    encoder = small(table_frames=96)
    model = SpectrogramClassifier(encoder, 3, freeze_encoder=frozen)
    initialize(model.encoder, from_official(official()))
    assert encoder.positions.table.requires_grad is not frozen


def test_another_stride_keeps_all_tensors():
    weights = from_official(official())
    encoder = small(Grid(128, (16, 16), (10, 10)))
    initialize(encoder, weights)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, weights.state[f"encoder.{key}"]), key
    rebuilt = SpectrogramEncoder(**encoder.config)
    rebuilt.load_state_dict(encoder.state_dict())


@pytest.mark.parametrize("n_mels", [40, 64, 80, 100, 200])
@torch.no_grad()
def test_other_mel_bins_hear_a_constant_spectrogram_alike(n_mels):
    weights = from_official(official(patch=(128, 2)))
    source = SpectrogramEncoder(**weights.config["encoder"])
    initialize(source, weights)
    encoder = small(Grid(n_mels, (n_mels, 2)))
    report = initialize(encoder, weights)
    assert any("resampled" in line for line in report)
    patch = encoder.patch_embedding
    ours = patch(torch.full((1, n_mels * 2), 1.7)) - patch.bias
    theirs = source.patch_embedding(torch.full((1, 256), 1.7))
    theirs = theirs - source.patch_embedding.bias
    assert (ours - theirs).norm() < 0.1 * theirs.norm()


@torch.no_grad()
def test_pretext_heads_follow_the_patch_size():
    weights = from_official(official(patch=(128, 2)))
    # A head that predicts a ramp over frequency still does so.
    ramp = torch.linspace(0, 1, 128)[:, None].expand(128, 2).flatten()
    weights.state["objective.generator_head.2.weight"].zero_()
    weights.state["objective.generator_head.2.bias"].copy_(ramp)
    objective = MSPM(small(Grid(64, (64, 2))), ClusterMasker(ratio=0.5))
    initialize(objective.encoder, weights, objective)
    predicted = objective.generator_head(torch.randn(DIM)).view(64, 2)
    expected = torch.linspace(0, 1, 64)[:, None].expand(64, 2)
    assert (predicted - expected).abs().max() < 0.02


def test_pretext_parts_that_are_not_there_start_anew():
    weights = from_official(official())
    objective = MSPM(small(), ClusterMasker(ratio=0.5), task="discriminative")
    report = initialize(objective.encoder, weights, objective)
    assert any(x.startswith("left out: generator_head") for x in report)
    fresh = from_official(without(official(), "cpredlayer"))
    objective = MSPM(small(), ClusterMasker(ratio=0.5))
    before = objective.discriminator[0].weight.clone()
    report = initialize(objective.encoder, fresh, objective)
    assert any(x.startswith("started anew: discriminator") for x in report)
    assert torch.equal(objective.discriminator[0].weight, before)
    assert torch.equal(
        objective.mask_embedding, fresh.state["objective.mask_embedding"]
    )


def test_resampling_patches_is_interpolation_on_the_patch():
    ramp = torch.arange(8.0)[:, None] * torch.ones(1, 2)
    out = resample_patches(ramp.flatten()[None], (8, 2), (4, 2)).view(4, 2)
    assert (out.diff(dim=0) > 1.5).all() and torch.equal(out[:, 0], out[:, 1])
    same = resample_patches(ramp.flatten()[None], (8, 2), (8, 2))
    torch.testing.assert_close(same, ramp.flatten()[None])


def exported(folder, encoder, **config):
    folder.mkdir(exist_ok=True)
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    config = {"format_version": 1, "encoder": encoder.config, **config}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_brings_config_and_tensors(tmp_path):
    encoder = small()
    weights = load_weights(exported(tmp_path, encoder))
    assert weights.config["encoder"] == encoder.config
    assert all(
        torch.equal(weights.state[f"encoder.{key}"], value)
        for key, value in encoder.state_dict().items()
    )


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: (f / "config.json").unlink(), "config.json.* missing"),
        (lambda f: (f / "model.safetensors").unlink(), "safetensors missing"),
        (lambda f: (f / "config.json").write_text("{"), "damaged"),
        (lambda f: (f / "config.json").write_text("[]"), "damaged"),
        (lambda f: (f / "config.json").write_text("{}"), "damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "damaged"),
    ],
)
def test_a_spoilt_folder_is_refused(spoil, message, tmp_path):
    spoil(exported(tmp_path, small()))
    with pytest.raises(WeightsError, match=message):
        load_weights(tmp_path)


def test_a_folder_of_another_version_is_refused(tmp_path):
    exported(tmp_path, small(), format_version=3)
    with pytest.raises(WeightsError, match="format version 3.*reads 1 to 2"):
        load_weights(tmp_path)


def test_a_paper_size_without_its_last_block_is_refused():
    encoder = SpectrogramEncoder.from_size("tiny")
    tensors = encoder.state_dict().items()
    state = {f"encoder.{key}": value for key, value in tensors}
    state["objective.mask_embedding"] = torch.zeros(encoder.dim)
    whole = to_official(Weights(state, {"encoder": encoder.config}))
    assert from_official(whole).config["encoder"]["depth"] == 12
    with pytest.raises(WeightsError, match="11 blocks of size 192"):
        from_official(without(whole, "blocks.11."))


@pytest.fixture
def alike(tmp_path):
    """Three exports of one model, with weights of 1, 2 and 5."""
    folders = [tmp_path / name for name in ("one", "two", "five")]
    for number, folder in enumerate(folders):
        model = MSPM(small())
        for value in exported_state(model).values():
            value.fill_(1 + number**2)
        export_pretrained(folder, model, FrontEnd(), {}, 2.0 + number)
    return folders


def test_mean_of_several_weights(alike, tmp_path):
    models = load_alike(alike)
    for key, value in average(models).state.items():
        assert value.unique().item() == pytest.approx(8 / 3), key
    # What it was made of is as it was.
    for one, number in zip(models, (1, 2, 5), strict=True):
        assert all((value == number).all() for value in one.state.values())
    mean = load_weights(export_mean(tmp_path / "mean", alike))
    assert mean.state.keys() == models[0].state.keys()
    assert all(v.mean() == pytest.approx(8 / 3) for v in mean.state.values())
    assert mean.config == models[0].config
    card = (tmp_path / "mean" / "README.md").read_text()
    names = ", ".join(f"`{Path(folder).name}`" for folder in alike)
    assert f"The mean of the weights of {names}." in card


def test_counts_have_no_mean():
    key = "objective.steps"
    models = [Weights({key: torch.tensor(n)}, config={}) for n in (3, 8)]
    assert average(models).state[key] == 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: MSPM(small(depth=DEPTH + 1)), "encoder: depth is 3, not 2"),
        (lambda: MSPM(small(Grid(64))), "encoder: grid is .*64"),
    ],
)
def test_mean_is_of_the_same_model_only(other, message, alike, tmp_path):
    folder = tmp_path / "other"
    features = FrontEnd(n_mels=other().encoder.grid.n_mels)
    export_pretrained(folder, other(), features, card={})
    with pytest.raises(WeightsError, match=f"{folder}: {message}"):
        load_alike([alike[0], folder])


def test_mean_is_of_one_objective_and_front_end_only(alike, tmp_path):
    model = MSPM(small())
    export_encoder(tmp_path / "encoder", model.encoder, FrontEnd(), card={})
    with pytest.raises(WeightsError, match="size: missing .*mask_embedding"):
        load_alike([*alike, tmp_path / "encoder"])
    other = FrontEnd({"mean": 1.5, "std": 4.0})
    export_pretrained(tmp_path / "other", model, other, card={})
    with pytest.raises(
        WeightsError, match="features: statistics is .*1.5.*, not .*"
    ):
        load_alike([*alike, tmp_path / "other"])


def test_mean_is_of_pretrainings(alike, tmp_path):
    torch.save(official(), tmp_path / "released.pth")
    with pytest.raises(
        WeightsError, match="released.pth: not the export of a pretr"
    ):
        load_alike([*alike, tmp_path / "released.pth"])


def test_an_encoder_alone_goes_out_and_comes_back(tmp_path):
    encoder = small()
    ours = export_encoder(tmp_path / "ours", encoder, FrontEnd(), card={})
    convert(ours, tmp_path / "encoder.pth")
    convert(tmp_path / "encoder.pth", tmp_path / "back")
    weights = load_weights(tmp_path / "back")
    assert "objective" not in weights.config
    for key, value in encoder.state_dict().items():
        assert torch.equal(weights.part("encoder")[key], value), key
