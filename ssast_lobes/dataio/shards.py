"""Pack audio into few large files, and read the audio of recipes from them.

A shard is a tar in the format of WebDataset, with `KEY.flac` (or `KEY.wav`,
int16) and `KEY.json` for each clip. A folder of shards has a `manifest.csv`
whose paths are addresses in the tars (`dataio.addresses`). It can be used like
any other manifest. The bytes of the shards depend only on the rows and the
settings, not on the number of workers. A run that was killed resumes at the
shard that it was writing.
"""

import csv
import functools
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import tarfile
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch
from tqdm import tqdm

from ssast_lobes.dataio.addresses import Address
from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.dataio.scan import check_unreadable
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.utils.files import atomic_write, write_json

# Extension of each codec, and libsndfile's name of the container.
CODECS = {"flac": ("flac", "FLAC"), "int16": ("wav", "WAV")}
MANIFEST = "manifest.csv"
INDEX = "index.json"
UNREADABLE = "unreadable.csv"
_SETTINGS = "settings.json"
_PARTS = "parts"
_FORMAT_VERSION = 1
_FULL_SCALE = 2**15

# Number of clips queued for each worker.
_AHEAD = 4
_SHOWN_CLIPS = 5
# A packed clip whose length differs by more is another clip of the same name.
_OTHER_SECONDS = 0.2


class Packed(NamedTuple):
    """The result of `pack`.

    Arguments
    ---------
    manifest : str
        Path of the manifest.
    clips, shards : int
        Number of clips and of shards.
    hours : float
        Hours of audio.
    clipped : int
        Number of clips with samples beyond full scale, which were clipped.
    unreadable : list of tuple
        (path, reason) of the files that were left out.
    """

    manifest: str
    clips: int
    shards: int
    hours: float
    clipped: int
    unreadable: list


def pack(
    rows,
    folder,
    codec="flac",
    sample_rate=16000,
    shard_bytes=2**29,
    max_unreadable=0.01,
    workers=None,
):
    """Pack audio into shards.

    Audio is stored as 16-bit mono. A 16-bit mono file with the same rate is
    stored without loss. Other audio is averaged over channels, resampled and
    rounded. Samples beyond full scale are clipped, and counted for each clip in
    the column `clipped` of the manifest.

    The folder gets the shards, `manifest.csv`, `index.json` (the list of shards
    for the `wids` package), `unreadable.csv`, and files from which a rerun
    resumes. The manifest has the columns of the rows. Its `path`, `duration`
    and `sample_rate` are those of the packed clip; `source_path` is the
    original path.

    Arguments
    ---------
    rows : list of dict of str
        From `read_manifest` or `folder_rows`.
    folder : str or os.PathLike
        New or empty folder, or that of an earlier run with the same arguments,
        which is then completed.
    codec : str
        "flac", or "int16": twice the bytes, and faster to read.
    sample_rate : int
        Sampling rate of the packed audio in Hz.
    shard_bytes : int
        Largest size of the audio of a shard in bytes. A shard of one clip may
        be larger.
    max_unreadable : float
        Largest accepted fraction of unreadable files, 0 to 1.
    workers : int, optional
        Processes that decode and encode; one for each core by default.

    Returns
    -------
    Packed

    Raises
    ------
    ManifestError
        If too many files are unreadable, or the folder contains other files.
    OSError
        If the shards cannot be written, or a worker was killed.

    Example
    -------
    >>> import numpy
    >>> from ssast_lobes.dataio.tables import read_manifest
    >>> folder = getfixture("tmpdir")
    >>> path = str(folder.join("a.wav"))
    >>> soundfile.write(path, numpy.linspace(0, 0.5, 800), 16000)
    >>> rows = [{"id": "a", "path": path, "label": "ramp"}]
    >>> packed = pack(rows, folder / "shards", workers=1)
    >>> [row] = read_manifest(packed.manifest)
    >>> os.path.basename(row["path"]), row["label"], row["duration"]
    ('000000.tar#000000000-...flac@512+...', 'ramp', '0.05')
    >>> torch.equal(read_audio(row["path"]), read_audio(path))
    True
    """
    if codec not in CODECS:
        raise ValueError(f"codec must be flac or int16, got '{codec}'")
    folder = Path(os.path.abspath(os.path.expanduser(folder)))
    _open_folder(folder, _settings(rows, codec, sample_rate, shard_bytes))
    parts = _finished(folder)
    done = parts[-1]["next"] if parts else 0
    unreadable = [tuple(bad) for part in parts for bad in part["unreadable"]]
    audit = functools.partial(
        _audit, folder, unreadable, len(rows), max_unreadable
    )
    encode = functools.partial(_encode, codec, sample_rate)
    bar = tqdm(total=len(rows), initial=done, desc="Packing", unit="clip")
    clips = _clips(rows, done, encode, workers or os.cpu_count())
    try:
        with bar, closing(clips):
            noted = _noting(clips, bar, unreadable, max_unreadable, audit)
            numbered = _numbered(noted, len(parts), shard_bytes)
            for number, group in itertools.groupby(numbered, itemgetter(0)):
                own = (clip for _, clip in group)
                parts.append(
                    _write_shard(folder, number, own, codec, sample_rate)
                )
    except BrokenProcessPool as error:
        raise OSError(
            "a worker was killed, perhaps by lack of memory: rerun the same "
            "command with fewer workers"
        ) from error
    audit()
    if not any(part["clips"] for part in parts):
        raise ManifestError(f"none of the {len(rows)} files could be read")
    _write_index(folder, parts)
    return Packed(
        manifest=str(folder / MANIFEST),
        clips=sum(part["clips"] for part in parts),
        shards=len(parts),
        hours=sum(part["seconds"] for part in parts) / 3600,
        clipped=sum(part["clipped"] for part in parts),
        unreadable=unreadable,
    )


