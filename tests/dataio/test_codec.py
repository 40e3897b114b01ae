"""Audio that takes the extra `codec`: told without it, read with it."""

import csv
import sys

import numpy as np
import pytest
import soundfile
import torch
from scan_kit import scan_and_write

from ssast_lobes.cli import main
from ssast_lobes.dataio import codec
from ssast_lobes.dataio.audio import audio_info, read_audio
from ssast_lobes.dataio.scan import folder_rows
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.dataio.waveforms import UnreadableAudio, to_mono
from ssast_lobes.inference import AudioEncoder
from ssast_lobes.inference.audio import read_blocks

NEED = "3 files of kinds that need the `codec` extra: .m4a (2), .webm (1)"
REMEDY = "pip install 'ssast_lobes[codec]'"


def noise(seconds, rate, channels=1):
    draw = np.random.default_rng(0)
    return draw.uniform(-0.3, 0.3, (round(seconds * rate), channels))


@pytest.fixture
def fresh():
    """Whether torchcodec loads is asked anew, in the test and after it."""
    codec.load_decoder.cache_clear()
    yield
    codec.load_decoder.cache_clear()


@pytest.fixture
def without(fresh, monkeypatch):
    for name in "torchcodec", "torchcodec.decoders":
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def folder(tmp_path):
    """Three good files, and three that take the extra."""
    folder = tmp_path / "audio"
    folder.mkdir()
    for number in range(3):
        path = folder / f"{number}.wav"
        soundfile.write(path, noise(0.4, 16000), 16000)
    for name in "a.m4a", "b.M4A", "c.webm":
        (folder / name).write_bytes(b"what FFmpeg reads")
    return folder


def test_without_the_extra_files_are_listed_and_counted(
    without, folder, tmp_path
):
    rows = folder_rows(folder)
    assert len(rows) == 6
    kept, unreadable = scan_and_write(
        rows, tmp_path / "out", max_unreadable=0.5
    )
    assert [row["id"] for row in kept] == ["0.wav", "1.wav", "2.wav"]
    with open(tmp_path / "out" / "unreadable.csv", newline="") as file:
        listed = [tuple(row) for row in csv.reader(file)][1:]
    assert listed == unreadable
    assert [path for path, _ in listed] == [
        str(folder / name) for name in ("a.m4a", "b.M4A", "c.webm")
    ]
    for _, reason in listed:
        assert "needs the `codec` extra" in reason and REMEDY in reason
    with pytest.raises(ManifestError) as caught:
        scan_and_write(rows, tmp_path / "out")
    assert f"{NEED}; {REMEDY}" in str(caught.value)


def test_without_the_extra_the_interfaces_say_so(without, folder):
    path = folder / "a.m4a"
    encode = AudioEncoder.from_hparams().encode_file
    for read in audio_info, read_audio, encode:
        with pytest.raises(UnreadableAudio, match="`codec` extra") as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: .m4a needs")


def test_without_the_extra_the_commands_say_so(
    without, folder, tmp_path, capsys
):
    output = str(tmp_path / "out.npz")
    assert main(["embed", str(folder), "--output", output]) == 0
    said = capsys.readouterr()
    assert "3 of 6 files could not be read" in said.err
    assert f"{NEED}; {REMEDY}" in said.err
    words = ["shard", folder, tmp_path / "shards", "--max-unreadable", 0.5]
    assert main([str(word) for word in words]) == 0
    assert NEED in capsys.readouterr().err


def test_a_torchcodec_that_does_not_load_is_told(
    fresh, folder, tmp_path, monkeypatch
):
    for name in "torchcodec", "torchcodec.decoders":
        monkeypatch.delitem(sys.modules, name, raising=False)
    broken = tmp_path / "broken" / "torchcodec"
    broken.mkdir(parents=True)
    text = 'raise RuntimeError("Could not load libtorchcodec.\\nAt length.")'
    (broken / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(broken.parent)
    with pytest.raises(UnreadableAudio) as caught:
        read_audio(folder / "a.m4a")
    assert "does not load (Could not load libtorchcodec.)" in str(caught.value)
    assert f"fits torch {torch.__version__}" in str(caught.value)


# With the extra -----------------------------------------------------------


@pytest.fixture
def encoder():
    """Writes what FFmpeg encodes, where there is the extra."""
    _, reason = codec.load_decoder()
    if reason is not None:
        pytest.skip(f"m4a {reason}")
    from torchcodec.encoders import AudioEncoder

    def write(path, audio, rate):
        samples = torch.from_numpy(audio.T).float()
        AudioEncoder(samples, sample_rate=rate).to_file(str(path))

    return write


@pytest.mark.parametrize(
    "name, rate, channels",
    [
        ("music.m4a", 44100, 2),
        ("speech.mp4", 16000, 1),
        ("bare.aac", 22050, 1),
        ("browser.webm", 48000, 2),
        ("film.mka", 8000, 1),
    ],
)
def test_every_kind_is_read(encoder, tmp_path, name, rate, channels):
    path = tmp_path / name
    time = np.arange(3 * rate) / rate
    tone = 0.4 * np.sin(2 * np.pi * 440 * time)
    encoder(path, np.stack([tone] * channels, axis=1), rate)
    info = audio_info(path)
    assert (info.sample_rate, info.channels) == (rate, channels)
    assert info.seconds == pytest.approx(3, abs=0.2)
    whole = read_audio(path)
    assert len(whole) == pytest.approx(info.seconds * 16000, abs=1)
    assert whole[8000:40000].std() == pytest.approx(0.4 / 2**0.5, rel=0.05)
    whole = read_audio(path, rate)
    assert len(whole) == info.frames
    for start in 0.0, 1.23, info.seconds - 0.5:
        first = round(start * rate)
        crop = read_audio(path, rate, start, 0.5)
        assert torch.equal(crop, whole[first : first + rate // 2])
    with pytest.raises(UnreadableAudio, match="no audio at 9 s"):
        read_audio(path, start=9.0)


def test_blocks_are_parts_of_what_decodes(encoder, tmp_path):
    path = tmp_path / "long.webm"
    encoder(path, noise(8, 48000), 48000)
    samples = codec.load_decoder()[0](path).get_all_samples().data[0]
    whole = to_mono(samples, 48000)
    blocks = list(read_blocks(path, 16000, length=48000, hop=48000))
    assert torch.allclose(torch.cat([wav for _, wav in blocks]), whole)


def test_files_are_prepared_and_embedded(encoder, folder, tmp_path):
    encoder(folder / "a.m4a", noise(1, 16000), 16000)
    (folder / "b.M4A").unlink()
    kept, [(path, reason)] = scan_and_write(
        folder_rows(folder), tmp_path / "out", max_unreadable=0.5
    )
    assert [row["id"] for row in kept] == ["0.wav", "1.wav", "2.wav", "a.m4a"]
    assert path == str(folder / "c.webm")
    assert reason.startswith("FFmpeg cannot decode it (")
    assert (
        AudioEncoder.from_hparams()
        .encode_file(folder / "a.m4a")
        .isfinite()
        .all()
    )


def test_a_file_that_changes_is_decoded_again(encoder, tmp_path):
    path = tmp_path / "a.m4a"
    for seconds in 1, 2:
        encoder(path, noise(seconds, 16000), 16000)
        assert audio_info(path).seconds == pytest.approx(seconds, abs=0.1)
