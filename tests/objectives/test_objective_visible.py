"""Objectives whose encoder sees the visible tokens of a clip only.

What masked autoencoders, M2D and EAT have in common, for each of their
presets; what is special to one stands in a file of its own.
"""

import json
import math
from contextlib import nullcontext

import pytest
import torch

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import EAT, load_objective
from ssast_lobes.objectives.maskers import RandomMasker
from ssast_lobes.utils.metrics import effective_rank

LATENT = ["m2d", "eat", "sslam"]
TEACHERS = [*LATENT, "jepa"]
NAMES = ["maskspec", "audiomae", "mae_ast", *TEACHERS, "beats"]
RATIOS = {
    "maskspec": 0.75,
    "audiomae": 0.8,
    "mae_ast": 0.75,
    "m2d": 0.7,
    "eat": 0.8,
    "sslam": 0.8,
    "jepa": 0.81,
    "beats": 0.75,
}
GRIDS = {
    "patch": Grid(),
    "frame": Grid(128, (128, 2)),
    "64x4": Grid(128, (64, 4)),
}
# Fewer masks than published, and teachers for runs of fifty steps.
QUICK = {
    "m2d": {"momentum": [0.99, 0.999]},
    "eat": {"momentum": [0.99, 0.999], "n_masks": 2},
    "sslam": {"momentum": [0.99, 0.999], "n_masks": 2},
    "jepa": {"momentum": [0.99, 0.999], "momentum_duration": 0.25},
}
# Settings under which a clip has one mask, as where a mask is given.
ONE_MASK = {
    "eat": {"n_masks": 1},
    "sslam": {"n_masks": 1},
    "jepa": {"masker": RandomMasker(ratio=0.81)},
}
names = pytest.mark.parametrize("name", NAMES)
latent = pytest.mark.parametrize("name", LATENT)
teachers = pytest.mark.parametrize("name", TEACHERS)
geometries = pytest.mark.parametrize("geometry", GRIDS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(name, geometry="patch", **arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        GRIDS[geometry], dim=32, depth=2, heads=2, table_frames=160
    )
    return load_objective(name)(encoder, **{**QUICK.get(name, {}), **arguments})


def batch(lengths=(160, 97, 33, 130), seed=0):
    feats = torch.zeros(len(lengths), max(lengths), 128)
    draw = seeded(seed)
    for row, length in zip(feats, lengths, strict=True):
        row[:length] = 0.5 * torch.randn(length, 128, generator=draw)
    return feats, torch.tensor(lengths)


LENGTHS = (64, 50, 64, 57, 64, 41, 64, 64)


def slopes():
    """Eight clips, each rising in a direction of its own.

    A standardised patch is 0 on average over directions: whoever does not
    know the clip has an error of 1.
    """
    angle = 2 * math.pi * torch.rand(8, 1, 1, generator=seeded())
    time, mel = torch.arange(64.0)[:, None], torch.arange(128.0)
    return _clips((angle.cos() * mel + angle.sin() * time) / 50)


def tones():
    """Eight clips of a drifting tone each, in more than two dimensions."""
    pitch, drift, speed = torch.rand(3, 8, 1, 1, generator=seeded())
    time, mel = torch.arange(64.0)[:, None] / 64, torch.arange(128.0)
    ridge = 128 * (0.1 + 0.6 * pitch + 0.3 * (drift - 0.5) * time)
    clips = (-((mel - ridge) / 6).square()).exp()
    return _clips(clips * (1 + (20 * speed * time).sin()) - 0.5)


def _clips(feats):
    """With a little noise, and 0 beyond the end of each."""
    feats = feats + 0.05 * torch.randn(feats.shape, generator=seeded(1))
    lengths = torch.tensor(LENGTHS)
    shown = torch.arange(64) < lengths[:, None]
    return feats * shown[:, :, None], lengths


def optimize(objective, feats, n_frames, steps, optimizer=None, first=0):
    """Losses and logs of a few steps, with masks of the step's number."""
    if optimizer is None:
        optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    history = []
    for step in range(first, first + steps):
        output = objective(feats, n_frames, generator=seeded(step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.after_step(step + 1, 100)
        history.append({"loss": output.loss.detach(), **output.logs})
    return history


@names
@geometries
def test_every_fragment_trains_in_every_geometry(name, geometry):
    objective, (feats, n_frames) = small(name, geometry), batch()
    output = objective(feats, n_frames, generator=seeded())
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    for key, parameter in objective.named_parameters():
        if key.startswith("teacher.") or key == "encoder.positions.table":
            assert not parameter.requires_grad and parameter.grad is None
        else:
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key
    for value in output.logs.values():
        assert value.dim() == 0 and not value.requires_grad
        assert value.isfinite()


@names
@pytest.mark.parametrize("blocks", ["mamba", "mamba_reference"])
def test_every_fragment_trains_mamba_blocks(name, blocks):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=1, blocks=blocks)
    objective = load_objective(name)(encoder, **QUICK.get(name, {}))
    objective(*batch((64, 33))).loss.backward()
    for key, parameter in objective.named_parameters():
        assert not parameter.requires_grad or parameter.grad.any(), key


@names
@geometries
def test_each_clip_hides_its_exact_share(name, geometry):
    objective, (feats, n_frames) = small(name, geometry), batch()
    mask = objective.draw_mask(feats, n_frames, seeded())
    grid = objective.encoder.grid
    tokens = grid.n_freq * grid.n_time(n_frames)
    wanted = (RATIOS[name] * tokens.double()).round().long()
    assert torch.equal(mask.sum((1, 2)), wanted)


def seen_by_the_encoder(objective, feats, n_frames, **arguments):
    """What the student's encoder is given and what it gives, in a forward."""
    calls = []
    hook = objective.encoder.register_forward_hook(
        lambda _, given, named, output: calls.append((named["keep"], output)),
        with_kwargs=True,
    )
    objective(feats, n_frames, **arguments)
    hook.remove()
    return calls[0]


@names
@geometries
@torch.no_grad()
def test_the_encoder_sees_the_visible_tokens_and_no_more(name, geometry):
    objective, (feats, n_frames) = small(name, geometry).eval(), batch()
    (index, kept), _ = seen_by_the_encoder(
        objective, feats, n_frames, generator=seeded()
    )
    copies = len(index) // len(feats)
    grid = objective.encoder.grid
    tokens = grid.n_freq * grid.n_time(n_frames.repeat_interleave(copies))
    hidden = (RATIOS[name] * tokens.double()).round().long()
    assert torch.equal(kept.sum(1), tokens - hidden)
    # The longest clip fills all the room that there is.
    assert kept.shape[1] == (tokens - hidden).max()
    ordered = torch.where(kept, index, 10**6)
    assert torch.equal(ordered.sort(1)[0][:, :1], ordered[:, :1])
    assert (ordered.diff(dim=1)[kept[:, 1:]] > 0).all()


@names
@geometries
@torch.no_grad()
def test_hidden_pixels_do_not_leak(name, geometry):
    objective, (feats, n_frames) = small(name, geometry).eval(), batch()
    mask = objective.draw_mask(feats, n_frames, seeded())
    grid = objective.encoder.grid
    hidden = mask.flatten(1)[:, :, None].expand(-1, -1, grid.patch_size)
    hidden = grid.fold(hidden.float(), feats.shape[1]) > 0
    shown = torch.arange(160) >= n_frames[:, None]
    other = torch.where(hidden | shown[:, :, None], 9.0, feats)
    _, before = seen_by_the_encoder(objective, feats, n_frames, mask=mask)
    _, after = seen_by_the_encoder(objective, other, n_frames, mask=mask)
    assert (before.tokens - after.tokens).abs().max() < 1e-6
    assert (before.class_tokens - after.class_tokens).abs().max() < 1e-6


@names
@geometries
def test_no_gradient_flows_into_hidden_pixels_or_padding(name, geometry):
    objective, (feats, n_frames) = small(name, geometry), batch()
    # SSLAM mixes clips in training: a clip shows through its partner's mask.
    objective.train(name != "sslam")
    feats.requires_grad_()
    mask = objective.draw_mask(feats, n_frames, seeded())
    objective(feats, n_frames, mask).loss.backward()
    grid = objective.encoder.grid
    moved = grid.unfold(feats.grad).abs().sum(2)
    n_time, longest = objective.encoder.token_lengths(n_frames, 160)
    visible = grid.is_token(n_time, longest) & ~mask.flatten(1)
    assert (moved[~visible] == 0).all()
    assert (moved[visible] > 0).float().mean() > 0.9


@names
@pytest.mark.parametrize("count", ["none", "one", "all but one"])
def test_any_number_of_hidden_tokens_is_finite(name, count):
    objective, (feats, n_frames) = small(name), batch((64, 33))
    mask = torch.zeros(2, 8, 4).bool()
    if count == "one":
        mask[:, 3, 1] = True
    if count == "all but one":
        mask[0], mask[1, :, :3] = True, True
        mask[:, 0, 0] = False
    output = objective(feats, n_frames, mask)
    output.loss.backward()
    assert output.loss.isfinite()
    assert (output.loss == 0) == (count == "none")
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in trained)


@names
def test_clips_of_one_token_have_no_loss(name):
    objective, (feats, n_frames) = small(name, "frame"), batch((2, 1))
    output = objective(feats, n_frames, generator=seeded())
    output.loss.backward()
    assert output.loss == 0
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in trained)


