"""Ids in files: cut with the crop, aligned by time, and told when wrong."""

import numpy as np
import pytest
import soundfile
import torch

from ssast_lobes import (
    ClipReader,
    FrontEnd,
    Grid,
    PretrainingLobe,
    SpectrogramEncoder,
    StoredTokenizer,
    collate,
)
from ssast_lobes.dataio.dataset import make_dataset, repeat_long
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.tokenizers.stored import (
    stored_file,
    write_stored_config,
)
from ssast_lobes.training import items_of
from ssast_lobes.utils.checks import ArgumentError

GRID = Grid(128, (128, 4))
RATE, BOOKS, CODES = 75, 2, 500


@pytest.fixture
def stored(tmp_path):
    """Ids of four seconds, each the number of its place; of book 1 plus 100."""
    write_stored_config(tmp_path, rate=RATE, n_books=BOOKS, n_codes=CODES)
    write(tmp_path, np.arange(4 * RATE)[:, None] + [0, 100])
    return tmp_path


def write(folder, ids, clip_id="a/b.wav"):
    file = stored_file(folder, clip_id)
    file.parent.mkdir(exist_ok=True)
    np.save(file, np.asarray(ids, dtype=np.int16))


def call(folder, seconds=1.0, start=0, clip_id="a/b.wav", grid=GRID):
    n_frames = round(100 * seconds) - 2
    return StoredTokenizer(grid, folder)(
        torch.zeros(1, n_frames, 128),
        torch.tensor([n_frames]),
        clip_ids=[clip_id],
        crop_starts=torch.tensor([round(16000 * start)]),
    )[0]


@pytest.mark.parametrize("start", [0, 0.31, 2.9])
def test_a_token_has_the_id_around_its_middle(stored, start):
    ids = call(stored, start=start)
    assert ids.shape == (25, BOOKS) and ids.dtype == torch.int64
    # Four frames of 25 ms every 10 ms; the last patch is a half.
    middles = start + 0.0275 + 0.04 * np.arange(25)
    middles = np.minimum(middles, start + 0.995)
    expected = np.floor(middles * RATE).clip(max=4 * RATE - 1)
    assert ids[:, 0].tolist() == expected.tolist()
    assert torch.equal(ids[:, 1], ids[:, 0] + 100)


def test_bands_may_have_ids_of_their_own(stored):
    grid, ids = Grid(128, (64, 4)), np.zeros((100, 2, BOOKS))
    ids[:, 1] = 7
    write(stored, ids)
    found = call(stored, grid=grid).unflatten(0, (2, -1))
    assert (found[0] == 0).all() and (found[1] == 7).all()
    # Else the bands of a time share its ids.
    write(stored, np.arange(100)[:, None] + [0, 1])
    found = call(stored, grid=grid).unflatten(0, (2, -1))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    "ids, message",
    [
        (None, r"b.wav.npy: no ids of the clip a/b.wav: .*No such file"),
        (np.zeros((75, 3)), r"\(times, 2 books\) are expected.*\(75, 3\)"),
        (np.zeros(75), r"are expected, .* it has int16 \(75,\)"),
        (np.zeros((60, 2)), "60 ids end at 0.80 s, the clip reaches to 0.99"),
        (np.full((75, 2), -1), "ids must be from 0 to 499, found -1 to -1"),
        (np.full((75, 2), 500), "found 500 to 500"),
    ],
)
def test_wrong_files_are_told(stored, ids, message):
    stored_file(stored, "a/b.wav").unlink()
    if ids is not None:
        write(stored, ids)
    with pytest.raises(ArgumentError, match=message):
        call(stored)


def test_slowed_audio_is_told(stored):
    with pytest.raises(ArgumentError, match="is its speed unchanged"):
        call(stored, seconds=4.4)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "needs rate"),
        ("{}", "needs rate"),
        ('{"rate": 0, "n_books": 1, "n_codes": 2}', "rate must be"),
        ('{"rate": 75, "n_books": 0, "n_codes": 2}', "n_books must be"),
    ],
)
def test_a_folder_describes_its_ids(text, message, tmp_path):
    if text is not None:
        (tmp_path / "codes.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        StoredTokenizer(GRID, tmp_path)


@pytest.fixture
def recording(stored):
    """Four seconds of noise, and its row, of which two crops are taken."""
    path = stored / "b.wav"
    rng = np.random.default_rng(0)
    soundfile.write(path, 0.1 * rng.standard_normal(64000), 16000)
    rows = {"a/b.wav": {"path": str(path), "duration": 4.0}}
    return repeat_long(rows, crop_seconds=2.0)


def test_ids_are_cut_with_the_crop(stored, recording):
    """From the table to the loss, with random crops of an epoch."""
    reader = ClipReader(crop_seconds=2.0, seed=1, random_crop=True)
    reader.epoch = 3
    dataset = make_dataset(recording, reader)
    batch = collate([dataset[0], dataset[1]])
    assert batch.id == ["a/b.wav", "a/b.wav#2"]
    encoder = SpectrogramEncoder(GRID, dim=32, depth=1, heads=2)
    tokenizer = StoredTokenizer(GRID, stored)
    objective = load_objective("best_rq")(encoder, tokenizer=tokenizer)
    lobe = PretrainingLobe(objective, FrontEnd())
    seen = []
    tokenizer.register_forward_hook(lambda *call: seen.append(call[2]))
    output = lobe(*batch.sig, **items_of(batch))
    assert output.loss.isfinite()
    for ids, clip_id in zip(seen[0], batch.id, strict=True):
        start, _ = reader.crop(4.0, clip_id)
        assert abs(ids[0, 0] - (start + 0.0275) * RATE) < 1
    assert not torch.equal(*seen[0])
    # In validation too.
    lobe(*batch.sig, torch.tensor([1, 2]), **items_of(batch))
    assert torch.equal(*seen)


def test_audio_without_a_place_is_told(stored, recording):
    encoder = SpectrogramEncoder(GRID, dim=32, depth=1, heads=2)
    tokenizer = {"name": "StoredTokenizer", "folder": str(stored)}
    objective = load_objective("best_rq")(encoder, tokenizer=tokenizer)
    lobe = PretrainingLobe(objective, FrontEnd())
    with pytest.raises(ArgumentError, match="pass clip_ids and crop_st"):
        lobe(torch.zeros(1, 16000))
    whole = make_dataset(recording, lambda path, *_: torch.zeros(16000))
    with pytest.raises(ArgumentError, match="pass clip_ids and crop_st"):
        batch = collate([whole[0]])
        lobe(*batch.sig, **items_of(batch))
