"""AudioSet and LibriSpeech are prepared as people have them, and checked."""

import importlib
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import miniature_audioset
import pytest
import soundfile

from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.dataio.tables import ManifestError

FOLDER = Path(__file__).parents[2] / "recipes" / "AudioSet"
MODULES = ("audioset_prepare", "librispeech_prepare", "pretraining_prepare")
BALANCED, UNBALANCED, EVAL = (
    [*miniature_audioset.videos(name)]
    for name in ("balanced_train", "unbalanced_train", "eval")
)


@pytest.fixture(scope="module")
def scripts():
    """The prepare scripts, which import each other, by their names."""
    sys.path.insert(0, str(FOLDER))
    try:
        modules = {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(FOLDER))
    yield modules
    for name in MODULES:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return miniature_audioset.make(tmp_path_factory.mktemp("whole"), 0.15)


@pytest.fixture
def data(whole, tmp_path):
    """Folder that has `AudioSet` and `LibriSpeech`, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "data"))


@pytest.fixture
def tagging(scripts, data, tmp_path):
    """Prepare the miniature for tagging; gives the parts."""

    def run(**more):
        settings = {
            "data_folder": data / "AudioSet",
            "output_folder": tmp_path / "out",
            "require_counts": False,
            "valid_fraction": 0.2,
            **more,
        }
        prepare = scripts["audioset_prepare"].prepare_audioset
        return read_splits(prepare(**settings))

    return run


@pytest.fixture
def pretraining(scripts, data, tmp_path):
    """Prepare the miniature for pretraining; gives the parts."""

    def run(**more):
        settings = {
            "data_folder": data / "AudioSet",
            "librispeech_folder": data,
            "output_folder": tmp_path / "out",
            "subset": "2M",
            "librispeech_parts": [*miniature_audioset.UTTERANCES],
            "valid_fraction": 0.1,
            "valid_on_eval": False,
            "require_counts": False,
            **more,
        }
        prepare = scripts["pretraining_prepare"].prepare_pretraining
        return read_splits(prepare(**settings))

    return run


def part_list(data, name):
    return data / "AudioSet" / "metadata" / f"{name}_segments.csv"


def add_lines(path, *lines):
    """Add lines to a list, whose head counts them too."""
    text = path.read_text() + "".join(f"{line}\n" for line in lines)
    count = len(text.splitlines()) - 3
    head, counts, names, rest = text.split("\n", 3)
    counts = f"# num_ytids={count}, num_segs={count}"
    path.write_text("\n".join([head, counts, names, rest]))


# Tagging ------------------------------------------------------------------


def test_balanced_part(tagging):
    parts = tagging()
    train, valid = parts["train"], parts["valid"]
    assert not train.keys() & valid.keys()
    assert train.keys() | valid.keys() == {*BALANCED[:-1]}
    assert parts["test"].keys() == {*EVAL[:-1]}
    assert 0 < len(valid) < 10
    assert parts["labels"] == sorted(miniature_audioset.CLASSES.values())
    speech = parts["test"][EVAL[2]]
    assert speech["label"] == "Speech;Male speech, man speaking"
    assert Path(speech["path"]).name == f"{EVAL[2]}_30.000_40.000.wav"
    assert parts["corpus"] == (
        "AudioSet-20K (audio of 20 of 21 balanced, 8 of 9 eval segments)"
    )
    # The choice does not move when a file comes or goes.
    assert tagging()["valid"] == valid


def test_whole_set_and_official_validation(tagging):
    parts = tagging(subset="2M", valid_is_test=True)
    assert [*parts["train"]] == [*BALANCED[:-1], *UNBALANCED[:-1]]
    assert parts["valid"] == parts["test"]
    assert "24 of 25 unbalanced" in parts["corpus"]


@pytest.mark.parametrize("name", ["{}.wav", "Y{}.flac", "{}_30000_40000.ogg"])
def test_names_of_files(tagging, data, name):
    # An id may begin with a Y itself.
    video = "Yabcdefghi_"
    add_lines(
        part_list(data, "balanced_train"),
        f'{video}, 30.000, 40.000, "/m/0bt9lr"',
    )
    assert len(tagging(valid_is_test=True)["train"]) == 20
    path = data / "AudioSet" / "more" / name.format(video)
    path.parent.mkdir()
    soundfile.write(path, [0.0] * 2000, 16000)
    parts = tagging(valid_is_test=True)
    assert parts["train"][video]["path"] == str(path)
    assert len(parts["train"]) == 21


def test_whole_archive_is_counted(tagging, scripts, monkeypatch):
    with pytest.raises(ManifestError, match="classes: 4, published 527"):
        tagging(require_counts=True)
    module = scripts["audioset_prepare"]
    monkeypatch.setattr(module, "N_CLASSES", 4)
    with pytest.raises(ManifestError, match="balanced: 21, published 22160"):
        tagging(require_counts=True)
    monkeypatch.setattr(module, "PUBLISHED", {"balanced": 21, "eval": 9})
    assert len(tagging(require_counts=True)["test"]) == 8


def test_too_little_of_the_audio(tagging, data, scripts, monkeypatch):
    module = scripts["audioset_prepare"]
    monkeypatch.setattr(module, "N_CLASSES", 4)
    monkeypatch.setattr(module, "PUBLISHED", {"balanced": 21, "eval": 9})
    for path in [*(data / "AudioSet" / "eval").iterdir()][:3]:
        path.unlink()
    with pytest.raises(ManifestError) as error:
        tagging(require_counts=True)
    told = str(error.value)
    assert "audio of 5 of the 9 segments of eval_segments.csv" in told
    assert "75% should be there; --require_counts False" in told
    assert len(tagging()["test"]) == 5
    shutil.rmtree(data / "AudioSet" / "eval")
    with pytest.raises(ManifestError, match="audio of 0 of the 9 segments"):
        tagging()


@pytest.mark.parametrize(
    "name", ["eval_segments.csv", "class_labels_indices.csv"]
)
def test_missing_list(tagging, data, name):
    (data / "AudioSet" / "metadata" / name).unlink()
    with pytest.raises(ManifestError) as error:
        tagging()
    told = str(error.value)
    assert f"{name} is missing, which --allow_download True fetches" in told
    assert "research.google.com/audioset/download.html" in told
    assert "ID_30.000_40.000.wav" in told


def test_no_audio_at_all(tagging, data):
    for name in ("audio", "audios", "eval"):
        shutil.rmtree(data / "AudioSet" / name)
    with pytest.raises(ManifestError, match="no audio files .*the audio comes"):
        tagging()


def test_list_that_broke_off(tagging, data):
    path = part_list(data, "eval")
    path.write_text("\n".join(path.read_text().splitlines()[:-2]))
    with pytest.raises(ManifestError, match="7 of the 9 segments .*get it aga"):
        tagging()


def test_bad_lines_of_a_list(tagging, data):
    add_lines(
        part_list(data, "eval"),
        f'{EVAL[0]}, 0.000, 10.000, "/m/04rlf"',
        'newvideo_00, 0.000, 10.000, "/m/04rlf,/m/none"',
        "newvideo_01, 0.000",
    )
    with pytest.raises(ManifestError) as error:
        tagging()
    assert str(error.value).split("\n")[1:] == [
        f"  line 13: the video {EVAL[0]} is listed twice",
        "  line 14: /m/none is not in class_labels_indices.csv",
        "  line 15: 2 cells, not id, start, end and labels",
    ]


def test_video_that_is_in_two_lists(tagging, data):
    add_lines(
        part_list(data, "unbalanced_train"),
        f'{BALANCED[0]}, 30.000, 40.000, "/m/04rlf"',
    )
    with pytest.raises(ManifestError, match=f"has the id {BALANCED[0]}: in tr"):
        tagging(subset="2M", valid_is_test=True)


def test_segment_in_two_files(tagging, data):
    first = data / "AudioSet" / "audio" / "bal_train" / f"{BALANCED[0]}.flac"
    shutil.copy(first, data / "AudioSet" / f"Y{BALANCED[0]}.flac")
    with pytest.raises(ManifestError) as error:
        tagging()
    assert str(error.value).startswith(f"{BALANCED[0]}: more than one file")
    assert str(first) in str(error.value)


def test_class_without_clips(tagging, scripts, data, monkeypatch):
    module = scripts["audioset_prepare"]
    monkeypatch.setattr(module, "N_CLASSES", 5)
    monkeypatch.setattr(module, "PUBLISHED", {"balanced": 21, "eval": 9})
    with open(
        data / "AudioSet" / "metadata" / "class_labels_indices.csv", "a"
    ) as file:
        file.write("4,/m/07pp_mv,Alarm\n")
    with pytest.raises(ManifestError, match="no clip of train .* label Alarm"):
        tagging(require_counts=True)
    # A part of AudioSet has the classes that it has.
    assert len(tagging()["labels"]) == 4


def test_no_such_subset(tagging):
    with pytest.raises(ManifestError, match="one of 20K, 2M, got '500K'"):
        tagging(subset="500K")


def test_truncated_audio(tagging, data):
    path = data / "AudioSet" / "eval" / f"{EVAL[0]}_30.000_40.000.wav"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ManifestError, match="1 of 28 .*unreadable.csv"):
        tagging()
    assert EVAL[0] not in tagging(max_unreadable=0.1)["test"]


def test_download_of_the_lists(tagging, scripts, data, monkeypatch):
    served = data / "served"
    shutil.move(data / "AudioSet" / "metadata", served)
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(scripts["audioset_prepare"], "URL", url)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        parts = tagging(allow_download=True)
        server.shutdown()
        thread.join()
    # There is no server any more, and no need of one.
    assert tagging() == parts


# Pretraining --------------------------------------------------------------


def test_both_corpora(pretraining):
    parts = pretraining()
    train, valid = parts["train"], parts["valid"]
    assert len(train) + len(valid) == 20 + 24 + 12
    assert not train.keys() & valid.keys()
    voices = [
        {row["speaker"] for row in part.values() if "speaker" in row}
        for part in (train, valid)
    ]
    assert not voices[0] & voices[1]
    assert voices[0] | voices[1] == {"100", "101", "110", "111", "120", "121"}
    assert parts["corpus"] == (
        "AudioSet-2M (audio of 20 of 21 balanced, 24 of 25 unbalanced "
        "segments) and LibriSpeech (train-clean-100, train-clean-360, "
        "train-other-500)"
    )
    assert "labels" not in parts


def test_audioset_alone(pretraining, data):
    # Neither labels nor their names are needed.
    (data / "AudioSet" / "metadata" / "class_labels_indices.csv").unlink()
    parts = pretraining(
        librispeech_folder=None, subset="20K", valid_on_eval=True
    )
    assert parts["train"].keys() == {*BALANCED[:-1]}
    assert parts["valid"].keys() == {*EVAL[:-1]}


@pytest.mark.parametrize("folder", ["", "LibriSpeech"])
def test_librispeech_alone(pretraining, data, folder):
    parts = pretraining(
        data_folder=None,
        librispeech_folder=data / folder,
        librispeech_parts=["train-clean-360"],
        valid_fraction=0,
    )
    assert sorted(parts["train"]) == [
        "110-1240-0000",
        "110-1240-0002",
        "111-1240-0001",
        "111-1240-0003",
    ]
    assert parts["valid"] == {}
    assert parts["train"]["111-1240-0001"]["speaker"] == "111"


def test_no_corpus(pretraining):
    with pytest.raises(ManifestError, match="give --data_folder .AudioSet"):
        pretraining(data_folder=None, librispeech_folder=None)
    with pytest.raises(ManifestError, match="none for --valid_on_eval"):
        pretraining(data_folder=None, valid_on_eval=True)


def test_librispeech_is_counted(pretraining):
    with pytest.raises(ManifestError) as error:
        pretraining(data_folder=None, require_counts=True)
    assert "train-clean-100: 4, published 28539" in str(error.value)
    assert "train-other-500: 4, published 148688" in str(error.value)


def test_missing_part_of_librispeech(pretraining, data):
    shutil.rmtree(data / "LibriSpeech" / "train-clean-360")
    with pytest.raises(ManifestError) as error:
        pretraining(data_folder=None)
    assert "missing there: train-clean-360. " in str(error.value)
    assert "openslr.org/12, which --allow_download" in str(error.value)
    (data / "LibriSpeech" / "train-clean-360").mkdir()
    with pytest.raises(ManifestError, match=r"\*.flac in train-clean-360"):
        pretraining(data_folder=None)


def test_no_such_part_of_librispeech(pretraining):
    with pytest.raises(ManifestError, match="must be of .*, got dev-clean"):
        pretraining(librispeech_parts=["dev-clean"])


def test_download_of_librispeech(pretraining, scripts, data, monkeypatch):
    module = scripts["librispeech_prepare"]
    served = data / "served"
    for part in module.TRAINING_PARTS:
        shutil.make_archive(served / part, "gztar", data, f"LibriSpeech/{part}")
    shutil.rmtree(data / "LibriSpeech")
    # The published checksums are not those of a miniature.
    parts = {k: v._replace(sha256=None) for k, v in module.PARTS.items()}
    monkeypatch.setattr(module, "PARTS", parts)
    monkeypatch.setattr(module, "URL", served.as_uri())
    settings = {"data_folder": None, "librispeech_folder": data / "new"}
    parts = pretraining(allow_download=True, **settings)
    assert len(parts["train"]) + len(parts["valid"]) == 12
    shutil.rmtree(served)
    assert pretraining(allow_download=True, **settings) == parts


# Several processes --------------------------------------------------------


@pytest.mark.slow
def test_two_processes(whole, tmp_path):
    """Classes alike and weights averaged: one process tests the same."""
    task, out = FOLDER / "classify", tmp_path / "out"
    arguments = [
        *(task / "train.py", task / "hparams" / "audioset.yaml"),
        "--training=audioset2m_patch",
        *(f"--data_folder={whole / 'AudioSet'}", f"--output_folder={out}"),
        *(
            "--require_counts=False",
            "--valid_fraction=0.2",
            "--crop_seconds=0.15",
        ),
        *("--model_size=micro", "--lr=0.001", "--batch_size=8"),
        *("--number_of_epochs=2", "--num_workers=0"),
        *("--device=cpu", "--noprogressbar"),
    ]

    def run(*more, launcher=""):
        subprocess.run(
            [sys.executable, *launcher.split(), *arguments, *more],
            check=True,
            timeout=600,
        )
        return [
            (out / name).read_text()
            for name in ("test_predictions.csv", "test_result.json")
        ]

    several = run(
        "--distributed_backend=gloo",
        launcher="-m torch.distributed.run --standalone --nproc_per_node=2",
    )
    assert run("--test_only") == several
