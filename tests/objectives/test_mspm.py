"""Masked spectrogram patch modeling against plain Python, clip by clip."""

import math
import random
from contextlib import nullcontext

import pytest
import torch

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import MSPM, MSPMReference
from ssast_lobes.objectives.base import clip_mean, gather_tokens, ids_masked
from ssast_lobes.objectives.maskers import ClusterMasker
from ssast_lobes.objectives.mspm import SOFTMAX_OVER, info_nce
from ssast_lobes.objectives.mspm_reference import (
    official_info_nce,
    official_mask,
)

GRIDS = {
    "patch": Grid(),
    "frame": Grid(128, (128, 2)),
    "small": Grid(40, (8, 4)),
}
softmax_axes = pytest.mark.parametrize("softmax_over", SOFTMAX_OVER)
cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device"
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(geometry="patch", objective=MSPM, **arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        GRIDS[geometry], dim=32, depth=2, heads=2, table_frames=160
    )
    return objective(encoder, **arguments)


def batch(geometry="patch", lengths=(160, 97, 33, 130), seed=0):
    feats = torch.zeros(len(lengths), max(lengths), GRIDS[geometry].n_mels)
    draw = seeded(seed)
    for row, length in zip(feats, lengths, strict=True):
        shape = (length, GRIDS[geometry].n_mels)
        row[:length] = 0.5 * torch.randn(shape, generator=draw)
    return feats, torch.tensor(lengths)


def nce_by_hand(predictions, targets, softmax_over):
    """Loss and accuracy of one clip (K, P) in nested Python loops."""
    count = len(targets)
    if count == 0:
        return None
    scores = [[float(c @ x) for x in targets] for c in predictions]
    loss, right = 0.0, 0
    for i in range(count):
        if softmax_over == "targets":
            rivals = [scores[i][j] for j in range(count)]
        else:
            rivals = [scores[j][i] for j in range(count)]
        rivals = torch.tensor(rivals, dtype=torch.float64)
        loss -= scores[i][i] - torch.logsumexp(rivals, 0).item()
        right += max(range(count), key=lambda j: scores[i][j]) == i
    return loss / count, right / count


@softmax_axes
def test_info_nce_equals_plain_loops(softmax_over):
    draw = seeded()
    predictions = torch.randn(4, 9, 6, generator=draw)
    targets = torch.randn(4, 9, 6, generator=draw)
    weight = torch.zeros(4, 9)
    counts = [9, 4, 1, 0]
    for row, count in zip(weight, counts, strict=True):
        row[:count] = 1
    loss, accuracy = info_nce(predictions, targets, weight, softmax_over)
    by_hand = [
        nce_by_hand(p[:n], x[:n], softmax_over)
        for p, x, n in zip(predictions, targets, counts, strict=True)
        if n
    ]
    losses, accuracies = zip(*by_hand, strict=True)
    assert loss.item() == pytest.approx(sum(losses) / 3, abs=1e-5)
    assert accuracy.item() == pytest.approx(sum(accuracies) / 3, abs=1e-6)


def test_the_two_softmax_axes_differ():
    draw = seeded()
    x, y = torch.randn(2, 1, 9, 6, generator=draw)
    weight = torch.ones(1, 9)
    one, other = (info_nce(x, y, weight, axis)[0] for axis in SOFTMAX_OVER)
    assert abs(one - other) > 0.1
    # Swapping the roles swaps the axes.
    swapped = info_nce(y, x, weight, "targets")[0]
    assert swapped.item() == pytest.approx(one.item(), abs=1e-5)


@softmax_axes
def test_info_nce_of_huge_scores_and_empty_clips_is_finite(softmax_over):
    predictions = (300 * torch.randn(3, 5, 6)).requires_grad_()
    targets = 300 * torch.randn(3, 5, 6)
    weight = torch.tensor([[1.0] * 5, [0.0] * 5, [1.0, 0, 0, 0, 0]])
    loss, _ = info_nce(predictions, targets, weight, softmax_over)
    # Nor may a NaN pass on the way back, where a later zero would hide it.
    torch.autograd.set_detect_anomaly(True)
    try:
        loss.backward()
    finally:
        torch.autograd.set_detect_anomaly(False)
    assert loss.isfinite() and predictions.grad.isfinite().all()
    assert (predictions.grad[1] == 0).all()
    # One hidden token has no rival: nothing to learn, not a NaN.
    assert predictions.grad[2].abs().max() == 0


