"""Read and write tables of sound events.

All formats are read into the same form: one row for each clip, whose
``events`` are a list of `Event`. A weak label, known only for the whole clip,
is an event without times. A clip without events is a negative clip: none of
the classes occurs in it.

- TSV, strong: ``filename, onset, offset, event_label`` as in DESED, or
  ``segment_id, start_time_seconds, end_time_seconds, label`` as in AudioSet.
- TSV, weak: ``filename, event_labels``, separated by commas.
- CSV: ``path, label, onset, offset`` and any other columns. A clip may have
  several rows.
- Audacity: a label track ``NAME.txt`` next to ``NAME.wav``.
"""

import csv
import json
import os
from pathlib import Path
from typing import NamedTuple

from speechbrain.utils.logger import get_logger

from ssast_lobes.dataio.scan import find_audio
from ssast_lobes.dataio.tables import (
    ManifestError,
    raise_problems,
    split_labels,
)
from ssast_lobes.utils.files import absolute, atomic_write

logger = get_logger(__name__)

# Names of the columns in tables: first those of this package, then others.
_COLUMNS = {
    "path": ("path", "filename", "segment_id"),
    "onset": ("onset", "start_time_seconds"),
    "offset": ("offset", "end_time_seconds"),
    "label": ("label", "event_label", "event_labels"),
}
FORMATS = ("csv", "tsv", "audacity")
# Audacity writes labels as they are: a quote in a label does not delimit it.
_AS_WRITTEN = {"quoting": csv.QUOTE_NONE, "quotechar": None}


class Event(NamedTuple):
    """A sound event.

    Arguments
    ---------
    onset, offset : float or None
        Seconds from the start of the clip; None for a weak label.
    label : str
        Class of the sound.
    """

    onset: float
    offset: float
    label: str


def read_event_table(table, audio_folder=None):
    """Read a CSV or TSV of events.

    Arguments
    ---------
    table : str or os.PathLike
        The file, in UTF-8; ``.tsv`` is separated by tabs, others by commas.
    audio_folder : str or os.PathLike, optional
        Folder that relative names of audio files start from; by default that
        of the table.

    Returns
    -------
    list of dict
        A row for each clip, in the order of the table: `id` (the name as
        written), `path` (absolute), `events` (list of `Event`), and other
        columns. If lines of a clip differ in a column, it describes events, and
        is dropped.

    Raises
    ------
    ManifestError
        If a column is missing or lines are bad. The message lists the bad lines
        with their numbers. A line is bad if a time is negative or not a number,
        an offset is before its onset, one time is missing, or lines of a clip
        differ in `id` or `split`.

    Example
    -------
    >>> table = getfixture("tmp_path") / "strong.tsv"
    >>> _ = table.write_text(
    ...     "filename\\tonset\\toffset\\tevent_label\\n"
    ...     "a.wav\\t0.5\\t2\\tDog\\n"
    ...     "b.wav\\t\\t\\t\\n"
    ... )
    >>> [(row["id"], row["events"]) for row in read_event_table(table)]
    [('a.wav', [Event(onset=0.5, offset=2.0, label='Dog')]), ('b.wav', [])]
    """
    table = absolute(table)
    root = os.path.dirname(table) if audio_folder is None else audio_folder
    is_tsv = table.lower().endswith(".tsv")
    lines = _lines(table, "\t" if is_tsv else ",")
    head = [name.casefold() for name in lines[0][1]]
    places = {
        key: next((head.index(n) for n in names if n in head), None)
        for key, names in _COLUMNS.items()
    }
    needed = [key for key in ("path", "label") if places[key] is None]
    if (places["onset"] is None) != (places["offset"] is None):
        needed.append("onset" if places["onset"] is None else "offset")
    if needed:
        wanted = [" or ".join(_COLUMNS[key]) for key in needed]
        raise ManifestError(
            f"{table}: no column {', '.join(wanted)}; the first line has "
            f"{', '.join(lines[0][1])}. It must name the columns, separated "
            f"by {'tabs' if is_tsv else 'commas'}"
        )
    mark = "," if head[places["label"]] == "event_labels" else ";"
    others = {n: name for n, name in enumerate(head) if name}
    others = {n: name for n, name in others.items() if n not in places.values()}
    rows, problems, of_events = {}, [], set()
    for number, cells in lines[1:]:
        surplus = cells[len(head) :]
        cells = cells + [""] * (len(head) - len(cells))
        value = {k: "" if n is None else cells[n] for k, n in places.items()}
        more = {name: cells[n] for n, name in others.items()}
        try:
            if any(surplus):
                raise ValueError(
                    f"{len(cells)} cells under {len(head)} columns "
                    "(text with commas must stand in double quotes)"
                )
            if not value["path"]:
                raise ValueError("the file name is empty")
            name = value["path"]
            first = rows.setdefault(
                name,
                {"path": absolute(name, root), "events": [], **more},
            )
            for key, text in more.items():
                if first[key] != text and key not in ("id", "split"):
                    of_events.add(key)
                elif first[key] != text:
                    raise ValueError(
                        f'{name} has the {key} "{text}" here and '
                        f'"{first[key]}" above'
                    )
            first["events"] += _events_of(value, mark)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    raise_problems(table, problems, "bad line{}")
    return [
        {
            "id": row.get("id") or name,
            **{k: v for k, v in row.items() if k not in {"id", *of_events}},
        }
        for name, row in rows.items()
    ]


