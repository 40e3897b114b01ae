"""Shards: the same samples, only the crop read, the same bytes, whatever dies.

`webdataset` and `wids`, the readers of this format, read them too.
"""

import csv
import functools
import io
import json
import multiprocessing
import os
import pickle
import re
import signal
import tarfile
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import webdataset
import wids
from scan_kit import scan_and_write
from speechbrain.dataio.dataloader import make_dataloader

from ssast_lobes.dataio.addresses import parse_address
from ssast_lobes.dataio.audio import audio_info, read_audio
from ssast_lobes.dataio.dataset import ClipReader, collate, make_dataset
from ssast_lobes.dataio.scan import folder_rows
from ssast_lobes.dataio.shards import pack, read_from_shards
from ssast_lobes.dataio.tables import ManifestError, index_rows, read_manifest
from ssast_lobes.dataio.waveforms import UnreadableAudio

RATE = 16000
CODECS = pytest.mark.parametrize("codec", ["flac", "int16"])
# A few clips of `corpus` a shard.
SMALL = 100_000
ONE = functools.partial(pack, workers=1)


def sound(seconds, seed, level=0.2):
    rng = np.random.default_rng(seed)
    return level * rng.standard_normal(round(seconds * RATE)).clip(-4, 4)


def bytes_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Ten 16-bit mono clips with labels; the manifest, in a folder with #."""
    folder = tmp_path_factory.mktemp("corpus") / "#1"
    folder.mkdir()
    lines = ["path,label,split,note"]
    for number in range(10):
        name = f"{number}.wav"
        clip = sound(0.5 + 0.25 * number, number)
        soundfile.write(folder / name, clip, RATE, subtype="PCM_16")
        lines.append(f'{name},{"dog" if number % 2 else "cat"},train,"a, b"')
    manifest = folder / "clips.csv"
    manifest.write_text("\n".join(lines))
    return manifest


@pytest.fixture(scope="module")
def rows(corpus):
    return read_manifest(corpus)


@pytest.fixture(scope="module")
def packed(rows, tmp_path_factory):
    """Shards of `rows` of either codec, by its name."""
    folder = tmp_path_factory.mktemp("shards") / "#2"
    return {
        codec: pack(rows, folder / codec, codec, shard_bytes=SMALL, workers=2)
        for codec in ("flac", "int16")
    }


# The same audio -----------------------------------------------------------


@CODECS
def test_sixteen_bit_audio_comes_back_exactly(codec, packed, rows):
    found = read_manifest(packed[codec].manifest)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    for row, own in zip(rows, found, strict=True):
        assert audio_info(own["path"]) == audio_info(row["path"])
        assert float(own["duration"]) == audio_info(row["path"]).seconds
        assert torch.equal(read_audio(own["path"]), read_audio(row["path"]))
        for start in (0.0, 0.111, 0.3):
            crop = read_audio(row["path"], start=start, seconds=0.2)
            assert torch.equal(
                read_audio(own["path"], start=start, seconds=0.2), crop
            )


def test_columns_and_counts(packed, rows):
    found = read_manifest(packed["flac"].manifest, needs=("path", "label"))
    for row, own in zip(rows, found, strict=True):
        assert own["source_path"] == row["path"]
        for name in ("label", "split", "note"):
            assert own[name] == row[name]
    assert packed["flac"].clips == 10
    assert packed["flac"].hours == pytest.approx(
        sum(0.5 + 0.25 * i for i in range(10)) / 3600
    )
    assert packed["flac"].clipped == 0 and packed["flac"].unreadable == []


def test_other_audio_is_what_reading_it_gives_to_half_a_step(tmp_path):
    stereo = np.stack([sound(1, 0), sound(1, 1)], axis=1)
    soundfile.write(tmp_path / "a.flac", stereo, 44100, subtype="PCM_24")
    packed = ONE(folder_rows(tmp_path), tmp_path / "shards")
    [row] = read_manifest(packed.manifest)
    wanted = read_audio(tmp_path / "a.flac")
    difference = (read_audio(row["path"]) - wanted).abs().max()
    assert 0 < difference <= 0.5 / 2**15 + 1e-9
    assert int(row["sample_rate"]) == RATE


def test_samples_beyond_full_scale_are_cut_off_and_counted(tmp_path):
    wave = np.array([0.5, 1.0, 1.5, -1.0, -1.5, 0.0])
    soundfile.write(tmp_path / "loud.wav", wave, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "mild.wav", wave / 2, RATE, subtype="FLOAT")
    packed = ONE(folder_rows(tmp_path), tmp_path / "shards")
    loud, mild = read_manifest(packed.manifest)
    assert (loud["clipped"], mild["clipped"]) == ("3", "0")
    assert packed.clipped == 1
    most = 1 - 2**-15
    wanted = torch.tensor([0.5, most, most, -1.0, -1.0, 0.0])
    assert torch.equal(read_audio(loud["path"]), wanted)


