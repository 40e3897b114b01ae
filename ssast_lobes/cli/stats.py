"""``ssast-lobes stats``: measure log-mel statistics of audio."""

from ssast_lobes.cli import common


def add_parser(commands):
    """Add the command and its options.

    Arguments
    ---------
    commands : argparse action
        See `ssast_lobes.cli.common.add_command`.
    """
    command = common.add_command(
        commands,
        "stats",
        run,
        "measure mean and standard deviation of log-mel energies",
        "Measure mean and standard deviation of the log-mel energies of your\n"
        "audio, and write them as YAML for a recipe's `statistics`. The mean\n"
        "of each clip is removed first. Files over 30 s are read in parts,\n"
        "and the mean of each part is removed (the filterbank also removes\n"
        "that of each frame). Files that are valid or test in any column of a\n"
        "CSV whose name starts with `split` are skipped.",
        "ssast-lobes stats train.csv --output stats.yaml",
    )
    command.add_argument(
        "inputs", nargs="+", metavar="INPUT", help=common.INPUTS_HELP
    )
    command.add_argument(
        "--output",
        metavar="FILE.yaml",
        type=common.file_name(".yaml", ".yml"),
        help="file to write (default: the screen)",
    )
    command.add_argument(
        "--n-mels",
        type=common.positive,
        default=128,
        help="mel bins (default: 128)",
    )
    command.add_argument(
        "--sample-rate",
        type=common.positive,
        default=16000,
        help="sampling rate to convert audio to, in Hz (default: 16000)",
    )


def run(options):
    """Measure log-mel statistics of the inputs.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.evaluation.statistics import measure_statistics
    from ssast_lobes.utils.files import atomic_write

    paths = common.training_paths(options.inputs)
    common.make_parent(options.output)
    unreadable = []
    statistics, hours = measure_statistics(
        paths, unreadable, options.sample_rate, options.n_mels
    )
    common.report_unreadable(unreadable, len(paths), options.output)
    text = (
        f"# Log-mel statistics of {len(paths) - len(unreadable)} files, "
        f"{hours:.2f} hours.\n"
        f"mean: {statistics.mean:.7f}\n"
        f"std: {statistics.std:.7f}\n"
    )
    if options.output is None:
        print(text, end="")
        return
    with atomic_write(options.output) as file:
        file.write(text)
    print(text + f"# {options.output}")
