"""Every kind of bad input, in training and in inference: the table of
`docs/bad_input.md`, which these tests read and hold to.

Audio stands among good clips. In training it is found in a folder, prepared,
and goes through a worker and a step of the Brain; in inference through the
interfaces and the command.
"""

import csv
import itertools
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from brain_kit import build, fit
from classifier_kit import classifier_of
from scan_kit import scan_and_write

from ssast_lobes import FrontEnd, Grid
from ssast_lobes.checkpoints.folder import export_classifier, label_encoder_of
from ssast_lobes.cli import main
from ssast_lobes.dataio.scan import folder_rows
from ssast_lobes.dataio.tables import ManifestError, index_rows
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.inference import AudioClassifier, AudioEncoder
from ssast_lobes.inference.audio import read_blocks

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "bad_input.md"
RATE = 16000
WORKS, SKIPPED, SHORT = "works", "skipped", "left out"
TWO_HOURS = 2 * 3600


def noise(seconds, channels=1, rate=RATE):
    draw = np.random.default_rng(0)
    return draw.uniform(-0.3, 0.3, (round(seconds * rate), channels))


def with_sample(value):
    wave = noise(0.5)
    wave[4000] = value
    return lambda path: soundfile.write(path, wave, RATE, subtype="DOUBLE")


def wave(samples, rate=RATE, **arguments):
    return lambda path: soundfile.write(path, samples, rate, **arguments)


def cut_short(path):
    soundfile.write(path, noise(0.5), RATE)
    os.truncate(path, os.path.getsize(path) // 2)


def without_length(path):
    """An mp3 whose Xing frame is silence, behind a picture."""
    soundfile.write(path, noise(0.5), RATE)
    content = Path(path).read_bytes().replace(b"Xing", bytes(4))
    picture = b"ID3\3\0\0" + b"\0\4\0\0" + bytes(4 * 2**14)
    Path(path).write_bytes(picture + content)


def two_streams(path):
    soundfile.write(path, noise(0.5), RATE)
    first = Path(path).read_bytes()
    soundfile.write(path, noise(0.4), RATE)
    Path(path).write_bytes(first + Path(path).read_bytes())


def two_hours(path):
    """A file with a hole: the header and the length, and almost no disk."""
    soundfile.write(path, noise(0.01), RATE, subtype="PCM_16")
    size = TWO_HOURS * RATE * 2
    with open(path, "r+b") as file:
        file.seek(4)
        file.write((36 + size).to_bytes(4, "little"))
        file.seek(40)
        file.write(size.to_bytes(4, "little"))
        file.truncate(44 + size)


def folder_with_audio(path):
    os.mkdir(path)
    soundfile.write(os.path.join(path, "inside.wav"), noise(0.5), RATE)


# Row of the page: name of the file, how it is made, what a reason says.
AUDIO = {
    "truncated FLAC": ("bad.flac", cut_short, "decoding|ends"),
    "truncated WAV": ("bad.wav", cut_short, ""),
    "mp3 with a picture and without its length": (
        "bad.mp3",
        without_length,
        "",
    ),
    "several Ogg streams in a row": ("bad.ogg", two_streams, "first only"),
    "m4a without the extra `codec`": (
        "bad.m4a",
        lambda p: Path(p).write_text("hello"),
        "`codec` extra|FFmpeg cannot",
    ),
    "empty file": ("bad.wav", lambda p: open(p, "w").close(), "empty"),
    "header without samples": ("bad.wav", wave(np.zeros(0)), "no samples"),
    "NaN samples": ("bad.wav", with_sample(np.nan), "NaN"),
    "infinite samples": ("bad.wav", with_sample(np.inf), "infinite"),
    "samples of 1e30": ("bad.wav", with_sample(1e30), "1e\\+30"),
    "silence": ("bad.wav", wave(np.zeros(8000)), ""),
    "a constant": ("bad.wav", wave(np.full(8000, 0.5)), ""),
    "one sample": ("bad.wav", wave(np.full(1, 0.5)), "25 ms"),
    "8 kHz": ("bad.wav", wave(noise(0.5, rate=8000), 8000), ""),
    "192 kHz": ("bad.wav", wave(noise(0.5, rate=192000), 192000), ""),
    "8 channels": ("bad.wav", wave(noise(0.5, 8)), ""),
    "float64": ("bad.wav", wave(noise(0.5), subtype="DOUBLE"), ""),
    "two hours": ("bad.wav", two_hours, ""),
    "text named .wav": (
        "bad.wav",
        lambda p: Path(p).write_text("hello"),
        "cannot open",
    ),
    "name that is not UTF-8": ("b\udce4d.wav", wave(noise(0.5)), ""),
}


def table(heading):
    """Rows of a table of the page below a heading, cells by first cell."""
    text = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    lines = [line for line in text.split("\n## ")[0].splitlines() if line]
    lines = [line for line in lines if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in x.strip("|").split("|")] for x in lines]
    return {cells[0]: cells[1:] for cells in rows}