@CODECS
def test_one_sample_is_a_clip(codec, tmp_path):
    soundfile.write(tmp_path / "a.wav", [0.25], RATE)
    packed = ONE(folder_rows(tmp_path), tmp_path / "shards", codec)
    [row] = read_manifest(packed.manifest)
    assert read_audio(row["path"]).tolist() == [0.25]


def test_another_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", sound(1, 0), 8000)
    packed = ONE(folder_rows(tmp_path), tmp_path / "out", sample_rate=8000)
    [row] = read_manifest(packed.manifest)
    assert audio_info(row["path"]).sample_rate == 8000
    assert torch.equal(read_audio(row["path"]), read_audio(tmp_path / "a.wav"))


# Reading ------------------------------------------------------------------


@pytest.fixture
def bytes_read(monkeypatch):
    """Sizes of all reads of tars."""
    sizes, pread = [], os.pread

    def counting(*arguments):
        data = pread(*arguments)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counting)
    return sizes


@pytest.mark.parametrize(("codec", "spare"), [("int16", 2e3), ("flac", 2e5)])
def test_a_crop_reads_only_the_crop(codec, spare, tmp_path, bytes_read):
    soundfile.write(tmp_path / "long.wav", sound(120, 0), RATE)
    packed = ONE(folder_rows(tmp_path), tmp_path / "shards", codec)
    [row] = read_manifest(packed.manifest)
    bytes_read.clear()
    assert len(read_audio(row["path"], start=100, seconds=1.28)) == 1.28 * RATE
    # libFLAC seeks by halves: more than the crop, and little of 3.8 MB.
    assert sum(bytes_read) < 2 * 1.28 * RATE + spare
    bytes_read.clear()
    audio_info(row["path"])
    assert sum(bytes_read) < 20e3


def test_tars_are_opened_once(packed):
    found = read_manifest(packed["flac"].manifest)
    for row in found:
        read_audio(row["path"])
    tars = {parse_address(row["path"]).tar for row in found}
    assert len(tars) > 2
    fds = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
    assert [fds.count(os.path.realpath(tar)) for tar in tars] == [1] * len(tars)


def test_threads_do_not_mix_samples_up(packed, rows):
    found = read_manifest(packed["flac"].manifest) * 10
    with ThreadPool(8) as pool:
        waves = pool.map(read_audio, [row["path"] for row in found])
    for row, wave in zip(rows * 10, waves, strict=True):
        assert torch.equal(wave, read_audio(row["path"]))


def batches(rows, folder, **loading):
    rows, _ = scan_and_write(rows, folder)
    reader = ClipReader(crop_seconds=0.3, random_crop=True)
    dataset = make_dataset(index_rows(rows), reader)
    loader = make_dataloader(
        dataset, batch_size=4, collate_fn=collate, **loading
    )
    return [(batch.id, batch.sig.data) for batch in loader]


@pytest.mark.parametrize(
    "start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)]
)
def test_workers_give_the_crops_of_the_files(start, packed, rows, tmp_path):
    wanted = batches(rows, tmp_path / "files")
    found = read_manifest(packed["flac"].manifest)
    # Opened here before the workers start: they inherit it, or do not.
    read_audio(found[0]["path"])
    loading = {"num_workers": 2, "multiprocessing_context": start}
    got = batches(found, tmp_path / "shards", **loading)
    for (ids, data), (own_ids, own) in zip(wanted, got, strict=True):
        assert ids == own_ids and torch.equal(data, own)


def test_reader_and_rows_are_picklable(packed):
    [row, *_] = read_manifest(packed["flac"].manifest)
    read_audio(row["path"])
    reader, row = pickle.loads(pickle.dumps((ClipReader(), row)))
    assert len(reader(row["path"], float(row["duration"]), "a")) == 8000


@pytest.fixture
def shard(packed, tmp_path):
    """A copy of the first shard, and the address of its first clip there."""
    [row, *_] = read_manifest(packed["flac"].manifest)
    place = parse_address(row["path"])
    tar = tmp_path / os.path.basename(place.tar)
    tar.write_bytes(Path(place.tar).read_bytes())
    path = str(place._replace(tar=str(tar)))
    read_audio(path)
    return tar, path


