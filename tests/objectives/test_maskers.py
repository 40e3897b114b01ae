"""Masks: how many tokens, which ones how often, and from which seed.

Shares below are measured on 20,000 masks. The standard error of the share
of one token is then at most 0.0036, and 2 points are five and a half of them.
"""

import hashlib
import inspect
import json

import pytest
import torch

from ssast_lobes.augment import augmentation as augment
from ssast_lobes.objectives import base, mspm
from ssast_lobes.objectives import maskers as masking
from ssast_lobes.objectives.base import make_masker
from ssast_lobes.objectives.block_maskers import InverseBlockMasker, SpanMasker
from ssast_lobes.objectives.maskers import ClusterMasker, Masker, RandomMasker
from ssast_lobes.utils.random import keyed_uniform, mix_bits

MASKS = 20_000
MASKERS = [RandomMasker, ClusterMasker]
maskers = pytest.mark.parametrize("masker", MASKERS)
cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device"
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shares(masker, n_freq, steps, padding=0, masks=MASKS):
    """How often each token (F', T') is hidden; drawn once for all tests."""
    key = repr((masker.config, n_freq, steps, padding, masks))
    if key not in DRAWN_SHARES:
        DRAWN_SHARES[key] = draw_shares(masker, n_freq, steps, padding, masks)
    return DRAWN_SHARES[key]


DRAWN_SHARES = {}


def draw_shares(masker, n_freq, steps, padding, masks):
    total, generator = torch.zeros(n_freq, steps + padding), seeded()
    for _ in range(masks // 1000):
        n_time = torch.full((1000,), steps)
        mask = masker(n_time, n_freq, steps + padding, generator)
        total += mask.float().sum(0)
    return total / masks


@pytest.mark.parametrize(
    "count",
    [100, *(pytest.param(n, marks=pytest.mark.slow) for n in (250, 400))],
)
def test_clusters_are_flat_where_the_official_ones_are_not(count):
    hidden = shares(ClusterMasker(count=count), 8, 64)
    wanted = count / 512
    assert hidden.mean().item() == pytest.approx(wanted, abs=1e-6)
    assert (hidden.mean(1) - wanted).abs().max() < 0.005
    assert (hidden.mean(0) - wanted).abs().max() < 0.01
    assert (hidden - wanted).abs().max() < 0.02


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.78])
@pytest.mark.parametrize(
    "n_freq, steps", [(8, 7), (8, 1), (4, 6), (3, 4), (2, 2), (5, 40)]
)
def test_clusters_are_flat_on_small_grids(n_freq, steps, ratio):
    hidden = shares(ClusterMasker(ratio=ratio), n_freq, steps)
    assert (hidden - hidden.mean()).abs().max() < 0.02


def test_clusters_are_flat_in_a_clip_shorter_than_the_batch():
    hidden = shares(ClusterMasker(ratio=0.78), 8, 7, padding=20)
    assert (hidden[:, 7:] == 0).all()
    inside = hidden[:, :7]
    assert (inside - inside.mean()).abs().max() < 0.02


def test_edges_and_corners_are_hidden_as_often_as_the_middle():
    hidden = shares(ClusterMasker(count=400), 8, 64)
    corners = hidden[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners - 0.78125).abs().max() < 0.012
    for edge in (hidden[0], hidden[-1], hidden[:, 0], hidden[:, -1]):
        assert edge.mean().item() == pytest.approx(0.78125, abs=0.01)


def test_random_masks_are_flat():
    hidden = shares(RandomMasker(count=400), 1, 512, masks=10_000)
    assert (hidden - 0.78125).abs().max() < 0.02


def together(masker, n_freq=8, steps=64, masks=500):
    """P(right or upper neighbor hidden | token hidden)."""
    n_time = torch.full((masks,), steps)
    mask = masker(n_time, n_freq, steps, seeded()).float()
    right = (mask[:, :, 1:] * mask[:, :, :-1]).sum() / mask[:, :, :-1].sum()
    above = (mask[:, 1:] * mask[:, :-1]).sum() / mask[:, :-1].sum()
    return min(right.item(), above.item()), max(right.item(), above.item())


@pytest.mark.parametrize("count", [50, 250])
def test_neighbors_are_hidden_together(count):
    low, _ = together(ClusterMasker(count=count))
    _, chance = together(RandomMasker(count=count))
    assert chance == pytest.approx(count / 512, abs=0.01)
    assert low > chance + 0.15


def test_larger_clusters_hold_together_more():
    small, _ = together(ClusterMasker(count=100, cluster_sizes=(2,)))
    large, _ = together(ClusterMasker(count=100, cluster_sizes=(5,)))
    assert large > small + 0.1