@names
@geometries
@torch.no_grad()
def test_the_loss_of_a_clip_does_not_depend_on_its_neighbors(name, geometry):
    objective, (feats, n_frames) = small(name, geometry).eval(), batch()
    feats[2, 33:] = 11.0
    keys, total = torch.tensor([3, 1, 4, 1]), 0
    for row, count in enumerate(n_frames.tolist()):
        own = slice(row, row + 1)
        alone = objective(
            feats[own, :count], n_frames[own], clip_keys=keys[own]
        )
        total += alone.loss.item() / len(feats)
    together = objective(feats, n_frames, clip_keys=keys)
    assert together.loss.item() == pytest.approx(total, rel=1e-5)


@names
@torch.no_grad()
def test_draws_follow_generator_and_key(name):
    objective, (feats, n_frames) = small(name), batch()

    def loss(**arguments):
        return objective(feats, n_frames, **arguments).loss.item()

    assert loss(generator=seeded(1)) == loss(generator=seeded(1))
    assert loss(generator=seeded(1)) != loss(generator=seeded(2))
    keys = torch.tensor([5, 6, 7, 8])
    assert loss(clip_keys=keys) == loss(clip_keys=keys)
    assert loss(clip_keys=keys) != loss(clip_keys=keys + 1)


@names
@torch.no_grad()
def test_a_given_mask_is_the_mask_that_would_be_drawn(name):
    objective = small(name, **ONE_MASK.get(name, {})).eval()
    feats, n_frames = batch()
    keys = torch.tensor([5, 6, 7, 8])
    mask = objective.draw_mask(feats, n_frames, clip_keys=keys)
    given = objective(feats, n_frames, mask, clip_keys=keys).loss.item()
    drawn = objective(feats, n_frames, clip_keys=keys).loss.item()
    assert given == pytest.approx(drawn, rel=1e-5)