def test_a_missing_tar_is_named(shard):
    tar, path = shard
    tar.unlink()
    message = f"{path}: there is no such tar"
    with pytest.raises(UnreadableAudio, match=f"^{re.escape(message)}$"):
        read_audio(path)


def test_a_truncated_tar_is_named(shard):
    tar, path = shard
    os.truncate(tar, 5000)
    message = f"{path}: the tar is truncated: it has 5000 bytes"
    with pytest.raises(UnreadableAudio, match=re.escape(message)):
        read_audio(path)


def test_a_replaced_tar_is_told_by_its_content(tmp_path):
    # Clips of one length: int16 shards of them differ in samples alone.
    paths = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        soundfile.write(folder / "a.wav", sound(1, seed), RATE)
        packed = ONE(folder_rows(folder), tmp_path / f"s{seed}", "int16")
        [row] = read_manifest(packed.manifest)
        paths.append(row["path"])
    read_audio(paths[0])
    one, other = (parse_address(path) for path in paths)
    assert one[2:] == other[2:]
    os.replace(other.tar, one.tar)
    with pytest.raises(UnreadableAudio, match="other content at this address"):
        read_audio(paths[0])


def test_a_clip_of_a_damaged_tar_is_unreadable(shard):
    tar, path = shard
    place = parse_address(path)
    data = bytearray(tar.read_bytes())
    data[place.offset : place.offset + 64] = bytes(64)
    tar.write_bytes(data)
    with pytest.raises(UnreadableAudio, match="libsndfile cannot open it"):
        read_audio(path)


# Packing ------------------------------------------------------------------


@CODECS
def test_workers_change_no_byte(codec, packed, rows, tmp_path):
    pack(rows, tmp_path, codec, shard_bytes=SMALL, workers=1)
    folder = Path(packed[codec].manifest).parent
    assert bytes_of(tmp_path) == bytes_of(folder)
    sizes = {}
    for row in read_manifest(packed[codec].manifest):
        place = parse_address(row["path"])
        sizes.setdefault(place.tar, []).append(place.size)
    assert len(sizes) == packed[codec].shards > 2
    assert max(map(sum, sizes.values())) <= SMALL
    assert max(map(len, sizes.values())) > 1


def test_a_clip_larger_than_a_shard_has_one_of_its_own(rows, tmp_path):
    packed = ONE(rows[:3], tmp_path, shard_bytes=1)
    assert packed.shards == packed.clips == 3


def dying(replaces, rows, folder, children):
    """Pack in a process that kills itself after so many files appeared."""
    replace, done = os.replace, 0

    def counting(*paths):
        nonlocal done
        if done == replaces:
            own = Path(f"/proc/{os.getpid()}/task")
            children.put(
                [
                    int(pid)
                    for task in own.iterdir()
                    for pid in (task / "children").read_text().split()
                ]
            )
            time.sleep(0.1)  # the queue writes from a thread
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)
        done += 1

    os.replace = counting
    pack(rows, folder, shard_bytes=SMALL, workers=2)


def killed_after(replaces, rows, folder):
    """Whether it was killed; waits until its workers are gone, too."""
    context = multiprocessing.get_context("fork")
    children = context.SimpleQueue()
    process = context.Process(
        target=dying, args=(replaces, rows, folder, children)
    )
    process.start()
    process.join(60)
    if process.exitcode == 0:
        return False
    assert process.exitcode == -signal.SIGKILL
    for pid in children.get():
        for _ in range(600):
            if not is_running(pid):
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"worker {pid} outlives the command")
    return True


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.split()[0] != "Z"


# How many files appear before each kill: before the first shard, between two,
# between a shard and its part of the index; at last, before the index.
@pytest.mark.parametrize(
    "moments",
    [(1, 2, 3), pytest.param((1, 2, 3, 4, 5, 4), marks=pytest.mark.slow)],
)
def test_killed_it_goes_on(moments, packed, rows, tmp_path):
    for appear in moments:
        assert killed_after(appear, rows, tmp_path)
        assert not (tmp_path / "index.json").exists()
        assert list(tmp_path.rglob("*.partial"))
    assert list(tmp_path.glob("parts/*.json"))
    ONE(rows, tmp_path, shard_bytes=SMALL)
    assert bytes_of(tmp_path) == bytes_of(Path(packed["flac"].manifest).parent)


