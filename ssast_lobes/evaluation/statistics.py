"""Measure the mean and standard deviation of log-mel energies of files."""

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.inference.audio import read_blocks, require_length
from ssast_lobes.models.features import KaldiFbank
from ssast_lobes.models.normalization import RunningStatistics

# Read long files in blocks of 30 s, which limits the memory of a batch.
BLOCK_FRAMES = 3000
_BATCH_SIZE = 8


def frame_blocks(path, fbank):
    """Read a file in blocks that together contain each analysis frame once.

    Arguments
    ---------
    path : str or path
        The file, of any length.
    fbank : KaldiFbank
        Filterbank, which determines the frames and the sampling rate.

    Yields
    ------
    torch.Tensor
        Waveform (samples,) of 3000 frames; the last block may be shorter.

    Raises
    ------
    UnreadableAudio
        If the file cannot be read, or is too short for a frame.

    Example
    -------
    >>> import soundfile
    >>> path = str(getfixture("tmpdir") / "a.wav")
    >>> soundfile.write(path, torch.zeros(640000).numpy(), 16000)
    >>> [len(wav) for wav in frame_blocks(path, KaldiFbank())]
    [480240, 160000]
    """
    hop = BLOCK_FRAMES * fbank.hop_samples
    length = fbank.samples_of(BLOCK_FRAMES)
    for start, wav in read_blocks(path, fbank.sample_rate, length, hop):
        require_length(path, start + len(wav), fbank)
        # Samples after the last whole frame give no block.
        if len(wav) >= fbank.least_samples:
            yield wav


def measure_statistics(paths, unreadable, sample_rate=16000, n_mels=128):
    """Measure mean and standard deviation of log-mel energies over files.

    If a file ends with an error, the blocks before the error count.

    Arguments
    ---------
    paths : list of str
        The files.
    unreadable : list
        Collects (path, reason) of unreadable files.
    sample_rate : int
        Sampling rate in Hz to convert audio to.
    n_mels : int
        Number of mel bins.

    Returns
    -------
    statistics : RunningStatistics
        With `mean` and `std` over all frames and mel bins.
    hours : float
        Duration of all frames, in hours.

    Example
    -------
    >>> import soundfile
    >>> path = str(getfixture("tmpdir") / "a.wav")
    >>> soundfile.write(path, torch.zeros(16000).numpy(), 16000)
    >>> statistics, hours = measure_statistics([path, "none.wav"], bad := [])
    >>> f"{statistics.mean:.2f}, {statistics.std:.2f}, {3600 * hours:.2f} s"
    '-15.94, 0.00, 0.98 s'
    >>> [path for path, reason in bad]
    ['none.wav']
    """
    fbank = KaldiFbank(sample_rate, n_mels)
    statistics = RunningStatistics()
    for wavs in _batches(paths, fbank, unreadable):
        lengths = torch.tensor([len(wav) for wav in wavs])
        wav = pad_sequence(wavs, batch_first=True)
        statistics.update(*fbank(wav, lengths / wav.shape[1]))
    hop_seconds = fbank.hop_samples / sample_rate
    return statistics, statistics.count / n_mels * hop_seconds / 3600


def _batches(paths, fbank, unreadable):
    """Yield batches of blocks, each a list, over all files."""
    blocks = []
    for path in tqdm(paths, "Measuring", unit="file"):
        try:
            for wav in frame_blocks(path, fbank):
                blocks.append(wav)
                if len(blocks) == _BATCH_SIZE:
                    yield blocks
                    blocks = []
        except UnreadableAudio as error:
            unreadable.append((path, error.reason(path)))
    if blocks:
        yield blocks
