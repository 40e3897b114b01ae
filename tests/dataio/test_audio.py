"""Reading audio: every kind of file, exact crops, clear errors."""

import errno
import math
import os
import pickle
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from scan_kit import scan_and_write

from ssast_lobes.dataio import audio
from ssast_lobes.dataio.addresses import Address
from ssast_lobes.dataio.audio import audio_info, read_audio
from ssast_lobes.dataio.dataset import ClipReader
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.inference.audio import read_blocks

TONE_HZ = 1013  # lossy codecs distort tones that repeat with their frames
LEVEL = 0.4

# name, channels, rate in Hz, subtype, smallest signal-to-noise ratio in dB
KINDS = [
    ("mulaw.wav", 2, 8000, "ULAW", 30),
    ("eight_bit.wav", 1, 11025, "PCM_U8", 30),
    ("float.wav", 6, 16000, "FLOAT", 60),
    ("deep.flac", 2, 44100, "PCM_24", 60),
    ("vorbis.ogg", 1, 48000, "VORBIS", 25),
    ("opus.ogg", 2, 48000, "OPUS", 25),
    ("music.mp3", 2, 44100, "MPEG_LAYER_III", 30),
    ("speech.mp3", 1, 16000, "MPEG_LAYER_III", 30),
    ("old.aiff", 1, 22050, "PCM_16", 60),
    ("sun.au", 1, 32000, "PCM_32", 60),
    ("phone.wav", 1, 8000, "GSM610", 10),
]


def tone(seconds, rate, channels=1):
    time = np.arange(round(seconds * rate)) / rate
    wave = LEVEL * np.sin(2 * np.pi * TONE_HZ * time)
    return np.stack([wave] * channels, axis=1)


def noise(seconds, rate, seed=0):
    rng = np.random.default_rng(seed)
    return 0.2 * rng.standard_normal(round(seconds * rate))


def level_and_snr(wave, rate):
    """Amplitude of the tone, and the tone against all else in dB."""
    time = torch.arange(len(wave), dtype=torch.float64) / rate
    phase = 2 * math.pi * TONE_HZ * time
    basis = torch.stack([phase.sin(), phase.cos()], dim=1)
    fit = torch.linalg.lstsq(basis, wave.double()[:, None]).solution
    rest = wave - (basis @ fit)[:, 0]
    amplitude = fit.norm().item()
    return amplitude, 20 * math.log10(amplitude / (rest.std() * 2**0.5))


@pytest.fixture(params=KINDS, ids=[kind[0] for kind in KINDS])
def kind(request, tmp_path):
    name, channels, rate, subtype, snr = request.param
    path = tmp_path / name
    soundfile.write(path, tone(2.0, rate, channels), rate, subtype=subtype)
    return path, channels, rate, snr


def test_every_kind_gives_the_same_tone(kind):
    path, channels, rate, least_snr = kind
    info = audio_info(path)
    assert (info.sample_rate, info.channels) == (rate, channels)
    assert info.seconds == pytest.approx(2.0, abs=0.03)

    wave = read_audio(path)
    assert wave.dtype == torch.float32
    assert len(wave) == pytest.approx(32000, abs=500)
    level, snr = level_and_snr(wave[8000:24000], 16000)
    assert level == pytest.approx(LEVEL, rel=0.02)
    assert snr > least_snr


def test_crop_equals_the_same_part_of_the_whole(kind):
    path, *_ = kind
    whole = read_audio(path)
    crop = read_audio(path, start=0.8, seconds=0.5)
    assert len(crop) == 8000
    # The resampler sees silence beyond the ends of a crop.
    inner = slice(100, -100)
    assert torch.allclose(crop[inner], whole[12800:20800][inner], atol=1e-4)


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "stereo.wav"
    channels = np.stack([np.full(100, 0.5), np.full(100, -0.1)], axis=1)
    soundfile.write(path, channels, 16000, subtype="FLOAT")
    assert torch.allclose(read_audio(path), torch.tensor(0.2))


def test_resampling_does_not_alias(tmp_path):
    path = tmp_path / "high.wav"
    time = np.arange(48000) / 48000
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 9000 * time), 48000)
    assert read_audio(path)[500:-500].abs().max() < 0.5 * 10 ** (-60 / 20)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 22255, 44100, 48000])
