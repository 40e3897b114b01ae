"""Benchmarks: the baseline does the same work, and each part runs.

Times are not looked at.
"""

import copy
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from ssast_lobes import SpectrogramEncoder
from ssast_lobes.objectives import MSPM
from ssast_lobes.objectives.maskers import ClusterMasker

FOLDER = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(FOLDER))

import speed  # noqa: E402
from official_way import OfficialWay  # noqa: E402
from speed import STEPS, Case, Setting  # noqa: E402

PLAIN = Setting("cpu", 1, bf16=False, compile=False)
CASE = Case("micro", 1.28, 2)


def test_the_official_way_is_the_same_work():
    torch.manual_seed(0)
    encoder = SpectrogramEncoder.from_size("micro", table_frames=256)
    ours = MSPM(encoder, ClusterMasker(count=90))
    official = OfficialWay(copy.deepcopy(ours))
    feats, n_frames = torch.randn(3, 256, 128), torch.full((3,), 256)
    mask = ours.draw_mask(feats, n_frames)
    hidden = [row.nonzero().flatten().tolist() for row in mask.flatten(1)]
    output = ours(feats, n_frames, mask)
    loss, accuracy = official(feats, (hidden, hidden))
    torch.testing.assert_close(loss, output.loss)
    # It ranks shares, not scores: another patch can come first.
    assert abs(accuracy - output.logs["accuracy"]) < 0.02
    output.loss.backward()
    loss.backward()
    theirs = dict(official.objective.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            theirs[name].grad, parameter.grad, atol=1e-5, rtol=1e-3
        )


def test_the_official_way_draws_a_mask_for_each_pass():
    torch.manual_seed(0)
    encoder = SpectrogramEncoder.from_size("micro", table_frames=256)
    official = OfficialWay(MSPM(encoder, ClusterMasker(count=90)))
    feats = torch.randn(2, 256, 128)
    first, second = official._draw(feats), official._draw(feats)
    assert first != second
    assert {len(places) for places in first + second} == {90}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_trains(name):
    step = STEPS[name](CASE, PLAIN)
    parameters = step.optimizer.param_groups[0]["params"]
    before = [p.detach().clone() for p in parameters]
    step()
    same = map(torch.equal, before, parameters)
    assert not any(same)


@pytest.mark.slow
def test_our_encoder_is_that_of_hugging_face():
    ours, theirs = speed.encoders(CASE, PLAIN)
    torch.testing.assert_close(ours(), theirs(), atol=1e-5, rtol=0)


def test_table_of_the_features(tmp_path, capsys):
    speed.main(
        ["--parts", "features", "--rounds", "1", "--device", "cpu"]
        + ["--threads", str(torch.get_num_threads())]
        + ["--output", str(tmp_path)]
    )
    written = json.loads((tmp_path / "speed_cpu.json").read_text("utf-8"))
    (row,) = written["rows"]
    assert row["part"] == "features" and row["clips_per_second"] > 0
    assert (tmp_path / "speed_cpu.md").read_text("utf-8") in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("script", "results"),
    [
        ("data_loading", "data_loading_cpu"),
        ("memory", "memory"),
        ("objectives", "objectives_cpu"),
        ("selective_scan", "selective_scan_cpu"),
        ("speed", "speed_cpu"),
        ("speed", "speed_cpu_bf16"),
        ("speed", "speed_cuda"),
        ("ssamba_claim", "ssamba_claim_cpu"),
    ],
)
def test_tables_of_results_have_their_numbers(script, results):
    path = FOLDER / "results" / results
    rows = json.loads(path.with_suffix(".json").read_text("utf-8"))["rows"]
    table = importlib.import_module(script).table(rows)
    assert path.with_suffix(".md").read_text("utf-8").endswith(f"{table}\n")
