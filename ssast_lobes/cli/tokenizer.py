"""``ssast-lobes tokenizer``: fit and write codes for objective `Codes`."""

import argparse

from ssast_lobes.cli import common

_FEATURES = "logmel, cepstra, chroma, or block:N"


def add_parser(commands):
    """Add the command and its two subcommands.

    Arguments
    ---------
    commands : argparse action
        See `ssast_lobes.cli.common.add_command`.
    """
    parser = commands.add_parser(
        "tokenizer",
        help="fit the codes that an objective predicts; write ids to files",
        description="Fit and write codes, which a pretraining predicts "
        "(docs/objectives.md).",
    )
    parts = parser.add_subparsers(
        dest="part", required=True, metavar="fit|encode"
    )
    _add_fit(parts)
    _add_encode(parts)


def _add_fit(parts):
    command = common.add_command(
        parts,
        "fit",
        fit,
        "fit k-means to the tokens of audio",
        "Fit k-means to the tokens of audio. Geometry, mel bins and\n"
        "statistics must be those of the encoder to train. The command reads\n"
        "the first ten seconds of each file, and at most 200,000 tokens. It\n"
        "skips valid and test files of a CSV. If it stops or fails, rerun it:\n"
        "it starts from the tokens in FILE.gathered-*, also with other\n"
        "--codes. At the end it removes that folder.",
        "ssast-lobes tokenizer fit train.csv --output codes.safetensors "
        "--features cepstra\n  ssast-lobes tokenizer fit train.csv --output "
        "codes.safetensors \\\n      --features block:4 --encoder "
        "results/first/export",
    )
    command.set_defaults(when_stopped="run the same again to resume")
    command.add_argument(
        "inputs", nargs="+", metavar="INPUT", help=common.INPUTS_HELP
    )
    command.add_argument(
        "--output",
        metavar="FILE.safetensors",
        type=common.file_name(".safetensors"),
        required=True,
        help="file to write",
    )
    command.add_argument(
        "--features",
        type=_features,
        default="cepstra",
        metavar="KIND",
        help=f"features of a token: {_FEATURES}. These are the pixels of its "
        "patch, 20 cepstral coefficients of its frames, the twelve pitch "
        "classes around it, or the output of block N of an encoder (default: "
        "cepstra)",
    )
    command.add_argument(
        "--encoder",
        metavar="MODEL",
        help="encoder of block:N: an exported folder, or another MODEL of "
        "`ssast-lobes embed`. It may have other mel bins and patches",
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
        "--seed", type=int, default=1986, help="seed of k-means (default: 1986)"
    )
    common.add_device(command)


def _add_encode(parts):
    command = common.add_command(
        parts,
        "encode",
        encode,
        "write the ids of audio to files",
        "Write the ids of every file to FOLDER/ID.npy, for StoredTokenizer\n"
        "(docs/objectives.md). ID is the id of the file's row. The command\n"
        "skips existing files. Give the inputs of the pretraining, in the\n"
        "same order. Several --tokenizer give several codebooks. Long files\n"
        "are encoded in windows of 20 s, with 2 s of context at both sides.",
        "ssast-lobes tokenizer encode train.csv --tokenizer "
        "codes.safetensors --output codes/",
    )
    command.set_defaults(when_stopped="run the same again to resume")
    command.add_argument(
        "inputs", nargs="+", metavar="INPUT", help=common.INPUTS_HELP
    )
    command.add_argument(
        "--tokenizer",
        action="append",
        metavar="FILE|FOLDER",
        required=True,
        help="file from `ssast-lobes tokenizer fit`, once for each codebook, "
        "or export of the objective vector_quantizer",
    )
    command.add_argument("--output", metavar="FOLDER", required=True)
    common.add_device(command)


def _features(text):
    """Check the kind of features, as a `type` of argparse."""
    name, _, block = text.partition(":")
    right = not block if name != "block" else block.isdecimal()
    if name not in ("logmel", "cepstra", "chroma", "block") or not right:
        raise argparse.ArgumentTypeError(f"'{text}' is none of {_FEATURES}")
    return text


def fit(options):
    """Fit a tokenizer to the inputs.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.cli.tokenizer_fit import fit_tokenizer

    fit_tokenizer(options)


def encode(options):
    """Write the ids of the inputs.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.cli.tokenizer_encode import encode_files

    encode_files(options)
