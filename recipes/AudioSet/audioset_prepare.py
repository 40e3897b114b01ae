"""Prepare AudioSet: segments of YouTube videos with 527 kinds of sound.

AudioSet (Gemmeke et al., "Audio Set: An ontology and human-labeled dataset
for audio events", ICASSP 2017; https://research.google.com/audioset) has no
official archive of audio. Only the lists of segments are official. The audio is
what you could download, in folders of any depth, under the file names that the
usual download scripts use:

    AudioSet/balanced_train_segments.csv      or one folder below
    AudioSet/unbalanced_train_segments.csv
    AudioSet/eval_segments.csv
    AudioSet/class_labels_indices.csv
    AudioSet/.../--PJHxphWEs.flac             the id of the video,
    AudioSet/.../Y--PJHxphWEs.wav             after a Y,
    AudioSet/.../--PJHxphWEs_30.000_40.000.wav      or before the times
"""

import csv
import os
import re
from pathlib import Path

from tqdm import tqdm

from ssast_lobes.dataio.corpus_checks import check_counts
from ssast_lobes.dataio.download import download
from ssast_lobes.dataio.partition import hold_out_by_hash
from ssast_lobes.dataio.scan import find_audio
from ssast_lobes.dataio.splits import write_splits
from ssast_lobes.dataio.tables import ManifestError, raise_problems

PAGE = "https://research.google.com/audioset/download.html"
URL = "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"
LISTS = {
    "balanced": "balanced_train_segments.csv",
    "unbalanced": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
}
CLASS_LIST = "class_labels_indices.csv"
SUBSETS = {"20K": ("balanced",), "2M": ("balanced", "unbalanced")}
# Numbers of segments in the headers of the lists of March 2017 (num_segs). The
# page itself has slightly higher numbers: 22,176, 2,042,985 and 20,383.
PUBLISHED = {"balanced": 22160, "unbalanced": 2041789, "eval": 20371}
N_CLASSES = 527
# Videos disappear: a download in 2023 has 84 % of the segments listed in 2017
# (huggingface.co/datasets/agkphysics/AudioSet). If much less is found, some of
# the audio is in another folder.
MIN_AVAILABLE = 0.75
VIDEO_ID = 11  # characters of the id of a video
_EXPECTED = (
    f"AudioSet has no archive of audio: {PAGE} has its lists "
    f"({', '.join([*LISTS.values(), CLASS_LIST])}), which belong into "
    "data_folder or a folder in it, and the audio comes from YouTube. "
    "Expected are wav, flac or the like, in any folders below data_folder, "
    "named by the id of the video: ID.flac, YID.wav or ID_30.000_40.000.wav"
)


