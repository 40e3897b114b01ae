"""Damaged and hostile files: a clear error or a result, and nothing is run.

Each case flips bytes of a good file, cuts it off, or puts other bytes in, by
a seed. What is then read must load, or raise one of our own errors; any other
exception fails the test.
"""

import io
import json
import os
import random
import re
import shutil
import tarfile
import traceback
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from classifier_kit import classifier_of
from scan_kit import scan_and_write
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.classifiers import EncoderClassifier

from ssast_lobes import FrontEnd, Grid, SpectrogramEncoder
from ssast_lobes.checkpoints.folder import (
    export_classifier,
    export_encoder,
    label_encoder_of,
)
from ssast_lobes.checkpoints.format import Weights, WeightsError
from ssast_lobes.checkpoints.huggingface_export import to_huggingface
from ssast_lobes.checkpoints.linear_heads import read_head
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.official import to_official
from ssast_lobes.dataio.archives import unpack
from ssast_lobes.dataio.audio import audio_info, read_audio
from ssast_lobes.dataio.download import ArchiveError
from ssast_lobes.dataio.tables import ManifestError, read_manifest
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.inference import AudioClassifier
from ssast_lobes.inference.speechbrain import load_labels
from ssast_lobes.objectives import MSPM
from ssast_lobes.training import experiment
from ssast_lobes.training.checkpointer import (
    _SUMS_FILE,
    AtomicCheckpointer,
    CheckpointError,
    _write_sums,
)
from ssast_lobes.training.errors import SettingsError

ROOT = Path(__file__).parents[2]
CASES = 60


def damaged(content, draw):
    """The bytes of a file after one of the accidents that happen to files."""
    content = bytearray(content)
    kind = draw.choice(["flip", "flips", "cut", "zeros", "garbage", "twice"])
    # Headers are short, and tell most.
    reach = draw.choice([len(content), min(len(content), 80)])
    at = draw.randrange(reach)
    if kind == "flip":
        content[at] ^= 1 << draw.randrange(8)
    elif kind == "flips":
        for _ in range(draw.randint(2, 30)):
            content[draw.randrange(reach)] = draw.randrange(256)
    elif kind == "cut":
        del content[at:]
    elif kind == "twice":
        content[at:at] = content[: draw.randrange(len(content))]
    else:
        length = draw.randint(1, 200)
        other = bytes(length) if kind == "zeros" else draw.randbytes(length)
        content[at : at + length] = other
    return bytes(content)


def fuzz(path, load, errors, seed=0, cases=CASES):
    """Damage a file again and again; count what loads and what is refused."""
    draw, good = random.Random(seed), path.read_bytes()
    loaded = refused = 0
    for case in range(cases):
        path.write_bytes(damaged(good, draw))
        try:
            load(path)
            loaded += 1
        except errors as error:
            assert str(error).strip(), f"seed {seed}, case {case}"
            refused += 1
        except Exception as error:
            raise AssertionError(
                f"seed {seed}, case {case}: {type(error).__name__}: {error}"
            ) from error
    path.write_bytes(good)
    load(path)
    assert refused
    return loaded, refused


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return export_classifier(
        tmp_path_factory.mktemp("model") / "export",
        classifier_of(Grid(128, (32, 32)), table_frames=128),
        FrontEnd(),
        label_encoder_of(["one", "two", "three"]),
        False,
        card={},
    )


