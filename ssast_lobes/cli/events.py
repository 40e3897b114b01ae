"""``ssast-lobes events``: find sound events in audio files."""

import os
import sys

from ssast_lobes.cli import common

# Pictures of longer audio are not legible.
_PICTURE_SECONDS = 120


def add_parser(commands):
    """Add the command and its options.

    Arguments
    ---------
    commands : argparse action
        See `ssast_lobes.cli.common.add_command`.
    """
    command = common.add_command(
        commands,
        "events",
        run,
        "find events with onset and offset in audio",
        "Find sound events and their times, with a detector (see\n"
        "recipes/Soundscapes) or with a head of events on a frozen encoder.\n"
        "Recordings may be hours long.",
        "ssast-lobes events results/export recordings/ --output events.csv\n"
        "  ssast-lobes events results/export day.wav --output day.txt "
        "--format audacity",
    )
    common.add_model(command)
    command.add_argument(
        "--task",
        metavar="NAME",
        help="find events with the head of this name on the frozen encoder",
    )
    command.add_argument(
        "--output",
        metavar="FILE",
        help="file to write (default: a table on the screen); for label "
        "tracks of several files, a folder",
    )
    command.add_argument(
        "--format",
        choices=["csv", "tsv", "audacity"],
        default="csv",
        help="csv: path, onset, offset, label, score (default); tsv: the "
        "columns of DESED; audacity: a label track",
    )
    command.add_argument(
        "--plot",
        metavar="FOLDER",
        help="folder for a picture of each file: spectrogram, scores and "
        f"events of its first {_PICTURE_SECONDS} s",
    )
    command.add_argument(
        "--truth",
        metavar="TABLE",
        help="CSV or TSV of true events, which --plot then shows",
    )


def run(options):
    """Write the events of the inputs to a file, or print them.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.inference import EventDetector

    if options.truth and not options.plot:
        raise ValueError("--truth is for pictures: add --plot FOLDER")
    common.find_model(options)
    ids = common.read_ids(options.inputs)
    truth = _read_truth(options.truth)
    tracks = options.format == "audacity" and len(ids) > 1
    if options.plot or (options.output and tracks):
        _require_names(ids, lambda name: _flat_name(name, ""))
    if options.output and options.format == "tsv":
        _require_names(ids, str)
    for folder in (options.plot, options.output if tracks else None):
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
    common.make_parent(options.output)
    detector = common.load_model(EventDetector, options, task=options.task)
    unreadable, found = [], []
    for result in detector.detect_files(list(ids), unreadable):
        found.append(result)
        if options.plot:
            _draw(detector, result, ids[result.path], truth, options.plot)
    common.report_unreadable(unreadable, len(ids), options.output)
    if options.output is None:
        _print_table(found)
        return
    _write(found, ids, options.output, options.format, tracks)
    count = sum(len(result.events) for result in found)
    files = common.count_files(len(found))
    print(f"{count} events of {files} in {options.output}")


def _write(found, ids, output, layout, tracks):
    from ssast_lobes.dataio.event_tables import write_events

    if not tracks:
        # Tables of DESED contain file names; tables of this package contain
        # paths.
        names = ids if layout == "tsv" else {path: path for path in ids}
        clips = [(names[result.path], result.events) for result in found]
        write_events(output, clips, layout)
        return
    for result in found:
        path = os.path.join(output, _flat_name(ids[result.path], ".txt"))
        write_events(path, [(result.path, result.events)], layout)


def _require_names(ids, name_of):
    """Raise if two inputs would share an output file or a clip name."""
    paths = {}
    for path, clip_id in ids.items():
        name = name_of(clip_id)
        if name in paths:
            raise ValueError(
                f"{paths[name]} and {path} would both be called '{name}': name "
                "a folder that contains both, or find their events one by one"
            )
        paths[name] = path


def _flat_name(name, extension):
    """Return a file name that joins an id and its folders."""
    stem = os.path.splitext(os.path.normpath(name))[0]
    return stem.strip(os.sep + ".").replace(os.sep, "_") + extension


def _print_table(found):
    """Print a line for each event."""
    rows = [("onset", "offset", "label", "score", "path")]
    for result in found:
        # Names that are not UTF-8 cannot be printed.
        path = result.path.encode("utf-8", "backslashreplace").decode()
        for event in result.events:
            times = f"{event.onset:.3f}", f"{event.offset:.3f}"
            rows.append((*times, event.label, f"{event.score:.4f}", path))
    common.print_columns(rows)


def _read_truth(table):
    """Return the true events by path, and by file name if unique."""
    if table is None:
        return {}
    from ssast_lobes.dataio.event_tables import read_event_table

    rows = read_event_table(table)
    names = [os.path.basename(row["path"]) for row in rows]
    once = {
        name: row["events"]
        for name, row in zip(names, rows, strict=True)
        if names.count(name) == 1
    }
    return {**once, **{row["path"]: row["events"] for row in rows}}


def _draw(detector, result, name, truth, folder):
    """Draw the picture of one file."""
    import torch

    from ssast_lobes.dataio.audio import read_audio
    from ssast_lobes.utils.timeline_plot import plot_timeline

    seconds = min(result.seconds, _PICTURE_SECONDS)
    if seconds < result.seconds:
        print(
            f"{name}: the picture shows the first {seconds:g} of "
            f"{result.seconds:.0f} s",
            file=sys.stderr,
        )
    wav = read_audio(result.path, detector.sample_rate, 0.0, seconds)
    scores = detector.clip_scores(wav)
    with torch.inference_mode():
        feats, _ = detector.lobe.features(wav[None].to(detector.device))
    name_only = truth.get(os.path.basename(result.path), [])
    true = truth.get(os.path.abspath(result.path), name_only)
    shown = [
        [e for e in events if e[0] is not None and e[0] < seconds]
        for events in (result.events, true)
    ]
    plot_timeline(
        feats[0].cpu().numpy(),
        scores,
        detector.timing.edges(len(scores), seconds),
        detector.labels,
        shown[0],
        os.path.join(folder, _flat_name(name, ".png")),
        shown[1],
    )
