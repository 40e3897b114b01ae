"""Patches and positions against plain loops and torch's own operators."""

import pytest
import torch
from torch import nn

from ssast_lobes.models.patches import (
    Grid,
    PatchEmbedding,
    PositionTable,
    sincos_positions,
)

GRIDS = [
    Grid(),
    Grid(128, (128, 2)),
    Grid(128, (16, 16), (10, 10)),
    Grid(128, (128, 2), (128, 1)),
    Grid(80, (16, 4), (8, 3)),
    Grid(64, (5, 7), (4, 2)),
    Grid(20, (3, 5)),
    Grid(12, (2, 3), (5, 7)),
]
FRAMES = [1, 2, 3, 15, 16, 17, 33, 98]


def name_of(grid):
    return f"{grid.n_mels}mels-{grid.patch}-{grid.stride}".replace(" ", "")


grids = pytest.mark.parametrize("grid", GRIDS, ids=name_of)


def starts_of(grid, frames):
    """Where patches begin in time: as many as it takes to reach the end."""
    starts, size = [0], grid.patch[1]
    while starts[-1] + size < frames and starts[-1] + grid.stride[1] < frames:
        starts.append(starts[-1] + grid.stride[1])
    return starts


def cut(grid, feats):
    """The patches of one clip (T, M), cut in a plain loop."""
    (bins, frames), patches = grid.patch, []
    starts = starts_of(grid, len(feats))
    feats = nn.functional.pad(feats, (0, 0, 0, starts[-1] + frames))
    for low in range(0, grid.n_mels - bins + 1, grid.stride[0]):
        for start in starts:
            block = feats[start : start + frames, low : low + bins]
            patches.append(block.t().flatten())
    return torch.stack(patches)


@grids
@pytest.mark.parametrize("frames", FRAMES)
def test_patches_equal_a_plain_loop(grid, frames):
    feats = torch.randn(2, frames, grid.n_mels)
    patches = grid.unfold(feats)
    for row, clip in zip(patches, feats, strict=True):
        assert torch.equal(row, cut(grid, clip))
    assert patches.shape[1] == grid.n_freq * grid.n_time(frames)


@grids
def test_every_token_holds_a_frame_and_every_frame_a_token(grid):
    for frames in range(1, 60):
        n_time = grid.n_time(frames)
        last = (n_time - 1) * grid.stride[1]
        assert last < frames
        # Unless it lies in a gap that the stride leaves.
        reach = last + max(grid.patch[1], grid.stride[1])
        assert reach >= frames


@grids
def test_step_counts_of_numbers_and_tensors_agree(grid):
    frames = torch.arange(200)
    n_time = grid.n_time(frames)
    assert n_time.tolist() == [grid.n_time(n) for n in range(200)]
    assert n_time.min() == 1 and (n_time.diff() >= 0).all()


@pytest.mark.parametrize("frames", [2, 16, 98, 998, 1000, 1024])
def test_official_counts_drop_a_partial_patch(frames):
    grid = Grid(128, (16, 16), (10, 10), keep_partial=False)
    conv = nn.Conv2d(1, 1, grid.patch, grid.stride)
    if frames >= 16:
        shape = conv(torch.zeros(1, 1, 128, frames)).shape[2:]
        assert shape == (grid.n_freq, grid.n_time(frames))
    assert grid.unfold(torch.zeros(1, frames, 128)).shape[1] == (
        grid.n_freq * grid.n_time(frames)
    )


@grids
@pytest.mark.parametrize("frames", FRAMES)
def test_fold_undoes_unfold(grid, frames):
    feats = torch.randn(2, frames, grid.n_mels)
    ones = torch.ones_like(feats)
    back = grid.fold(grid.unfold(feats), frames)
    covered = grid.fold(grid.unfold(ones), frames)
    assert set(covered.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(back, feats * covered)
    if all(s <= p for s, p in zip(grid.stride, grid.patch, strict=True)):
        bins = (grid.n_freq - 1) * grid.stride[0] + grid.patch[0]
        assert (covered[..., :bins] == 1).all()


def test_fold_averages_overlaps():
    grid = Grid(2, (2, 2), (2, 1))
    patches = torch.tensor([[[1.0] * 4, [3.0] * 4]])
    assert grid.fold(patches, 3)[0, :, 0].tolist() == [1.0, 2.0, 3.0]


def test_embedding_equals_the_strided_convolution():
    grid = Grid(128, (16, 16), (10, 10), keep_partial=False)
    conv = nn.Conv2d(1, 24, grid.patch, grid.stride)
    embedding = PatchEmbedding(grid, 24)
    embedding.weight.data = conv.weight.detach().flatten(1)
    embedding.bias.data = conv.bias.detach()
    feats = torch.randn(2, 100, 128)
    expected = conv(feats.transpose(1, 2)[:, None]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(
        embedding(grid.unfold(feats)), expected, atol=1e-5, rtol=1e-5
    )


def test_valid_tokens_lie_frequency_major():
    valid = Grid(6, (2, 1)).is_token(torch.tensor([2, 1]), 3)
    expected = [[1, 1, 0] * 3, [1, 0, 0] * 3]
    assert valid.int().tolist() == expected


@pytest.mark.parametrize(
    "geometry, patch",
    [("patch", (16, 16)), ("frame", (64, 2)), ([8, 4], (8, 4))],
)
def test_geometries(geometry, patch):
    assert Grid.from_geometry(geometry, n_mels=64).patch == patch


@grids
def test_config_builds_the_grid_again(grid):
    assert Grid(**grid.config) == grid


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"patch": (16, 0)}, "patch must be two whole numbers"),
        ({"stride": (0, 4)}, "stride must be two whole numbers"),
        ({"n_mels": 8}, "16 mel bins does not fit into 8"),
    ],
)
def test_impossible_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Grid(**arguments)