@pytest.mark.parametrize("size", [3, 4, 5])
def test_few_tokens_make_one_square_cluster(size):
    masker = ClusterMasker(count=size**2, cluster_sizes=(size,))
    mask = masker(torch.full((200,), 64), 16, 64, seeded())
    # A square, or one that two edges share: as many rows and columns.
    assert (mask.any(2).sum(1) == size).all()
    assert (mask.any(1).sum(1) == size).all()


def test_all_cluster_sizes_are_drawn_equally_often():
    # One token more than the smallest cluster tells the sizes apart.
    masker = ClusterMasker(count=9)
    mask = masker(torch.full((6000,), 64), 16, 64, seeded())
    three = (mask.any(2).sum(1) == 3) & (mask.any(1).sum(1) == 3)
    # One in three, and the few of the larger that look the same.
    assert 0.31 < three.float().mean() < 0.37


@maskers
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.75, 0.99])
def test_each_clip_hides_its_own_share_of_its_own_tokens(masker, ratio):
    n_freq = 1 if masker is RandomMasker else 8
    n_time = torch.tensor([1, 2, 5, 17, 40, 64])
    mask = masker(ratio=ratio)(n_time, n_freq, 64, seeded())
    assert mask.dtype == torch.bool and mask.shape == (6, n_freq, 64)
    for clip, steps in zip(mask, n_time.tolist(), strict=True):
        tokens = n_freq * steps
        wanted = min(max(1, round(ratio * tokens)), tokens - 1)
        assert clip.sum() == wanted
        assert not clip[:, steps:].any()


@maskers
@pytest.mark.parametrize("count", [1, 7, 511, 512, 10_000])
def test_any_count_up_to_all_but_one(masker, count):
    mask = masker(count=count)(torch.tensor([64, 3]), 8, 64, seeded())
    assert mask.sum((1, 2)).tolist() == [min(count, 511), min(count, 23)]


@maskers
def test_a_clip_of_one_token_hides_nothing(masker):
    mask = masker(ratio=0.75)(torch.tensor([1, 4]), 1, 4, seeded())
    assert mask.sum((1, 2)).tolist() == [0, 3]


@maskers
def test_count_for_numbers_and_tensors_agree(masker):
    for arguments in ({"ratio": 0.78125}, {"count": 400}):
        masks = masker(**arguments)
        tokens = torch.arange(1, 600)
        expected = [masks.n_masked(n) for n in tokens.tolist()]
        assert masks.n_masked(tokens).tolist() == expected


@maskers
def test_a_seed_reproduces(masker):
    draw = masker(ratio=0.5)
    n_time = torch.tensor([20, 9])
    first = draw(n_time, 8, 20, seeded(3))
    torch.rand(5)
    assert torch.equal(draw(n_time, 8, 20, seeded(3)), first)
    assert not torch.equal(draw(n_time, 8, 20, seeded(4)), first)
    generator = seeded(3)
    assert torch.equal(draw(n_time, 8, 20, generator), first)
    assert not torch.equal(draw(n_time, 8, 20, generator), first)


@maskers
def test_clips_of_a_batch_have_different_masks(masker):
    mask = masker(ratio=0.5)(torch.full((20,), 64), 8, 64, seeded())
    assert len(mask.flatten(1).unique(dim=0)) == 20


@maskers
def test_a_keyed_mask_is_a_function_of_the_clip(masker):
    draw, n_freq = masker(ratio=0.6), 8
    keys = torch.tensor([2**62 + 5, 11, -3])
    n_time = torch.tensor([7, 20, 12])
    mask = draw(n_time, n_freq, 20, clip_keys=keys)
    order = torch.tensor([2, 0, 1])
    shuffled = draw(n_time[order], n_freq, 20, clip_keys=keys[order])
    assert torch.equal(shuffled, mask[order])
    for clip, steps, key in zip(mask, n_time, keys, strict=True):
        for extra in (0, 1, 33):
            longest = int(steps) + extra
            alone = draw(steps[None], n_freq, longest, clip_keys=key[None])
            assert torch.equal(alone[0, :, :steps], clip[:, :steps])


def test_keyed_masks_differ_between_clips_and_are_flat():
    mask = ClusterMasker(ratio=0.5)(
        torch.full((MASKS,), 7), 8, 7, clip_keys=torch.arange(MASKS)
    )
    assert len(mask.flatten(1).unique(dim=0)) > 0.9 * MASKS
    hidden = mask.float().mean(0)
    assert (hidden - 0.5).abs().max() < 0.02


