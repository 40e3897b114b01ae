"""The EMA teacher, and what is computed over processes."""

import torch
from processes import run_processes
from torch import nn

from ssast_lobes import SpectrogramEncoder
from ssast_lobes.models.ema_teacher import EMATeacher
from ssast_lobes.utils.distributed import SharedBatchNorm


def owner(drop_path=0.3):
    torch.manual_seed(0)
    module = nn.Module()
    module.encoder = SpectrogramEncoder(
        dim=32, depth=2, heads=2, drop_path=drop_path
    )
    module.projector = nn.Sequential(nn.Linear(32, 8), SharedBatchNorm(8))
    return module


def test_teacher_moves_by_exactly_its_share():
    student = owner()
    teacher = EMATeacher(encoder=student.encoder, projector=student.projector)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += torch.randn_like(parameter)
    for name in ("encoder", "projector"):
        own = getattr(teacher, name).state_dict()
        before = {key: value.clone() for key, value in own.items()}
        setattr(teacher, f"_{name}_before", before)
    momentum = 0.9
    teacher.update(student, momentum)
    for name in ("encoder", "projector"):
        before = getattr(teacher, f"_{name}_before")
        goal = dict(getattr(student, name).named_parameters())
        for key, value in getattr(teacher, name).named_parameters():
            delta = goal[key] - before[key]
            moved = value - before[key]
            assert torch.allclose(moved, (1 - momentum) * delta, atol=1e-6)
            assert moved.abs().max() > 0


def test_teacher_has_no_gradient_and_no_drop_path():
    student = owner()
    teacher = EMATeacher(encoder=student.encoder)
    objective = nn.ModuleDict({"teacher": teacher, "student": student.encoder})
    objective.train()
    assert student.encoder.training and not teacher.encoder.training
    assert not any(p.requires_grad for p in teacher.parameters())
    feats, n_frames = torch.randn(4, 64, 128), torch.full((4,), 64)
    teacher.encoder.train()  # even then: the copy has no drop-path
    one = teacher.encoder(feats, n_frames).tokens
    assert torch.equal(one, teacher.encoder(feats, n_frames).tokens)
    assert not torch.equal(one, student.encoder(feats, n_frames).tokens)


def test_teacher_batch_norm_follows_its_setting():
    student = owner()
    still = EMATeacher(projector=student.projector)
    moving = EMATeacher(batch_statistics=True, projector=student.projector)
    rows = 3 + torch.randn(16, 32)
    for teacher, centered in ((still, False), (moving, True)):
        teacher.train()
        with torch.no_grad():
            out = teacher.projector(rows)
        assert bool(out.mean(0).abs().max() < 1e-5) is centered
    moving.eval()
    running = moving.projector[1].running_mean.clone()
    moving.projector(rows)
    assert torch.equal(running, moving.projector[1].running_mean)


def test_teacher_restarts_from_students_of_another_shape():
    student = owner()
    teacher = EMATeacher(encoder=student.encoder)
    student.encoder.positions.table = nn.Parameter(torch.ones(8, 10, 32))
    teacher.restart(student)
    assert torch.equal(
        teacher.encoder.positions.table, student.encoder.positions.table
    )
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.encoder.training


def test_teacher_is_saved_and_loaded():
    student = owner()
    teacher = EMATeacher(encoder=student.encoder)
    with torch.no_grad():
        student.encoder.class_tokens += 1
    teacher.update(student, 0.5)
    other = EMATeacher(encoder=owner().encoder)
    other.load_state_dict(teacher.state_dict())
    assert torch.equal(other.encoder.class_tokens, teacher.encoder.class_tokens)


def test_batch_norm_alone_is_the_plain_one():
    torch.manual_seed(0)
    ours, plain = SharedBatchNorm(5), nn.BatchNorm1d(5)
    for _ in range(3):
        x = (2 * torch.randn(9, 5) + 1).requires_grad_()
        y = x.detach().clone().requires_grad_()
        ours(x).square().sum().backward()
        plain(y).square().sum().backward()
        assert torch.allclose(ours(x), plain(y), atol=1e-5)
        assert torch.allclose(x.grad, y.grad, atol=1e-4)
    assert torch.allclose(ours.running_mean, plain.running_mean, atol=1e-6)
    assert torch.allclose(ours.running_variance, plain.running_var, atol=1e-5)
    ours.eval(), plain.eval()
    assert torch.allclose(ours(x), plain(x), atol=1e-5)


def test_batch_norm_leaves_out_rows_without_weight():
    torch.manual_seed(0)
    norm, x = SharedBatchNorm(4), torch.randn(6, 4)
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    expected = SharedBatchNorm(4)(x[:4])
    assert torch.allclose(norm(x, weight)[:4], expected, atol=1e-6)
    before = norm.running_mean.clone()
    assert norm(x, torch.zeros(6)).isfinite().all()
    assert torch.equal(before, norm.running_mean)


def gradients_of_half(rank, folder):
    torch.manual_seed(0)
    rows = torch.randn(8, 4)
    target = torch.randn(8, 4)
    own = rows[4 * rank : 4 * rank + 4].clone().requires_grad_()
    norm = SharedBatchNorm(4)
    out = norm(own)
    (out * target[4 * rank : 4 * rank + 4]).sum().backward()
    return out.detach(), own.grad


def test_batch_norm_of_two_processes_is_that_of_one(tmp_path):
    parts = run_processes(gradients_of_half, 2, tmp_path)
    torch.manual_seed(0)
    rows = torch.randn(8, 4).requires_grad_()
    target = torch.randn(8, 4)
    out = SharedBatchNorm(4)(rows)
    (out * target).sum().backward()
    assert torch.allclose(torch.cat([p[0] for p in parts]), out, atol=1e-6)
    assert torch.allclose(
        torch.cat([p[1] for p in parts]), rows.grad, atol=1e-5
    )