def test_info_nce_is_exact_under_bf16_autocast():
    x, y = 20 * torch.randn(2, 1, 40, 256)
    weight = torch.ones(1, 40)
    expected = info_nce(x, y, weight, "predictions")[0]
    with torch.autocast("cpu", torch.bfloat16):
        inside = info_nce(x, y, weight, "predictions")[0]
    assert inside.dtype == torch.float32 and torch.equal(inside, expected)


def test_means_within_a_clip_then_over_clips():
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0], [99.0] * 3])
    weight = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0] * 3])
    assert clip_mean(values, weight).item() == (2 + 10) / 2
    assert clip_mean(values, torch.zeros(3, 3)).item() == 0


def test_hidden_tokens_are_gathered_in_order():
    mask = torch.rand(5, 4, 6, generator=seeded()) < 0.4
    index, weight = ids_masked(mask, 24)
    values = torch.randn(5, 24, 3)
    for clip in range(5):
        hidden = mask[clip].flatten().nonzero().flatten()
        count = len(hidden)
        assert torch.equal(index[clip, :count], hidden)
        assert weight[clip].tolist() == [1.0] * count + [0.0] * (24 - count)
        taken = gather_tokens(values, index)[clip, :count]
        assert torch.equal(taken, values[clip][hidden])


def by_hand(objective, feats, n_frames, mask, task):
    """Losses clip by clip: each clip alone, its hidden tokens picked out."""
    grid, nces, mses, hits = objective.encoder.grid, [], [], []
    counts = []
    for clip, count, chosen in zip(feats, n_frames.tolist(), mask, strict=True):
        steps = grid.n_time(count)
        own = chosen[:, :steps][None]
        if not own.any():
            continue
        feat = clip[None, :count]
        tokens = objective.encoder(
            feat, torch.tensor([count]), own, objective.mask_embedding
        ).tokens[own.flatten(1)]
        targets = grid.unfold(feat)[own.flatten(1)]
        if task != "generative":
            nce, hit = nce_by_hand(
                objective.discriminator(tokens), targets, objective.softmax_over
            )
            nces.append(nce)
            hits.append(hit)
            counts.append(len(targets))
        if task != "discriminative":
            error = objective.generator_head(tokens) - targets
            mses.append(error.square().mean().item())
    values = {
        "nce": nces,
        "nce_chance": [math.log(count) for count in counts],
        "accuracy": hits,
        "accuracy_chance": [1 / count for count in counts],
        "mse": mses,
    }
    return {name: sum(v) / len(v) for name, v in values.items() if v}


@softmax_axes
@pytest.mark.parametrize("geometry", GRIDS)
@pytest.mark.parametrize("task", ["joint", "discriminative", "generative"])
@torch.no_grad()
def test_losses_of_clips_of_any_length(task, geometry, softmax_over):
    objective = small(
        geometry,
        masker=ClusterMasker(ratio=0.5),
        task=task,
        softmax_over=softmax_over,
    ).eval()
    # The last clip is a single step: a frame model hides nothing of it.
    feats, n_frames = batch(geometry, (160, 97, 33, 2))
    mask = objective.draw_mask(feats, n_frames, seeded())
    output = objective(feats, n_frames, mask)
    expected = by_hand(objective, feats, n_frames, mask, task)
    assert set(output.logs) == set(expected)
    for name, value in expected.items():
        assert output.logs[name].item() == pytest.approx(value, abs=2e-5)
    if task == "joint":
        wanted = expected["nce"] + 10 * expected["mse"]
    else:
        wanted = expected["mse" if task == "generative" else "nce"]
    assert output.loss.item() == pytest.approx(wanted, abs=2e-4)
    drawn = objective(feats, n_frames, generator=seeded())
    assert drawn.loss.item() == pytest.approx(output.loss.item(), abs=1e-5)


