"""AudioMosaic: its loss by hand, its drops, and processes that train as one."""

import pytest
import torch
from processes import run_processes
from torch.nn.parallel import DistributedDataParallel

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.block_maskers import (
    ChunkMasker,
    PeriodicMasker,
    RowMasker,
)
from ssast_lobes.objectives.views import roll

QUIET = {"background": {"probability": 0.0, "snr": [0.0, 0.0], "scale": 1.0}}


def build(**arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        Grid(32, (16, 8)), dim=32, depth=2, heads=2, table_frames=80
    )
    preset = load_objective("audiomosaic_small_data")
    return preset(encoder, **{"memory": 8, **arguments})


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


def gradients(rank=None, world=2):
    """Of a batch of eight clips, or of a process's half of it."""
    # With gradients near 1, float32 is exact to 1e-6.
    objective = build(temperature=1.0, memory=16, **QUIET)
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


def work(rank, folder):
    return gradients(rank)


def test_processes_train_as_one_on_the_joined_batch(tmp_path):
    expected, memory = gradients()
    results = run_processes(work, 2, tmp_path)
    for found, remembered in results:
        for key, value in expected.items():
            if value is not None:
                assert (found[key] - value).abs().max() < 1e-6, key
        assert torch.equal(remembered, results[0][1])
    # In another order: both views of one process, then those of the other.
    distances = torch.cdist(memory, results[0][1])
    assert distances.amin(0).max() < 1e-5 and distances.amin(1).max() < 1e-5


def test_it_learns_to_tell_clips_apart():
    """Eight clips, each of a spectrum of its own."""
    objective = build(**QUIET)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    feats, n_frames = batch(8)
    feats = 0.3 * feats + batch(8, seed=5)[0][:, :1]
    draw = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(40):
        output = objective(feats, n_frames, generator=draw)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
    assert output.logs["projection_std"] > 0.5


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
