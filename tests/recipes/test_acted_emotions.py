"""EmoDB, RAVDESS and CREMA-D: prepared from their archives, errors told."""

import importlib
import importlib.util
import shutil
import threading
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.dataio.tables import ManifestError

RECIPES = Path(__file__).parents[2] / "recipes"


class Corpus(NamedTuple):
    """What the tests need to know of a corpus and of its miniature."""

    folder: str  # of the recipe
    name: str
    clips: int
    fold: int
    speakers: tuple  # of that fold
    example: str  # a clip of it
    label: str
    wrong: str  # its count, in the message
    page: str


CORPORA = [
    Corpus(
        *("EmoDB", "emodb", 70, 9, ("09",), "wav/09a01Fa.wav", "happiness"),
        *("disgust: 10, published 46", "emodb.bilderbar.info"),
    ),
    Corpus(
        *("RAVDESS", "ravdess", 192, 5, ("01", "04", "09", "22")),
        *("Actor_22/03-01-03-01-01-01-22.wav", "happy"),
        *("calm: 24, published 192", "zenodo.org/records/1188976"),
    ),
    Corpus(
        *("CREMA-D", "crema_d", 90, 2, ("1002", "1007", "1012")),
        *("AudioWAV/1012_IEO_HAP_XX.wav", "happy"),
        *("actors: 15, published 91", "CheyneyComputerScience/CREMA-D"),
    ),
]


@pytest.fixture(params=CORPORA, ids=lambda corpus: corpus.name)
def corpus(request):
    return request.param


@pytest.fixture
def archive(corpus, tmp_path):
    module = importlib.import_module(f"miniature_{corpus.name}")
    return module.make(tmp_path / "data", seconds=0.2)


def load(corpus):
    """The prepare script as a module."""
    path = RECIPES / corpus.folder / f"{corpus.name}_prepare.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(corpus):
    return load(corpus)


@pytest.fixture
def prepare(corpus, script, archive, tmp_path):
    """The script with what the miniature needs; gives the parts."""

    def run(**more):
        function = getattr(script, f"prepare_{corpus.name}")
        settings = {"require_counts": False, "fold": corpus.fold, **more}
        folder = settings.pop("data_folder", archive)
        return read_splits(function(folder, tmp_path / "out", **settings))

    return run


def speakers(part):
    return {row["speaker"] for row in part.values()}


def test_speakers_are_left_out(prepare, corpus, archive):
    # macOS writes such files next to others.
    clip = archive / corpus.example
    clip.with_name(f"._{clip.name}").touch()
    parts = prepare()
    assert parts["corpus"].startswith(f"{corpus.folder}, test ")
    assert speakers(parts["test"]) == {*corpus.speakers}
    found = [speakers(parts[name]) for name in ("train", "valid", "test")]
    assert len(set.union(*found)) == sum(map(len, found))
    assert sum(len(parts[n]) for n in ("train", "valid", "test")) == (
        corpus.clips
    )
    fraction = len(parts["valid"]) / (len(parts["train"]) + len(parts["valid"]))
    assert 0.1 < fraction < 0.3
    row = parts["test"][Path(corpus.example).stem]
    assert (row["label"], row["speaker"]) == (corpus.label, corpus.speakers[-1])
    for name in ("train", "valid", "test"):
        labels = {row["label"] for row in parts[name].values()}
        assert labels == {*parts["labels"]}


def test_folds_of_the_yaml_are_all_there_is(prepare, corpus):
    path = RECIPES / corpus.folder / "classify/hparams" / f"{corpus.name}.yaml"
    line = next(
        line for line in path.read_text().splitlines() if "folds: [" in line
    )
    tested = {}
    for fold in yaml.safe_load(line)["folds"]:
        for clip in prepare(fold=fold)["test"]:
            tested.setdefault(clip, []).append(fold)
    assert len(tested) == corpus.clips
    assert {len(folds) for folds in tested.values()} == {1}
    with pytest.raises(ManifestError, match="no clips to test on in fold 99"):
        prepare(fold=99)


def test_choice_of_the_epoch_on_the_test_fold(prepare):
    parts = prepare(valid_is_test=True)
    assert parts["valid"] == parts["test"]


