"""Transformer blocks against the formulas, written out."""

import math

import pytest
import torch
from torch import nn

from ssast_lobes.models.transformer import (
    MLP,
    Attention,
    TransformerBlock,
    drop_path,
    init_transformer,
)


def attention_by_hand(module, x, seen):
    """Multi-head attention with an explicit softmax; `seen` is (B, N)."""
    size = x.shape[2] // module.heads
    outputs = []
    query, key, value = module.qkv(x).chunk(3, dim=2)
    for head in range(module.heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(1, 2)
        scores = scores / math.sqrt(size)
        scores = scores.masked_fill(~seen[:, None], -torch.inf)
        outputs.append(scores.softmax(2) @ value[..., part])
    return module.proj(torch.cat(outputs, dim=2))


def test_a_drop_rate_of_1_drops_all():
    branch = torch.ones(3, 2, 2, requires_grad=True)
    dropped = drop_path(branch, 1.0, training=True)
    dropped.sum().backward()
    assert not dropped.any() and not branch.grad.any()


def test_attention_equals_the_formula():
    module, x = Attention(24, 3), torch.randn(2, 7, 24)
    seen = torch.ones(2, 7, dtype=torch.bool)
    torch.testing.assert_close(module(x), attention_by_hand(module, x, seen))
    seen[1, 4:] = False
    torch.testing.assert_close(
        module(x, seen[:, None, None]), attention_by_hand(module, x, seen)
    )


def test_heads_must_divide_the_tokens():
    with pytest.raises(ValueError, match=r"multiple of heads \(3\), got 32"):
        Attention(32, 3)


def test_block_is_pre_norm_with_exact_gelu():
    block, x = TransformerBlock(24, 3, mlp_ratio=2), torch.randn(2, 7, 24)
    assert block.norm1.eps == block.norm2.eps == 1e-6
    assert block.mlp.fc1.out_features == 48
    middle = x + block.attn(block.norm1(x))
    hidden = block.mlp.fc1(block.norm2(middle))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(block(x), middle + block.mlp.fc2(hidden))


def test_drop_path_leaves_out_whole_branches_in_training_only():
    torch.manual_seed(0)
    block, x = TransformerBlock(8, 1, drop_path=0.25), torch.randn(1, 5, 8)
    batch = x.expand(4000, -1, -1)
    block.eval()
    full = block(batch)
    assert torch.equal(full[0], full[-1])
    block.train()
    with torch.no_grad():
        out = block(batch)
    # A clip that drops both branches comes through as it was.
    untouched = (out == batch).flatten(1).all(1).float().mean()
    assert untouched == pytest.approx(0.25**2, abs=0.015)
    # What stays is scaled up: the first branch has the same mean.
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)
    with torch.no_grad():
        kept = block(batch).mean(0) - x[0]
        block.eval()
        whole = block(batch)[0] - x[0]
    torch.testing.assert_close(kept, whole, atol=0.02, rtol=0.05)


def test_a_block_without_drop_path_draws_nothing():
    block, x = TransformerBlock(8, 1).train(), torch.randn(2, 5, 8)
    state = torch.get_rng_state()
    block(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_linear_layers_start_as_in_timm():
    torch.manual_seed(0)
    mlp = MLP(128, 512).apply(init_transformer)
    assert (mlp.fc1.bias == 0).all() and (mlp.fc2.bias == 0).all()
    assert mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
