"""What ASiT, ATST-Clip and ATST-Frame have in common, each with its numbers."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import load_objective
from ssast_lobes.utils.metrics import effective_rank

NAMES = ("asit", "atst_clip", "atst_frame")
GRIDS = {
    "patch": Grid(64, (16, 16)),
    "frame": Grid(64, (64, 2)),
    "atst": Grid(64, (64, 4)),
}
all_objectives = pytest.mark.parametrize("name", NAMES)
all_grids = pytest.mark.parametrize("geometry", GRIDS)
# As published ASiT takes more than fifty steps to tell small clips apart.
QUICK = {"asit": {"teacher_temperature": [0.02, 0.02]}}
KEYS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device"
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(name, geometry="atst", drop_path=0.0, **arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        GRIDS[geometry],
        dim=32,
        depth=2,
        heads=2,
        table_frames=96,
        drop_path=drop_path,
    )
    return load_objective(name)(encoder, **arguments)


def sounds(lengths=(96, 80, 96, 64, 96, 72, 88, 96), seed=0):
    """Clips of one gliding tone each, (B, T, 64)."""
    feats = torch.zeros(len(lengths), max(lengths), 64)
    time, mels = torch.arange(max(lengths))[:, None], torch.arange(64)
    for row, (clip, length) in enumerate(zip(feats, lengths, strict=True)):
        glide = torch.sin(2 * math.pi * time * (row + 1) / 96)
        pitch = 64 * (row + 1) / 9 + 10 * glide
        noise = 0.1 * torch.randn(clip.shape, generator=seeded(seed + row))
        clip[:] = 1.5 * torch.exp(-(((mels - pitch) / 4) ** 2)) - 0.5 + noise
        clip[length:] = 0
    return feats, torch.tensor(lengths)


def train(objective, batch, steps, first=0, optimizer=None, lr=1e-3):
    """Steps of a run of fifty, warmed up as published; losses and logs."""
    if optimizer is None:
        optimizer = torch.optim.AdamW(objective.parameters())
    outputs = []
    for step in range(first, first + steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 10)
        output = objective(*batch, generator=seeded(step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.after_step(step + 1, 50)
        outputs.append(output)
    return outputs, optimizer


@all_grids
@all_objectives
def test_every_geometry_trains_all_that_is_trainable(name, geometry):
    objective = build(name, geometry)
    # The last clip is a single step: nothing of it can be hidden.
    output = objective(*sounds((96, 50, 7, 2)))
    output.loss.backward()
    assert output.loss.isfinite() and output.loss > 0
    for key, parameter in objective.named_parameters():
        if key.startswith("teacher."):
            assert not parameter.requires_grad and parameter.grad is None, key
        else:
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().sum() > 0, key
    for key, value in output.logs.items():
        assert value.dim() == 0 and not value.requires_grad, key
        assert value.isfinite(), key


@all_objectives
def test_clips_of_a_single_frame_are_taken(name):
    objective = build(name)
    output = objective(*sounds((1, 1)))
    output.loss.backward()
    assert output.loss.isfinite()
    gradients = [p.grad for p in objective.parameters() if p.requires_grad]
    assert all(gradient.isfinite().all() for gradient in gradients)


@all_objectives
def test_config_builds_the_objective_again(name):
    first = build(name)
    again = type(first)(first.encoder, **first.config)
    assert again.config == first.config
    again.load_state_dict(first.state_dict())


@all_grids
@all_objectives
@torch.no_grad()
def test_a_validation_loss_is_the_clips_own(name, geometry):
    objective = build(name, geometry)
    feats, n_frames = sounds((96, 57, 30, 88))
    # Running statistics and centers that are not those of a new model.
    objective(feats, n_frames, generator=seeded())
    objective.eval()
    feats[2, 30:] = 11.0
    together = objective(feats, n_frames, clip_keys=KEYS[:4]).loss
    alone = [
        objective(
            feats[row : row + 1, :count],
            n_frames[row : row + 1],
            clip_keys=KEYS[row : row + 1],
        ).loss
        for row, count in enumerate(n_frames.tolist())
    ]
    mean = torch.stack(alone).mean()
    assert together.item() == pytest.approx(mean.item(), abs=1e-5)


@all_objectives
@torch.no_grad()
def test_validation_repeats_itself_and_leaves_no_trace(name):
    objective, batch = build(name), sounds()
    objective(*batch)
    objective.eval()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    first, second = (objective(*batch, clip_keys=KEYS) for _ in range(2))
    assert torch.equal(first.loss, second.loss)
    other = objective(*batch, clip_keys=KEYS + 1)
    assert not torch.equal(first.loss, other.loss)
    after = objective.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@all_objectives
def test_training_draws_come_from_the_generator(name):
    losses = [
        build(name)(*sounds(), generator=seeded(seed)).loss.item()
        for seed in (5, 5, 6)
    ]
    assert losses[0] == losses[1] != losses[2]


@all_objectives
def test_the_teacher_moves_by_its_share_of_the_way(name):
    objective = build(name, drop_path=0.5)
    assert all(b.drop_path == 0 for b in objective.teacher.encoder.blocks)
    start, end = objective.config["momentum"]
    before = {k: v.clone() for k, v in objective.teacher.named_parameters()}
    train(objective, sounds(), steps=1)
    momentum = end + (start - end) * 0.5 * (1 + math.cos(math.pi / 50))
    student = dict(objective.named_parameters())
    moved = 0
    for key, value in objective.teacher.named_parameters():
        way = student[key] - before[key]
        expected = before[key] + (1 - momentum) * way
        assert torch.allclose(value, expected, atol=1e-7), key
        moved += (value != before[key]).sum()
    assert moved > 0


@all_objectives
def test_a_resumed_run_equals_one_that_was_not(name):
    whole, batch = build(name), sounds()
    _, optimizer = train(whole, batch, steps=3)
    state = copy.deepcopy(whole.state_dict())
    moments = copy.deepcopy(optimizer.state_dict())
    resumed = build(name)
    resumed.load_state_dict(state)
    again = torch.optim.AdamW(resumed.parameters())
    again.load_state_dict(moments)
    expected, _ = train(whole, batch, 3, first=3, optimizer=optimizer)
    outputs, _ = train(resumed, batch, 3, first=3, optimizer=again)
    assert [o.loss.item() for o in outputs] == [o.loss.item() for o in expected]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


# Share of the first losses that is left after thirty steps, and the spread of
# the projections after fifty.
LEARNT = {
    "asit": (0.95, 0.06),
    "atst_clip": (0.5, 0.5),
    "atst_frame": (0.5, 0.5),
}


@pytest.mark.slow
@all_objectives
def test_it_learns_eight_clips_without_collapse(name):
    objective, batch = build(name, **QUICK.get(name, {})), sounds()
    outputs, _ = train(objective, batch, steps=50)
    losses = [output.loss.item() for output in outputs]
    left, spread = LEARNT[name]
    assert sum(losses[25:30]) < left * sum(losses[:5])
    assert outputs[-1].logs["projection_std"] > spread
    with torch.no_grad():
        embeddings = objective.encoder(*batch).clip()
    assert effective_rank(embeddings) > 2.5


@all_objectives
def test_bf16_autocast_trains_and_stays_near(name):
    batch = sounds()
    exact = build(name)(*batch, generator=seeded()).loss.item()
    objective = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(*batch, generator=seeded())
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(exact, rel=0.03)
    gradients = [p.grad for p in objective.parameters() if p.requires_grad]
    assert all(gradient.isfinite().all() for gradient in gradients)


@all_objectives
def test_no_step_of_training_reads_values_back(name, monkeypatch):
    """The meta device has shapes only: whatever looks at a value raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    objective = build(name).to("meta")
    batch = [x.to("meta") for x in sounds()]
    objective(*batch).loss.backward()
    objective.after_step(1, 10)
    objective.eval()
    assert objective(*batch, clip_keys=KEYS.to("meta")).loss.shape == ()


