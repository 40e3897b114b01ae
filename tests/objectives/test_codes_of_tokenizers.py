"""`Codes` with every tokenizer, from waveforms to the loss."""

import copy
import math

import numpy as np
import pytest
import torch
from processes import run_processes
from torch.nn.parallel import DistributedDataParallel

from ssast_lobes import FrontEnd, Grid, PretrainingLobe, SpectrogramEncoder
from ssast_lobes.checkpoints.folder import export_pretrained
from ssast_lobes.objectives import Codes, load_objective
from ssast_lobes.objectives.tokenizers import fit_kmeans, make_features
from ssast_lobes.objectives.tokenizers.stored import write_stored_config
from ssast_lobes.utils.metrics import effective_rank

GRID = Grid(128, (64, 4))
TOKENIZERS = ["books", "block", "stored", "quantizer"]
SECONDS = [0.65, 0.65, 0.4, 0.5, 0.65, 0.3, 0.6, 0.65]


def encoder_of(seed, blocks="attention", **arguments):
    torch.manual_seed(seed)
    return SpectrogramEncoder(
        GRID, dim=32, depth=2, heads=2, table_frames=80, **arguments
    )


def batch():
    """Eight clips, each a melody of its own, as a batch of a Brain has them."""
    draw = torch.Generator().manual_seed(0)
    time = torch.arange(10400) / 16000
    notes = torch.randint(0, 24, (8, 5), generator=draw)
    hertz = 220 * 2 ** (notes / 12)
    hertz = hertz.repeat_interleave(2080, dim=1)
    wavs = (2 * math.pi * hertz * time).sin()
    wavs += 0.01 * torch.randn(8, 10400, generator=draw)
    lengths = torch.tensor([round(16000 * each) for each in SECONDS])
    wavs *= torch.arange(10400) < lengths[:, None]
    place = {
        "clip_ids": [f"{row}.wav" for row in range(8)],
        "crop_starts": torch.arange(8) * 800,
    }
    return wavs, lengths / 10400, place


def make(folder):
    """The files of all tokenizers; gives their configurations."""
    wavs, wav_lens, _ = batch()
    feats, n_frames = FrontEnd()(wavs)
    audio = {"wavs": wavs, "n_samples": torch.full((8,), 10400)}
    frozen = encoder_of(5)
    block = {
        "encoder": frozen.config,
        "features": FrontEnd().config,
        "block": 1,
    }
    for name, more in (("cepstra", {}), ("chroma", {}), ("block", block)):
        features = make_features(name, GRID, **more)
        x = features(feats, n_frames, **audio if features.needs_audio else {})
        file = folder / name
        fit_kmeans(features, x.flatten(0, 1), file, 8, FrontEnd())
    write_stored_config(folder / "ids", rate=75, n_books=3, n_codes=10)
    for row in range(8):
        rng = np.random.default_rng(row)
        ids = rng.integers(10, size=(12, 3)).repeat(8, axis=0)
        np.save(folder / f"ids/{row}.wav.npy", ids.astype(np.int16))
    numbers = {"n_codes": 8, "dim": 8}
    quantizer = load_objective("vector_quantizer")(encoder_of(6), **numbers)
    quantizer(feats, n_frames)
    export_pretrained(folder / "quantizer", quantizer, FrontEnd(), card={})
    kmeans = {"name": "KMeansTokenizer"}
    return {
        "books": {
            **kmeans,
            "files": [str(folder / "cepstra"), str(folder / "chroma")],
        },
        "block": {**kmeans, "files": [str(folder / "block")]},
        "stored": {"name": "StoredTokenizer", "folder": str(folder / "ids")},
        "quantizer": {
            "name": "VectorQuantizerTokenizer",
            "folder": str(folder / "quantizer"),
        },
    }


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tokenizers"))


def lobe_of(tokenizer, preset="beats", **arguments):
    encoder = encoder_of(0, **arguments)
    objective = load_objective(preset)(encoder, tokenizer=tokenizer)
    return PretrainingLobe(objective, FrontEnd())


def call(lobe, rows=slice(None), keys=None):
    wavs, wav_lens, place = batch()
    place = {key: value[rows] for key, value in place.items()}
    keys = torch.arange(8) if keys is None else keys
    return lobe(wavs[rows], wav_lens[rows], keys[rows], **place)