@pytest.mark.parametrize("task", ["joint", "discriminative", "generative"])
def test_a_task_has_its_own_heads_only(task):
    keys = {key.split(".")[0] for key in small(task=task).state_dict()}
    wanted = {"encoder", "mask_embedding"}
    wanted |= {"discriminator"} if task != "generative" else set()
    wanted |= {"generator_head"} if task != "discriminative" else set()
    assert keys == wanted


def test_weight_of_the_reconstruction():
    objective = small(generative_weight=3.0).eval()
    loss, logs = objective(*batch(), generator=seeded())
    expected = logs["nce"] + 3 * logs["mse"]
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("geometry", GRIDS)
@torch.no_grad()
def test_the_loss_of_a_clip_does_not_depend_on_its_neighbors(geometry):
    objective = small(geometry, masker=ClusterMasker(ratio=0.6)).eval()
    feats, n_frames = batch(geometry)
    feats[2, 33:] = 11.0
    keys = torch.tensor([3, 1, 4, 1])
    mask = objective.draw_mask(feats, n_frames, clip_keys=keys)
    total = 0
    for row, count in enumerate(n_frames.tolist()):
        only, counts = feats[row : row + 1, :count], n_frames[row : row + 1]
        own = objective.draw_mask(only, counts, clip_keys=keys[row : row + 1])
        total += objective(only, counts, own).loss.item() / len(feats)
    together = objective(feats, n_frames, mask).loss.item()
    assert together == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("geometry", GRIDS)
def test_gradients_reach_everything_but_the_targets(geometry):
    objective = small(geometry, masker=ClusterMasker(ratio=0.5))
    feats, n_frames = batch(geometry)
    feats.requires_grad_()
    mask = objective.draw_mask(feats, n_frames, seeded())
    objective(feats, n_frames, mask).loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    # Hidden patches are targets only: nothing flows back into them.
    grid = objective.encoder.grid
    moved = grid.unfold(feats.grad).abs().sum(2)
    assert (moved[mask.flatten(1)] == 0).all()
    assert moved[~mask.flatten(1)].any()


def test_a_mask_of_the_caller_never_makes_padding_a_target():
    objective = small(geometry="frame").eval()
    feats, n_frames = batch("frame")
    everywhere = torch.zeros(4, 1, 80, dtype=torch.bool)
    everywhere[:, :, 5:] = True
    n_time, _ = objective.encoder.token_lengths(n_frames, 160)
    is_audio = torch.arange(80) < n_time[:, None]
    audio_only = everywhere & is_audio[:, None]
    one, other = (
        objective(feats, n_frames, mask) for mask in (everywhere, audio_only)
    )
    assert one.loss == other.loss and one.logs == other.logs


def test_a_mask_of_another_shape_is_an_error():
    objective = small()
    feats, n_frames = batch()
    mask = objective.draw_mask(feats, n_frames)
    with pytest.raises(
        ValueError, match=r"must be \(B, 8, 10\), got \(4, 10, 8"
    ):
        objective(feats, n_frames, mask.transpose(1, 2))


def test_a_batch_that_hides_nothing_is_finite():
    objective = small("frame")
    feats, n_frames = batch("frame", (2, 1))
    output = objective(feats, n_frames)
    output.loss.backward()
    assert output.loss.item() == 0
    for parameter in objective.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("geometry", GRIDS)
@pytest.mark.parametrize("amount", [{"ratio": 0.999}, {"count": 10_000}])
def test_all_but_one_token_may_be_hidden(geometry, amount):
    objective = small(geometry, masker=ClusterMasker(**amount))
    feats, n_frames = batch(geometry)
    mask = objective.draw_mask(feats, n_frames)
    grid = objective.encoder.grid
    tokens = grid.n_freq * grid.n_time(n_frames)
    assert torch.equal(mask.sum((1, 2)), tokens - 1)
    assert objective(feats, n_frames, mask).loss.isfinite()


