"""Run the command ``ssast-lobes``.

A mistake in the input prints one line on stderr and exits with code 2. Commands
skip audio that they cannot read, and list it at the end. Each command is a
module with `add_parser` and `run`. Heavy imports are inside `run`, so that
``--help`` answers at once.
"""

import argparse
import os
import sys

from ssast_lobes import __version__
from ssast_lobes.cli import (
    average,
    classify,
    convert,
    embed,
    events,
    finetune,
    heads,
    manifest,
    models,
    onnx,
    pretrain,
    probe,
    recipes,
    shard,
    stats,
    suggest,
    tokenizer,
)
from ssast_lobes.utils.dependencies import UnusableTorchaudio, check_torchaudio

# The help lists the commands in this order.
_COMMANDS = (
    suggest,
    pretrain,
    finetune,
    embed,
    classify,
    events,
    probe,
    heads,
    manifest,
    stats,
    shard,
    tokenizer,
    convert,
    average,
    onnx,
    models,
    recipes,
)

# These commands only copy files or start a script.
_WITHOUT_TORCH = ("finetune", "pretrain", "recipes")


def main(arguments=None):
    """Run the command line.

    Arguments
    ---------
    arguments : list of str, optional
        Arguments after ``ssast-lobes``; by default those of the process.

    Returns
    -------
    int
        Exit code: 0; 2 for an error in the input; 130 after Ctrl-C; or the code
        of the script that was run.

    Example
    -------
    >>> main(["stats", "nowhere"])
    2
    """
    options = _parse(arguments)
    try:
        if options.command not in _WITHOUT_TORCH:
            check_torchaudio()
        code = options.run(options) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the pipe, such as `head`, has ended. Redirect stdout,
        # since Python would fail when it flushes the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"\nstopped; {options.when_stopped}", file=sys.stderr)
        return 130
    except UnusableTorchaudio as error:
        print(f"ssast-lobes: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError, *_own_errors()) as error:
        print(f"ssast-lobes {options.command}: {error}", file=sys.stderr)
        return 2
    return code


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog="ssast-lobes",
        description=(
            "Self-supervised audio spectrogram transformers: suggest a "
            "start, pretrain, fine-tune, embed and classify audio, find "
            "events in it, compare checkpoints, write a table of class "
            "folders, measure log-mel statistics, pack audio into shards, "
            "fit codes to predict, convert and average models, write them "
            "as ONNX, list bundled models, copy recipes."
        ),
        epilog="`ssast-lobes COMMAND --help` tells more and shows an example.",
    )
    parser.add_argument(
        "--version", action="version", version=f"ssast-lobes {__version__}"
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    for command in _COMMANDS:
        command.add_parser(commands)
    # argparse accepts inputs only before or only after the options.
    options, more = parser.parse_known_args(arguments)
    strange = [word for word in more if word.startswith("-")]
    if strange or (more and "inputs" not in options):
        parser.error(f"unrecognized arguments: {' '.join(strange or more)}")
    if "inputs" in options:
        options.inputs += more
    return options


def _own_errors():
    # Import here, since Python calls this function only after an error.
    from ssast_lobes.checkpoints.format import WeightsError
    from ssast_lobes.dataio.waveforms import UnreadableAudio

    return UnreadableAudio, WeightsError
