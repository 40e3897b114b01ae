"""Prepare RAVDESS: acted emotions in English; folds leave out actors.

Layout of the official archive of speech (Livingstone and Russo, "The Ryerson
Audio-Visual Database of Emotional Speech and Song", PLoS ONE 2018;
https://zenodo.org/records/1188976; CC BY-NC-SA 4.0):

    Actor_01/03-01-06-01-02-01-12.wav
             modality, channel, emotion, intensity, statement, take, actor
"""

from pathlib import Path

from ssast_lobes.dataio.archives import unpack
from ssast_lobes.dataio.corpus_checks import check_layout, tally
from ssast_lobes.dataio.download import download
from ssast_lobes.dataio.partition import rows_from_names
from ssast_lobes.dataio.splits import prepare_folds

PAGE = "https://zenodo.org/records/1188976"
NAME = "Audio_Speech_Actors_01-24"
URL = f"{PAGE}/files/{NAME}.zip"
MD5 = "bc696df654c87fed845eb13823edef8a"  # on that page
LAYOUT = [f"Actor_{actor:02}" for actor in range(1, 25)]
# Audio (03) of speech (01) and of song (02), which may be in the same folders.
FILE = (
    r"03-(?P<channel>01|02)-(?P<emotion>0[1-8])-(?P<intensity>0[12])-"
    r"(?P<statement>0[12])-(?P<take>0[12])-(?P<speaker>0[1-9]|1\d|2[0-4])"
)
EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}
# The page says 60 clips for each actor; neutral has no strong intensity.
COUNTS = {
    **dict.fromkeys(EMOTIONS.values(), 192),
    "neutral": 96,
    "actors": 24,
}
# Luna-Jimenez et al., "Multimodal Emotion Recognition on RAVDESS Dataset Using
# Transfer Learning", Sensors 2021, section 3.1 (folds 0 to 4 there, as in their
# code, cristinalunaj/MMEmotionRecognition).
ACTORS = {
    1: (2, 5, 14, 15, 16),
    2: (3, 6, 7, 13, 18),
    3: (10, 11, 12, 19, 20),
    4: (8, 17, 21, 23, 24),
    5: (1, 4, 9, 22),
}


def prepare_ravdess(
    data_folder,
    output_folder,
    fold,
    allow_download=False,
    require_counts=True,
    **settings,
):
    """Prepare one fold of RAVDESS: test on four or five actors.

    Arguments
    ---------
    data_folder : str
        The folder that contains or will contain `Actor_01` to `Actor_24`.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    fold : int
        The fold to test on, 1 to 5; see `ACTORS`.
    allow_download : bool
        Whether to download the archive (208 MB) if it is missing.
    require_counts : bool
        Whether an incomplete archive is an error.
    **settings
        See `dataio.splits.prepare_folds`.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`.
    """
    rows = read_rows(find_ravdess(data_folder, allow_download, require_counts))
    return prepare_folds(
        rows,
        output_folder,
        fold,
        corpus="RAVDESS, test fold",
        found=tally(rows, "{label}", actors="speaker"),
        published=COUNTS,
        source=PAGE,
        require_counts=require_counts,
        **settings,
    )


def find_ravdess(data_folder, allow_download, require_counts):
    """Find the unpacked archive, or download it; check its layout.

    Arguments
    ---------
    data_folder, allow_download, require_counts
        See `prepare_ravdess`.

    Returns
    -------
    pathlib.Path
        The folder that has `Actor_01` to `Actor_24`.

    Raises
    ------
    ManifestError
        If some or all actors are missing.
    """
    data_folder = Path(data_folder).expanduser()
    here = any((data_folder / actor).is_dir() for actor in LAYOUT)
    folder = data_folder if here else data_folder / NAME
    there = [actor for actor in LAYOUT if (folder / actor).is_dir()]
    if allow_download and there != LAYOUT:
        archive = download(URL, data_folder / f"{NAME}.zip", md5=MD5)
        unpack(archive, folder)
    if require_counts or not there:
        page = f"{PAGE}, which --allow_download True fetches"
        check_layout(folder, LAYOUT, page)
    return folder


def read_rows(folder):
    """Return the rows of the clips of speech.

    Arguments
    ---------
    folder : pathlib.Path
        The folder that has `Actor_01` to `Actor_24`.

    Returns
    -------
    list of dict
        With id, path, label, speaker, intensity, statement, take and fold.

    Raises
    ------
    ManifestError
        If a file has another name.
    """
    folds = {
        f"{actor:02}": fold for fold, own in ACTORS.items() for actor in own
    }
    rows = rows_from_names(sorted(folder.glob("Actor_*/[!.]*.wav")), FILE, PAGE)
    rows = [row for row in rows if row.pop("channel") == "01"]
    for row in rows:
        row["label"] = EMOTIONS[row.pop("emotion")]
        row["fold"] = folds[row["speaker"]]
    return rows
