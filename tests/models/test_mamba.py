"""Mamba blocks: an exact scan, graphs by their formulas, padding unseen."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from ssast_lobes import (
    SSAST,
    FrontEnd,
    Grid,
    SpectrogramClassifier,
    SpectrogramEncoder,
)
from ssast_lobes.checkpoints.folder import export_pretrained
from ssast_lobes.checkpoints.format import Weights, WeightsError
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.official import from_official, to_official
from ssast_lobes.checkpoints.warm_start import initialize
from ssast_lobes.inference import AudioEncoder
from ssast_lobes.models import mamba
from ssast_lobes.models import selective_scan as scan_module
from ssast_lobes.models.mamba import (
    STATE,
    MambaBlock,
    MambaDirection,
    MambaMixer,
    PairedMambaBlock,
)
from ssast_lobes.models.selective_scan import fused_scan, selective_scan
from ssast_lobes.objectives import MSPM
from ssast_lobes.objectives.maskers import ClusterMasker
from ssast_lobes.training.optimizers import parameter_groups

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device"
)
kernel = pytest.mark.skipif(
    not torch.cuda.is_available() or fused_scan() is None,
    reason="no CUDA device with the package mamba_ssm",
)
KINDS = ("mamba", "mamba_reference")
# Tokens of a segment and of a chunk: the plan of a CPU with whole and partial
# last segments, and that of a GPU, with one and with several segments.
PLANS = {
    "cpu": None,
    "segments": (8, 8),
    "chunks": (64, 8),
    "segments of chunks": (12, 3),
    "chunks of one": (5, 1),
}


def loop(u, delta, A, B, C, D=None, reverse=False):
    """The recurrence as it is written, a token at a time."""
    if reverse:
        flipped = (x.flip(1) for x in (u, delta, B, C))
        u, delta, B, C = flipped
    state, outputs = 0.0, []
    for t in range(u.shape[1]):
        step = delta[:, t, :, None]
        taken = step * B[:, t, None] * u[:, t, :, None]
        state = (step * A).exp() * state + taken
        outputs.append((state * C[:, t, None]).sum(2))
    y = torch.stack(outputs, 1)
    if D is not None:
        y = y + u * D
    return y.flip(1) if reverse else y


def scan_inputs(tokens, batch=2, channels=6, state=4, dtype=torch.float32):
    torch.manual_seed(0)
    return [
        torch.randn(batch, tokens, channels, dtype=dtype),
        nn.functional.softplus(
            torch.randn(batch, tokens, channels, dtype=dtype) - 2
        ),
        -torch.rand(channels, state, dtype=dtype) * 8,
        torch.randn(batch, tokens, state, dtype=dtype),
        torch.randn(batch, tokens, state, dtype=dtype),
        torch.randn(channels, dtype=dtype),
    ]


@pytest.fixture(params=PLANS)
def plan(request, monkeypatch):
    if PLANS[request.param]:
        chosen = PLANS[request.param]
        monkeypatch.setattr(scan_module, "_plan", lambda *_: chosen)


def near(one, other, atol=1e-5):
    torch.testing.assert_close(one, other, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 64, 150])
def test_the_scan_equals_the_loop(plan, tokens, reverse):
    inputs = [x.requires_grad_() for x in scan_inputs(tokens)]
    ours = selective_scan(*inputs, reverse=reverse)
    theirs = loop(*inputs, reverse=reverse)
    near(ours, theirs)
    weight = torch.randn_like(ours)
    grads = torch.autograd.grad((ours * weight).sum(), inputs)
    wanted = torch.autograd.grad((theirs * weight).sum(), inputs)
    for one, other in zip(grads, wanted, strict=True):
        scale = other.abs().max().clamp(min=1e-6)
        near(one / scale, other / scale)


@pytest.mark.parametrize(
    "plan",
    [
        "segments of chunks",
        # Either alone.
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in sorted(PLANS.keys() - {"segments of chunks"})
        ),
    ],
    indirect=True,
)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_exact(plan, reverse):
    inputs = scan_inputs(17, 2, 2, 3, torch.float64)
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan(*x, reverse=reverse), inputs
    )
    # Without D, and where only some tensors learn.
    u, delta, A, B, C, _ = inputs
    for x in (u, A):
        x.requires_grad_(False)
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan(u, x[0], A, x[1], C), (delta, B)
    )


def test_gradients_of_a_direction_are_exact():
    torch.manual_seed(0)
    direction = MambaDirection(2).double()
    x = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
    is_token = torch.ones(2, 9, 1, dtype=torch.float64)
    is_token[1, 6:] = 0
    for reverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, *_, way=reverse: direction(x * is_token, is_token, way),
            (x, *direction.parameters()),
        )


def test_nothing_overflows_at_any_length(plan):
    """Sums of steps times decay reach 1e5, which no exponential survives."""
    inputs = scan_inputs(3000, 1, 4, 4)
    inputs[1] *= torch.rand(3000, 1) * 40
    exact = loop(*(x.double() for x in inputs))
    inputs = [x.requires_grad_() for x in inputs]
    y = selective_scan(*inputs)
    near(y, exact.float(), atol=1e-5 * exact.abs().max())
    y.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_step_of_size_0_is_passed_over_exactly(plan, reverse):
    u, delta, A, B, C, D = scan_inputs(20)
    kept = torch.arange(20) % 3 > 0
    delta[:, ~kept] = 0
    whole = selective_scan(u, delta, A, B, C, D, reverse)[:, kept]
    parts = [x[:, kept] for x in (u, delta, B, C)]
    alone = selective_scan(*parts[:2], A, *parts[2:], D, reverse)
    near(whole, alone, atol=1e-6)


def test_the_scan_computes_in_float32_whatever_comes_in():
    inputs = scan_inputs(30)
    rounded = [x.bfloat16() for x in inputs]
    exact = selective_scan(*(x.float() for x in rounded))
    with torch.autocast("cpu", torch.bfloat16):
        ours = selective_scan(*rounded)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, exact)


def test_torch_compile_goes_around_the_scan():
    torch.manual_seed(0)
    block, x = MambaBlock(16), torch.randn(2, 30, 16, requires_grad=True)
    loss = torch.compile(block, backend="eager")(x).square().sum()
    loss.backward()
    wanted = block(x.detach()).square().sum()
    near(loss, wanted)
    grads = {name: p.grad for name, p in block.named_parameters()}
    block.zero_grad()
    wanted.backward()
    for name, parameter in block.named_parameters():
        near(grads[name], parameter.grad, atol=1e-4)


def vision_kernel(u, delta, A, B, C, D=None):
    """What mamba_ssm's function computes, with its arguments and layout."""
    parts = (x.transpose(1, 2) for x in (u, delta, B, C))
    u, delta, B, C = parts
    return loop(u, delta, A, B, C, D).transpose(1, 2)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_kernel_is_called_in_its_layout(reverse, monkeypatch):
    monkeypatch.setattr(scan_module, "fused_scan", lambda: vision_kernel)
    inputs = scan_inputs(20)
    y = scan_module._kernel_scan(scan_module.as_they_are, reverse, *inputs)
    near(y, loop(*inputs, reverse=reverse))


