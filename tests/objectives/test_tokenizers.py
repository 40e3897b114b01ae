"""Tokenizers: codes that are a function of their patch alone, and their use."""

import math

import pytest
import torch

from ssast_lobes import FrontEnd, Grid, PretrainingLobe, SpectrogramEncoder
from ssast_lobes.models.beats import BEATsEncoder
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.tokenizers import (
    CodeChance,
    CodeUsage,
    KMeansTokenizer,
    RandomProjectionTokenizer,
    StoredTokenizer,
    code_frequency,
    fit_kmeans,
    make_features,
    make_tokenizer,
)
from ssast_lobes.objectives.tokenizers.stored import write_stored_config

GRIDS = {"patch": Grid(), "frame": Grid(128, (128, 2))}


def noise(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", ["layer", "l2"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_random_codes_are_the_nearest_of_their_patch(grid, norm):
    """The definition, token by token, in float64."""
    tokenizer = RandomProjectionTokenizer(grid, 32, 8, n_books=2, norm=norm)
    feats = noise(2, 40, 128)
    ids = tokenizer(feats)
    assert ids.dtype == torch.int64
    assert ids.shape == (2, grid.unfold(feats).shape[1], 2)
    for place in ((0, 0), (1, ids.shape[1] - 1)):
        patch = grid.unfold(feats)[place].double()
        for book in range(2):
            x = patch @ tokenizer.projection0[book].double()
            if norm == "layer":
                x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
                x = x @ tokenizer.projection1[book].double()
                x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
            else:
                x = x / x.norm()
            distance = (tokenizer.codes[book].double() - x).norm(dim=1)
            assert ids[place][book] == distance.argmin()


def test_centered_codes_do_not_know_how_loud_a_patch_is():
    tokenizer = RandomProjectionTokenizer(Grid(), 64, 16, center=True)
    feats = noise(2, 48, 128)
    assert torch.equal(tokenizer(feats), tokenizer(feats + 3.0))
    plain = RandomProjectionTokenizer(Grid(), 64, 16)
    assert not torch.equal(plain(feats), plain(feats + 3.0))


def test_a_seed_gives_the_same_codes_whatever_was_drawn_before():
    one = RandomProjectionTokenizer(Grid(), seed=3)
    torch.rand(7)
    other = make_tokenizer(one.config, Grid())
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    another = RandomProjectionTokenizer(Grid(), seed=4)
    assert not torch.equal(one.codes, another.codes)
    assert not list(one.parameters())


def test_cepstra_are_those_of_the_mean_frame():
    grid = GRIDS["patch"]
    feats = noise(1, 35, 128)
    cepstra = make_features("cepstra", grid)(feats).unflatten(1, (8, -1))
    assert torch.equal(cepstra, cepstra[:, :1].expand_as(cepstra))
    mean = feats[0, 16:32].mean(0)
    n = torch.arange(128)
    for row in (1, 20):
        cosine = torch.cos(math.pi / 128 * (n + 0.5) * row) * (2 / 128) ** 0.5
        expected = (mean * cosine).sum()
        assert cepstra[0, 0, 1, row - 1] == pytest.approx(
            expected.item(), abs=1e-5
        )


@pytest.mark.parametrize("features", ["logmel", "cepstra"])
def test_kmeans_finds_kinds_of_sound(features, tmp_path):
    """Frames of four spectra get four codes, also ones it has not met."""
    grid, spectra = GRIDS["frame"], 3 * noise(4, 128)
    kinds = torch.arange(24) % 4

    def clip(seed):
        frames = spectra[kinds].repeat_interleave(2, dim=0)
        return (frames + 0.3 * noise(48, 128, seed=seed))[None]

    file = tmp_path / "codes.safetensors"
    clips = torch.cat([clip(seed) for seed in range(4)])
    features = make_features(features, grid)
    x = features(clips).flatten(0, 1)
    used, entropy = fit_kmeans(features, x, file, 4, FrontEnd())
    assert (used, entropy) == (1.0, pytest.approx(1.0))
    ids = KMeansTokenizer(grid, [file])(clip(9))[0, :, 0]
    assert len({*zip(kinds.tolist(), ids.tolist(), strict=True)}) == 4
    with pytest.raises(ValueError, match="was fitted for .*, not {.*16, 16"):
        KMeansTokenizer(GRIDS["patch"], [file])


def sines(hertz, seconds=1.0):
    """Clips (B, S) of a tone each, and their lengths."""
    time = torch.arange(round(16000 * seconds)) / 16000
    wavs = (2 * math.pi * torch.tensor(hertz)[:, None] * time).sin()
    return wavs, torch.full((len(hertz),), wavs.shape[1])


def test_chroma_tells_pitch_classes_at_their_time():
    """C in all octaves, then A, in the middle of a clip with padding."""
    chroma = make_features("chroma", GRIDS["patch"])
    wavs, n_samples = sines([130.81, 261.63, 1046.5, 4186.0, 440.0])
    wavs[3, 8000:] = sines([440.0])[0][0, 8000:]
    wavs[4, 8000:] = 99.0
    n_samples[4] = 8000
    x = chroma(torch.zeros(5, 98, 128), None, wavs, n_samples)
    assert x.shape == (5, 8 * 7, 12)
    x = x.unflatten(1, (8, 7))
    assert torch.equal(x, x[:, :1].expand_as(x))
    # The last token begins 25 ms before the end.
    found = x[:, 0, :6].argmax(2)
    assert (found[:3] == 0).all()
    assert found[3].tolist() == [0, 0, 0, 9, 9, 9]
    # Of what lies behind the end of a clip nothing is heard.
    assert found[4, :3].tolist() == [9, 9, 9]
    assert (x[4, :, 4:] == 0).all()
    silent = chroma(torch.zeros(1, 98, 128), None, *sines([0.0]))
    assert (silent == 0).all()


def test_frames_of_an_encoder_are_those_nearest_in_time():
    """Of an encoder with 60 ms a step, for a student with 30 ms."""
    torch.manual_seed(0)
    frozen = SpectrogramEncoder(
        Grid(64, (32, 6)), dim=32, depth=3, heads=2, drop_path=0.5
    )
    features = FrontEnd(n_mels=64)
    grid = Grid(128, (64, 3))
    block = make_features(
        "block",
        grid,
        encoder=frozen.config,
        features=features.config,
        block=2,
    ).train()
    own = frozen.state_dict()
    block.encoder.load_state_dict(
        {key: own[key] for key in block.encoder.state_dict()}
    )
    wavs, n_samples = noise(2, 16000), torch.tensor([16000, 9000])
    x = block(torch.zeros(2, 98, 128), None, wavs, n_samples)
    feats, n_frames = features(wavs, n_samples / 16000)
    output = frozen.eval()(feats, n_frames, hidden_states=True)
    hidden = output.hidden_states[2].unflatten(1, (2, -1)).mean(1)
    middle = 0.0125 + 0.01 + 0.03 * torch.arange(33)
    theirs = 0.0125 + 0.025 + 0.06 * torch.arange(hidden.shape[1])
    for clip, steps in enumerate(output.n_time.tolist()):
        distance = (middle[:, None] - theirs[:steps]).abs()
        expected = hidden[clip, distance.argmin(1)]
        for band in x[clip].unflatten(0, (2, -1)):
            torch.testing.assert_close(band, expected)
    with pytest.raises(ValueError, match="block must be .* got 4"):
        make_features("block", grid, **{**block.config, "block": 4})


def test_a_block_of_beats_is_the_same_when_it_is_loaded(tmp_path):
    """The scale of its blocks depends on how many the encoder has."""
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 6, "heads": 2, "patch_dim": 24}
    sizes |= {"kernel": 8, "groups": 4, "buckets": 16}
    frozen = BEATsEncoder(Grid(), **sizes).eval()
    block = make_features(
        "block",
        Grid(),
        encoder=frozen.config,
        features=FrontEnd().config,
        block=2,
    )
    own = frozen.state_dict()
    needed = block.encoder.state_dict()
    block.encoder.load_state_dict({key: own[key] for key in needed})
    wavs, n_samples = noise(4, 16000), torch.full((4,), 16000)
    feats, n_frames = FrontEnd()(wavs)
    x = block(feats, n_frames, wavs, n_samples)
    hidden = frozen(feats, n_frames, hidden_states=True).hidden_states[2]
    expected = hidden.unflatten(1, (8, -1)).mean(1)
    torch.testing.assert_close(x.unflatten(1, (8, -1))[:, 0], expected)
    file = tmp_path / "block.safetensors"
    fit_kmeans(block, x.flatten(0, 1), file, 8, FrontEnd())
    book = KMeansTokenizer(Grid(), [file]).books[0]
    again = book.features(feats, n_frames, wavs, n_samples)
    assert torch.equal(again, x)


