"""Read audio files in blocks, for interfaces that take long recordings."""

from ssast_lobes.dataio.audio import audio_info, read_audio
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.inference.windows import count_windows

# Extra audio around a block, longer than the resampler's filter. It is a whole
# number of samples at every common rate.
_MARGIN_SECONDS = 0.04


def read_blocks(path, sample_rate, length, hop):
    """Read a file of any length in blocks that may overlap.

    Arguments
    ---------
    path : str or path
        The file.
    sample_rate : int
        Sampling rate of the blocks in Hz.
    length : int
        Length of a block in samples; the last block may be shorter.
    hop : int
        Samples from the start of a block to the start of the next.

    Yields
    ------
    start : int
        First sample of the block.
    wav : torch.Tensor
        Waveform (samples,), equal to this part of the whole file.

    Raises
    ------
    UnreadableAudio
        See `ssast_lobes.dataio.audio.read_audio`.

    Example
    -------
    >>> import numpy, soundfile
    >>> path = str(getfixture("tmpdir") / "a.wav")
    >>> soundfile.write(path, numpy.zeros(25000), 8000)
    >>> blocks = read_blocks(path, 16000, length=20000, hop=16000)
    >>> [(start, len(wav)) for start, wav in blocks]
    [(0, 20000), (16000, 20000), (32000, 18000)]
    """
    info = audio_info(path)
    total = -(-info.frames * sample_rate // info.sample_rate)
    count = count_windows(total, length, hop)
    if count == 1:
        yield 0, read_audio(path, sample_rate)
        return
    margin = round(_MARGIN_SECONDS * sample_rate)
    for start in range(0, count * hop, hop):
        first = max(0, (start // margin - 1) * margin)
        seconds = (start + length + margin - first) / sample_rate
        if start == (count - 1) * hop:
            seconds = None
        wav = read_audio(path, sample_rate, first / sample_rate, seconds)
        yield start, wav[start - first :][:length]


def require_length(name, n_samples, fbank):
    """Raise if a clip is too short for a single frame.

    Arguments
    ---------
    name : str
        Name of the clip in the error.
    n_samples : int
        Length of the clip in samples.
    fbank : KaldiFbank
        Filterbank. The clip has to fill one of its analysis windows.

    Raises
    ------
    UnreadableAudio
        If the clip is too short.

    Example
    -------
    >>> from ssast_lobes import KaldiFbank
    >>> require_length("a.wav", 200, KaldiFbank())
    Traceback (most recent call last):
    ...
    ssast_lobes...UnreadableAudio: a.wav: 12.5 ms of audio, ...
    """
    if n_samples < fbank.least_samples:
        raise UnreadableAudio(
            f"{name}: {1000 * n_samples / fbank.sample_rate:.3g} ms of audio, "
            f"at least {1000 * fbank.least_samples / fbank.sample_rate:.3g} "
            "ms are needed"
        )
