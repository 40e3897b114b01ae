"""``ssast-lobes tokenizer``: codes of audio, and pretraining on them."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ssast_lobes import (
    FrontEnd,
    Grid,
    KMeansTokenizer,
    SpectrogramEncoder,
    StoredTokenizer,
)
from ssast_lobes.checkpoints.folder import export_pretrained
from ssast_lobes.cli import main, tokenizer_encode, tokenizer_fit
from ssast_lobes.cli.tokenizer_encode import encode_clip
from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.objectives import MSPM, load_objective
from ssast_lobes.objectives.tokenizers import fit_kmeans, make_features

GEOMETRY = (128, 4)


def fitted(folder, inputs, *flags):
    """Fit six codes to the inputs; returns the file."""
    codes = folder / "codes.safetensors"
    words = [f"--geometry={list(GEOMETRY)}", "--codes=6", f"--output={codes}"]
    words += [*flags, *map(str, inputs)]
    assert main(["tokenizer", "fit", *words]) == 0
    return codes


@pytest.fixture(scope="module")
def codes(tones, tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("codes"), [tones.manifest])


def test_codes_are_fitted_and_predicted(tones, tmp_path, capsys):
    """Of the training part alone; a file that is no audio is listed."""
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    codes = fitted(tmp_path, [tones.manifest, bad])
    told = capsys.readouterr()
    assert "12 files left out: valid or test" in told.err
    assert "1 of 13 files could not be read" in told.err
    assert "100 % of the codes are used" in told.out
    first = codes.read_bytes()
    fitted(tmp_path, [tones.manifest, bad])
    assert codes.read_bytes() == first

    torch.manual_seed(0)
    encoder = SpectrogramEncoder.from_size("micro", geometry=GEOMETRY)
    tokenizer = {"name": "KMeansTokenizer", "files": [str(codes)]}
    objective = load_objective("best_rq")(encoder, tokenizer=tokenizer)
    output = objective(torch.randn(2, 64, 128), torch.tensor([64, 50]))
    assert torch.isfinite(output.loss)


def test_a_stopped_fit_resumes(tones, codes, tmp_path, monkeypatch, capsys):
    """Parts that were gathered are not read again; the codes are the same."""
    monkeypatch.setattr(tokenizer_fit, "FILES_AT_ONCE", 5)
    whole = fitted(tmp_path, [tones.manifest]).read_bytes()
    (tmp_path / "codes.safetensors").unlink()
    reads = []

    def read_until_stopped(path, **options):
        reads.append(path)
        if len(reads) == 8:
            raise KeyboardInterrupt
        return read_audio(path, **options)

    monkeypatch.setattr(tokenizer_fit, "read_audio", read_until_stopped)
    words = [f"--geometry={list(GEOMETRY)}", "--codes=6", str(tones.manifest)]
    words = [
        "tokenizer",
        "fit",
        *words,
        f"--output={tmp_path}/codes.safetensors",
    ]
    assert main(words) == 130
    assert "run the same again to resume" in capsys.readouterr().err
    assert main(words) == 0
    # The part of the last two files that were read is read again.
    assert len(reads) == 8 + 12 - 5 and reads[8] == reads[5]
    assert (tmp_path / "codes.safetensors").read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["codes.safetensors"]


def encoded(codes, folder, *inputs):
    words = [f"--tokenizer={codes}", f"--output={folder}", *map(str, inputs)]
    assert main(["tokenizer", "encode", *words]) == 0


def test_ids_of_files_are_those_of_the_tokenizer(
    tones, codes, tmp_path, capsys
):
    """Of whole clips, and of crops that begin with a token."""
    encoded(codes, tmp_path, tones.manifest)
    assert "100 % of the codes occur" in capsys.readouterr().out
    grid = Grid(128, GEOMETRY)
    stored, direct = (
        StoredTokenizer(grid, tmp_path),
        KMeansTokenizer(grid, [codes]),
    )
    wav = read_audio(tones.folder / "noise_3.wav")
    feats, n_frames = FrontEnd()(wav[None])
    expected = direct(feats)
    place = {"clip_ids": ["noise_3.wav"], "crop_starts": torch.tensor([0])}
    assert torch.equal(stored(feats, n_frames, **place), expected)
    # The crop begins with the sixth token, 40 ms each.
    place["crop_starts"] = torch.tensor([5 * 640])
    feats, n_frames = feats[:, 20:], n_frames - 20
    assert torch.equal(stored(feats, n_frames, **place), expected[:, 5:])
    assert np.load(tmp_path / "noise_3.wav.npy").dtype == np.int16


def test_several_tokenizers_are_books(tones, codes, tmp_path, capsys):
    chroma = fitted(tmp_path, [tones.manifest], "--features=chroma")
    words = [f"--tokenizer={codes}", f"--tokenizer={chroma}"]
    words += [f"--output={tmp_path / 'ids'}", str(tones.manifest)]
    assert main(["tokenizer", "encode", *words]) == 0
    told = capsys.readouterr().out
    for file in (codes, chroma):
        assert f"{file}: 100 % of the codes occur, entropy 0." in told
    ids = np.load(tmp_path / "ids/noise_3.wav.npy")
    assert ids.shape[1:] == (1, 2)
    words = [str(tones.manifest), "--tokenizer", str(codes), str(chroma)]
    assert main(["tokenizer", "encode", *words, "--output=ids"]) == 2
    assert "a --tokenizer of its own" in capsys.readouterr().err
    encoded(codes, tmp_path / "one", tones.manifest)
    assert (np.load(tmp_path / "one/noise_3.wav.npy") == ids[..., :1]).all()


def test_collapsed_codes_are_told_with_their_numbers(tones, tmp_path, capsys):
    """Twenty codes far away from all tokens but one."""
    file = tmp_path / "far.safetensors"
    words = [f"--geometry={list(GEOMETRY)}", f"--output={file}", "--codes=20"]
    assert main(["tokenizer", "fit", *words, str(tones.manifest)]) == 0
    with safe_open(file, "pt") as content:
        told = content.metadata()
        tensors = {key: content.get_tensor(key) for key in content.keys()}
    tensors["centers"][1:] += 1000
    save_file(tensors, file, told)
    sound = fitted(tmp_path, [tones.manifest])
    words = [f"--tokenizer={sound}", f"--tokenizer={file}"]
    words += [f"--output={tmp_path / 'ids'}", str(tones.manifest)]
    # The second time all files are skipped.
    for _ in range(2):
        assert main(["tokenizer", "encode", *words]) == 2
        message = "far.safetensors: the codes have collapsed: 5 % of 20 are us"
        assert message in capsys.readouterr().err
    assert (tmp_path / "ids/noise_3.wav.npy").exists()


def test_long_files_are_encoded_in_windows(monkeypatch, tmp_path):
    """Codes of pixels stay; those of a block are those of a window."""
    grid = Grid(128, GEOMETRY)
    torch.manual_seed(0)
    frozen = SpectrogramEncoder(grid, dim=32, depth=2, heads=2)
    block = {"encoder": frozen.config, "features": FrontEnd().config}
    wavs = torch.randn(1, 16000 * 9 + 123).cumsum(1)
    wavs /= wavs.abs().max()
    feats, n_frames = FrontEnd()(wavs)
    n_samples = torch.tensor([wavs.shape[1]])
    lengths = []
    monkeypatch.setattr(tokenizer_encode, "WINDOW_SECONDS", 2.0)
    monkeypatch.setattr(tokenizer_encode, "CONTEXT_SECONDS", 0.5)
    for name, more in (("logmel", {}), ("block", {**block, "block": 2})):
        features = make_features(name, grid, **more)
        audio = (wavs, n_samples) if features.needs_audio else ()
        x = features(feats, n_frames, *audio)[0]
        fit_kmeans(features, x, tmp_path / name, 8, FrontEnd())
        tokenizer = KMeansTokenizer(grid, [tmp_path / name])
        expected = tokenizer(
            feats, n_frames, wavs=wavs, n_samples=n_samples
        ).transpose(0, 1)
        tokenizer.register_forward_pre_hook(
            lambda _, given: lengths.append(given[0].shape[1])
        )
        ids = encode_clip(wavs, tokenizer, FrontEnd())
        assert ids.shape == expected.shape
        if name == "logmel":
            assert torch.equal(ids, expected)
    # The second window is steps 50 to 99, heard from 38 to 111.
    part = wavs[:, 38 * 640 : 112 * 640 + 240]
    feats, n_frames = FrontEnd()(part)
    n_samples = torch.tensor([part.shape[1]])
    heard = tokenizer(feats, n_frames, wavs=part, n_samples=n_samples)
    assert torch.equal(ids[50:100, 0], heard[0, 12:62])
    assert len(ids.unique()) > 2
    # At most 2 s and a context on both sides.
    assert max(lengths) <= 301


def test_encode_skips_what_is_there(tones, codes, tmp_path, capsys):
    encoded(codes, tmp_path, tones.manifest)
    files = sorted(tmp_path.glob("*.npy"))
    assert len(files) == 24
    before = files[0].read_bytes()
    files[0].unlink()
    untouched = files[1].stat().st_mtime_ns
    capsys.readouterr()
    encoded(codes, tmp_path, tones.manifest)
    assert "23 files skipped: their ids are there" in capsys.readouterr().out
    assert files[0].read_bytes() == before
    assert files[1].stat().st_mtime_ns == untouched
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:30])
    words = [f"--tokenizer={codes}", f"--output={tmp_path}"]
    assert main(["tokenizer", "encode", *words, str(tones.manifest)]) == 2
    assert f"{files[1]} is damaged, remove it" in capsys.readouterr().err
    files[1].write_bytes(whole)
    other = json.loads((tmp_path / "codes.json").read_text())
    (tmp_path / "codes.json").write_text(json.dumps({**other, "n_codes": 7}))
    words = [f"--tokenizer={codes}", f"--output={tmp_path}"]
    assert main(["tokenizer", "encode", *words, str(tones.manifest)]) == 2
    assert "ids of another tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("features", ["chroma", "block:1"])
def test_codes_of_the_waveform(features, tones, tmp_path):
    """Also of an encoder with other mel bins and patches than the student."""
    flags = [f"--features={features}"]
    if features == "block:1":
        torch.manual_seed(0)
        frozen = SpectrogramEncoder(Grid(64, (64, 6)), dim=32, depth=2, heads=2)
        export_pretrained(tmp_path / "e", MSPM(frozen), FrontEnd(n_mels=64), {})
        flags.append(f"--encoder={tmp_path / 'e'}")
    codes = fitted(tmp_path, [tones.manifest], *flags)
    encoder = SpectrogramEncoder(
        Grid(128, GEOMETRY), dim=32, depth=2, heads=2, table_frames=160
    )
    tokenizer = {"name": "KMeansTokenizer", "files": [str(codes)]}
    objective = load_objective("best_rq")(encoder, tokenizer=tokenizer)
    assert objective.needs_audio
    wavs = read_audio(tones.folder / "chirp_0.wav")[None]
    feats, n_frames = FrontEnd()(wavs)
    n_samples = torch.tensor([wavs.shape[1]])
    ids = objective.tokenizer(feats, n_frames, wavs=wavs, n_samples=n_samples)
    assert ids.shape == (1, Grid(128, GEOMETRY).n_time(int(n_frames)), 1)
    assert len(ids.unique()) > 1
    if features == "block:1":
        # What is saved is what is needed: one block of two.
        assert not any(
            "blocks.1" in key for key in objective.tokenizer.state_dict()
        )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--codes=99999"], "99999 codes need as many tokens"),
        (["--geometry=hexagon"], "geometry must be one of"),
        (["--statistics=nope"], "nope"),
        (["--features=block:2"], "give --encoder MODEL with"),
        (["--encoder=micro"], "give --encoder MODEL with"),
    ],
)
def test_wrong_options(flags, message, tones, tmp_path, capsys):
    file = tmp_path / "codes.safetensors"
    words = ["fit", str(tones.folder), f"--output={file}", *flags]
    assert main(["tokenizer", *words]) == 2
    assert message in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.parametrize("word", ["melody", "block", "block:x", "chroma:2"])
def test_features_that_there_are_not(word, capsys):
    with pytest.raises(SystemExit):
        main(["tokenizer", "fit", "a", f"--features={word}", "--output=a"])
    assert f"'{word}' is none of logmel" in capsys.readouterr().err


def test_a_tokenizer_of_another_rate_encodes_nothing(tones, tmp_path, capsys):
    encoder = SpectrogramEncoder({"patch": GEOMETRY}, dim=32, depth=1, heads=2)
    objective = load_objective("vector_quantizer_small_data")(encoder)
    objective.usage.unused_for.zero_()
    folder = tmp_path / "quantizer"
    export_pretrained(folder, objective, FrontEnd(sample_rate=32000), card={})
    words = [f"--tokenizer={folder}", f"--output={tmp_path / 'codes'}"]
    assert main(["tokenizer", "encode", *words, str(tones.manifest)]) == 2
    assert "takes 32000 Hz, not 16000" in capsys.readouterr().err
    assert not (tmp_path / "codes").exists()


@pytest.mark.slow
def test_pretrain_quantize_pretrain_again(tones, tmp_path, monkeypatch):
    """The three commands of the docs, and codes from files in a fourth."""
    monkeypatch.chdir(tmp_path)
    words = ["--crop_seconds=0.6", "--batch_size=6"]
    words += ["--number_of_epochs=1", "--num_workers=0", "--noprogressbar"]

    def pretrain(name, objective, *more):
        words_of_run = [f"--objective={objective}", f"--output_folder={name}"]
        command = ["pretrain", str(tones.manifest), *words_of_run, *more]
        assert main([*command, *words]) == 0
        return json.loads((tmp_path / name / "export/config.json").read_text())

    micro = "--model_size=micro"
    pretrain("first", "beats_small_data", micro)
    source = "--source=first/export"
    pretrain("quantizer", "vector_quantizer_small_data", source)
    for name, folder in (
        ("VectorQuantizerTokenizer", "quantizer/export"),
        ("StoredTokenizer", "codes"),
    ):
        (tmp_path / "again.yaml").write_text(
            "base: beats\nobjective:\n"
            f"    tokenizer: !name:ssast_lobes.{name}\n"
            f"        folder: {folder}\n"
        )
        if folder == "codes":
            encoded("quantizer/export", folder, tones.manifest)
        config = pretrain(name, "again.yaml", micro)
        assert config["objective"]["tokenizer"]["name"] == name