@names
def test_evaluation_moves_nothing(name):
    objective, (feats, n_frames) = small(name).eval(), batch()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    with torch.no_grad():
        objective(feats, n_frames, clip_keys=n_frames)
    after = objective.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@names
def test_config_builds_the_objective_again(name):
    first = small(name)
    config = json.loads(json.dumps(first.config))
    again = type(first)(first.encoder, **config)
    assert again.config == first.config
    again.load_state_dict(first.state_dict())


@names
def test_numbers_have_no_default(name):
    with pytest.raises(TypeError, match="missing .* required keyword-only"):
        type(small(name))(SpectrogramEncoder(dim=32, depth=1, heads=2))


@names
def test_overlapping_patches_are_refused(name):
    grid = Grid(128, (16, 16), (10, 10))
    encoder = SpectrogramEncoder(grid, dim=32, depth=1, heads=2)
    with pytest.raises(ValueError, match="must not show in its neighbors"):
        load_objective(name)(encoder)


@names
@geometries
def test_no_step_of_training_reads_values_back(name, geometry, monkeypatch):
    """The meta device has shapes only: whatever looks at a value raises."""
    # It has no autocast, not even one to switch off.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    objective = small(name, geometry).to("meta")
    feats, n_frames = (x.to("meta") for x in batch())
    objective(feats, n_frames).loss.backward()
    objective.after_step(1, 100)
    mask = objective.draw_mask(feats, n_frames, clip_keys=n_frames)
    output = objective(feats, n_frames, mask, clip_keys=n_frames)
    assert output.loss.shape == ()


