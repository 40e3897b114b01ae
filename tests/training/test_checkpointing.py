"""Activation checkpointing: less memory, the same gradients.

Not the checkpoints of a training: see `test_checkpointer.py` for these.
"""

import pytest
import torch

from ssast_lobes import SSAST, SpectrogramClassifier, SpectrogramEncoder
from ssast_lobes.objectives import MSPM
from ssast_lobes.utils.presets import load_preset

KINDS = ["attention", "mamba"]


def clips(count=3):
    torch.manual_seed(1)
    n_frames = torch.tensor([96, 70, 33])[:count]
    return torch.randn(count, 96, 128), n_frames


def encoder(checkpointing, blocks="attention", depth=3):
    torch.manual_seed(0)
    return SpectrogramEncoder(
        dim=32,
        depth=depth,
        heads=2,
        table_frames=96,
        blocks=blocks,
        drop_path=0.5,
        checkpointing=checkpointing,
    )


def gradients(module, *arguments):
    """Loss and gradients of a step that draws masks and dropped paths."""
    torch.manual_seed(2)
    output = module(*arguments)
    loss = output.loss if hasattr(output, "loss") else output.square().sum()
    loss.backward()
    grads = {key: p.grad for key, p in module.named_parameters()}
    return loss.detach(), torch.rand(1), grads


def kept_bytes(module, *arguments):
    """Bytes that wait for the backward pass, weights apart."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    sizes = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(*arguments)
        assert output.tokens.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("blocks", KINDS)
@pytest.mark.parametrize("task", ["pretrain", "classify"])
def test_gradients_are_the_same(blocks, task):
    results = []
    for checkpointing in (False, True):
        model = encoder(checkpointing, blocks)
        if task == "pretrain":
            model = MSPM(model)
        else:
            model = SpectrogramClassifier(model, n_classes=4)
        results.append(gradients(model, *clips()))
    (loss, draw, plain), (again, next_draw, computed_twice) = results
    assert torch.equal(loss, again)
    # Nothing that is drawn later depends on it either.
    assert torch.equal(draw, next_draw)
    assert plain.keys() == computed_twice.keys()
    for key, value in plain.items():
        assert value is not None, key
        assert (computed_twice[key] - value).abs().max() < 1e-6, key


def test_little_more_than_the_inputs_of_blocks_is_kept():
    feats, n_frames = torch.randn(2, 96, 128), torch.tensor([96, 70])
    plain, less = (
        kept_bytes(encoder(checkpointing, depth=24), feats, n_frames)
        for checkpointing in (False, True)
    )
    assert less < plain / 6


def test_evaluation_computes_each_block_once():
    calls = []
    model = encoder(True).eval()
    for block in model.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    model(*clips()).tokens.sum().backward()
    assert len(calls) == 3


def test_large_is_checkpointed_unless_told_otherwise():
    size = load_preset("model", "large")
    # Dosovitskiy et al., ICLR 2021, table 1: ViT-Large.
    assert (size["dim"], size["depth"], size["heads"]) == (1024, 24, 16)
    with torch.device("meta"):
        assert SpectrogramEncoder.from_size("large").checkpointing
    assert not SSAST("micro").encoder.checkpointing
    assert SSAST("micro", checkpointing=True).encoder.checkpointing
