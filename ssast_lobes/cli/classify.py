"""``ssast-lobes classify``: labels of audio files."""

from ssast_lobes.cli import common


def add_parser(commands):
    """Add the command.

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
        "frozen encoder (see ssast-lobes heads). Long audio is classified in\n"
        "windows that overlap by half; a JSON file holds their times and\n"
        "scores too.",
        "ssast-lobes classify results/export recordings/ --output labels.csv\n"
        "  ssast-lobes classify --task keywords recordings/",
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
        help="where to write; a table on the screen when left out",
    )
    command.add_argument(
        "--windows",
        action="store_true",
        help="table and CSV: a row for each window, not for each file",
    )
    command.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="least score of a label, of multi-label models (default: 0.5)",
    )


def run(options):
    """Label the inputs, in a file or on the screen.

    Arguments
    ---------
    options : argparse.Namespace
        Of `add_parser`.
    """
    from ssast_lobes.inference import AudioClassifier, write_results

    common.find_model(options)
    paths = list(common.read_ids(options.inputs))
    common.make_parent(options.output)
    classifier = common.load_model(AudioClassifier, options, task=options.task)
    unreadable = []
    results = classifier.classify_files(paths, options.threshold, unreadable)
    common.report_unreadable(unreadable, len(paths), options.output)
    if options.output is None:
        _print_table(results, options.windows)
        return
    write_results(results, options.output, options.windows)
    print(f"{common.count_files(len(results))} classified in {options.output}")


def _print_table(results, windows):
    """Print a row for each result, or each of its windows, in columns."""
    lines = [("labels", "score", "start", "end", "path")]
    for result in results:
        for row in result.rows(windows):
            numbers = (f"{row['score']:.4f}", f"{row['start']:.2f}")
            numbers += (f"{row['end']:.2f}",)
            # A name that is not UTF-8 cannot be printed.
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