def read_label_track(track):
    """Read a label track that Audacity has exported.

    Arguments
    ---------
    track : str or os.PathLike
        Text file with lines ``onset, offset, label``, separated by tabs. Lines
        with frequencies, which begin with a backslash, are skipped.

    Returns
    -------
    list of Event

    Raises
    ------
    ManifestError
        If lines are bad; see `read_event_table`. A line without a label is bad
        too.

    Example
    -------
    >>> track = getfixture("tmp_path") / "a.txt"
    >>> _ = track.write_text("0.5\\t2.0\\tDog\\n\\\\\\t100\\t2000\\n")
    >>> read_label_track(track)
    [Event(onset=0.5, offset=2.0, label='Dog')]
    """
    events, problems = [], []
    for number, cells in _lines(track, "\t", empty=True, **_AS_WRITTEN):
        if cells[0].startswith("\\"):
            continue
        onset, offset, label, *_ = [*cells, "", "", ""]
        try:
            if not label:
                raise ValueError("no label")
            value = {"onset": onset, "offset": offset, "label": label}
            events += _events_of(value, None)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    raise_problems(track, problems, "bad line{}")
    return events


def label_track_rows(folder):
    """Return a row for every audio file with a label track next to it.

    Arguments
    ---------
    folder : str or os.PathLike
        Folder to search, with its subfolders. ``NAME.txt`` is the label track
        of ``NAME.wav`` (or another kind of audio). Audio without a track is
        skipped; an empty track means a negative clip.

    Returns
    -------
    list of dict
        Rows with `id` (path relative to `folder`), `path` and `events`.

    Raises
    ------
    ManifestError
        If there is no audio, no track, or a bad track.
    """
    rows = []
    for path in find_audio(folder):
        track = Path(path).with_suffix(".txt")
        if track.is_file():
            name = os.path.relpath(path, absolute(folder))
            row = {"id": name, "path": path, "events": read_label_track(track)}
            rows.append(row)
    if not rows:
        raise ManifestError(
            f"{folder}: no label track found (NAME.txt next to NAME.wav)"
        )
    return rows


def fit_events(source, rows):
    """Cut the events of clips to their durations, and write them as text.

    - An event that ends after the clip is cut at its end. An event that begins
      at the end of the clip or later is an error: table and audio do not
      belong together.
    - An event without duration is dropped: there is no audio in it.
    - Events of one class that overlap or touch are joined. Events of different
      classes may overlap.

    The log counts events that were cut, dropped and joined.

    Arguments
    ---------
    source : str
        Name of the data, for messages.
    rows : list of dict
        Rows with `duration` (seconds). Rows without `events` stay unchanged.

    Returns
    -------
    list of dict
        Rows with `events` as text, which `row_events` reads, and `label`, the
        classes separated by semicolons.

    Raises
    ------
    ManifestError
        If clips have events after their end, or both strong and weak labels.
        The message lists all problems.

    Example
    -------
    >>> events = [Event(0.5, 2.0, "dog"), Event(1.0, 2.5, "dog")]
    >>> row = {"id": "a.wav", "duration": 2.0, "events": events}
    >>> [fitted] = fit_events("Pets", [row])
    >>> fitted["label"], row_events(fitted)
    ('dog', [Event(onset=0.5, offset=2.0, label='dog')])
    """
    counts = dict.fromkeys(("cut at the end of", "left out of", "joined in"), 0)
    fitted, problems = [], []
    for row in rows:
        if "events" not in row:
            fitted.append(row)
            continue
        clip, seconds, kept = row["id"], row["duration"], []
        weak = {event.onset is None for event in row["events"]}
        if len(weak) > 1:
            problems.append(f"{clip}: labels with times and without: give one")
        for event in row["events"]:
            if event.onset is None:
                kept.append(event)
            elif event.onset >= seconds and event.offset > event.onset:
                problems.append(
                    f"{clip}: {event.label} from {event.onset:g} s, and the "
                    f"clip ends at {seconds:g} s"
                )
            elif event.onset == event.offset:
                counts["left out of"] += 1
            else:
                counts["cut at the end of"] += event.offset > seconds
                kept.append(event._replace(offset=min(event.offset, seconds)))
        whole = kept if True in weak else join_events(kept)
        counts["joined in"] += len(kept) - len(whole)
        labels = sorted({event.label for event in whole})
        text = json.dumps(whole, ensure_ascii=False)
        fitted.append(row | {"events": text, "label": ";".join(labels)})
    raise_problems(source, problems, "problem{} with the events")
    for what, count in counts.items():
        if count:
            logger.warning(f"{source}: {count} events were {what} their clips")
    return fitted


