"""Read audio of any rate, channel count, sample format and container.

Everything that libsndfile reads (wav, flac, ogg, mp3, aiff, au, ...) becomes
mono float32 at one sampling rate. Other formats (m4a, webm, ...) need the
extra `codec`; see `dataio.codec`. A crop reads only its own part of the file.
All problems with a file raise one error, `UnreadableAudio`. A path may be
the address of a file inside a tar; see `dataio.addresses`.
"""

import io
import math
import os
from typing import NamedTuple

import numpy as np
import soundfile
import torch

from ssast_lobes.dataio.addresses import TarMember, parse_address
from ssast_lobes.dataio.codec import CODEC_EXTENSIONS, decode, kind_of
from ssast_lobes.dataio.containers import (
    FAR_END,
    OPEN_LENGTH,
    Overlaid,
    Unbounded,
    counts_frames,
    is_chained,
    open_size,
)
from ssast_lobes.dataio.waveforms import (
    UnreadableAudio,
    check_samples,
    resampling_ratio,
    to_mono,
)

# An mp3 frame borrows bits from the frames before it, so a decoder that starts
# in mid-file gives wrong samples for up to 0.25 s. The pre-roll is longer
# because libmpg123 prints a warning at each seek: short clips are then read
# from their start, without a seek. Decoding 10 s takes 2 ms to 20 ms.
_MP3_PREROLL_SECONDS = 10

# Beyond these rates in Hz, the resampler's kernel is too large or empty. The
# range includes recordings of bats, at 500 kHz.
_RATES = (1000, 1_000_000)

# Decoded lossy audio may end a little before the length that its header
# estimates.
_MISSING_SECONDS = 0.1

# Rounding to source frames moves a crop by at most this many frames.
_ROUNDED = 2

# A file whose header states no length is read in blocks of this many frames.
_BLOCK_FRAMES = 2**18


class AudioInfo(NamedTuple):
    """Rate, length and channels of an audio file.

    Arguments
    ---------
    seconds : float
        Duration.
    sample_rate : int
        Sampling rate in Hz.
    channels : int
        Number of channels.
    frames : int
        Number of samples of each channel.
    """

    seconds: float
    sample_rate: int
    channels: int
    frames: int


def audio_info(path):
    """Read the header of an audio file, or all of it if needed.

    If the header does not state the exact length (an mp3 without a Xing or
    Info frame, for example), the whole file is decoded to measure it.

    Arguments
    ---------
    path : str or os.PathLike
        The file, or an address in a tar.

    Returns
    -------
    AudioInfo
        Duration (seconds), rate (Hz), channels and frames.

    Raises
    ------
    UnreadableAudio
        If the file is missing, empty or of unknown format, or if it must be
        decoded and decoding fails.

    Example
    -------
    >>> path = str(getfixture("tmpdir").join("silence.wav"))
    >>> soundfile.write(path, np.zeros((4000, 2)), 8000)
    >>> audio_info(path)
    AudioInfo(seconds=0.5, sample_rate=8000, channels=2, frames=4000)
    """
    with _open(path) as file:
        info = _header(path, file)
        if info.frames < OPEN_LENGTH:
            return info
        frames = sum(len(block) for block in _blocks(path, file, info.frames))
    if frames == 0:
        raise UnreadableAudio(f"{path}: the file holds no samples")
    return info._replace(seconds=frames / info.sample_rate, frames=frames)


