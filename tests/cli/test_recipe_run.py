"""Training from anywhere: what the recipe's script does, and no more."""

import subprocess
import sys

import pytest
from safetensors.numpy import load_file

import ssast_lobes
from ssast_lobes.cli import main, recipe_run
from ssast_lobes.cli.recipe_run import script_and_yaml

SMALL = {"crop_seconds": 0.6, "batch_size": 8, "number_of_epochs": 1}
SMALL |= {"num_workers": 0}
WORDS = [f"--{key}={value}" for key, value in SMALL.items()]


def same_weights(one, other):
    one, other = (load_file(f / "model.safetensors") for f in (one, other))
    assert one.keys() == other.keys()
    return all((one[name] == other[name]).all() for name in one)


@pytest.mark.slow
def test_a_call_and_a_command_give_what_the_script_gives(tones, tmp_path):
    by_hand, called, tuned = (tmp_path / name for name in "abc")
    script, hparams_file = script_and_yaml("pretrain")
    model = ["--model_size=micro", "--masker={ratio: 0.5}"]
    subprocess.run(
        [sys.executable, script, hparams_file, f"--audio={tones.manifest}"]
        + [*model, *WORDS, f"--output_folder={by_hand}"],
        check=True,
    )
    export = ssast_lobes.pretrain(
        tones.manifest,
        called,
        "--noprogressbar",
        model_size="micro",
        masker={"ratio": 0.5},
        **SMALL,
    )
    assert export == str(called / "export")
    assert same_weights(by_hand / "export", called / "export")
    words = ["--source", export, *WORDS, "--output_folder", str(tuned)]
    assert main(["finetune", str(tones.manifest), *words]) == 0
    assert (tuned / "test_result.json").is_file()


def test_words_arrive_as_on_the_command_line(tmp_path, monkeypatch):
    """A script of ours in its place shows what it gets."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        f"Path({str(tmp_path / 'seen')!r}).write_text('\\n'.join(sys.argv[1:]))"
        "\nsys.exit(3)\n"
    )
    monkeypatch.setattr(
        recipe_run, "script_and_yaml", lambda command: [str(script), "my.yaml"]
    )
    (tmp_path / "a.csv").touch()
    with pytest.raises(RuntimeError, match="train.py failed"):
        ssast_lobes.pretrain([tmp_path / "a.csv"], tmp_path / "out")
    assert (tmp_path / "seen").read_text().splitlines() == [
        "my.yaml",
        f"--audio=[{tmp_path / 'a.csv'}]",
        f"--output_folder={tmp_path / 'out'}",
    ]
    with pytest.raises(RuntimeError, match="train.py failed"):
        ssast_lobes.finetune(
            tmp_path / "a.csv", "out", "--debug", lr=1e-3, mixup=None
        )
    assert (tmp_path / "seen").read_text().splitlines() == [
        "my.yaml",
        "--debug",
        f"--manifest={tmp_path / 'a.csv'}",
        "--output_folder=out",
        "--lr=0.001",
        "--mixup=null",
    ]


@pytest.mark.slow
def test_the_exit_code_is_the_scripts(capfd, tmp_path):
    missing = str(tmp_path / "nowhere")
    folder = f"--output_folder={tmp_path / 'out'}"
    assert main(["pretrain", missing, "--model_size", "micro", folder]) == 2
    assert f"{missing}: No such file" in capfd.readouterr().err
