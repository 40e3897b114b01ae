"""Handle arguments, inputs, models and unreadable files of all commands."""

import argparse
import csv
import os
import sys

INPUTS_HELP = (
    "audio files, folders (searched with their subfolders), or CSV files "
    "with a column `path` (a single column needs no name)"
)
MODEL_HELP = (
    "exported folder, Hugging Face folder, or user/repo on the hub with one "
    "of these; or a name that `ssast-lobes models` lists"
)
# Endings of files that hold weights, and are never audio.
_WEIGHTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_SHOWN_UNREADABLE = 20


def add_command(commands, name, run, summary, text, example):
    """Add a command, and return its parser.

    Arguments
    ---------
    commands : argparse action
        From `argparse.ArgumentParser.add_subparsers`.
    name : str
        Name on the command line.
    run : callable
        Function of the parsed options.
    summary : str
        Line in the list of commands.
    text : str
        Description in the command's help.
    example : str
        A complete command line.

    Returns
    -------
    argparse.ArgumentParser

    Example
    -------
    >>> commands = argparse.ArgumentParser().add_subparsers()
    >>> parser = add_command(commands, "count", len, "", "", "count a.wav")
    >>> parser.parse_args([]).when_stopped
    'nothing was written'
    """
    command = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, when_stopped="nothing was written")
    return command


def add_model(command):
    """Add an optional model, the inputs, and the options of computation.

    Arguments
    ---------
    command : argparse.ArgumentParser
        From `add_command`. `find_model` and `load_model` read its options.
    """
    command.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"{MODEL_HELP} (default: the bundled model)",
    )
    command.add_argument("inputs", nargs="+", metavar="INPUT", help=INPUTS_HELP)
    add_computing(command)
    command.add_argument(
        "--precision",
        choices=["fp32", "bf16", "fp16"],
        default="fp32",
        help="precision of the network (default: fp32)",
    )


def add_tasks(command):
    """Add the options for tasks and output that probes and heads share.

    Arguments
    ---------
    command : argparse.ArgumentParser
        From `add_command`.
    """
    command.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="[NAME=]FILE.csv[,...]",
        help="a task; repeat the option for several tasks",
    )
    command.add_argument("--output", required=True, metavar="FOLDER")


def add_device(command):
    """Add the option for the device.

    Arguments
    ---------
    command : argparse.ArgumentParser
        From `add_command`.
    """
    command.add_argument(
        "--device", default="cpu", help="such as cpu or cuda (default: cpu)"
    )


def add_computing(command):
    """Add the options for device and batch size.

    Arguments
    ---------
    command : argparse.ArgumentParser
        From `add_command`.
    """
    add_device(command)
    command.add_argument(
        "--batch-size",
        type=positive,
        default=16,
        help="windows in a batch (default: 16)",
    )


def file_name(*extensions):
    """Return an argument type for file names with given extensions.

    Arguments
    ---------
    *extensions : str
        In lower case, with the dot.

    Returns
    -------
    callable
        Returns the name, or raises `argparse.ArgumentTypeError`.

    Example
    -------
    >>> file_name(".csv", ".json")("scores.CSV")
    'scores.CSV'
    """

    def check(name):
        if os.path.splitext(name)[1].lower() not in extensions:
            raise argparse.ArgumentTypeError(
                f"'{name}' should end in {' or '.join(extensions)}"
            )
        return name

    return check


def positive(text):
    """Read a positive integer, as a `type` of argparse.

    Arguments
    ---------
    text : str
        The word on the command line.

    Returns
    -------
    int

    Raises
    ------
    argparse.ArgumentTypeError
        If `text` is not a positive integer.

    Example
    -------
    >>> positive("16")
    16
    """
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no positive number")
    return number


def read_rows(inputs):
    """Yield the rows of one input after another.

    Arguments
    ---------
    inputs : list of str
        Audio files, folders and CSVs.

    Yields
    ------
    dict of str
        Path and id. A file occurs as often as inputs name it.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    ManifestError
        If a folder holds no audio, or rows of a CSV are bad.

    Example
    -------
    >>> next(read_rows(["nowhere"]))
    Traceback (most recent call last):
    ...
    FileNotFoundError: nowhere: no such file or folder
    """
    from ssast_lobes.dataio.scan import folder_rows
    from ssast_lobes.dataio.tables import read_manifest

    for name in map(os.path.expanduser, inputs):
        if os.path.isdir(name):
            found = folder_rows(name)
        elif not os.path.isfile(name):
            raise FileNotFoundError(f"{name}: no such file or folder")
        elif name.lower().endswith(".csv"):
            found = read_manifest(name)
        else:
            found = [{"id": name, "path": os.path.abspath(name)}]
        yield from found


def read_ids(inputs):
    """Return the audio files of the inputs, each once, with their ids.

    Arguments
    ---------
    inputs : list of str
        Audio files, folders and CSVs.

    Returns
    -------
    dict of str to str
        Id by path.

    Raises
    ------
    FileNotFoundError, ManifestError
        See `read_rows`.
    """
    ids = {}
    for row in read_rows(inputs):
        ids.setdefault(row["path"], row["id"])
    return ids


