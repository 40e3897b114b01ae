"""Download a file; resume an interrupted transfer; check the checksum."""

import hashlib
import http.client
import os
import re
import urllib.request
from pathlib import Path

from tqdm import tqdm

from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.utils.files import filename_in_errors

BLOCK_BYTES = 1 << 20
_AGENT = {"User-Agent": "ssast_lobes"}
_TIMEOUT_SECONDS = 60


class ArchiveError(ManifestError):
    """A dataset cannot be downloaded or unpacked; the message names a fix."""


def download(url, path, sha256=None, md5=None):
    """Download a file completely, or raise.

    The bytes received are kept in ``<path>.part``. After an interruption, the
    transfer resumes from there if the server supports it. The function tries
    again as long as each attempt receives more than those before.

    Arguments
    ---------
    url : str
        Address to download from.
    path : str or os.PathLike
        File to write. If it exists, only its checksum is checked.
    sha256, md5 : str, optional
        Published checksum, in hexadecimal.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ArchiveError
        If the server refuses, the transfer makes no progress, or the checksum
        differs; the message names the URL and the file.

    Example
    -------
    >>> folder = Path(getfixture("tmpdir"))
    >>> (folder / "there.txt").write_text("whole")
    5
    >>> url = (folder / "there.txt").as_uri()
    >>> download(url, folder / "here.txt").read_text()
    'whole'
    """
    path = Path(path).expanduser()
    checksum = ("sha256", sha256) if sha256 else ("md5", md5)
    if path.is_file():
        wrong = _wrong_sum(path, *checksum)
        if wrong:
            raise ArchiveError(f"{path}: {wrong} for {url}; delete the file")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    furthest = -1
    while not _fetch(url, part, path.name):
        size = part.stat().st_size
        if size <= furthest:
            raise ArchiveError(
                f"{url}: the transfer breaks off after {size} bytes; run "
                f"again to resume, or fetch it by other means to {path}"
            )
        furthest = size
    wrong = _wrong_sum(part, *checksum)
    if wrong:
        part.unlink()
        raise ArchiveError(
            f"{url}: the download has {wrong}; it was deleted, try again"
        )
    os.replace(part, path)
    return path


def _fetch(url, part, name):
    """Continue a transfer; return whether all of it has arrived."""
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers=_AGENT)
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        # The request began after the end: the file may be complete.
        if error.code == 416 and start:
            return _is_all_there(error, part, start)
        raise _refused(url, part, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise _refused(url, part, error) from error
    with answer:
        if not _resumes_at(answer, start):
            start = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        whole = _receive(answer, part, start, total, name)
    return whole and total in (None, part.stat().st_size)


def _resumes_at(answer, start):
    """Return whether a server sends the range that was requested."""
    if getattr(answer, "status", None) != 206:
        return False
    return answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _is_all_there(error, part, start):
    total = re.search(r"/(\d+)$", error.headers.get("Content-Range", ""))
    if total and int(total[1]) == start:
        return True
    part.unlink()  # longer than the file, so it is another file
    part.touch()
    return False


def _receive(answer, part, start, total, name):
    """Append what arrives; return False if the transfer breaks off."""
    bar = tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True)
    mode = "ab" if start else "wb"
    with bar, filename_in_errors(part), open(part, mode) as file:
        block, whole = b"begun", True
        try:
            # An error of writing, such as a full disk, must not count as a
            # broken transfer.
            while block and whole:
                block, whole = _read(answer)
                file.write(block)
                bar.update(len(block))
        finally:
            file.flush()
            os.fsync(file.fileno())
    return whole


def _read(answer):
    """Return the next bytes, and False if the transfer breaks off."""
    try:
        return answer.read(BLOCK_BYTES), True
    except http.client.IncompleteRead as error:
        return error.partial, False
    except (OSError, http.client.HTTPException):
        return b"", False


def _refused(url, part, error):
    reason = getattr(error, "reason", None) or error
    code = f"{error.code} " if hasattr(error, "code") else ""
    return ArchiveError(
        f"{url}: {code}{reason}. Try again later, or fetch it by other means "
        f"to {part.with_suffix('')}"
    )


def _wrong_sum(path, kind, expected):
    """Return how the checksum differs; None if it is equal or unknown."""
    if expected is None:
        return None
    digest = hashlib.new(kind)
    bar = tqdm(
        desc=f"Checking {path.name}",
        total=path.stat().st_size,
        unit="B",
        unit_scale=True,
        delay=2,
    )
    with bar, open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() == expected.lower():
        return None
    return f"{kind} {digest.hexdigest()}, not the published {expected.lower()}"
