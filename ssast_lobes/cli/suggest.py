"""``ssast-lobes suggest``: suggest a first step, with measurements."""

import math
import os
import shlex
import statistics
import tempfile
from collections import Counter
from typing import NamedTuple

from ssast_lobes.cli import common

BUNDLED = "ssast-lobes-micro-1"
# `ssast-lobes manifest` draws this fraction of the clips for training.
_TRAIN_FRACTION = 0.7


class Advice(NamedTuple):
    """A suggestion for a certain amount of data.

    Arguments
    ---------
    least : float
        Smallest amount: labeled clips per class, or hours of audio.
    what : str
        What to begin with.
    why : str
        The measurement that supports it.
    commands : tuple of str
        Command lines with the fields ``{labels}``, ``{audio}`` and
        ``{model}``.
    """

    least: float
    what: str
    why: str
    commands: tuple = ()


_PROBE = "ssast-lobes probe {model} --data task={labels} --output results/probe"
_HEADS = (
    "ssast-lobes heads {model} --data task={labels} --output results/heads "
    "--pooling dynamics --layers all"
)
_FINETUNE = (
    "ssast-lobes finetune {labels} --source {model} "
    "--training finetune_few_labels --output_folder results/finetuned"
)

# The scores are means over the tasks of the files in experiments/transfer/. A
# test compares them with these files.
BY_LABELS = (
    Advice(
        0,
        "compare clips by their embeddings",
        "without labels nothing can be trained",
        ("ssast-lobes embed {model} {audio} --output clips.npz",),
    ),
    Advice(
        1,
        "a linear head on the frozen bundled model",
        "frozen, 2 labels per class: 51.9 % (untrained 39.5 %); 5 labels per "
        "class: 68.3 % (untrained 49.0 %); fine-tuning was not measured with "
        "so few",
        (_PROBE, _HEADS),
    ),
    Advice(
        10,
        "a linear head, and fine-tuning: choose the better one on valid",
        "10 labels per class: frozen 77.1 %, fine-tuned 79.2 %, from scratch "
        "64.6 %; frozen was better on two tasks of five",
        (_HEADS, _FINETUNE, _PROBE),
    ),
    Advice(
        30,
        "fine-tune the bundled model",
        "8 to 118 labels per class: frozen 84.9 %, fine-tuned 88.9 %, from "
        "scratch 76.5 %; fine-tuned was better on four tasks of five",
        (_FINETUNE, _HEADS, _PROBE),
    ),
)
BY_HOURS = (
    Advice(
        0,
        "no pretraining: take the bundled model",
        "frozen bundled model 84.9 %, a model pretrained on 4.7 hours 71.0 %, "
        "an untrained model 69.7 %",
    ),
    Advice(
        10,
        "pretrain on your audio, and probe it next to the bundled model",
        "the bundled model was pretrained on 17 hours, in seven minutes on a "
        "GPU and two hours of a CPU core",
        (
            "ssast-lobes pretrain {audio} --model_size micro "
            '--geometry "[128, 4]" --objective contrastive_mspm',
        ),
    ),
    Advice(
        1000,
        "fine-tune a released checkpoint, or pretrain `base` on a GPU",
        "SSAST-Base, pretrained on AudioSet-2M and LibriSpeech: 88.8 % on "
        "ESC-50, 98.0 % on 35 keywords (Gong et al., Table 1)",
        (
            "ssast-lobes finetune {labels} --source SSAST-Base-Patch-400.pth",
            "ssast-lobes pretrain {audio} --model_size base --compile",
        ),
    ),
)