def test_counts_of_a_part_of_the_archive(prepare, corpus):
    with pytest.raises(ManifestError) as error:
        prepare(require_counts=True)
    assert corpus.wrong in str(error.value)


def test_published_counts_are_those_of_the_paper(script, corpus):
    total = {"emodb": 535, "ravdess": 1440, "crema_d": 7442}[corpus.name]
    counts = dict(script.COUNTS)
    people = counts.pop("speakers", 0) + counts.pop("actors", 0)
    assert sum(counts.values()) == total
    assert people == {"emodb": 10, "ravdess": 24, "crema_d": 91}[corpus.name]
    assert {*counts} == {*script.EMOTIONS.values()}


def test_missing_archive(prepare, corpus, archive):
    shutil.rmtree(archive)
    with pytest.raises(ManifestError, match="missing there: ") as error:
        prepare()
    assert corpus.page in str(error.value)


def test_a_name_that_says_nothing(prepare, corpus, archive):
    path = archive / corpus.example
    path.rename(path.with_name("take one.wav"))
    with pytest.raises(ManifestError, match="not a name that") as error:
        prepare()
    assert "take one.wav" in str(error.value)


def test_truncated_audio(prepare, corpus, archive):
    path = archive / corpus.example
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ManifestError, match="unreadable.csv"):
        prepare(max_unreadable=0.001)
    parts = prepare(max_unreadable=0.1)
    assert path.stem not in parts["test"]


def test_emotion_that_only_the_test_speakers_show(prepare, corpus):
    parts = prepare()
    rows = {**parts["train"], **parts["valid"]}
    for row in rows.values():
        if row["label"] == corpus.label:
            Path(row["path"]).unlink()
    with pytest.raises(ManifestError, match=f"not have: {corpus.label}"):
        prepare()


def test_songs_of_ravdess_are_left_out(tmp_path):
    corpus = CORPORA[1]
    module = importlib.import_module("miniature_ravdess")
    folder = module.make(tmp_path, seconds=0.1)
    rows = load(corpus).read_rows(folder)
    assert len(rows) == 192
    assert (folder / "Actor_05" / "03-02-03-01-01-01-05.wav").is_file()
    # An actor may be missing where a part is enough, not where all are asked.
    shutil.rmtree(folder / "Actor_05")
    script = load(corpus)
    assert script.find_ravdess(folder, False, require_counts=False) == folder
    with pytest.raises(ManifestError, match="missing there: Actor_05. "):
        script.find_ravdess(folder, False, require_counts=True)


def test_crema_d_without_git_lfs(tmp_path):
    module = importlib.import_module("miniature_crema_d")
    folder = module.make(tmp_path, seconds=0.1)
    note = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for path in (folder / "AudioWAV").glob("*_ANG_*"):
        path.write_text(note)
    with pytest.raises(ManifestError, match="15 of 90 .*git lfs pull"):
        load(CORPORA[2]).prepare_crema_d(
            folder, tmp_path / "out", 1, require_counts=False
        )


@pytest.mark.parametrize("corpus", CORPORA[:2], ids=lambda c: c.name)
def test_download(corpus, tmp_path, monkeypatch):
    served = tmp_path / "served"
    importlib.import_module(f"miniature_{corpus.name}").make(
        tmp_path / "whole", seconds=0.05
    )
    archive = shutil.make_archive(served / "a", "zip", tmp_path / "whole")
    script = load(corpus)
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    settings = {"fold": corpus.fold, "require_counts": False}

    def prepare():
        path = getattr(script, f"prepare_{corpus.name}")(
            tmp_path / "new", tmp_path / "out", allow_download=True, **settings
        )
        return read_splits(path)

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/a.zip"
        monkeypatch.setattr(script, "URL", url)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        if hasattr(script, "MD5"):
            with pytest.raises(ManifestError, match="not the published"):
                prepare()
            digest = md5(Path(archive).read_bytes()).hexdigest()
            monkeypatch.setattr(script, "MD5", digest)
        parts = prepare()
        server.shutdown()
        thread.join()
    assert speakers(parts["test"]) == {*corpus.speakers}
    # There is no server any more, and no need of one.
    assert prepare() == parts