@pytest.fixture
def export(model, tmp_path):
    return Path(shutil.copytree(model, tmp_path / "export"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_exports(name, export):
    def load(path):
        classifier = AudioClassifier.from_hparams(path.parent)
        classifier.classify_batch(torch.zeros(1, 8000))

    fuzz(export / name, load, WeightsError)


def test_labels_of_exports(export):
    fuzz(
        export / "label_encoder.txt",
        lambda path: load_labels(CategoricalEncoder(), path),
        WeightsError,
    )


def test_official_checkpoints(tmp_path):
    objective = MSPM(classifier_of(Grid(128, (16, 16))).encoder)
    path = tmp_path / "model.pth"
    state = {
        f"encoder.{k}": v for k, v in objective.encoder.state_dict().items()
    }
    config = {"encoder": objective.encoder.config}
    torch.save(to_official(Weights(state, config)), path)
    fuzz(path, load_weights, WeightsError)


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("name", ["CKPT.yaml", "m.ckpt", _SUMS_FILE])
def test_checkpoints(name, sums, tmp_path):
    if name == _SUMS_FILE and not sums:
        pytest.skip("nothing to damage")
    model = torch.nn.Linear(3, 2)
    folder = tmp_path / "save"
    folder.mkdir()
    checkpointer = AtomicCheckpointer(folder, {"m": model})
    saved = checkpointer.save_checkpoint(meta={"loss": 0.5}, name="a").path
    if not sums:
        (saved / _SUMS_FILE).unlink()
    expected = model.weight.detach().clone()

    draw, good = random.Random(0), (saved / name).read_bytes()
    passed = 0
    for case in range(CASES):
        content = damaged(good, draw)
        (saved / name).write_bytes(content)
        torch.nn.init.zeros_(model.weight)
        try:
            checkpointer.recover_if_possible()
            if sums:
                assert torch.equal(model.weight, expected), case
        except CheckpointError as error:
            assert str(saved.parent) in str(error)
            passed += 1
        aside = folder / "damaged-CKPT+a"
        if aside.exists():
            aside.rename(saved)
        (saved / name).write_bytes(good)
    assert passed
    checkpointer.recover_if_possible()
    assert torch.equal(model.weight, expected)


def test_state_of_an_experiment(tmp_path):
    recipe, folder = tmp_path / "train.yaml", tmp_path / "out"
    recipe.write_text(
        "lr: 0.1\nsource: null\nopt_class: !name:torch.optim.AdamW\n"
        "    lr: !ref <lr>\n    betas: [0.9, 0.98]\n"
    )

    def start(path):
        with experiment(recipe, "", folder):
            pass

    start(folder)
    (folder / "save" / "CKPT+1").mkdir(parents=True)
    fuzz(folder / "save/settings.json", start, SettingsError)


def test_statistics(tmp_path):
    path = tmp_path / "statistics.yaml"
    path.write_text("# of 3 files\nmean: -4.5\nstd: 4.25\n")
    fuzz(path, lambda path: FrontEnd(statistics=str(path)), ValueError)


def test_manifests_and_lists(tmp_path):
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(1600), 16000)
    path = tmp_path / "table.csv"
    path.write_text("path,label\na.wav,x\nb.wav,y\nc.wav,x\n")
    fuzz(path, lambda p: read_manifest(p, ["path", "label"]), ManifestError)
    rows = read_manifest(path)
    scan_and_write(rows, tmp_path / "out")
    # A list of durations is there to save time: never an error.
    draw, cache = random.Random(0), tmp_path / "out/save/durations.csv"
    good = cache.read_bytes()
    for _ in range(20):
        cache.write_bytes(damaged(good, draw))
        found, unreadable = scan_and_write(rows, tmp_path / "out", workers=1)
        assert len(found) == 3 and not unreadable


@pytest.mark.parametrize(
    "name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.au", "a.caf"]
)
def test_audio(name, tmp_path):
    path = tmp_path / name
    draw = np.random.default_rng(0)
    soundfile.write(path, draw.uniform(-0.5, 0.5, (3000, 2)), 16000)

    def load(path):
        info = audio_info(path)
        wav = read_audio(path)
        assert wav.dim() == 1 and wav.dtype == torch.float32 and len(wav)
        assert wav.isfinite().all()
        crop = read_audio(path, start=info.seconds / 2, seconds=0.01)
        assert crop.isfinite().all()

    fuzz(path, load, UnreadableAudio)


# Archives -----------------------------------------------------------------


def tarred(path, kind=None):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name in ("data/a.txt", "data/deep/b.txt"):
            member = tarfile.TarInfo(name)
            member.size = 400
            archive.addfile(member, io.BytesIO(bytes(range(200)) * 2))
        if kind is not None:
            member = tarfile.TarInfo("data/bad")
            member.type, member.linkname = kind, "data/a.txt"
            archive.addfile(member)


