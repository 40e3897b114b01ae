"""All objectives in two processes: equal models, and joined gradients.

The processes run once for all objectives, on the CPU (gloo). Each preset of
``hparams/objective/`` is trained, so a new one is tested without a line here.
"""

import pytest
import torch
from objective_kit import CLIPS, PRESETS, audio, build, clips
from processes import run_processes
from torch.nn.parallel import DistributedDataParallel

# Averages over clips alone: two halves of a batch make the whole.
ADDITIVE = [
    "mspm",
    "maskspec",
    "audiomae",
    "mae_ast",
    "m2d",
    "jepa",
    "beats",
    "best_rq",
    "vector_quantizer",
    "distillation",
]
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
        own = audio(objective, 10 * rank + step)
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
    parts = [feats, n_frames, objective.draw_mask(feats, n_frames, draw)]
    named = audio(objective, 5, WORLD * CLIPS)
    module = objective
    if rank is not None:
        module = DistributedDataParallel(objective)
        own = slice(rank * CLIPS, (rank + 1) * CLIPS)
        parts = [None if part is None else part[own] for part in parts]
        named = {name: part[own] for name, part in named.items()}
    module(*parts, **named).loss.backward()
    # Codes are moved without gradient.
    codes = [(k, b) for k, b in objective.named_buffers() if "quantizer" in k]
    return {
        key: p.grad
        for key, p in objective.named_parameters()
        if p.requires_grad
    } | dict(codes)


def train_all(rank, folder):
    """Parameters of all objectives, trained in each of the processes."""
    results = {}
    for name in PRESETS:
        try:
            results[name] = train(name, rank)
        except Exception as error:
            raise RuntimeError(f"{name} fails in processes") from error
    return results


def all_gradients(rank, folder):
    """Gradients in each of the processes."""
    return {name: gradients(name, rank) for name in ADDITIVE}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run_processes(train_all, WORLD, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return run_processes(all_gradients, WORLD, tmp_path_factory.mktemp("parts"))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_processes_hold_equal_parameters_after_steps(trained, name):
    one, other = (result[name] for result in trained)
    start = dict(build(name).named_parameters())
    assert one.keys() == other.keys() == start.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key
        assert one[key].isfinite().all(), key
    moved = [key for key in one if not torch.equal(one[key], start[key])]
    trained = [key for key, value in start.items() if value.requires_grad]
    assert set(trained) <= set(moved)


@pytest.mark.parametrize("name", ADDITIVE)
def test_gradients_are_those_of_one_process_on_the_joined_batch(parts, name):
    expected = gradients(name)
    for part in parts:
        own = part[name]
        assert own.keys() == expected.keys()
        for key, value in expected.items():
            assert (own[key] - value).abs().max() < 1e-6, key