@names
def test_bf16_autocast_trains_and_stays_near(name):
    objective, (feats, n_frames) = small(name), batch()
    exact = objective(feats, n_frames, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(feats, n_frames, generator=seeded())
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in trained)


@names
def test_the_loss_falls_on_eight_clips(name):
    objective = small(name)
    # Of SSLAM's steps half are spent on mixtures, new ones each time.
    steps = 60 if name == "sslam" else 30
    losses = [row["loss"] for row in optimize(objective, *slopes(), steps)]
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    print(f"{name}: {first:.3f} -> {last:.3f}")
    assert last < 0.75 * first
    if name in ("maskspec", "audiomae"):
        # Less than without a look at the visible patches.
        assert last < 0.9


@pytest.mark.slow
@names
def test_no_collapse_after_fifty_steps(name):
    objective, (feats, n_frames) = small(name), tones()
    last = optimize(objective, feats, n_frames, steps=50)[-1]
    with torch.no_grad():
        clips = objective.encoder(feats, n_frames).clip()
    rank = effective_rank(clips - clips.mean(0))
    print(f"{name}: effective rank {rank:.2f} of 7")
    assert rank > 2
    if name in LATENT:
        target, own = last["target_std"], last["projection_std"]
        print(f"{name}: target_std {target:.3f}, projection_std {own:.3f}")
        # M2D's predictor first learns the mean of its targets, and then what
        # they differ in: its predictions spread less for a while.
        assert target > 0.3 and own > 0.1


@pytest.mark.slow
@latent
def test_predictions_tell_tokens_apart_after_fifty_steps(name):
    last = optimize(small(name), *slopes(), steps=50)[-1]
    # At most the loss of the best constant, the mean of the targets: these
    # are unit vectors, or vectors of length sqrt(32).
    common = (1 - last["target_std"].square()).sqrt()
    constant = 2 - 2 * common if name == "m2d" else 32**0.5 * (1 - common**2)
    own = last["loss" if name == "m2d" else "regression"]
    print(f"{name}: {own:.3f}, a constant {constant:.3f}")
    assert own < constant
    assert last["projection_std"] > 0.5


@latent
@torch.no_grad()
def test_a_collapse_shows(name):
    objective, (feats, n_frames) = small(name), tones()
    sound = objective(feats, n_frames, generator=seeded()).logs
    assert sound["projection_std"] > 0.3 and sound["target_std"] > 0.3
    objective.head.weight.zero_()
    logs = objective(feats, n_frames, generator=seeded()).logs
    assert logs["projection_std"] < 0.01 < logs["target_std"]
    for parameter in objective.teacher.encoder.blocks.parameters():
        parameter.zero_()
    objective.teacher.encoder.norm.weight.zero_()
    objective.teacher.encoder.norm.bias.normal_()
    logs = objective(feats, n_frames, generator=seeded()).logs
    assert logs["target_std"] < 0.01


