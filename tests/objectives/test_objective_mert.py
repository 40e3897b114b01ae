"""MERT on spectrograms: its spectra, its background, and its loss by hand."""

import json
import math

import pytest
import torch

from ssast_lobes import FrontEnd, Grid, PretrainingLobe, SpectrogramEncoder
from ssast_lobes.checkpoints.folder import export_pretrained
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.warm_start import initialize
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.log_frequency import (
    LogFrequencySpectra,
    log_filters,
)
from ssast_lobes.utils.metrics import effective_rank

GRIDS = {"frame": Grid(128, (128, 2)), "patch": Grid()}
LENGTHS = (160, 97, 33)
ALWAYS = {"probability": 1.0, "snr": [0.0, 0.0], "scale": 9.138}
NEVER = {**ALWAYS, "probability": 0.0}
geometries = pytest.mark.parametrize("geometry", GRIDS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(geometry="frame", **arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        GRIDS[geometry], dim=32, depth=2, heads=2, table_frames=160
    )
    return load_objective("mert")(encoder, **arguments)


def batch(lengths=LENGTHS):
    feats = torch.zeros(len(lengths), max(lengths), 128)
    for row, length in zip(feats, lengths, strict=True):
        row[:length] = 0.5 * torch.randn(length, 128, generator=seeded(length))
    return feats, torch.tensor(lengths)


def sound(n_frames):
    """Noise of as many samples as the frames need."""
    n_samples = (n_frames - 1) * 160 + 400
    size = len(n_samples), int(n_samples.max())
    wavs = 0.1 * torch.randn(*size, generator=seeded())
    return {"wavs": wavs, "n_samples": n_samples}


def songs(count=8):
    """Clips of a note each, which swells twice, and their features."""
    n_samples = torch.full((count,), 63 * 160 + 400)
    time = torch.arange(int(n_samples[0])) / 16000
    pitch = 110 * 2 ** (torch.arange(count) / 3)[:, None]
    wavs = torch.sin(2 * math.pi * pitch * time)
    wavs = wavs * (1 + torch.sin(12 * time)) / 4
    feats, n_frames = FrontEnd()(wavs)
    return feats, n_frames, {"wavs": wavs, "n_samples": n_samples}


# Spectra ------------------------------------------------------------------


def test_triangles_sum_to_one_and_have_one_source():
    filters = log_filters()
    totals = torch.stack([matrix.sum(0) for matrix in filters])
    assert torch.allclose(totals.sum(0), torch.ones(84))
    assert ((totals > 0).sum(0) == 1).all()
    sources = totals.argmax(0)
    # High notes of the shortest transform, low ones of the longest.
    assert (sources.diff() <= 0).all() and sources.unique().numel() == 3


@pytest.mark.parametrize("note", [24, 37, 45, 57, 70, 83])
def test_a_note_is_loudest_in_its_band(note):
    hertz = 32.703 * 2 ** (note / 12)
    time = torch.arange(16000) / 16000
    # From the middle on: what is standardized over time tells when it is on.
    wavs = (0.3 * torch.sin(2 * math.pi * hertz * time) * (time > 0.5))[None]
    spectra = LogFrequencySpectra(GRIDS["frame"])
    seen = []
    spectra._at_tokens = lambda x, n_frames: seen.append(x)
    spectra(wavs, torch.tensor([16000]), torch.tensor([98]), 98)
    loudest = seen[0][0, 70:90].mean(0).argmax()
    assert loudest == note
    assert seen[0][0, :40].abs().max() < 1e-4


@geometries
def test_spectra_by_hand(geometry):
    """Frames around the middles of Kaldi's, standardized, then averaged."""
    grid = GRIDS[geometry]
    wav = 0.1 * torch.randn(1, 40 * 160 + 400, generator=seeded())
    n = torch.tensor([wav.shape[1]])
    spectra = LogFrequencySpectra(grid)(wav, n, torch.tensor([41]), 41)
    frames = torch.zeros(41, 84, dtype=torch.float64)
    padded = torch.nn.functional.pad(wav[0], (2048, 2048)).double()
    for size, matrix in zip((512, 1024, 2048), log_filters(), strict=True):
        for frame in range(41):
            middle = 2048 + 200 + 160 * frame
            part = padded[middle - size // 2 : middle + size // 2]
            part = part * torch.hann_window(size, dtype=torch.float64)
            frames[frame] += torch.fft.rfft(part).abs() @ matrix.double()
    frames = frames.log1p()
    frames = (frames - frames.mean(0)) / frames.std(0, unbiased=False)
    size = grid.patch[1]
    for time in range(grid.n_time(41)):
        expected = frames[time * size : (time + 1) * size].mean(0)
        own = spectra.unflatten(1, (grid.n_freq, -1))[0, :, time]
        assert (own - expected).abs().max() < 1e-3


def test_spectra_of_a_clip_do_not_depend_on_padding_or_neighbors():
    grid, n_frames = GRIDS["patch"], torch.tensor(LENGTHS)
    given = sound(n_frames)
    spectra = LogFrequencySpectra(grid)
    n_samples = given["n_samples"]
    loud = given["wavs"].clone()
    for row, count in zip(loud, n_samples.tolist(), strict=True):
        row[count:] = 9.0
    together = spectra(loud, n_samples, n_frames, 160)
    for row, count in enumerate(LENGTHS):
        wav = given["wavs"][row : row + 1, : n_samples[row]]
        own = slice(row, row + 1)
        alone = spectra(wav, n_samples[own], n_frames[own], count)
        n_time = grid.n_time(count)
        part = together[own].unflatten(1, (8, -1))
        assert torch.allclose(
            part[:, :, :n_time].flatten(1, 2), alone, atol=1e-4
        )
        assert (part[:, :, n_time:] == 0).all()
    silent = spectra(torch.zeros_like(loud), n_samples, n_frames, 160)
    assert (silent == 0).all()


def test_other_frames_are_refused():
    objective, (feats, n_frames) = small(), batch()
    given = {"wavs": torch.zeros(3, 8000), "n_samples": torch.full((3,), 8000)}
    with pytest.raises(ValueError, match="pad_frames, got 8000 samples and"):
        objective(feats, n_frames, **given)


# Objective ----------------------------------------------------------------


@geometries
def test_every_geometry_trains(geometry):
    objective, (feats, n_frames) = small(geometry), batch()
    output = objective(feats, n_frames, **sound(n_frames))
    output.loss.backward()
    for key, parameter in objective.named_parameters():
        fixed = key == "encoder.positions.table"
        assert parameter.requires_grad != fixed
        assert fixed or parameter.grad.any(), key


@pytest.mark.parametrize("blocks", ["mamba", "mamba_reference"])
def test_mamba_blocks_train(blocks):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=1, blocks=blocks)
    objective, (feats, n_frames) = load_objective("mert")(encoder), batch((64,))
    objective(feats, n_frames, **sound(n_frames)).loss.backward()
    for key, parameter in objective.named_parameters():
        assert not parameter.requires_grad or parameter.grad.any(), key


@geometries
@torch.no_grad()
def test_the_loss_is_codes_and_the_mean_square_at_masked_tokens(geometry):
    objective = small(geometry, background=NEVER, spectrum_weight=3)
    (feats, n_frames), given = batch(), sound(torch.tensor(LENGTHS))
    mask = objective.draw_mask(feats, n_frames, seeded())
    output = objective(feats, n_frames, mask, **given)
    encoded = objective.encoder(
        feats, n_frames, mask, objective.mask_embedding
    ).tokens
    spectra = objective.spectra(
        given["wavs"], given["n_samples"], n_frames, 160
    )
    ids = objective.tokenizer(feats)
    assert ids.shape[2] == 2
    losses, errors = [], []
    for row in range(3):
        own = mask[row].flatten()
        logits = objective.head(encoded[row, own]).unflatten(1, (2, -1))
        losses.append(
            sum(
                torch.nn.functional.cross_entropy(
                    logits[:, book], ids[row, own, book]
                )
                for book in range(2)
            )
        )
        guess = objective.spectrum_head(encoded[row, own])
        errors.append((guess - spectra[row, own]).square().mean())
    spectrum = torch.stack(errors).mean()
    torch.testing.assert_close(output.logs["spectrum"], spectrum)
    expected = torch.stack(losses).mean() + 3 * spectrum
    torch.testing.assert_close(output.loss, expected)
    # A clip's tokens of whole times: what the mean of the clip gets.
    assert 0.05 < output.logs["spectrum_chance"] < 1.2


@torch.no_grad()
def test_each_clip_masks_its_exact_share():
    objective, (feats, n_frames) = small(), batch()
    mask = objective.draw_mask(feats, n_frames, seeded())
    n_time = objective.encoder.grid.n_time(n_frames)
    wanted = (0.58 * n_time.double()).round().long()
    assert torch.equal(mask.sum((1, 2)), wanted)


@torch.no_grad()
def test_the_encoder_hears_a_background_and_the_targets_do_not():
    objective, (feats, n_frames) = small(background=ALWAYS), batch()
    given = sound(n_frames)
    mask = objective.draw_mask(feats, n_frames, seeded())
    heard, coded = [], []
    objective.encoder.register_forward_hook(
        lambda _, inputs, output: heard.append(inputs[0])
    )
    objective.tokenizer.register_forward_hook(
        lambda _, inputs, output: coded.append(inputs[0])
    )
    logs = [objective(feats, n_frames, mask, **given).logs for _ in range(2)]
    objective.eval()
    quiet = objective(feats, n_frames, mask, **given)
    assert torch.equal(heard[2], feats)
    for row, count in enumerate(LENGTHS):
        assert (heard[0][row, :33] != feats[row, :33]).any()
        assert (heard[0][row, count:] == 0).all()
    for x in coded:
        assert torch.equal(x, feats)
    assert logs[0]["spectrum_chance"] == quiet.logs["spectrum_chance"]


@geometries
@torch.no_grad()
def test_masked_pixels_do_not_leak(geometry):
    objective, (feats, n_frames) = small(geometry).eval(), batch()
    given = sound(n_frames)
    mask = objective.draw_mask(feats, n_frames, seeded())
    grid = objective.encoder.grid
    hidden = mask.flatten(1)[:, :, None].expand(-1, -1, grid.patch_size)
    hidden = grid.fold(hidden.float(), 160) > 0
    beyond = torch.arange(160) >= n_frames[:, None]
    other = torch.where(hidden | beyond[:, :, None], 9.0, feats)
    seen = []
    objective.losses = lambda outputs, *_: seen.append(outputs) or stop()
    for clips in (feats, other):
        with pytest.raises(StopIteration):
            objective(clips, n_frames, mask, **given)
    assert torch.equal(*seen)


def stop():
    raise StopIteration


@pytest.mark.parametrize("count", ["none", "one", "all but one"])
def test_any_number_of_masked_tokens_is_finite(count):
    objective, (feats, n_frames) = small("patch"), batch((64, 33))
    mask = torch.zeros(2, 8, 4).bool()
    if count == "one":
        mask[:, 3, 1] = True
    if count == "all but one":
        mask[0], mask[1, :, :3] = True, True
        mask[:, 0, 0] = False
    output = objective(feats, n_frames, mask, **sound(n_frames))
    output.loss.backward()
    assert (output.loss == 0) == (count == "none")
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in trained)