def add_parser(commands):
    """Add the command and its options.

    Arguments
    ---------
    commands : argparse action
        See `ssast_lobes.cli.common.add_command`.
    """
    command = common.add_command(
        commands,
        "suggest",
        run,
        "suggest a start for your labels and hours of audio",
        "Suggest a start: a frozen model, fine-tuning, a released checkpoint,\n"
        "or your own pretraining. Each line names the measurement behind it.\n"
        "Without options, the command prints the whole table.",
        "ssast-lobes suggest --labels words.csv --audio recordings/\n"
        "  ssast-lobes suggest --labels 10 --audio 3.5",
    )
    command.add_argument(
        "--labels",
        metavar="CSV|FOLDER|N",
        help="a CSV (path, label, split), class folders, or the number of "
        "labeled training clips of each class",
    )
    command.add_argument(
        "--audio",
        metavar="FOLDER|CSV|HOURS",
        help="audio without labels, or its length in hours",
    )


def run(options):
    """Print a suggestion for each kind of data.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    if options.labels is None and options.audio is None:
        print(table())
        return
    names = {"model": BUNDLED, "labels": "LABELS.csv", "audio": "AUDIO"}
    parts = []
    if options.labels is not None:
        amount = _number(options.labels)
        if amount is None:
            amount, has_splits = _labels_per_class(options.labels)
            names["labels"] = shlex.quote(options.labels)
            if os.path.isdir(options.labels):
                what = "draw train, valid and test"
                if has_splits:
                    what = "write the table"
                print(
                    f"first {what}:\n  ssast-lobes manifest {names['labels']}"
                )
                if not has_splits:
                    print(
                        "  (--group REGEX, if clips share a voice or a "
                        "recording)"
                    )
                manifest = os.path.join(options.labels, "manifest.csv")
                names["labels"] = shlex.quote(manifest)
            elif not has_splits:
                print(
                    f"first add a column split to {options.labels}: train, "
                    "valid or test for each clip"
                )
        parts.append((f"{amount:g} labels per class", BY_LABELS, amount))
    if options.audio is not None:
        amount = _number(options.audio)
        if amount is None:
            amount = _hours(options.audio)
            names["audio"] = shlex.quote(options.audio)
        parts.append((f"{amount:.3g} hours of audio", BY_HOURS, amount))
    for counted, advices, amount in parts:
        advice = [advice for advice in advices if advice.least <= amount][-1]
        print(f"{counted}: {advice.what}\n  measured: {advice.why}")
        for line in advice.commands:
            print(f"  {line.format(**names)}")


def table():
    """Return all suggestions as a table in Markdown.

    Returns
    -------
    str

    Example
    -------
    >>> table().splitlines()[0]
    '| labels per class, at least | begin with | measured |'
    """
    lines = []
    for unit, advices in (
        ("labels per class", BY_LABELS),
        ("hours of audio", BY_HOURS),
    ):
        lines += [
            f"| {unit}, at least | begin with | measured |",
            "|---|---|---|",
        ]
        lines += [f"| {a.least:g} | {a.what} | {a.why} |" for a in advices]
        lines.append("")
    return "\n".join(lines[:-1])


def _number(text):
    """Return an option as a number, or None for a path."""
    try:
        number = float(text)
    except ValueError:
        return None
    if not 0 <= number < math.inf:
        raise ValueError(f"{text} is no number of at least 0")
    return number


def _labels_per_class(source):
    """Return the median of train clips per class, and if there are splits."""
    from ssast_lobes.dataio.class_folders import class_rows
    from ssast_lobes.dataio.tables import read_manifest

    if os.path.isdir(source):
        rows = class_rows(source)
    else:
        rows = read_manifest(source, ["path", "label"])
    has_splits = any(row.get("split") for row in rows)
    labels = (
        row["label"]
        for row in rows
        if not has_splits or row.get("split") == "train"
    )
    median = statistics.median(Counter(labels).values() or [0])
    if not has_splits:
        median = round(_TRAIN_FRACTION * median)
    return median, has_splits


def _hours(source):
    """Return the hours of audio, read from the headers of all files."""
    from ssast_lobes.dataio.scan import scan_audio

    rows = list(common.read_rows([source]))
    with tempfile.TemporaryDirectory() as scratch:
        scan = scan_audio(rows, scratch)
    common.report_unreadable(scan.unreadable, scan.n_files, None)
    return sum(row["duration"] for row in scan.rows) / 3600