def test_unknown_geometry_and_wrong_mels_are_refused():
    with pytest.raises(
        ValueError, match="geometry must be one of patch, frame"
    ):
        Grid.from_geometry("hexagon")
    with pytest.raises(ValueError, match="128 mel bins"):
        Grid().unfold(torch.zeros(1, 20, 64))


def fitted(table, n_freq, n_time):
    """The positions of one clip, axis by axis: center or interpolation."""
    table_freq, table_time, dim = table.shape
    # (F0, T0, D) to (1, D, F0, T0), as interpolate wants it.
    image = table.permute(2, 0, 1)[None]
    if n_freq < table_freq:
        low = table_freq // 2 - n_freq // 2
        image = image[:, :, low : low + n_freq]
    if n_time < table_time:
        start = table_time // 2 - n_time // 2
        image = image[..., start : start + n_time]
    image = nn.functional.interpolate(
        image, (n_freq, n_time), mode="bilinear", align_corners=False
    )
    return image[0].permute(1, 2, 0)


LENGTHS = [1, 2, 7, 8, 9, 15, 16, 17, 31, 40, 133]


@pytest.mark.parametrize("n_freq", [1, 2, 5, 8, 12, 15])
@pytest.mark.parametrize("size", [(8, 16), (5, 9)])
def test_positions_of_each_clip_are_its_own(size, n_freq):
    table = PositionTable(*size, dim=6)
    counts, longest = torch.tensor(LENGTHS), max(LENGTHS)
    positions = table(n_freq, counts, longest)
    positions = positions.unflatten(1, (n_freq, longest))
    for row, n_time in zip(positions, LENGTHS, strict=True):
        torch.testing.assert_close(
            row[:, :n_time], fitted(table.table, n_freq, n_time)
        )


def test_positions_do_not_depend_on_the_batch():
    table = PositionTable(8, 64, dim=4)
    alone = table(8, torch.tensor([100]), 100).unflatten(1, (8, 100))
    together = table(8, torch.tensor([7, 100, 300]), 300)
    assert torch.equal(together.unflatten(1, (8, 300))[1, :, :100], alone[0])


def test_positions_at_the_tables_own_length_are_the_table():
    table = PositionTable(8, 64, dim=4)
    positions = table(8, torch.tensor([64]), 64)
    assert torch.equal(positions[0], table.table.flatten(0, 1))


def test_positions_learn_also_where_interpolated():
    table = PositionTable(2, 4, dim=3)
    table(2, torch.tensor([9]), 9).sum().backward()
    assert (table.table.grad > 0).all()


def test_gradient_of_positions_is_the_same_with_several_threads():
    table = PositionTable(1, 64, dim=128)
    counts = torch.arange(1, 65)
    upstream = torch.randn(64, 64, 128, generator=torch.manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        gradients = []
        for _ in range(20):
            table.zero_grad()
            table(1, counts, 64).backward(upstream)
            gradients.append(table.table.grad.clone())
    finally:
        torch.set_num_threads(before)
    for gradient in gradients[1:]:
        assert torch.equal(gradient, gradients[0])


def waves_by_hand(place, quarter):
    rates = [10000 ** (-i / quarter) for i in range(quarter)]
    angles = torch.tensor([place * rate for rate in rates])
    return torch.cat([angles.sin(), angles.cos()])


@pytest.mark.parametrize("n_freq, n_time, dim", [(8, 64, 16), (1, 5, 8)])
def test_sincos_positions_tell_band_and_step(n_freq, n_time, dim):
    positions = sincos_positions(n_freq, n_time, dim)
    assert positions.shape == (n_freq, n_time, dim)
    for band in range(n_freq):
        for step in range(n_time):
            expected = torch.cat(
                [waves_by_hand(x, dim // 4) for x in (band, step)]
            )
            assert torch.allclose(positions[band, step], expected, atol=1e-4)
    larger = sincos_positions(n_freq + 2, n_time + 3, dim)
    assert torch.equal(larger[:n_freq, :n_time], positions)


def test_fixed_positions_are_not_trained_and_follow_each_clip():
    table = PositionTable(2, 6, 8)
    table.fix_sincos()
    assert not table.table.requires_grad
    assert torch.equal(table.table, sincos_positions(2, 6, 8))
    own = table(2, torch.tensor([6, 2]), 6).unflatten(1, (2, 6))
    assert torch.equal(own[0], table.table)
    # A shorter clip takes the center, as of learned positions.
    assert torch.equal(own[1, :, :2], table.table[:, 2:4])


def test_sincos_positions_need_a_multiple_of_four():
    with pytest.raises(ValueError, match="multiple of 4 dimensions, got 6"):
        PositionTable(2, 6, 6).fix_sincos()
