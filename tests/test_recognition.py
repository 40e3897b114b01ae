"""Speech recognition: the loss, the best path, the vocabulary, and learning."""

import itertools
import math

import pytest
import torch

from ssast_lobes import FrontEnd, SpectrogramEncoder
from ssast_lobes.data.manifest import ManifestError
from ssast_lobes.data.vocabulary import Vocabulary
from ssast_lobes.recognition import (
    SpectrogramRecognizer,
    ctc_loss,
    greedy_units,
)

BLANK = 2


def collapse(path):
    """Units of a path: repeats merged, then blanks left out."""
    merged = [unit for unit, _ in itertools.groupby(path)]
    return [unit for unit in merged if unit != BLANK]


def scores(batch, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps, 3, generator=generator).log_softmax(-1)


@pytest.mark.parametrize("units", [[0], [0, 1], [1, 1], [0, 1, 0]])
def test_loss_is_that_of_all_paths(units):
    log_probabilities = scores(1, 5)
    n_steps = torch.tensor([4])
    total = 0.0
    for path in itertools.product(range(3), repeat=4):
        if collapse(path) == units:
            places = zip(range(4), path, strict=True)
            total += math.exp(
                sum(log_probabilities[0, t, u].item() for t, u in places)
            )
    loss = ctc_loss(log_probabilities, n_steps, [units], BLANK)
    assert loss.item() == pytest.approx(-math.log(total) / len(units), rel=1e-5)


def test_loss_is_the_mean_of_the_clips_alone():
    log_probabilities = scores(3, 6)
    n_steps, targets = torch.tensor([6, 3, 4]), [[0, 1, 1], [1], []]
    alone = [
        ctc_loss(
            log_probabilities[i : i + 1, :n],
            n_steps[i : i + 1],
            [targets[i]],
            BLANK,
        )
        for i, n in enumerate(n_steps.tolist())
    ]
    together = ctc_loss(log_probabilities, n_steps, targets, BLANK)
    assert together.item() == pytest.approx(sum(alone).item() / 3, rel=1e-6)


def test_clip_with_fewer_steps_than_units_adds_nothing():
    log_probabilities = scores(2, 4).requires_grad_()
    n_steps = torch.tensor([2, 4])
    # Two of the same need a blank between them: three steps.
    loss = ctc_loss(log_probabilities, n_steps, [[1, 1], [0]], BLANK)
    only = ctc_loss(log_probabilities[1:], n_steps[1:], [[0]], BLANK)
    assert loss.item() == pytest.approx(only.item() / 2)
    loss.backward()
    assert log_probabilities.grad.isfinite().all()


def test_best_path_is_that_of_each_clip():
    log_probabilities = scores(5, 9)
    n_steps = torch.tensor([9, 1, 4, 7, 2])
    expected = [
        collapse(best[:n].tolist())
        for best, n in zip(log_probabilities.argmax(-1), n_steps, strict=True)
    ]
    assert greedy_units(log_probabilities, n_steps, BLANK) == expected
    assert any(len(units) > 2 for units in expected)


TEXTS = ["ONE TWO", "TWO'S COMPANY", "THREE'S A CROWD", "ONE TWO THREE"]


def test_vocabulary_writes_what_it_reads(tmp_path):
    path = tmp_path / "vocabulary.model"
    vocabulary = Vocabulary.train(TEXTS, path, size=18)
    assert len(vocabulary) == vocabulary.blank == 18
    numbers = vocabulary.encode(TEXTS)
    assert max(max(own) for own in numbers) < 18
    assert vocabulary.decode(numbers) == TEXTS
    assert vocabulary.decode([[], numbers[0]]) == ["", TEXTS[0]]
    # A run that is resumed has the pieces that it began with.
    before = path.read_bytes()
    again = Vocabulary.train(["OTHER TEXTS"], path, size=30)
    assert again.encode(TEXTS) == numbers
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_vocabulary_that_is_too_large(tmp_path):
    path = tmp_path / "vocabulary.model"
    with pytest.raises(ManifestError, match="size 500 .* to a value <= "):
        Vocabulary.train(TEXTS, path, size=500)
    assert not list(tmp_path.iterdir())


def test_outputs_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    grid = {"n_mels": 32, "patch": (16, 4)}
    encoder = SpectrogramEncoder(grid, dim=32, depth=2, heads=2)
    model = SpectrogramRecognizer(encoder, n_units=5).eval()
    feats, n_frames = torch.randn(2, 80, 32), torch.tensor([80, 30])
    feats[1, 30:] = 0
    with torch.no_grad():
        together, n_steps = model(feats, n_frames)
        alone, own = model(feats[1:, :30], n_frames[1:])
    assert n_steps[1] == own[0] == 8
    assert torch.allclose(together[1, :8], alone[0], atol=1e-5)
    assert torch.allclose(together.exp().sum(-1), torch.ones(2, 20))


def test_tones_are_learned():
    torch.manual_seed(0)
    time = torch.arange(3200) / 16000
    tones = [torch.sin(2 * math.pi * hertz * time) for hertz in (400, 1500)]
    targets = [list(word) for word in itertools.product(range(2), repeat=3)]
    wav = torch.stack(
        [torch.cat([0.3 * tones[unit] for unit in word]) for word in targets]
    )
    features = FrontEnd(n_mels=32)
    grid = {"n_mels": 32, "patch": (32, 4)}
    encoder = SpectrogramEncoder(grid, dim=32, depth=1, heads=2)
    model = SpectrogramRecognizer(encoder, n_units=BLANK + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    feats, n_frames = features(wav, torch.ones(len(wav)))
    for _ in range(150):
        loss = ctc_loss(*model(feats, n_frames), targets, BLANK)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert greedy_units(*model(feats, n_frames), BLANK) == targets
