"""``ssast-lobes tokenizer``: codes fitted to audio, and pretraining on them."""

import pytest
import torch

from ssast_lobes import SpectrogramEncoder
from ssast_lobes.cli import main
from ssast_lobes.objectives import load_objective


def test_codes_are_fitted_and_predicted(tones, tmp_path, capsys):
    """Of the training part alone; a file that is no audio is listed."""
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    codes = tmp_path / "codes.safetensors"
    flags = ["--geometry=[128, 4]", "--codes=6", f"--output={codes}"]
    flags += [str(tones.manifest), str(bad)]
    assert main(["tokenizer", *flags]) == 0
    told = capsys.readouterr()
    assert "12 files left out: valid or test" in told.err
    assert "1 of 13 files could not be read" in told.err
    assert "100 % of the codes are used" in told.out
    first = codes.read_bytes()
    assert main(["tokenizer", *flags]) == 0
    assert codes.read_bytes() == first

    torch.manual_seed(0)
    encoder = SpectrogramEncoder.from_size("micro", geometry=(128, 4))
    tokenizer = {"name": "KMeansTokenizer", "file": str(codes)}
    objective = load_objective("best_rq")(encoder, tokenizer=tokenizer)
    output = objective(torch.randn(2, 64, 128), torch.tensor([64, 50]))
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--codes=99999"], "99999 codes need as many tokens"),
        (["--geometry=hexagon"], "geometry must be one of"),
        (["--statistics=nope"], "nope"),
    ],
)
def test_wrong_options(flags, message, tones, tmp_path, capsys):
    file = tmp_path / "codes.safetensors"
    told = main(["tokenizer", str(tones.folder), f"--output={file}", *flags])
    assert told == 2
    assert message in capsys.readouterr().err
    assert not file.exists()
