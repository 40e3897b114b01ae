"""Prepare AudioSet-Strong: events of AudioSet with onset and offset.

Hershey et al., "The benefit of temporally-strong labels in audio event
classification", ICASSP 2021
(https://research.google.com/audioset/download_strong.html). The official lists
name clips of ten seconds, each by a video and its start in milliseconds:

    audioset_train_strong.tsv   segment_id, start_time_seconds, ..., label
    audioset_eval_strong.tsv    s9d-2nhuJCQ_30000  2.627  7.237  /m/053hz1
    mid_to_display_name.tsv     /m/053hz1  Cheering, without a head

The lists are in `data_folder` or one folder below. The audio is what you could
download, in folders of any depth. Its file names are those that
`audioset_prepare` reads: the id of the video, after a Y or before the times.
"""

from pathlib import Path

from audioset_prepare import clip_of, find_clips
from speechbrain.utils.logger import get_logger

from ssast_lobes.dataio.corpus_checks import check_counts
from ssast_lobes.dataio.download import download
from ssast_lobes.dataio.event_tables import read_event_table
from ssast_lobes.dataio.partition import hold_out_by_hash
from ssast_lobes.dataio.splits import write_splits
from ssast_lobes.dataio.tables import ManifestError

logger = get_logger(__name__)

PAGE = "https://research.google.com/audioset/download_strong.html"
URL = "http://storage.googleapis.com/us_audioset/youtube_corpus/strong"
LISTS = {
    "train": "audioset_train_strong.tsv",
    "eval": "audioset_eval_strong.tsv",
}
NAMES = "mid_to_display_name.tsv"
# Numbers of clips on the page.
PUBLISHED = {"train": 103463, "eval": 16996}
# Videos disappear: see `audioset_prepare`.
MIN_AVAILABLE = 0.75


def prepare_audioset_strong(
    data_folder,
    output_folder,
    valid_fraction=0.02,
    allow_download=False,
    require_counts=True,
    max_unreadable=0.01,
):
    """Prepare AudioSet-Strong for the detection of events.

    Arguments
    ---------
    data_folder : str
        Folder with the lists and the audio; see the top of this file.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    valid_fraction : float
        Fraction of the training clips to hold out, by a hash of their ids.
    allow_download : bool
        Whether to download missing lists (not the audio).
    require_counts : bool
        Whether incomplete lists, or less audio than expected, are an error.
    max_unreadable : float
        Largest accepted fraction of unreadable files.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`.

    Raises
    ------
    ManifestError
        If the data cannot be used; the message says what to fix.
    """
    folder = Path(data_folder).expanduser().absolute()
    names = read_names(find_list(folder, NAMES, allow_download))
    clips = find_clips(folder)
    parts = {}
    for part, name in LISTS.items():
        table = find_list(folder, name, allow_download)
        rows = read_event_table(table)
        if require_counts:
            found = {f"clips, {part}": len(rows)}
            check_counts(found, {f"clips, {part}": PUBLISHED[part]}, PAGE)
        parts[part] = with_audio(rows, clips, names, table, require_counts)
    train, valid = hold_out_by_hash(parts["train"], valid_fraction, "id")
    # Some labels occur only in the evaluation clips.
    known = {event.label for row in train for event in row["events"]}
    for part in (valid, parts["eval"]):
        _drop_unknown(part, known)
    return write_splits(
        {"train": train, "valid": valid, "test": parts["eval"]},
        output_folder,
        corpus=f"AudioSet-Strong (audio of {len(parts['train'])} and "
        f"{len(parts['eval'])} clips)",
        multi_label=True,
        max_unreadable=max_unreadable,
    )


def find_list(folder, name, allow_download):
    """Return the path of an official list; download it if allowed.

    Arguments
    ---------
    folder : pathlib.Path
        Folder to search, with the folders directly below.
    name : str
        Name of the list.
    allow_download : bool
        Whether to download the list if it is missing.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ManifestError
        If the list is missing.
    """
    for path in (folder / name, *sorted(folder.glob(f"*/{name}"))):
        if path.is_file():
            return path
    if allow_download:
        return download(f"{URL}/{name}", folder / name)
    raise ManifestError(
        f"{folder}: {name} is missing, which --allow_download True fetches. "
        f"See {PAGE}"
    )


def read_names(path):
    """Return the names of the classes.

    Arguments
    ---------
    path : pathlib.Path
        `mid_to_display_name.tsv`.

    Returns
    -------
    dict of str to str
        Name by identifier, such as "/m/053hz1": "Cheering".

    Raises
    ------
    ManifestError
        If a line is bad.
    """
    names = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        cells = line.split("\t")
        if len(cells) != 2 or not all(cells):
            raise ManifestError(
                f"{path}: line {number} is not an identifier, a tab and a "
                f"name; get the list from {PAGE}"
            )
        names[cells[0]] = cells[1]
    return names


def with_audio(rows, clips, names, table, require_counts):
    """Return the rows that have audio; give their events names of classes.

    Arguments
    ---------
    rows : list of dict
        From `read_event_table`.
    clips : dict of str to list of str
        From `audioset_prepare.find_clips`.
    names : dict of str to str
        From `read_names`.
    table : pathlib.Path
        Table that messages name.
    require_counts : bool
        Whether little audio is an error.

    Returns
    -------
    list of dict

    Raises
    ------
    ManifestError
        If a class is unknown, a video has several files, or there is too
        little audio.
    """
    unknown = {
        event.label
        for row in rows
        for event in row["events"]
        if event.label not in names
    }
    if unknown:
        raise ManifestError(
            f"{table}: {', '.join(sorted(unknown)[:20])} not in {NAMES}"
        )
    there = []
    for row in rows:
        video = row["id"].rpartition("_")[0]
        path = clip_of(video, clips)
        if path is not None:
            events = [
                event._replace(label=names[event.label])
                for event in row["events"]
            ]
            there.append({"id": row["id"], "path": path, "events": events})
    least = MIN_AVAILABLE * len(rows) if require_counts else 1
    if len(there) < least:
        raise ManifestError(
            f"{table}: there is audio of {len(there):,} of its {len(rows):,} "
            f"clips, and {MIN_AVAILABLE:.0%} should be there; --require_counts "
            "False continues with a part"
        )
    return there


def _drop_unknown(rows, known):
    """Remove the events of classes that training lacks from the rows."""
    count = 0
    for row in rows:
        kept = [event for event in row["events"] if event.label in known]
        count += len(row["events"]) - len(kept)
        row["events"] = kept
    if count:
        logger.warning(
            f"{count} events of valid and test have classes that train lacks, "
            "and are left out"
        )
