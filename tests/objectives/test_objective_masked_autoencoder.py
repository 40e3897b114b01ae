"""Masked autoencoders against plain code, clip by clip."""

import pytest
import torch
from torch import nn

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.models.patches import sincos_positions
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.maskers import RandomMasker

GRIDS = {"patch": Grid(), "frame": Grid(128, (128, 2))}
geometries = pytest.mark.parametrize("geometry", GRIDS)


def small(name, geometry="patch"):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        GRIDS[geometry], dim=32, depth=2, heads=2, table_frames=160
    )
    return load_objective(name)(encoder).eval()


def batch(lengths=(160, 97, 33)):
    draw = torch.Generator().manual_seed(0)
    feats = torch.zeros(len(lengths), max(lengths), 128)
    for row, length in zip(feats, lengths, strict=True):
        row[:length] = 0.5 * torch.randn(length, 128, generator=draw)
    return feats, torch.tensor(lengths)


def decode_by_hand(objective, tokens, classes, hidden):
    """One clip: visible tokens and mask tokens in their order, one by one."""
    decoder, bands = objective.decoder, objective.encoder.grid.n_freq
    visible = iter(decoder.embedding(tokens))
    positions = sincos_positions(bands, len(hidden) // bands, decoder.dim)
    rows = list(decoder.embedding(classes))
    for masked, place in zip(hidden, positions.flatten(0, 1), strict=True):
        row = decoder.mask_embedding if masked else next(visible)
        rows.append(row + place)
    x = torch.stack(rows)[None]
    for block in decoder.blocks:
        x = block(x)
    return decoder.norm(x)[0, len(classes) :]


def clips_by_hand(objective, feats, n_frames, mask):
    """Of each clip alone: decoded hidden tokens and what is hidden there."""
    grid, encoder = objective.encoder.grid, objective.encoder
    for feat, count, chosen in zip(feats, n_frames.tolist(), mask, strict=True):
        hidden = chosen[:, : grid.n_time(count)].flatten()
        index = (~hidden).nonzero().T
        keep = index, torch.ones_like(index).bool()
        clip = feat[None, :count]
        encoded = encoder(clip, torch.tensor([count]), keep=keep)
        decoded = decode_by_hand(
            objective, encoded.tokens[0], encoded.class_tokens[0], hidden
        )
        yield decoded[hidden], grid.unfold(clip)[0][hidden]


@geometries
@torch.no_grad()
def test_maskspec_is_the_error_of_standardised_patches(geometry):
    objective, (feats, n_frames) = small("maskspec", geometry), batch()
    mask = objective.draw_mask(feats, n_frames, clip_keys=n_frames)
    losses = []
    for decoded, patches in clips_by_hand(objective, feats, n_frames, mask):
        errors = []
        for vector, patch in zip(decoded, patches, strict=True):
            goal = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            errors.append((objective.head(vector) - goal).square().mean())
        losses.append(torch.stack(errors).mean())
    output = objective(feats, n_frames, mask)
    expected = torch.stack(losses).mean().item()
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.loss == output.logs["mse"]


@geometries
@torch.no_grad()
def test_mae_ast_is_ssasts_loss_on_plain_patches(geometry):
    objective, (feats, n_frames) = small("mae_ast", geometry), batch()
    mask = objective.draw_mask(feats, n_frames, clip_keys=n_frames)
    nces, mses, hits = [], [], []
    for decoded, patches in clips_by_hand(objective, feats, n_frames, mask):
        mses.append((objective.head(decoded) - patches).square().mean())
        scores = objective.matching_head(decoded) @ patches.T
        own = torch.arange(len(patches))
        # Each prediction has to find its target among all.
        nces.append(nn.functional.cross_entropy(scores, own))
        hits.append((scores.argmax(1) == own).float().mean())
    nce, mse, accuracy = (torch.stack(x).mean() for x in (nces, mses, hits))
    loss, logs = objective(feats, n_frames, mask)
    assert logs["nce"].item() == pytest.approx(nce.item(), rel=1e-5)
    assert logs["mse"].item() == pytest.approx(mse.item(), rel=1e-5)
    assert logs["accuracy"].item() == pytest.approx(accuracy.item(), abs=1e-6)
    assert loss.item() == pytest.approx((nce + 10 * mse).item(), rel=1e-5)


def test_mae_ast_hides_clusters_of_patches_and_single_frames():
    masker = small("mae_ast").masker
    n_time, keys = torch.tensor([40, 17]), torch.tensor([5, 6])
    one_by_one = RandomMasker(ratio=0.75)
    for bands in (1, 8):
        mask = masker(n_time, bands, 40, clip_keys=keys)
        plain = one_by_one(n_time, bands, 40, clip_keys=keys)
        assert torch.equal(mask, plain) == (bands == 1)


@pytest.mark.parametrize("name", ["maskspec", "mae_ast"])
@torch.no_grad()
def test_reconstruction_fills_hidden_patches_only(name):
    objective, (feats, n_frames) = small(name), batch((160, 128))
    assert objective.reconstructs
    mask = objective.draw_mask(feats, n_frames, clip_keys=n_frames)
    filled = objective.reconstruct(feats, n_frames, mask)
    grid = objective.encoder.grid
    same = (grid.unfold(filled) == grid.unfold(feats)).all(2)
    assert torch.equal(same, ~mask.flatten(1))
    # What is filled in is the very prediction that the loss judges.
    known, chosen = grid.unfold(feats), mask.flatten(1)
    mean, deviation = objective.scale(known)
    difference = (grid.unfold(filled) - known) / deviation
    errors = difference.square().mean(2) * chosen
    mse = objective(feats, n_frames, mask).logs["mse"].item()
    per_clip = errors.sum(1) / chosen.sum(1)
    assert per_clip.mean().item() == pytest.approx(mse, rel=1e-4)
    hidden, again = objective.picture(feats, n_frames, n_frames)
    assert torch.equal(again, filled)
    assert torch.equal(grid.unfold(hidden.float()).bool().all(2), chosen)


@torch.no_grad()
def test_patches_of_silence_have_a_finite_target():
    objective, n_frames = small("maskspec"), torch.tensor([64])
    output = objective(torch.zeros(1, 64, 128), n_frames, clip_keys=n_frames)
    assert output.loss.isfinite()
    mean, deviation = objective.scale(torch.zeros(2, 256))
    assert (mean == 0).all() and (deviation > 0).all()
