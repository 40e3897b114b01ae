"""JEPA against plain code: context, groups of targets, teacher and loss."""

import pytest
import torch
from torch import nn

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.models.patches import sincos_positions
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.base import make_masker
from ssast_lobes.objectives.multi_block_masker import MultiBlockMasker
from ssast_lobes.utils.random import RandomSource

LENGTHS = (160, 97, 33)


def small(**arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        Grid(), dim=32, depth=3, heads=2, table_frames=160
    )
    objective = load_objective("jepa")(encoder, **arguments).eval()
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


def drawn(masker, n_time, n_freq, seed=0):
    n_time = torch.tensor(n_time)
    rand = RandomSource(len(n_time), n_time.device, torch.manual_seed(seed))
    return masker.draw_targets(rand, n_time, n_freq, int(n_time.max()))


@pytest.mark.parametrize("n_freq", [1, 3, 8])
@pytest.mark.parametrize("ratio", [0.3, 0.81])
def test_context_and_targets_have_exact_counts_and_never_meet(ratio, n_freq):
    masker = MultiBlockMasker(
        ratio=ratio, n_targets=4, target_ratio=0.22, block_size=3
    )
    n_time = list(range(1, 60, 3))
    mask, targets = drawn(masker, n_time, n_freq)
    counts = n_freq * torch.tensor(n_time)
    assert torch.equal(mask.sum((1, 2)), masker.n_masked(counts))
    assert not (targets & ~mask[:, None]).any()
    group = (0.22 * counts.double()).round().long()
    sizes = targets.sum((2, 3))
    assert (sizes <= group[:, None]).all()
    for row, length in enumerate(n_time):
        assert not mask[row, :, length:].any()
    if ratio == 0.81 and n_freq == 8:
        # Of a long clip there is room for all groups, and for tokens that
        # are neither seen nor predicted.
        assert torch.equal(sizes[-1], group[-1].expand(4))
        neither = mask & ~targets.any(1)
        assert 0.05 < neither[-1].float().mean() < 0.35


def test_groups_are_blocks_and_differ():
    masker = MultiBlockMasker(
        ratio=0.81, n_targets=2, target_ratio=9 / 512, block_size=3
    )
    whole = 0
    for seed in range(20):
        targets = drawn(masker, [64], 8, seed)[1][0]
        assert not torch.equal(targets[0], targets[1])
        for group in targets:
            rows, columns = group.any(1).sum(), group.any(0).sum()
            whole += bool(rows == columns == 3)
    # Blocks that touch a lower one are cut; most are whole.
    assert whole > 20


def test_every_token_is_a_target_equally_often():
    masker = MultiBlockMasker(
        ratio=0.81, n_targets=4, target_ratio=0.22, block_size=3
    )
    mask, targets = drawn(masker, [12] * 2000, 4)
    seen = (~mask).float().mean(0)
    assert (seen - 0.19).abs().max() < 0.04
    chosen = targets.float().mean((0, 1))
    assert (chosen - chosen.mean()).abs().max() < 0.03


def test_its_mask_is_that_of_the_groups_and_its_config_builds_it():
    masker = MultiBlockMasker(
        count=20, n_targets=3, target_ratio=0.2, block_size=2
    )
    again = make_masker(masker.config)
    assert again.config == masker.config
    n_time = torch.tensor([9, 5])
    mask = again(n_time, 4, 9, torch.manual_seed(0))
    assert torch.equal(mask, drawn(masker, [9, 5], 4)[0])


@torch.no_grad()
def test_targets_are_the_mean_of_the_last_blocks():
    objective, (feats, n_frames) = small(), batch()
    n_time, longest = objective.encoder.token_lengths(n_frames, 160)
    is_token = objective.encoder.grid.is_token(n_time, longest)
    targets = objective.targets(feats, n_frames, is_token)
    for row, count in enumerate(LENGTHS):
        clip = feats[row : row + 1, :count]
        output = objective.teacher.encoder(clip, hidden_states=True)
        layers = [
            nn.functional.instance_norm(state.transpose(1, 2)).transpose(1, 2)
            for state in output.hidden_states[-2:]
        ]
        expected = torch.stack(layers).mean(0)[0]
        assert (targets[row, is_token[row]] - expected).abs().max() < 1e-4


@torch.no_grad()
def test_the_loss_equals_plain_code():
    """The predictor, clip by clip, on context and one group alone."""
    objective, (feats, n_frames) = small(), batch()
    n_time, longest = objective.encoder.token_lengths(n_frames, 160)
    rand = objective.random_source(feats, torch.manual_seed(3))
    mask, groups = objective.masker.draw_targets(rand, n_time, 8, longest)
    is_token = objective.encoder.grid.is_token(n_time, longest)
    goals = objective.targets(feats, n_frames, is_token)
    decoder, errors = objective.decoder, []
    places = sincos_positions(8, longest, decoder.dim).flatten(0, 1)
    for row in range(len(LENGTHS)):
        context = is_token[row] & ~mask[row].flatten()
        index = context.nonzero().T
        encoded = objective.encoder(
            feats[row : row + 1],
            n_frames[row : row + 1],
            keep=(index, index >= 0),
        )
        for group in groups[row].flatten(1):
            wanted = group & is_token[row]
            x = [
                decoder.embedding(encoded.class_tokens[0]),
                decoder.embedding(encoded.tokens[0]) + places[context],
                decoder.mask_embedding + places[wanted],
            ]
            x = torch.cat(x)[None]
            for block in decoder.blocks:
                x = block(x)
            x = objective.head(decoder.norm(x))[0, -int(wanted.sum()) :]
            errors.append((x - goals[row, wanted]).square().mean())
    output = objective(feats, n_frames, generator=torch.manual_seed(3))
    expected = torch.stack(errors).mean().item()
    assert len(errors) == 12
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_the_encoder_sees_a_clip_once():
    objective, (feats, n_frames) = small(), batch()
    calls = []
    for name in ("encoder", "decoder", "teacher"):
        part = getattr(objective, name)
        part = part.encoder if name == "teacher" else part
        part.register_forward_hook(
            lambda _, given, output, name=name: calls.append(name)
        )
    objective(feats, n_frames)
    assert sorted(calls) == ["decoder", "encoder", "teacher"]


def test_predictions_beat_a_constant_after_fifty_steps():
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=2, heads=2, table_frames=160)
    objective = load_objective("jepa")(encoder, momentum=[0.99, 0.999])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    feats = (
        torch.linspace(-1, 1, 8)[:, None, None] * torch.linspace(-1, 1, 128)
        + torch.linspace(-1, 1, 64)[:, None].sin()
    )
    feats = feats + 0.05 * torch.randn(
        8, 64, 128, generator=torch.manual_seed(0)
    )
    n_frames = torch.full((8,), 64)
    for step in range(50):
        output = objective(feats, n_frames, generator=torch.manual_seed(step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.after_step(step + 1, 100)
    with torch.no_grad():
        targets = objective.targets(
            feats, n_frames, torch.ones(8, 32, dtype=torch.bool)
        )
        constant = targets.var((0, 1)).mean()
    print(f"{output.loss:.3f}, a constant {constant:.3f}")
    assert output.loss < 0.8 * constant
    assert output.logs["projection_std"] > 0.3
