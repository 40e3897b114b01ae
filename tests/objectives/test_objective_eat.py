"""EAT against plain code: targets, masks, noise, and both of its errors."""

import pytest
import torch
from torch import nn

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.eat import _normal

LENGTHS = (160, 97, 33)


def small(**arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        Grid(), dim=32, depth=2, heads=2, table_frames=160
    )
    objective = load_objective("eat")(encoder, **arguments).eval()
    # A teacher that is not the student shows where it is used.
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return objective


def batch():
    draw = torch.Generator().manual_seed(0)
    feats = torch.zeros(len(LENGTHS), max(LENGTHS), 128)
    for row, length in zip(feats, LENGTHS, strict=True):
        row[:length] = 0.5 * torch.randn(length, 128, generator=draw)
    return feats, torch.tensor(LENGTHS)


def valid_of(objective, feats, n_frames):
    steps, longest = objective.encoder.token_lengths(n_frames, feats.shape[1])
    return objective.encoder.grid.is_token(steps, longest)


def targets_by_hand(encoder, clip):
    """One clip: MLP outputs, torch's instance norm, mean, layer norm."""
    head = encoder.class_tokens + encoder.class_positions
    patches = encoder.patch_embedding(encoder.grid.unfold(clip))
    steps = encoder.grid.n_time(clip.shape[1])
    positions = encoder.positions(8, torch.tensor([steps]), steps)
    x = torch.cat([head[None], patches + positions], dim=1)
    layers = []
    for block in encoder.blocks:
        x = x + block.attn(block.norm1(x))
        branch = block.mlp(block.norm2(x))
        x = x + branch
        normed = nn.functional.instance_norm(branch[:, 2:].transpose(1, 2))
        layers.append(normed.transpose(1, 2))
    mean = torch.stack(layers).mean(0)
    return nn.functional.layer_norm(mean, (32,))[0]


@torch.no_grad()
def test_targets_are_the_normalized_mean_of_the_mlps():
    objective, (feats, n_frames) = small(), batch()
    valid = valid_of(objective, feats, n_frames)
    tokens, clips = objective.targets(feats, n_frames, valid)
    for row, count in enumerate(LENGTHS):
        clip = feats[row : row + 1, :count]
        expected = targets_by_hand(objective.teacher.encoder, clip)
        own = tokens[row, valid[row]]
        assert (own - expected).abs().max() < 1e-4
        assert (clips[row] - expected.mean(0)).abs().max() < 1e-5
    assert (tokens[~valid] == 0).all()


@torch.no_grad()
def test_reading_the_layers_leaves_nothing_behind():
    objective, (feats, n_frames) = small(n_masks=1), batch()
    for _ in range(2):
        objective(feats, n_frames, clip_keys=n_frames)
    for module in objective.modules():
        assert not module._forward_hooks


