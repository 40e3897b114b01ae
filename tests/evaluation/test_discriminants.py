"""Projections that tell contents apart: fitted, stored, chosen and used."""

import csv
import shutil

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import accuracy_score

from ssast_lobes import FrontEnd, Grid, SpectrogramEncoder
from ssast_lobes.checkpoints.folder import export_pretrained
from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.linear_heads import read_head
from ssast_lobes.checkpoints.projections import (
    read_projections,
    write_projection,
)
from ssast_lobes.cli import main
from ssast_lobes.evaluation.probing import (
    logistic_regression,
    probe,
    read_task,
    train_heads,
)
from ssast_lobes.evaluation.probing.discriminants import linear_discriminants
from ssast_lobes.evaluation.probing.embeddings import PooledEncoder
from ssast_lobes.inference import AudioClassifier
from ssast_lobes.objectives import MSPM


def recordings(n_contents, n_each, seed):
    """Vectors in which voices differ more than contents, in a fixed basis."""
    fixed = torch.Generator().manual_seed(9)
    basis = torch.linalg.qr(torch.randn(40, 40, generator=fixed))[0]
    generator = torch.Generator().manual_seed(seed)
    contents = torch.arange(n_contents).repeat_interleave(n_each)
    x = torch.randn(len(contents), 40, generator=generator)
    x[:, 10:] *= 6
    x[:, :10] += 3 * torch.randn(n_contents, 10, generator=generator)[contents]
    return x @ basis, contents


def test_directions_are_those_of_scikit_learn():
    x, contents = recordings(8, 12, seed=0)
    weight, bias = linear_discriminants(x, contents, shrinkage=1e-9)
    assert weight.shape == (7, 40) and bias.shape == (7,)
    other = LinearDiscriminantAnalysis(solver="eigen").fit(x, contents)
    other = torch.from_numpy(other.scalings_[:, :7]).float()
    for ours, theirs in zip(weight, other.T, strict=True):
        cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=0)
        assert cosine.abs() == pytest.approx(1, abs=1e-4)
    # Along each direction, a content has variance 1.
    y = x @ weight.T + bias
    assert y.mean(0).abs().max() < 1e-4
    means = torch.stack([y[contents == one].mean(0) for one in range(8)])
    within = (y - means[contents]).T @ (y - means[contents]) / (len(y) - 8)
    torch.testing.assert_close(within, torch.eye(7), atol=1e-3, rtol=0)


@pytest.mark.parametrize("copies", [1, 105])
def test_few_labels_of_new_contents_suffice(copies):
    """Two labels for each of five contents that the projection has not seen.

    With 105 copies of each feature, there are too many for covariances.
    """
    x, contents = recordings(150, 2, seed=1)
    weight, bias = linear_discriminants(x.repeat(1, copies), contents, size=10)
    x, y = recordings(5, 42, seed=2)
    x = x.repeat(1, copies)
    labeled = torch.arange(len(x)) % 42 < 2
    accuracy = {}
    for name, own in (("plain", x), ("projected", x @ weight.T + bias)):
        fit = logistic_regression(
            *(own[labeled], y[labeled], own[labeled], y[labeled]),
            own[~labeled],
            penalties=(0.1,),
        )
        accuracy[name] = accuracy_score(y[~labeled], fit.predictions)
    assert accuracy["projected"] > accuracy["plain"] + 0.15


@pytest.mark.parametrize("groups", [["a"] * 4, ["a", "b", "c", "d"]])
def test_groups_that_cannot_be_told_apart(groups):
    with pytest.raises(ValueError, match="two groups, one of them of two"):
        linear_discriminants(torch.randn(4, 3), groups)


def test_features_that_never_change():
    x, contents = recordings(8, 12, seed=0)
    x[:, 3] = 1.5
    weight, bias = linear_discriminants(x, contents)
    assert weight.isfinite().all() and bias.isfinite().all()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        Grid(32, (32, 4)), dim=32, depth=2, heads=2, table_frames=200
    )
    folder = tmp_path_factory.mktemp("model") / "export"
    return export_pretrained(folder, MSPM(encoder), FrontEnd(n_mels=32), {})


