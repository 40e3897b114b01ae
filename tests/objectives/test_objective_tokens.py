"""Splitting, gathering and putting back tokens against plain indexing."""

import copy
from functools import partial

import pytest
import torch
from objective_kit import build_with

from ssast_lobes import BEATsEncoder
from ssast_lobes.models.decoders import scatter_tokens
from ssast_lobes.models.patches import Grid
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.base import (
    gather_tokens,
    ids_keep,
    projection_std,
    split_tokens,
)
from ssast_lobes.objectives.block_maskers import InverseBlockMasker, SpanMasker
from ssast_lobes.objectives.maskers import ClusterMasker, RandomMasker
from ssast_lobes.utils.metrics import mean_deviation


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(n_time=(9, 4, 1, 7), n_freq=3, ratio=0.6, masker=RandomMasker):
    """A masker, its mask (B, F', T') and the tokens of audio (B, N)."""
    n_time, masker = torch.tensor(n_time), masker(ratio=ratio)
    longest = int(n_time.max())
    grid = Grid(16 * n_freq, (16, 16))
    mask = masker(n_time, n_freq, longest, seeded())
    return masker, mask, grid.is_token(n_time, longest)


def test_visible_tokens_are_gathered_in_order():
    _, mask, is_token = drawn()
    index, kept = ids_keep(mask, is_token, is_token.shape[1])
    for clip in range(len(mask)):
        places = (is_token & ~mask.flatten(1))[clip].nonzero().flatten()
        assert torch.equal(index[clip][kept[clip]], places)
        assert kept[clip].sum() == len(places)
        # No place twice: the surplus stands elsewhere.
        assert len(index[clip].unique()) == index.shape[1]


SPANS = partial(SpanMasker, span=3)
BLOCKS = partial(InverseBlockMasker, block_size=2)


@pytest.mark.parametrize("masker", [RandomMasker, ClusterMasker, SPANS, BLOCKS])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.7, 0.8, 0.99])
@pytest.mark.parametrize("n_freq", [1, 3, 8])
def test_the_number_of_a_whole_clip_fits_all_clips(masker, ratio, n_freq):
    lengths = tuple(range(1, 40))
    masker, mask, is_token = drawn(lengths, n_freq, ratio, masker)
    n_masked = masker.max_masked(*mask.shape[1:])
    split = split_tokens(mask, is_token, n_masked)
    assert torch.equal(split.weight.sum(1).long(), mask.sum((1, 2)))
    assert torch.equal(split.keep[1].sum(1), split.visible.sum(1))
    assert split.weight.shape[1] + split.keep[0].shape[1] <= (
        is_token.shape[1] + 1
    )


@pytest.mark.parametrize("name", ["mspm", "maskspec", "m2d", "atst_frame"])
def test_no_token_of_a_span_leaves_the_loss(name):
    """The loss with a drawn mask is that with the same mask handed over."""
    torch.manual_seed(0)
    objective = build_with(name, masker=SPANS(ratio=0.5))
    # Seven times of eight patches: 32 of 56 are masked, not 28.
    feats, n_frames = torch.randn(3, 112, 128), torch.tensor([112, 112, 60])
    keys = torch.arange(3)
    mask = objective.draw_mask(feats, n_frames, clip_keys=keys)
    assert mask.sum((1, 2)).max() == 32
    # ATST-Frame mixes in clips of the batch before.
    other = copy.deepcopy(objective)
    with torch.no_grad():
        drawn = other(feats, n_frames, clip_keys=keys).loss
        given = objective(feats, n_frames, mask=mask, clip_keys=keys).loss
    torch.testing.assert_close(drawn, given)


def test_hidden_and_visible_tokens_make_the_clip():
    _, mask, is_token = drawn()
    split = split_tokens(mask, is_token)
    for clip in range(len(mask)):
        hidden = split.ids_masked[clip][split.weight[clip] > 0].tolist()
        visible = split.keep[0][clip][split.keep[1][clip]].tolist()
        own = is_token[clip].nonzero().flatten().tolist()
        assert sorted(hidden + visible) == own


def test_a_mask_over_padding_hides_nothing_there():
    _, mask, is_token = drawn()
    split = split_tokens(torch.ones_like(mask), is_token)
    assert torch.equal(split.weight.sum(1).long(), is_token.sum(1))
    assert not split.visible.any()


def test_tokens_come_back_to_their_places():
    _, mask, is_token = drawn()
    split = split_tokens(mask, is_token)
    x = torch.randn(len(mask), is_token.shape[1], 5, requires_grad=True)
    filler = torch.randn(5)
    kept = gather_tokens(x, split.keep[0])
    back = scatter_tokens(kept, split.keep[0], split.visible, filler)
    assert torch.equal(back[split.visible], x[split.visible])
    assert (back[~split.visible] == filler).all()
    # Neither do gradients go anywhere else.
    back.square().sum().backward()
    assert torch.equal(x.grad, 2 * x.detach() * split.visible[:, :, None])


def test_projection_std_counts_what_has_weight():
    x = torch.randn(3, 8, 6, generator=seeded())
    weight = (torch.rand(3, 8, generator=seeded(1)) < 0.5).float()
    expected = mean_deviation(x[weight > 0])
    assert projection_std(x, weight).item() == pytest.approx(expected, abs=1e-5)
    assert 0.8 < expected < 1
    x[weight > 0] = torch.randn(6)
    assert projection_std(x, weight).item() < 1e-3
    assert projection_std(x, torch.zeros(3, 8)) == 0


@pytest.mark.parametrize("name", ["eat", "sslam", "asit", "atst_clip"])
def test_an_encoder_without_class_tokens_is_refused(name):
    encoder = BEATsEncoder(dim=32, depth=1, heads=2, groups=4)
    with pytest.raises(ValueError, match="trains the class tokens"):
        load_objective(name)(encoder)
