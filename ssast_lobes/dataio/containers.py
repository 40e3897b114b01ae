"""Complete the headers of audio files that state no length.

If the length of a file is an estimate, libsndfile stops reading at this length.
If the size of the samples is missing, it reads nothing. The file objects here
supply the missing bytes.
"""

import io
import os

import soundfile

# libsndfile reports this many frames or more if a header states no length, such
# as that of a streamed FLAC. No real file has 2 ** 48 frames.
OPEN_LENGTH = 2**48

# If an mp3 does not state its number of frames, libsndfile estimates its length
# from its size in bytes. With these arguments of `Overlaid`, the file seems so
# large that the estimate is at least `OPEN_LENGTH`. libmpg123 looks for a tag
# in the last 128 bytes, and gives up if they are missing.
FAR_END = (2**56 - 128, bytes(128), 2**56)

# The name of a Xing frame is within this many bytes: after the header, perhaps
# a checksum, and the side information.
_XING_BYTES = 4 + 2 + 32 + 4

# Position of the first chunk, number of bytes that state the size of a chunk,
# and their order.
_CHUNKS = {
    b"RIFF": (12, 4, "little"),
    b"RF64": (12, 4, "little"),
    b"caff": (8, 8, "big"),
}

# No Ogg page is longer: the last page begins at most this far from the end.
_PAGE_BYTES = 65307


class Unbounded(soundfile.SoundFile):
    """A file without a stated length, which is read to its end.

    After a read, soundfile seeks to the expected end of the read, which fails
    past the end of the file. It does not seek in a file that says that it is
    not seekable, as this class does.

    Arguments
    ---------
    file : str or bytes or io.RawIOBase
        What to open.

    Example
    -------
    >>> import numpy
    >>> path = str(getfixture("tmpdir").join("a.flac"))
    >>> soundfile.write(path, numpy.zeros(800), 16000)
    >>> with Unbounded(path) as file:
    ...     len(file.read(10**6))
    800
    """

    def seekable(self):
        """Return False; `seek` works all the same."""
        return False


class Overlaid(io.RawIOBase):
    """A file with replaced bytes at one position.

    Arguments
    ---------
    file : file
        Opened for reading bytes; closed with this one.
    offset : int
        Position of the replaced bytes.
    data : bytes
        The bytes that replace them.
    size : int, optional
        Size to report; by default that of the file.

    Example
    -------
    >>> Overlaid(io.BytesIO(b"size: ?; data"), 6, b"4").read()
    b'size: 4; data'
    """

    def __init__(self, file, offset, data, size=None):
        super().__init__()
        self._file = file
        self._offset = offset
        self._data = data
        self._end = file.seek(0, os.SEEK_END)
        self._size = size or self._end
        self._position = 0

    @property
    def exhausted(self):
        """True once the file has been read to its real end (bool)."""
        return self._position >= self._end

    def readable(self):
        """Return True, as it can be read."""
        return True

    def seekable(self):
        """Return True, as its position can be set."""
        return True

    def tell(self):
        """Return the position in bytes."""
        return self._position

    def seek(self, offset, whence=os.SEEK_SET):
        """Go to a position, and return it."""
        base = (0, self._position, self._size)[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer):
        """Fill a buffer from the file; return the number of bytes read."""
        start, count = self._position, 0
        if start < self._end:
            self._file.seek(start)
            count = self._file.readinto(buffer)
        first = max(start, self._offset)
        last = min(start + len(buffer), self._offset + len(self._data))
        if first < last:
            own = self._data[first - self._offset : last - self._offset]
            buffer[first - start : last - start] = own
            count = max(count, last - start)
        self._position += count
        return count

    def close(self):
        """Close the file."""
        self._file.close()
        super().close()