def training_paths(inputs):
    """Return the files that no input marks as valid or test.

    Arguments
    ---------
    inputs : list of str
        Audio files, folders and CSVs.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If the inputs mark all files as valid or test.
    """
    from ssast_lobes.dataio.held_out import without_held_out

    found = list(read_rows(inputs))
    paths = [row["path"] for row in without_held_out(found)]
    left_out = len({row["path"] for row in found}) - len(paths)
    if not paths:
        raise ValueError(
            f"all {left_out} files are valid or test; to use them, give "
            "their folder, not the CSV"
        )
    if left_out:
        print(
            f"{count_files(left_out)} left out: valid or test",
            file=sys.stderr,
        )
    return paths


def make_parent(output):
    """Create the folder of an output file, so that errors come early.

    Arguments
    ---------
    output : str or None
        The file. If None, nothing happens.

    Raises
    ------
    OSError
        If the folder cannot be created or written to.
    """
    if output is not None:
        folder = os.path.dirname(os.path.abspath(output))
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder}: not allowed to write there")


def check_device(name):
    """Raise unless torch can compute on a device.

    Arguments
    ---------
    name : str
        Such as ``"cuda:1"``.

    Raises
    ------
    ValueError
        If there is no such device.

    Example
    -------
    >>> check_device("cpu")
    """
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no device '{name}' here ({reason})") from error


def find_model(options):
    """Separate the model from the inputs.

    The first argument is the model, unless it is audio.

    Arguments
    ---------
    options : argparse.Namespace
        Options of `add_model`, whose `model` and `inputs` change.

    Raises
    ------
    ValueError
        If there is a model but no audio.
    WeightsError
        If the first argument resembles the name of a bundled model, but is not
        one.

    Example
    -------
    >>> options = argparse.Namespace(model="me/barks", inputs=["day.wav"])
    >>> find_model(options)
    >>> options.model, options.inputs
    ('me/barks', ['day.wav'])
    """
    from ssast_lobes.checkpoints.bundled import resolve_name
    from ssast_lobes.checkpoints.format import CONFIG_FILE
    from ssast_lobes.dataio.scan import find_audio
    from ssast_lobes.dataio.tables import ManifestError

    first, *others = [
        word for word in (options.model, *options.inputs) if word is not None
    ]
    path, is_model = os.path.expanduser(resolve_name(first)), bool(others)
    if os.path.isfile(path):
        is_model = path.lower().endswith(_WEIGHTS)
    elif os.path.isdir(path):
        is_model = os.path.isfile(os.path.join(path, CONFIG_FILE))
        try:
            is_model = is_model or not find_audio(path)
        except ManifestError:
            is_model = True
    options.model = first if is_model else None
    options.inputs = others if is_model else [first, *others]
    if not options.inputs:
        raise ValueError(
            f"{first} is a model: name audio after it (for a folder of shards, "
            "its manifest.csv)"
        )


def load_model(interface, options, **more):
    """Load a model by the options of `add_model`.

    Arguments
    ---------
    interface : type
        `AudioEncoder`, `AudioClassifier` or `EventDetector`.
    options : argparse.Namespace
        After `find_model`.
    **more
        Further arguments of the interface's `from_hparams`.

    Returns
    -------
    Interface

    Raises
    ------
    ValueError
        If there is no such device.
    WeightsError
        If the model does not load.
    """
    check_device(options.device)
    return interface.from_hparams(
        options.model,
        options.device,
        options.batch_size,
        options.precision,
        **more,
    )


def report_unreadable(unreadable, n_files, output):
    """List the unreadable files, on stderr and next to the output.

    Arguments
    ---------
    unreadable : list of tuple
        (path, reason) of each.
    n_files : int
        Number of all files.
    output : str or None
        The output file. The list is written to ``OUTPUT.unreadable.csv``. If
        None, it is only printed.

    Raises
    ------
    ValueError
        If no file was readable.
    """
    if output is not None:
        # The output may be a folder.
        listed = f"{os.path.normpath(output)}.unreadable.csv"
        if os.path.exists(listed):
            # This list is from an earlier run.
            os.remove(listed)
    if not unreadable:
        return
    print(
        f"{len(unreadable)} of {n_files} files could not be read:",
        file=sys.stderr,
    )
    for path, reason in unreadable[:_SHOWN_UNREADABLE]:
        print(f"  {path}: {reason}", file=sys.stderr)
    if len(unreadable) > _SHOWN_UNREADABLE:
        print("  ...", file=sys.stderr)
    suggest_extra(unreadable)
    if output is not None:
        with open(
            listed, "w", encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            csv.writer(file).writerows([("path", "reason"), *unreadable])
        print(f"all are listed in {listed}", file=sys.stderr)
    if len(unreadable) == n_files:
        raise ValueError("none of the files could be read")


def suggest_extra(unreadable):
    """Print which unreadable files need an extra of the package.

    Arguments
    ---------
    unreadable : list of tuple
        (path, reason) of each.
    """
    from ssast_lobes.dataio.codec import files_in_need

    need = files_in_need(unreadable)
    if need:
        print(need, file=sys.stderr)


def print_columns(rows):
    """Print rows of text in columns.

    Arguments
    ---------
    rows : list of sequence of str
        The cells; the first row contains the names of the columns.

    Example
    -------
    >>> print_columns([("label", "clips"), ("dog", "7")])
    label  clips
    dog    7
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = map(str.ljust, row, widths)
        print("  ".join(cells).rstrip())


def count_files(count):
    """Return a number of files as text.

    Arguments
    ---------
    count : int
        Number of files.

    Returns
    -------
    str

    Example
    -------
    >>> count_files(1), count_files(2)
    ('1 file', '2 files')
    """
    return f"{count} file" if count == 1 else f"{count} files"
