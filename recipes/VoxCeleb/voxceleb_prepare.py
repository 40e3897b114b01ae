"""Prepare VoxCeleb1 for speaker identification, in its official parts.

Layout of the official archives (Nagrani et al., "VoxCeleb: a large-scale
speaker identification dataset", Interspeech 2017), unpacked into one folder,
or each into a folder of its own, and the list of the parts next to them:

    VoxCeleb1/iden_split.txt                             see `PARTS`
    VoxCeleb1/wav/id10001/1zcIwhmdeo4/00001.wav          speaker, video, clip
or  VoxCeleb1/dev/wav/id10001/1zcIwhmdeo4/00001.wav
    VoxCeleb1/test/wav/id10270/5r0dWxy17C8/00001.wav

The folders dev and test belong to another protocol, speaker verification. Here
the speakers of both folders are in all three parts.
"""

import re
from pathlib import Path

from ssast_lobes.dataio.corpus_checks import check_counts, check_layout, tally
from ssast_lobes.dataio.download import download
from ssast_lobes.dataio.splits import write_splits
from ssast_lobes.dataio.tables import ManifestError

PAGE = "https://mm.kaist.ac.kr/datasets/voxceleb"
SPLIT_LIST = "iden_split.txt"
# No checksum is published: the clips in the list are counted instead.
URL = f"{PAGE}/meta/{SPLIT_LIST}"
# A line of the list: "3 id10001/1zcIwhmdeo4/00001.wav".
PARTS = {"1": "train", "2": "valid", "3": "test"}
LINE = re.compile(r"([123])\s+((id\d+)/([^/\s]+)/[^/\s]+\.wav)")
# The counts are those of SUPERB's card (huggingface.co/datasets/s3prl/superb);
# train and valid add up to the 145,265 development clips of the paper.
PUBLISHED = {"speakers": 1251, "train": 138361, "valid": 6904, "test": 8251}
SOURCE = f"Nagrani et al., 2017, and {SPLIT_LIST} of {PAGE}"
ON_REQUEST = (
    f"{PAGE}, which gives the audio on request: unpack vox1_dev_wav.zip and "
    "vox1_test_wav.zip there, into one folder wav, or into dev/wav and "
    f"test/wav. {SPLIT_LIST} is open, --allow_download True fetches it"
)
_SHOWN = 5


def prepare_voxceleb(
    data_folder,
    output_folder,
    allow_download=False,
    require_counts=True,
    max_unreadable=0.01,
):
    """Prepare VoxCeleb1 for speaker identification.

    Arguments
    ---------
    data_folder : str
        Folder with the audio and the list; see the top of this file.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    allow_download : bool
        Whether to download the list (5 MB) if it is missing. The audio is
        available only on request.
    require_counts : bool
        Whether an incomplete list is an error.
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
    split_list, folders = find_voxceleb(data_folder, allow_download)
    splits = read_split_list(split_list)
    if require_counts:
        found = {name: len(part) for name, part in splits.items()}
        rows = [row for part in splits.values() for row in part]
        found |= tally(rows, speakers="speaker")
        check_counts(found, PUBLISHED, SOURCE)
    locate(splits, folders)
    return write_splits(
        splits,
        output_folder,
        corpus="VoxCeleb1 identification",
        group="video",
        max_unreadable=max_unreadable,
    )


def find_voxceleb(data_folder, allow_download):
    """Find the list and the folders of audio.

    Arguments
    ---------
    data_folder, allow_download
        See `prepare_voxceleb`.

    Returns
    -------
    split_list : pathlib.Path
        `iden_split.txt`.
    folders : list of pathlib.Path
        Folders called wav, which contain those of the speakers.
    """
    data_folder = Path(data_folder).expanduser().absolute()
    places = (data_folder / "wav", *sorted(data_folder.glob("*/wav")))
    folders = [place for place in places if place.is_dir()]
    split_list = data_folder / SPLIT_LIST
    if folders and allow_download and not split_list.is_file():
        download(URL, split_list)
    expected = [SPLIT_LIST] if folders else ["wav", SPLIT_LIST]
    check_layout(data_folder, expected, ON_REQUEST)
    return split_list, folders


def read_split_list(path):
    """Read the rows of the clips in the official list; paths start at wav.

    Arguments
    ---------
    path : pathlib.Path
        `iden_split.txt`.

    Returns
    -------
    dict of str to list of dict
        Rows of train, valid and test, with id, path, label (the speaker),
        speaker and video.

    Raises
    ------
    ManifestError
        If a line has another form; the message names it.
    """
    splits = {name: [] for name in PARTS.values()}
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            found = LINE.fullmatch(line.strip())
            if found is None:
                raise ManifestError(
                    f"{path}: line {number} is not a part (1, 2 or 3) and a "
                    f"file, as in '3 id10001/1zcIwhmdeo4/00001.wav', but "
                    f"'{line.strip()[:60]}'. Get the list from {PAGE} again"
                )
            part, clip, speaker, video = found.groups()
            row = {"id": clip, "path": clip, "label": speaker}
            # Two speakers may be in one video.
            row |= {"speaker": speaker, "video": f"{speaker}/{video}"}
            splits[PARTS[part]].append(row)
    return splits


def locate(splits, folders):
    """Make the paths of rows absolute, wherever their speakers are.

    Arguments
    ---------
    splits : dict of str to list of dict
        From `read_split_list`; the paths are replaced in place.
    folders : list of pathlib.Path
        See `find_voxceleb`.

    Raises
    ------
    ManifestError
        If a speaker has no folder.
    """
    places = {
        speaker.name: folder
        for folder in reversed(folders)
        for speaker in folder.iterdir()
    }
    rows = [row for part in splits.values() for row in part]
    missing = sorted({row["speaker"] for row in rows} - places.keys())
    if missing:
        shown = ", ".join(missing[:_SHOWN])
        shown += ", ..." if len(missing) > _SHOWN else ""
        raise ManifestError(
            f"{', '.join(map(str, folders))}: no audio of {len(missing)} "
            f"speakers of {SPLIT_LIST} ({shown}). vox1_test_wav.zip of {PAGE} "
            "has id10270 to id10309, vox1_dev_wav.zip has all others"
        )
    for row in rows:
        row["path"] = str(places[row["speaker"]] / row["path"])
