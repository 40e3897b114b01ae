"""LibriSpeech for speech recognition: parts, transcripts, errors."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import miniature_librispeech
import pytest

from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.dataio.tables import ManifestError, read_manifest

RECIPE = Path(__file__).parents[2] / "recipes" / "LibriSpeech"
UTTERANCE = "LibriSpeech/dev-clean/84/121123/84-121123-0002.flac"
TRANSCRIPTS = "LibriSpeech/dev-clean/84/121123/84-121123.trans.txt"


@pytest.fixture(scope="module")
def script():
    path = RECIPE / "librispeech_prepare.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return miniature_librispeech.make(tmp_path_factory.mktemp("librispeech"))


@pytest.fixture
def archive(original, tmp_path):
    """Folder that has `LibriSpeech`, of 28 utterances."""
    return Path(shutil.copytree(original, tmp_path / "data"))


@pytest.fixture
def prepare(script, archive, tmp_path):
    """The script with what the miniature needs; gives the parts."""

    def run(folder=archive, **more):
        settings = {
            "train_parts": ["train-clean-100"],
            "valid_parts": ["dev-clean"],
            "test_parts": ["test-clean", "test-other"],
            "require_counts": False,
            **more,
        }
        path = script.prepare_librispeech(folder, tmp_path / "out", **settings)
        return read_splits(path)

    return run


def test_parts_and_what_is_said(prepare, archive):
    parts = prepare()
    found = {name: len(rows) for name, rows in parts.items()}
    assert parts["corpus"] == "LibriSpeech, train-clean-100"
    del found["corpus"]
    assert found == {"train": 16, "valid": 4, "test-clean": 4, "test-other": 4}
    row = parts["train"]["103-1240-0000"]
    assert (row["label"], row["speaker"]) == ("TWO TWO", "103")
    assert {
        word
        for row in parts["train"].values()
        for word in (row["label"].split())
    } <= {*miniature_librispeech.WORDS}
    assert prepare(archive / "LibriSpeech") == parts


def test_counts_of_a_part_of_the_archive(prepare, script):
    with pytest.raises(ManifestError) as error:
        prepare(require_counts=True)
    assert "train-clean-100: 16, published 28539" in str(error.value)
    # 960 hours, says the paper.
    training = [script.PARTS[part].utterances for part in script.TRAINING_PARTS]
    assert sum(training) == 281241


def test_no_such_part(prepare):
    with pytest.raises(ManifestError, match="must be of .*, got test-noisy"):
        prepare(test_parts=["test-noisy"])


def test_missing_part(prepare, archive):
    shutil.rmtree(archive / "LibriSpeech" / "test-other")
    with pytest.raises(ManifestError, match="missing there: test-other"):
        prepare()
    renamed = (archive / "LibriSpeech").rename(archive / "speech")
    with pytest.raises(ManifestError, match="into a folder called LibriSpeech"):
        prepare(renamed, allow_download=True)


def test_the_manifest_has_splits_that_other_recipes_know(prepare, tmp_path):
    prepare()
    rows = read_manifest(tmp_path / "out" / "save/manifest.csv", ["split"])
    assert {row["split"] for row in rows} == {"train", "valid", "test"}


@pytest.mark.parametrize("whole_file", [True, False])
def test_missing_transcript(prepare, archive, whole_file):
    path = archive / TRANSCRIPTS
    lines = path.read_text().splitlines()
    path.unlink()
    if not whole_file:
        kept = [line for line in lines if "84-121123-0002" not in line]
        path.write_text("\n".join(kept) + "\n")
    with pytest.raises(ManifestError, match="have no transcript") as error:
        prepare()
    assert str(error.value).startswith("4 " if whole_file else "1 ")
    assert whole_file or str(archive / UTTERANCE) in str(error.value)


def test_part_that_is_in_two_places(prepare):
    with pytest.raises(ManifestError, match="in valid and test-clean"):
        prepare(valid_parts=["test-clean"])


def test_truncated_audio(prepare, archive):
    path = archive / UTTERANCE
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ManifestError, match="1 of 28 .*unreadable.csv"):
        prepare()
    assert len(prepare(max_unreadable=0.1)["valid"]) == 3


def test_transcripts_of_train_alone(prepare, tmp_path):
    rows = prepare()["train"].values()
    lines = (tmp_path / "out" / "save/transcripts.txt").read_text().splitlines()
    assert lines == [row["label"] for row in rows]


@pytest.mark.slow
def test_vocabulary_that_is_too_large(archive, tmp_path):
    task = RECIPE / "ASR-CTC"
    result = subprocess.run(
        [sys.executable, task / "train.py", task / "hparams" / "ctc.yaml"]
        + [f"--data_folder={archive}", f"--output_folder={tmp_path / 'out'}"]
        + ["--require_counts=False", "--model_size=micro", "--device=cpu"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("SettingsError: vocabulary_size does not fit ")
    assert "Please set it to a value <= " in last