@pytest.mark.parametrize("task", ["joint", "discriminative", "generative"])
def test_a_few_steps_on_one_batch_lower_the_loss(task):
    objective = small("small", masker=ClusterMasker(ratio=0.5), task=task)
    optimizer = torch.optim.Adam(objective.parameters(), lr=2e-3)
    feats, n_frames = batch("small", (80, 50))
    losses = []
    for _ in range(30):
        loss = objective(feats, n_frames, generator=seeded()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_an_untrained_model_guesses():
    objective = small("patch", masker=ClusterMasker(ratio=0.5)).eval()
    logs = objective(*batch(lengths=(1024,)), generator=seeded()).logs
    assert logs["nce"].item() == pytest.approx(5.545, abs=0.2)
    assert logs["accuracy"].item() < 0.05


def test_bf16_autocast_trains_and_stays_near():
    objective = small(masker=ClusterMasker(ratio=0.5))
    feats, n_frames = batch()
    mask = objective.draw_mask(feats, n_frames, seeded())
    exact = objective(feats, n_frames, mask)
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(feats, n_frames, mask)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    assert all(p.grad.isfinite().all() for p in objective.parameters())


@pytest.mark.parametrize("geometry", GRIDS)
def test_no_step_of_training_reads_values_back(geometry, monkeypatch):
    """The meta device has shapes only: whatever looks at a value raises."""
    # It has no autocast, not even one to switch off.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    objective = small(geometry, masker=ClusterMasker(ratio=0.5)).to("meta")
    feats, n_frames = (x.to("meta") for x in batch(geometry))
    output = objective(feats, n_frames)
    output.loss.backward()
    mask = objective.draw_mask(feats, n_frames, clip_keys=n_frames)
    assert objective(feats, n_frames, mask).loss.shape == ()
    with pytest.raises((RuntimeError, NotImplementedError)):
        feats[mask.flatten(1).any(1)]


def test_logs_are_detached_scalars():
    logs = small()(*batch()).logs
    assert all(v.dim() == 0 and not v.requires_grad for v in logs.values())


@torch.no_grad()
def test_reconstruction_changes_hidden_patches_only():
    objective = small(masker=ClusterMasker(ratio=0.5)).eval()
    feats, n_frames = batch(lengths=(160, 128))
    mask = objective.draw_mask(feats, n_frames, seeded())
    filled = objective.reconstruct(feats, n_frames, mask)
    assert filled.shape == feats.shape
    grid = objective.encoder.grid
    same = (grid.unfold(filled) == grid.unfold(feats)).all(2)
    assert torch.equal(same, ~mask.flatten(1))
    # What is filled in is the very prediction that the loss judges.
    chosen = mask.flatten(1)
    errors = (grid.unfold(filled) - grid.unfold(feats)).square().mean(2)
    per_clip = (errors * chosen).sum(1) / chosen.sum(1)
    mse = objective(feats, n_frames, mask).logs["mse"]
    assert per_clip.mean().item() == pytest.approx(mse.item(), abs=1e-5)


def test_a_discriminative_model_does_not_reconstruct():
    objective, (feats, n_frames) = small(task="discriminative"), batch()
    assert not objective.reconstructs and small().reconstructs
    with pytest.raises(ValueError, match="does not reconstruct"):
        objective.reconstruct(feats, n_frames, torch.ones(4, 8, 10).bool())


def test_the_papers_settings_are_the_default():
    objective = small()
    assert objective.masker.n_masked(512) == 400
    assert objective.generative_weight == 10
    assert (objective.task, objective.softmax_over) == ("joint", "predictions")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "contrastive"}, "task must be one of"),
        ({"softmax_over": "rows"}, "softmax_over must be one of"),
        ({"masker": {"ratio": 0.5}}, "a dict with its name and arguments"),
    ],
)
def test_unknown_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_overlapping_patches_are_refused():
    grid = Grid(128, (16, 16), (10, 10))
    encoder = SpectrogramEncoder(grid, dim=32, depth=1, heads=2)
    with pytest.raises(ValueError, match="must not show in its neighbors"):
        MSPM(encoder)


