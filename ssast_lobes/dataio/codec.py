"""Read formats that libsndfile does not support: m4a, webm and more.

This needs the optional extra `codec`: torchcodec, which calls FFmpeg. The whole
file is decoded into memory, since a position in such a file is a time stamp
that may be wrong by many samples.
"""

import functools
import io
import os
import re
import threading
from collections import Counter

import soundfile
import torch

from ssast_lobes.dataio.addresses import stamp_of

CODEC_EXTENSIONS = frozenset(
    ".3ga .3gp .aac .ac3 .amr .ape .m4a .m4b .mka .mkv .mov .mp4 .mpc .spx "
    ".tta .weba .webm .wma .wv".split()
)
_NEEDED = "needs the `codec` extra"
_REMEDY = (
    "pip install 'ssast_lobes[codec]', and install FFmpeg; or convert to FLAC"
)

# Several long recordings at once could exceed the memory.
_one_at_a_time = threading.Lock()


def kind_of(path):
    """Return the extension of a file in lower case.

    Arguments
    ---------
    path : str
        Path of the file.

    Returns
    -------
    str
        The extension with its dot.

    Example
    -------
    >>> kind_of("/data/a.M4A")
    '.m4a'
    """
    return os.path.splitext(path)[1].lower()


@functools.cache
def load_decoder():
    """Import the decoder.

    Returns
    -------
    decoder : type or None
        `torchcodec.decoders.AudioDecoder`.
    reason : str or None
        Why there is no decoder.

    Example
    -------
    >>> decoder, reason = load_decoder()
    >>> (decoder is None) == (reason is not None)
    True
    """
    try:
        from torchcodec.decoders import AudioDecoder
    except ModuleNotFoundError:
        return None, f"{_NEEDED}: {_REMEDY}"
    except (ImportError, OSError, RuntimeError) as error:
        return None, (
            f"{_NEEDED}, and torchcodec does not load "
            f"({str(error).strip().splitlines()[0]}): install FFmpeg, and the "
            f"torchcodec that fits torch {torch.__version__}"
        )
    return AudioDecoder, None


def decode(path):
    """Decode a file into one that libsndfile can open.

    Arguments
    ---------
    path : str
        Path of the file.

    Returns
    -------
    io.BytesIO
        A float32 RF64 of the same rate and channels.

    Raises
    ------
    OSError
        If the extra is missing, or the file cannot be decoded.

    Example
    -------
    >>> import numpy
    >>> path = str(getfixture("tmpdir").join("a.wav"))
    >>> soundfile.write(path, numpy.zeros(800), 16000)
    >>> decoder, _ = load_decoder()
    >>> decoder is None or soundfile.info(decode(path)).frames == 800
    True
    """
    decoder, reason = load_decoder()
    if decoder is None:
        raise OSError(f"{kind_of(path)} {reason}")
    with _one_at_a_time:
        return io.BytesIO(_decoded(path, *stamp_of(path)))


# The crops and windows of one file are read one after the other.
@functools.lru_cache(maxsize=1)
def _decoded(path, size, changed):
    """Return the bytes of an RF64 with the audio of a file of this stamp."""
    decoder, _ = load_decoder()
    wav = io.BytesIO()
    try:
        with open(path, "rb") as file:
            audio = decoder(file).get_all_samples()
    except (RuntimeError, ValueError) as error:
        # torchcodec puts a line of its source first: remove it.
        said = re.sub(r"^.*\.cpp:\d+, ", "", str(error).strip())
        raise OSError(f"FFmpeg cannot decode it ({said})") from error
    soundfile.write(
        wav,
        audio.data.T.numpy(),
        audio.sample_rate,
        format="RF64",
        subtype="FLOAT",
    )
    return wav.getvalue()


def files_in_need(unreadable):
    """Count the unreadable files that need the extra, by kind.

    Arguments
    ---------
    unreadable : iterable of tuple
        (path, reason) of each file.

    Returns
    -------
    str
        A sentence that says what to do; empty if there are none.

    Example
    -------
    >>> reason = ".m4a needs the `codec` extra: ..."
    >>> files_in_need([("a.m4a", reason), ("b.wav", "empty")])
    "1 file of a kind that needs the `codec` extra: .m4a (1); pip install ..."
    """
    kinds = Counter(
        kind_of(path) for path, reason in unreadable if _NEEDED in reason
    )
    if not kinds:
        return ""
    count = sum(kinds.values())
    shown = ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common())
    files = "1 file of a kind that needs"
    if count > 1:
        files = f"{count} files of kinds that need"
    return f"{files} the `codec` extra: {shown}; {_REMEDY}"