@kernel
@pytest.mark.parametrize("reverse", [False, True])
def test_the_kernel_of_mamba_ssm_agrees(reverse, monkeypatch):
    inputs = [x.cuda().requires_grad_() for x in scan_inputs(700, 2, 64, 16)]
    theirs = selective_scan(*inputs, reverse=reverse)
    wanted = torch.autograd.grad(theirs.square().sum(), inputs)
    monkeypatch.setattr(scan_module, "fused_scan", lambda: None)
    ours = selective_scan(*inputs, reverse=reverse)
    near(ours, theirs, atol=1e-4)
    grads = torch.autograd.grad(ours.square().sum(), inputs)
    for one, other in zip(grads, wanted, strict=True):
        near(one / other.abs().max(), other / other.abs().max(), atol=1e-4)


@cuda
def test_cuda_equals_the_cpu(monkeypatch):
    monkeypatch.setattr(scan_module, "fused_scan", lambda: None)
    inputs = scan_inputs(700, 2, 64, 16)
    on_gpu = selective_scan(*(x.cuda() for x in inputs))
    near(on_gpu.cpu(), selective_scan(*inputs), atol=1e-4)


def mixer_by_hand(mixer, x):
    """Vision Mamba's mixer with PyTorch's convolution, flips and the loop."""
    x, gate = mixer.in_proj(x).chunk(2, 2)
    total = 0.0
    for way, reverse in ((mixer.ahead, False), (mixer.back, True)):
        tokens = x.flip(1) if reverse else x
        conv = nn.functional.conv1d(
            tokens.transpose(1, 2),
            way.conv.weight,
            way.conv.bias,
            padding=3,
            groups=x.shape[2],
        )[..., : x.shape[1]]
        u = nn.functional.silu(conv.transpose(1, 2))
        rank = way.dt_proj.in_features
        steps, B, C = way.x_proj(u).split([rank, STATE, STATE], 2)
        delta = nn.functional.softplus(way.dt_proj(steps))
        y = loop(u, delta, -way.A_log.exp(), B, C, way.D)
        y = y * nn.functional.silu(gate.flip(1) if reverse else gate)
        total = total + (y.flip(1) if reverse else y)
    return mixer.out_proj(total / 2)


