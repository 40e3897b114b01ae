"""Fit k-means to audio: collect tokens in chunks, then cluster them."""

import json
import os
import shutil

import torch
import yaml
from tqdm import tqdm

from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.cli import common
from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.lobes.spectrogram import lobe_of
from ssast_lobes.models.features import FrontEnd
from ssast_lobes.models.patches import Grid
from ssast_lobes.objectives.tokenizers import fit_kmeans, make_features
from ssast_lobes.objectives.tokenizers.features import SAMPLE_RATE
from ssast_lobes.utils.checks import ArgumentError
from ssast_lobes.utils.files import atomic_write
from ssast_lobes.utils.fingerprint import fingerprint
from ssast_lobes.utils.lengths import full_lengths

# This number of tokens suffices for a few hundred codes, and fits into memory.
MOST_TOKENS = 200_000
SECONDS = 10.0
# Number of files in a chunk. A stopped run loses at most one chunk.
FILES_AT_ONCE = 200


def fit_tokenizer(options):
    """Fit a tokenizer to the inputs.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of ``ssast-lobes tokenizer fit``.
    """
    common.check_device(options.device)
    grid = Grid.from_geometry(yaml.safe_load(options.geometry), options.n_mels)
    front_end = FrontEnd(options.statistics, n_mels=options.n_mels)
    features = _load_features(options.features, options.encoder, grid)
    front_end.to(options.device)
    features.to(options.device)
    paths = common.training_paths(options.inputs)
    common.make_parent(options.output)
    # The tokens depend on these settings, so each combination of settings has
    # its own folder.
    settings = [
        options.features,
        options.geometry,
        options.seed,
        front_end.config,
        paths,
    ]
    key = fingerprint(features, json.dumps(settings))
    gathered = f"{options.output}.gathered-{key[:8]}"
    tokens, unreadable = [], []
    with tqdm(total=len(paths), desc="Reading", unit="file") as bar:
        for first in range(0, len(paths), FILES_AT_ONCE):
            part = paths[first : first + FILES_AT_ONCE]
            file = os.path.join(gathered, f"{first}.pt")
            if os.path.exists(file):
                found = torch.load(file, weights_only=True)
                bar.update(len(part))
            else:
                draw = torch.Generator().manual_seed(options.seed + first)
                most = max(1, MOST_TOKENS // len(paths))
                found = _gather(
                    part, front_end, features, most, draw, options.device, bar
                )
                os.makedirs(gathered, exist_ok=True)
                with atomic_write(file, "wb") as content:
                    torch.save(found, content)
            tokens += found["tokens"]
            unreadable += found["unreadable"]
    common.report_unreadable(unreadable, len(paths), options.output)
    x = torch.cat(tokens)
    print(f"fitting {options.codes} codes to {len(x)} tokens")
    used, entropy = fit_kmeans(
        features.cpu(),
        x,
        options.output,
        options.codes,
        front_end,
        options.seed,
    )
    shutil.rmtree(gathered)
    print(
        f"{100 * used:.0f} % of the codes are used, entropy {entropy:.2f} of 1"
        f"\nwritten to {options.output}"
    )


def _load_features(kind, encoder, grid):
    """Return the module that computes the features of tokens."""
    name, _, block = kind.partition(":")
    if (name == "block") != (encoder is not None):
        raise ArgumentError(
            "give --encoder MODEL with --features block:N, and only then"
        )
    if name != "block":
        return make_features(name, grid)
    lobe = lobe_of(load_weights(encoder))
    front_end = lobe.features.config
    if front_end["sample_rate"] != SAMPLE_RATE:
        raise ArgumentError(
            f"{encoder} takes {front_end['sample_rate']} Hz, not {SAMPLE_RATE}"
        )
    # Clips keep their own lengths.
    front_end.pop("pad_frames", None)
    features = make_features(
        name,
        grid,
        encoder=lobe.encoder.config,
        features=front_end,
        block=int(block),
    )
    state = lobe.encoder.state_dict()
    needed = features.encoder.state_dict()
    features.encoder.load_state_dict({key: state[key] for key in needed})
    return features


@torch.no_grad()
def _gather(paths, front_end, features, most, draw, device, bar):
    """Return the tokens of some files, and the unreadable files."""
    tokens, unreadable = [], []
    for path in paths:
        bar.update()
        try:
            wav = read_audio(path, seconds=SECONDS)
        except UnreadableAudio as error:
            unreadable.append((path, error.reason(path)))
            continue
        wavs = wav[None].to(device)
        audio = {}
        if features.needs_audio:
            audio = {"wavs": wavs, "n_samples": full_lengths(wavs)}
        x = features(*front_end(wavs), **audio)[0].cpu()
        tokens.append(x[torch.randperm(len(x), generator=draw)[:most]])
    return {"tokens": tokens, "unreadable": unreadable}
