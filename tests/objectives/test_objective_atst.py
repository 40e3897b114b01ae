"""ATST-Clip and ATST-Frame: losses by hand, span masks, batch statistics."""

import pytest
import torch

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.block_maskers import SpanMasker


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(name, patch=(32, 4), **arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        Grid(32, patch), dim=32, depth=1, heads=2, table_frames=80
    )
    return load_objective(name)(encoder, **arguments)


def batch(lengths=(80, 45, 9), seed=0):
    feats = torch.zeros(len(lengths), max(lengths), 32)
    draw = seeded(seed)
    for row, length in zip(feats, lengths, strict=True):
        row[:length] = torch.randn(length, 32, generator=draw)
    return feats, torch.tensor(lengths)


def perturbed_teacher(objective):
    with torch.no_grad():
        for value in objective.teacher.parameters():
            value += 0.05 * torch.randn(value.shape, generator=seeded(1))
    return objective


def distance(x, y):
    return 2 - 2 * torch.nn.functional.cosine_similarity(x, y, dim=-1)


@torch.no_grad()
def test_clip_loss_by_hand():
    objective = perturbed_teacher(build("atst_clip")).eval()
    (feats, n_frames), keys = batch(), torch.tensor([7, 8, 9])
    output = objective(feats, n_frames, clip_keys=keys)
    rand = objective.random_source(feats, clip_keys=keys)
    crops = [objective.crop(feats, n_frames, rand) for _ in range(2)]
    views = [objective.resize(x, n, rand) for x, n in crops]
    assert not torch.equal(*views)
    total = 0
    for row in range(3):
        count = crops[0][1][row : row + 1]
        pair = [view[row : row + 1, : int(count)] for view in views]
        students, teachers = [], []
        for view in pair:
            clip = objective.encoder(view, count).class_tokens.mean(1)
            students.append(objective.predictor(objective.projector(clip)))
            clip = objective.teacher.encoder(view, count).class_tokens.mean(1)
            teachers.append(objective.teacher.projector(clip))
        total += distance(students[0], teachers[1]).item() / 6
        total += distance(students[1], teachers[0]).item() / 6
    assert output.loss.item() == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("patch", [(32, 4), (16, 8)])
@torch.no_grad()
def test_frame_loss_by_hand(patch):
    objective = perturbed_teacher(build("atst_frame", patch)).eval()
    (feats, n_frames), keys = batch(), torch.tensor([7, 8, 9])
    mask = objective.draw_mask(feats, n_frames, clip_keys=keys)
    output = objective(feats, n_frames, mask, clip_keys=keys)
    rand = objective.random_source(feats, clip_keys=keys)
    views = [feats, objective.resize(feats, n_frames, rand)]
    losses = []
    for row in range(3):
        count = n_frames[row : row + 1]
        steps = objective.encoder.grid.n_time(int(count))
        own = mask[row : row + 1, :, :steps]
        hidden = own[0, 0]
        students, teachers = [], []
        for view in views:
            view = view[row : row + 1, : int(count)]
            frames = objective.encoder(
                view, count, own, objective.mask_embedding
            ).frames[0, hidden]
            students.append(objective.predictor(objective.projector(frames)))
            frames = objective.teacher.encoder(view, count).frames[0, hidden]
            teachers.append(objective.teacher.projector(frames))
        losses.append(distance(students[0], teachers[1]).mean().item())
        losses.append(distance(students[1], teachers[0]).mean().item())
    assert output.loss.item() == pytest.approx(sum(losses) / 6, abs=1e-5)
    drawn = objective(feats, n_frames, clip_keys=keys)
    assert drawn.loss.item() == pytest.approx(output.loss.item(), abs=1e-6)


def test_the_student_does_not_see_hidden_steps():
    objective, (feats, n_frames) = build("atst_frame"), batch((80, 80))
    mask = objective.draw_mask(feats, n_frames, seeded())
    feats.requires_grad_()
    objective(feats, n_frames, mask, seeded()).loss.backward()
    hidden = mask[:, 0].repeat_interleave(4, 1)
    assert (feats.grad[hidden] == 0).all()
    assert (feats.grad[~hidden].abs().sum(1) > 0).all()