def test_codes_of_another_front_end_are_refused(tmp_path):
    files = {}
    for name, statistics in (("a", "audioset"), ("b", "esc50")):
        features = make_features("cepstra", Grid())
        files[name] = tmp_path / name
        x = noise(64, 20)
        fit_kmeans(features, x, files[name], 4, FrontEnd(statistics))
    encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    tokenizer = KMeansTokenizer(Grid(), [files["a"]])
    objective = load_objective("beats")(encoder, tokenizer=tokenizer)
    assert PretrainingLobe(objective, FrontEnd())
    assert PretrainingLobe(objective, FrontEnd(pad_frames=200))
    with pytest.raises(ValueError, match=r"/a was .*other statistics .*-6\."):
        PretrainingLobe(objective, FrontEnd("esc50"))
    bins = {"mean": [-4.0] * 128, "std": [4.0] * 128}
    with pytest.raises(ValueError, match="front end of the pretraining: its"):
        PretrainingLobe(objective, FrontEnd(bins))
    with pytest.raises(ValueError, match="/b was fitted with another stat.*/a"):
        KMeansTokenizer(Grid(), list(files.values()))


def test_files_are_books(tmp_path):
    """Each book has the ids that its file has alone, whatever its size."""
    grid, feats = GRIDS["patch"], noise(2, 64, 128)
    files = {}
    for name, n_codes in (("logmel", 5), ("cepstra", 5), ("chroma", 4)):
        files[name] = str(tmp_path / name)
        features = make_features(name, grid)
        audio = sines([220.0, 330.0, 440.0, 495.0], 0.65)
        audio = audio if features.needs_audio else ()
        x = features(noise(4, 64, 128, seed=1), None, *audio)
        fit_kmeans(features, x.flatten(0, 1), files[name], n_codes, FrontEnd())
    both = KMeansTokenizer(grid, [files["logmel"], files["cepstra"]])
    assert both.n_books == 2 and not both.needs_audio
    ids = both(feats)
    for book, name in enumerate(("logmel", "cepstra")):
        alone = make_tokenizer(
            {"name": "KMeansTokenizer", "files": [files[name]]}, grid
        )
        assert torch.equal(ids[:, :, book], alone(feats)[:, :, 0])
    again = make_tokenizer(both.config, grid)
    assert torch.equal(again(feats), ids)
    unlike = KMeansTokenizer(grid, [files["chroma"], files["logmel"]])
    assert unlike.n_codes == 5 and unlike.needs_audio
    wavs, n_samples = sines([220.0, 495.0], 0.65)
    found = unlike(feats, None, wavs=wavs, n_samples=n_samples)
    assert torch.equal(found[:, :, 1], ids[:, :, 0])
    assert found[:, :, 0].max() < 4


