"""A torchaudio that does not load is one sentence that names the wheel."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

CALLS = {
    "python": ["-c", "from ssast_lobes import SSAST"],
    "command": ["-m", "ssast_lobes.cli", "embed", "a.wav"]
    + ["--output", "a.npz"],
}
# What the loader says of a library that was built for another torch.
BROKEN = "raise OSError('libtorchaudio.so: undefined symbol: _ZN3c10')"
MISSING = "raise ModuleNotFoundError(\"No module named 'torchaudio'\")"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("torchaudio", [BROKEN, MISSING])
def test_unfitting_torchaudio_says_what_to_install(call, torchaudio, tmp_path):
    (tmp_path / "torchaudio.py").write_text(torchaudio)
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, *CALLS[call]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    last = result.stderr.splitlines()[-1]
    assert f"does not load next to torch {metadata.version('torch')}" in last
    assert "`pip install --force-reinstall --no-deps " in last
    assert torchaudio.split("(")[1][1:10] in last
    if call == "command":
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("torch", "wheel"),
    [
        ("2.7.1", "torchaudio==2.7.1`"),
        ("2.10.0+cu128", "torchaudio==2.10.0 --index-url https://"),
        ("2.11.0", "'torchaudio>=2.11.1'`"),
        ("2.14.1+cpu", "'torchaudio>=2.11.1' --index-url https://"),
    ],
)
def test_wheel_fits_the_torch(torch, wheel, tmp_path, monkeypatch):
    from ssast_lobes.utils.dependencies import (
        UnusableTorchaudio,
        check_torchaudio,
    )

    monkeypatch.setattr(metadata, "version", {"torch": torch}.get)
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(UnusableTorchaudio, match="does not load") as caught:
        check_torchaudio()
    assert wheel in str(caught.value)