@all_objectives
def test_exports_leave_out_what_serves_training_only(name):
    keys = {key.split(".")[0] for key in build(name).exported_state()}
    assert "encoder" in keys and "projector" in keys
    assert not keys & {"teacher", "mixup", "teacher_temperature"}


@all_objectives
def test_base_has_the_published_sizes(name):
    with torch.device("meta"):
        encoder = SpectrogramEncoder.from_size("base", (16, 16))
        objective = load_objective(name)(encoder)
    shapes = {k: tuple(p.shape) for k, p in objective.named_parameters()}
    if name == "asit":
        linears = ((2048, 768), (2048, 2048), (256, 2048))
        pixels = ((768, 768), (768, 768), (128, 768), (256, 128))
        for part, sizes in (("projector", linears), ("decoder", pixels)):
            found = [
                shape
                for key, shape in shapes.items()
                if key.startswith(part) and key.endswith("weight")
            ]
            assert tuple(found) == sizes
        assert shapes["class_prototypes.weight"] == (8192, 256)
        assert shapes["patch_prototypes.weight"] == (1024, 256)
    else:
        assert shapes["projector.fc1.weight"] == (4096, 768)
        assert shapes["projector.fc2.weight"] == (256, 4096)
        assert shapes["predictor.fc1.weight"] == (4096, 256)
        assert shapes["predictor.fc2.weight"] == (256, 4096)


@cuda
@all_objectives
def test_cuda_equals_cpu_without_waiting(name):
    batch = sounds()
    objective = build(name).eval()
    expected = objective(*batch, clip_keys=KEYS).loss.item()
    objective = objective.cuda()
    batch = [x.cuda() for x in batch]
    loss = objective(*batch, clip_keys=KEYS.cuda()).loss.item()
    assert loss == pytest.approx(expected, rel=1e-3)
    objective.train()
    generator = torch.Generator("cuda").manual_seed(0)
    objective(*batch, generator=generator).loss.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            loss = objective(*batch, generator=generator).loss
            loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