def join_events(events):
    """Join events of one class that overlap or touch.

    Arguments
    ---------
    events : list of Event
        Events with times, of any classes.

    Returns
    -------
    list of Event
        Sorted by onset.

    Example
    -------
    >>> join_events([Event(1, 3, "a"), Event(0, 1, "a"), Event(0, 9, "b")])
    [Event(onset=0, offset=3, label='a'), Event(onset=0, offset=9, label='b')]
    """
    joined, last = [], {}
    for event in sorted(events):
        before = last.get(event.label)
        if before is not None and event.onset <= joined[before].offset:
            offset = max(event.offset, joined[before].offset)
            joined[before] = joined[before]._replace(offset=offset)
        else:
            last[event.label] = len(joined)
            joined.append(event)
    return joined


def row_events(row):
    """Return the events of a row that `fit_events` has made.

    Arguments
    ---------
    row : dict
        A row of `dataio.splits.read_splits`.

    Returns
    -------
    list of Event
    """
    return [Event(*values) for values in json.loads(row["events"])]


def write_events(path, clips, layout="csv"):
    """Write events of clips to a file that appears when it is complete.

    Arguments
    ---------
    path : str or os.PathLike
        The file. For ``"audacity"`` it is a label track, which holds one clip.
    clips : list of tuple
        Name of a clip, and its events: onset, offset, label and optionally a
        score. In CSV and TSV, a clip without events gets a row without times,
        which is read as a negative clip.
    layout : str
        ``"csv"``: columns path, onset, offset, label, score. ``"tsv"``: the
        columns of DESED. ``"audacity"``: a label track.

    Raises
    ------
    ValueError
        If the layout is unknown, or a label track would hold several clips.

    Example
    -------
    >>> path = getfixture("tmp_path") / "events.csv"
    >>> write_events(path, [("a.wav", [Event(0.5, 2.0, "Dog")]), ("b.wav", [])])
    >>> print(path.read_text("utf-8"))
    path,onset,offset,label,score
    a.wav,0.500,2.000,Dog,
    b.wav,,,,
    <BLANKLINE>
    """
    if layout not in FORMATS:
        raise ValueError(f"layout must be one of {FORMATS}, got '{layout}'")
    if layout == "audacity" and len(clips) != 1:
        raise ValueError(
            f"{path}: a label track holds one clip, not {len(clips)}"
        )
    columns = {
        "csv": ["path", "onset", "offset", "label", "score"],
        "tsv": ["filename", "onset", "offset", "event_label"],
    }
    dialect = "excel" if layout == "csv" else "excel-tab"
    with atomic_write(path) as file:
        quotes = _AS_WRITTEN if layout == "audacity" else {}
        table = csv.writer(file, dialect, lineterminator="\n", **quotes)
        if layout in columns:
            table.writerow(columns[layout])
        for name, events in clips:
            for onset, offset, label, *score in events:
                cells = [f"{onset:.3f}", f"{offset:.3f}", label]
                if layout != "audacity":
                    cells.insert(0, name)
                if layout == "csv":
                    cells.append(f"{score[0]:.4f}" if score else "")
                table.writerow(cells)
            if not events and layout != "audacity":
                table.writerow([name] + [""] * (len(columns[layout]) - 1))


def _events_of(value, mark):
    """Return the events of a line: one, none, or several with weak labels."""
    times, label = (value["onset"], value["offset"]), value["label"]
    if not any(times):
        labels = split_labels(label.replace(mark, ";")) if mark else [label]
        return [Event(None, None, name) for name in labels]
    if not all(times):
        raise ValueError("an onset without an offset, or one without the other")
    if not label:
        raise ValueError("times without a label")
    onset, offset = map(_seconds, times)
    if offset < onset:
        raise ValueError(
            f"{label} ends at {offset:g} s, before it begins at {onset:g} s"
        )
    return [Event(onset, offset, name) for name in split_labels(label)]


def _seconds(text):
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f'"{text}" is not a number of seconds') from None
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{text} s is no time in a clip")
    return seconds


def _lines(path, delimiter, empty=False, **dialect):
    """Return the number and the stripped cells of each nonblank line."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, **dialect)
            lines = [(reader.line_num, [*map(str.strip, c)]) for c in reader]
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(
            f"{path}: not a table in UTF-8 ({error}); save it as one"
        ) from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines and not empty:
        raise ManifestError(f"{path}: the table is empty")
    return lines