@pytest.mark.parametrize(
    "objective, arguments",
    [
        (MSPM, {"masker": ClusterMasker(count=30, cluster_sizes=[2])}),
        (MSPMReference, {"count": 30}),
    ],
)
def test_config_builds_the_objective_again(objective, arguments):
    first = small(objective=objective, **arguments)
    again = objective(first.encoder, **first.config)
    assert again.config == first.config
    again.load_state_dict(first.state_dict())


# The shares that the official generator was measured to have (3,000 masks).
OFFICIAL_SHARES = {
    400: [0.415, 0.670, 0.813, 0.872, 0.888, 0.887, 0.885, 0.819],
    250: [0.199, 0.366, 0.497, 0.568, 0.595, 0.595, 0.590, 0.496],
    100: [0.071, 0.138, 0.202, 0.240, 0.258, 0.258, 0.249, 0.147],
}


@pytest.mark.parametrize("count", OFFICIAL_SHARES)
def test_the_official_masks_have_the_official_bias(count):
    rng, hidden = random.Random(0), torch.zeros(512)
    for _ in range(1000):
        mask = official_mask(8, 64, count, rng)
        assert len(set(mask)) == count
        hidden[mask] += 1 / 1000
    rows = hidden.view(8, 64).mean(1)
    expected = torch.tensor(OFFICIAL_SHARES[count])
    assert (rows - expected).abs().max() < 0.02
    assert hidden[0] == hidden[511] == 0
    if count == 400:
        assert hidden[448:456].mean() == pytest.approx(0.89, abs=0.02)


def test_the_official_masks_end_at_their_limit():
    assert len(official_mask(8, 5, 38, random.Random(0))) == 38
    for count in (39, 40):
        with pytest.raises(ValueError, match="at most 38 of 40"):
            official_mask(8, 5, count, random.Random(0))


def test_official_frame_masks_are_flat():
    rng, hidden = random.Random(0), torch.zeros(64)
    for _ in range(5000):
        hidden[official_mask(1, 64, 50, rng)] += 1 / 5000
    assert (hidden - 50 / 64).abs().max() < 0.025


def test_too_many_official_frames_are_refused():
    with pytest.raises(ValueError, match="at most 10 of 10 tokens, not 12"):
        official_mask(1, 10, 12, random.Random(0))


@pytest.mark.parametrize("geometry", ["patch", "frame"])
@torch.no_grad()
def test_the_reference_is_two_passes_with_two_masks(geometry):
    reference = small(geometry, MSPMReference, count=30).eval()
    feats, n_frames = batch(geometry, (160, 160))
    output = reference(feats, n_frames, generator=seeded(5))
    generator = seeded(5)
    first = reference.draw_mask(feats, n_frames, generator)
    second = reference.draw_mask(feats, n_frames, generator)
    assert not torch.equal(first, second)
    one = reference(feats, mask=first).logs
    two = reference(feats, mask=second).logs
    assert output.logs["nce"] == one["nce"]
    assert output.logs["accuracy"] == one["accuracy"]
    assert output.logs["mse"] == two["mse"]
    assert one["mse"] != two["mse"]
    expected = one["nce"] + 10 * two["mse"]
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)


@torch.no_grad()
def test_the_reference_takes_padding_for_audio():
    reference = small("patch", MSPMReference, count=30).eval()
    feats, n_frames = batch("patch", (160, 40))
    mask = reference.draw_mask(feats, n_frames, seeded())
    assert mask[1, :, 3:].any()
    whole = torch.tensor([160, 160])
    with_counts = reference(feats, n_frames, mask).loss
    assert with_counts == reference(feats, whole, mask).loss
    feats[1, 40:] = 0.5
    assert with_counts != reference(feats, n_frames, mask).loss


@torch.no_grad()
def test_the_reference_equals_the_default_on_clips_of_one_length():
    reference = small("patch", MSPMReference, count=30).eval()
    default = small("patch", masker=ClusterMasker(count=30)).eval()
    default.load_state_dict(reference.state_dict())
    feats, n_frames = batch("patch", (160, 160))
    mask = default.draw_mask(feats, n_frames, seeded())
    theirs, ours = reference(feats, mask=mask), default(feats, n_frames, mask)
    assert theirs.loss.item() == pytest.approx(ours.loss.item(), rel=1e-5)