def read_from_shards(parts, folder, manifest):
    """Replace the paths of an experiment's clips by addresses in shards.

    A clip that was unreadable when the shards were made keeps its path.

    Arguments
    ---------
    parts : dict
        From `dataio.splits.read_splits`.
    folder : str or os.PathLike
        Folder of the shards. The id of a clip there is that in the manifest
        from which the shards were made.
    manifest : str or os.PathLike
        Manifest of the experiment, for the command in error messages.

    Returns
    -------
    dict
        Like `parts`, with the `path` and `duration` of the packed clips.

    Raises
    ------
    ManifestError
        If there are no shards, or they lack clips.

    Example
    -------
    >>> read_from_shards({}, "/no/shards", "results/manifest.csv")
    Traceback (most recent call last):
    ...
    ssast_lobes...ManifestError: ...there are no shards...
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    command = f"`ssast-lobes shard {manifest} {folder}`"
    if not os.path.isfile(os.path.join(folder, MANIFEST)):
        raise ManifestError(
            f"{folder}: there are no shards, or not all of them; make them "
            f"with {command}, then rerun this command"
        )
    packed = {
        row["id"]: {
            "path": os.path.join(folder, row["path"]),
            "duration": float(row["duration"]),
        }
        for row in _table(folder, MANIFEST)
    }
    left_out = {row["path"] for row in _table(folder, UNREADABLE)}
    found, missing = {}, []
    for name, rows in parts.items():
        if not isinstance(rows, dict):
            found[name] = rows
            continue
        found[name] = {}
        for clip, row in rows.items():
            own = packed.get(_as_utf8(clip))
            # Clips of another corpus may have the same ids.
            if own and abs(own["duration"] - row["duration"]) > _OTHER_SECONDS:
                own = None
            if own is None and _as_utf8(row["path"]) not in left_out:
                missing.append(clip)
            found[name][clip] = row | (own or {})
    if missing:
        raise ManifestError(
            f"{folder}: {len(missing)} clips of this experiment are not among "
            f"these shards, such as {', '.join(missing[:_SHOWN_CLIPS])}; they "
            f"were made of another manifest. Remove them and run {command}"
        )
    return found


class _Clip(NamedTuple):
    """A row and its audio, or the reason why there is none."""

    number: int
    row: dict
    data: bytes = b""
    frames: int = 0
    clipped: int = 0
    reason: str | None = None


def _as_utf8(text):
    """Return a text with escapes for the bytes that are not UTF-8."""
    escaped = text.encode("utf-8", "surrogateescape")
    return escaped.decode("utf-8", "backslashreplace")


def _settings(rows, codec, sample_rate, shard_bytes):
    digest = hashlib.sha256(json.dumps(rows).encode())
    return {
        "format_version": _FORMAT_VERSION,
        "codec": codec,
        "sample_rate": sample_rate,
        "shard_bytes": shard_bytes,
        "manifest_sha256": digest.hexdigest(),
    }


def _open_folder(folder, settings):
    """Make the folder, or check that its run has the same settings."""
    path = folder / _SETTINGS
    if path.is_file():
        then = json.loads(path.read_text("utf-8"))
        changed = [key for key in settings if settings[key] != then.get(key)]
        if changed:
            raise ManifestError(
                f"{folder} holds shards of another manifest, or made with "
                f"other settings ({', '.join(changed)} changed): choose "
                "another folder, or remove this one"
            )
    else:
        os.makedirs(folder, exist_ok=True)
        if not all(own.name.startswith(_SETTINGS) for own in folder.iterdir()):
            raise ManifestError(
                f"{folder} is not empty, and holds no shards: choose another "
                "folder"
            )
        write_json(path, settings)
    (folder / _PARTS).mkdir(exist_ok=True)
    # A run that was killed leaves partial files.
    for partial in folder.rglob("*.partial"):
        partial.unlink()


def _shard_name(number):
    return f"{number:06d}.tar"


def _part_file(folder, number):
    return folder / _PARTS / f"{number:06d}.json"


def _finished(folder):
    """Return the index entries of the shards before an incomplete one."""
    parts = []
    while True:
        number = len(parts)
        try:
            part = json.loads(_part_file(folder, number).read_text("utf-8"))
            size = (folder / _shard_name(number)).stat().st_size
        except (FileNotFoundError, ValueError):
            return parts
        if size != part["bytes"]:
            return parts
        del part["rows"]
        parts.append(part)


def _write_index(folder, parts):
    """Write the manifest, and the list of shards that `wids` reads."""
    with atomic_write(folder / MANIFEST) as file:
        table = csv.writer(file)
        for number in range(len(parts)):
            part = json.loads(_part_file(folder, number).read_text("utf-8"))
            if number == 0:
                table.writerow(part["rows"][0])
            table.writerows(row.values() for row in part["rows"])
    shards = [
        {
            "url": _shard_name(number),
            "nsamples": part["clips"],
            "filesize": part["bytes"],
        }
        for number, part in enumerate(parts)
    ]
    index = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": shards,
    }
    write_json(folder / INDEX, index)


def _audit(folder, unreadable, n_files, max_unreadable):
    """List the unreadable files; raise if there are too many."""
    path = folder / UNREADABLE
    with atomic_write(path) as file:
        rows = [[_as_utf8(cell) for cell in bad] for bad in unreadable]
        csv.writer(file).writerows([("path", "reason"), *rows])
    check_unreadable(path, n_files, max_unreadable)


def _table(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _numbered(clips, number, shard_bytes):
    """Yield shard number and clip; shards begin with a readable clip."""
    size = 0
    for clip in clips:
        if size and clip.data and size + len(clip.data) > shard_bytes:
            number, size = number + 1, 0
        size += len(clip.data)
        yield number, clip


def _noting(clips, bar, unreadable, max_unreadable, audit):
    """Yield the clips unchanged; count them, raise if too many are bad."""
    for clip in clips:
        if clip.reason is not None:
            unreadable.append((clip.row["path"], clip.reason))
            if len(unreadable) > max_unreadable * bar.total:
                audit()
        yield clip
        bar.update()


def _write_shard(folder, number, clips, codec, sample_rate):
    """Write a shard and its index entry; return the entry without its rows."""
    name = _shard_name(number)
    part = {"next": 0, "clips": 0, "seconds": 0.0, "clipped": 0}
    rows, unreadable = [], []
    with atomic_write(folder / name, "wb") as file:
        with tarfile.open(
            fileobj=file, mode="w", format=tarfile.USTAR_FORMAT
        ) as tar:
            for clip in clips:
                part["next"] = clip.number + 1
                if clip.reason is not None:
                    unreadable.append((clip.row["path"], clip.reason))
                    continue
                rows.append(_add(tar, name, clip, codec, sample_rate))
                part["clips"] += 1
                part["seconds"] += clip.frames / sample_rate
                part["clipped"] += clip.clipped > 0
        part["bytes"] = file.tell()
        # The shard must be on disk before its index entry.
        file.flush()
        os.fsync(file.fileno())
    part["unreadable"] = unreadable
    with atomic_write(_part_file(folder, number)) as file:
        json.dump(part | {"rows": rows}, file)
    return part


def _add(tar, shard, clip, codec, sample_rate):
    """Add a clip to a shard; return its row of the manifest."""
    extension, _ = CODECS[codec]
    digest = hashlib.blake2b(clip.data, digest_size=4).hexdigest()
    # With the digest, the address fits only this audio; see `TarMember`.
    key = f"{clip.number:09d}-{digest}"
    address = Address(
        shard,
        f"{key}.{extension}",
        tar.offset + tarfile.BLOCKSIZE,
        len(clip.data),
    )
    known = {name: _as_utf8(value) for name, value in clip.row.items()}
    row = {"id": known.pop("id"), "path": str(address)}
    row |= {name: value for name, value in known.items() if name != "path"}
    row |= {
        "duration": clip.frames / sample_rate,
        "sample_rate": sample_rate,
        "clipped": clip.clipped,
        "source_path": known["path"],
    }
    sample = {name: value for name, value in row.items() if name != "path"}
    for member, data in (
        (address.member, clip.data),
        (f"{key}.json", json.dumps(sample).encode()),
    ):
        info = tarfile.TarInfo(member)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return row


def _clips(rows, start, encode, workers):
    """Yield the clips of all rows from `start` on; workers read ahead."""
    with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
        waiting = deque()
        try:
            for number in range(start, len(rows)):
                path = rows[number]["path"]
                waiting.append((number, pool.submit(encode, path)))
                if len(waiting) > _AHEAD * workers:
                    yield _clip(rows, *waiting.popleft())
            while waiting:
                yield _clip(rows, *waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _clip(rows, number, future):
    return _Clip(number, rows[number], **future.result())


def _start_worker():
    """Use one thread, so that bytes are the same anywhere; ignore Ctrl-C."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _encode(codec, sample_rate, path):
    """Encode the audio of a file for a `_Clip`."""
    try:
        wav = read_audio(path, sample_rate)
    except UnreadableAudio as error:
        return {"reason": error.reason(path)}
    levels = (wav * _FULL_SCALE).round()
    kept = levels.clamp(-_FULL_SCALE, _FULL_SCALE - 1)
    encoded = io.BytesIO()
    soundfile.write(
        encoded,
        kept.to(torch.int16).numpy(),
        sample_rate,
        format=CODECS[codec][1],
        subtype="PCM_16",
    )
    return {
        "data": encoded.getvalue(),
        "frames": len(wav),
        "clipped": int((levels != kept).sum()),
    }