@pytest.fixture(scope="module")
def projected(pretrained, tones, tmp_path_factory):
    """Heads with a projection that has seen the answers, so that it wins."""
    folder = tmp_path_factory.mktemp("projected") / "small"
    table = f"kinds={tones.manifest},group=label"
    scores = train_heads(
        pretrained,
        [read_task(tones.manifest, "sounds")],
        folder,
        projections=[table],
    )
    return folder, scores["sounds"]


def test_head_of_a_projection_is_one_linear_layer(projected, tones):
    folder, (_, measured) = projected
    task = read_task(tones.manifest, "sounds")
    [projection] = read_projections(folder)
    assert projection.name == "kinds" and len(projection.weight) == 2
    head = read_head(folder, "sounds")
    assert (head.pooling, head.layers) == ("dynamics", "all")
    # Its rows are sums of the projection's rows, so the projection was chosen.
    rows = projection.weight.double().T
    found = torch.linalg.lstsq(rows, head.weight.double().T)
    residual = rows @ found.solution - head.weight.double().T
    assert residual.abs().max() < 1e-4 * head.weight.abs().max()
    classifier = AudioClassifier.from_hparams(folder, task="sounds")
    results = classifier.classify_files(task.paths("test"))
    predicted = [task.labels.index(result.label) for result in results]
    assert accuracy_score(task.targets("test"), predicted) == measured > 0.9


def test_probe_names_the_projection_that_it_chose(projected, tones, tmp_path):
    folder, _ = projected
    assert PooledEncoder(folder).untrained().projections == []
    results = probe([folder], [read_task(tones.manifest)], tmp_path)
    chosen = {(row.system, row.probe): row.projection for row in results}
    assert chosen.pop(("small", "linear")) == "kinds"
    assert chosen.pop(("small", "k-NN")) == "kinds"
    assert set(chosen.values()) == {None}
    results = probe([folder], [read_task(tones.manifest)], tmp_path, "mean")
    assert {row.projection for row in results} == {None}


def test_copies_keep_projections_and_replace_those_of_a_name(
    projected, tones, tmp_path
):
    folder, _ = projected
    tasks = [read_task(tones.manifest, "sounds")]
    train_heads(folder, tasks, tmp_path / "copy")
    [before], [after] = map(read_projections, (folder, tmp_path / "copy"))
    assert torch.equal(before.weight, after.weight)
    table = f"kinds={tones.manifest},group=speaker"
    train_heads(folder, tasks, tmp_path / "other", projections=[table])
    [other] = read_projections(tmp_path / "other")
    assert other.weight.shape == (7, len(before.weight[0]))
    # A new export has no projections of the older one.
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    train_heads(folder, tasks, tmp_path / "heads")
    export_pretrained(
        plain,
        MSPM(SpectrogramEncoder(dim=32, depth=1, heads=2)),
        FrontEnd(),
        {},
    )
    assert read_projections(plain) == []


def test_damaged_projection(projected, tmp_path):
    shutil.copytree(projected[0], tmp_path / "copy")
    [projection] = read_projections(tmp_path / "copy")
    short = projection._replace(bias=projection.bias[:1])
    write_projection(tmp_path / "copy", short)
    with pytest.raises(WeightsError, match="kinds.*weight and bias differ"):
        read_projections(tmp_path / "copy")
    path = tmp_path / "copy" / "projections" / "kinds.safetensors"
    path.write_bytes(b"none")
    with pytest.raises(WeightsError, match="kinds.safetensors: missing or dam"):
        PooledEncoder(tmp_path / "copy")


def test_command(pretrained, tones, tmp_path, capsys):
    command = ["heads", str(pretrained), "--data", f"sounds={tones.manifest}"]
    command += ["--output", str(tmp_path / "new"), "--projection"]
    assert main([*command, f"{tones.manifest},group=label"]) == 0
    [projection] = read_projections(tmp_path / "new")
    assert projection.name == tones.folder.name
    table = tmp_path / "alone.csv"
    with open(tones.manifest) as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    lines = [f"{tones.manifest.parent / p},{n}" for n, p in enumerate(paths)]
    table.write_text("\n".join(["path,group", *lines]))
    assert main([*command, str(table)]) == 2
    error = capsys.readouterr().err
    assert "alone.csv: 24 readable clips of 24 groups" in error
    assert main([*command, str(tones.manifest)]) == 2
    assert "group" in capsys.readouterr().err