def test_collapsed_codes_are_refused(tmp_path):
    x = noise(3, 16).repeat(4, 1)
    file = tmp_path / "codes.safetensors"
    features = make_features("logmel", Grid())
    with pytest.raises(ValueError, match="collapsed: 38 % of 8 are used"):
        fit_kmeans(features, x, file, 8, FrontEnd())
    assert not file.exists()
    with pytest.raises(ValueError, match="need as many tokens, there are 12"):
        fit_kmeans(features, x, file, 13, FrontEnd())


@pytest.mark.parametrize(
    "tokenizer, message",
    [
        ("beats", "must be a class, !name:CLASS"),
        ({"name": "Own"}, "must be a class, !name:CLASS"),
        (
            {"name": "KMeansTokenizer", "files": ["nowhere"]},
            "nowhere is no file of",
        ),
        ({"name": "KMeansTokenizer", "files": "a"}, "files must be a list"),
        (
            {"name": "RandomProjectionTokenizer", "codes": 3},
            "unexpected keyword",
        ),
        (
            {"name": "RandomProjectionTokenizer", "n_codes": 1},
            "n_codes must be",
        ),
        (
            {"name": "RandomProjectionTokenizer", "norm": "batch"},
            "norm must be",
        ),
    ],
)
def test_wrong_tokenizers_are_told(tokenizer, message):
    with pytest.raises(ValueError, match=message):
        make_tokenizer(tokenizer, Grid())


