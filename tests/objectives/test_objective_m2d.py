"""M2D against plain code, and what its teacher may see."""

import pytest
import torch

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import load_objective

GRIDS = {"patch": Grid(), "frame": Grid(128, (128, 2))}
LENGTHS = (160, 97, 33)


def small(geometry="patch"):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        GRIDS[geometry], dim=32, depth=2, heads=2, table_frames=160
    )
    objective = load_objective("m2d")(encoder).eval()
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


@pytest.mark.parametrize("geometry", GRIDS)
@torch.no_grad()
def test_the_loss_equals_plain_code(geometry):
    objective, (feats, n_frames) = small(geometry), batch()
    keys = torch.tensor([4, 5, 6])
    split = objective.split(feats, n_frames, clip_keys=keys)
    decoded = objective.decode(feats, n_frames, split)
    grid, losses = objective.encoder.grid, []
    for row, count in enumerate(LENGTHS):
        clip = feats[row : row + 1, :count]
        own = split.is_token[row]
        hidden = ~split.visible[row][own]
        index = hidden.nonzero().T
        targets = objective.teacher.encoder(
            clip, torch.tensor([count]), keep=(index, index >= 0)
        ).tokens[0]
        assert len(targets) == round(0.7 * grid.n_freq * grid.n_time(count))
        predictions = objective.head(decoded[row][own][hidden])
        distances = []
        for guess, target in zip(predictions, targets, strict=True):
            goal = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            cosine = guess @ goal / guess.norm() / goal.norm()
            distances.append(2 - 2 * cosine)
        losses.append(torch.stack(distances).mean())
    expected = torch.stack(losses).mean().item()
    output = objective(feats, n_frames, clip_keys=keys)
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_the_teacher_hears_the_hidden_part_only():
    objective, (feats, n_frames) = small(), batch()
    split = objective.split(feats, n_frames, clip_keys=n_frames)
    before = objective.targets(feats, n_frames, split)
    grid = objective.encoder.grid
    visible = split.visible[:, :, None].expand(-1, -1, grid.patch_size)
    visible = grid.fold(visible.float(), feats.shape[1]) > 0
    other = torch.where(visible, 9.0, feats)
    after = objective.targets(other, n_frames, split)
    assert (before - after).abs().max() < 1e-6
    other = torch.where(visible, feats, 9.0)
    moved = objective.targets(other, n_frames, split)
    assert (before - moved).abs().max() > 0.1


@torch.no_grad()
def test_targets_are_standardised_token_by_token():
    objective, (feats, n_frames) = small(), batch()
    split = objective.split(feats, n_frames, clip_keys=n_frames)
    targets = objective.targets(feats, n_frames, split)
    chosen = targets[split.weight > 0]
    assert chosen.mean(1).abs().max() < 1e-5
    assert (chosen.var(1) - 1).abs().max() < 1e-3
    assert not objective.reconstructs