def test_finished_shards_are_not_made_again(packed, rows, tmp_path):
    again = functools.partial(ONE, rows, tmp_path, shard_bytes=SMALL)
    assert again() == packed["flac"]._replace(
        manifest=str(tmp_path / "manifest.csv")
    )
    before = bytes_of(tmp_path)
    first, second, *_ = sorted(tmp_path.glob("*.tar"))
    inode = first.stat().st_ino
    second.unlink()
    again()
    assert first.stat().st_ino == inode
    assert bytes_of(tmp_path) == before


def test_a_damaged_part_of_the_index_is_made_again(packed, rows, tmp_path):
    again = functools.partial(ONE, rows, tmp_path, shard_bytes=SMALL)
    again()
    before = bytes_of(tmp_path)
    (tmp_path / "parts" / "000001.json").write_text('{"next": 4, "by')
    again()
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize(
    "change", [{"codec": "int16"}, {"shard_bytes": 9999}, {"rows": 9}]
)
def test_other_settings_in_the_same_folder_are_refused(
    change, packed, rows, tmp_path
):
    folder = Path(packed["flac"].manifest).parent
    settings = {"shard_bytes": SMALL, **change}
    rows = rows[: settings.pop("rows", None)]
    before = bytes_of(folder)
    with pytest.raises(ManifestError, match="choose another folder"):
        ONE(rows, folder, **settings)
    assert bytes_of(folder) == before


@pytest.mark.parametrize("name", ["clips.csv", "film.partial"])
def test_a_folder_with_other_things_is_left_alone(name, rows, tmp_path):
    (tmp_path / name).write_text("something else")
    before = bytes_of(tmp_path)
    with pytest.raises(ManifestError, match="is not empty"):
        ONE(rows, tmp_path)
    assert bytes_of(tmp_path) == before


def test_killed_as_it_began_it_begins_again(rows, tmp_path):
    (tmp_path / "settings.json.7.partial").write_text('{"codec":')
    assert ONE(rows[:1], tmp_path).clips == 1
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture
def bad_rows(tmp_path):
    """Eight good files and two bad ones, one of them at the end."""
    folder = tmp_path / "audio"
    folder.mkdir()
    for number in range(8):
        path = folder / f"{number}.wav"
        soundfile.write(path, sound(0.5, number), RATE)
    (folder / "3.wav").write_text("not audio")
    (folder / "9.wav").write_text("")
    soundfile.write(folder / "8.wav", sound(0.5, 3), RATE)
    return folder_rows(folder)


def test_unreadable_audio_is_listed_up_to_a_limit(bad_rows, tmp_path):
    folder = tmp_path / "shards"
    with pytest.raises(ManifestError, match="2 of 10 audio files are unre"):
        ONE(bad_rows, folder, max_unreadable=0.1, shard_bytes=20_000)
    assert not (folder / "manifest.csv").exists()
    # The limit is no setting of the shards: with another one the run resumes.
    packed = ONE(bad_rows, folder, max_unreadable=0.5, shard_bytes=20_000)
    assert packed.clips == packed.shards == 8
    with open(folder / "unreadable.csv", newline="") as file:
        listed = [(row["path"], row["reason"]) for row in csv.DictReader(file)]
    assert listed == packed.unreadable
    names = [Path(path).name for path, _ in listed]
    assert names == ["3.wav", "9.wav"] and "empty" in listed[1][1]
    ids = [row["id"] for row in read_manifest(packed.manifest)]
    assert ids == [f"{number}.wav" for number in (0, 1, 2, 4, 5, 6, 7, 8)]


def test_nothing_but_unreadable_audio_is_an_error(tmp_path):
    (tmp_path / "a.wav").write_text("not audio")
    with pytest.raises(ManifestError, match="none of the 1 files"):
        ONE(folder_rows(tmp_path), tmp_path / "shards", max_unreadable=1)


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9#1.wav")
    soundfile.write(tmp_path / "a.wav", sound(0.1, 0), RATE)
    os.rename(tmp_path / "a.wav", tmp_path / name)
    packed = ONE(folder_rows(tmp_path), tmp_path / "shards")
    [row] = read_manifest(packed.manifest)
    assert row["id"] == "caf\\xe9#1.wav"
    assert torch.equal(read_audio(row["path"]), read_audio(tmp_path / name))


def test_a_killed_worker_is_an_error(rows, tmp_path, monkeypatch):
    def die(*arguments, **more):
        os.kill(os.getpid(), signal.SIGKILL)

    # Where workers encode.
    monkeypatch.setattr(soundfile, "write", die)
    with pytest.raises(OSError, match="a worker was killed"):
        ONE(rows, tmp_path)
    monkeypatch.undo()
    assert ONE(rows, tmp_path).clips == 10


# Other readers ------------------------------------------------------------


