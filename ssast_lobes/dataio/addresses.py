"""Open audio inside a tar, by its address.

An address is text, `<tar>#<member>@<offset>+<size>`, and can be used wherever
the path of an audio file can. `os.pread` does not move the shared file
position, so threads and forked workers do not disturb each other. A spawned
worker starts without open files.
"""

import functools
import io
import os
import re
from typing import NamedTuple

# The largest number of tars that a process keeps open.
_OPEN_TARS = 64
_HEADER_BYTES = 512
_NAME_BYTES = 100

# The last "#" counts: names of folders may contain another one.
_PATTERN = re.compile(r"(.+\.tar)#([^#/]+)@([0-9]+)\+([0-9]+)", re.DOTALL)


class Address(NamedTuple):
    """The position of a file in a tar.

    Arguments
    ---------
    tar : str
        Path of the tar.
    member : str
        Name of the file in the tar.
    offset : int
        Position of the first byte of the file in the tar. The header of the
        file is in the 512 bytes before.
    size : int
        Size of the file in bytes.

    Example
    -------
    >>> str(Address("/data/000003.tar", "clip.flac", 1536, 32044))
    '/data/000003.tar#clip.flac@1536+32044'
    """

    tar: str
    member: str
    offset: int
    size: int

    def __str__(self):
        return f"{self.tar}#{self.member}@{self.offset}+{self.size}"


def parse_address(path):
    """Return the address that a path states, if it is one.

    Arguments
    ---------
    path : str
        Path of a file, or an address.

    Returns
    -------
    Address or None
        None if the path is that of a file.

    Example
    -------
    >>> parse_address("/data/000003.tar#clip.flac@1536+32044").offset
    1536
    >>> parse_address("/data/#1/clip.flac") is None
    True
    """
    match = _PATTERN.fullmatch(path)
    if match is None:
        return None
    tar, member, offset, size = match.groups()
    return Address(tar, member, int(offset), int(size))


def file_of(path):
    """Return the file that holds the audio of a path: the path or a tar.

    Arguments
    ---------
    path : str
        Path of a file, or an address.

    Returns
    -------
    str

    Example
    -------
    >>> file_of("/data/000003.tar#clip.flac@1536+32044")
    '/data/000003.tar'
    """
    address = parse_address(path)
    return path if address is None else address.tar


def stamp_of(path):
    """Return a stamp that changes with the audio of a path.

    Arguments
    ---------
    path : str
        Path of a file, or an address.

    Returns
    -------
    size : int
        Size of the file that holds the audio, in bytes.
    changed : int
        Time of the last change of that file, in nanoseconds.

    Raises
    ------
    OSError
        If there is no such file.

    Example
    -------
    >>> path = getfixture("tmpdir").join("a.wav")
    >>> path.write("1234")
    >>> stamp_of(str(path))[0]
    4
    """
    status = os.stat(file_of(path))
    return status.st_size, status.st_mtime_ns


class TarMember(io.RawIOBase):
    """A file inside a tar, opened for reading.

    Arguments
    ---------
    address : Address
        Address of the file.

    Raises
    ------
    OSError
        If the tar cannot be opened, ends before the file does, or has other
        content at this address.

    Example
    -------
    >>> import tarfile
    >>> tar = str(getfixture("tmpdir").join("0.tar"))
    >>> with tarfile.open(tar, "w") as file:
    ...     info = tarfile.TarInfo("clip.txt")
    ...     info.size = 5
    ...     file.addfile(info, io.BytesIO(b"bytes"))
    >>> TarMember(Address(tar, "clip.txt", 512, 5)).read()
    b'bytes'
    """

    def __init__(self, address):
        super().__init__()
        status = os.stat(address.tar)
        end = address.offset + address.size
        if status.st_size < end:
            raise OSError(
                f"the tar is truncated: it has {status.st_size} bytes, this "
                f"clip ends at {end}; copy or pack it again"
            )
        self._tar = _opened(address.tar, status.st_ino, status.st_mtime_ns)
        self._address = address
        self._position = 0
        header = os.pread(
            self._tar.fd, _HEADER_BYTES, address.offset - _HEADER_BYTES
        )
        if header[:_NAME_BYTES].rstrip(b"\0") != os.fsencode(address.member):
            raise OSError(
                "the tar has other content at this address: it was replaced "
                "after this manifest was written; use the manifest next to "
                "the tar"
            )

    def readable(self):
        """Return True: it can be read."""
        return True

    def seekable(self):
        """Return True: its position can be set."""
        return True

    def tell(self):
        """Return the position in the file, in bytes."""
        return self._position

    def seek(self, offset, whence=os.SEEK_SET):
        """Go to a position, and return it."""
        base = (0, self._position, self._address.size)[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer):
        """Fill a buffer from the file; return the number of bytes read."""
        left = self._address.size - self._position
        data = os.pread(
            self._tar.fd,
            max(0, min(len(buffer), left)),
            self._address.offset + self._position,
        )
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _OpenTar:
    """A file descriptor that is closed once no open member uses it."""

    fd = None

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self):
        if self.fd is not None:
            os.close(self.fd)


@functools.lru_cache(_OPEN_TARS)
def _opened(path, inode, changed):
    """Open the tar once, and again if another file has replaced it."""
    return _OpenTar(path)