@pytest.mark.parametrize("hidden", [0, 1, 19])
def test_any_number_of_hidden_steps(hidden):
    objective, (feats, n_frames) = build("atst_frame"), batch((80, 80))
    mask = torch.zeros(2, 1, 20, dtype=torch.bool)
    mask[:, :, :hidden] = True
    loss = objective(feats, n_frames, mask, seeded()).loss
    loss.backward()
    assert loss.isfinite() and (loss > 0) == (hidden > 0)
    for key, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["atst_clip", "atst_frame"])
@torch.no_grad()
def test_the_teacher_normalises_with_its_batch(name):
    objective, (feats, n_frames) = build(name), batch()
    norm = objective.teacher.projector.norm
    assert norm.training and not objective.teacher.encoder.training
    before = norm.running_mean.clone()
    objective(feats, n_frames, generator=seeded())
    assert not torch.equal(norm.running_mean, before)
    objective.eval()
    assert not norm.training


@pytest.mark.parametrize("name", ["atst_clip", "atst_frame"])
@torch.no_grad()
def test_views_are_mixed_with_clips_of_the_past(name):
    losses = []
    for past in (1.0, -1.0):
        objective = build(name)
        objective.mixup.remember(
            torch.full((4, 80, 32), past), torch.full((4,), 80)
        )
        losses.append(objective(*batch(), generator=seeded()).loss)
        assert objective.mixup.seen == 4 + 3
    assert losses[0] != losses[1]


def test_the_memory_is_smaller_than_a_checkpoint():
    encoder = SpectrogramEncoder.from_size("micro", (64, 4), n_mels=64)
    objective = load_objective("atst_frame")(encoder)
    clips = objective.mixup.clips
    assert clips.shape == (64, 1024, 64) and clips.nbytes < 10e6


def runs(row):
    """Lengths of the runs of True on a circle."""
    first = int((~row).int().argmax())
    lengths, length = [], 0
    for value in row.roll(-first).tolist() + [False]:
        if value:
            length += 1
        elif length:
            lengths.append(length)
            length = 0
    return lengths


@pytest.mark.parametrize("bands", [1, 3])
def test_spans_hide_exactly_their_share(bands):
    masker = SpanMasker(ratio=0.503, span=5)
    n_time = torch.tensor([250, 100, 31, 7, 2, 1] * 20)
    mask = masker(n_time, bands, 250, seeded())
    assert mask.shape == (120, bands, 250)
    assert all(torch.equal(mask[:, 0], mask[:, band]) for band in range(bands))
    for row, steps in zip(mask[:, 0], n_time.tolist(), strict=True):
        wanted = min(max(1, round(0.503 * steps)), steps - 1)
        assert row.sum() == wanted and not row[steps:].any()
        if steps < 30:
            continue
        # Whole spans, of which one at most is cut short.
        assert sum(length < 5 for length in runs(row[:steps])) <= 1


def test_every_step_is_hidden_equally_often():
    mask = SpanMasker(ratio=0.5, span=5)(
        torch.full((4000,), 20), 1, 20, seeded()
    )
    share = mask[:, 0].float().mean(0)
    assert (share - 0.5).abs().max() < 0.03


def test_span_masks_follow_the_clips_key():
    masker = SpanMasker(ratio=0.5, span=5)
    keys = torch.tensor([7, 8])
    n_time = torch.tensor([40, 20])
    mask = masker(n_time, 1, 40, clip_keys=keys)
    longer = masker(n_time, 1, 60, clip_keys=keys)
    assert torch.equal(longer[:, :, :40], mask)
    swapped = masker(n_time.flip(0), 1, 40, clip_keys=keys.flip(0))
    assert torch.equal(swapped, mask.flip(0))
