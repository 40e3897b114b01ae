"""``ssast-lobes average``: average models, as a "model soup"."""

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
        "average",
        run,
        "average pretrained models that started from one model",
        "Write an exported folder with the mean of the weights of several\n"
        "pretrainings. They must have one size, geometry and objective, and\n"
        'start from one model, each with other audio: a "model soup"\n'
        "(Wortsman et al., ICML 2022). Probe the mean and each of them. The\n"
        "mean has the objective's settings and the window of the first.",
        "ssast-lobes average words/export real_audio/export mean_of_two",
    )
    command.add_argument(
        "sources", nargs="+", metavar="FOLDER", help="exported pretrainings"
    )
    command.add_argument("dest", metavar="OUTPUT", help="a new folder")


def run(options):
    """Write the mean of the weights of models.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.checkpoints.averaging import export_mean
    from ssast_lobes.utils.files import resolved

    # If OUTPUT is missing, argparse reads the last model as OUTPUT.
    if (resolved(options.dest) / "config.json").exists():
        raise ValueError(
            f"OUTPUT comes last, and {options.dest} is an exported folder: "
            "name a new one, or remove it"
        )
    export_mean(options.dest, options.sources)
    print(f"the mean of {len(options.sources)} models is in {options.dest}")
