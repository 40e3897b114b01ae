"""SSLAM against plain code: mixtures, their targets, and the three errors."""

import pytest
import torch

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import load_objective

LENGTHS = (160, 97, 33)


def small(name="sslam", **arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        Grid(), dim=32, depth=2, heads=2, table_frames=160
    )
    # Without noise at hidden tokens, nothing but masks and windows is drawn.
    arguments = {"noise_std": 0.0, "n_masks": 1, **arguments}
    objective = load_objective(name)(encoder, **arguments)
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return objective


def batch(lengths=LENGTHS):
    draw = torch.Generator().manual_seed(0)
    feats = torch.zeros(len(lengths), max(lengths), 128)
    for row, length in zip(feats, lengths, strict=True):
        row[:length] = 0.5 * torch.randn(length, 128, generator=draw)
    return feats, torch.tensor(lengths)


def heard_by(objective, module, *inputs):
    """The first argument of each call of a module in a forward."""
    seen = []
    hook = module.register_forward_hook(
        lambda _, given, output: seen.append(given[0])
    )
    objective(*inputs, generator=torch.Generator().manual_seed(1))
    hook.remove()
    return seen


def drawn(objective, feats, n_frames, seed=1):
    """Which times are mixed, by the draws of `heard_by`."""
    generator = torch.Generator().manual_seed(seed)
    rand = objective.random_source(feats, generator)
    objective.masks(rand, feats, n_frames)
    n_partner = n_frames.roll(1).minimum(n_frames)
    return objective.draw_mixed(rand, n_frames, n_partner, feats.shape[1])


def test_two_windows_of_each_clip_stay_clean():
    objective = small(clean_window=0.25)
    lengths = torch.tensor([640, 336, 32, 16, 640])
    feats = torch.zeros(5, 640, 128)
    longer = torch.full((5,), 640).minimum(lengths)
    starts = set()
    for seed in range(40):
        rand = objective.random_source(feats, torch.manual_seed(seed))
        is_mixed = objective.draw_mixed(rand, lengths, longer, 640)
        # A quarter each of 40, 21, 2 and 1 times, rounded down.
        assert is_mixed.sum(1).tolist() == [20, 11, 2, 1, 20]
        clean = (~is_mixed[0]).nonzero().flatten()
        assert (clean[1:10] == clean[0] + torch.arange(1, 10)).all()
        assert (clean[11:] == clean[10] + torch.arange(1, 10)).all()
        starts.add((int(clean[0]), int(clean[10])))
    assert len(starts) > 20
    first, second = zip(*starts, strict=True)
    assert min(first) < 3 and max(first) > 15 and max(second) == 30


@torch.no_grad()
def test_mixtures_are_the_louder_of_two_clips():
    objective, (feats, n_frames) = small(), batch()
    views = heard_by(objective, objective.encoder, feats, n_frames)[0]
    is_mixed = drawn(objective, feats, n_frames)
    assert torch.equal(views[::2], feats)
    for row, length in enumerate(LENGTHS):
        partner = feats[row - 1]
        # At 97 frames the partner of the first clip, of 33, is over.
        shared = min(length, LENGTHS[row - 1])
        expected = feats[row].clone()
        for time in is_mixed[row].nonzero().flatten().tolist():
            own = slice(16 * time, min(16 * time + 16, shared))
            expected[own] = torch.maximum(feats[row, own], partner[own])
        assert torch.equal(views[2 * row + 1], expected)
    # The partner of the second clip is cut off: padding stays 0.
    assert (views[3, 97:] == 0).all() and (views[3, :97] != feats[1, :97]).any()


