"""Audio out of Debian packages: what is taken, what is not, and going on."""

import csv
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

FOLDER = Path(__file__).parents[1] / "recipes" / "DebianSounds"

pytestmark = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed"
)


@pytest.fixture(scope="module")
def recipe():
    sys.path.insert(0, str(FOLDER))
    try:
        import debian_sounds_prepare
    finally:
        sys.path.remove(str(FOLDER))
    return debian_sounds_prepare


def audio(seconds, rate=16000, channels=1, kind="WAV", seed=0):
    draw = np.random.default_rng(seed)
    samples = 0.3 * draw.uniform(-1, 1, (round(seconds * rate), channels))
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def build_package(folder, name, files):
    """A real .deb with these files in it."""
    root = folder / f"root-{name}"
    control = root / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    control.write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\n"
        "Maintainer: Nobody <nobody@example.org>\nDescription: sounds\n"
    )
    files = {f"usr/share/doc/{name}/copyright": b"CC0-1.0", **files}
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    subprocess.run(
        ["dpkg-deb", "--build", root, folder / f"{name}_1_all.deb"],
        check=True,
        capture_output=True,
    )


def rows(manifest):
    with open(manifest, newline="") as file:
        return list(csv.DictReader(file))


def zipped(**files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"../{name}.ogg", content)
    return file.getvalue()


def test_audio_of_all_kinds_becomes_16_khz_mono(recipe, tmp_path):
    build_package(
        tmp_path,
        "zoo",
        {
            "usr/share/zoo/dog.wav": audio(1.0, 44100, channels=2),
            "usr/share/zoo/again.wav": audio(1.0, 44100, channels=2),
            "usr/share/zoo/cat.OGG": audio(0.5, 22050, kind="OGG", seed=1),
            "usr/share/zoo/more.pk3": zipped(cow=audio(0.4, kind="OGG")),
            "usr/share/zoo/long.flac": audio(9.0, kind="FLAC", seed=2),
            "usr/share/zoo/click.wav": audio(0.01),
            "usr/share/zoo/broken.wav": b"RIFF, but no more",
            "usr/share/zoo/broken.zip": b"PK, but no more",
            "usr/share/zoo/silence.wav": audio(1.0)[:44] + bytes(32000),
            "usr/share/zoo/picture.png": b"no audio",
        },
    )
    manifest = recipe.prepare_debian_sounds(
        tmp_path, ["zoo"], seconds_per_file=2.0
    )
    found = {row["source_file"]: row for row in rows(manifest)}
    assert {name: float(row["duration"]) for name, row in found.items()} == {
        "usr/share/zoo/again.wav": 1.0,
        "usr/share/zoo/cat.OGG": 0.5,
        "usr/share/zoo/more.pk3/../cow.ogg": 0.4,
        "usr/share/zoo/long.flac": 2.0,
    }
    for row in found.values():
        info = soundfile.info(tmp_path / row["path"])
        assert (info.samplerate, info.channels) == (16000, 1)
        assert info.duration == pytest.approx(float(row["duration"]), abs=1e-3)
        assert (tmp_path / row["license"]).read_text() == "CC0-1.0"


def test_a_package_has_its_share_and_a_recording_counts_once(recipe, tmp_path):
    many = {
        f"usr/share/a/{i}.wav": audio(1.0, kind="WAV", seed=i) for i in range(8)
    }
    build_package(tmp_path, "first", many)
    build_package(tmp_path, "second", {"usr/b.wav": many["usr/share/a/0.wav"]})
    whole = rows(recipe.prepare_debian_sounds(tmp_path, ["first", "second"]))
    assert [row["package"] for row in whole] == ["first"] * 8

    part = tmp_path / "part"
    part.mkdir()
    for deb in tmp_path.glob("*.deb"):
        shutil.copy(deb, part)
    chosen = [
        row["source_file"]
        for row in rows(
            recipe.prepare_debian_sounds(
                part, ["first"], minutes_per_package=2.5 / 60
            )
        )
    ]
    assert len(chosen) == 3 and set(chosen) < many.keys()


def test_what_was_stopped_goes_on(recipe, tmp_path, monkeypatch):
    for name in ("first", "second"):
        build_package(
            tmp_path, name, {f"usr/{name}.wav": audio(1.0, seed=len(name))}
        )
    opened = []
    unpack = recipe._unpack

    def stop_at_second(deb, package, *rest):
        opened.append(package)
        if opened == ["first", "second"]:
            raise KeyboardInterrupt
        return unpack(deb, package, *rest)

    monkeypatch.setattr(recipe, "_unpack", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        recipe.prepare_debian_sounds(tmp_path, ["first", "second"])
    manifest = recipe.prepare_debian_sounds(tmp_path, ["first", "second"])
    assert opened == ["first", "second", "second"]
    assert {row["package"] for row in rows(manifest)} == {"first", "second"}


def test_what_cannot_be_had_is_named(recipe, tmp_path, monkeypatch):
    (tmp_path / "torn_1_all.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(RuntimeError, match="torn_1_all.deb cannot be opened"):
        recipe.prepare_debian_sounds(tmp_path, ["torn"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="there is no apt-get"):
        recipe.prepare_debian_sounds(tmp_path, ["absent"])
