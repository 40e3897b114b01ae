"""Spoken takes: two voices a clip, halves that sound, words as told."""

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

FOLDER = Path(__file__).parents[2] / "recipes" / "SyntheticCommands"


@pytest.fixture(scope="module")
def recipe():
    sys.path.insert(0, str(FOLDER))
    try:
        import spoken_takes_prepare
    finally:
        sys.path.remove(str(FOLDER))
    return spoken_takes_prepare


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("en water\nde Straße\n\nfr bonjour\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def corpus(recipe, words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("takes")
    recipe.prepare_spoken_takes(folder, n_clips=1, words=words)
    return folder


def rows(folder):
    path = folder / "manifest.csv"
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_each_half_is_a_take_in_a_voice_of_its_own(recipe, corpus):
    found = rows(corpus)
    assert len(found) == recipe.CLIPS_PER_SHARD
    assert {(row["language"], row["word"]) for row in found} == {
        ("en", "water"),
        ("de", "Straße"),
        ("fr", "bonjour"),
    }
    for row in found[::20]:
        first, second = row["voices"].split(";")
        assert first.split("+")[1] != second.split("+")[1]
        assert row["takes"] == "2"
        audio, rate = soundfile.read(corpus / row["path"])
        assert rate == 16000 and audio.shape == (32000,)
        halves = audio.reshape(2, 16000)
        assert (np.abs(halves).max(1) > 0.05).all()


@pytest.mark.slow
def test_voices_vary_and_little_noise_is_heard(recipe, corpus):
    speakers = [
        recipe.draw_speaker("", "en+f2", rng, **recipe.VARIED)
        for rng in map(np.random.default_rng, range(200))
    ]
    assert min(speaker.pitch for speaker in speakers) < 20
    assert max(speaker.rate for speaker in speakers) > 210
    ranges = []
    for row in rows(corpus):
        audio, _ = soundfile.read(corpus / row["path"])
        for half in audio.reshape(2, 100, 160):
            level = 10 * np.log10(half.astype(float).var(1) + 1e-12)
            ranges.append(np.percentile(level, 95) - level.min())
    # With the noise of the corpus of commands it would be at most 30 dB.
    assert np.median(ranges) > 30


@pytest.mark.slow
def test_a_finished_corpus_stays_and_another_is_refused(recipe, corpus, words):
    before = rows(corpus)
    changed = (corpus / "audio/0000/takes.csv").stat().st_mtime_ns
    recipe.prepare_spoken_takes(corpus, n_clips=1, words=words)
    assert rows(corpus) == before
    assert (corpus / "audio/0000/takes.csv").stat().st_mtime_ns == changed
    with pytest.raises(ValueError, match="made with"):
        recipe.prepare_spoken_takes(corpus, n_clips=1, words=words, seed=1)


def test_words_that_are_none_are_refused(recipe, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("en water\n\nHaus\n")
    with pytest.raises(ValueError, match="words.txt: line 3"):
        recipe.prepare_spoken_takes(tmp_path / "takes", words=path)


@pytest.mark.parametrize(
    "line, problem", [("en ...", "no voice has a sound"), ("xx a", "no voice")]
)
def test_what_cannot_be_said_is_an_error(recipe, tmp_path, line, problem):
    path = tmp_path / "words.txt"
    path.write_text(f"{line}\n")
    with pytest.raises(RuntimeError, match=problem):
        recipe.prepare_spoken_takes(tmp_path / "takes", 1, words=path)


HAS_FLITE = pytest.mark.skipif(
    shutil.which("flite") is None, reason="the program flite is not installed"
)


@pytest.mark.slow
@HAS_FLITE
def test_flite_says_its_share_of_the_english_words(recipe, words, tmp_path):
    recipe.prepare_spoken_takes(tmp_path, 1, words=words, flite_fraction=0.8)
    found = rows(tmp_path)
    counts = {}
    for row in found:
        voices = row["voices"].split(";")
        people = [v for v in voices if v.startswith("flite-")]
        counts[len(people)] = counts.get(len(people), 0) + 1
        assert len(set(voices)) == 2
        assert not people or row["word"] == "water"
        audio, _ = soundfile.read(tmp_path / row["path"])
        assert (np.abs(audio.reshape(2, 16000)).max(1) > 0.05).all()
    # 0.8 of 250 by Flite, of those 0.36 in both takes, four deviations.
    assert counts[1] + counts[2] == pytest.approx(200, abs=26)
    assert counts[2] == pytest.approx(72, abs=30)


@HAS_FLITE
def test_flite_needs_an_english_word(recipe, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("de Haus\n")
    with pytest.raises(ValueError, match="Flite says English words"):
        recipe.prepare_spoken_takes(
            tmp_path / "takes", words=path, flite_fraction=0.5
        )
    assert not (tmp_path / "takes").exists()


def test_flite_that_is_not_there(recipe, words, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt install flite"):
        recipe.prepare_spoken_takes(
            tmp_path / "takes", words=words, flite_fraction=0.5
        )
    with pytest.raises(ValueError, match="from 0 to 1, got 80"):
        recipe.prepare_spoken_takes(
            tmp_path / "takes", words=words, flite_fraction=80
        )


@pytest.mark.slow
def test_frequent_words_leave_the_benchmarks_out(recipe):
    languages = {
        found[0][0]: [word for _, word in found]
        for _, found in recipe._frequent_words()
    }
    assert languages.keys() == recipe.LANGUAGES.keys()
    assert len(languages["en"]) > 4000
    assert not recipe.NOT_WORDS & set(languages["en"])