def test_crops_have_exactly_the_wanted_length(tmp_path, rate):
    path = tmp_path / "noise.wav"
    frames = 2 * rate + 12345 % rate
    soundfile.write(path, noise(frames / rate, rate), rate)
    duration = audio_info(path).seconds
    rng = np.random.default_rng(rate)
    for place in [0.0, *[1.0] * 20, *rng.random(20)]:
        seconds = rng.uniform(0.01, 1.9)
        start = place * (duration - seconds)
        wave = read_audio(path, start=start, seconds=seconds)
        assert len(wave) == round(seconds * 16000)


def test_what_is_left_at_the_end_comes_short(tmp_path):
    path = tmp_path / "short.wav"
    soundfile.write(path, noise(1, 16000), 16000)
    assert len(read_audio(path, seconds=5)) == 16000
    assert len(read_audio(path, start=0.75, seconds=5)) == 4000
    with pytest.raises(UnreadableAudio, match="no audio at 1 s.* has 1 s"):
        read_audio(path, start=1.0, seconds=5)
    with pytest.raises(ValueError, match="start must be at least 0, got -0.5"):
        read_audio(path, start=-0.5)


def test_a_file_that_may_not_be_read_is_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "secret.wav"
    path.write_bytes(b"RIFF")

    def refuse(*arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied")

    # The tests may run as a user who may read everything.
    monkeypatch.setattr(audio, "open", refuse, raising=False)
    with pytest.raises(UnreadableAudio, match="secret.wav: Permission denied"):
        audio_info(path)


@pytest.mark.parametrize("start", [20.0, 35.3])
def test_mp3_crops_are_exact_where_frames_share_bits(tmp_path, start):
    path = tmp_path / "variable.mp3"
    soundfile.write(
        path,
        noise(40, 16000),
        16000,
        bitrate_mode="VARIABLE",
        compression_level=0.9,
    )
    whole = read_audio(path)
    crop = read_audio(path, start=start, seconds=1.0)
    first = round(start * 16000)
    assert torch.allclose(crop, whole[first : first + 16000], atol=1e-5)


def test_odd_rates_need_no_giant_kernel(tmp_path):
    path = tmp_path / "odd.aiff"
    soundfile.write(path, tone(1.0, 22255), 22255)
    level, snr = level_and_snr(read_audio(path)[2000:14000], 16000)
    assert level == pytest.approx(LEVEL, rel=0.01) and snr > 40


@pytest.mark.parametrize("name", ["ä ö, 音声.wav", "new\nline.flac", "~a.ogg"])
def test_odd_names(tmp_path, name):
    path = tmp_path / name
    soundfile.write(str(path), tone(0.1, 16000), 16000)
    assert len(read_audio(path)) == len(read_audio(str(path))) == 1600


def truncate(path, fraction):
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])


def write_no_samples_and_a_chunk(path):
    soundfile.write(path, np.zeros(0), 16000)
    path.write_bytes(path.read_bytes() + b"LIST\4\0\0\0INFO")


def write_two_streams(path):
    content = b""
    for seed in 0, 1:
        soundfile.write(path, noise(1, 16000, seed), 16000)
        content += path.read_bytes()
    path.write_bytes(content)


def write_nan(path):
    wave = noise(1, 16000)
    wave[8000] = np.nan
    soundfile.write(path, wave, 16000, subtype="FLOAT")


@pytest.mark.parametrize(
    "name, write, reason",
    [
        ("missing.wav", lambda path: None, "no such file"),
        ("folder.wav", lambda path: path.mkdir(), "no such file"),
        ("zero.wav", lambda path: path.touch(), "empty"),
        ("zero.au", lambda path: path.touch(), "empty"),
        (
            "header_only.wav",
            lambda path: soundfile.write(path, np.zeros(0), 16000),
            "no samples",
        ),
        ("text.flac", lambda path: path.write_text("hello"), "cannot open"),
        ("text.mp3", lambda path: path.write_text("hello"), "cannot open"),
        ("samples.raw", lambda path: path.write_bytes(b"1234"), "no header"),
        ("empty.wav", write_no_samples_and_a_chunk, "no samples"),
        ("radio.ogg", write_two_streams, "several Ogg streams in a row"),
    ],
)
def test_bad_headers_name_file_and_reason(tmp_path, name, write, reason):
    path = tmp_path / name
    write(path)
    for read in audio_info, read_audio:
        with pytest.raises(UnreadableAudio, match=reason) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_nan_samples_are_unreadable(tmp_path):
    path = tmp_path / "nan.wav"
    write_nan(path)
    with pytest.raises(UnreadableAudio, match="NaN"):
        read_audio(path)
    assert len(read_audio(path, seconds=0.4)) == 6400


