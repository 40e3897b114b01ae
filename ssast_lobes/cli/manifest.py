"""``ssast-lobes manifest``: write a table of audio in class folders."""

import argparse
import math
import os
import re
from collections import Counter

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
        "manifest",
        run,
        "write a table of class folders, with train, valid and test",
        "Write a CSV (path, label, split) of a folder with one folder for\n"
        "each class, for recipes, `ssast-lobes probe` and `heads`. Labels are\n"
        "the names in FOLDER/LABEL/... . If all folders in FOLDER are called\n"
        "train, valid (validation, val, dev) or test, they are the splits:\n"
        "FOLDER/train/LABEL/... . If there is a metadata.csv of Hugging\n"
        "Face's audiofolder (file_name, label), it sets the labels. Missing\n"
        "splits are drawn from train, with the same fraction of each class.",
        "ssast-lobes manifest recordings/ --group '(speaker[0-9]+)'",
    )
    command.add_argument(
        "folder", metavar="FOLDER", help="the folder of the class folders"
    )
    command.add_argument(
        "--output",
        metavar="FILE.csv",
        type=common.file_name(".csv"),
        help="file to write; paths below its folder are relative to it "
        "(default: manifest.csv in FOLDER)",
    )
    command.add_argument(
        "--group",
        metavar="REGEX",
        type=_pattern,
        help="regular expression, searched in the path below FOLDER. Its "
        "parentheses match what must not be in two splits, such as the speaker "
        "(default: each file is its own group). It must match each file; "
        "'(speaker[0-9]+|^(?!.*speaker).*$)' also matches paths without "
        "a speaker",
    )
    command.add_argument(
        "--splits",
        metavar="TRAIN,VALID,TEST",
        type=_fractions,
        default=(0.7, 0.1, 0.2),
        help="fractions of the clips (default: 0.7,0.1,0.2)",
    )
    command.add_argument(
        "--seed",
        type=int,
        default=1986,
        help="seed of the splits (default: 1986)",
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace an existing table"
    )


def run(options):
    """Write a table of the clips in class folders.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    import tempfile

    from ssast_lobes.dataio.class_folders import class_rows
    from ssast_lobes.dataio.partition import draw_splits
    from ssast_lobes.dataio.scan import scan_audio
    from ssast_lobes.dataio.tables import raise_problems
    from ssast_lobes.utils.files import absolute, write_csv

    output = absolute(options.output or f"{options.folder}/manifest.csv")
    if os.path.exists(output) and not options.overwrite:
        raise FileExistsError(
            f"{output} is there already: --overwrite replaces it, --output "
            "names another"
        )
    rows = class_rows(options.folder, group=options.group)
    common.make_parent(output)
    with tempfile.TemporaryDirectory() as scratch:
        scan = scan_audio(rows, scratch)
    common.report_unreadable(scan.unreadable, scan.n_files, output)
    unit = "group" if options.group else "id"
    # Of all files, as `finetune FOLDER` draws: a damaged one moves no other.
    splits = draw_splits(rows, options.splits, options.seed, unit)
    split_of = {row["id"]: name for name in splits for row in splits[name]}
    columns = ["path", "label", "split", *([unit] if options.group else [])]
    table = [
        row
        | {"path": _below(output, row["path"]), "split": split_of[row["id"]]}
        for row in scan.rows
    ]
    strange = [row["path"] for row in table if not _is_unicode(row["path"])]
    raise_problems(
        options.folder, [f"a name that is not UTF-8: {x!a}" for x in strange]
    )
    write_csv(output, [columns, *([r[c] for c in columns] for r in table)])
    _print_counts(table, list(splits), options.group is not None)
    print(f"{common.count_files(len(table))} in {output}")
    _comment_groups(rows, options.group)


def _comment_groups(rows, pattern):
    """Print what a user may not expect of the draw."""
    from ssast_lobes.dataio.tables import SPLITS

    if len({row.get("split") for row in rows}) == len(SPLITS):
        return  # the folders are the splits
    if not pattern:
        print(
            "The splits are drawn clip by clip. If clips share a voice or a "
            "recording, --group keeps them in one split"
        )
    elif len({row["group"] for row in rows}) == len(rows):
        print("Each file is a group of its own: check --group")


def _below(output, path):
    """Return a path, relative to the table's folder if it is inside."""
    relative = os.path.relpath(path, os.path.dirname(output))
    return path if relative.startswith(os.pardir + os.sep) else relative


def _is_unicode(path):
    """Return whether a CSV in UTF-8 can hold a path."""
    return path == path.encode("utf-8", "ignore").decode()


def _print_counts(table, splits, grouped):
    """Print the clips of each label and split, and the groups of each label."""
    lines = [("label", *(["groups"] if grouped else []), *splits)]
    members = {}
    for row in table:
        members.setdefault(row["label"], []).append(row)
    for label, rows in [*sorted(members.items()), ("(all)", table)]:
        found = Counter(row["split"] for row in rows)
        counts = [found[name] for name in splits]
        if grouped:
            counts.insert(0, len({row["group"] for row in rows}))
        lines.append((label, *map(str, counts)))
    common.print_columns(lines)


def _pattern(text):
    """Compile a regular expression with one group, as a `type` of argparse."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no regular expression: {error}"
        ) from error
    if pattern.groups != 1:
        raise argparse.ArgumentTypeError(
            f"'{text}' has {pattern.groups} pairs of parentheses: put exactly "
            "one around the name of the group, and (?:...) around others"
        )
    return pattern


def _fractions(text):
    """Read fractions of train, valid and test, as a `type` of argparse."""
    try:
        fractions = tuple(map(float, text.split(",")))
    except ValueError:
        fractions = ()
    right = len(fractions) == 3 and fractions[0] > 0 <= min(fractions)
    if not right or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not of the form TRAIN,VALID,TEST with a sum of 1, "
            "such as 0.7,0.1,0.2"
        )
    return fractions
