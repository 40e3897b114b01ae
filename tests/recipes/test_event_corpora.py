"""DESED and AudioSet-Strong are read as they are released."""

import csv
import importlib.util
import logging
import sys

import miniature_audioset_strong
import miniature_desed
import pytest
from miniature_soundscapes import ROOT

from ssast_lobes.dataio.event_tables import Event, row_events
from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.dataio.tables import ManifestError


def script_of(folder, name):
    path = ROOT / "recipes" / folder / f"{name}.py"
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        sys.modules.pop("audioset_prepare", None)
    return module


# DESED --------------------------------------------------------------------


@pytest.fixture
def desed(tmp_path):
    folder = miniature_desed.make(tmp_path / "data")
    script = script_of("DESED", "desed_prepare")

    def prepare(**settings):
        settings = {"require_counts": False, **settings}
        out = tmp_path / "out"
        return read_splits(script.prepare_desed(folder, out, **settings))

    return prepare


def test_desed_sets(desed, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        rows = desed()
    assert rows["labels"] == ["Cat", "Dog", "Speech"]
    train = rows["train"]
    assert len(train) == 8 + 2
    assert "weak: 1 of 3 clips have no audio" in caplog.text
    strong = row_events(train["synthetic/1.wav"])
    assert strong == [Event(0.2, 0.54, "Dog")]
    weak = row_events(train["weak/Y00000000000_30.000_40.000.wav"])
    assert weak == [Event(None, None, "Cat"), Event(None, None, "Dog")]
    assert row_events(train["synthetic/7.wav"]) == []
    assert set(rows["valid"]) == {
        f"synthetic_validation/{n}.wav" for n in range(5)
    }
    assert len(rows["test"]) == 5
    with open(tmp_path / "out" / "unlabeled.csv", newline="") as file:
        assert [row["path"][-5:] for row in csv.DictReader(file)] == ["a.wav"]


def test_desed_without_unlabeled_audio(desed, tmp_path):
    unlabeled = "data/dataset/audio/train/unlabel_in_domain"
    (tmp_path / unlabeled / "a.wav").unlink()
    assert desed()["train"]
    assert not (tmp_path / "out" / "unlabeled.csv").exists()


def test_desed_other_sets(desed):
    rows = desed(train_sets=["synthetic", "strong"], test_set="public")
    assert len(rows["train"]) == 8 + 2
    assert len(rows["test"]) == 4
    with pytest.raises(ManifestError, match="train_sets must be some of"):
        desed(train_sets=["unlabeled"])
    with pytest.raises(ManifestError, match="weak: 3, published 1578"):
        desed(require_counts=True)


def test_desed_names_what_is_missing(tmp_path):
    script = script_of("DESED", "desed_prepare")
    with pytest.raises(ManifestError, match="soundscapes.tsv is missing there"):
        script.prepare_desed(tmp_path, tmp_path / "out")


# AudioSet-Strong ----------------------------------------------------------


def test_audioset_strong(tmp_path, caplog):
    folder = miniature_audioset_strong.make(tmp_path / "data")
    script = script_of("AudioSet-Strong", "audioset_strong_prepare")
    prepare = script.prepare_audioset_strong
    settings = {"valid_fraction": 0.3, "require_counts": False}
    with caplog.at_level(logging.WARNING):
        path = prepare(folder, tmp_path / "out", **settings)
    rows = read_splits(path)
    assert rows["labels"] == ["Cat", "Dog", "Speech"]
    assert len(rows["train"]) + len(rows["valid"]) == 11
    assert len(rows["test"]) == 5
    assert row_events(rows["test"]["e-000000001_30000"]) == [
        Event(0.2, 0.6, "Dog")
    ]
    # A class of the evaluation clips alone cannot be learned.
    assert "1 events of valid and test have classes that train" in caplog.text
    with pytest.raises(ManifestError, match="train: 12, published 103463"):
        prepare(folder, tmp_path / "other")
    clip = folder / "audio" / "Ye-000000001.wav"
    clip.with_name("Ye-000000001_0.000_10.000.wav").write_bytes(
        clip.read_bytes()
    )
    with pytest.raises(ManifestError, match="more than one file has this"):
        prepare(folder, tmp_path / "other", **settings)
    clip.unlink()
    names = folder / "lists" / "mid_to_display_name.tsv"
    names.write_text(names.read_text().replace("/m/02", "/m/99"))
    with pytest.raises(ManifestError, match="/m/02 not in mid_to_display"):
        prepare(folder, tmp_path / "other", **settings)