@pytest.mark.parametrize("extension", ["flac", "mp3"])
def test_truncated_files_pass_the_scan_and_fail_to_decode(tmp_path, extension):
    path = tmp_path / f"cut.{extension}"
    soundfile.write(path, noise(10, 16000), 16000)
    truncate(path, 0.5)
    assert audio_info(path).seconds == 10
    assert len(read_audio(path, start=1.0, seconds=2.0)) == 32000
    for part in {}, {"start": 4.5, "seconds": 1.0}, {"start": 8.0}:
        with pytest.raises(UnreadableAudio, match=f"cut.{extension}: "):
            read_audio(path, **part)


@pytest.mark.parametrize("extension", ["wav", "ogg", "aiff"])
def test_truncated_files_of_known_length_give_what_is_there(
    tmp_path, extension
):
    path = tmp_path / f"cut.{extension}"
    soundfile.write(path, noise(10, 16000), 16000)
    truncate(path, 0.5)
    info = audio_info(path)
    assert 4 < info.seconds < 6
    assert len(read_audio(path)) == info.frames


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_no_files_stay_open(tmp_path, mp3s):
    path = tmp_path / "nan.wav"
    write_nan(path)
    open_before = os.listdir("/proc/self/fd")
    for _ in range(5):
        with pytest.raises(UnreadableAudio):
            read_audio(path)
        read_audio(mp3s[1], seconds=1.0)
    assert len(os.listdir("/proc/self/fd")) == len(open_before)


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableAudio("a.wav: empty")))
    assert str(error) == "a.wav: empty"


# Headers that leave the length open ---------------------------------------


def mark(content, name, shift, data):
    """Write bytes at a distance from a name in a header."""
    place = content.index(name) + shift
    content[place : place + len(data)] = data


def mark_flac(content):
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    content[22:26] = bytes(4)


def mark_both_sizes(content):
    mark(content, b"RIFF", 4, bytes(4))
    mark(content, b"data", 4, bytes(4))


def mark_size(name, shift, data):
    return lambda content: mark(content, name, shift, data)


ONES = b"\xff" * 8
OPEN_HEADERS = [
    ("killed.wav", mark_both_sizes),
    ("no_size.wav", mark_size(b"data", 4, bytes(4))),
    ("piped.wav", mark_size(b"data", 4, ONES[:4])),
    ("piped.rf64", mark_size(b"ds64", 8, bytes(24))),
    ("killed.w64", mark_size(b"data", 16, bytes(8))),
    ("piped.caf", mark_size(b"data", 4, ONES)),
    ("killed.caf", mark_size(b"data", 4, bytes(8))),
    ("piped.au", mark_size(b".snd", 8, ONES[:4])),
    ("killed.au", mark_size(b".snd", 8, bytes(4))),
    ("killed.aiff", mark_size(b"SSND", 4, bytes(4))),
    ("piped.flac", mark_flac),
]


@pytest.mark.parametrize(
    "name, change", OPEN_HEADERS, ids=[name for name, _ in OPEN_HEADERS]
)
def test_a_header_that_lacks_the_length(tmp_path, name, change):
    whole, path = tmp_path / f"whole_{name}", tmp_path / name
    kind = path.suffix[1:].upper()
    soundfile.write(whole, noise(40, 8000), 8000, format=kind)
    content = bytearray(whole.read_bytes())
    change(content)
    path.write_bytes(content)
    assert audio_info(path) == audio_info(whole)
    assert torch.equal(read_audio(path), read_audio(whole))
    for start, seconds in (0.3, 1.0), (25.0, 15.0), (39.9, 0.1), (39.9, 5.0):
        part = {"start": start, "seconds": seconds}
        assert torch.equal(read_audio(path, **part), read_audio(whole, **part))


def quiet_then_loud(seconds=30):
    """Noise for which a variable bit rate begins low."""
    levels = np.repeat([1e-4, 0.3], [seconds * 4000, seconds * 12000])
    return levels * noise(seconds, 16000)