def counts_frames(file):
    """Return whether an mp3 states its length, by a Xing or Info frame.

    Arguments
    ---------
    file : file
        Opened for reading bytes.

    Returns
    -------
    bool
        False also if its frames do not begin right after the ID3 tags.

    Example
    -------
    >>> frame = b"\\xff\\xf3\\x14\\xc4" + bytes(9)
    >>> counts_frames(io.BytesIO(frame + b"Xing\\0\\0\\0\\1\\0\\0\\0\\5"))
    True
    >>> counts_frames(io.BytesIO(frame))
    False
    """
    start = 0
    while True:
        file.seek(start)
        head = file.read(10)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        start += 10
        if head[5] & 0x10:  # the tag has a footer like its header
            start += 10
        for place, byte in enumerate(reversed(head[6:10])):
            start += (byte & 0x7F) << 7 * place
    file.seek(start)
    frame = file.read(_XING_BYTES + 8)
    name = max(frame.find(kind, 4, _XING_BYTES) for kind in (b"Xing", b"Info"))
    if name < 0:
        return False
    flags, count = frame[name + 4 : name + 8], frame[name + 8 : name + 12]
    return bool(flags[-1:] and flags[-1] & 1 and any(count))


def open_size(file):
    """Return the size of the samples if a header does not state it.

    A program that writes to a pipe, or was killed, leaves 0 or -1 as the size.
    The samples are then all that follows, up to the end of the file.

    Arguments
    ---------
    file : file
        WAV, RF64, CAF or AU, opened for reading bytes.

    Returns
    -------
    offset : int
        Position of the size in the header.
    data : bytes
        The right size, as the bytes to put there. If the header states a size
        or is of another kind, None is returned instead of offset and data.

    Example
    -------
    >>> data = b".snd" + bytes([0, 0, 0, 24, 0, 0, 0, 0]) + bytes(14)
    >>> open_size(io.BytesIO(data))
    (8, b'\\x00\\x00\\x00\\x02')
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic = file.read(4)
    if magic == b".snd":
        start = int.from_bytes(file.read(4), "big")
        place, width, order = 8, 4, "big"
    elif magic in _CHUNKS:
        first, width, order = _CHUNKS[magic]
        start, place = _open_chunk(file, first, width, order, end)
        width = 8 if magic == b"RF64" else width
    else:
        return None
    if not 0 < start < end:
        return None
    size = min(end - start, 256**width - 1)
    return place, size.to_bytes(width, order)


def _open_chunk(file, first, width, order, end):
    """Find where samples of unknown size begin, and where the size belongs."""
    place = None
    chunks = _chunks(file, first, width, order, end)
    for name, start, size in chunks:
        if name == b"ds64":
            place = start + 8  # RF64 states the size here
        elif name == b"data":
            if size in (0, 256**width - 1):
                break
            return 0, 0
    else:
        return 0, 0
    rest = [begin + length for _, begin, length in chunks]
    if rest and rest[-1] >= end - 1:
        return 0, 0  # there are no samples: the other chunks follow at once
    return start, place or start - width


def _chunks(file, position, width, order, end):
    """Yield name, start and size of each chunk, up to the first bad name."""
    while position < end:
        file.seek(position)
        name, size = file.read(4), file.read(width)
        if len(size) < width or not name.strip().isalnum():
            return
        size = int.from_bytes(size, order)
        yield name, position + 4 + width, size
        position += 4 + width + size
        if order == "little":  # RIFF pads to an even number of bytes
            position += size % 2


def is_chained(file):
    """Return whether an Ogg file has another stream after the first one.

    Arguments
    ---------
    file : file
        Opened for reading bytes.

    Returns
    -------
    bool
        True if the last page belongs to another stream than the first page.

    Example
    -------
    >>> page = b"OggS" + bytes(10)
    >>> is_chained(io.BytesIO(page + b"1234" + page + b"5678"))
    True
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    first = file.read(18)
    file.seek(max(0, size - _PAGE_BYTES))
    tail = file.read()
    page = tail.rfind(b"OggS")
    return page >= 0 and tail[page + 14 : page + 18] != first[14:18]
