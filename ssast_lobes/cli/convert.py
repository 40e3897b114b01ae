"""``ssast-lobes convert``: convert models between formats."""

import argparse

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
        "convert",
        run,
        "convert official, released and Hugging Face models",
        "Convert a checkpoint to an exported folder. It may be an official\n"
        "one of SSAST or AST, a released one of EAT, M2D, ATST, AudioMAE,\n"
        "MaskSpec, Dasheng, ASiT, AudioMosaic or BEATs, or a Hugging Face\n"
        "folder with an ASTModel or an ASTForAudioClassification. The command\n"
        "also converts an exported folder: to an official checkpoint if DEST\n"
        "ends in .pth, or to a Hugging Face folder with --to huggingface. It\n"
        "lists the tensors that it leaves out.",
        "ssast-lobes convert SSAST-Tiny-Patch-400.pth models/ssast_tiny\n"
        "  ssast-lobes convert models/ssast_tiny models/for_transformers \\\n"
        "      --to huggingface",
    )
    command.add_argument(
        "source",
        metavar="SOURCE",
        help=f"{common.MODEL_HELP}; or official .pth file",
    )
    command.add_argument(
        "dest", metavar="DEST", help="folder or .pth file to write"
    )
    command.add_argument(
        "--to",
        choices=["export", "official", "huggingface"],
        help="format to write (default: official if DEST ends in .pth, else "
        "export)",
    )
    command.add_argument(
        "--pad-frames",
        type=common.positive,
        metavar="N",
        help="pad or cut every clip to N frames of 10 ms, which all count as "
        "audio, as in the official recipes (AST: 1024). Hugging Face always "
        "pads (default: to the N of the export, else to the length of its "
        "pretraining)",
    )
    command.add_argument(
        "--family",
        choices=[
            *("eat", "m2d", "atst_frame", "atst_clip", "audiomae", "maskspec"),
            *("dasheng", "asit", "audiomosaic", "beats"),
        ],
        help="family of the checkpoint; needed if several have the same keys: "
        "AudioMAE, MaskSpec, ASiT, and M2D of 2022",
    )
    command.add_argument(
        "--stride",
        type=_stride,
        metavar="MELS,FRAMES",
        help="patch stride of a fine-tuned checkpoint, such as 10,10; needed "
        "only if its size allows several strides",
    )
    command.add_argument(
        "--statistics",
        metavar="NAME|FILE.yaml",
        help="normalization of the model's training: audioset, esc50, "
        "speechcommands, or a file from `ssast-lobes stats` (default: "
        "audioset)",
    )
    command.add_argument(
        "--labels",
        metavar="FILE.txt",
        help="labels of a fine-tuned checkpoint, one on each line, in the "
        "order of its classes (default: numbers)",
    )
    command.add_argument(
        "--multi-label",
        action="store_true",
        help="a clip may have several labels (as in AudioSet)",
    )
    command.add_argument(
        "--pooling",
        choices=["mean", "class"],
        help="what the head of a fine-tuned checkpoint sees: the mean of all "
        "tokens (SSAST's recipes) or the class tokens (AST) (default: mean)",
    )


def run(options):
    """Convert a model.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.checkpoints.convert import convert

    weights = convert(
        options.source,
        options.dest,
        options.to,
        options.stride,
        options.pad_frames,
        options.statistics,
        options.labels,
        options.multi_label,
        options.pooling,
        options.family,
    )
    for line in weights.report:
        print(line)
    print(f"{len(weights.state)} tensors converted to {options.dest}")


def _stride(text):
    """Read a stride, such as 10,10, as a `type` of argparse."""
    try:
        bins, frames = map(common.positive, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not of the form MELS,FRAMES, such as 10,10"
        ) from error
    return bins, frames