def test_the_loss_is_that_of_torch():
    """Label smoothing, books and clips of unlike numbers of masked tokens."""
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    tokenizer = RandomProjectionTokenizer(encoder.grid, 16, 8, n_books=2)
    objective = load_objective("beats")(encoder, tokenizer=tokenizer)
    outputs = noise(2, 5, objective.decoder.dim)
    ids = torch.randint(0, 16, (2, 5, 2))
    weight = torch.tensor([[1.0] * 5, [1.0, 1.0, 0.0, 0.0, 0.0]])
    output = objective.losses(outputs, ids, weight)
    logits = objective.head(outputs).unflatten(2, (2, 16))
    each = torch.nn.functional.cross_entropy(
        logits.flatten(0, 2),
        ids.flatten(),
        label_smoothing=0.1,
        reduction="none",
    )
    each = each.unflatten(0, (2, 5, 2)).sum(2)
    expected = (each[0].mean() + each[1, :2].mean()) / 2
    torch.testing.assert_close(output.loss, expected)
    # Before the first batch all codes are equally likely, and the first is
    # guessed.
    logs = output.logs
    assert logs["cross_entropy_chance"].item() == pytest.approx(math.log(16))
    first = (ids == 0).float().mean(2)
    first = (first[0].mean() + first[1, :2].mean()) / 2
    torch.testing.assert_close(logs["accuracy_chance"], first)
    counts = torch.stack(
        [
            torch.bincount(torch.cat([ids[0, :, b], ids[1, :2, b]]), None, 16)
            for b in range(2)
        ]
    )
    assert output.logs["codes_used"] == (counts > 0).float().mean()
    assert output.logs["codes_recently_used"] == output.logs["codes_used"]
    # The next batch is guessed by one who knows this batch.
    frequency = (counts / counts.sum(1, keepdim=True) + 1 / 16) / 2
    logs = objective.losses(outputs, ids, weight).logs
    books = torch.arange(2)
    surprise = -frequency[books, ids].log().mean(2)
    surprise = (surprise[0].mean() + surprise[1, :2].mean()) / 2
    torch.testing.assert_close(logs["cross_entropy_chance"], surprise)
    right = (ids == frequency.argmax(1)).float().mean(2)
    right = (right[0].mean() + right[1, :2].mean()) / 2
    torch.testing.assert_close(logs["accuracy_chance"], right)


@pytest.mark.parametrize("n_codes, n_used", [(500, 500), (8192, 100)])
def test_chance_is_that_of_the_source_though_batches_are_small(n_codes, n_used):
    """A batch has 20 tokens: its own entropy is far too low."""
    chance = CodeChance(1, n_codes)
    draw = torch.Generator().manual_seed(0)
    told = []
    for _ in range(300):
        ids = torch.randint(0, n_used, (1, 20, 1), generator=draw)
        told.append(chance(ids)[0].mean())
        chance.record(code_frequency(ids, n_codes, torch.ones(1, 20)))
    error = torch.stack(told[100:]).mean() - math.log(n_used)
    assert 0 < error < 0.5 < math.log(n_used) - math.log(20)


