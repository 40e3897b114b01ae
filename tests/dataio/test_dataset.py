"""Datasets: crops as a pure function, bad files skipped, batches, workers."""

import csv
import pickle
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.encoder import CategoricalEncoder

from ssast_lobes.dataio.dataset import (
    ClipReader,
    collate,
    make_dataset,
    repeat_long,
)
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.utils.random import clip_keys

RATE = 16000


def write_ramp(path, seconds):
    """Audio whose samples tell where they are: sample / 2 ** 19."""
    ramp = np.arange(round(seconds * RATE)) / 2**19
    soundfile.write(path, ramp, RATE, subtype="FLOAT")


def start_of(wave):
    return round(wave[0].item() * 2**19)


@pytest.fixture
def rows(tmp_path):
    durations = {"short": 0.25, "middle": 2.0, "long": 5.0}
    rows = {}
    for name, seconds in durations.items():
        path = tmp_path / f"{name}.wav"
        write_ramp(path, seconds)
        rows[name] = {
            "path": str(path),
            "duration": seconds,
            "label": f"{name};any" if name != "short" else "",
            "speaker": "anna",
            "split": "train",
        }
    return rows


def encoder_of(*labels):
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(labels)
    return encoder


def read(reader, rows, name):
    return reader(rows[name]["path"], rows[name]["duration"], name)


# --- crops


def test_whole_and_center(rows):
    assert len(read(ClipReader(), rows, "long")) == 5 * RATE
    reader = ClipReader(crop_seconds=1.0)
    crop = read(reader, rows, "long")
    assert len(crop) == RATE and start_of(crop) == 2 * RATE
    assert len(read(reader, rows, "short")) == RATE // 4


def test_random_crops_depend_on_seed_epoch_and_clip_alone(rows):
    def starts(reader, name="long"):
        found = []
        for reader.epoch in range(5):
            found.append(start_of(read(reader, rows, name)))
        return found

    settings = {"crop_seconds": 1.0, "random_crop": True}
    expected = starts(ClipReader(seed=1, **settings))
    torch.manual_seed(99)
    assert starts(ClipReader(seed=1, **settings)) == expected
    assert len(set(expected)) == 5
    assert starts(ClipReader(seed=2, **settings)) != expected
    reader = ClipReader(seed=1, **settings)
    other = reader(rows["long"]["path"], 5.0, "another id")
    assert start_of(other) != expected[0]


def test_random_crops_are_uniform(rows):
    reader = ClipReader(crop_seconds=1.0, random_crop=True)
    path = rows["long"]["path"]
    starts = [start_of(reader(path, 5.0, f"clip{n}")) for n in range(1000)]
    counts = np.histogram(starts, bins=4, range=(0, 4 * RATE))[0]
    assert counts.sum() == 1000 and np.all(abs(counts - 250) < 60)


def test_random_crop_needs_a_length():
    with pytest.raises(ValueError, match="crop_seconds"):
        ClipReader(random_crop=True)


# --- datasets


def test_items(rows):
    dataset = make_dataset(
        rows, ClipReader(), encoder_of("", "middle;any", "long;any")
    )
    item = dataset[1]
    assert list(item) == ["id", "sig", "label", "speaker", "target"]
    assert (item["id"], item["label"]) == ("middle", "middle;any")
    assert item["target"].dtype == torch.int64 and item["target"].shape == ()
    assert item["target"] == 1


def test_unlabelled_items(rows):
    bare = {"x": {"path": rows["long"]["path"], "duration": 5.0}}
    keys = ["id", "sig", "crop_starts"]
    assert list(make_dataset(bare, ClipReader())[0]) == keys


def test_multi_label_targets(rows):
    dataset = make_dataset(
        rows, ClipReader(), encoder_of("any", "long", "middle"), True
    )
    targets = collate([dataset[n] for n in range(3)]).target
    assert targets.dtype == torch.float32
    assert targets.tolist() == [[0, 0, 0], [1, 0, 1], [1, 1, 0]]


def test_unknown_labels_are_told_at_once(rows):
    with pytest.raises(ManifestError) as caught:
        make_dataset(rows, ClipReader(), encoder_of("any", "long"), True)
    assert '"middle" (1 clips, first middle)' in str(caught.value)
    with pytest.raises(ManifestError, match="at least one row"):
        make_dataset({}, ClipReader())


def test_filtered_datasets_follow_the_epoch(rows):
    reader = ClipReader(crop_seconds=1.0, random_crop=True)
    dataset = make_dataset(rows, reader)
    filtered = dataset.filtered_sorted(
        key_min_value={"duration": 1.0}, sort_key="duration", reverse=True
    )
    before = start_of(filtered[0]["sig"])
    reader.epoch = 7
    assert start_of(filtered[0]["sig"]) != before
    assert torch.equal(filtered[0]["sig"], dataset[2]["sig"])


# --- batches