@torch.no_grad()
def test_validation_is_a_function_of_the_clip():
    objective, (feats, n_frames) = small().eval(), batch()
    given, keys = sound(n_frames), torch.tensor([3, 1, 4])
    total = 0
    for row, count in enumerate(LENGTHS):
        own = slice(row, row + 1)
        n_samples = given["n_samples"][own]
        total += objective(
            feats[own, :count],
            n_frames[own],
            clip_keys=keys[own],
            wavs=given["wavs"][own, : int(n_samples)],
            n_samples=n_samples,
        ).loss.item()
    together = objective(feats, n_frames, clip_keys=keys, **given)
    assert together.loss.item() == pytest.approx(total / 3, rel=1e-5)


def optimize(objective, clips, steps, optimizer=None, first=0):
    if optimizer is None:
        optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    feats, n_frames, given = clips
    history = []
    for step in range(first, first + steps):
        draw = seeded(step)
        output = objective(feats, n_frames, generator=draw, **given)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append({"loss": output.loss.item(), **output.logs})
    return history


def test_both_errors_fall_and_nothing_collapses():
    # At weight 1 the cross-entropies of 2 x 1,024 codes come first.
    codes = {"name": "RandomProjectionTokenizer", "n_codes": 32, "n_books": 2}
    objective, clips = small(spectrum_weight=10, tokenizer=codes), songs()
    history = optimize(objective, clips, steps=50)
    first, last = history[0], history[-1]
    assert last["cross_entropy"] < 0.6 * first["cross_entropy"]
    assert last["spectrum"] < 0.75 * last["spectrum_chance"]
    with torch.no_grad():
        vectors = objective.encoder(*clips[:2]).clip()
    assert effective_rank(vectors - vectors.mean(0)) > 2