@pytest.fixture
def linked(packed, tmp_path):
    """Function of a codec: its shards, under a path that is a URL too."""

    def link(codec):
        folder = tmp_path / codec
        folder.symlink_to(Path(packed[codec].manifest).parent)
        return folder

    return link


@pytest.mark.parametrize(
    ("codec", "name"), [("flac", "flac"), ("int16", "wav")]
)
def test_webdataset_reads_them(codec, name, linked, rows):
    folder = linked(codec)
    tars = [str(tar) for tar in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len({sample["__key__"] for sample in samples}) == 10
    for row, sample in zip(rows, samples, strict=True):
        known = json.loads(sample["json"])
        assert (known["id"], known["label"]) == (row["id"], row["label"])
        assert known["duration"] == audio_info(row["path"]).seconds
        assert known["source_path"] == row["path"]
        wave, _ = soundfile.read(io.BytesIO(sample[name]), dtype="float32")
        assert np.array_equal(wave, read_audio(row["path"]).numpy())


def test_wids_reads_the_index(linked, rows, tmp_path):
    dataset = wids.ShardListDataset(
        str(linked("flac") / "index.json"),
        cache_dir=str(tmp_path / "cache"),
        keep=True,
        transformations=[],
    )
    assert len(dataset) == 10
    for number in (0, 9, 4):
        known = json.loads(dataset[number][".json"].read())
        assert known["id"] == rows[number]["id"]


def test_members_are_plain_and_timeless(packed):
    folder = Path(packed["flac"].manifest).parent
    with tarfile.open(folder / "000000.tar") as tar:
        members = tar.getmembers()
    assert [Path(m.name).suffix for m in members[:2]] == [".flac", ".json"]
    assert {(m.mtime, m.uid, m.uname) for m in members} == {(0, 0, "")}


# Recipes' rows ------------------------------------------------------------


def seconds_of(path):
    """Return a duration that is a little wrong, as that of another codec."""
    try:
        return audio_info(path).seconds + 0.05
    except UnreadableAudio:
        return 0.0


def parts_of(rows):
    timed = [row | {"duration": seconds_of(row["path"])} for row in rows]
    return {
        "corpus": "Pets",
        "labels": ["cat", "dog"],
        "train": index_rows(timed[:6]),
        "valid": index_rows(timed[6:]),
    }


def test_rows_are_read_from_shards(packed, rows):
    folder = Path(packed["flac"].manifest).parent
    parts = parts_of(rows)
    found = read_from_shards(parts, folder, "manifest.csv")
    assert found["corpus"] == "Pets" and found["labels"] == ["cat", "dog"]
    assert list(found["train"]) == list(parts["train"])
    for clip, row in found["valid"].items():
        source = parts["valid"][clip]
        assert row["label"] == source["label"]
        assert row["duration"] == audio_info(source["path"]).seconds
        assert torch.equal(read_audio(row["path"]), read_audio(source["path"]))


def test_clips_that_are_not_in_the_shards_are_told(packed, rows):
    folder = Path(packed["flac"].manifest).parent
    new = {"id": "new.wav", "path": "/new.wav"}
    message = (
        f"{folder}: 1 clips of this experiment are not among these shards, "
        "such as new.wav; they were made of another manifest. Remove them "
        f"and run `ssast-lobes shard out/manifest.csv {folder}`"
    )
    with pytest.raises(ManifestError, match=f"^{re.escape(message)}$"):
        read_from_shards(parts_of([*rows, new]), folder, "out/manifest.csv")


def test_other_clips_of_the_same_name_are_told(packed, rows):
    folder = Path(packed["flac"].manifest).parent
    parts = parts_of(rows)
    clip = list(parts["train"])[2]
    parts["train"][clip]["duration"] += 1
    with pytest.raises(ManifestError, match=f": 1 clips .* such as {clip};"):
        read_from_shards(parts, folder, "out/manifest.csv")


def test_clips_that_could_not_be_packed_stay_where_they_are(bad_rows, tmp_path):
    ONE(bad_rows, tmp_path / "shards", max_unreadable=0.5)
    parts = parts_of(bad_rows)
    found = read_from_shards(parts, tmp_path / "shards", "manifest.csv")
    assert found["train"]["3.wav"] == parts["train"]["3.wav"]
    assert ".tar#" in found["train"]["4.wav"]["path"]


def test_half_packed_shards_are_not_read(packed, rows, tmp_path):
    with pytest.raises(ManifestError, match="or not all of them; make them"):
        read_from_shards(parts_of(rows), tmp_path, "manifest.csv")
