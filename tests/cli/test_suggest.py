"""``ssast-lobes suggest``: counts, advice, and where its numbers are from."""

import json
import re
import shutil
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import soundfile

from ssast_lobes.cli import main
from ssast_lobes.cli.suggest import BY_HOURS, BY_LABELS, table

ROOT = Path(__file__).parents[2]
TRANSFER = ROOT / "experiments/transfer"


def scores(report):
    """Return the mean test scores of a report, in percent, by method."""
    methods = {}
    text = (TRANSFER / f"{report}.json").read_text("utf-8")
    for row in json.loads(text)["scores"]:
        name = (row["system"], row["how"])
        methods.setdefault(name, []).append(100 * row["mean"])
    return methods


@pytest.mark.parametrize(
    "report, advice",
    [("few_labels", BY_LABELS[2]), ("five_tasks", BY_LABELS[3])],
)
def test_numbers_by_labels_are_those_measured(report, advice):
    of = scores(report)
    frozen, fine_tuned, scratch = (
        of["pretrained", "linear"],
        of["pretrained", "fine-tuned"],
        of["scratch", "trained"],
    )
    told = [float(x) for x in re.findall(r"(\d+\.\d) %", advice.why)]
    expected = map(mean, (frozen, fine_tuned, scratch))
    assert told == pytest.approx(list(expected), abs=0.05)
    better = sum(a > b for a, b in zip(frozen, fine_tuned, strict=True))
    words = {2: "frozen was better on two", 1: "fine-tuned was better on four"}
    assert words[better] in advice.why


def test_numbers_of_fewer_labels_are_those_measured():
    told = [float(x) for x in re.findall(r"(\d+\.\d) %", BY_LABELS[1].why)]
    expected = [
        mean(scores(f"fewer_labels_{n}")[system, "linear"])
        for n in (2, 5)
        for system in ("pretrained", "untrained")
    ]
    assert told == pytest.approx(expected, abs=0.05)


def test_numbers_by_hours_are_those_measured():
    ablation = scores("ablation")
    told = [float(x) for x in re.findall(r"(\d+\.\d) %", BY_HOURS[0].why)]
    assert told == pytest.approx(
        [
            mean(scores("five_tasks")["pretrained", "linear"]),
            mean(ablation["joint_frame", "linear"]),
            mean(ablation["untrained (joint_frame)", "linear"]),
        ],
        abs=0.05,
    )


def test_the_page_has_the_table():
    page = (ROOT / "docs/which_start.md").read_text("utf-8")
    _, _, rest = page.partition("<!-- suggest -->\n")
    assert rest.partition("<!-- /suggest -->")[0] == table() + "\n"


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--labels=0"], BY_LABELS[0]),
        (["--labels=9"], BY_LABELS[1]),
        (["--labels=10"], BY_LABELS[2]),
        (["--labels=1e4"], BY_LABELS[3]),
        (["--audio=9.9"], BY_HOURS[0]),
        (["--audio=10"], BY_HOURS[1]),
    ],
)
def test_amounts(flags, told, capsys):
    assert main(["suggest", *flags]) == 0
    assert told.what in capsys.readouterr().out


def test_clips_are_counted(tmp_path, capsys):
    """Of train alone; folders are told how they become a table."""
    lines = ["path,label,split"]
    for number in range(12):
        label, split = "ab"[number % 2], "train" if number < 6 else "test"
        path = tmp_path / "my clips" / label / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(800), 16000)
        lines.append(f"{path},{label},{split}")
    csv = tmp_path / "clips.csv"
    csv.write_text("\n".join(lines))
    assert main(["suggest", f"--labels={csv}"]) == 0
    assert "3 labels per class" in capsys.readouterr().out
    folder = tmp_path / "my clips"
    assert main(["suggest", f"--labels={folder}", f"--audio={folder}"]) == 0
    out = capsys.readouterr().out
    # The split draws 70 % of 6 for train.
    assert "\n4 labels per class" in out and " hours of audio" in out
    assert out.startswith("first draw train, valid and test:\n  ssast-lobes ")
    assert f"ssast-lobes manifest '{folder}'" in out
    splits = tmp_path / "has splits"
    for part in ("train", "valid", "test"):
        shutil.copytree(folder, splits / part)
    assert main(["suggest", f"--labels={splits}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("first write the table:\n  ssast-lobes manifest")
    assert "--group" not in out
    csv.write_text("\n".join(line.rpartition(",")[0] for line in lines))
    assert main(["suggest", f"--labels={csv}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"first add a column split to {csv}")
    assert "\n4 labels per class" in out


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--labels=-1", "-1 is no number of at least 0"),
        ("--audio=nan", "nan is no number of at least 0"),
        ("--audio=nowhere", "nowhere: no such file or folder"),
        ("--labels=nowhere", "nowhere"),
    ],
)
def test_wrong_amounts(flag, message, capsys):
    assert main(["suggest", flag]) == 2
    assert message in capsys.readouterr().err
