"""``ssast-lobes shard``: pack a corpus into a few large files."""

import os
import sys

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
        "shard",
        run,
        "pack audio into a few large files that are fast to read",
        "Pack audio of all splits into shards: tar files in the format of\n"
        "WebDataset, 16-bit mono. FOLDER/manifest.csv has the columns of the\n"
        "input, and replaces the input as a manifest. Recipes of datasets\n"
        "take the folder as --shards. Samples beyond full scale are clipped\n"
        "and counted. The files do not depend on the number of workers. If\n"
        "the command stops, rerun it to resume.",
        "ssast-lobes shard clips.csv shards/ --workers 8",
    )
    command.add_argument(
        "input",
        metavar="INPUT",
        help="a CSV with a column `path`, or a folder of audio",
    )
    command.add_argument("folder", metavar="FOLDER", help="folder to write")
    command.add_argument(
        "--codec",
        choices=["flac", "int16"],
        default="flac",
        help="int16 takes twice the space of flac, but less time to read "
        "(default: flac)",
    )
    command.add_argument(
        "--sample-rate",
        type=common.positive,
        default=16000,
        help="sampling rate of the shards in Hz (default: 16000)",
    )
    command.add_argument(
        "--megabytes",
        type=common.positive,
        default=512,
        help="largest size of a shard (default: 512)",
    )
    command.add_argument(
        "--max-unreadable",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="largest fraction of unreadable files that is accepted (default: "
        "0.01)",
    )
    command.add_argument(
        "--workers",
        type=common.positive,
        help="processes that decode and encode (default: one for each core)",
    )
    command.set_defaults(
        when_stopped="the shards made so far are kept: the same command "
        "resumes from there"
    )


def run(options):
    """Pack audio into shards.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.dataio.shards import pack

    packed = pack(
        list(common.read_rows([options.input])),
        options.folder,
        options.codec,
        options.sample_rate,
        options.megabytes * 2**20,
        options.max_unreadable,
        options.workers,
    )
    if packed.unreadable:
        print(
            f"{len(packed.unreadable)} files could not be read, and are "
            f"listed in {os.path.join(options.folder, 'unreadable.csv')}",
            file=sys.stderr,
        )
        common.suggest_extra(packed.unreadable)
    if packed.clipped:
        print(
            f"{packed.clipped} clips had samples beyond full scale, which "
            "were cut off: column `clipped` of the manifest",
            file=sys.stderr,
        )
    print(
        f"clips: {packed.clips}, hours: {packed.hours:.2f}, shards: "
        f"{packed.shards}, manifest: {packed.manifest}"
    )
