"""ASVspoof 2019 LA is prepared by its protocol files; errors name the cause."""

import importlib.util
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import miniature_asvspoof2019
import pytest

from ssast_lobes.dataio.splits import read_splits
from ssast_lobes.dataio.tables import ManifestError

RECIPE = Path(__file__).parents[2] / "recipes" / "ASVspoof2019"
TRAIN = "ASVspoof2019.LA.cm.train.trn.txt"


@pytest.fixture(scope="module")
def script():
    path = RECIPE / "asvspoof2019_prepare.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archive(tmp_path):
    """Folder that has `LA`, of 36 clips."""
    return miniature_asvspoof2019.make(tmp_path / "data", seconds=0.2)


@pytest.fixture
def prepare(script, archive, tmp_path):
    """The script with what the miniature needs; gives the parts."""

    def run(folder=archive, **more):
        settings = {"require_counts": False, **more}
        path = script.prepare_asvspoof2019(folder, tmp_path / "out", **settings)
        return read_splits(path)

    return run


def change_protocol(archive, change):
    """Rewrite the training protocol, its lines changed by a function."""
    path = archive / "LA" / "ASVspoof2019_LA_cm_protocols" / TRAIN
    lines = change(path.read_text().splitlines())
    path.write_text("\n".join(lines) + "\n")
    return path


def test_official_parts(prepare, archive):
    parts = prepare()
    assert parts["labels"] == ["bonafide", "spoof"]
    for name, letter in (("train", "T"), ("valid", "D"), ("test", "E")):
        assert len(parts[name]) == 12
        assert {clip[:5] for clip in parts[name]} == {f"LA_{letter}_"}
        labels = [row["label"] for row in parts[name].values()]
        assert labels.count("bonafide") == 4
    attacks = {row["attack"] for row in parts["test"].values()}
    assert attacks == {"none", "A07", "A19"}
    row = parts["train"]["LA_T_1000007"]
    assert (row["speaker"], row["label"]) == ("LA_0079", "bonafide")
    assert prepare(archive / "LA") == parts


def test_clips_that_no_protocol_lists_are_left_out(prepare, archive):
    # The official folders hold enrolment speech next to the trials.
    flac = archive / "LA" / "ASVspoof2019_LA_dev" / "flac"
    shutil.copy(next(flac.iterdir()), flac / "LA_D_A0000001.flac")
    assert "LA_D_A0000001" not in prepare()["valid"]


def test_counts_of_a_part_of_the_archive(prepare, script):
    with pytest.raises(ManifestError) as error:
        prepare(require_counts=True)
    told = str(error.value)
    assert "train bonafide: 4, published 2580" in told
    assert "eval spoof: 8, published 63882" in told
    totals = [
        sum(n for name, n in script.COUNTS.items() if name.startswith(part))
        for part in ("train", "dev", "eval")
    ]
    assert totals == [25380, 24844, 71237]


@pytest.mark.parametrize(
    "name", ["ASVspoof2019_LA_cm_protocols", "ASVspoof2019_LA_eval/flac"]
)
def test_missing_part_of_the_archive(prepare, archive, name):
    shutil.rmtree(archive / "LA" / name)
    with pytest.raises(ManifestError) as error:
        prepare(archive / "LA" if "eval" in name else archive)
    assert f"missing there: {name}. " in str(error.value)
    assert "datashare.ed.ac.uk/handle/10283/3336" in str(error.value)


def test_missing_protocol(prepare, archive):
    change_protocol(archive, lambda lines: lines).unlink()
    with pytest.raises(ManifestError, match="no such protocol file"):
        prepare()


@pytest.mark.parametrize(
    "line", ["LA_0079 LA_T_1 - A01", "LA_0079 LA_T_1 - A01 fake", ""]
)
def test_broken_line_of_a_protocol(prepare, archive, line):
    path = change_protocol(archive, lambda lines: [*lines, line])
    with pytest.raises(ManifestError) as error:
        prepare()
    assert f'{path}, line 13: "{line}" is not' in str(error.value)


def test_listed_files_that_are_not_there(prepare, archive):
    gone = archive / "LA/ASVspoof2019_LA_train/flac/LA_T_1000007.flac"
    gone.unlink()
    with pytest.raises(ManifestError, match="1 problem with") as error:
        prepare()
    assert f"no such file: {gone}" in str(error.value)


def test_clip_that_is_listed_twice(prepare, archive):
    change_protocol(archive, lambda lines: [*lines, lines[0]])
    with pytest.raises(ManifestError, match="the id LA_T_1000007: in train"):
        prepare()


def test_class_without_training_clips(prepare, archive):
    change_protocol(
        archive, lambda lines: [x for x in lines if x.endswith("spoof")]
    )
    with pytest.raises(ManifestError, match="train has the label bonafide"):
        prepare()


def test_truncated_audio(prepare, archive):
    path = archive / "LA/ASVspoof2019_LA_eval/flac/LA_E_1000007.flac"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ManifestError, match="1 of 36 .*unreadable.csv"):
        prepare()
    assert len(prepare(max_unreadable=0.1)["test"]) == 11


def test_download(prepare, script, archive, tmp_path, monkeypatch):
    served = tmp_path / "served"
    shutil.make_archive(served / "LA", "zip", archive)
    with pytest.raises(ManifestError, match="--allow_download True"):
        prepare(tmp_path / "new")
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/LA.zip"
        monkeypatch.setattr(script, "URL", url)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        parts = prepare(tmp_path / "new", allow_download=True)
        server.shutdown()
        thread.join()
    # There is no server any more, and no need of one.
    assert prepare(tmp_path / "new", allow_download=True) == parts
