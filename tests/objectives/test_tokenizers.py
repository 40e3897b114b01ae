"""Tokenizers: codes that are a function of their patch alone, and their use."""

import math

import pytest
import torch

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.tokenizers import (
    KMeansTokenizer,
    RandomProjectionTokenizer,
    fit_kmeans,
    make_features,
    make_tokenizer,
)

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
    used, entropy = fit_kmeans(features, x, file, 4)
    assert (used, entropy) == (1.0, pytest.approx(1.0))
    ids = KMeansTokenizer(grid, [file])(clip(9))[0, :, 0]
    assert len({*zip(kinds.tolist(), ids.tolist(), strict=True)}) == 4
    with pytest.raises(ValueError, match="was fitted for .* the encoder has"):
        KMeansTokenizer(GRIDS["patch"], [file])


def test_collapsed_codes_are_refused(tmp_path):
    x = noise(3, 16).repeat(4, 1)
    file = tmp_path / "codes.safetensors"
    features = make_features("logmel", Grid())
    with pytest.raises(ValueError, match="collapsed: 38 % of 8 are used"):
        fit_kmeans(features, x, file, 8)
    assert not file.exists()
    with pytest.raises(ValueError, match="need as many tokens, there are 12"):
        fit_kmeans(features, x, file, 13)


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
    # What is guessed by one who knows how frequent the codes of a book are.
    counts = torch.stack(
        [
            torch.bincount(torch.cat([ids[0, :, b], ids[1, :2, b]]), None, 16)
            for b in range(2)
        ]
    )
    frequency = counts / counts.sum(1, keepdim=True)
    assert output.logs["accuracy_chance"] == frequency.amax(1).mean()
    assert output.logs["codes_used"] == (counts > 0).float().mean()
    assert output.logs["codes_used_lately"] == output.logs["codes_used"]
    chance = -(frequency * frequency.clamp(min=1e-9).log()).sum(1).mean()
    torch.testing.assert_close(output.logs["cross_entropy_chance"], chance)


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
