"""Find or fetch the archives of datasets, and unpack them.

Unpacking writes nothing outside its folder. The files of an archive appear only
after all of it has been read. One `ManifestError` lists all missing files.
"""

import errno
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from ssast_lobes.dataio.corpus_checks import check_layout
from ssast_lobes.dataio.download import BLOCK_BYTES, ArchiveError, download

# Names in a tar may hold bytes that are not UTF-8.
_TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}
_BROKEN_ARCHIVE = (
    EOFError,
    RuntimeError,  # encrypted, or of an unknown compression
    gzip.BadGzipFile,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def unpack(archive, folder):
    """Unpack a zip or tar archive into a folder, which keeps its other files.

    The members are unpacked into a hidden folder, and moved when all are there.
    An interrupted call thus leaves no incomplete folder. A second call does
    nothing if all members are still there.

    Arguments
    ---------
    archive : str or os.PathLike
        A zip or tar file, of any compression that Python reads.
    folder : str or os.PathLike
        The folder to unpack into.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ArchiveError
        If the archive is damaged or of another kind, or if a member is a link
        or lies outside the folder. Nothing is then unpacked.

    Example
    -------
    >>> folder = Path(getfixture("tmpdir"))
    >>> with zipfile.ZipFile(folder / "a.zip", "w") as archive:
    ...     archive.writestr("data/notes.txt", "whole")
    >>> unpacked = unpack(folder / "a.zip", folder / "out")
    >>> (unpacked / "data" / "notes.txt").read_text()
    'whole'
    """
    archive, folder = Path(archive).expanduser(), Path(folder).expanduser()
    if not archive.is_file():
        raise ArchiveError(f"{archive}: no such archive")
    status = archive.stat()
    stamp = f"{status.st_size} {status.st_mtime_ns}"
    done = folder / f".{archive.name}.unpacked"
    if done.is_file():
        then, *names = done.read_text(**_TEXT).split("\n")
        if then == stamp and all((folder / name).exists() for name in names):
            return folder
    partial = folder / f".{archive.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = []
    try:
        for name, source in _members(archive):
            _unpack_member(archive, name, source, partial)
            names.append(name)
        _move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    done.write_text("\n".join([stamp, *names]), **_TEXT)
    return folder


def find_archive(
    data_folder,
    layout,
    page,
    names=(),
    url=None,
    file=None,
    md5=None,
    allow_download=False,
):
    """Find the folder of an unpacked archive, or fetch it; check its layout.

    Arguments
    ---------
    data_folder : str or os.PathLike
        The unpacked folder of the archive, or the folder that contains or will
        contain it.
    layout : list of str
        Files and folders in the archive.
    page : str
        Page from which people get the archive, perhaps with instructions.
    names : sequence of str
        Possible names of the folder in `data_folder`, the usual one first.
        Empty if the archive has no folder of its own.
    url, file, md5 : str, optional
        Address of the archive, its file name in `data_folder`, and its
        published checksum.
    allow_download : bool
        Whether to fetch the archive if nothing of the layout is there.

    Returns
    -------
    pathlib.Path
        The folder, absolute.

    Raises
    ------
    ManifestError
        If the archive is missing or incomplete, or cannot be fetched.

    Example
    -------
    >>> folder = Path(getfixture("tmpdir"))
    >>> (folder / "corpus-master" / "audio").mkdir(parents=True)
    >>> find_archive(
    ...     folder, ["audio"], "https://example.org", ["corpus-master"]
    ... ).name
    'corpus-master'
    """
    data_folder = Path(data_folder).expanduser().absolute()
    places = [*(data_folder / name for name in names), data_folder]

    def there(folder):
        return sum((folder / part).exists() for part in layout)

    if allow_download and not any(map(there, places)):
        archive = download(url, data_folder / file, md5=md5)
        unpack(archive, data_folder)
    folder = max(places, key=there)
    if url is not None:
        page = f"{page}, which --allow_download True fetches"
    check_layout(folder, layout, page)
    return folder


def _members(archive):
    """Yield each member's name and its open file, None for a folder."""
    try:
        # A tar that ends with a zip looks like a zip too, so ask for tar first.
        if tarfile.is_tarfile(archive):
            yield from _tar_members(archive)
        elif zipfile.is_zipfile(archive):
            yield from _zip_members(archive)
        else:
            raise ArchiveError(f"{archive}: neither zip nor tar")
    except _BROKEN_ARCHIVE as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        # The directory of a damaged zip may point to before the file begins.
        if error.errno != errno.EINVAL:
            raise
        raise _damaged(archive, error) from error


def _zip_members(archive):
    with zipfile.ZipFile(archive) as file:
        for member in tqdm(file.infolist(), f"Unpacking {archive.name}"):
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _unsafe(archive, member.filename, "is a link")
            if member.is_dir():
                yield member.filename, None
                continue
            with file.open(member) as source:
                yield member.filename, source


def _tar_members(archive):
    with tarfile.open(archive) as file:
        # Take members in their order, to read a compressed archive only once.
        for member in tqdm(file, f"Unpacking {archive.name}", unit="file"):
            if member.isdir():
                yield member.name, None
            elif member.isfile():
                yield member.name, file.extractfile(member)
            else:
                raise _unsafe(archive, member.name, "is a link or a device")
        # The checksum of a compressed archive is at its end.
        while file.fileobj.read(BLOCK_BYTES):
            pass


def _unpack_member(archive, name, source, folder):
    inside = PurePosixPath(name)
    drive = PureWindowsPath(name)
    if inside.is_absolute() or drive.drive or ".." in drive.parts:
        raise _unsafe(archive, name, "lies outside of its folder")
    target = folder / inside
    if source is None:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(target, "wb") as file:
            shutil.copyfileobj(source, file, BLOCK_BYTES)
    except _BROKEN_ARCHIVE as error:
        raise _damaged(archive, error) from error


def _unsafe(archive, name, what):
    return ArchiveError(
        f"{archive}: its member {name} {what}; nothing was unpacked, get the "
        "archive from its official page"
    )


def _damaged(archive, error):
    return ArchiveError(
        f"{archive}: cannot be unpacked ({error}); if it is damaged, delete it "
        "and fetch it again"
    )


def _move(source, target):
    """Move the entries of a folder into another one, which keeps its own."""
    target.mkdir(exist_ok=True)
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _move(entry, place)
        else:
            os.replace(entry, place)