def test_the_references_masks_follow_seed_and_key():
    reference = small("patch", MSPMReference, count=30)
    feats, n_frames = batch("patch", (160, 160))

    def draw(**arguments):
        return reference.draw_mask(feats, n_frames, **arguments)

    assert torch.equal(draw(generator=seeded(1)), draw(generator=seeded(1)))
    keys = torch.tensor([7, 8])
    keyed = draw(clip_keys=keys)
    assert torch.equal(draw(clip_keys=keys.flip(0)), keyed.flip(0))


def test_official_accuracy_mixes_both_directions():
    draw = seeded()
    predictions, targets = torch.randn(2, 3, 12, 5, generator=draw)
    loss, accuracy = official_info_nce(predictions, targets)
    losses, hits = [], []
    for clip, wanted in zip(predictions, targets, strict=True):
        total = wanted @ clip.t()
        share = total.log_softmax(1)
        losses.append(-share.diagonal().mean())
        hits.append((share.argmax(0) == torch.arange(12)).float().mean())
    assert loss.item() == pytest.approx(sum(losses).item() / 3, abs=1e-5)
    assert accuracy.item() == pytest.approx(sum(hits).item() / 3, abs=1e-6)


def attention_masks(monkeypatch):
    """Fills with the mask of each attention from now on."""
    masks, attention = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*args, attn_mask=None, **more):
        masks.append(attn_mask)
        return attention(*args, attn_mask=attn_mask, **more)

    name = "scaled_dot_product_attention"
    monkeypatch.setattr(torch.nn.functional, name, watched)
    # On the CPU the encoder looks whether there is padding, unless so.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return masks


@pytest.mark.parametrize("geometry", GRIDS)
def test_without_counts_all_frames_are_audio(geometry, monkeypatch):
    masks = attention_masks(monkeypatch)
    objective = small(geometry)
    feats, n_frames = batch(geometry, lengths=(120, 120, 120))
    counted = objective(feats, n_frames, generator=seeded())
    assert len(masks) == 2 and None not in masks
    plain = objective(feats, None, generator=seeded())
    assert masks[2:] == [None, None]
    torch.testing.assert_close(plain.loss, counted.loss)
    for name, value in counted.logs.items():
        torch.testing.assert_close(plain.logs[name], value)


@cuda
@pytest.mark.parametrize("geometry", GRIDS)
def test_cuda_equals_cpu_without_waiting(geometry):
    objective = small(geometry, masker=ClusterMasker(ratio=0.5))
    feats, n_frames = batch(geometry)
    mask = objective.draw_mask(feats, n_frames, seeded())
    expected = objective(feats, n_frames, mask).loss.item()
    objective, feats = objective.cuda(), feats.cuda()
    n_frames, mask = n_frames.cuda(), mask.cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    objective(feats, n_frames, generator=generator).loss.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = objective(feats, n_frames, mask).loss
        loss.backward()
        with torch.autocast("cuda", torch.bfloat16):
            half = objective(feats, n_frames, generator=generator).loss
            half.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert half.isfinite()


@pytest.mark.slow
def test_one_compiled_graph_serves_clips_of_all_lengths():
    torch.compiler.reset()
    compiled = torch.compile(small(), backend="eager", fullgraph=True)
    counts = torch._dynamo.utils.counters["stats"]
    for frames in (96, 160, 128):
        feats, n_frames = batch(lengths=(frames, 50))
        assert compiled(feats, n_frames).loss.isfinite()
        if frames == 160:
            # The second length has made the first graph one of any length.
            graphs = counts["unique_graphs"]
    assert counts["unique_graphs"] == graphs


def test_sincos_positions_are_held_and_tell_hidden_tokens_apart():
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(Grid(128, (128, 4)), dim=32, depth=1, heads=2)
    objective = MSPM(encoder, ClusterMasker(ratio=0.5), sincos_positions=True)
    before = encoder.positions.table.clone()
    objective(torch.randn(2, 64, 128), torch.tensor([64, 64])).loss.backward()
    assert encoder.positions.table.grad is None
    torch.testing.assert_close(encoder.positions.table, before)
    assert before[0].std() > 0.5