def test_the_mixer_equals_the_formula():
    torch.manual_seed(0)
    mixer, x = MambaMixer(24), torch.randn(2, 40, 24)
    near(mixer(x), mixer_by_hand(mixer, x))
    flipped = mixer_by_hand(mixer, x.flip(1)).flip(1)
    near(mixer(x, flipped=True), flipped)


def test_blocks_add_to_the_stream_and_the_pair_doubles_it():
    torch.manual_seed(0)
    x = torch.randn(2, 30, 16)
    block, pair = MambaBlock(16), PairedMambaBlock(16)
    near(block(x), x + mixer_by_hand(block.mixer, block.norm(x)))
    one, two = pair.straight, pair.flipped
    ahead = mixer_by_hand(one.mixer, one.norm(x))
    back = mixer_by_hand(two.mixer, two.norm(x.flip(1))).flip(1)
    near(pair(x), 2 * x + ahead + back)


def test_step_sizes_start_in_their_range():
    direction = MambaDirection(64)
    steps = nn.functional.softplus(direction.dt_proj.bias)
    low, high = mamba.DELTA_RANGE
    assert (steps > 0.99 * low).all() and (steps < 1.01 * high).all()
    # Evenly spread in the log.
    middle = math.sqrt(low * high)
    assert 0.3 < (steps < middle).float().mean() < 0.7
    assert torch.equal(direction.A_log.exp().round()[5], torch.arange(1.0, 17))


def test_output_projections_start_smaller_the_deeper_the_model():
    torch.manual_seed(0)
    shallow = SpectrogramEncoder(dim=32, depth=1, blocks="mamba")
    deep = SpectrogramEncoder(dim=32, depth=8, blocks="mamba_reference")
    ratio = (
        shallow.blocks[0].mixer.out_proj.weight.std()
        / deep.blocks[3].flipped.mixer.out_proj.weight.std()
    )
    assert ratio.item() == pytest.approx(4, rel=0.1)


