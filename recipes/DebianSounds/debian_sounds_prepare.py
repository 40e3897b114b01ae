#!/usr/bin/env python3
"""Sounds of Debian packages: free audio to pretrain on, without labels.

Games, paint programs, telephone exchanges and samplers in Debian's archive
bring thousands of recordings under free licences: effects, animals, machines,
instruments, and speech in a dozen languages, read and acted. Each package is
fetched with `apt-get download`, its audio taken out, and nothing installed.

To fetch them from the command line, on Debian or Ubuntu:
> python debian_sounds_prepare.py OUTPUT_FOLDER
"""

import argparse
import csv
import hashlib
import io
import logging
import random
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from ssast_lobes.data.audio import to_mono
from ssast_lobes.data.manifest import written_whole

logger = logging.getLogger(__name__)

# Of Debian 12, main: what holds audio of some length for its size.
PACKAGES = (
    *("ardentryst", "boswars-data", "btanks-data", "bucklespring-data"),
    *("castle-game-engine-doc", "colobot-common-sounds", "emacspeak"),
    *("etw-data", "flare-game", "freedroidrpg-data", "hedgewars-data"),
    *("hydrogen-drumkits", "hydrogen-drumkits-effects", "krank"),
    *("lincity-ng-data", "lmms-common", "megaglest-data", "minetest-data"),
    *("planetblupi-common", "redeclipse-data", "scorched3d-data", "scratch"),
    *("searchandrescue-data", "sonic-pi-samples", "supertux-data"),
    *("triplea", "tuxpaint-stamps-default", "unknown-horizons"),
    *("warmux-data", "wesnoth-1.16-data", "widelands-data"),
    # Speech, of many languages.
    *("asterisk-core-sounds-es-wav", "asterisk-core-sounds-fr-wav"),
    *("asterisk-core-sounds-it-wav", "asterisk-core-sounds-ru-wav"),
    *("fillets-ng-data", "fillets-ng-data-cs", "fillets-ng-data-nl"),
    *("gcin-voice", "klettres-data", "ktuberling-data"),
)
AUDIO = (".wav", ".ogg", ".oga", ".flac", ".mp3", ".au")
ZIPS = (".zip", ".pk3")
COLUMNS = ("path", "package", "source_file", "sha1", "duration", "license")
SAMPLE_RATE = 16000
# Clicks and silence teach nothing.
LEAST_SECONDS, LEAST_PEAK = 0.15, 1e-3


def prepare_debian_sounds(
    output_folder,
    packages=PACKAGES,
    minutes_per_package=25.0,
    seconds_per_file=30.0,
    seed=0,
    skip_prep=False,
):
    """Fetches the packages and takes their audio out, or finds it there.

    Writes 16-bit mono FLAC at 16 kHz below `output_folder`/audio/PACKAGE,
    the package's copyright file as `output_folder`/copyright/PACKAGE, and
    `output_folder`/manifest.csv (path, package, source_file, sha1, duration
    in seconds, license: the copyright file). Of many files a random part is
    taken, of a long file a random stretch. A package that lies in
    `output_folder` as .deb is not fetched again; one that is finished is not
    opened again, so that what was stopped goes on.

    Arguments
    ---------
    output_folder : str or Path
        Where the corpus goes.
    packages : list of str
        Names of packages.
    minutes_per_package : float
        No file is added to a package's part beyond so much.
    seconds_per_file : float
        Of longer files a stretch of this length.
    seed : int
        Of the choice.
    skip_prep : bool
        True: make nothing, only say where the manifest is.

    Returns
    -------
    manifest : str
        Absolute path of the CSV.

    Raises
    ------
    RuntimeError
        If a package cannot be fetched or opened.

    Example
    -------
    >>> prepare_debian_sounds("sounds", skip_prep=True).endswith("manifest.csv")
    True
    """
    output_folder = Path(output_folder).absolute()
    manifest = output_folder / "manifest.csv"
    if skip_prep:
        return str(manifest)
    for folder in ("audio", "copyright", "parts"):
        (output_folder / folder).mkdir(parents=True, exist_ok=True)
    packages = list(packages)
    for package in tqdm(packages, "Packages", unit="package"):
        if not _part(output_folder, package).exists():
            _take_out(
                *(output_folder, package, seed),
                *(60 * minutes_per_package, seconds_per_file),
            )
    rows, seen = [], set()
    for package in packages:
        with open(_part(output_folder, package), newline="") as file:
            new = [r for r in csv.DictReader(file) if r["sha1"] not in seen]
        # The same recording in two packages counts once.
        seen.update(row["sha1"] for row in new)
        rows += new
    _write(manifest, rows)
    hours = sum(float(row["duration"]) for row in rows) / 3600
    logger.info(
        f"{len(rows)} files of {len(packages)} packages, {hours:.2f} hours, "
        f"are in {output_folder}"
    )
    return str(manifest)


def _part(output_folder, package):
    return output_folder / "parts" / f"{package}.csv"