def optimize(lobe, steps, optimizer=None, first=0):
    trained = [p for p in lobe.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(trained, lr=2e-3)
    history = []
    for step in range(first, first + steps):
        output = call(lobe, keys=torch.arange(8) + 100 * step)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append(output)
    return history, optimizer


names = pytest.mark.parametrize("name", TOKENIZERS)
presets = pytest.mark.parametrize("preset", ["beats", "best_rq"])


@names
@presets
@pytest.mark.parametrize(
    "blocks", ["attention", pytest.param("mamba", marks=pytest.mark.slow)]
)
def test_every_tokenizer_trains(configs, name, preset, blocks):
    lobe = lobe_of(configs[name], preset, blocks=blocks)
    output = call(lobe)
    output.loss.backward()
    assert output.loss.isfinite() and output.n_clips == 8
    assert output.logs["codes_used"] > 0.5
    for key, parameter in lobe.named_parameters():
        if ".tokenizer." in key:
            assert not parameter.requires_grad
        elif parameter.requires_grad:
            assert parameter.grad.any() and parameter.grad.isfinite().all(), key


@names
def test_any_number_of_masked_tokens_is_finite(configs, name):
    lobe = lobe_of(configs[name])
    for count in (0, 1, 31):
        wavs, wav_lens, place = batch()
        feats, n_frames = lobe.features(wavs, wav_lens)
        items = {"wavs": wavs, "n_samples": (wav_lens * 10400).round().long()}
        mask = torch.zeros(8, 2, 16).bool()
        mask[0].flatten()[:count] = True
        output = lobe.objective(feats, n_frames, mask, **items, **place)
        assert output.loss.isfinite() and (output.loss == 0) == (count == 0)


@names
@torch.no_grad()
def test_a_clip_does_not_depend_on_its_neighbors(configs, name):
    lobe = lobe_of(configs[name]).eval()
    together = call(lobe).loss
    alone = [call(lobe, slice(row, row + 1)).loss for row in range(8)]
    torch.testing.assert_close(together, sum(alone) / 8)


@names
def test_no_pixel_that_is_masked_reaches_the_encoder(configs, name):
    """Whatever the tokenizer hears, its ids carry no gradient."""
    lobe = lobe_of(configs[name])
    seen = []
    lobe.features.register_forward_hook(
        lambda _, given, output: seen.append(output[0].requires_grad_())
    )
    masks = []
    draw = lobe.objective.draw_mask
    lobe.objective.draw_mask = lambda *args, **named: (
        masks.append(draw(*args, **named)) or masks[0]
    )
    call(lobe).loss.backward()
    moved = GRID.unfold(seen[0].grad).abs().sum(2)
    masked = masks[0].flatten(1)
    assert (moved[masked] == 0).all() and moved[~masked].any()


@pytest.mark.slow
@names
@presets
def test_it_learns_without_collapse_and_resumes(configs, preset, name):
    """Fifty steps; the same again, stopped after two and rebuilt."""
    lobe = lobe_of(configs[name], preset)
    history, _ = optimize(lobe, 4)
    part = lobe_of(configs[name], preset)
    _, optimizer = optimize(part, 2)
    encoder = encoder_of(9)
    rebuilt = Codes(encoder, **copy.deepcopy(part.objective.config))
    resumed = PretrainingLobe(rebuilt, FrontEnd())
    resumed.load_state_dict(part.state_dict())
    trained = [p for p in resumed.parameters() if p.requires_grad]
    again = torch.optim.AdamW(trained, lr=2e-3)
    again.load_state_dict(optimizer.state_dict())
    optimize(resumed, 2, again, first=2)
    expected = lobe.state_dict()
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, expected[key]), key
    more, _ = optimize(lobe, 46)
    first, last = history[0], more[-1]
    print(name, first.loss.item(), last.loss.item())
    assert last.loss < 0.85 * first.loss
    wavs, wav_lens, _ = batch()
    with torch.no_grad():
        clips = lobe.objective.encoder(*lobe.features(wavs, wav_lens)).clip()
    assert effective_rank(clips - clips.mean(0)) > 2


def gradients(tokenizer, rows=slice(None), parallel=None):
    lobe = lobe_of(tokenizer)
    # It has to live until the gradients are joined.
    module = lobe if parallel is None else parallel(lobe)
    call(module, rows).loss.backward()
    return {
        key: p.grad for key, p in lobe.named_parameters() if p.requires_grad
    }


def all_gradients(rank, folder, configs):
    own = slice(4 * rank, 4 * rank + 4)
    return {
        name: gradients(config, own, DistributedDataParallel)
        for name, config in configs.items()
    }


@pytest.mark.slow
def test_two_processes_are_one(configs, tmp_path):
    parts = run_processes(all_gradients, 2, tmp_path, configs)
    for name, config in configs.items():
        for key, value in gradients(config).items():
            for part in parts:
                assert (part[name][key] - value).abs().max() < 1e-6, key
