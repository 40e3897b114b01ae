"""The synthetic corpus: complete, repeatable, disjoint and audible."""

import csv
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

FOLDER = Path(__file__).parents[2] / "recipes" / "SyntheticCommands"
SCRIPT = FOLDER / "synthetic_commands_prepare.py"
SIZES = {
    "n_unlabelled": 40,
    "n_train_per_word": 1,
    "n_valid_per_word": 1,
    "n_test_per_word": 2,
}


@pytest.fixture(scope="module")
def prepare():
    sys.path.insert(0, str(FOLDER))
    try:
        import synthetic_commands_prepare
    finally:
        sys.path.remove(str(FOLDER))
    return synthetic_commands_prepare


@pytest.fixture(scope="module")
def espeak(prepare):
    return sys.modules["espeak"]


@pytest.fixture(scope="module")
def plan(prepare):
    return sys.modules["plan"]


@pytest.fixture(scope="module")
def workers(prepare):
    return sys.modules["workers"]


@pytest.fixture(scope="module")
def sounds(prepare):
    return sys.modules["sounds"]


@pytest.fixture(scope="module")
def corpus(prepare, tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    prepare.prepare_synthetic_commands(folder, **SIZES)
    return folder


def read(folder, name):
    with open(folder / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    """Every file below the folder, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_manifests(plan, corpus):
    unlabelled, labelled = read(corpus, "unlabelled"), read(corpus, "labelled")
    assert list(unlabelled[0]) == ["path", "speaker"]
    assert list(labelled[0]) == ["path", "label", "split", "speaker"]
    assert len(unlabelled) == 40
    for split, per_word in (("train", 1), ("valid", 1), ("test", 2)):
        words = [row["label"] for row in labelled if row["split"] == split]
        assert {word: words.count(word) for word in words} == dict.fromkeys(
            plan.WORDS, per_word
        )
    paths = [row["path"] for row in unlabelled + labelled]
    assert len(set(paths)) == len(paths)
    assert {f"{path}" for path in paths} == {
        name for name in contents(corpus) if name.endswith(".flac")
    }


def test_clips_are_whole_seconds_without_clipping(corpus):
    for row in read(corpus, "unlabelled") + read(corpus, "labelled"):
        info = soundfile.info(corpus / row["path"])
        assert (info.format, info.subtype) == ("FLAC", "PCM_16")
        assert (info.samplerate, info.channels) == (16000, 1)
        audio, _ = soundfile.read(corpus / row["path"])
        assert audio.shape == (16000,)
        assert 0.05 < np.abs(audio).max() < 0.95
        assert np.sqrt(np.mean(audio**2)) > 0.001


def test_splits_share_no_speaker_and_no_voice(plan):
    settings = plan.Settings(2000, 20, 25, 50, seed=3)
    speakers, variants = {}, {}
    for shard in plan.plan_corpus(settings):
        part = [clip.speaker for clip in shard.clips]
        speakers.setdefault(shard.split, set()).update(part)
        # Babble too is spoken by the part's own voices.
        heard = [s.voice for s in part] + list(shard.voices)
        variants.setdefault(shard.split, set()).update(
            voice.split("+")[1] for voice in heard
        )
    assert {split: len(part) for split, part in speakers.items()} == {
        "unlabelled": 100,
        "train": 20,
        "valid": 25,
        "test": 50,
    }
    assert len(set.union(*speakers.values())) == 195
    assert not variants["test"] & variants["valid"]
    for held_out in ("test", "valid"):
        for heard in ("train", "unlabelled"):
            assert not variants[held_out] & variants[heard]
    pairs = {s.voice for s in speakers["train"] | speakers["unlabelled"]}
    assert len(pairs) == 120


def test_plan_does_not_move_with_the_sizes_of_other_parts(plan):
    def test_part(**sizes):
        settings = plan.Settings(**(SIZES | sizes), seed=0)
        return [s for s in plan.plan_corpus(settings) if s.split == "test"]

    assert test_part() == test_part(n_unlabelled=700, n_train_per_word=9)


@pytest.mark.slow
def test_same_arguments_same_bytes(
    prepare, workers, corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(workers, "n_processors", lambda: 1)
    prepare.prepare_synthetic_commands(tmp_path, **SIZES)
    assert contents(tmp_path) == contents(corpus)


def test_another_seed_is_another_corpus(plan, espeak, tmp_path):
    def audio(seed):
        settings = plan.Settings(0, 0, 0, 1, seed)
        (shard,) = plan.plan_corpus(settings)
        rng = np.random.default_rng(0)
        synthesizer = espeak.Synthesizer()
        return espeak.say_word(synthesizer, shard.clips[0], rng)

    assert len(audio(1)) != len(audio(2))


def test_complete_corpus_is_reused(prepare, corpus):
    before = {p: p.stat().st_mtime_ns for p in corpus.rglob("*")}
    prepare.prepare_synthetic_commands(corpus, **SIZES)
    assert {p: p.stat().st_mtime_ns for p in corpus.rglob("*")} == before


def test_half_written_corpus_is_completed(prepare, workers, corpus, tmp_path):
    wanted = contents(corpus)
    for name, data in wanted.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "labelled.csv").unlink()
    paths = sorted(tmp_path.rglob("*.flac"))
    paths[0].unlink()
    # Left by a run that was killed long ago.
    leftover = tmp_path / f"{workers.WORKSHOP}old"
    leftover.mkdir()
    os.utime(leftover, (0, 0))
    untouched = paths[-1].stat().st_mtime_ns
    prepare.prepare_synthetic_commands(tmp_path, **SIZES)
    assert contents(tmp_path) == wanted
    assert not leftover.exists()
    assert paths[-1].stat().st_mtime_ns == untouched


@pytest.mark.slow
def test_two_runs_on_one_folder(prepare, corpus, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(prepare.prepare_synthetic_commands, tmp_path, **SIZES)
            for _ in range(2)
        ]
        assert runs[0].result() == runs[1].result()
    assert contents(tmp_path) == contents(corpus)


def test_other_arguments_are_refused(prepare, corpus):
    with pytest.raises(ValueError, match="another folder") as error:
        prepare.prepare_synthetic_commands(corpus, **SIZES, seed=1)
    assert str(corpus) in str(error.value)


def test_a_folder_with_other_files_is_refused(prepare, tmp_path):
    (tmp_path / "manifest.csv").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no synthetic"):
        prepare.prepare_synthetic_commands(tmp_path, **SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]


def test_negative_sizes_are_refused(prepare, tmp_path):
    with pytest.raises(ValueError, match="negative"):
        prepare.prepare_synthetic_commands(tmp_path / "new", n_unlabelled=-1)
    assert not (tmp_path / "new").exists()


def test_failure_in_a_process_is_reported(
    prepare, workers, tmp_path, monkeypatch
):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no voice today')")
    monkeypatch.setattr(workers, "SCRIPT", str(broken))
    with pytest.raises(RuntimeError, match="no voice today"):
        prepare.prepare_synthetic_commands(tmp_path / "new", **SIZES)
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"settings.json"}


def test_skip_prep_only_names_the_manifests(prepare, tmp_path):
    manifests = prepare.prepare_synthetic_commands(tmp_path, skip_prep=True)
    assert manifests == {
        "unlabelled": str(tmp_path / "unlabelled.csv"),
        "labelled": str(tmp_path / "labelled.csv"),
    }
    assert not list(tmp_path.iterdir())


def test_words_are_not_cut(plan, espeak):
    """The slowest speakers too finish within the clip."""
    synthesizer = espeak.Synthesizer()
    rng = np.random.default_rng(0)
    for voice in ("en-us+f4", "en+Marco", "en-029+m4"):
        speaker = espeak.Speaker("s", voice, 40, 120, 0.93)
        for number, word in enumerate(plan.WORDS):
            clip = espeak.Clip(number, word, speaker)
            audio = espeak.say_word(synthesizer, clip, rng)
            assert 0.15 < len(audio) / 16000 < 0.95
            # Silence at both ends shows that nothing is missing there.
            assert np.abs(audio[:20]).max() < 0.05
            assert np.abs(audio[-20:]).max() < 0.05


def test_babble_has_none_of_the_words(plan, workers):
    spoken = re.findall("[a-z]+", " ".join(workers.BABBLE).lower())
    assert not set(spoken) & set(plan.WORDS)


def level_db(audio, low, high):
    """Mean power between two frequencies, in dB."""
    power = np.abs(np.fft.rfft(audio)) ** 2
    frequency = np.fft.rfftfreq(len(audio), 1 / 16000)
    return 10 * np.log10(power[(frequency >= low) & (frequency < high)].mean())


@pytest.mark.parametrize(
    ("kind", "slope"), [("white", 0), ("pink", -3), ("brown", -6)]
)
def test_noise_colors(sounds, kind, slope):
    noise = sounds.make_noise(kind, [], np.random.default_rng(0))
    assert noise.shape == (16000,)
    drop = level_db(noise, 2000, 4000) - level_db(noise, 250, 500)
    assert drop == pytest.approx(3 * slope, abs=0.7)


def test_room_adds_a_decaying_tail(sounds):
    click = np.zeros(16000)
    click[1000] = 1.0
    rng = np.random.default_rng(0)
    rooms = [sounds.reverberate(click, rng) for _ in range(20)]
    for room in rooms:
        assert room.shape == click.shape
        assert np.abs(room[:1000]).max() < 1e-9
        assert room[1000] == pytest.approx(1.0)
        tail = room[1001:]
        assert 0 < np.sum(tail[:2000] ** 2)
        assert np.sum(tail[8000:] ** 2) < 1e-3 * np.sum(tail**2)
        ratio_db = -10 * np.log10(np.sum(tail**2))
        low, high = sounds.DIRECT_TO_REVERBERANT_DB
        assert low - 0.1 < ratio_db < high + 0.1


def test_noise_is_as_loud_as_meant(sounds, monkeypatch):
    monkeypatch.setattr(sounds, "TILT_DB_PER_OCTAVE", (0.0, 0.0))
    monkeypatch.setattr(sounds, "DIRECT_TO_REVERBERANT_DB", (90.0, 90.0))
    monkeypatch.setattr(sounds, "NOISES", ("white",))
    word = np.hanning(4800) * np.sin(np.arange(4800) * 0.3)
    rng = np.random.default_rng(0)
    audio = sounds.make_clip(word, [], rng, snr_db=(10.0, 10.0))
    # The noise is white, the word a tone at 764 Hz.
    noise_power = 10 ** (level_db(audio, 4000, 8000) / 10) / 16000
    total_power = np.mean(audio**2)
    # A word of 0.3 s: its power is spread over a clip of 1 s.
    speech_power = (total_power - noise_power) / 0.3
    snr = 10 * np.log10(speech_power / noise_power)
    assert snr == pytest.approx(10.0, abs=0.5)


def test_command_line(tmp_path):
    run = subprocess.run(
        [
            *(sys.executable, SCRIPT, tmp_path, "--n-unlabelled=3"),
            *("--n-train-per-word=0", "--n-valid-per-word=0"),
            "--n-test-per-word=0",
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "Synthesizing: 100%" in run.stderr
    assert len(read(tmp_path, "unlabelled")) == 3
    assert read(tmp_path, "labelled") == []