def _write(path, rows):
    with written_whole(path) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _take_out(output_folder, package, seed, most_seconds, seconds_per_file):
    """The audio of a package, and the CSV of it that says it is finished."""
    target = output_folder / "audio" / package
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    rng = random.Random(f"{seed}/{package}")
    with tempfile.TemporaryDirectory(dir=output_folder) as workshop:
        workshop = Path(workshop)
        deb = _package_file(output_folder, package, workshop)
        files = _unpack(deb, package, workshop, output_folder / "copyright")
        rng.shuffle(files)
        rows, seconds, unusable = [], 0.0, 0
        for name, sha1, path in files:
            if seconds >= most_seconds:
                break
            audio = _read(path, seconds_per_file, rng)
            if audio is None:
                unusable += 1
                continue
            duration = len(audio) / SAMPLE_RATE
            flac = target / f"{sha1[:16]}.flac"
            soundfile.write(flac, audio, SAMPLE_RATE, subtype="PCM_16")
            rows.append(
                {
                    "path": flac.relative_to(output_folder).as_posix(),
                    "package": package,
                    "source_file": name,
                    "sha1": sha1,
                    "duration": f"{duration:.3f}",
                    "license": f"copyright/{package}",
                }
            )
            seconds += duration
    _write(_part(output_folder, package), rows)
    logger.info(
        f"{package}: {len(rows)} files, {seconds / 60:.1f} minutes; "
        f"{unusable} unreadable, silent or too short"
    )


def _package_file(output_folder, package, workshop):
    """The package's .deb: one that is there, or else fetched."""
    found = sorted(output_folder.glob(f"{package}_*.deb"))
    if found:
        return found[-1]
    _run(["apt-get", "download", "-q", package], package, cwd=workshop)
    return next(workshop.glob("*.deb"))


def _run(command, package, **options):
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, **options
        )
    except FileNotFoundError as error:
        raise RuntimeError(
            f"{package}: there is no {command[0]}; packages are fetched and "
            "opened with the tools of Debian and Ubuntu"
        ) from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(
            f"{package}: `{' '.join(command)}` failed: "
            f"{error.stderr.strip()[-500:]} (`apt-get update` may help; leave "
            "packages out with --packages)"
        ) from error


def _unpack(deb, package, workshop, copyrights):
    """(name, sha1, path) of a package's audio files, each content once."""
    tar = workshop / "files.tar"
    with open(tar, "wb") as file:
        try:
            subprocess.run(
                ["dpkg-deb", "--fsys-tarfile", deb],
                check=True,
                stdout=file,
                stderr=subprocess.PIPE,
            )
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise RuntimeError(
                f"{deb} cannot be opened: dpkg-deb is not installed, or the "
                "file is damaged; delete it and run again"
            ) from error
    files = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if not member.isfile():
                continue
            if name == f"usr/share/doc/{package}/copyright":
                text = archive.extractfile(member).read()
                (copyrights / package).write_bytes(text)
            elif name.lower().endswith(AUDIO):
                _keep(files, name, archive.extractfile(member), workshop)
            elif name.lower().endswith(ZIPS):
                _open_zip(files, name, archive.extractfile(member), workshop)
    return sorted((name, sha1, workshop / sha1) for sha1, name in files.items())


def _open_zip(files, name, file, workshop):
    try:
        with zipfile.ZipFile(file) as archive:
            for inner in archive.namelist():
                if inner.lower().endswith(AUDIO):
                    with archive.open(inner) as audio:
                        _keep(files, f"{name}/{inner}", audio, workshop)
    except zipfile.BadZipFile:
        logger.warning(f"{name}: not a readable zip, passed over")


def _keep(files, name, file, workshop):
    content = file.read()
    sha1 = hashlib.sha1(content).hexdigest()
    if sha1 not in files:
        # Named by content: nothing of the archive decides on a path.
        (workshop / sha1).write_bytes(content)
    files[sha1] = min(name, files.get(sha1, name))


def _read(path, most_seconds, rng):
    """A stretch of a file, (samples,) at 16 kHz, or None."""
    try:
        with soundfile.SoundFile(io.BytesIO(path.read_bytes())) as file:
            most = round(most_seconds * file.samplerate)
            if file.frames > most:
                file.seek(rng.randrange(file.frames - most + 1))
            audio = file.read(most, dtype="float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.SoundFileError, TypeError, ValueError):
        return None
    short = len(audio) < LEAST_SECONDS * rate
    if (
        short
        or not np.isfinite(audio).all()
        or np.abs(audio).max() < LEAST_PEAK
    ):
        return None
    return to_mono(torch.from_numpy(audio), rate).clamp(-1, 1).numpy()


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Fetches free audio out of Debian packages.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("output_folder", help="where the corpus goes")
    parser.add_argument(
        "--packages",
        nargs="+",
        default=PACKAGES,
        metavar="PACKAGE",
        help="names of packages",
    )
    parser.add_argument(
        "--minutes-per-package",
        type=float,
        default=25.0,
        help="no file is added beyond so much",
    )
    parser.add_argument(
        "--seconds-per-file",
        type=float,
        default=30.0,
        help="of longer files a random stretch",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare_debian_sounds(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
