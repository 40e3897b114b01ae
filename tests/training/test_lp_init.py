"""LP-FT: training begins with the head of a logistic regression."""

import csv

import pytest
import torch
from speechbrain.dataio.encoder import CategoricalEncoder

from ssast_lobes import FrontEnd, SpectrogramEncoder
from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.dataio.dataset import ClipReader, make_dataset
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.evaluation.probing import logistic_regression
from ssast_lobes.models.heads import SpectrogramClassifier
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.training.lp_init import fit_head


def clips(tones, split="train"):
    with open(tones.manifest, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    return {
        row["path"]: {
            "path": str(tones.folder / row["path"]),
            "duration": 1.0,
            "label": row["label"],
        }
        for row in rows
    }


def build(**arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=2, heads=2, table_frames=100)
    return SpectrogramClassifier(encoder, 3, **arguments)


def dataset(tones):
    classes = CategoricalEncoder()
    classes.update_from_iterable(["chirp", "noise", "tone"])
    return make_dataset(clips(tones), ClipReader(), classes)


@torch.no_grad()
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"pooling": "statistics", "layers": "all"},
        {"pooling": "dynamics", "layers": "all"},
        {"pooling": "class"},
    ],
)
def test_scores_are_those_of_the_regression(tones, arguments):
    model = build(**arguments).train()
    fit_head(model, FrontEnd(), dataset(tones), penalty=0.03, batch_size=5)
    # As it was, and to be trained.
    assert model.training and model.head.linear.weight.requires_grad
    model.eval()

    def vectors(split):
        found, targets = [], []
        for row in clips(tones, split).values():
            clip = model.embed(*FrontEnd()(read_audio(row["path"])[None]))
            found.append(model.head.norm(clip)[0])
            targets.append(["chirp", "noise", "tone"].index(row["label"]))
        return torch.stack(found), torch.tensor(targets)

    (x, y), (test_x, _) = vectors("train"), vectors("test")
    fit = logistic_regression(x, y, x, y, test_x, penalties=[0.03])
    assert torch.equal(model.head.linear(test_x).argmax(1), fit.predictions)
    # The optimum: moving the head on does not help.
    with torch.enable_grad():
        weight = model.head.linear.weight.detach().double().requires_grad_()
        bias = model.head.linear.bias.detach().double().requires_grad_()
        scores = x.double() @ weight.T + bias
        scaled = weight * x.double().std(0, correction=0)
        loss = torch.nn.functional.cross_entropy(scores, y)
        loss = loss + 0.015 * scaled.square().sum()
        loss.backward()
    assert bias.grad.abs().max() < 1e-4


def test_clips_that_cannot_be_read_are_skipped(tones, tmp_path):
    rows = clips(tones)
    (tmp_path / "noise.wav").write_bytes(b"no audio")
    classes = CategoricalEncoder()
    classes.update_from_iterable(["chirp", "noise", "tone"])
    broken = {"path": str(tmp_path / "noise.wav"), "duration": 1.0}
    heads = []
    # The last batch is the broken clip alone.
    for more in ({}, {"broken": {**broken, "label": "noise"}}):
        model = build()
        data = make_dataset({**rows, **more}, ClipReader(), classes)
        fit_head(model, FrontEnd(), data, 0.1, batch_size=len(rows))
        heads.append(model.head.linear.weight)
    assert torch.equal(*heads)
    data = make_dataset(
        {"a": {**broken, "label": "tone"}}, ClipReader(), classes
    )
    with pytest.raises(UnreadableAudio, match="no training clip"):
        fit_head(build(), FrontEnd(), data, 0.1)


def test_a_projected_head_is_refused(tones):
    with pytest.raises(SettingsError, match="projection"):
        fit_head(build(projection=8), FrontEnd(), dataset(tones), 0.1)