def test_collate_pads_and_stacks(rows):
    encoder = encoder_of("", "middle;any", "long;any")
    dataset = make_dataset(rows, ClipReader(), encoder)
    batch = collate([dataset[n] for n in range(3)])
    assert batch.sig.data.shape == (3, 5 * RATE)
    samples = (batch.sig.lengths * 5 * RATE).round()
    assert samples.tolist() == [RATE // 4, 2 * RATE, 5 * RATE]
    assert batch.sig.data[0, RATE // 4 :].count_nonzero() == 0
    assert batch.target.tolist() == [0, 1, 2]
    assert batch.speaker == ["anna"] * 3
    assert batch.to(dtype=torch.float64).sig.data.dtype == torch.float64


def test_clip_keys_are_stable():
    keys = clip_keys(["audio/a.wav", "ü", "\udcff", "audio/a.wav"])
    assert keys.dtype == torch.int64 and (keys >= 0).all()
    assert keys[0] == keys[3] and len(set(keys.tolist())) == 3
    assert keys[0] == 8409877340552516198


# --- audio that fails while training


def cut_flac(path):
    """A FLAC whose header promises 5 s, with the second half missing."""
    wave = 0.1 * np.random.default_rng(0).standard_normal(5 * RATE)
    soundfile.write(path, wave, RATE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_truncated_flac_is_recorded_and_skipped(rows, tmp_path):
    path = tmp_path / "cut, half.flac"
    cut_flac(path)
    rows["cut"] = {**rows["long"], "path": str(path)}
    unreadable = tmp_path / "unreadable.csv"
    unreadable.write_text("path,reason\n")
    dataset = make_dataset(rows, ClipReader(unreadable_file=unreadable))
    loader = make_dataloader(
        dataset, batch_size=2, collate_fn=collate, num_workers=2
    )
    assert [batch.id for batch in loader] == [["short", "middle"], ["long"]]
    with open(unreadable, newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == str(path) and "decoding fails" in row["reason"]


def test_a_batch_with_nothing_left_is_an_error(rows):
    for row in rows.values():
        row["path"] = "gone.wav"
    dataset = make_dataset(rows, ClipReader())
    loader = make_dataloader(
        dataset, batch_size=3, collate_fn=collate, num_workers=1
    )
    batches = iter(loader)
    with pytest.raises(UnreadableAudio, match="none of the 3 clips"):
        next(batches)
    assert list(batches) == []  # lets the worker end


def test_rows_of_many_writers_stay_whole(tmp_path):
    unreadable = tmp_path / "unreadable.csv"
    reader = ClipReader(unreadable_file=unreadable)
    paths = [f"{'x' * 200}, {n}.wav" for n in range(400)]
    with ThreadPool(8) as pool:
        assert pool.map(lambda path: reader(path, 1.0, path), paths) == [
            None
        ] * len(paths)
    with open(unreadable, newline="") as file:
        written = list(csv.reader(file))
    assert sorted(row[0] for row in written) == sorted(paths)
    assert {row[1] for row in written} == {"no such file"}


# --- workers


def test_dataset_pickles(rows):
    reader = ClipReader(crop_seconds=1.0, random_crop=True)
    reader.epoch = 3
    dataset = make_dataset(
        rows, reader, encoder_of("any", "long", "middle"), True
    )
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[2]["sig"], dataset[2]["sig"])
    assert torch.equal(copy[2]["target"], dataset[2]["target"])


@pytest.mark.parametrize(
    "method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)]
)
def test_workers_that_outlive_an_epoch_see_the_next(rows, method):
    reader = ClipReader(crop_seconds=1.0, random_crop=True)
    dataset = make_dataset(rows, reader)
    loader = make_dataloader(
        dataset,
        batch_size=1,
        collate_fn=collate,
        num_workers=1,
        multiprocessing_context=method,
        persistent_workers=True,
    )
    for reader.epoch in (0, 5):
        for index, batch in enumerate(loader):
            assert torch.equal(batch.sig.data[0], dataset[index]["sig"])


def test_long_clips_are_cropped_all_over_in_one_pass(rows):
    reader = ClipReader(1.0, random_crop=True)
    repeated = repeat_long(rows, reader.crop_seconds)
    counts = dict.fromkeys(rows, 0)
    starts = set()
    for item in make_dataset(repeated, reader):
        name = item["id"].split("#")[0]
        counts[name] += 1
        if name == "long":
            starts.add(start_of(item["sig"]))
    assert counts == {"short": 1, "middle": 2, "long": 5}
    assert len(starts) == 5


def test_a_repetition_never_replaces_a_clip():
    rows = {"b#2": {"duration": 1.0}, "b": {"duration": 4.0}}
    assert repeat_long(rows, crop_seconds=2.0)["b#2"] is rows["b#2"]


def test_clips_of_two_takes_are_told_from_others(rows):
    assert "positive_pairs" not in make_dataset(rows, ClipReader())[0]
    rows["long"]["takes"], rows["short"]["takes"] = "2", ""
    dataset = make_dataset(rows, ClipReader())
    batch = collate(list(dataset))
    pairs = batch.positive_pairs.tolist()
    told = dict(zip(batch.id, pairs, strict=True))
    assert told == {"short": False, "middle": False, "long": True}
    with pytest.raises(ManifestError, match="long: two takes in 5 s, .* 4 s"):
        make_dataset(rows, ClipReader(4.0))
    rows["middle"]["takes"] = "3"
    with pytest.raises(
        ManifestError, match='middle: takes must be 1, or 2 .* got "3"'
    ):
        make_dataset(rows, ClipReader())


def test_tables_that_differ_in_what_they_say(rows):
    del rows["middle"]["speaker"]
    items = list(make_dataset(rows, ClipReader()))
    assert len(items) == 3
    assert all("speaker" not in item and "label" in item for item in items)