@pytest.mark.parametrize("heading", ["Audio", "Tables"])
def test_page_has_these_cases(heading):
    cases = {"Audio": [*AUDIO, *FOLDERS], "Tables": TABLES}[heading]
    assert list(table(heading)) == list(cases)


def outcome(case, column, heading="Audio"):
    """What the page promises; the reason in brackets is for people."""
    return table(heading)[case][column].partition(" (")[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return export_classifier(
        tmp_path_factory.mktemp("model") / "export",
        classifier_of(Grid(128, (16, 16))),
        FrontEnd(),
        label_encoder_of(["one", "two", "three"]),
        False,
        card={},
    )


def bad_file(case, folder):
    """A folder with three good clips and a bad one; the path of that."""
    folder.mkdir()
    for number in range(3):
        soundfile.write(folder / f"good{number}.wav", noise(0.4), RATE)
    name, make, reason = AUDIO[case]
    path = os.path.join(folder, name)
    # soundfile takes names that are not UTF-8 as bytes only.
    make(path if name.isascii() else os.fsencode(path))
    return path, reason


def train(rows, folder):
    """Prepare rows, and train an epoch on them with a worker."""
    rows, unreadable = scan_and_write(rows, folder, 0.1, max_unreadable=0.5)
    rows = index_rows(rows)
    run = build(
        "pretrain",
        {"train": rows},
        folder,
        batch_size=2,
        workers=1,
        epochs=1,
        nonfinite_patience=0,
    )
    fit(run)
    assert run.brain.optimizer_step == -(-len(rows) // 2)
    state = run.module.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    assert not (folder / "nonfinite.csv").exists()
    return rows, run


@pytest.mark.parametrize("case", AUDIO)
def test_training(case, tmp_path):
    path, reason = bad_file(case, tmp_path / "audio")
    rows, run = train(folder_rows(tmp_path / "audio"), tmp_path / "out")
    with open(
        tmp_path / "out" / "unreadable.csv",
        encoding="utf-8",
        errors="surrogateescape",
        newline="",
    ) as file:
        listed = list(csv.reader(file))[1:]
    expected = outcome(case, 0)
    name = os.path.basename(path)
    if expected == SKIPPED:
        [(told, why)] = listed
        assert told == path
        assert re.search(reason, why)
        assert run.brain.n_unreadable == 1
    else:
        assert listed == []
        assert (name in rows) == (expected == WORKS)
        assert expected in (WORKS, SHORT)


def peak_mib():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize(
    "case",
    [
        # Thousands of windows, however small the model.
        pytest.param(case, marks=pytest.mark.slow)
        if case == "two hours"
        else case
        for case in AUDIO
    ],
)
def test_inference(case, model, tmp_path, capsys):
    path, reason = bad_file(case, tmp_path / "audio")
    works = outcome(case, 1) == WORKS
    assert works or outcome(case, 1) == SKIPPED
    paths = [str(tmp_path / "audio" / "good0.wav"), path]
    encoder = AudioEncoder.from_hparams(model)
    unreadable, before = [], peak_mib()
    found = dict(encoder.encode_files(paths, unreadable=unreadable))
    assert all(vector.isfinite().all() for vector in found.values())
    assert (path in found) == works
    if works:
        assert unreadable == []
    else:
        [(told, why)] = unreadable
        assert told == path
        assert re.search(reason, why)
        with pytest.raises(UnreadableAudio, match=reason) as info:
            AudioClassifier.from_hparams(model).classify_file(path)
        assert str(info.value).startswith(path)
    if case == "two hours":
        # As float32 it is 440 MiB. Once is enough of it.
        assert peak_mib() - before < 200
        return
    capsys.readouterr()
    for command, end in ("embed", "npz"), ("classify", "csv"):
        output = tmp_path / f"out.{end}"
        words = [command, model, tmp_path / "audio", "--output", output]
        assert main([str(word) for word in words]) == 0
        said = capsys.readouterr()
        assert f"{3 + works} files" in said.out
        assert ("1 of 4 files could not be read" in said.err) != works
    assert main(["classify", str(model), str(tmp_path / "audio")]) == 0


@pytest.fixture
def amounts(monkeypatch):
    """Samples of each read from a file."""
    read, amounts = soundfile.SoundFile.read, []

    def counted(file, frames, **arguments):
        amounts.append(frames)
        return read(file, frames, **arguments)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    return amounts


def test_inference_reads_two_hours_in_blocks(tmp_path, amounts):
    path, _ = bad_file("two hours", tmp_path / "audio")
    blocks = read_blocks(path, RATE, length=60 * RATE, hop=50 * RATE)
    starts = [start for start, _ in itertools.islice(blocks, 3)]
    assert starts == [0, 50 * RATE, 100 * RATE]
    assert max(amounts) <= 61 * RATE


def test_a_crop_of_two_hours_reads_no_more_than_the_crop(tmp_path, amounts):
    bad_file("two hours", tmp_path / "audio")
    rows, _ = scan_and_write(folder_rows(tmp_path / "audio"), tmp_path / "out")
    run = build("pretrain", {"train": index_rows(rows)}, tmp_path / "out")
    assert len(run.datasets["train"]) == 4
    for number in range(4):
        run.datasets["train"][number]
    assert max(amounts) <= 0.5 * RATE


def test_a_sample_alone_that_is_not_left_out_trains(tmp_path):
    bad_file("one sample", tmp_path / "audio")
    rows, _ = scan_and_write(folder_rows(tmp_path / "audio"), tmp_path / "out")
    assert len(rows) == 4
    run = build(
        "pretrain", {"train": index_rows(rows)}, tmp_path / "out", batch_size=2
    )
    fit(run)
    assert not (tmp_path / "out" / "nonfinite.csv").exists()


# A folder that is named like audio ----------------------------------------

FOLDERS = ["folder named .wav"]


def test_folder_named_like_audio(model, tmp_path):
    audio = tmp_path / "audio"
    audio.mkdir()
    soundfile.write(audio / "good.wav", noise(0.5), RATE)
    folder_with_audio(audio / "bad.wav")
    assert outcome(FOLDERS[0], 0) == outcome(FOLDERS[0], 1) == WORKS
    rows, _ = train(folder_rows(audio), tmp_path / "out")
    assert set(rows) == {"good.wav", os.path.join("bad.wav", "inside.wav")}
    output = tmp_path / "out.npz"
    words = ["embed", model, audio, "--output", output]
    assert main([str(word) for word in words]) == 0
    assert len(np.load(output)["ids"]) == 2
    with pytest.raises(UnreadableAudio, match="bad.wav: no such file"):
        AudioEncoder.from_hparams(model).encode_file(audio / "bad.wav")


# Tables -------------------------------------------------------------------

# Row of the page: the table's text of bytes, what the error says.
GOOD_TABLE = (
    "path,label,split\n"
    "good0.wav,one,train\n"
    "good1.wav,two,train\n"
    "good2.wav,one,valid\n"
    "good3.wav,two,test\n"
)
TABLES = {
    "byte order mark": ("\ufeff" + GOOD_TABLE, ""),
    "CRLF": (GOOD_TABLE.replace("\n", "\r\n"), ""),
    "no column for the path": (
        GOOD_TABLE.replace("path,", "file,"),
        "bad.csv: no column path",
    ),
    "no column for the label": (
        GOOD_TABLE.replace("label", "class"),
        "bad.csv: no column label",
    ),
    "file listed twice": (
        GOOD_TABLE + "good0.wav,two,train\n",
        "line 6: same file as line 2: .*good0.wav",
    ),
    "id given twice": (
        re.sub("^(.*)$", r"x,\1", GOOD_TABLE.rstrip(), flags=re.MULTILINE)
        .replace("x,path", "id,path")
        .replace("x,good1", "y,good1"),
        "line 4: same id as line 2: x",
    ),
    "label unseen in training": (
        GOOD_TABLE.replace("two,test", "three,test"),
        "labels of test that train does not have: three",
    ),
    "missing file": (
        GOOD_TABLE.replace("good3", "gone"),
        "line 5: no such file: .*gone.wav",
    ),
    "folder in place of a file": (
        GOOD_TABLE.replace("good3.wav", "folder.wav"),
        "line 5: no such file: .*folder.wav",
    ),
    "column named twice": (
        re.sub(",(label|one|two)", r",\1,\1", GOOD_TABLE),
        r"columns of the same name: label \(column 2\), label \(column 3\)",
    ),
    "column named twice, not alike in case": (
        re.sub("(,one|,two)", r"\1,x", GOOD_TABLE).replace(
            "label,", "label,Label,"
        ),
        "",
    ),
    "separated by tabs": (
        GOOD_TABLE.replace(",", "\t"),
        "no column path.*; here they are separated by tabs",
    ),
    "separated by semicolons": (
        GOOD_TABLE.replace(",", ";"),
        "no column path.*; here they are separated by semicolons",
    ),
    "backslashes in a path": (
        GOOD_TABLE.replace("good3.wav", "folder.wav\\inside.wav"),
        r"line 5: no such file: .* \(write / in place of \\\)",
    ),
    "name in another Unicode form": (
        GOOD_TABLE.replace("good3", "e\u0301te\u0301"),
        r"line 5: no such file: .* \(its name there has composed accents",
    ),
    "quotes in a path": (
        GOOD_TABLE.replace("good3.wav", "'good3.wav'"),
        r"line 5: no such file: .* \(leave out the quotes\)",
    ),
    "label with an arrow in blanks": (
        GOOD_TABLE.replace("two", "one => two"),
        'line 3: label "one => two" cannot be saved',
    ),
    "one label in training": (
        GOOD_TABLE.replace("two", "one"),
        "every clip of train has the label one",
    ),
    "another encoding": (
        GOOD_TABLE.replace("two", "z\udcfcrich"),
        "bad.csv: not a CSV in UTF-8",
    ),
    "no rows": ("path,label,split\n", "bad.csv: no rows"),
}


@pytest.fixture
def bad_table(request, tmp_path):
    text, reason = TABLES[request.param]
    for number in range(4):
        soundfile.write(tmp_path / f"good{number}.wav", noise(0.4), RATE)
    folder_with_audio(tmp_path / "folder.wav")
    soundfile.write(tmp_path / "\u00e9t\u00e9.wav", noise(0.4), RATE)
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return request.param, path, reason


def prepare_classification(manifest, folder):
    sys.path.insert(0, str(ROOT / "recipes" / "CustomData"))
    try:
        import custom_data_prepare
    finally:
        sys.path.pop(0)
    return custom_data_prepare.prepare_classification(
        manifest, folder, "label", "split", False, 0.1, 0.0
    )


@pytest.mark.parametrize("bad_table", TABLES, indirect=True)
def test_tables(bad_table, model, tmp_path, capsys):
    case, path, reason = bad_table
    in_training, in_inference = (outcome(case, n, "Tables") for n in (0, 1))
    if in_training == "error":
        with pytest.raises(ManifestError, match=reason):
            prepare_classification(str(path), str(tmp_path / "out"))
    else:
        prepare_classification(str(path), str(tmp_path / "out"))
        assert in_training == WORKS
    code = main(["classify", str(model), str(path)])
    error = capsys.readouterr().err
    if in_inference == "error":
        assert code == 2
        assert re.search(reason, error)
        assert "Traceback" not in error
    else:
        assert code == 0, error
        assert in_inference == WORKS


def test_label_unseen_in_training_is_told_by_the_dataset_too(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(0.4), RATE)
    row = {"path": str(tmp_path / "a.wav"), "duration": 0.4, "label": "new"}
    with pytest.raises(ManifestError, match='"new" .1 clips, first a.wav'):
        build("classify", {"train": {"a.wav": row}}, tmp_path / "out")


# Tensors ------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@torch.no_grad()
def test_bad_values_of_a_tensor_stay_in_their_clip(value, model):
    wavs = torch.tensor(noise(0.5, 2).T.copy(), dtype=torch.float32)
    lobe = AudioEncoder.from_hparams(model).lobe
    expected = lobe(wavs)
    wavs[1, 100] = value
    found = lobe(wavs)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
