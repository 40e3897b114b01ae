"""AudioMosaic: its loss by hand, its drops, and processes that train as one."""

import copy

import pytest
import torch
from processes import run_processes
from torch.nn.parallel import DistributedDataParallel

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import AudioMosaic, load_objective
from ssast_lobes.objectives.block_maskers import (
    ChunkMasker,
    PeriodicMasker,
    RowMasker,
)
from ssast_lobes.objectives.views import roll
from ssast_lobes.utils.metrics import effective_rank

QUIET = {"background": {"probability": 0.0, "snr": [0.0, 0.0], "scale": 1.0}}


def build(preset="audiomosaic", patch=(16, 8), blocks="attention", **arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        *(Grid(32, patch), 32),
        depth=2,
        heads=2,
        table_frames=80,
        blocks=blocks,
    )
    sizes = {"memory": 8, "hidden": 2.0, "out": 1.0}
    return load_objective(preset)(encoder, **{**sizes, **arguments})


def batch(count=4, seed=3):
    draw = torch.Generator().manual_seed(seed)
    n_frames = torch.tensor([80, 45] * (count // 2))
    feats = torch.randn(count, 80, 32, generator=draw)
    return feats * (torch.arange(80) < n_frames[:, None])[:, :, None], n_frames


def projections(objective):
    """What the projector gives, once it is called."""
    seen = []
    objective.projector.register_forward_hook(
        lambda module, _, output: seen.append(output.detach())
    )
    return seen


def by_hand(rows):
    """Mean NT-Xent at a temperature of 0.1 of (views, D), and accuracy."""
    rows = rows / rows.norm(dim=1, keepdim=True)
    losses, right = [], []
    for row in range(len(rows)):
        partner = (row + len(rows) // 2) % len(rows)
        others = [o for o in range(len(rows)) if o != row]
        cosines = {o: (rows[row] @ rows[o]).double() / 0.1 for o in others}
        total = torch.stack(list(cosines.values())).logsumexp(0)
        losses.append(total - cosines[partner])
        right.append(max(cosines, key=cosines.get) == partner)
    return torch.stack(losses).mean(), sum(right) / len(right)


def test_loss_and_accuracy_by_hand():
    objective = build()
    seen = projections(objective)
    output = objective(*batch(), generator=torch.Generator().manual_seed(1))
    loss, accuracy = by_hand(seen[0])
    assert output.loss.item() == pytest.approx(loss.item(), abs=1e-5)
    assert output.logs["accuracy"] == accuracy
    # Vectors are remembered for the evaluation.
    assert objective.n_remembered == 8
    unit = seen[0] / seen[0].norm(dim=1, keepdim=True)
    torch.testing.assert_close(objective.memory, unit)


def test_evaluation_is_a_function_of_the_clip():
    objective = build()
    objective(*batch())
    objective.eval()
    feats, n_frames = batch()
    keys = torch.tensor([5, 6, 7, 8])
    before = objective.memory.clone()
    whole = objective(feats, n_frames, clip_keys=keys).loss
    each = [
        objective(feats[[n]], n_frames[[n]], clip_keys=keys[[n]]).loss
        for n in range(4)
    ]
    torch.testing.assert_close(whole, torch.stack(each).mean())
    assert torch.equal(objective.memory, before)


def test_an_empty_memory_compares_with_nothing():
    objective = build().eval()
    assert objective(*batch()).loss == 0


def test_views_of_a_clip_lose_times_and_frequencies():
    """60 % of the clip's times and 40 % of the rows; padding never counts."""
    objective = build()
    kept = []

    def listen(module, arguments, named, encoded):
        kept.append(encoded.is_token.sum(1).tolist())

    objective.encoder.register_forward_hook(listen, with_kwargs=True)
    objective(*batch(2))
    # 10 and 6 times (45 frames are 5.6 patches), 2 rows of which 1 is kept.
    assert kept == [[8, 4], [10, 6]]


def gradients(temperature, rank=None):
    """Of a batch of eight clips, or of a process's half of it."""
    objective = build(temperature=temperature, memory=16, **QUIET)
    feats, n_frames = batch(8)
    keys, module = torch.arange(8), objective
    if rank is not None:
        module = DistributedDataParallel(objective)
        # Halves of unlike size: an unreadable clip leaves a batch shorter.
        own = slice(0, 5) if rank == 0 else slice(5, 8)
        feats, n_frames, keys = feats[own], n_frames[own], keys[own]
    module(feats, n_frames, clip_keys=keys).loss.backward()
    found = {k: p.grad for k, p in objective.named_parameters()}
    return found, objective.memory


def work(rank, folder, temperature):
    return gradients(temperature, rank)


# Float32 is exact to 1e-6 of the largest gradient, near 1 at this temperature.
@pytest.mark.parametrize(
    "temperature", [1.0, pytest.param(0.1, marks=pytest.mark.slow)]
)
def test_processes_train_as_one_on_the_joined_batch(temperature, tmp_path):
    expected, memory = gradients(temperature)
    results = run_processes(work, 2, tmp_path, temperature)
    values = [value for value in expected.values() if value is not None]
    scale = max(1.0, *(value.abs().max().item() for value in values))
    print(f"temperature {temperature}: largest gradient {scale:.1f}")
    for found, remembered in results:
        for key, value in expected.items():
            if value is not None:
                error = (found[key] - value).abs().max()
                assert error < 1e-6 * scale, key
        assert torch.equal(remembered, results[0][1])
    # In another order: both views of one process, then those of the other.
    distances = torch.cdist(memory, results[0][1])
    assert distances.amin(0).max() < 1e-5 and distances.amin(1).max() < 1e-5


def spectra():
    """Eight clips, each of a spectrum of its own."""
    feats, n_frames = batch(8)
    return 0.3 * feats + batch(8, seed=5)[0][:, :1], n_frames


def train(objective, steps, first=0, optimizer=None):
    """Outputs of steps that draw by their numbers."""
    optimizer = optimizer or torch.optim.AdamW(objective.parameters(), lr=1e-3)
    outputs = []
    for step in range(first, first + steps):
        draw = torch.Generator().manual_seed(step)
        output = objective(*spectra(), generator=draw)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.after_step(step + 1, 50)
        outputs.append(output)
    return outputs, optimizer


@pytest.mark.parametrize("preset", ["audiomosaic", "audiomosaic_small_data"])
@pytest.mark.parametrize(
    "blocks", ["attention", pytest.param("mamba", marks=pytest.mark.slow)]
)
def test_fifty_steps_tell_clips_apart_without_collapse(preset, blocks):
    objective = build(preset, blocks=blocks, **QUIET)
    outputs, _ = train(objective, 50)
    losses = [output.loss.item() for output in outputs]
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
    assert outputs[-1].logs["projection_std"] > 0.5
    with torch.no_grad():
        clips = objective.encoder(*spectra()).clip()
    rank = effective_rank(clips - clips.mean(0))
    print(f"{preset}, {blocks}: effective rank {rank:.2f} of 7")
    assert rank > 2


def test_a_resumed_run_equals_one_that_was_not_stopped():
    whole = build()
    _, optimizer = train(whole, 2)
    state = copy.deepcopy([whole.state_dict(), optimizer.state_dict()])
    train(whole, 2, 2, optimizer)
    resumed = AudioMosaic(build().encoder, **whole.config)
    resumed.load_state_dict(state[0])
    again = torch.optim.AdamW(resumed.parameters())
    again.load_state_dict(state[1])
    train(resumed, 2, 2, again)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize("preset", ["audiomosaic", "audiomosaic_released"])
def test_dropped_pixels_do_not_leak(preset):
    """Of a view that drops 5 of 8 tokens the other pixels alone count."""
    objective = build(preset, **QUIET)
    draw, masks, seen = objective.drop_freq.draw, [], []
    objective.drop_freq.draw = lambda *arguments: (
        masks.append(draw(*arguments)) or masks[-1]
    )
    objective.encoder.register_forward_pre_hook(
        lambda _, given: seen.append(given[0].requires_grad_())
    )
    objective(*batch()).loss.backward()
    moved = objective.encoder.grid.unfold(seen[1].grad).abs().sum(2)
    dropped = masks[0].flatten(1)
    assert dropped.any() and (moved[dropped] == 0).all()
    real = objective.encoder(*batch()).is_token
    assert moved[real & ~dropped].all()


def test_clips_of_one_token_are_taken():
    objective = build()
    feats, n_frames = batch(2)
    output = objective(feats[:, :8], torch.tensor([8, 8]))
    output.loss.backward()
    assert output.loss.isfinite()
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_tokens_of_all_mel_bins_have_no_row_to_drop():
    """The preset for small data drops cells that recur instead."""
    with pytest.raises(ValueError, match="RowMasker drops nothing from 1 row"):
        build(patch=(32, 4))
    objective, kept = build("audiomosaic_small_data", patch=(32, 4)), []
    objective.encoder.register_forward_hook(
        lambda *call: kept.append(call[2].is_token.sum(1).tolist())
    )
    objective(*batch(2))
    # 20 and 12 times (45 frames are 11.3 tokens).
    assert kept == [[8, 5], [12, 7]]


def test_a_clip_rolls_within_its_own_length():
    feats, n_frames = batch(2)
    rolled = roll(feats, n_frames, torch.tensor([0.25, 0.5]))
    assert torch.equal(rolled[0], feats[0].roll(-20, 0))
    assert torch.equal(rolled[1, :45], feats[1, :45].roll(-22, 0))
    assert torch.equal(rolled[1, 45:], feats[1, 45:])


@pytest.mark.parametrize(
    "masker, kept",
    [
        # The released code on 8 bands x 64 times: 3 of 8 chunks of 8 times,
        # and 38 of 64 cells, the same in each chunk.
        (ChunkMasker(ratio=0.625, size=8), 3 * 64),
        (PeriodicMasker(ratio=0.40625, period=8), 38 * 8),
        (RowMasker(ratio=0.4), 5 * 64),
    ],
)
def test_drops_have_their_shape(masker, kept):
    mask = masker(torch.tensor([64] * 5), 8, 64)
    assert (~mask).flatten(1).sum(1).tolist() == [kept] * 5
    chunks = mask.unflatten(2, (8, 8))
    if isinstance(masker, ChunkMasker):
        assert torch.equal(chunks.all(3).all(1), chunks.any(3).any(1))
    elif isinstance(masker, PeriodicMasker):
        assert torch.equal(chunks.all(2), chunks.any(2))
    else:
        assert torch.equal(mask.all(2), mask.any(2))
    assert len({tuple(m.flatten().tolist()) for m in mask}) > 1