@names
def test_a_resumed_run_equals_one_that_was_not_stopped(name):
    feats, n_frames = batch((64, 33))
    whole = small(name)
    optimize(whole, feats, n_frames, steps=4)
    first = small(name)
    optimizer = torch.optim.AdamW(first.parameters(), lr=2e-3)
    optimize(first, feats, n_frames, 2, optimizer)
    torch.manual_seed(1)
    second = type(first)(
        SpectrogramEncoder(dim=32, depth=2, heads=2, table_frames=160),
        **first.config,
    )
    second.load_state_dict(first.state_dict())
    resumed = torch.optim.AdamW(second.parameters(), lr=2e-3)
    resumed.load_state_dict(optimizer.state_dict())
    optimize(second, feats, n_frames, 2, resumed, first=2)
    expected = whole.state_dict()
    for key, value in second.state_dict().items():
        assert torch.equal(value, expected[key]), key


@teachers
def test_the_teacher_follows_by_the_momentum_of_the_step(name):
    objective = small(name, momentum=[0.5, 0.9])
    with torch.no_grad():
        for parameter in objective.encoder.parameters():
            parameter += 1.0
    pairs = [
        (own.clone(), own, goal)
        for own, goal in zip(
            objective.teacher.parameters(),
            objective.encoder.parameters(),
            strict=True,
        )
    ]
    # Halfway along the line: of the run, or of a quarter of it.
    objective.after_step(50 if name == "m2d" else 25 // 2, 100)
    momentum = 0.7 if name == "m2d" else 0.5 + 0.4 * 12 / 25
    for before, after, goal in pairs:
        expected = before + (1 - momentum) * (goal - before)
        assert torch.allclose(after, expected, atol=1e-6)
    objective.after_step(100, 100)
    assert objective.momentum(100, 100) == 0.9


@teachers
def test_the_teacher_stays_still_without_a_step(name):
    objective, (feats, n_frames) = small(name).train(), batch()
    before = [p.clone() for p in objective.teacher.parameters()]
    objective(feats, n_frames).loss.backward()
    after = list(objective.teacher.parameters())
    assert all(map(torch.equal, before, after))
    assert not any(module.training for module in objective.teacher.modules())
    assert not any(p.requires_grad for p in after)
    keys = objective.exported_state()
    assert not any(key.startswith("teacher.") for key in keys)


@names
def test_positions_are_fixed_sincos(name):
    objective = small(name)
    table = objective.encoder.positions.table.clone()
    assert table[0, 0, :16].tolist() == [0.0] * 8 + [1.0] * 8
    optimize(objective, *batch((64, 33)), steps=2)
    assert torch.equal(objective.encoder.positions.table, table)


def test_published_masks_and_momenta():
    encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    m2d, eat = (load_objective(name)(encoder) for name in ("m2d", "eat"))
    assert m2d.momentum(0, 1000) == 0.99995
    assert m2d.momentum(1000, 1000) == 0.99999
    assert eat.momentum(100_000, 400_000) == eat.momentum(4, 4) == 0.99999
    assert isinstance(eat, EAT) and eat.n_masks == 16
    assert eat.momentum(0, 400_000) == 0.9998
    assert eat.masker.config == {
        "name": "InverseBlockMasker",
        "ratio": 0.8,
        "count": None,
        "block_size": 5,
    }
    assert (eat.utterance_weight, eat.noise_std) == (1, 0.01)
    assert eat.decoder_config == {"depth": 0.5, "kernel": 3, "groups": 16}
    # 190 tokens of M2D's 6 s, 496 of MaskSpec's 10 s.
    assert m2d.masker.n_masked(190) == 190 - 57
    assert load_objective("maskspec")(encoder).masker.n_masked(496) == 372
