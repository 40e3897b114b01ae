"""Pooling, heads, and the ways to keep an encoder as it is."""

import pytest
import torch
from torch import nn

from ssast_lobes import ClipPooling, SpectrogramClassifier, SpectrogramEncoder
from ssast_lobes.models.encoder import EncoderOutput
from ssast_lobes.models.heads import ClassificationHead


def classifier(**arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=3, heads=2, table_frames=96)
    return SpectrogramClassifier(encoder, n_classes=5, **arguments)


def batch():
    feats = torch.randn(3, 64, 128, generator=torch.Generator().manual_seed(0))
    return feats, torch.tensor([64, 40, 9])


def encoded():
    """An encoder output of three blocks, two clips, the second shorter."""
    is_token = torch.tensor([[True] * 4, [True, True, False, False]])
    tokens = torch.randn(2, 4, 6) * is_token[:, :, None]
    states = torch.randn(4, 2, 4, 6) * is_token[:, :, None]
    return EncoderOutput(
        tokens,
        is_token,
        torch.randn(2, 2, 6),
        2,
        states,
        torch.randn(4, 2, 2, 6),
    )


def train_step(model, rate=0.1):
    """One step of gradient descent; returns the tensors that changed."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    learn = [p for p in model.parameters() if p.requires_grad]
    model(*batch()).square().sum().backward()
    torch.optim.SGD(learn, lr=rate).step()
    after = model.state_dict()
    return {k for k, v in before.items() if not torch.equal(v, after[k])}


def test_pooling_the_last_layer():
    output = encoded()
    mean = ClipPooling(3)(output)
    assert torch.allclose(mean[0], output.tokens[0].mean(0))
    assert torch.allclose(mean[1], output.tokens[1, :2].mean(0))
    classes = ClipPooling(3, "class")(output)
    assert torch.allclose(classes, output.class_tokens.mean(1))


def test_dynamics_of_each_layer_compare_within_a_band():
    output = encoded()
    parts = ClipPooling(3, "dynamics", "all")(output).unflatten(1, (4, 4, 6))
    # Two bands of two steps: of the first clip both, of the second one.
    states = output.hidden_states.unflatten(2, (2, 2))
    change = (states[:, 0, :, 1] - states[:, 0, :, 0]).square().mean(1)
    torch.testing.assert_close(parts[0, :, 2], (change + 1e-6).sqrt())
    weighted = ClipPooling(3, "dynamics", "weighted")(output).unflatten(
        1, (4, 6)
    )
    state = states[1:, 0].mean(0)
    change = (state[:, 1] - state[:, 0]).square().mean(0)
    torch.testing.assert_close(weighted[0, 2], (change + 1e-6).sqrt())


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_weighted_layers_are_a_softmax_of_block_outputs(pooling):
    output, pool = encoded(), ClipPooling(3, pooling, "weighted")
    pool.layer_scores.data = torch.tensor([0.3, -1.0, 2.0])
    share = pool.layer_scores.exp() / pool.layer_scores.exp().sum()
    expected = 0
    for layer in range(3):
        if pooling == "class":
            vector = output.class_hidden_states[layer + 1].mean(1)
        else:
            state = output.hidden_states[layer + 1]
            vector = torch.stack([state[0].mean(0), state[1, :2].mean(0)])
        expected = expected + share[layer] * vector
    torch.testing.assert_close(pool(output), expected)


def test_weighted_layers_start_equal_and_learn():
    pool = ClipPooling(3, layers="weighted")
    assert pool.layer_scores.softmax(0).tolist() == pytest.approx([1 / 3] * 3)
    pool(encoded()).square().sum().backward()
    assert pool.layer_scores.grad.any()
    assert pool.needs_hidden_states and not ClipPooling(3).needs_hidden_states


def test_pooling_config_builds_it_again():
    pool = ClipPooling(3, "class", "weighted")
    again = ClipPooling(**pool.config)
    again.load_state_dict(pool.state_dict())
    assert again.config == pool.config


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"pooling": "max"}, "pooling must be one of mean, .*'max'"),
        ({"layers": "first"}, "last"),
    ],
)
def test_unknown_pooling_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClipPooling(3, **arguments)


def test_head_is_norm_and_linear():
    head, clip = ClassificationHead(6, 4), torch.randn(2, 6)
    centered = clip - clip.mean(1, keepdim=True)
    spread = (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()
    expected = centered / spread @ head.linear.weight.t() + head.linear.bias
    torch.testing.assert_close(head(clip), expected)


@torch.no_grad()
def test_projection_after_the_mean_is_as_before_it():
    head, steps = ClassificationHead(6, 4, projection=3), torch.randn(2, 9, 6)
    projected = steps @ head.projector.weight.t() + head.projector.bias
    expected = projected.mean(1) @ head.linear.weight.t() + head.linear.bias
    torch.testing.assert_close(head(steps.mean(1)), expected)


@pytest.mark.parametrize("pooling", ["mean", "class"])
@pytest.mark.parametrize("layers", ["last", "weighted"])
@torch.no_grad()
def test_scores_of_a_clip_do_not_depend_on_its_neighbors(pooling, layers):
    model = classifier(pooling=pooling, layers=layers).eval()
    feats, n_frames = batch()
    together = model(feats, n_frames)
    assert together.shape == (3, 5)
    for row, count in enumerate(n_frames):
        alone = model(feats[row : row + 1, :count], count[None])
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", ["last", "weighted"])
def test_end_to_end_everything_learns(layers):
    model = classifier(layers=layers)
    changed = train_step(model)
    left = set(model.state_dict()) - changed
    # The final norm is not on the way from the blocks' outputs.
    norm = {"encoder.norm.weight", "encoder.norm.bias"}
    assert left == (norm if layers == "weighted" else set())
    waiting = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in waiting)


@pytest.mark.parametrize("layers", ["last", "weighted"])
def test_a_frozen_encoder_stays_as_it_is_and_in_evaluation(layers):
    model = classifier(layers=layers, freeze_encoder=True)
    model.encoder.blocks[2].drop_path = 0.5
    model.train()
    assert model.training and model.head.training
    assert not any(module.training for module in model.encoder.modules())
    assert torch.equal(model(*batch()), model(*batch()))
    changed = train_step(model)
    assert changed and not any(key.startswith("encoder.") for key in changed)
    assert ("pooling.layer_scores" in changed) == (layers == "weighted")
    model.eval()
    assert not model.training


def test_frozen_blocks_are_the_first_ones():
    model = classifier(frozen_blocks=2)
    changed = train_step(model)
    parts = {".".join(key.split(".")[:3]) for key in changed}
    assert {p for p in parts if p.startswith("encoder.")} == {
        "encoder.blocks.2",
        "encoder.norm.weight",
        "encoder.norm.bias",
    }
    assert model.train().encoder.training


@pytest.mark.parametrize("layers", ["last", "weighted"])
def test_lora_trains_adapters_in_every_block_only(layers):
    model = classifier(lora_rank=4, layers=layers)
    adapters = [k for k in model.state_dict() if "adapter_down" in k]
    assert len(adapters) == 3 * 4
    for layer in ("qkv", "proj", "fc1", "fc2"):
        assert sum(f".{layer}." in key for key in adapters) == 3
    for _ in range(2):
        changed = train_step(model)
        model.zero_grad()
    inside = {key for key in changed if key.startswith("encoder.")}
    assert len(inside) == 2 * 3 * 4
    assert all(".adapter_" in key for key in inside)


@torch.no_grad()
def test_lora_changes_nothing_before_it_is_trained():
    expected = classifier().eval()(*batch())
    adapted = classifier(lora_rank=4).eval()
    plain = classifier().eval()
    adapted.head.load_state_dict(plain.head.state_dict())
    torch.testing.assert_close(adapted(*batch()), expected)


@pytest.mark.parametrize("layers", ["last", "weighted"])
def test_merged_lora_equals_the_adapters(layers):
    model = classifier(lora_rank=4, layers=layers)
    for name, weight in model.named_parameters():
        if ".adapter_" in name:
            nn.init.normal_(weight, std=0.2)
    plain = classifier(layers=layers).eval()
    before = plain.embed(*batch())
    plain.encoder.load_state_dict(model.merged_encoder_state())
    plain.pooling.load_state_dict(model.pooling.state_dict())
    with torch.no_grad():
        adapted, merged = model.eval().embed(*batch()), plain.embed(*batch())
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)
    assert (merged - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    "arguments", [{}, {"freeze_encoder": True}, {"frozen_blocks": 1}]
)
def test_merged_state_without_adapters_is_the_encoders(arguments):
    model = classifier(**arguments)
    state = model.merged_encoder_state()
    assert all(
        torch.equal(state[key], value)
        for key, value in model.encoder.state_dict().items()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"freeze_encoder": True, "frozen_blocks": 1},
        {"freeze_encoder": True, "lora_rank": 2},
        {"frozen_blocks": 1, "lora_rank": 2},
    ],
)
def test_two_ways_of_freezing_are_refused(arguments):
    with pytest.raises(ValueError, match="choose one of"):
        classifier(**arguments)


def test_more_frozen_blocks_than_there_are_is_refused():
    classifier(frozen_blocks=3)
    with pytest.raises(ValueError, match="a whole number from 0 to 3, got 4"):
        classifier(frozen_blocks=4)


def test_the_head_learns_a_separable_task():
    model = classifier(freeze_encoder=True)
    feats, n_frames = batch()
    learn = torch.optim.Adam(model.head.parameters(), lr=0.05)
    target = torch.tensor([0, 1, 2])
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(feats, n_frames), target)
        learn.zero_grad()
        loss.backward()
        learn.step()
    assert loss < 0.1