class Bare(nn.Module):
    """A block without an MLP to listen to."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, attend=None):
        return self.block(x, attend)


@torch.no_grad()
def test_blocks_without_mlp_are_heard_as_a_whole():
    objective, (feats, n_frames) = small(), batch()
    encoder = objective.teacher.encoder
    feats, n_frames = feats[:1], n_frames[:1]
    states = encoder(feats, n_frames, hidden_states=True).hidden_states[1:]
    normed = [
        nn.functional.instance_norm(state.transpose(1, 2)).transpose(1, 2)
        for state in states
    ]
    expected = nn.functional.layer_norm(torch.stack(normed).mean(0), (32,))
    encoder.blocks = nn.ModuleList(Bare(block) for block in encoder.blocks)
    valid = valid_of(objective, feats, n_frames)
    tokens, _ = objective.targets(feats, n_frames, valid)
    assert (tokens - expected).abs().max() < 1e-4


@torch.no_grad()
def test_the_loss_equals_plain_code():
    # Without noise at hidden tokens, the decoder finds 0 there.
    objective, (feats, n_frames) = small(noise_std=0.0, n_masks=1), batch()
    mask = objective.draw_mask(feats, n_frames, clip_keys=n_frames)
    regressions, utterances = [], []
    for row, count in enumerate(LENGTHS):
        clip = feats[row : row + 1, :count]
        hidden = mask[row, :, : objective.encoder.grid.n_time(count)].flatten()
        index = (~hidden).nonzero().T
        encoded = objective.encoder(
            clip, torch.tensor([count]), keep=(index, index >= 0)
        )
        x = torch.zeros(1, len(hidden), 32)
        x[0, ~hidden] = encoded.tokens[0]
        x = x.transpose(1, 2).unflatten(2, (8, -1))
        for layer in objective.decoder.layers:
            mixed = layer(x).movedim(1, 3)
            mixed = nn.functional.gelu(nn.functional.layer_norm(mixed, (32,)))
            x = x + mixed.movedim(3, 1)
        predictions = objective.head(x.flatten(2).transpose(1, 2))[0, hidden]
        goals = targets_by_hand(objective.teacher.encoder, clip)
        distance = (predictions - goals[hidden]).square().sum(1)
        regressions.append(distance.mean() / 32**0.5)
        whole = encoded.class_tokens[0].mean(0) - goals.mean(0)
        utterances.append(whole.square().sum() / 32**0.5)
    loss, logs = objective(feats, n_frames, mask)
    regression = torch.stack(regressions).mean().item()
    utterance = torch.stack(utterances).mean().item()
    assert logs["regression"].item() == pytest.approx(regression, rel=1e-4)
    assert logs["utterance"].item() == pytest.approx(utterance, rel=1e-4)
    assert loss.item() == pytest.approx(regression + utterance, rel=1e-4)
    heavier = small(noise_std=0.0, n_masks=1, utterance_weight=3)
    loss = heavier(feats, n_frames, mask).loss.item()
    assert loss == pytest.approx(regression + 3 * utterance, rel=1e-4)


@torch.no_grad()
def test_several_masks_are_the_mean_of_each():
    objective, (feats, n_frames) = small(noise_std=0.0, n_masks=3), batch()
    generator = torch.Generator().manual_seed(3)
    together = objective(feats, n_frames, generator=generator)
    generator.manual_seed(3)
    steps, longest = objective.encoder.token_lengths(n_frames, 160)
    rand = objective.random_source(feats, generator)
    masks = objective.draw_masks(rand, steps, longest)
    assert masks.shape == (3, 3, 8, longest)
    assert not torch.equal(masks[:, 0], masks[:, 1])
    apart = [objective(feats, n_frames, mask) for mask in masks.unbind(1)]
    for key in ("regression", "utterance"):
        mean = sum(output.logs[key].item() for output in apart) / 3
        assert together.logs[key].item() == pytest.approx(mean, rel=1e-4)


@torch.no_grad()
def test_the_teacher_runs_once_for_all_masks():
    objective, (feats, n_frames) = small(n_masks=4), batch()
    sizes = []
    objective.teacher.encoder.register_forward_hook(
        lambda _, given, output: sizes.append(len(output.tokens))
    )
    objective(feats, n_frames)
    assert sizes == [len(LENGTHS)]


@torch.no_grad()
def test_hidden_tokens_are_noise_of_their_own():
    objective, (feats, n_frames) = small(n_masks=2), batch()
    given = []
    objective.decoder.register_forward_hook(
        lambda _, inputs, output: given.extend(inputs)
    )
    objective(feats, n_frames)
    x, valid, _ = given
    # Visible tokens come from a layer norm and are far from 0.
    hidden = x.abs().amax(2) < 0.1
    wanted = (0.8 * valid.sum(1)).round().long()
    assert torch.equal((hidden & valid).sum(1), wanted)
    noise = x[hidden]
    assert noise.std().item() == pytest.approx(0.01, rel=0.05)
    assert noise.mean().abs() < 1e-3
    assert len(noise.unique()) > 0.9 * noise.numel()


def test_normal_noise_is_normal_and_never_infinite():
    # All that 24 bits can give, at its ends.
    ends = torch.tensor([0.0, 2**-24, 1 - 2**-24])
    assert _normal(ends).isfinite().all()
    draws = _normal(torch.rand(200_000, generator=torch.manual_seed(0)))
    assert draws.mean().abs() < 0.01
    assert draws.std().item() == pytest.approx(1, abs=0.01)
    assert (draws.abs() < 1).float().mean().item() == pytest.approx(
        0.6827, abs=0.005
    )


def test_groups_must_divide_the_token_size():
    encoder = SpectrogramEncoder(dim=24, depth=1, heads=2)
    with pytest.raises(ValueError, match="divisible by groups"):
        load_objective("eat")(encoder)