@pytest.mark.slow
def test_the_loss_falls_on_eight_clips():
    history = optimize(small(), songs(), steps=30)
    assert history[-1]["loss"] < 0.75 * history[0]["loss"]


def test_a_resumed_run_equals_one_that_was_not_stopped():
    clips, whole, first = songs(2), small(), small()
    optimize(whole, clips, steps=4)
    optimizer = torch.optim.AdamW(first.parameters(), lr=2e-3)
    optimize(first, clips, 2, optimizer)
    config = json.loads(json.dumps(first.config))
    second = type(first)(small().encoder, **config)
    second.load_state_dict(first.state_dict())
    resumed = torch.optim.AdamW(second.parameters(), lr=2e-3)
    resumed.load_state_dict(optimizer.state_dict())
    optimize(second, clips, 2, resumed, first=2)
    expected = whole.state_dict()
    for key, value in second.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_an_export_brings_heads_and_settings(tmp_path):
    former = small()
    export_pretrained(tmp_path / "export", former, FrontEnd(), card={})
    weights = load_weights(tmp_path / "export")
    config = dict(weights.config["objective"])
    assert config.pop("name") == "MERT"
    torch.manual_seed(1)
    again = type(former)(
        SpectrogramEncoder(
            GRIDS["frame"], dim=32, depth=2, heads=2, table_frames=160
        ),
        **config,
    )
    assert again.config == former.config
    initialize(again.encoder, weights, again)
    new, old = again.state_dict(), former.exported_state()
    assert not any("tokenizer" in key or "filters" in key for key in old)
    assert all(torch.equal(new[key], value) for key, value in old.items())


def test_the_lobe_gives_it_the_waveforms():
    objective = small()
    wavs = 0.1 * torch.randn(2, 16000, generator=seeded())
    lobe = PretrainingLobe(objective, FrontEnd())
    output = lobe(wavs, torch.tensor([1.0, 0.5]), crop_starts=torch.zeros(2))
    output.loss.backward()
    assert output.loss.isfinite()
    keyed = lobe(wavs, torch.tensor([1.0, 0.5]), clip_keys=torch.arange(2))
    assert keyed.n_clips == 2
