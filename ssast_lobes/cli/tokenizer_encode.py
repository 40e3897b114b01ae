"""Write the ids of audio, with one file for each clip."""

import numpy as np
import torch
from tqdm import tqdm

from ssast_lobes.cli import common
from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.objectives.tokenizers import load_tokenizer
from ssast_lobes.objectives.tokenizers.spectral import token_times
from ssast_lobes.objectives.tokenizers.stored import (
    stored_file,
    write_stored_config,
)
from ssast_lobes.utils.checks import ArgumentError
from ssast_lobes.utils.files import atomic_write
from ssast_lobes.utils.fingerprint import fingerprint
from ssast_lobes.utils.lengths import full_lengths


@torch.no_grad()
def encode_files(options):
    """Write the ids of every file of the inputs.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of ``ssast-lobes tokenizer encode``.
    """
    common.check_device(options.device)
    tokenizer, front_end = load_tokenizer(options.tokenizer)
    rate = front_end.fbank.sample_rate
    if rate != 16000:
        raise ArgumentError(f"{options.tokenizer} takes {rate} Hz, not 16000")
    tokenizer.to(options.device)
    front_end.to(options.device)
    grid = tokenizer.grid
    start, step = token_times(grid)
    write_stored_config(
        options.output,
        rate=1 / step,
        start=start,
        n_books=tokenizer.n_books,
        n_codes=tokenizer.n_codes,
        tokenizer=fingerprint(tokenizer),
    )
    paths = _paths_by_id(options.inputs)
    kind = np.int16 if tokenizer.n_codes <= 2**15 else np.int32
    counts = torch.zeros(tokenizer.n_books, tokenizer.n_codes)
    unreadable, n_skipped = [], 0
    for clip_id, path in tqdm(paths.items(), "Encoding", unit="file"):
        file = stored_file(options.output, clip_id)
        if file.exists():
            n_skipped += 1
            continue
        try:
            wavs = read_audio(path)[None].to(options.device)
        except UnreadableAudio as error:
            unreadable.append((path, error.reason(path)))
            continue
        ids = tokenizer(
            *front_end(wavs), wavs=wavs, n_samples=full_lengths(wavs)
        )
        ids = ids[0].cpu()
        counts.scatter_add_(1, ids.T, torch.ones(ids.T.shape))
        # (times, F', n_books)
        ids = ids.unflatten(0, (grid.n_freq, -1)).transpose(0, 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, "wb") as content:
            np.save(content, ids.numpy().astype(kind))
    common.report_unreadable(unreadable, len(paths), options.output)
    if n_skipped:
        print(f"{common.count_files(n_skipped)} skipped: their ids are there")
    if counts.any():
        used = (counts > 0).float().mean().item()
        print(f"{100 * used:.0f} % of the codes occur in what was encoded")
    print(f"written to {options.output}")


def _paths_by_id(inputs):
    """Return paths by id, with the ids that pretraining on the inputs uses."""
    paths = {}
    for number, one in enumerate(inputs):
        start = f"{number}/" if len(inputs) > 1 else ""
        for row in common.read_rows([one]):
            paths[f"{start}{row['id']}"] = row["path"]
    return paths