def test_keyed_noise_is_uniform_and_uncorrelated():
    noise = keyed_uniform(torch.arange(500), 8, 40)
    assert noise.min() >= 0 and noise.max() < 1
    histogram = noise.histc(20, 0, 1) / noise.numel()
    assert (histogram - 0.05).abs().max() < 0.003
    tests = [
        (noise[:, :, 1:], noise[:, :, :-1]),
        (noise[:, 1:], noise[:, :-1]),
        (noise[1:], noise[:-1]),
    ]
    for one, other in tests:
        pair = torch.stack([one.flatten(), other.flatten()])
        assert pair.corrcoef()[0, 1].abs() < 0.015


def test_mixing_bits_equals_splitmix64():
    # First outputs of the published generator from the seed 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    seeds = [(1234567 + n * golden) & mask for n in range(3)]
    signed = [s - 2**64 if s >= 2**63 else s for s in seeds]
    mixed = [m & mask for m in mix_bits(torch.tensor(signed)).tolist()]
    assert mixed == published


@pytest.mark.parametrize(
    "room", [masking, base, mspm, augment], ids=lambda m: m.__name__
)
def test_nothing_waits_for_the_device(room):
    """No read-back to the host in maskers, objectives and augmentation."""
    code = "\n".join(
        line
        for line in inspect.getsource(room).splitlines()
        if not line.strip().startswith((">>>", "...", "#"))
    )
    for call in (".item()", ".tolist()", ".cpu()", ".numpy()", ".nonzero("):
        assert call not in code, f"{room.__name__} has {call}"
    assert "masked_select" not in code and "bool(" not in code


def test_a_masker_of_ones_own_gives_scores_only():
    class LastSteps(Masker):
        def scores(self, rand, n_time, n_freq, max_time):
            steps = torch.arange(max_time).float()
            return -steps.expand(len(n_time), n_freq, -1)

    mask = LastSteps(ratio=0.5)(torch.tensor([4, 2]), 1, 4)
    assert mask[:, 0].int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]


