"""Write the ids of audio, with one file for each clip."""

import numpy as np
import torch
from tqdm import tqdm

from ssast_lobes.cli import common
from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.models.event_head import FrameTiming
from ssast_lobes.objectives.tokenizers import load_tokenizer
from ssast_lobes.objectives.tokenizers.codes import (
    FEW_USED,
    refuse_collapse,
    used_and_entropy,
)
from ssast_lobes.objectives.tokenizers.features import SAMPLE_RATE
from ssast_lobes.objectives.tokenizers.spectral import token_times
from ssast_lobes.objectives.tokenizers.stored import (
    stored_file,
    write_stored_config,
)
from ssast_lobes.utils.checks import ArgumentError
from ssast_lobes.utils.files import atomic_write
from ssast_lobes.utils.fingerprint import fingerprint
from ssast_lobes.utils.lengths import full_lengths

# Long files are encoded in windows, since the cost of attention grows with the
# square of the length. The ids near the edges of a window do not count.
WINDOW_SECONDS = 20.0
CONTEXT_SECONDS = 2.0
# A frame of 25 ms is this number of samples longer than its hop.
_OVERLAP = 240
# With fewer tokens for each code, unused codes mean little.
_ENOUGH_TOKENS = 20


@torch.no_grad()
def encode_files(options):
    """Write the ids of every file of the inputs.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of ``ssast-lobes tokenizer encode``.
    """
    common.check_device(options.device)
    for one in options.inputs:
        if one.endswith(".safetensors"):
            raise ArgumentError(
                f"{one} is no audio: give each codebook a --tokenizer of its "
                "own"
            )
    tokenizer, front_end = load_tokenizer(*options.tokenizer)
    rate = front_end.fbank.sample_rate
    if rate != SAMPLE_RATE:
        raise ArgumentError(
            f"{options.tokenizer[0]} takes {rate} Hz, not {SAMPLE_RATE}"
        )
    tokenizer.to(options.device)
    front_end.to(options.device)
    start, step = token_times(tokenizer.grid)
    write_stored_config(
        options.output,
        rate=1 / step,
        start=start,
        n_books=tokenizer.n_books,
        n_codes=tokenizer.n_codes,
        tokenizer=fingerprint(tokenizer),
        window_seconds=WINDOW_SECONDS,
        context_seconds=CONTEXT_SECONDS,
    )
    paths = _paths_by_id(options.inputs)
    kind = np.int16 if tokenizer.n_codes <= 2**15 else np.int32
    counts = np.zeros((tokenizer.n_books, tokenizer.n_codes), dtype=np.int64)
    unreadable, n_skipped = [], 0
    for clip_id, path in tqdm(paths.items(), "Encoding", unit="file"):
        file = stored_file(options.output, clip_id)
        if file.exists():
            n_skipped += 1
            try:
                _count(counts, np.load(file))
            except (OSError, ValueError, EOFError) as error:
                raise ArgumentError(
                    f"{file} is damaged, remove it: {error}"
                ) from error
            continue
        try:
            wavs = read_audio(path)[None].to(options.device)
        except UnreadableAudio as error:
            unreadable.append((path, error.reason(path)))
            continue
        ids = encode_clip(wavs, tokenizer, front_end).numpy()
        _count(counts, ids)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, "wb") as content:
            np.save(content, ids.astype(kind))
    common.report_unreadable(unreadable, len(paths), options.output)
    if n_skipped:
        print(f"{common.count_files(n_skipped)} skipped: their ids are there")
    print(f"written to {options.output}")
    frequencies = {}
    for name, own, size in zip(
        options.tokenizer, counts, tokenizer.sizes, strict=True
    ):
        if own.any():
            frequency = torch.from_numpy(own[None, :size] / own.sum())
            frequencies[name] = frequency
            used, entropy = used_and_entropy(frequency)
            print(
                f"{name}: {100 * used:.0f} % of the codes occur, entropy "
                f"{entropy:.2f} of 1"
            )
    # Some features are the same for all bands of a time.
    enough = _ENOUGH_TOKENS * tokenizer.n_codes * tokenizer.grid.n_freq
    if counts[0].sum() >= enough:
        for name, frequency in frequencies.items():
            refuse_collapse(frequency, name, FEW_USED)


@torch.no_grad()
def encode_clip(wavs, tokenizer, front_end):
    """Return the ids of a clip, in windows if it is long.

    Arguments
    ---------
    wavs : torch.Tensor
        Waveform (1, S), 16 kHz.
    tokenizer : torch.nn.Module
    front_end : FrontEnd
        Front end of the tokenizer.

    Returns
    -------
    torch.Tensor
        int64 (times, F', n_books).
    """
    grid = tokenizer.grid
    step = round(FrameTiming(grid, front_end.fbank).step * SAMPLE_RATE)
    core = max(1, round(WINDOW_SECONDS * SAMPLE_RATE / step))
    context = max(1, round(CONTEXT_SECONDS * SAMPLE_RATE / step))
    parts, first, ended = [], 0, False
    while not ended:
        begin = max(0, first - context)
        end = (first + core + context) * step + _OVERLAP
        ended = end >= wavs.shape[1]
        part = wavs[:, begin * step : end]
        ids = tokenizer(
            *front_end(part), wavs=part, n_samples=full_lengths(part)
        )
        ids = ids[0].cpu().unflatten(0, (grid.n_freq, -1)).transpose(0, 1)
        ids = ids[first - begin :]
        parts.append(ids if ended else ids[:core])
        first += core
    return torch.cat(parts)


def _count(counts, ids):
    """Add ids (times, F', n_books) to the counts (n_books, n_codes)."""
    for own, book in zip(counts, ids.reshape(-1, len(counts)).T, strict=True):
        own += np.bincount(book, minlength=len(own))


def _paths_by_id(inputs):
    """Return paths by id, with the ids that pretraining on the inputs uses."""
    paths = {}
    for number, one in enumerate(inputs):
        start = f"{number}/" if len(inputs) > 1 else ""
        for row in common.read_rows([one]):
            paths[f"{start}{row['id']}"] = row["path"]
    return paths
