"""ASiT: its losses against plain Python, its temperatures and centers."""

import pytest
import torch

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.projections import (
    Center,
    Prototypes,
    prototype_cross_entropy,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(**arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        Grid(32, (16, 8)), dim=32, depth=1, heads=2, table_frames=80
    )
    arguments = {"projection": 16, **arguments}
    return load_objective("asit")(encoder, **arguments)


def batch(lengths=(80, 45, 9), seed=0):
    feats = torch.zeros(len(lengths), max(lengths), 32)
    draw = seeded(seed)
    for row, length in zip(feats, lengths, strict=True):
        row[:length] = torch.randn(length, 32, generator=draw)
    return feats, torch.tensor(lengths)


def cross_entropy(student, teacher, mean, temperature):
    """Of one token, in plain Python on its logits."""
    goal = torch.softmax((teacher - mean) / temperature, 0)
    return -(goal * torch.log_softmax(student / 0.1, 0)).sum().item()


@torch.no_grad()
def test_losses_by_hand():
    objective, (feats, n_frames) = build().eval(), batch()
    for parameter in objective.teacher.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=seeded(1))
    for center in (objective.class_center, objective.patch_center):
        center.mean.normal_(generator=seeded(2))
    keys = torch.tensor([7, 8, 9])
    output = objective(feats, n_frames, clip_keys=keys)

    rand = objective.random_source(feats, clip_keys=keys)
    crops = [objective.crop(feats, n_frames, rand) for _ in range(2)]
    spoilt = [objective.corrupt(*crop, rand) for crop in crops]
    l1, patch, clip = [], [], []
    for row in range(len(feats)):
        views = []
        for (crop, counts), (corrupted, hidden) in zip(
            crops, spoilt, strict=True
        ):
            count = counts[row : row + 1]
            only = slice(row, row + 1), slice(0, int(count))
            student = objective.encoder(corrupted[only], count)
            teacher = objective.teacher.encoder(crop[only], count)
            logits = objective._logits(objective, student)
            goals = objective._logits(objective.teacher, teacher)
            views.append((logits, goals))
            mean = objective.patch_center.mean
            entropies = [
                cross_entropy(s, t, mean, 0.04)
                for s, t in zip(logits[1][0], goals[1][0], strict=True)
            ]
            patch.append(sum(entropies) / len(entropies))
            patches = objective.decoder(student.tokens)
            restored = objective.encoder.grid.fold(patches, int(count))
            error = (restored - crop[only]).abs()
            l1.append(error[hidden[only]].mean().item())
        for view, other in ((0, 1), (1, 0)):
            student, teacher = views[view][0][0][0], views[other][1][0][0]
            mean = objective.class_center.mean
            clip.append(cross_entropy(student, teacher, mean, 0.04))
    expected = {
        "l1": sum(l1) / 6,
        "patch_loss": sum(patch) / 6,
        "class_loss": sum(clip) / 6,
    }
    for name, value in expected.items():
        assert output.logs[name].item() == pytest.approx(value, rel=1e-4), name
    total = expected["class_loss"] + expected["patch_loss"] + 2 * expected["l1"]
    assert output.loss.item() == pytest.approx(total, rel=1e-4)


def test_the_student_does_not_see_dropped_pixels():
    objective, (feats, n_frames) = build(crop=1.0).eval(), batch((80, 80))
    keys = torch.tensor([1, 2])
    rand = objective.random_source(feats, clip_keys=keys)
    crops = [objective.crop(feats, n_frames, rand) for _ in range(2)]
    hidden = [objective.corrupt(*crop, rand)[1] for crop in crops]
    feats.requires_grad_()
    # Neither as a target nor through the teacher does the loss reach them.
    objective(feats, n_frames, clip_keys=keys).loss.backward()
    both = hidden[0] & hidden[1]
    assert both.any() and (feats.grad[both] == 0).all()
    assert (feats.grad[~both] != 0).all()


def test_temperature_rises_and_is_saved():
    objective = build()
    assert objective.teacher_temperature.item() == pytest.approx(0.04)
    for step, expected in ((15, 0.055), (30, 0.07), (100, 0.07)):
        objective.after_step(step, 100)
        assert objective.teacher_temperature.item() == pytest.approx(expected)
    again = build()
    again.load_state_dict(objective.state_dict())
    assert again.teacher_temperature == objective.teacher_temperature


@torch.no_grad()
def test_centers_are_means_of_raw_logits():
    objective, (feats, n_frames) = build(crop=1.0), batch()
    teacher = objective.teacher.encoder(feats, n_frames)
    clip, patch, _ = objective._logits(objective.teacher, teacher)
    objective(feats, n_frames)
    # Patches are averaged within a clip, then over clips.
    means = [p[v].mean(0) for p, v in zip(patch, teacher.is_token, strict=True)]
    for center, mean in (
        (objective.class_center, clip.mean(0)),
        (objective.patch_center, torch.stack(means).mean(0)),
    ):
        assert torch.allclose(center.mean, mean, atol=1e-6)


def test_a_center_moves_by_its_share_and_in_training_only():
    center = Center(3, momentum=0.9)
    first, second = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    center.update(first)
    center.update(second)
    assert torch.allclose(center.mean, 0.9 * first + 0.1 * second)
    before = center.mean.clone()
    center.eval()
    center.update(first)
    assert torch.equal(center.mean, before)


def test_prototypes_are_directions():
    prototypes = Prototypes(6, 4)
    x = torch.randn(5, 6, generator=seeded())
    cosines = torch.nn.functional.cosine_similarity(
        x[:, None], prototypes.weight[None], dim=2
    )
    assert torch.allclose(prototypes(x), cosines, atol=1e-6)
    with torch.no_grad():
        prototypes.weight *= 7
    assert torch.allclose(prototypes(x), cosines, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(prototypes(x), cosines, atol=1e-6)


def test_cross_entropy_is_least_for_the_same_choice():
    teacher = torch.tensor([[1.0, -1.0, 0.0]])
    same = prototype_cross_entropy(teacher, teacher, (0.1, 0.04))
    other = prototype_cross_entropy(teacher.flip(1), teacher, (0.1, 0.04))
    assert same < 1e-3 < other


@torch.no_grad()
def test_the_picture_shows_what_the_loss_judges():
    objective, (feats, n_frames) = build().eval(), batch()
    keys = torch.tensor([7, 8, 9])
    hidden, filled = objective.picture(feats, n_frames, keys)
    assert objective.reconstructs
    assert torch.equal(filled[~hidden], feats[~hidden])
    for row, count in enumerate(n_frames.tolist()):
        assert 0.5 <= hidden[row].sum() / (count * 32) < 0.85
        assert not hidden[row, count:].any()
    again = objective.picture(feats, n_frames, keys)[1]
    assert torch.equal(filled, again)


@torch.no_grad()
def test_clips_are_pasted_in_training_only():
    objective, (feats, n_frames) = (
        build(paste_probability=1.0),
        batch((80,) * 4),
    )
    seen = []
    objective.corrupt.register_forward_hook(
        lambda module, given, output: seen.append((given[0], *output))
    )
    for training in (True, False):
        objective.train(training)
        seen.clear()
        objective(feats, n_frames, generator=seeded())
        assert len(seen) == 2
        for clean, corrupted, hidden in seen:
            filled = corrupted[hidden]
            assert bool((filled != 0).all()) is training
            assert (hidden.float().mean() < 0.45) == training
            assert torch.equal(corrupted[~hidden], clean[~hidden])