def zipped(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("data/a.txt", "data/deep/b.txt"):
            archive.writestr(name, bytes(range(200)) * 2)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_archives(name, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    path = home / name
    (zipped if name.endswith("zip") else tarred)(path)

    def load(path):
        out = home / "deep" / "out"
        shutil.rmtree(home / "deep", ignore_errors=True)
        try:
            unpack(path, out)
        finally:
            assert [p.name for p in tmp_path.iterdir()] == ["home"]
            there = {p.name for p in home.iterdir()}
            assert there <= {name, "deep"}

    fuzz(path, load, ArchiveError)


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
    ],
)
def test_links_and_devices_of_archives(kind, tmp_path):
    tarred(tmp_path / "a.tar", kind)
    with pytest.raises(ArchiveError, match="data/bad is a link or a device"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not (tmp_path / "out" / "data").exists()


# Code in data -------------------------------------------------------------


class Evil:
    """Pickled, it would make a folder where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    folder = tmp_path / "save"
    folder.mkdir()
    checkpointer = AtomicCheckpointer(folder, {"m": torch.nn.Linear(1, 1)})
    saved = checkpointer.save_checkpoint().path
    torch.save(Evil(tmp_path / "run"), saved / "m.ckpt")
    _write_sums(saved)  # as somebody would who means harm
    with pytest.raises(CheckpointError, match="cannot be resumed") as error:
        checkpointer.recover_if_possible()
    told = "".join(traceback.format_exception(error.value))
    assert "mkdir" in told and "weights_only" not in told
    meta = yaml.safe_load((saved / "CKPT.yaml").read_text())
    tag = "!!python/object/apply:os.mkdir"
    text = f"{yaml.safe_dump(meta)}x: {tag} [{tmp_path / 'run'}]\n"
    (saved / "CKPT.yaml").write_text(text)
    _write_sums(saved)
    with pytest.raises(CheckpointError, match="CKPT.yaml is unreadable"):
        checkpointer.recover_if_possible()
    assert not (tmp_path / "run").exists()


def test_code_in_an_export_is_not_run(export, tmp_path):
    torch.save(Evil(tmp_path / "run"), export / "pytorch_model.bin")
    text = f"x: !!python/object/apply:os.mkdir [{tmp_path / 'run'}]\n"
    for name in ("hyperparams.yaml", "statistics.yaml"):
        (export / name).write_text(text)
    AudioClassifier.from_hparams(export)
    with pytest.raises(ValueError):
        FrontEnd(statistics=str(export / "statistics.yaml"))
    torch.save(Evil(tmp_path / "run"), export / "model.safetensors")
    with pytest.raises(WeightsError):
        AudioClassifier.from_hparams(export)
    with pytest.raises(WeightsError):
        load_weights(export / "pytorch_model.bin")
    config = json.loads((export / "config.json").read_text())
    config["encoder"]["dim"] = f"!!python/object/apply:os.mkdir {tmp_path}/run"
    (export / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError):
        AudioClassifier.from_hparams(export)
    assert not (tmp_path / "run").exists()


NOT_WEIGHTS = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:0123456789abcdef\nsize 348000000\n",
    r"a web page \(HTML\)": b"\xef\xbb\xbf\n<!DOCTYPE html>\n<body>Log in",
}
DOORS = {
    "official": ("a.pth", "a.pth"),
    "pickled": ("a.bin", "a.bin"),
    "safetensors": ("a.safetensors", "a.safetensors"),
    "export": ("export/model.safetensors", "export"),
    "Hugging Face": ("theirs/model.safetensors", "theirs"),
    "Hugging Face, pickled": ("theirs/pytorch_model.bin", "theirs"),
}


@pytest.fixture
def theirs(tmp_path):
    """Hugging Face's folder without weights."""
    encoder = SpectrogramEncoder(Grid(), dim=64, depth=1, heads=1)
    ours = export_encoder(tmp_path / "ours", encoder, FrontEnd(), card={})
    to_huggingface(load_weights(ours), tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").unlink()


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("what", NOT_WEIGHTS)
def test_what_is_no_file_of_weights_is_called_so(
    what, door, export, theirs, tmp_path
):
    file, source = (tmp_path / name for name in door)
    file.write_bytes(NOT_WEIGHTS[what])
    message = f"^{re.escape(str(file))}: {what}, not the"
    with pytest.raises(WeightsError, match=message):
        load_weights(source)


def test_a_pointer_in_place_of_a_head_or_the_weights_of_speechbrain(export):
    [content, *_] = NOT_WEIGHTS.values()
    (export / "heads").mkdir()
    (export / "heads" / "a.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="a.safetensors: .* LFS pointer"):
        read_head(export, "a")
    (export / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="model.safetensors: .* LFS pointer"):
        EncoderClassifier.from_hparams(source=str(export))


@pytest.mark.parametrize("door", ["a.pth", "theirs/pytorch_model.bin"])
@pytest.mark.parametrize(
    "content", ["code", "code, as before torch 1.6", "tar", "garbage"]
)
def test_a_refused_file_comes_without_advice_to_run_it(
    content, door, theirs, tmp_path
):
    path = tmp_path / door
    source = path if door == "a.pth" else path.parent
    if content.startswith("code"):
        new = content == "code"
        evil = Evil(tmp_path / "run")
        torch.save(evil, path, _use_new_zipfile_serialization=new)
    elif content == "tar":
        tarred(path)
    else:
        path.write_bytes(b"garbage")
    with pytest.raises(WeightsError) as error:
        load_weights(source)
    told = "".join(traceback.format_exception(error.value))
    assert f"{path}: " in told
    assert "weights_only" not in told and "safe_globals" not in told
    if content.startswith("code"):
        assert re.search(r"a Python object \(\w+\.mkdir\)", told)
    assert not (tmp_path / "run").exists()


def test_nothing_advises_to_load_by_pickle():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    pages += ROOT.glob("recipes/**/*.md")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"weights_only\W+False|add_safe_globals", text)


def test_nothing_is_loaded_by_pickle():
    pattern = r"pickle\.load|yaml\.(unsafe_|full_)?load\(|weights_only=False"
    pattern += r"|allow_pickle=True|joblib|extractall|(?<![.\w])(eval|exec)\("
    sources = [*ROOT.glob("ssast_lobes/**/*.py"), *ROOT.glob("recipes/**/*.py")]
    found = [
        line
        for path in sources
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
    ]
    # This one is a yaml.SafeLoader that makes None of what builds an object.
    assert [line for line in found if "_PlainLoader" not in line] == []