def test_chance_is_never_worse_than_equally_likely_codes():
    """Of 8,192 codes a hundred batches of ten tokens met few."""
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    tokenizer = RandomProjectionTokenizer(encoder.grid, 8192, 8)
    objective = load_objective("best_rq")(encoder, tokenizer=tokenizer)
    for _ in range(100):
        ids = torch.randint(0, 8192, (2, 5, 1))
        logs = objective.losses(noise(2, 5, 32), ids, torch.ones(2, 5)).logs
    assert logs["cross_entropy_chance"].item() == pytest.approx(math.log(8192))


def test_replaced_tokens_do_not_show():
    """BEST-RQ: what lies under the mask reaches the codes, not the encoder."""
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    objective = load_objective("best_rq")(encoder).eval()
    feats, n_frames = noise(1, 64, 128), torch.tensor([64])
    mask = torch.zeros(1, 8, 4, dtype=torch.bool)
    mask[0, :, 1] = True
    seen = []
    objective.losses = lambda outputs, *_: seen.append(outputs)
    objective(feats, n_frames, mask)
    other = feats.clone()
    other[:, 16:32] = 7
    objective(other, n_frames, mask)
    assert torch.equal(*seen)


def test_usage_is_that_of_the_last_hundred_batches(caplog):
    usage = CodeUsage(1, 20)
    one = torch.zeros(1, 20)
    one[0, 3] = 1.0
    other = one.roll(1, 1)
    assert usage(other) == pytest.approx(0.05)
    assert usage(one) == pytest.approx(0.1)
    # Validation changes nothing.
    assert usage.eval()(one.roll(2, 1)) == pytest.approx(0.1)
    usage.train()
    for _ in range(99):
        used = usage(one)
    assert used == pytest.approx(0.05)
    usage.warn_of_collapse(100, 900)
    assert not caplog.records
    usage.warn_of_collapse(200, 900)
    message = "Few codes occur: 5.0 % of 20 are used in 100 batches"
    assert message in caplog.text


def test_a_collapsed_book_stops_the_training():
    """Also next to a sound one; but not codes that are few."""
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    tokenizer = RandomProjectionTokenizer(encoder.grid, 1000, 8, n_books=2)
    objective = load_objective("best_rq")(encoder, tokenizer=tokenizer)
    outputs, weight = noise(2, 5, 32), torch.ones(2, 5)
    # Nothing is known yet.
    objective.after_step(200, 900)
    ids = torch.tensor([0, 0, 0, 0, 1]).repeat(2, 1)[..., None].repeat(1, 1, 2)
    objective.losses(outputs, ids, weight)
    objective.after_step(200, 900)
    ids[..., 1] = 7
    for _ in range(500):
        objective.losses(outputs, ids, weight)
    objective.after_step(199, 900)
    with pytest.raises(ValueError, match="book 2 of 2 has collapsed.*same"):
        objective.after_step(200, 900)


@pytest.mark.parametrize("kind", ["chroma", "stored"])
def test_audio_of_another_rate_is_refused(kind, tmp_path):
    grid = Grid(128, (128, 4))
    if kind == "stored":
        write_stored_config(tmp_path, rate=75, n_books=1, n_codes=8)
        tokenizer = StoredTokenizer(grid, tmp_path)
    else:
        features, file = make_features(kind, grid), tmp_path / "chroma.codes"
        fit_kmeans(features, torch.rand(64, 12), file, 4, FrontEnd())
        tokenizer = KMeansTokenizer(grid, [file])
    encoder = SpectrogramEncoder(grid, dim=32, depth=1, heads=2)
    objective = load_objective("beats")(encoder, tokenizer=tokenizer)
    assert PretrainingLobe(objective, FrontEnd())
    with pytest.raises(ValueError, match="audio at 16000 Hz.*takes 32000"):
        PretrainingLobe(objective, FrontEnd(sample_rate=32000))
