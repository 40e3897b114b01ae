"""All objectives in two processes: equal models, and joined gradients.

Both processes run once for all objectives, on the CPU (gloo). Each preset of
``hparams/objective/`` is trained, so a new one is tested without a line here.
"""

import pytest
import torch
from objective_kit import CLIPS, PRESETS, build, clips
from torch.nn.parallel import DistributedDataParallel

# Averages over clips alone: two halves of a batch make the whole.
ADDITIVE = ["mspm", "maskspec", "audiomae", "mae_ast", "m2d"]
WORLD = 2
STEPS = 3


def train(name, rank):
    """Parameters after a few steps on clips of this process alone."""
    # DDP has to make the models equal.
    objective = build(name, seed=rank)
    parallel = DistributedDataParallel(objective)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        own = {}
        # In a step only: processes have no positive pairs at times.
        if objective.uses_positive_pairs and step == 1:
            own["positive_pairs"] = torch.ones(CLIPS, dtype=torch.bool)
        output = parallel(*clips(10 * rank + step), generator=draw, **own)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.after_step(step + 1, STEPS)
    return {key: p.detach() for key, p in objective.named_parameters()}


def gradients(name, rank=None):
    """Gradients of the whole batch, or of a process's share of it."""
    objective = build(name)
    feats, n_frames = clips(5, WORLD * CLIPS)
    draw = torch.Generator().manual_seed(0)
    mask = objective.draw_mask(feats, n_frames, draw)
    module = objective
    if rank is not None:
        module = DistributedDataParallel(objective)
        own = slice(rank * CLIPS, (rank + 1) * CLIPS)
        feats, n_frames, mask = feats[own], n_frames[own], mask[own]
    module(feats, n_frames, mask).loss.backward()
    return {
        key: p.grad
        for key, p in objective.named_parameters()
        if p.requires_grad
    }


def work(rank, folder):
    """What each of the processes does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    results = {"trained": {}, "gradients": {}}
    for name in PRESETS:
        try:
            results["trained"][name] = train(name, rank)
        except Exception as error:
            raise RuntimeError(f"{name} fails in processes") from error
    for name in ADDITIVE:
        results["gradients"][name] = gradients(name, rank)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_processes_hold_equal_parameters_after_steps(results, name):
    one, other = (result["trained"][name] for result in results)
    start = dict(build(name).named_parameters())
    assert one.keys() == other.keys() == start.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key
        assert one[key].isfinite().all(), key
    moved = [key for key in one if not torch.equal(one[key], start[key])]
    trained = [key for key, value in start.items() if value.requires_grad]
    assert set(trained) <= set(moved)


@pytest.mark.parametrize("name", ADDITIVE)
def test_gradients_are_those_of_one_process_on_the_joined_batch(results, name):
    expected = gradients(name)
    for result in results:
        own = result["gradients"][name]
        assert own.keys() == expected.keys()
        for key, value in expected.items():
            assert (own[key] - value).abs().max() < 1e-6, key
