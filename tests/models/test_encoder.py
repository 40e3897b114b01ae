"""The encoder: a clip's output is its own, whatever it is batched with."""

import pytest
import torch

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.models.pooling import pool

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device"
)
GRIDS = {
    "patch": Grid(),
    "frame": Grid(128, (128, 2)),
    "overlap": Grid(128, (16, 16), (10, 10)),
    "frame-overlap": Grid(128, (128, 2), (128, 1)),
    "small": Grid(40, (8, 4)),
}
TABLE_FRAMES = 160
# Shorter than a patch, partial patches, the table's own length, and longer.
LENGTHS = [1, 7, 16, 17, 98, 160, 161, 300]


def small(grid, **arguments):
    torch.manual_seed(0)
    settings = {"dim": 32, "depth": 2, "heads": 2, "table_frames": TABLE_FRAMES}
    encoder = SpectrogramEncoder(grid, **{**settings, **arguments})
    # Initial weights of 0.02 would hide mistakes below the tolerance.
    for name, weight in encoder.named_parameters():
        if "blocks" in name and weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.15)
    for table in (encoder.positions.table, encoder.class_positions):
        torch.nn.init.normal_(table, std=0.5)
    return encoder.eval()


def clips_of(grid, lengths=LENGTHS, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(n, grid.n_mels, generator=draw) for n in lengths]


def batch_of(clips, garbage=0.0, extra=0):
    longest = max(len(clip) for clip in clips) + extra
    feats = torch.full((len(clips), longest, clips[0].shape[1]), garbage)
    for row, clip in zip(feats, clips, strict=True):
        row[: len(clip)] = clip
    return feats, torch.tensor([len(clip) for clip in clips])