def prepare_audioset(
    data_folder,
    output_folder,
    subset="20K",
    valid_fraction=0.05,
    valid_is_test=False,
    allow_download=False,
    require_counts=True,
    max_unreadable=0.01,
):
    """Prepare AudioSet for tagging.

    Arguments
    ---------
    data_folder : str
        Folder with the lists and the audio; see the top of this file.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    subset : str
        "20K": train on the balanced list. "2M": train on both training lists.
    valid_fraction : float
        Fraction of the training segments to hold out, by a hash of their ids.
    valid_is_test : bool
        True: hold out no segment, and validate on the evaluation segments, as
        the official script does.
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
    data = AudioSet(data_folder, allow_download, require_counts)
    train, test = data.train_rows(subset), data.rows("eval")
    valid = test
    if not valid_is_test:
        train, valid = hold_out_by_hash(train, valid_fraction, "id")
    classes = sorted(data.classes.values())
    return write_splits(
        {"train": train, "valid": valid, "test": test},
        output_folder,
        corpus=f"AudioSet-{subset} ({data.available})",
        multi_label=True,
        # An incomplete AudioSet may lack classes.
        classes=classes if require_counts else None,
        max_unreadable=max_unreadable,
    )


class AudioSet:
    """The segments of AudioSet that have audio.

    Arguments
    ---------
    data_folder, allow_download, require_counts
        See `prepare_audioset`.
    labeled : bool
        Whether labels, and the list of classes, are needed.
    """

    def __init__(
        self, data_folder, allow_download, require_counts, labeled=True
    ):
        self.folder = Path(data_folder).expanduser()
        self.allow_download = allow_download
        self.require_counts = require_counts
        self.classes = None
        self._available = {}
        self._clips = None
        if labeled:
            self.classes = read_classes(self._list(CLASS_LIST))
            if require_counts:
                found = {"classes": len(set(self.classes.values()))}
                check_counts(found, {"classes": N_CLASSES}, PAGE)

    @property
    def available(self):
        """Number of segments in the lists that have audio (str)."""
        parts = [
            f"{found:,} of {total:,} {name}"
            for name, (found, total) in self._available.items()
        ]
        return f"audio of {', '.join(parts)} segments"

    def train_rows(self, subset):
        """Return the rows of a training subset, see `rows`.

        Arguments
        ---------
        subset : str
            "20K" or "2M".

        Returns
        -------
        list of dict

        Raises
        ------
        ManifestError
            If there is no such subset; see also `rows`.
        """
        if subset not in SUBSETS:
            raise ManifestError(
                f"subset must be one of {', '.join(SUBSETS)}, got '{subset}'"
            )
        return [row for name in SUBSETS[subset] for row in self.rows(name)]

    def rows(self, name):
        """Return the rows of the segments of one list.

        Arguments
        ---------
        name : str
            "balanced", "unbalanced" or "eval".

        Returns
        -------
        list of dict
            With id (that of the video), path and, if labels are needed, label:
            names of classes, separated by semicolons.

        Raises
        ------
        ManifestError
            If the list is missing or damaged, or there is too little audio.
        """
        segments = read_segments(self._list(LISTS[name]), self.classes)
        if self.require_counts:
            check_counts(
                {f"segments, {name}": len(segments)},
                {f"segments, {name}": PUBLISHED[name]},
                PAGE,
            )
        if self._clips is None:
            self._clips = find_clips(self.folder)
        rows = []
        for video, label in segments.items():
            path = clip_of(video, self._clips)
            if path is not None:
                row = {"id": video, "path": path}
                rows.append(row if label is None else row | {"label": label})
        self._available[name] = len(rows), len(segments)
        self._check_available(name)
        return rows

    def _list(self, name):
        """Return the path of an official list; download it if allowed."""
        below = sorted(self.folder.glob(f"*/{name}"))
        for path in (self.folder / name, *below):
            if path.is_file():
                return path
        if self.allow_download:
            # No checksum is known, but the header has the number of lines.
            return download(f"{URL}/{name}", self.folder / name)
        raise ManifestError(
            f"{self.folder.absolute()}: {name} is missing, which "
            f"--allow_download True fetches. {_EXPECTED}"
        )

    def _check_available(self, name):
        found, total = self._available[name]
        enough = MIN_AVAILABLE * total if self.require_counts else 1
        if found >= enough:
            return
        raise ManifestError(
            f"{self.folder.absolute()}: there is audio of {found:,} of the "
            f"{total:,} segments of {LISTS[name]}, and {MIN_AVAILABLE:.0%} "
            "should be there; --require_counts False continues with a part. "
            f"{_EXPECTED}"
        )


def find_clips(folder):
    """Find the audio of segments by its file names.

    Arguments
    ---------
    folder : pathlib.Path
        Folder to search, with all its subfolders.

    Returns
    -------
    dict of str to list of str
        Paths by the video id that their names may contain. A name may have two
        readings, since "Y" may be the first letter of an id.

    Raises
    ------
    ManifestError
        If there is no audio.
    """
    try:
        paths = find_audio(folder)
    except ManifestError as error:
        raise ManifestError(f"{error}. {_EXPECTED}") from error
    clips = {}
    for path in paths:
        for video in _readings(os.path.splitext(os.path.basename(path))[0]):
            clips.setdefault(video, []).append(path)
    return clips


def clip_of(video, clips):
    """Return the file of a segment, None if there is none.

    Arguments
    ---------
    video : str
        Id of the video.
    clips : dict
        From `find_clips`.

    Returns
    -------
    str or None

    Raises
    ------
    ManifestError
        If several files may be the segment.
    """
    paths = clips.get(video, [])
    if len(paths) > 1:
        raise ManifestError(
            f"{video}: more than one file has this segment: "
            f"{', '.join(paths)}; keep one of them"
        )
    return paths[0] if paths else None


def _readings(stem):
    """Return the ids that a file name may mean: ID, YID, ID_times, .."""
    names = [stem, stem[1:]] if stem.startswith("Y") else [stem]
    return [
        name[:VIDEO_ID]
        for name in names
        if re.fullmatch(r"[\w-]{11}([_.-].*)?", name, re.ASCII)
    ]


def read_classes(path):
    """Return the names of the classes in the official list.

    Arguments
    ---------
    path : pathlib.Path
        `class_labels_indices.csv`: index, mid, display_name.

    Returns
    -------
    dict of str to str
        Name by identifier, such as "/m/09x0r": "Speech".

    Raises
    ------
    ManifestError
        If it is another file.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return {row["mid"]: row["display_name"] for row in rows}
    except KeyError as error:
        raise ManifestError(
            f"{path}: no column {error}; get the list from {PAGE}"
        ) from error


def read_segments(path, classes=None):
    """Return the segments of an official list, with their labels.

    Arguments
    ---------
    path : pathlib.Path
        List of segments: id of the video, start, end (seconds), identifiers.
    classes : dict of str to str, optional
        From `read_classes`; without it there are no labels.

    Returns
    -------
    dict of str
        Label cell or None, by the id of the video.

    Raises
    ------
    ManifestError
        If lines are bad, or there are fewer than the header says.
    """
    segments, problems, promised = {}, [], None
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, skipinitialspace=True)
        for cells in tqdm(lines, f"Reading {path.name}", delay=2):
            if cells and cells[0].startswith("#"):
                count = re.search(r"num_segs=(\d+)", ",".join(cells))
                promised = int(count[1]) if count else promised
                continue
            problem = _line_problem(cells, segments, classes)
            if problem:
                problems.append(f"line {lines.line_num}: {problem}")
                continue
            mids = cells[3].split(",")
            segments[cells[0]] = (
                ";".join(classes[mid] for mid in mids) if classes else None
            )
    raise_problems(path, problems, "bad line{}")
    if promised not in (None, len(segments)):
        raise ManifestError(
            f"{path}: {len(segments)} of the {promised} segments that its head "
            f"counts; delete it and get it again from {PAGE}"
        )
    return segments


def _line_problem(cells, segments, classes):
    if len(cells) != 4:
        return f"{len(cells)} cells, not id, start, end and labels"
    if cells[0] in segments:
        return f"the video {cells[0]} is listed twice"
    if classes is not None:
        unknown = [mid for mid in cells[3].split(",") if mid not in classes]
        if unknown:
            return f"{', '.join(unknown)} is not in {CLASS_LIST}"
    return None
