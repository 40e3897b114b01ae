"""``ssast-lobes classify``: label audio files."""

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
        "classify",
        run,
        "label audio with a fine-tuned model, or a linear head",
        "Label audio with a fine-tuned model, or with a linear head on a\n"
        "frozen encoder (see ssast-lobes heads). Long audio is cut into\n"
        "windows that overlap by half. A JSON file also has the times and\n"
        "scores of the windows.",
        "ssast-lobes classify results/export recordings/ --output labels.csv\n"
        "  ssast-lobes classify --task keywords recordings/\n"
        "  ssast-lobes classify --task keywords hour.wav --windows "
        "--min-score 0.9",
    )
    common.add_model(command)
    command.add_argument(
        "--task",
        metavar="NAME",
        help="classify by the linear head of this name; the bundled model "
        "has keywords, speakers, digits, emotion and events",
    )
    command.add_argument(
        "--output",
        metavar="FILE.csv|FILE.json",
        type=common.file_name(".csv", ".json"),
        help="file to write (default: a table on the screen)",
    )
    command.add_argument(
        "--windows",
        action="store_true",
        help="in table and CSV, write a row for each window instead of each "
        "file",
    )
    command.add_argument(
        "--window-seconds",
        type=float,
        metavar="S",
        help="length of the windows (default: the longest clip that the head "
        "was fitted on, or the window of a fine-tuned model)",
    )
    command.add_argument(
        "--hop-seconds",
        type=float,
        metavar="S",
        help="time from one window to the next (default: half a window)",
    )
    command.add_argument(
        "--min-score",
        type=float,
        default=0.0,
        metavar="SCORE",
        help="in table and CSV, skip rows whose best label has a lower score "
        "(default: 0)",
    )
    command.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="lowest score of a label, for multi-label models (default: 0.5)",
    )


def run(options):
    """Label the inputs, and write the labels to a file or print them.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.inference import AudioClassifier, write_results

    common.find_model(options)
    paths = list(common.read_ids(options.inputs))
    common.make_parent(options.output)
    classifier = common.load_model(
        AudioClassifier,
        options,
        task=options.task,
        window_seconds=options.window_seconds,
        hop_seconds=options.hop_seconds,
    )
    unreadable = []
    results = classifier.classify_files(paths, options.threshold, unreadable)
    common.report_unreadable(unreadable, len(paths), options.output)
    _warn_of_long(results, classifier, options.windows)
    if options.output is None:
        _print_table(results, options.windows, options.min_score)
        return
    write_results(results, options.output, options.windows, options.min_score)
    print(f"{common.count_files(len(results))} classified in {options.output}")


def _warn_of_long(results, classifier, windows):
    """Warn of files that are longer than the classifier's training clips."""
    n_cut = sum(len(result.windows) > 1 for result in results)
    if n_cut:
        told = (
            f"{n_cut} of {common.count_files(len(results))} longer than the "
            f"{classifier.fitted_seconds:g} s that this classifier was fitted "
            f"for: cut into windows of {classifier.window_seconds:g} s "
            "(--window-seconds sets others). "
        )
        if not windows:
            told += (
                "One label for all of them says little where sounds change "
                "(--windows: a row for each). "
            )
        told += "For sounds with onset and offset: ssast-lobes events"
        print(told, file=sys.stderr)


def _print_table(results, windows, min_score):
    """Print a row for each result, or for each of its windows."""
    lines = [("labels", "score", "start", "end", "path")]
    for result in results:
        for row in result.rows(windows):
            if row["score"] < min_score:
                continue
            numbers = (f"{row['score']:.4f}", f"{row['start']:.2f}")
            numbers += (f"{row['end']:.2f}",)
            # Names that are not UTF-8 cannot be printed.
            path = row["path"].encode("utf-8", "backslashreplace").decode()
            lines.append((row["labels"] or "-", *numbers, path))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for labels, *numbers, path in lines:
        cells = [labels.ljust(widths[0])]
        cells += [
            number.rjust(width)
            for number, width in zip(numbers, widths[1:-1], strict=True)
        ]
        print("  ".join([*cells, path]))