MEMORY = """
import sys, torch
from ssast_lobes.models.encoder import SpectrogramEncoder
torch.set_num_threads(1)
encoder = SpectrogramEncoder(dim=64, depth=2, blocks="mamba")
def step(tokens):
    output = encoder(torch.randn(1, 2 * tokens, 128))
    output.tokens.square().mean().backward()
def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(name))
step(64)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = memory("VmRSS")
step(int(sys.argv[1]))
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of Linux")
def test_memory_of_training_grows_linearly():
    """Twice the tokens take at most 2.2 times the memory, back and forth."""

    def peak(tokens):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tokens)],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    # The allocator keeps now more, now less; the least is what is needed.
    peaks = [min(peak(n) for _ in range(3)) for n in (4096, 8192)]
    assert peaks[1] <= 2.2 * peaks[0], peaks
    # Four scans: their states alone would take 4 * 8192 * 128 * 16 * 4 bytes.
    assert 1000 * peaks[1] < 268e6, peaks


GRIDS = {
    "patch": Grid(),
    "frame": Grid(128, (128, 2)),
    "overlap": Grid(128, (16, 16), (10, 10)),
}
LENGTHS = [1, 16, 17, 98, 160, 161, 300]


def small(kind, grid=None, **arguments):
    torch.manual_seed(0)
    settings = {"dim": 32, "depth": 2, "table_frames": 160, "blocks": kind}
    encoder = SpectrogramEncoder(grid, **{**settings, **arguments})
    # Wide weights and long memories, which no mistake can hide behind.
    for name, weight in encoder.named_parameters():
        if "_proj.weight" in name:
            nn.init.normal_(weight, std=0.3)
        if name.endswith("A_log"):
            weight.data -= 3
    for table in (encoder.positions.table, encoder.class_positions):
        nn.init.normal_(table, std=0.5)
    return encoder.eval()


def batch_of(lengths, extra=0, garbage=0.0):
    draw = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, 128, generator=draw) for n in lengths]
    longest = max(lengths) + extra
    feats = torch.full((len(clips), longest, 128), garbage)
    for row, clip in zip(feats, clips, strict=True):
        row[: len(clip)] = clip
    return clips, feats, torch.tensor(lengths)


@pytest.fixture(params=[(k, g) for k in KINDS for g in GRIDS], ids="-".join)
def encoder(request):
    kind, grid = request.param
    return small(kind, GRIDS[grid])


@torch.no_grad()
def test_a_clip_in_a_batch_equals_the_clip_alone(encoder):
    clips, feats, n_frames = batch_of(LENGTHS, extra=40, garbage=-9.0)
    together = encoder(feats, n_frames, hidden_states=True)
    for row, clip in enumerate(clips):
        count = torch.tensor([len(clip)])
        alone = encoder(clip[None], count, hidden_states=True)
        own = alone.patches.shape[2]
        near(together.patches[row, :, :own], alone.patches[0])
        near(together.class_tokens[row], alone.class_tokens[0])
        for pooling in ("mean", "class"):
            near(together.clip(pooling)[row], alone.clip(pooling)[0])
        states = together.hidden_states[:, row]
        states = states.unflatten(1, (encoder.grid.n_freq, -1))
        near(states[:, :, :own].flatten(1, 2), alone.hidden_states[:, 0])
        assert (together.patches[row, :, own:] == 0).all()
        # Counts or none: a whole clip is the same.
        near(encoder(clip[None]).tokens, alone.tokens)


@torch.no_grad()
def test_shapes(encoder):
    _, feats, n_frames = batch_of([98, 40])
    out = encoder(feats, n_frames, hidden_states=True)
    bands, steps = encoder.grid.n_freq, encoder.grid.n_time(98)
    classes = 2 if encoder.kind == "mamba" else 1
    assert out.patches.shape == (2, bands, steps, 32)
    assert out.frames.shape == (2, steps, 32)
    assert out.class_tokens.shape == (2, classes, 32)
    assert out.clip("class").shape == (2, 32)
    assert out.hidden_states.shape == (3, 2, bands * steps, 32)
    assert out.class_hidden_states.shape == (3, 2, classes, 32)
    normed = encoder.norm(out.hidden_states[-1])
    if encoder.kind == "mamba_reference":
        normed = encoder.norm(normed)
    near(normed * out.is_token[:, :, None], out.tokens)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_order_of_the_scan(kind):
    """What is not mixed back shows which token comes before which."""
    encoder = small(kind, depth=1)
    for block in encoder.blocks.modules():
        if isinstance(block, MambaBlock):
            # Only one direction is left, and in the pair one mixer.
            nn.init.zeros_(block.mixer.back.dt_proj.weight)
            nn.init.constant_(block.mixer.back.dt_proj.bias, -100)
            nn.init.zeros_(block.mixer.back.D)
    if kind == "mamba_reference":
        nn.init.zeros_(encoder.blocks[0].flipped.mixer.out_proj.weight)
    feats = torch.randn(1, 48, 128)
    changed = feats.clone()
    changed[:, 16:32, 32:48] += 1  # band 2, step 1
    one, two = encoder(feats), encoder(changed)
    moved = (one.patches - two.patches).abs().sum(3)[0] > 1e-6
    band, step = torch.meshgrid(torch.arange(8), torch.arange(3), indexing="ij")
    if kind == "mamba":
        wanted = step * 8 + band >= 1 * 8 + 2
        ends = [False, True]
    else:
        wanted = band * 3 + step >= 2 * 3 + 1
        ends = [False]
    assert torch.equal(moved, wanted)
    moved = (one.class_tokens - two.class_tokens).abs().sum(2)[0] > 1e-6
    assert moved.tolist() == ends


@torch.no_grad()
def test_keeping_all_tokens_equals_the_full_path(encoder):
    _, feats, n_frames = batch_of([300, 98])
    full = encoder(feats, n_frames, hidden_states=True)
    index = torch.arange(full.tokens.shape[1]).expand(2, -1)
    keep = index, torch.ones_like(index, dtype=torch.bool)
    kept = encoder(feats, n_frames, keep=keep, hidden_states=True)
    for name in ("tokens", "class_tokens", "hidden_states"):
        near(getattr(kept, name), getattr(full, name))


@torch.no_grad()
def test_a_scan_skips_dropped_tokens(encoder):
    """Kept tokens in any order, surplus ones among them: all the same."""
    _, feats, n_frames = batch_of([160, 120])
    tokens = encoder.grid.n_freq * encoder.grid.n_time(160)
    index = torch.stack([torch.randperm(tokens)[: tokens // 2]] * 2)
    kept = torch.ones_like(index, dtype=torch.bool)
    one = encoder(feats, n_frames, keep=(index, kept))
    back = encoder(feats, n_frames, keep=(index.flip(1), kept))
    near(back.tokens.flip(1), one.tokens)
    near(back.class_tokens, one.class_tokens)
    surplus = torch.cat([index[:, :2], index], dim=1)
    flags = nn.functional.pad(kept, (2, 0))
    padded = encoder(feats, n_frames, keep=(surplus, flags))
    near(padded.tokens[:, 2:], one.tokens)
    assert (padded.tokens[:, :2] == 0).all()
    near(padded.clip(), one.clip())
    # What is dropped is not looked at.
    dropped = torch.ones(2, tokens, 1)
    dropped.scatter_(1, index[:, :, None], 0.0)
    if encoder.grid.stride == encoder.grid.patch:
        noise = dropped.expand(-1, -1, encoder.grid.patch_size)
        feats = feats + encoder.grid.fold(noise, feats.shape[1])
        again = encoder(feats, n_frames, keep=(index, kept))
        near(again.tokens, one.tokens)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_replaced_tokens_do_not_show_what_they_hide(kind):
    encoder = small(kind)
    _, feats, n_frames = batch_of([160, 97])
    mask = torch.rand(2, 8, 10) < 0.5
    hidden = mask.flatten(1)[:, :, None].expand(-1, -1, 256).float()
    altered = feats + encoder.grid.fold(hidden, 160)
    embedding = torch.randn(32)
    plain = encoder(feats, n_frames, mask, embedding)
    again = encoder(altered, n_frames, mask, embedding)
    assert not torch.equal(feats, altered)
    assert torch.equal(plain.tokens, again.tokens)
    other = encoder(feats, n_frames, mask, -embedding)
    assert not torch.allclose(plain.tokens, other.tokens, atol=1e-3)


def test_every_parameter_learns(encoder):
    _, feats, n_frames = batch_of([98, 40])
    out = encoder.train()(feats, n_frames)
    (out.clip().square().sum() + out.class_tokens.square().sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_config_builds_the_encoder_again(kind):
    encoder = small(kind)
    assert "heads" not in encoder.config
    again = SpectrogramEncoder(**encoder.config).eval()
    again.load_state_dict(encoder.state_dict())
    feats = torch.randn(1, 98, 128)
    assert torch.equal(again(feats).tokens, encoder(feats).tokens)
    with pytest.raises(ValueError, match="one of attention.*'lstm'"):
        SpectrogramEncoder(blocks="lstm")


@pytest.mark.parametrize(
    "size, parameters",
    [("tiny", 6_922_176), ("small", 25_345_920), ("base", 96_698_112)],
)
def test_sizes_have_the_official_number_of_parameters(size, parameters):
    counts = []
    for name in (f"ssamba_{size}_reference", f"ssamba_{size}"):
        with torch.device("meta"):
            encoder = SpectrogramEncoder.from_size(name)
        counts.append(sum(p.numel() for p in encoder.parameters()))
    assert counts[0] == parameters
    # The second class token and its position.
    assert counts[1] == parameters + 2 * encoder.dim


@pytest.mark.parametrize("kind", KINDS)
def test_drop_path_works_in_training_only(kind):
    encoder = small(kind, depth=3, drop_path=0.8)
    feats = torch.randn(1, 98, 128)
    with torch.no_grad():
        assert torch.equal(encoder(feats).tokens, encoder(feats).tokens)
        encoder.train()
        drawn = [encoder(feats).tokens for _ in range(8)]
    assert any(not torch.equal(drawn[0], other) for other in drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_stays_near_and_learns(kind):
    encoder = small(kind)
    _, feats, n_frames = batch_of(LENGTHS)
    exact = encoder(feats, n_frames).clip()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(feats, n_frames).clip()
        loss = rounded.square().mean()
    loss.backward()
    assert (rounded.float() - exact).abs().max() < 0.1
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_ddp_gives_the_same_gradients(kind, tmp_path):
    objective = MSPM(small(kind).train(), ClusterMasker(ratio=0.5))
    _, feats, n_frames = batch_of([98, 40])
    generator = torch.Generator().manual_seed(1)
    mask = objective.draw_mask(feats, n_frames, generator)
    objective(feats, n_frames, mask).loss.backward()
    wanted = [p.grad.clone() for p in objective.parameters()]
    objective.zero_grad()
    torch.distributed.init_process_group(
        "gloo", f"file://{tmp_path}/store", world_size=1, rank=0
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(objective)
        for _ in range(2):
            objective.zero_grad()
            wrapped(feats, n_frames, mask).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, grad in zip(objective.parameters(), wanted, strict=True):
        near(parameter.grad, grad)


@pytest.mark.parametrize(
    "kind", [pytest.param(KINDS[1], marks=pytest.mark.slow), KINDS[0]]
)
def test_training_lowers_the_loss(kind):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=2, blocks=kind)
    objective = MSPM(encoder, ClusterMasker(ratio=0.5))
    feats = torch.randn(4, 10, 128).repeat_interleave(16, 1)
    n_frames = torch.tensor([160, 160, 100, 80])
    mask = objective.draw_mask(feats, n_frames)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        output = objective(feats, n_frames, mask)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_gives_the_same_embeddings(kind, tmp_path):
    objective, features = (
        MSPM(small(kind), ClusterMasker(ratio=0.5)),
        FrontEnd(),
    )
    export_pretrained(tmp_path / "export", objective, features, card={})
    wav = torch.randn(1, 8000)
    with torch.no_grad():
        wanted = objective.encoder(*features(wav)).clip()
    encoder = AudioEncoder.from_hparams(tmp_path / "export")
    near(encoder.encode_batch(wav), wanted)
    lobe = SSAST(source=tmp_path / "export", output="clip").eval()
    near(lobe(wav)[:, 0], wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_ways_of_fine_tuning(kind):
    feats, n_frames = torch.randn(2, 60, 128), torch.tensor([60, 40])
    groups = parameter_groups(
        SpectrogramClassifier(small(kind), 3), layer_decay=0.5
    )
    scales = [group["lr_scale"] for group in groups]
    assert scales == [0.125, 0.25, 0.5, 1.0]

    model = SpectrogramClassifier(small(kind), 3, frozen_blocks=1)
    model(feats, n_frames).sum().backward()
    first, second = model.encoder.blocks
    assert all(p.grad is None for p in first.parameters())
    assert all(p.grad is not None for p in second.parameters())

    plain = small(kind)
    before = plain(feats, n_frames).clip()
    model = SpectrogramClassifier(small(kind), 3, lora_rank=2)
    near(model.embed(feats, n_frames), before)
    adapters = [p for p in model.encoder.parameters() if p.requires_grad]
    # Two layers of two matrices in each mixer.
    assert len(adapters) == 4 * 2 * (1 if kind == "mamba" else 2)
    for parameter in adapters:
        nn.init.normal_(parameter, std=0.3)
    adapted = model.embed(feats, n_frames)
    assert not torch.allclose(adapted, before, atol=1e-2)
    plain.load_state_dict(model.merged_encoder_state())
    near(plain(feats, n_frames).clip(), adapted, atol=1e-4)


DIM, LAYERS = 32, 4


def official(finetuned=False, module="module.", layers=LAYERS, dim=DIM):
    """A state dict as the official SSAMBA code saves it, but noise."""
    channels, rank = 2 * dim, math.ceil(dim / 16)
    tokens = 12 * 50 if finetuned else 8 * 10
    shapes = {
        "v.cls_token": (1, 1, dim),
        "v.pos_embed": (1, tokens + 1, dim),
        "v.patch_embed.proj.weight": (dim, 1, 16, 16),
        "v.patch_embed.proj.bias": (dim,),
        "v.norm_f.weight": (dim,),
        "v.norm_f.bias": (dim,),
        "v.head.weight": (10, dim),
        "v.head.bias": (10,),
    }
    for number in range(layers):
        layer = f"v.layers.{number}"
        shapes[f"{layer}.norm.weight"] = shapes[f"{layer}.norm.bias"] = (dim,)
        mixer = f"{layer}.mixer"
        shapes[f"{mixer}.in_proj.weight"] = (2 * channels, dim)
        shapes[f"{mixer}.out_proj.weight"] = (dim, channels)
        for end in ("", "_b"):
            shapes[f"{mixer}.A{end}_log"] = (channels, 16)
            shapes[f"{mixer}.D{end}"] = (channels,)
            shapes[f"{mixer}.conv1d{end}.weight"] = (channels, 1, 4)
            shapes[f"{mixer}.conv1d{end}.bias"] = (channels,)
            shapes[f"{mixer}.x_proj{end}.weight"] = (rank + 32, channels)
            shapes[f"{mixer}.dt_proj{end}.weight"] = (channels, rank)
            shapes[f"{mixer}.dt_proj{end}.bias"] = (channels,)
    if finetuned:
        shapes["mlp_head.0.weight"] = shapes["mlp_head.0.bias"] = (dim,)
        shapes["mlp_head.1.weight"] = (35, dim)
        shapes["mlp_head.1.bias"] = (35,)
    else:
        shapes["mask_embed"] = (1, 1, dim)
        for head in ("cpredlayer", "gpredlayer"):
            for number, rows in ((0, dim), (2, 256)):
                shapes[f"{head}.{number}.weight"] = (rows, dim)
                shapes[f"{head}.{number}.bias"] = (rows,)
    torch.manual_seed(1)
    state = {key: 0.1 * torch.randn(shape) for key, shape in shapes.items()}
    if not finetuned:
        state["p_input_fdim"] = torch.tensor(128)
        state["p_input_tdim"] = torch.tensor(160)
    return {module + key: value for key, value in state.items()}


@pytest.mark.parametrize("finetuned", [False, True])
@pytest.mark.parametrize("module", ["module.", ""])
def test_official_in_and_out_is_exact(finetuned, module, tmp_path):
    state = official(finetuned, module)
    torch.save(state, tmp_path / "ssamba.pth")
    weights = load_weights(tmp_path / "ssamba.pth", (10, 10))
    assert len([x for x in weights.report if "v.head" in x]) == 2
    back = to_official(weights)
    wanted = {
        "module." + key.removeprefix("module."): value
        for key, value in state.items()
        if "v.head" not in key
    }
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[key], value) for key, value in wanted.items())
    assert weights.config["encoder"]["blocks"] == "mamba_reference"
    assert weights.config["encoder"]["depth"] == LAYERS // 2
    assert bool(weights.part("head")) == finetuned


def test_a_released_checkpoint_builds_its_own_graph(tmp_path):
    torch.save(official(), tmp_path / "ssamba.pth")
    lobe = SSAST(source=tmp_path / "ssamba.pth", output="clip").eval()
    assert lobe.encoder.kind == "mamba_reference"
    assert any("v.head" in line for line in lobe.report)
    wav = torch.randn(2, 16000)
    clips = lobe(wav, torch.tensor([1.0, 0.5]))
    near(clips[1:], lobe(wav[1:, :8000]))


@pytest.mark.parametrize(
    "lost, message",
    [
        ("v.cls_token", "not an SSAMBA layout.*v.cls_token"),
        ("v.layers.2.mixer.A_b_log", "missing blocks.1.straight.*back.A_log"),
        ("v.layers.1.norm.bias", "missing blocks.0.flipped.norm.bias"),
        ("cpredlayer.2.bias", "is incomplete"),
    ],
)
def test_a_missing_tensor_is_named(lost, message):
    state = official()
    del state[f"module.{lost}"]
    with pytest.raises(WeightsError, match=message):
        from_official(state)


@pytest.mark.parametrize(
    "key", ["v.layers.0.mixer.D_c", "v.blocks.0.norm1.weight", "v.norm.weight"]
)
def test_a_tensor_too_many_is_named(key):
    with pytest.raises(WeightsError, match=f"unknown tensor: {key}"):
        from_official({**official(), f"module.{key}": torch.zeros(3)})


def test_layers_that_do_not_pair_or_are_lost_are_refused():
    with pytest.raises(WeightsError, match="3 layers.*in pairs"):
        from_official(official(layers=3))
    with pytest.raises(WeightsError, match="SSAMBA tiny has 12"):
        from_official(official(layers=22, dim=192))


def test_the_clean_graph_has_no_official_layout():
    encoder = small("mamba")
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    with pytest.raises(WeightsError, match="'mamba_reference' has an official"):
        to_official(Weights(state, {"encoder": encoder.config}))


def test_another_kind_of_blocks_does_not_load():
    weights = from_official(official())
    for kind in ("attention", "mamba"):
        encoder = SpectrogramEncoder(dim=DIM, depth=2, heads=1, blocks=kind)
        with pytest.raises(WeightsError, match=f"'mamba_reference'.*'{kind}'"):
            initialize(encoder, weights)