@cuda
@maskers
def test_masks_on_cuda_without_waiting(masker):
    n_time = torch.tensor([64, 17, 1])
    keys = torch.tensor([5, 6, 7])
    draw = masker(ratio=0.75)
    on_cpu = draw(n_time, 8, 64, clip_keys=keys)
    n_time, keys = n_time.cuda(), keys.cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    draw(n_time, 8, 64, generator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        mask = draw(n_time, 8, 64, generator)
        keyed = draw(n_time, 8, 64, clip_keys=keys)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert mask.sum((1, 2)).tolist() == [384, 102, 6]
    assert torch.equal(keyed.cpu(), on_cpu)


def kept_blocks(count, n_freq=8, steps=64, clips=300, padding=0):
    """Visible tokens (clips, F', T') where `count` are kept of each clip."""
    masker = InverseBlockMasker(count=n_freq * steps - count, block_size=5)
    n_time = torch.full((clips,), steps)
    mask = masker(n_time, n_freq, steps + padding, seeded())
    assert not mask[:, :, steps:].any()
    return ~mask[:, :, :steps]


def test_inverse_blocks_keep_whole_squares():
    kept = kept_blocks(25)
    # A square, or one that two edges share: as many rows and columns.
    assert (kept.sum((1, 2)) == 25).all()
    assert (kept.any(2).sum(1) == 5).all() and (kept.any(1).sum(1) == 5).all()


def test_inverse_blocks_keep_as_many_as_eat():
    masker = InverseBlockMasker(ratio=0.8, block_size=5)
    n_time = torch.tensor([64, 33, 5, 1, 17])
    mask = masker(n_time, 8, 64, seeded())
    assert mask[0].sum() == 410  # of 512: EAT keeps 102
    assert torch.equal(mask.sum((1, 2)), (0.8 * 8 * n_time).round().long())


def test_inverse_blocks_are_islands():
    kept = kept_blocks(102).float()
    after = (kept[:, :, 1:] * kept[:, :, :-1]).sum() / kept[:, :, :-1].sum()
    # One by one, a neighbor would be visible as often as any token.
    assert after > 0.6 > 3 * 102 / 512


@pytest.mark.parametrize("n_freq, steps", [(8, 64), (8, 7), (1, 60), (2, 3)])
def test_inverse_blocks_show_every_token_equally_often(n_freq, steps):
    masker = InverseBlockMasker(ratio=0.8, block_size=5)
    hidden = shares(masker, n_freq, steps, padding=4)
    assert (hidden[:, steps:] == 0).all()
    inside = hidden[:, :steps]
    assert (inside - inside.mean()).abs().max() < 0.02


def test_inverse_blocks_of_one_band_are_spans():
    kept = kept_blocks(10, n_freq=1, steps=60)[:, 0]
    spans = (kept & ~kept.roll(1, 1)).sum(1)
    # Two spans of five; where two blocks overlap, a part of a third.
    assert (spans == 2).float().mean() > 0.7


def test_keyed_inverse_blocks_are_a_function_of_the_clip():
    draw = InverseBlockMasker(ratio=0.8, block_size=5)
    keys, n_time = torch.tensor([2**62 + 5, 11]), torch.tensor([7, 20])
    mask = draw(n_time, 8, 20, clip_keys=keys)
    for clip, steps, key in zip(mask, n_time, keys, strict=True):
        alone = draw(steps[None], 8, int(steps) + 9, clip_keys=key[None])
        assert torch.equal(alone[0, :, :steps], clip[:, :steps])


# Of masks drawn before maskers were settings: trainings can be repeated.
DRAWN = {
    "401aa5b0fcb17ceb": RandomMasker(ratio=0.5),
    "cb4c3a429b6f4cdf": ClusterMasker(ratio=0.78125),
    "096ab7de99675a4e": ClusterMasker(count=40, cluster_sizes=[2]),
    "3bb35e9e250bd6a2": InverseBlockMasker(ratio=0.8, block_size=5),
    "32bb08802786de87": SpanMasker(ratio=0.5, span=5),
}


@pytest.mark.parametrize("digest", DRAWN)
def test_masks_stay_the_same_for_ever(digest):
    masker = make_masker(json.loads(json.dumps(DRAWN[digest].config)))
    keys = torch.tensor([5, 2**61, -1])
    mask = masker(torch.tensor([40, 17, 3]), 8, 40, clip_keys=keys)
    assert hashlib.sha256(mask.numpy().tobytes()).hexdigest()[:16] == digest
    assert masker.config == DRAWN[digest].config


@pytest.mark.parametrize("keyed", [False, True])
def test_clusters_of_one_band_are_single_tokens(keyed):
    n_time = torch.tensor([60, 23])
    keys = torch.tensor([3, 4]) if keyed else None
    masks = [
        masker(ratio=0.5)(n_time, 1, 60, seeded(), keys) for masker in MASKERS
    ]
    assert torch.equal(*masks)


def test_a_masker_of_ones_own_is_taken_as_it_is():
    class Own(RandomMasker):
        pass

    own = Own(ratio=0.5)
    assert make_masker(own) is own
    with pytest.raises(ValueError, match="'Own'; there are: RandomMasker, .*"):
        make_masker(own.config)


@pytest.mark.parametrize(
    "masker, arguments, message",
    [
        (RandomMasker, {}, "either ratio or count, got ratio=None and"),
        (RandomMasker, {"ratio": 0.5, "count": 3}, "got ratio=0.5 and count=3"),
        (RandomMasker, {"ratio": 0}, "between 0 and 1, got 0"),
        (RandomMasker, {"ratio": 1}, "between 0 and 1, got 1"),
        (RandomMasker, {"ratio": float("nan")}, "got nan"),
        (RandomMasker, {"ratio": True}, "got True"),
        (RandomMasker, {"ratio": "0.5"}, "got '0.5'"),
        (RandomMasker, {"count": 0}, "count must be a whole number .* got 0"),
        (RandomMasker, {"count": 2.5}, "got 2.5"),
        (ClusterMasker, {"cluster_sizes": []}, r"\[3, 4, 5\], got \[\]"),
        (ClusterMasker, {"cluster_sizes": 3}, "must be a list .* got 3"),
        (ClusterMasker, {"cluster_sizes": None}, "got None"),
        (ClusterMasker, {"cluster_sizes": [3, 0]}, "cluster_sizes .* got 0"),
        (ClusterMasker, {"cluster_sizes": [2.5]}, "cluster_sizes .* got 2.5"),
        (InverseBlockMasker, {"block_size": 0}, "block_size .* got 0"),
        (SpanMasker, {"span": "5"}, "span must be a whole number .* got '5'"),
    ],
)
def test_impossible_arguments_are_refused(masker, arguments, message):
    if masker is not RandomMasker:
        arguments = {"ratio": 0.5, **arguments}
    with pytest.raises(ValueError, match=message):
        masker(**arguments)


@pytest.mark.parametrize(
    "config, message",
    [
        ("cluster", "a dict with its name and arguments, got 'cluster'"),
        ({"ratio": 0.5}, "a dict with its name and arguments"),
        ({"name": "Cluster"}, "'Cluster'; there are: RandomMasker, Cluster"),
        ({"name": "SpanMasker", "ratio": 0.5}, "SpanMasker: .*'span'"),
        ({"name": "RandomMasker", "size": 5}, "RandomMasker: .*'size'"),
    ],
)
def test_configurations_of_no_masker_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make_masker(config)