def close(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.fixture(params=GRIDS)
def encoder(request):
    return small(GRIDS[request.param])


@pytest.mark.parametrize("garbage, extra", [(0.0, 0), (37.0, 0), (-9.0, 50)])
@torch.no_grad()
def test_a_clip_in_a_batch_equals_the_clip_alone(encoder, garbage, extra):
    clips = clips_of(encoder.grid)
    feats, n_frames = batch_of(clips, garbage, extra)
    together = encoder(feats, n_frames, hidden_states=True)
    steps = together.n_time
    for row, clip in enumerate(clips):
        count = torch.tensor([len(clip)])
        alone = encoder(clip[None], count, hidden_states=True)
        own = alone.patches.shape[2]
        assert steps[row] == own == encoder.grid.n_time(len(clip))
        close(together.patches[row, :, :own], alone.patches[0])
        close(together.frames[row, :own], alone.frames[0])
        close(together.class_tokens[row], alone.class_tokens[0])
        for pooling in ("mean", "class"):
            close(together.clip(pooling)[row], alone.clip(pooling)[0])
        states = together.hidden_states[:, row].unflatten(
            1, (encoder.grid.n_freq, -1)
        )
        close(states[:, :, :own].flatten(1, 2), alone.hidden_states[:, 0])
        # Every output at padding is 0.
        assert (together.patches[row, :, own:] == 0).all()
        assert (together.frames[row, own:] == 0).all()
        assert (states[:, :, own:] == 0).all()


@torch.no_grad()
def test_the_order_of_the_batch_does_not_matter(encoder):
    feats, n_frames = batch_of(clips_of(encoder.grid))
    order = torch.randperm(len(feats))
    shuffled = encoder(feats[order], n_frames[order]).tokens
    close(shuffled, encoder(feats, n_frames).tokens[order])


@torch.no_grad()
def test_shapes_and_hidden_states(encoder):
    grid, (feats, n_frames) = encoder.grid, batch_of(clips_of(encoder.grid))
    out = encoder(feats, n_frames, hidden_states=True)
    bands, steps = grid.n_freq, grid.n_time(300)
    assert out.tokens.shape == (8, bands * steps, 32)
    assert out.is_token.shape == (8, bands * steps)
    assert out.patches.shape == (8, bands, steps, 32)
    assert out.frames.shape == (8, steps, 32)
    assert out.class_tokens.shape == (8, 2, 32)
    assert out.clip().shape == out.clip("class").shape == (8, 32)
    assert out.hidden_states.shape == (3, 8, bands * steps, 32)
    assert out.class_hidden_states.shape == (3, 8, 2, 32)
    shown = out.is_token[:, :, None]
    close(encoder.norm(out.hidden_states[-1]) * shown, out.tokens)
    close(encoder.norm(out.class_hidden_states[-1]), out.class_tokens)
    # What enters the first block: projected patches and their positions.
    patches = encoder.patch_embedding(grid.unfold(feats))
    positions = encoder.positions(bands, grid.n_time(n_frames), steps)
    close((patches + positions) * shown, out.hidden_states[0])
    without = encoder(feats, n_frames)
    assert without.hidden_states is None is without.class_hidden_states
    assert torch.equal(without.tokens, out.tokens)


@torch.no_grad()
def test_states_are_the_blocks_outputs_in_turn(encoder):
    feats = clips_of(encoder.grid, [98])[0][None]
    out = encoder(feats, hidden_states=True)
    states = torch.cat([out.class_hidden_states, out.hidden_states], dim=2)
    for number, block in enumerate(encoder.blocks):
        close(block(states[number]), states[number + 1])


@torch.no_grad()
def test_without_counts_every_frame_is_audio(encoder):
    feats, _ = batch_of(clips_of(encoder.grid, [98, 40]))
    full = torch.full((2,), feats.shape[1])
    assert encoder(feats).is_token.all()
    close(encoder(feats).tokens, encoder(feats, full).tokens)


@torch.no_grad()
def test_frames_follow_time():
    """Only the time step whose input changed most moves most."""
    encoder = small(GRIDS["patch"], depth=1)
    # Attention that mixes nothing leaves each token where it is.
    torch.nn.init.zeros_(encoder.blocks[0].attn.proj.weight)
    feats = torch.zeros(1, 160, 128)
    changed = feats.clone()
    changed[:, 48:64] = 1.0
    moved = (encoder(feats).frames - encoder(changed).frames).abs().sum(2)
    assert moved[0].nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("geometry", ["patch", "frame", "small"])
@torch.no_grad()
def test_replaced_tokens_do_not_see_what_they_hide(geometry):
    encoder = small(GRIDS[geometry])
    grid = encoder.grid
    clips = clips_of(grid, [160, 97])
    feats, n_frames = batch_of(clips)
    steps = grid.n_time(160)
    mask = torch.rand(2, grid.n_freq, steps) < 0.5
    mask[:, 0, 0] = True
    hidden = grid.fold(
        mask.flatten(1)[:, :, None].expand(-1, -1, grid.patch_size).float(), 160
    )
    embedding = torch.randn(32)
    plain = encoder(feats, n_frames, mask, embedding, hidden_states=True)
    altered = torch.where(hidden > 0, torch.randn_like(feats) * 9, feats)
    again = encoder(altered, n_frames, mask, embedding, hidden_states=True)
    assert not torch.equal(altered, feats)
    assert torch.equal(again.tokens, plain.tokens)
    assert torch.equal(again.class_tokens, plain.class_tokens)
    # The embedding stands there, with the place's own position.
    places = encoder.positions(grid.n_freq, grid.n_time(n_frames), steps)
    chosen = mask.flatten(1) & plain.is_token
    close(plain.hidden_states[0][chosen], (places + embedding)[chosen])
    # Where nothing is hidden, the audio is heard.
    whole = encoder(feats, n_frames, hidden_states=True).hidden_states[0]
    open_tokens = ~mask.flatten(1)
    close(plain.hidden_states[0][open_tokens], whole[open_tokens])
    moved = encoder(feats + ~(hidden > 0), n_frames, mask, embedding)
    assert not torch.allclose(moved.tokens, plain.tokens, atol=1e-3)


def test_a_mask_without_its_embedding_is_refused():
    encoder = small(GRIDS["patch"])
    with pytest.raises(ValueError, match="mask_embedding"):
        encoder(torch.zeros(1, 16, 128), mask=torch.ones(1, 8, 1).bool())


def test_wrong_mel_bins_are_refused():
    with pytest.raises(ValueError, match="128 mel bins"):
        small(GRIDS["patch"])(torch.zeros(1, 16, 64))


@torch.no_grad()
def test_keeping_all_tokens_equals_the_full_path(encoder):
    feats, n_frames = batch_of(clips_of(encoder.grid, [300, 98]))
    full = encoder(feats, n_frames, hidden_states=True)
    index = torch.arange(full.tokens.shape[1]).expand(2, -1)
    keep = index, torch.ones_like(index, dtype=torch.bool)
    kept = encoder(feats, n_frames, keep=keep, hidden_states=True)
    for name in ("tokens", "class_tokens", "hidden_states"):
        close(getattr(kept, name), getattr(full, name))
    assert torch.equal(kept.is_token, full.is_token)


@torch.no_grad()
def test_kept_tokens_may_stand_in_any_order(encoder):
    feats, n_frames = batch_of(clips_of(encoder.grid, [160, 160]))
    tokens = encoder.grid.n_freq * encoder.grid.n_time(160)
    kept = torch.ones(2, tokens // 2, dtype=torch.bool)
    index = torch.stack([torch.randperm(tokens)[: tokens // 2]] * 2)
    one = encoder(feats, n_frames, keep=(index, kept))
    back = encoder(feats, n_frames, keep=(index.flip(1), kept))
    close(back.tokens.flip(1), one.tokens)
    close(back.class_tokens, one.class_tokens)
    close(back.clip(), one.clip())


@torch.no_grad()
def test_surplus_and_dropped_tokens_have_no_influence(encoder):
    feats, _ = batch_of(clips_of(encoder.grid, [160]))
    n_frames = torch.tensor([160])
    tokens = encoder.grid.n_freq * encoder.grid.n_time(160)
    index = torch.randperm(tokens)[None, : max(2, tokens // 3)]
    kept = torch.ones_like(index, dtype=torch.bool)
    exact = encoder(feats, n_frames, keep=(index, kept))
    surplus = torch.cat([index, index[:, :1], index[:, :1]], dim=1)
    flags = torch.nn.functional.pad(kept, (0, 2))
    padded = encoder(feats, n_frames, keep=(surplus, flags))
    close(padded.tokens[:, :-2], exact.tokens)
    close(padded.class_tokens, exact.class_tokens)
    close(padded.clip(), exact.clip())
    assert (padded.tokens[:, -2:] == 0).all()
    assert padded.is_token.sum() == exact.is_token.sum()


@torch.no_grad()
def test_a_kept_token_of_the_padding_does_not_count():
    encoder = small(GRIDS["frame"])
    feats, n_frames = batch_of(clips_of(encoder.grid, [100, 10]))
    index = torch.arange(20).expand(2, -1)
    keep = index, torch.ones_like(index, dtype=torch.bool)
    out = encoder(feats, n_frames, keep=keep)
    assert out.is_token.sum(1).tolist() == [20, 5]
    assert (out.tokens[1, 5:] == 0).all()


def test_drop_path_grows_with_depth_and_works_in_training_only():
    encoder = small(GRIDS["patch"], depth=3, drop_path=0.4)
    rates = [block.drop_path for block in encoder.blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4])
    feats = clips_of(encoder.grid, [98])[0][None]
    with torch.no_grad():
        assert torch.equal(encoder(feats).tokens, encoder(feats).tokens)
        encoder.train()
        drawn = [encoder(feats).tokens for _ in range(20)]
    assert any(not torch.equal(drawn[0], other) for other in drawn)


def test_every_parameter_learns(encoder):
    feats, n_frames = batch_of(clips_of(encoder.grid, [98, 40]))
    out = encoder(feats, n_frames)
    (out.clip().square().sum() + out.class_tokens.square().sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_config_builds_the_encoder_again(encoder):
    again = SpectrogramEncoder(**encoder.config).eval()
    again.load_state_dict(encoder.state_dict())
    feats = clips_of(encoder.grid, [98])[0][None]
    assert torch.equal(again(feats).tokens, encoder(feats).tokens)


@pytest.mark.parametrize(
    "size, parameters",
    [("tiny", 5_487_168), ("small", 21_591_168), ("base", 85_649_664)],
)
@pytest.mark.parametrize("geometry", ["patch", "frame"])
def test_sizes_have_the_official_number_of_parameters(
    size, parameters, geometry
):
    with torch.device("meta"):
        encoder = SpectrogramEncoder.from_size(size, geometry)
    count = sum(p.numel() for p in encoder.parameters())
    assert count == parameters


def test_pooling_takes_valid_tokens_only_and_known_names():
    tokens = torch.randn(2, 5, 3)
    is_token = torch.tensor([[True] * 5, [True, False, True, False, False]])
    tokens = tokens * is_token[:, :, None]
    classes = torch.randn(2, 2, 3)
    mean = pool(tokens, is_token, classes, "mean")
    close(mean[0], tokens[0].mean(0))
    close(mean[1], (tokens[1, 0] + tokens[1, 2]) / 2)
    close(pool(tokens, is_token, classes, "class"), classes.mean(1))
    statistics = pool(tokens, is_token, classes, "statistics")
    close(statistics[:, :3], mean)
    close(statistics[0, 3:], tokens[0].std(0, correction=0))
    away = (tokens[1, 0] - tokens[1, 2]).abs() / 2
    close(statistics[1, 3:], (away.square() + 1e-6).sqrt())
    with pytest.raises(ValueError, match="one of mean, class, statistics, dyn"):
        pool(tokens, is_token, classes, "max")


def test_dynamics_compare_valid_neighbors_of_a_band():
    grid = torch.randn(2, 2, 4, 3)
    shown = torch.tensor([[True] * 4, [True, True, False, False]])
    shown = shown[:, None].expand(-1, 2, -1)
    tokens = (grid * shown[..., None]).flatten(1, 2)
    is_token, classes = shown.flatten(1), torch.randn(2, 2, 3)
    found = pool(tokens, is_token, classes, "dynamics", n_freq=2)
    statistics = pool(tokens, is_token, classes, "statistics")
    assert torch.equal(found[:, :6], statistics)
    one = (grid[0, :, 1:] - grid[0, :, :-1]).square().mean((0, 1))
    two = (grid[0, :, 2:] - grid[0, :, :-2]).square().mean((0, 1))
    close(found[0, 6:], (torch.cat([one, two]) + 1e-6).sqrt())
    # Of the shorter clip one change in each band, and none over two steps.
    one = (grid[1, :, 1] - grid[1, :, 0]).square().mean(0)
    close(found[1, 6:9], (one + 1e-6).sqrt())
    close(found[1, 9:], torch.full((3,), 1e-3))
    with pytest.raises(ValueError, match="no grid: choose"):
        pool(tokens, is_token, classes, "dynamics", n_freq=None)


@torch.no_grad()
def test_bf16_autocast_stays_near(encoder):
    feats, n_frames = batch_of(clips_of(encoder.grid))
    exact = encoder(feats, n_frames).clip()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(feats, n_frames).clip()
    assert rounded.isfinite().all()
    assert (rounded.float() - exact).abs().max() < 0.1


@cuda
@torch.no_grad()
def test_cuda_equals_cpu_without_waiting(encoder):
    feats, n_frames = batch_of(clips_of(encoder.grid))
    expected = encoder(feats, n_frames).tokens
    encoder, feats, n_frames = encoder.cuda(), feats.cuda(), n_frames.cuda()
    encoder(feats, n_frames)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tokens = encoder(feats, n_frames).tokens
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(tokens.cpu(), expected, atol=1e-4, rtol=0)
    for row, count in enumerate(n_frames):
        alone = encoder(feats[row : row + 1, :count], count[None]).patches
        own = tokens[row].unflatten(0, (encoder.grid.n_freq, -1))
        close(own[:, : alone.shape[2]], alone[0])


def test_dropped_tokens_have_no_grid(encoder):
    feats = torch.randn(1, 64, encoder.grid.n_mels)
    index = torch.tensor([[0, 1]])
    out = encoder(feats, keep=(index, torch.ones_like(index, dtype=bool)))
    for name in ("patches", "frames", "n_time"):
        with pytest.raises(ValueError, match="dropped"):
            getattr(out, name)