def read_audio(path, sample_rate=16000, start=0.0, seconds=None):
    """Read a file, or a part of it, as mono at the wanted rate.

    Channels are averaged; levels do not change. The function seeks to the
    wanted part, so reading a part of a long file is not slower.

    Arguments
    ---------
    path : str or os.PathLike
        The file, or an address in a tar.
    sample_rate : int
        Sampling rate of the result in Hz.
    start : float
        Where to begin, in seconds.
    seconds : float, optional
        How much to read; by default up to the end of the file. The result has
        exactly `round(seconds * sample_rate)` samples, or fewer if the file
        ends earlier.

    Returns
    -------
    torch.Tensor
        Waveform (samples,), float32.

    Raises
    ------
    UnreadableAudio
        If the file cannot be opened, fails to decode, ends before the length
        that its header promises, contains NaN, infinite or absurdly loud
        samples, or ends before `start`.
    ValueError
        If `start` is negative.

    Example
    -------
    >>> path = str(getfixture("tmpdir").join("stereo.flac"))
    >>> soundfile.write(path, np.zeros((44100, 2)), 44100)
    >>> read_audio(path).shape
    torch.Size([16000])
    >>> read_audio(path, start=0.3, seconds=0.25).shape
    torch.Size([4000])
    """
    if start < 0:
        raise ValueError(f"start must be at least 0, got {start:g}")
    with _open(path) as file:
        info = _header(path, file)
        ratio = resampling_ratio(info.sample_rate, sample_rate)
        samples, first, count = None, round(start * info.sample_rate), None
        if seconds is not None:
            samples = round(seconds * sample_rate)
            count = math.ceil(samples * ratio)
            first = _fit(first, count, info.frames)
        if info.frames < OPEN_LENGTH:
            data = _known_part(path, file, info, first, count)
        else:
            data = _open_part(path, file, first, count)
    if len(data) == 0:
        raise UnreadableAudio(
            f"{path}: no audio at {start:g} s, the file has "
            f"{audio_info(path).seconds:g} s"
        )
    mono = _checked_mono(path, data)
    return to_mono(mono, info.sample_rate, sample_rate)[:samples]


def _open(path):
    """Open a file so that libsndfile reads all of it."""
    path = os.fspath(path)
    kind, source, overlay = soundfile.SoundFile, _source(path), None
    try:
        file = _opened(path, source, kind)
    except UnreadableAudio:
        # libsndfile does not open a CAF whose header lacks a size.
        size = _ask(open_size, path)
        if size is None:
            raise
        return _opened(path, Overlaid(_bytes_of(path), *size), kind)
    if file.frames == 0:
        overlay = _ask(open_size, path)
    elif _is_mpeg(file) and not _ask(counts_frames, path):
        kind, overlay = Unbounded, FAR_END
    elif file.frames >= OPEN_LENGTH:
        file.close()
        return _opened(path, _source(path), Unbounded)
    elif file.format == "OGG" and "Junk" in file.extra_info:
        if _ask(is_chained, path):
            file.close()
            raise UnreadableAudio(
                f"{path}: several Ogg streams in a row, of which libsndfile "
                "reads the first only; join them, for example with `ffmpeg`"
            )
    if overlay is None:
        return file
    file.close()
    return _opened(path, Overlaid(_bytes_of(path), *overlay), kind)


def _ask(question, path):
    """Return the answer of a function of `containers` about a file."""
    try:
        with _bytes_of(path) as file:
            return question(file)
    except OSError as error:
        raise UnreadableAudio(f"{path}: {error.strerror}") from error


def _opened(path, source, kind):
    try:
        return kind(source)
    except soundfile.LibsndfileError as error:
        raise UnreadableAudio(
            f"{path}: libsndfile cannot open it ({error.error_string})"
        ) from error
    except TypeError as error:  # soundfile reads .raw as headerless samples
        raise UnreadableAudio(f"{path}: no header ({error})") from error


def _is_mpeg(file):
    return file.subtype.startswith("MPEG")


def _bytes_of(path):
    """Open what `_source` names, to read bytes."""
    source = _source(path)
    return source if isinstance(source, io.IOBase) else open(source, "rb")


def _source(path):
    """Return what libsndfile opens: a path, a member of a tar, or an RF64."""
    address = parse_address(path)
    if address is not None:
        try:
            return TarMember(address)
        except FileNotFoundError as error:
            raise UnreadableAudio(f"{path}: there is no such tar") from error
        except OSError as error:
            raise UnreadableAudio(f"{path}: {error}") from error
    if not os.path.isfile(path):
        raise UnreadableAudio(f"{path}: no such file")
    if os.path.getsize(path) == 0:
        raise UnreadableAudio(f"{path}: the file is empty (0 bytes)")
    if kind_of(path) in CODEC_EXTENSIONS:
        try:
            return decode(path)
        except OSError as error:
            raise UnreadableAudio(f"{path}: {error}") from error
    # soundfile accepts names that are not UTF-8 only as bytes.
    return path if os.name == "nt" else os.fsencode(path)


