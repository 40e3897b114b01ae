"""Projections that tell contents apart: fitted, stored, chosen and used."""

import csv
import shutil

import pytest
import scipy.linalg
import soundfile
import torch
from export_kit import make_encoder
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import accuracy_score

from ssast_lobes import FrontEnd, Grid, SpectrogramEncoder
from ssast_lobes.checkpoints.bundled import bundled_model
from ssast_lobes.checkpoints.folder import export_pretrained
from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.linear_heads import read_head
from ssast_lobes.checkpoints.model_card import read_card
from ssast_lobes.checkpoints.projections import (
    read_projection,
    write_projection,
)
from ssast_lobes.cli import main
from ssast_lobes.dataio.tables import ManifestError
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.evaluation.probing import (
    logistic_regression,
    read_task,
    train_heads,
)
from ssast_lobes.evaluation.probing.discriminants import (
    SHRINKAGE,
    linear_discriminants,
)
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


def test_principal_components_that_keep_all_change_nothing():
    """Of 4,200 features, 299 components keep all that 300 rows have."""
    x, contents = recordings(150, 2, seed=1)
    noise = torch.randn(300, 4160, generator=torch.Generator().manual_seed(3))
    x = torch.cat([x, noise], 1)
    weight, _ = linear_discriminants(x, contents, size=10)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    _, _, axes = torch.linalg.svd(z, full_matrices=False)
    differences = (z[0::2] - z[1::2]) @ axes.T / 2**0.5
    sums = (z[0::2] + z[1::2]) @ axes.T / 2**0.5
    within = differences.T @ differences / 150
    identity = torch.eye(300).double() * within.trace() / 4200
    within = (1 - SHRINKAGE) * within + SHRINKAGE * identity
    _, found = scipy.linalg.eigh(sums.T @ sums / 150, within)
    expected = torch.from_numpy(found[:, -10:]).T @ axes
    # Cosines of the angles between both spaces.
    ours, theirs = (
        torch.linalg.qr(matrix.T)[0]
        for matrix in (weight.double() * x.std(0, correction=0), expected)
    )
    assert torch.linalg.svdvals(ours.T @ theirs).min() > 0.999


@pytest.mark.parametrize("labels", [["a"] * 4, ["a", "b", "c", "d"]])
def test_labels_that_cannot_be_told_apart(labels):
    with pytest.raises(ValueError, match="two labels, one of them of two"):
        linear_discriminants(torch.randn(4, 3), labels)


def test_wrong_arguments():
    x, contents = recordings(8, 12, seed=0)
    with pytest.raises(ValueError, match="size"):
        linear_discriminants(x, contents, size=0)
    for shrinkage in (0, 1.5):
        with pytest.raises(ValueError, match="shrinkage"):
            linear_discriminants(x, contents, shrinkage=shrinkage)
    copies = torch.tensor([[0.0, 1], [0, 1], [1, 0], [1, 0]])
    with pytest.raises(ValueError, match="recordings of each label are equal"):
        linear_discriminants(copies, ["a", "a", "b", "b"])


def test_features_that_never_change():
    x, contents = recordings(8, 12, seed=0)
    x[:, 3] = 1.5
    weight, bias = linear_discriminants(x, contents)
    assert weight.isfinite().all() and bias.isfinite().all()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    torch.manual_seed(0)
    encoder = make_encoder(Grid(32, (32, 4)), table_frames=200)
    folder = tmp_path_factory.mktemp("model") / "export"
    return export_pretrained(folder, MSPM(encoder), FrontEnd(n_mels=32), {})


@pytest.fixture(scope="module")
def task(tones):
    return read_task(tones.manifest, "sounds")


@pytest.fixture(scope="module")
def projected(pretrained, task, tmp_path_factory):
    """A head with a projection that knows quieter copies of all clips."""
    folder = tmp_path_factory.mktemp("projected") / "small"
    lines = ["path,label"]
    for row in [row for part in task.rows.values() for row in part]:
        wav, rate = soundfile.read(row["path"])
        path = folder.parent / row["id"].replace("/", "_")
        soundfile.write(path, 0.7 * wav, rate)
        lines.append(f"{path},{row['label']}")
    table = folder.parent / "kinds.csv"
    table.write_text("\n".join(lines))
    scores = train_heads(
        *(pretrained, [task], folder),
        pooling="dynamics",
        layers="all",
        projections=[str(table)],
    )
    return folder, scores["sounds"]