PICTURE = b"ID3\3\0\0" + b"\0\4\0\0" + bytes(4 * 2**14)
MP3 = {
    "as it is": lambda content: content,
    "a picture before it": lambda content: PICTURE + content,
    "a tag after it": lambda content: content + b"TAG" + bytes(125),
    "the last frame cut off": lambda content: content[:-20],
}


@pytest.fixture(
    scope="module",
    params=[("VARIABLE", 0.9, b"Xing"), ("CONSTANT", 0.5, b"Info")],
    ids=["variable", "constant"],
)
def mp3s(request, tmp_path_factory):
    """An mp3 that tells its length, and one with silence in that frame."""
    mode, level, name = request.param
    folder = tmp_path_factory.mktemp("mp3s")
    tagged, plain = folder / "tagged.mp3", folder / "plain.mp3"
    soundfile.write(
        tagged,
        quiet_then_loud(),
        16000,
        bitrate_mode=mode,
        compression_level=level,
    )
    content = tagged.read_bytes()
    assert content.count(name) == 1
    plain.write_bytes(content.replace(name, bytes(4)))
    return tagged, plain


@pytest.mark.parametrize("change", MP3.values(), ids=MP3)
def test_mp3_without_a_length_is_read_whole(mp3s, tmp_path, change):
    tagged, plain = mp3s
    path = tmp_path / "changed.mp3"
    path.write_bytes(change(plain.read_bytes()))
    info = audio_info(path)
    whole = read_audio(path)
    assert len(whole) == info.frames
    # The silence in place of the Xing frame, and what that told to leave out.
    told = read_audio(tagged)
    delay = 576 + 576 + 529
    known = whole[delay : delay + len(told)]
    assert len(known) > len(told) - 1200
    assert torch.allclose(known, told[: len(known)], rtol=0, atol=1e-6)
    for start in 0.0, 0.51, 17.03, info.seconds - 0.5:
        first = round(start * 16000)
        crop = read_audio(path, start=start, seconds=0.5)
        assert len(crop) == 8000
        assert torch.allclose(crop, whole[first : first + 8000], atol=1e-6)
    with pytest.raises(UnreadableAudio, match="no audio at 40 s, .* has 3"):
        read_audio(path, start=40.0, seconds=1.0)


def test_blocks_of_an_mp3_without_a_length_make_the_whole(mp3s):
    _, path = mp3s
    blocks = list(read_blocks(path, 16000, length=160000, hop=160000))
    assert [start for start, _ in blocks] == [0, 160000, 320000, 480000]
    whole = torch.cat([wav for _, wav in blocks])
    assert torch.allclose(whole, read_audio(path), atol=1e-6)


def test_an_mp3_without_a_length_inside_a_tar(mp3s, tmp_path):
    _, path = mp3s
    with tarfile.open(
        tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT
    ) as tar:
        tar.add(path, "a.mp3")
        size = tar.getmember("a.mp3").size
    address = Address(str(tmp_path / "a.tar"), "a.mp3", 512, size)
    assert audio_info(str(address)) == audio_info(path)
    assert torch.equal(read_audio(str(address)), read_audio(path))


@pytest.fixture
def amounts(monkeypatch):
    """Samples that come from each read of a file."""
    read, amounts = soundfile.SoundFile.read, []

    def counted(file, *words, **arguments):
        data = read(file, *words, **arguments)
        amounts.append(len(data))
        return data

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    return amounts


def test_a_known_length_costs_no_decoding(kind, mp3s, amounts):
    for path in kind[0], mp3s[0]:
        audio_info(path)
    assert amounts == []


def test_an_mp3_without_a_length_is_decoded_once_to_measure_it(
    mp3s, tmp_path, amounts
):
    _, path = mp3s
    rows = [{"id": "a", "path": str(path)}]
    [row], _ = scan_and_write(rows, tmp_path)
    assert sum(amounts) / 16000 == row["duration"] > 30
    amounts.clear()
    assert scan_and_write(rows, tmp_path) == ([row], [])
    assert amounts == []
    reader = ClipReader(crop_seconds=1.0, random_crop=True)
    for number in range(20):
        assert len(reader(row["path"], row["duration"], f"{number}")) == 16000
    # What libmpg123 needs before a crop, see `dataio.audio`.
    assert max(amounts) <= 11.1 * 16000
