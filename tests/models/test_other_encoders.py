"""Encoders with other class tokens, norms, positions and blocks; BEATs."""

import pytest
import torch

from ssast_lobes import BEATsEncoder, Grid, SpectrogramEncoder
from ssast_lobes.models.encoders import make_encoder
from ssast_lobes.models.patches import PositionTable
from ssast_lobes.models.pooling import ClipPooling
from ssast_lobes.objectives import load_objective

GRID = Grid(32, (8, 8))
OTHERS = [
    {"n_class_tokens": 0, "qkv_bias": False},
    {"n_class_tokens": 1, "crop": "start"},
    {"blocks": "attention_post_norm", "norms": ["first"]},
    {"norms": ["patches", "first"], "n_class_tokens": 1},
]
others = pytest.mark.parametrize("arguments", OTHERS, ids=str)


def small(**arguments):
    sizes = {"dim": 32, "depth": 2, "heads": 2, "table_frames": 128}
    return SpectrogramEncoder(GRID, **sizes, **arguments).eval()


def small_beats():
    return BEATsEncoder(
        GRID, 32, 2, 2, patch_dim=24, kernel=8, groups=4, buckets=16
    ).eval()


def test_the_configuration_of_ssast_has_no_new_entries():
    assert set(small().config) == {
        *("grid", "dim", "depth", "table_frames", "table", "blocks"),
        *("heads", "mlp_ratio"),
    }


@others
def test_an_encoder_is_rebuilt_from_its_config(arguments):
    encoder = small(**arguments)
    again = make_encoder(encoder.config).eval()
    again.load_state_dict(encoder.state_dict())
    assert again.config == encoder.config
    feats = torch.randn(2, 50, 32)
    assert torch.equal(again(feats).tokens, encoder(feats).tokens)
    output = encoder(feats, hidden_states=True)
    n_classes = arguments.get("n_class_tokens", 2)
    assert output.class_tokens.shape == (2, n_classes, 32)
    assert output.class_hidden_states.shape == (3, 2, n_classes, 32)
    # Without a last norm the output is that of the last block.
    same = torch.equal(output.tokens, output.hidden_states[-1])
    assert same == ("last" not in arguments.get("norms", ["last"]))


@pytest.mark.parametrize("make", [small, small_beats])
def test_a_clip_and_dropped_tokens_do_not_depend_on_neighbors(make):
    encoder = make()
    feats = torch.randn(2, 64, 32)
    together = encoder(feats, torch.tensor([64, 24]), hidden_states=True)
    alone = encoder(feats[1:, :24], torch.tensor([24]), hidden_states=True)
    own = together.patches[1, :, :3]
    torch.testing.assert_close(own, alone.patches[0])
    assert not together.patches[1, :, 3:].any()
    # Dropped tokens leave no trace; here time 2 of the lowest band.
    index = torch.tensor([[9, 1, 4, 0]])
    keep = index, torch.tensor([[True, True, True, False]])
    output = encoder(feats[:1], keep=keep)
    other = feats[:1].clone()
    other[:, 16:24, :8] += 1
    changed = encoder(other, keep=keep)
    torch.testing.assert_close(changed.tokens, output.tokens)
    assert not output.tokens[:, 3].any()


def test_beats_is_rebuilt_from_its_config():
    encoder = small_beats()
    again = make_encoder(encoder.config).eval()
    assert isinstance(again, BEATsEncoder) and again.config == encoder.config
    again.load_state_dict(encoder.state_dict())
    feats = torch.randn(1, 40, 32)
    assert torch.equal(again(feats).tokens, encoder(feats).tokens)


def test_beats_replaces_masked_tokens():
    encoder, feats = small_beats(), torch.randn(1, 32, 32)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    plain = encoder(feats, mask=mask, mask_embedding=torch.ones(32))
    feats[:, 16:24, 8:16] = 7.0  # What is masked does not show.
    changed = encoder(feats, mask=mask, mask_embedding=torch.ones(32))
    torch.testing.assert_close(changed.tokens, plain.tokens)
    with pytest.raises(ValueError, match="mask needs mask_embedding"):
        encoder(feats, mask=mask)
    with pytest.raises(ValueError, match=r"must be \(B, 4, 4\), got \(1, 2, 8"):
        encoder(feats, mask=mask.view(1, 2, 8), mask_embedding=torch.ones(32))


@pytest.mark.parametrize("name", ["beats", "best_rq", "audiomosaic", "m2d"])
def test_objectives_train_beats(name):
    objective = load_objective(name)(small_beats())
    output = objective(torch.randn(3, 32, 32), torch.tensor([32, 32, 16]))
    output.loss.backward()
    assert output.loss > 0
    found = objective.encoder.parameters()
    assert any(p.grad is not None and p.grad.any() for p in found)


def test_a_short_clip_takes_the_start_of_the_table():
    table = PositionTable(2, 8, 4, crop="start")
    found = table(2, torch.tensor([3]), 5).unflatten(1, (2, 5))[0]
    assert torch.equal(found[:, :3], table.table[:, :3])
    center = PositionTable(2, 8, 4)
    found = center(2, torch.tensor([4]), 4).unflatten(1, (2, 4))[0]
    assert torch.equal(found, center.table[:, 2:6])


def test_a_loaded_table_is_kept_where_positions_are_fixed():
    table, source = PositionTable(2, 4, 8), PositionTable(2, 4, 8)
    table.load_state_dict(source.state_dict())
    table.fix_sincos()
    assert torch.equal(table.table, source.table)
    assert not table.table.requires_grad


def test_poolings_of_other_labs():
    output = small(n_class_tokens=1)(
        torch.randn(2, 64, 32), torch.tensor([64, 24]), hidden_states="normed"
    )
    tokens, count = output.tokens, output.is_token.sum(1, keepdim=True)
    classes = output.class_tokens[:, 0]
    mean = tokens.sum(1) / count
    both = (tokens.sum(1) + classes) / (count + 1)
    torch.testing.assert_close(output.clip("tokens"), both)
    torch.testing.assert_close(
        output.clip("class_mean"), torch.cat([classes, mean], 1)
    )
    bands = output.clip("bands").unflatten(1, (4, 32))
    alone = output.patches[1, :, :3].mean(1)
    torch.testing.assert_close(bands[1], alone)
    pooling = ClipPooling(2, "class_mean", "normed")
    vector = pooling(output)
    assert vector.shape == (2, pooling.output_size(32)) == (2, 128)
    # Classes of all layers come first.
    layers = output.class_hidden_states[1:, :, 0]
    torch.testing.assert_close(vector[:, :64], torch.cat(list(layers), 1))
    torch.testing.assert_close(vector[:, 96:], mean)


@pytest.mark.parametrize("pooling", ["class", "class_mean"])
def test_no_class_tokens_cannot_be_pooled(pooling):
    output = small(n_class_tokens=0)(torch.randn(1, 64, 32))
    with pytest.raises(ValueError, match="has no class tokens"):
        output.clip(pooling)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"norms": ["middle"]}, "norms must be a list, each of patches, first"),
        ({"n_class_tokens": 3}, "n_class_tokens must be a whole number from 0"),
        ({"crop": "end"}, "crop must be one of center, start"),
        ({"blocks": "mamba", "n_class_tokens": 1}, "n_class_tokens=2"),
        ({"blocks": "mamba", "qkv_bias": False}, "no qkv_bias to leave out"),
    ],
)
def test_wrong_arguments_are_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)
