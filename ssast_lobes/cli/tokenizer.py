"""``ssast-lobes tokenizer``: codes of audio for the objective `Codes`."""

from ssast_lobes.cli import common

# So many vectors are plenty for a few hundred centers, and fit into memory.
_MOST_TOKENS = 200_000
_SECONDS = 10.0


def add_parser(commands):
    """Add the command.

    Arguments
    ---------
    commands : argparse action
        See `ssast_lobes.cli.common.add_command`.
    """
    command = common.add_command(
        commands,
        "tokenizer",
        run,
        "fit the codes that an objective predicts: k-means of log-mel, cepstra",
        "Fit k-means to the tokens of audio, for a pretraining that predicts\n"
        "codes (docs/objectives.md). Geometry, mel bins and statistics have\n"
        "to be those of the encoder. Of each file the first ten seconds are\n"
        "read, and at most 200,000 tokens in all. Valid and test files of a\n"
        "CSV are left out.",
        "ssast-lobes tokenizer train.csv --output codes.safetensors "
        "--features cepstra --codes 300",
    )
    command.add_argument(
        "inputs", nargs="+", metavar="INPUT", help=common.INPUTS_HELP
    )
    command.add_argument(
        "--output",
        metavar="FILE.safetensors",
        type=common.file_name(".safetensors"),
        required=True,
        help="where to write",
    )
    command.add_argument(
        "--features",
        choices=["logmel", "cepstra"],
        default="cepstra",
        help="pixels of a patch, or 20 cepstral coefficients of its frames "
        "(default: cepstra)",
    )
    command.add_argument(
        "--codes",
        type=common.positive,
        default=300,
        help="number of codes (default: 300)",
    )
    command.add_argument(
        "--geometry",
        default="patch",
        help='patch, frame, or "[mels, frames]" (default: patch)',
    )
    command.add_argument(
        "--n-mels",
        type=common.positive,
        default=128,
        help="mel bins (default: 128)",
    )
    command.add_argument(
        "--statistics",
        default="audioset",
        help="preset, or YAML file of `ssast-lobes stats` (default: audioset)",
    )
    command.add_argument(
        "--seed", type=int, default=1986, help="of k-means (default: 1986)"
    )


def run(options):
    """Fit a tokenizer to the inputs.

    Arguments
    ---------
    options : argparse.Namespace
        Of `add_parser`.
    """
    import torch
    import yaml
    from tqdm import tqdm

    from ssast_lobes.dataio.audio import read_audio
    from ssast_lobes.dataio.waveforms import UnreadableAudio
    from ssast_lobes.models.features import FrontEnd
    from ssast_lobes.models.patches import Grid
    from ssast_lobes.objectives.tokenizers import describe, fit_kmeans

    grid = Grid.from_geometry(yaml.safe_load(options.geometry), options.n_mels)
    features = FrontEnd(options.statistics, n_mels=options.n_mels)
    paths = common.training_paths(options.inputs)
    common.make_parent(options.output)
    draw = torch.Generator().manual_seed(options.seed)
    kept, unreadable = [], []
    most = max(1, _MOST_TOKENS // len(paths))
    for path in tqdm(paths, "Reading", unit="file"):
        try:
            wav = read_audio(path, seconds=_SECONDS)
        except UnreadableAudio as error:
            unreadable.append((path, str(error).removeprefix(f"{path}: ")))
            continue
        feats, n_frames = features(wav[None])
        n_tokens = grid.n_freq * grid.n_time(int(n_frames))
        x = describe(grid, feats, options.features)[0, :n_tokens]
        kept.append(x[torch.randperm(len(x), generator=draw)[:most]])
    common.report_unreadable(unreadable, len(paths), options.output)
    x = torch.cat(kept)
    print(f"fitting {options.codes} codes to {len(x)} tokens")
    used, entropy = fit_kmeans(
        grid, x, options.output, options.codes, options.features, options.seed
    )
    print(
        f"{100 * used:.0f} % of the codes are used, entropy {entropy:.2f} of 1"
        f"\nwritten to {options.output}"
    )