def test_head_of_a_projection_is_one_linear_layer(projected, task):
    folder, (_, measured, vectors) = projected
    assert vectors == "dynamics, all, projection kinds"
    projection = read_projection(folder, "kinds")
    assert projection.weight.shape == (2, 4 * 3 * 32)
    assert (projection.recordings, projection.contents) == (24, 3)
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
    assert accuracy_score(task.targets("test"), predicted) == measured > 0.6
    card = read_card(folder)["Projections"]
    assert "| kinds | 2 linear discriminants of 3 contents in 24 rec" in card


def test_projections_of_a_model_are_used_by_name(projected, task, tmp_path):
    folder, scores = projected
    again = train_heads(
        *(folder, [task], tmp_path / "a"),
        pooling="dynamics",
        layers="all",
        projections=["kinds"],
    )
    before, after = (
        read_projection(place, "kinds") for place in (folder, tmp_path / "a")
    )
    assert torch.equal(before.weight, after.weight)
    assert again["sounds"][:2] == pytest.approx(scores[:2])
    # Who names none gets none, nor their section of the card.
    train_heads(folder, [task], tmp_path / "b")
    assert "Projections" not in read_card(tmp_path / "b")
    with pytest.raises(WeightsError, match="'kinds'; there are: none"):
        read_projection(tmp_path / "b", "kinds")
    # A new export has no projections of the older one.
    encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    export_pretrained(tmp_path / "a", MSPM(encoder), FrontEnd(), {})
    with pytest.raises(WeightsError, match="there are: none"):
        read_projection(tmp_path / "a", "kinds")


def test_wrong_projections(projected, pretrained, task, tones, tmp_path):
    def fails(error, match, *texts, model=pretrained, **choices):
        with pytest.raises(error, match=match):
            train_heads(
                *(model, [task], tmp_path / "new"),
                projections=texts,
                **choices,
            )
        assert not (tmp_path / "new").exists()

    table = tones.manifest
    fails(ValueError, "of the dynamics of all", f"{table}", pooling="mean")
    fails(ValueError, "a name of its own", f"a={table}", f"a={table}")
    fails(WeightsError, "no projection 'words'; there are: none", "words")
    fails(ManifestError, "no column", f"{table},label=word")
    # A table without a split would show the answers.
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = [f"{table.parent / row['path']},{row['label']}" for row in rows]
    leaking = tmp_path / "leaking.csv"
    leaking.write_text("\n".join(["path,label", *lines]))
    fails(ManifestError, "12 recordings are valid or test", f"{leaking}")
    alone = tmp_path / "alone.csv"
    lines = [f"{path},{n}" for n, path in enumerate(task.paths("train"))]
    alone.write_text("\n".join(["path,label", *lines]))
    fails(ManifestError, "12 recordings of 12 labels", f"{alone}")
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF, not audio")
    alone.write_text("\n".join(["path,label", f"{broken},0", *lines]))
    fails(UnreadableAudio, "broken.wav", f"{alone}")

    shutil.copytree(projected[0], tmp_path / "copy")
    projection = read_projection(tmp_path / "copy", "kinds")
    other = projection._replace(weight=projection.weight[:, 1:])
    write_projection(tmp_path / "copy", "kinds", other)
    fails(WeightsError, "of another encoder", "kinds", model=tmp_path / "copy")
    short = projection._replace(bias=projection.bias[:1])
    write_projection(tmp_path / "copy", "kinds", short)
    fails(WeightsError, "differ in length", "kinds", model=tmp_path / "copy")
    path = tmp_path / "copy" / "projections" / "kinds.safetensors"
    path.write_bytes(b"none")
    fails(WeightsError, "missing or damaged", "kinds", model=tmp_path / "copy")


def test_bundled_projection():
    projection = read_projection(bundled_model(), "words")
    assert projection.weight.shape == (64, 3584)
    assert (projection.recordings, projection.contents) == (24000, 6405)


def test_command(pretrained, tones, tmp_path, capsys):
    command = ["heads", str(pretrained), "--data", f"sounds={tones.manifest}"]
    command += ["--output", str(tmp_path / "new"), "--projection"]
    assert main([*command, str(tones.manifest)]) == 0
    found = read_projection(tmp_path / "new", tones.folder.name)
    # Of a table with splits, only train counts.
    assert (found.recordings, found.contents) == (12, 3)
    assert main([*command, "words"]) == 2
    assert "no projection 'words'; there are: none" in capsys.readouterr().err