@torch.no_grad()
def test_the_loss_equals_plain_code():
    """Each error on its own, through EAT and the teacher, clip by clip."""
    objective, (feats, n_frames) = small(), batch()
    eat = small("eat")
    state = {k: v.clone() for k, v in objective.state_dict().items()}
    eat.load_state_dict(state)
    draw = torch.Generator().manual_seed(1)
    mask = objective.draw_masks(
        objective.random_source(feats, draw),
        *objective.encoder.token_lengths(n_frames, 160),
    )[:, 0]
    views = heard_by(objective, objective.encoder, feats, n_frames)[0]
    is_mixed = drawn(objective, feats, n_frames)
    both = [eat(views[part::2], n_frames, mask) for part in (0, 1)]
    output = objective(
        feats, n_frames, generator=torch.Generator().manual_seed(1)
    )
    for key in ("regression", "utterance"):
        mean = sum(one.logs[key].item() for one in both) / 2
        assert output.logs[key].item() == pytest.approx(mean, rel=1e-4)

    errors = []
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        n_time, longest = eat.encoder.token_lengths(n_frames[one], length)
        is_token = eat.encoder.grid.is_token(n_time, longest)
        tokens, _ = eat.targets(feats[one, :length], n_frames[one], is_token)
        shared = min(length, LENGTHS[row - 1])
        kept = is_mixed[one, :longest].expand(8, -1).flatten()
        index = kept.nonzero().T
        theirs, _ = eat.targets(
            feats[row - 1][None, :length],
            torch.tensor([shared]),
            index >= 0,
            (index, index >= 0),
        )
        goals = tokens[0].clone()
        goals[kept] = (goals[kept] + theirs[0]) / 2
        # EAT's student, with the mixture's targets in place of the teacher's.
        hidden = mask[one, :, :longest]
        own = eat.student(
            views[2 * row + 1][None, :length],
            n_frames[one],
            is_token,
            hidden[:, None],
            int(hidden.sum()),
            eat.random_source(feats[one]),
        )
        distance = own.predictions[0] - goals[hidden.flatten()]
        errors.append(distance.square().sum(1).mean() / 32**0.5)
    expected = torch.stack(errors).mean().item()
    assert output.logs["sources"].item() == pytest.approx(expected, rel=1e-4)
    total = sum(output.logs[k] for k in ("regression", "utterance", "sources"))
    torch.testing.assert_close(output.loss, total)


@torch.no_grad()
def test_padding_and_what_a_partner_has_beyond_a_clip_never_count():
    objective, (feats, n_frames) = small(), batch()

    def loss(feats):
        draw = torch.Generator().manual_seed(1)
        return objective(feats, n_frames, generator=draw).loss

    other = feats.clone()
    other[1, 97:], other[2, 33:] = 9.0, -9.0
    assert torch.equal(loss(other), loss(feats))
    # The first clip is the partner of the second one, up to its end.
    longer = heard_by(objective, objective.encoder, feats, n_frames)[0]
    other = feats.clone()
    other[0, 97:] = 5.0
    changed = heard_by(objective, objective.encoder, other, n_frames)[0]
    assert torch.equal(longer[3], changed[3])
    assert not torch.equal(longer[1], changed[1])


@torch.no_grad()
def test_validation_is_eat():
    """A function of the clip: nothing is mixed."""
    objective, (feats, n_frames) = small(noise_std=0.01, n_masks=2), batch()
    eat = small("eat", noise_std=0.01, n_masks=2)
    eat.load_state_dict(objective.state_dict())
    keys = torch.tensor([4, 5, 6])
    own, theirs = (
        one.eval()(feats, n_frames, clip_keys=keys) for one in (objective, eat)
    )
    assert torch.equal(own.loss, theirs.loss)
    assert own.logs.keys() == theirs.logs.keys()


@torch.no_grad()
def test_a_clip_alone_is_its_own_partner():
    objective, (feats, n_frames) = small(), batch((64,))
    views = heard_by(objective, objective.encoder, feats, n_frames)[0]
    assert torch.equal(views[0], views[1])


def test_what_no_mask_shows_has_no_gradient():
    """Clip and partner hide the same tokens here."""
    objective, (feats, n_frames) = small(), batch((160, 160))
    feats.requires_grad_()
    mask = objective.draw_mask(feats, n_frames, torch.manual_seed(0))
    mask[1] = mask[0]
    objective(feats, n_frames, mask).loss.backward()
    grid = objective.encoder.grid
    moved = grid.unfold(feats.grad).abs().sum(2) > 0
    assert torch.equal(moved, ~mask.flatten(1))


@torch.no_grad()
def test_the_teacher_hears_all_of_the_partner_that_is_mixed_and_no_more():
    objective, (feats, n_frames) = small(), batch((160, 160))
    is_mixed = drawn(objective, feats, n_frames)
    sizes = []
    objective.teacher.encoder.register_forward_hook(
        lambda _, given, output: sizes.append(output.is_token.sum(1).tolist())
    )
    draw = torch.Generator().manual_seed(1)
    objective(feats, n_frames, generator=draw)
    assert sizes == [[80] * 4, (8 * is_mixed.sum(1)).tolist()]