def _header(path, file):
    frames, rate = file.frames, file.samplerate
    if frames <= 0:
        raise UnreadableAudio(f"{path}: the file holds no samples")
    if not _RATES[0] <= rate <= _RATES[1]:
        raise UnreadableAudio(
            f"{path}: a sampling rate of {rate} Hz; {_RATES[0]} to {_RATES[1]} "
            "Hz can be converted"
        )
    return AudioInfo(frames / rate, rate, file.channels, frames)


def _fit(first, count, frames):
    """Return the first frame, moved back if rounding put the end too late."""
    spare = frames - count
    return spare if 0 <= spare < first <= spare + _ROUNDED else first


def _known_part(path, file, info, first, count):
    """Read samples of a file whose length is known."""
    wanted = info.frames - first
    if count is not None:
        wanted = min(wanted, count)
    if wanted <= 0:
        return np.empty((0, info.channels))
    skipped = _seek(path, file, first)
    try:
        data = file.read(skipped + wanted, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise _decoding_fails(path, error) from error
    except MemoryError as error:  # a damaged header may promise any length
        raise UnreadableAudio(
            f"{path}: {info.seconds:g} s do not fit into the memory"
        ) from error
    data = data[skipped:]
    missing = (wanted - len(data)) / info.sample_rate
    if len(data) == 0 or missing > _MISSING_SECONDS:
        raise UnreadableAudio(
            f"{path}: the audio ends {missing:g} s before the "
            f"{info.seconds:g} s that its header promises"
        )
    return data


def _open_part(path, file, first, count):
    """Read samples of a file of unknown length, or fewer if it ends earlier."""
    start = max(first - _ROUNDED, 0)
    skipped = _seek(path, file, start)
    wanted = file.frames if count is None else first - start + count
    blocks = list(_blocks(path, file, skipped + wanted))
    data = np.concatenate(blocks)[skipped:]
    if count is not None:
        first = _fit(first, count, start + len(data))
    return data[first - start :]


def _blocks(path, file, frames):
    """Yield a number of frames in blocks, or fewer if the file ends earlier."""
    while frames > 0:
        shape = min(frames, _BLOCK_FRAMES), file.channels
        block = np.full(shape, np.nan, dtype=np.float32)
        try:
            count = len(file.read(out=block))
        except soundfile.LibsndfileError as error:
            # libmpg123 fails at an incomplete last mp3 frame: the samples that
            # it decoded before are those before the first NaN.
            overlaid = isinstance(file.name, Overlaid)
            if not (overlaid and file.name.exhausted):
                raise _decoding_fails(path, error) from error
            count = np.isfinite(block[:, 0]).sum()
        yield block[:count]
        if count < len(block):
            return
        frames -= count


def _decoding_fails(path, error):
    return UnreadableAudio(f"{path}: decoding fails ({error.error_string})")


def _checked_mono(path, data):
    """Check samples, and average their channels."""
    mono = data[:, 0] if data.shape[1] == 1 else data.mean(axis=1)
    mono = torch.from_numpy(mono)
    check_samples(path, mono)
    return mono


def _seek(path, file, first):
    """Seek to frame `first` or earlier; return the distance in frames."""
    preroll = first
    if file.seekable() or isinstance(file, Unbounded):
        mp3 = _is_mpeg(file)
        preroll = _MP3_PREROLL_SECONDS * file.samplerate if mp3 else 0
    position = max(first - preroll, 0)
    if position > 0:
        try:
            file.seek(position)
        except soundfile.LibsndfileError as error:
            raise UnreadableAudio(
                f"{path}: cannot seek to {position / file.samplerate:g} s "
                f"({error.error_string})"
            ) from error
    return first - position
