"""Probes: classifiers, tasks, intervals, the cache, and the whole of it."""

import csv
import json
import math

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import accuracy_score

from ssast_lobes import FrontEnd, Grid, SpectrogramEncoder
from ssast_lobes.checkpoints.folder import export_pretrained, write_export
from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.official import to_official
from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.dataio.tables import SPLITS, ManifestError
from ssast_lobes.evaluation.probing import (
    Result,
    Task,
    logistic_regression,
    markdown,
    nearest_neighbors,
    parse_task,
    probe,
    read_task,
    short_names,
    write_report,
)
from ssast_lobes.evaluation.probing.classifiers import linear_weights
from ssast_lobes.evaluation.probing.comparison import best_fit
from ssast_lobes.evaluation.probing.embeddings import (
    VARIANTS,
    LogMelStatistics,
    MFCCStatistics,
    PooledEncoder,
    Readout,
    cached_vectors,
    pooled,
)
from ssast_lobes.evaluation.probing.intervals import (
    REPLICATES,
    bootstrap,
    interval,
)
from ssast_lobes.lobes.spectrogram import SpectrogramLobe
from ssast_lobes.models.features import KaldiFbank
from ssast_lobes.models.pooling import ClipPooling
from ssast_lobes.objectives import MSPM
from ssast_lobes.utils.files import write_csv
from ssast_lobes.utils.metrics import unweighted_average_recall


def blobs(n, distance, seed, n_classes=3, n_features=5):
    """Gaussian classes around corners, and their class indices."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % n_classes
    x = torch.randn(n, n_features, generator=generator)
    return x + distance * torch.eye(n_classes, n_features)[y], y


def fit(train, valid, test_x, **settings):
    return logistic_regression(*train, *valid, test_x, **settings)


def test_separable_classes_are_learned():
    test_x, test_y = blobs(300, 6.0, seed=2)
    fitted = fit(blobs(60, 6.0, seed=0), blobs(60, 6.0, seed=1), test_x)
    assert fitted.valid_score > 0.97
    assert fitted.predictions.dtype == torch.int64
    assert (fitted.predictions == test_y).float().mean() > 0.97


@pytest.mark.parametrize("n_classes", [2, 3])
def test_solution_is_the_optimum(n_classes):
    """The gradient that the textbook gives vanishes at the fitted weights."""
    x, y = blobs(90, 1.0, seed=0, n_classes=n_classes)
    # Correlated features, and one that is the sum of others.
    x = torch.cat([x @ torch.randn(5, 5), x.sum(1, keepdim=True)], 1).double()
    penalty = 0.01
    weight, bias = linear_weights(x, y, n_classes, penalty)
    surplus = (x @ weight.T + bias).softmax(-1)
    surplus = surplus - torch.nn.functional.one_hot(y, n_classes)
    # The penalty is on the weights of standardized features.
    mean, std = x.mean(0), x.std(0, correction=0)
    gradient = ((x - mean) / std).T @ surplus / len(x)
    gradient = gradient + penalty * (weight * std).T
    assert gradient.abs().max() < 1e-5
    assert surplus.mean(0).abs().max() < 1e-5


def test_class_without_clips_is_never_predicted():
    x, y = blobs(60, 6.0, seed=0)
    weight, bias = linear_weights(x, 2 * y, 5, penalty=0.1)
    assert weight.shape == (5, 5) and bias.isfinite().all()
    assert torch.equal((x.double() @ weight.T + bias).argmax(1), 2 * y)


def few_clips_useless_features(n, seed):
    """What calls for a strong penalty."""
    x, y = blobs(n, 2.0, seed)
    generator = torch.Generator().manual_seed(seed + 10)
    return torch.cat([x, torch.randn(n, 60, generator=generator)], 1), y


def many_clips_shared_noise(n, seed):
    """Classes that only a difference of features tells apart: a weak one."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(10 * n) % 3
    noise = 30 * torch.randn(10 * n, 1, generator=generator)
    x, _ = blobs(10 * n, 3.0, seed + 10)
    return torch.cat([x + noise, noise], 1), y


@pytest.mark.parametrize(
    ("part", "best"),
    [(few_clips_useless_features, 1.0), (many_clips_shared_noise, 1e-5)],
)
def test_penalty_is_chosen_on_valid(part, best):
    train, valid = part(90, seed=0), part(300, seed=1)
    test_x, test_y = part(300, seed=2)
    accuracy = {}
    for penalty in (1.0, 1e-5):
        predictions, *_ = fit(train, valid, test_x, penalties=(penalty,))
        accuracy[penalty] = (predictions == test_y).float().mean().item()
    predictions, chosen, *_ = fit(train, valid, test_x, penalties=(1e-5, 1.0))
    assert chosen == best
    assert (predictions == test_y).float().mean() == accuracy[best]
    assert accuracy[best] > min(accuracy.values()) + 0.03


@pytest.mark.parametrize("n_classes", [2, 3])
def test_valid_loss_is_the_cross_entropy(n_classes):
    train, valid = (blobs(90, 1.0, seed, n_classes) for seed in (0, 1))
    weight, bias = linear_weights(*train, n_classes, penalty=0.1)
    logits = valid[0].double() @ weight.T + bias
    expected = torch.nn.functional.cross_entropy(logits, valid[1]).item()
    fitted = fit(train, valid, valid[0], penalties=(0.1,))
    assert fitted.valid_loss == pytest.approx(expected, abs=1e-6)


def test_equal_scores_are_told_apart_by_the_cross_entropy():
    train, test = (many_clips_shared_noise(30, seed) for seed in (0, 2))
    # Three clips, on which both penalties are right.
    valid = [part[:3] for part in many_clips_shared_noise(3, seed=1)]
    strong, weak = (
        fit(train, valid, test[0], penalties=[penalty])
        for penalty in (0.01, 0.001)
    )
    assert strong.valid_score == weak.valid_score == 1
    assert strong.valid_loss > weak.valid_loss
    chosen = fit(train, valid, test[0], penalties=[0.01, 0.001])
    assert chosen.setting == 0.001
    accuracy = [
        (one.predictions == test[1]).float().mean() for one in (strong, chosen)
    ]
    assert accuracy[1] > accuracy[0] + 0.03


@pytest.mark.parametrize(
    ("classify", "near"), [(logistic_regression, 1.0), (nearest_neighbors, 2.0)]
)
def test_equal_poolings_are_told_apart_by_the_cross_entropy(classify, near):
    """Class tokens tell classes apart far better than the mean of the tokens,
    and validation clips at the middle of their classes do not show it."""
    x = {split: torch.zeros(60, 15, 5) for split in ("train", "valid", "test")}
    for place, distance in ((0, near), (4, 6.0)):
        x["train"][:, place], y = blobs(60, distance, 0)
        x["test"][:, place], _ = blobs(60, distance, 1)
        x["valid"][:, place] = distance * torch.eye(3, 5)[y]
    rows = [{"label": str(label)} for label in y.tolist()]
    task = Task("blobs", "accuracy", dict.fromkeys(x, rows), grouped=False)
    targets = dict.fromkeys(x, y)
    readouts = [Readout("mean", "last"), Readout("class", "last")]
    each = [best_fit(classify, x, targets, task, [one])[0] for one in readouts]
    assert [one.valid_score for one in each] == [1, 1]
    found, readout = best_fit(classify, x, targets, task, readouts)
    assert readout == ("class", "last", None)
    accuracy = [(one.predictions == y).float().mean() for one in each]
    assert accuracy[1] > accuracy[0] + 0.05
    assert torch.equal(found.predictions, each[1].predictions)


def test_scale_and_shift_of_features_do_not_matter():
    train, valid = blobs(60, 1.5, seed=0), blobs(60, 1.5, seed=1)
    test_x, _ = blobs(60, 1.5, seed=2)
    scale = torch.tensor([1e-3, 1.0, 10.0, 100.0, 1e3])

    def moved(x):
        return x * scale + 7

    plain, *_ = fit(train, valid, test_x)
    scaled, *_ = fit(
        (moved(train[0]), train[1]), (moved(valid[0]), valid[1]), moved(test_x)
    )
    assert (plain == scaled).float().mean() > 0.98


def test_constant_feature_is_harmless():
    def with_constant(part):
        return torch.cat([part[0], torch.full((60, 1), 3.0)], 1), part[1]

    train = with_constant(blobs(60, 6.0, seed=0))
    predictions, *_ = fit(train, train, train[0])
    assert torch.equal(predictions, train[1])


def test_works_without_gradients_and_repeats():
    train, valid = blobs(60, 1.0, seed=0), blobs(60, 1.0, seed=1)
    first = fit(train, valid, valid[0])
    with torch.no_grad():
        second = fit(train, valid, valid[0])
    assert torch.equal(first[0], second[0]) and first[1] == second[1]


def test_clear_errors():
    train = blobs(60, 1.0, seed=0)
    bad = train[0].clone()
    bad[0, 0] = float("nan")
    with pytest.raises(ValueError, match="test_x"):
        fit(train, train, bad)
    with pytest.raises(ValueError, match="penalties"):
        fit(train, train, train[0], penalties=())


def imbalanced(n, seed):
    """Two classes, 9 to 1, that overlap."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(n) % 10 == 0).long()
    return torch.randn(n, 3, generator=generator) + 0.8 * y[:, None], y


@pytest.mark.parametrize("classify", [logistic_regression, nearest_neighbors])
def test_settings_are_chosen_by_the_metric(classify):
    parts = [*imbalanced(200, 0), *imbalanced(200, 1)]
    test_x, _ = imbalanced(50, 2)
    for metric in (accuracy_score, unweighted_average_recall):
        fitted = classify(*parts, test_x, metric=metric)
        name = {logistic_regression: "penalties"}.get(classify, "counts")
        choices = [10.0**k for k in range(1, -6, -1)]
        choices = choices if name == "penalties" else [100, 50, 20, 10, 5, 1]
        each = [
            classify(*parts, test_x, metric=metric, **{name: [choice]})
            for choice in choices
        ]
        best = max(one.valid_score for one in each)
        assert fitted.valid_score == pytest.approx(best, abs=1e-12)
        equals = [one for one in each if one.valid_score >= best - 1e-12]
        first = min(equals, key=lambda one: one.valid_loss)
        assert fitted.setting == first.setting


def test_nearest_neighbors_vote_as_the_paper_says():
    generator = torch.Generator().manual_seed(0)
    train_x = torch.randn(40, 6, generator=generator)
    train_y = torch.arange(40) % 4
    test_x, test_y = torch.randn(9, 6, generator=generator), torch.arange(9) % 4
    k, temperature = 7, 0.2
    fitted = nearest_neighbors(
        *(train_x, train_y, test_x, test_y, test_x),
        counts=[k],
        temperature=temperature,
    )
    scale = train_x.std(0, correction=0)
    unit = [
        torch.nn.functional.normalize((x - train_x.mean(0)) / scale, dim=1)
        for x in (train_x, test_x)
    ]
    losses = []
    for clip, predicted, label in zip(
        unit[1], fitted.predictions, test_y, strict=True
    ):
        ranked = sorted(
            zip((unit[0] @ clip).tolist(), train_y.tolist(), strict=True),
            reverse=True,
        )
        votes = [0.0] * 4
        for similarity, own in ranked[:k]:
            votes[own] += math.exp(similarity / temperature)
        assert votes.index(max(votes)) == predicted
        # One vote more is split among the four classes.
        share = (k * votes[label] / sum(votes) + 1 / 4) / (k + 1)
        losses.append(-math.log(share))
    assert fitted.valid_loss == pytest.approx(sum(losses) / len(losses))


def test_nearest_neighbors_of_few_clips():
    x, y = blobs(6, 3.0, seed=0)
    assert nearest_neighbors(x, y, x, y, x).setting in (1, 5)
    with pytest.raises(ValueError, match="from 1 to 6"):
        nearest_neighbors(x, y, x, y, x, counts=[7])


@pytest.mark.parametrize("metric", ["accuracy", "uar"])
def test_bootstrap_draws_whole_groups(metric):
    """The same draws, one at a time, and the metric of the drawn clips."""
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(3, (50,), generator=generator)
    predicted = torch.randint(3, (50,), generator=generator)
    groups = torch.arange(50) % 7
    scores = bootstrap(predicted, target, groups, metric, seed=5)
    assert scores.shape == (REPLICATES,)
    function = {"accuracy": accuracy_score, "uar": unweighted_average_recall}[
        metric
    ]
    draws = torch.randint(7, (100, 7), generator=torch.manual_seed(5))
    for drawn, score in zip(draws[:20], scores[:20], strict=True):
        clips = torch.cat(
            [(groups == group).nonzero()[:, 0] for group in drawn]
        )
        expected = function(target[clips], predicted[clips])
        assert score.item() == pytest.approx(expected, abs=1e-12)


def test_intervals_follow_the_groups():
    """Clips that succeed together say less than as many clips alone."""
    target = torch.zeros(200, dtype=torch.int64)
    predicted = (torch.arange(200) // 20 % 2).long()
    alone = interval(
        bootstrap(predicted, target, torch.arange(200), "accuracy")
    )
    speakers = torch.arange(200) // 20
    together = interval(bootstrap(predicted, target, speakers, "accuracy"))
    assert alone[1] - alone[0] == pytest.approx(
        2 * 1.96 / 2 / 200**0.5, rel=0.1
    )
    assert together[1] - together[0] > 0.5


def table(folder, lines, name="table.csv"):
    """A CSV whose files are all there, though no audio."""
    path = folder / name
    path.write_text("\n".join(",".join(line) for line in lines))
    for line in lines[1:]:
        (folder / line[0]).touch()
    return path


def test_tasks_of_one_table(tmp_path):
    path = table(
        tmp_path,
        [
            ["path", "label", "split", "who", "split_who"],
            ["a.wav", "yes", "train", "ann", "test"],
            ["b.wav", "no", "train", "bob", ""],
            ["c.wav", "no", "valid", "ann", "train"],
            ["d.wav", "yes", "test", "ann", "valid"],
            ["e.wav", "no", "test", "", "train"],
            ["f.wav", "yes", "train", "cid", "train"],
        ],
    )
    words = read_task(path)
    assert (words.name, words.metric, words.labels) == (
        "table",
        "accuracy",
        ["no", "yes"],
    )
    assert words.targets("train").tolist() == [1, 0, 1]
    assert not words.grouped and words.n_groups == 2
    text = f"voices={path},label=who,split=split_who,metric=uar"
    voices = parse_task(text, group="label", metric="accuracy")
    assert (voices.name, voices.metric) == ("voices", "uar")
    assert voices.labels == ["ann", "cid"]
    assert [len(part) for part in voices.rows.values()] == [2, 1, 1]
    grouped = read_task(path, group="who")
    # The clip of nobody is a group by itself.
    assert grouped.grouped and grouped.groups().tolist() in ([0, 1], [1, 0])
    rest = words.without({str(tmp_path / "e.wav")})
    assert rest.paths("test") == [str(tmp_path / "d.wav")]


def test_bad_tasks(tmp_path):
    rows = [["a.wav", "x", "train"], ["b.wav", "x", "valid"]]
    header = ["path", "label", "split"]
    path = table(tmp_path, [header, *rows])
    with pytest.raises(ManifestError, match="test"):
        read_task(path)
    path = table(tmp_path, [header, *rows, ["c.wav", "new", "test"]])
    with pytest.raises(ManifestError, match="new"):
        read_task(path)
    path = table(tmp_path, [header, *rows, ["c.wav", "x", "test"]])
    with pytest.raises(ManifestError, match="every clip of train .* label x"):
        read_task(path)
    rows += [["c.wav", "x", "test"], ["d.wav", "y", "train"]]
    path = table(tmp_path, [header, *rows])
    with pytest.raises(ManifestError, match="nobody"):
        read_task(path, group="nobody")
    with pytest.raises(ValueError, match="f1"):
        read_task(path, metric="f1")
    task = read_task(path)
    with pytest.raises(ManifestError, match="unreadable files.*every clip"):
        task.without({str(tmp_path / "d.wav")})
    with pytest.raises(ManifestError, match="unreadable files.*no usable"):
        task.without({str(tmp_path / f"{name}.wav") for name in "ad"})


def test_names_are_what_differs():
    assert list(short_names(["a/x/export", "a/y/export"])) == ["x", "y"]
    assert list(short_names(["a/x/1", "a/y/2"])) == ["x/1", "y/2"]
    assert list(short_names(["a", "a/export"])) == ["a", "a/export"]
    assert list(short_names(["one/model.pth"])) == ["model.pth"]
    with pytest.raises(ValueError, match="twice"):
        short_names(["a", "./a"])


SMALL = {"dim": 64, "depth": 2, "heads": 1, "table_frames": 64}


def export(folder, seed=0, **config):
    torch.manual_seed(seed)
    grid = Grid(128, (16, 16))
    encoder = SpectrogramEncoder(grid, **{**SMALL, **config})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return export_pretrained(folder, MSPM(encoder), FrontEnd(), card={})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [export(folder / name / "export", n) for n, name in enumerate("ab")]


def test_vectors_are_those_of_the_lobe(models, tones):
    task = read_task(tones.manifest)
    # 0.645 s of table: the longer clips are cut into windows.
    paths = [p for p in task.paths() if len(read_audio(p)) <= 10320]
    assert len(paths) >= 4
    found = dict(PooledEncoder(models[0]).vectors(paths, "a", []))
    lobe = SpectrogramLobe.from_export(models[0], freeze=True)
    for path in paths:
        output = lobe.extract_features(
            read_audio(path)[None], hidden_states=True
        )
        layers = output.hidden_states[1:].mean(0)[0]
        classes = output.class_hidden_states[1:].mean(0)[0]
        last, states = output.tokens[0], output.hidden_states[:, 0]
        both = [moment for x in states for moment in moments(x)]
        bands = output.n_freq
        moving = [value for x in states for value in dynamics(x, bands)]
        expected = {
            ("mean", "last"): last.mean(0),
            ("class", "last"): output.class_tokens[0].mean(0),
            ("statistics", "last"): torch.cat(moments(last)),
            ("dynamics", "last"): torch.cat(dynamics(last, bands)),
            ("mean", "all-mean"): layers.mean(0),
            ("class", "all-mean"): classes.mean(0),
            ("statistics", "all"): torch.cat(both),
            ("dynamics", "all"): torch.cat(moving),
        }
        assert set(expected) == set(VARIANTS)
        for variant, vector in expected.items():
            own = pooled(found[path][None], *variant)[0]
            assert (own - vector).abs().max() < 1e-5
            # What heads and fine-tuning see.
            pooling, kind = variant
            kind = "weighted" if kind == "all-mean" else kind
            module = ClipPooling(lobe.encoder.depth, pooling, kind)
            assert module.output_size(lobe.encoder.dim) == len(vector)
            assert (own - module(output)[0]).abs().max() < 1e-5


def moments(x):
    """Mean and deviation (D,) of tokens (N, D)."""
    return x.mean(0), (x.var(0, unbiased=False) + 1e-6).sqrt()


def dynamics(tokens, n_freq):
    """Moments of tokens (N, D), then their changes over one and two steps."""
    grid = tokens.unflatten(0, (n_freq, -1))
    changes = [grid[:, step:] - grid[:, :-step] for step in (1, 2)]
    squares = [x.square().mean((0, 1)).nan_to_num() for x in changes]
    roots = [(square + 1e-6).sqrt() for square in squares]
    return [*moments(tokens), *roots]


def test_official_checkpoints_open_too(models, tmp_path, tones):
    path = tmp_path / "model.pth"
    torch.save(to_official(load_weights(models[0])), path)
    official, own = PooledEncoder(path), PooledEncoder(models[0])
    assert official.architecture == own.architecture
    assert official.key == own.key


def test_untrained_twin(models, tones):
    trained = PooledEncoder(models[0])
    twin = trained.untrained()
    assert twin.key != trained.key
    assert twin.key == PooledEncoder(models[1]).untrained().key
    assert twin.key != trained.untrained(seed=1).key
    assert PooledEncoder(models[0]).key == trained.key
    state = torch.random.get_rng_state()
    trained.untrained()
    assert torch.equal(state, torch.random.get_rng_state())


def test_log_mel_statistics_of_a_file_in_blocks(tmp_path, monkeypatch):
    path = str(tmp_path / "long.wav")
    noise = np.random.default_rng(0).standard_normal(16000 * 3) / 9
    soundfile.write(path, noise * np.linspace(0, 1, noise.size), 16000)
    monkeypatch.setattr("ssast_lobes.evaluation.statistics.BLOCK_FRAMES", 70)
    [(_, found)] = LogMelStatistics().vectors([path], "log-mel", [])
    wav = read_audio(path)
    feats, _ = KaldiFbank()((wav - wav.mean())[None])
    expected = [feats[0].mean(0), feats[0].std(0, correction=0)]
    assert (found[0] - torch.cat(expected)).abs().max() < 1e-3


def test_a_rest_without_a_frame_gives_no_block(tmp_path, monkeypatch):
    monkeypatch.setattr("ssast_lobes.evaluation.statistics.BLOCK_FRAMES", 70)
    noise = np.random.default_rng(0).standard_normal(70 * 160 + 300) / 9
    vectors = []
    # 70 frames end at sample 11440. The rest of 60 is too short for another.
    for samples in (11440, 11500):
        path = str(tmp_path / f"{samples}.wav")
        soundfile.write(path, noise[:samples], 16000)
        [(_, found)] = MFCCStatistics().vectors([path], "MFCC", [])
        vectors.append(found)
    assert torch.equal(*vectors)


class Counting(LogMelStatistics):
    """Counts the files it computes."""

    computed = 0

    def vectors(self, paths, name, unreadable):
        for pair in super().vectors(paths, name, unreadable):
            self.computed += 1
            yield pair


def test_cache_computes_what_is_new(tmp_path, tones):
    source, folder = Counting(), tmp_path / "cache"
    paths = []
    for number in range(3):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.full(8000, 0.1 * number), 16000)
        paths.append(str(path))
    bad = tmp_path / "bad.wav"
    bad.write_text("not audio")

    def vectors(wanted):
        unreadable = []
        before = source.computed
        found = cached_vectors(source, "x", wanted, folder, unreadable)
        return found, source.computed - before, unreadable

    first, n, unreadable = vectors([paths[0], str(bad), paths[1], paths[0]])
    assert n == 2 and list(first) == paths[:2]
    assert [path for path, _ in unreadable] == [str(bad)]
    second, n, _ = vectors(paths)
    assert n == 1 and torch.equal(second[paths[0]], first[paths[0]])
    # A file that changed is computed anew.
    soundfile.write(paths[0], np.random.default_rng(0).random(9000), 16000)
    third, n, _ = vectors(paths)
    assert n == 1 and not torch.equal(third[paths[0]], first[paths[0]])
    [cache] = folder.iterdir()
    cache.write_bytes(cache.read_bytes()[:100])
    fourth, n, _ = vectors(paths)
    assert n == 3 and torch.equal(fourth[paths[1]], first[paths[1]])


def test_cache_keeps_what_a_stopped_run_has_done(tmp_path, tones):
    class Stopping(LogMelStatistics):
        stop_after = 3

        def vectors(self, paths, name, unreadable):
            pairs = super().vectors(paths, name, unreadable)
            for number, pair in enumerate(pairs):
                if number == self.stop_after:
                    raise KeyboardInterrupt
                yield pair

    paths = read_task(tones.manifest).paths()
    with pytest.raises(KeyboardInterrupt):
        cached_vectors(Stopping(), "x", paths, tmp_path, [])
    source = Counting()
    assert len(cached_vectors(source, "x", paths, tmp_path, [])) == len(paths)
    assert source.computed == len(paths) - 3


@pytest.fixture(scope="module")
def probed(models, tones, tmp_path_factory):
    """Results of two models on two tasks, the tasks and the cache."""
    cache = tmp_path_factory.mktemp("probe") / "embeddings"
    tasks = [
        read_task(tones.manifest, "sounds"),
        read_task(tones.manifest, "uar", group="label", metric="uar"),
    ]
    return probe(models, tasks, cache), tasks, cache


def test_probe_measures_models_and_baselines(probed):
    results, tasks, _ = probed
    systems = ["majority class", "duration", "log-mel", "untrained", "a", "b"]
    for task in tasks:
        own = [row for row in results if row.task == task.name]
        assert [row.system for row in own[::2]] == systems
        assert [row.probe for row in own] == ["linear", "k-NN"] * 6
    found = {(row.task, row.system, row.probe): row for row in results}
    majority = found["sounds", "majority class", "linear"]
    assert majority.score == pytest.approx(1 / 3)
    assert majority.setting is None and majority.pooling is None
    for row in results:
        assert row.baseline == (row.system not in "ab")
        assert 0 <= row.low <= row.high <= 1
        if row.baseline:
            assert row.gain is None
            continue
        twin = found[row.task, "untrained", row.probe]
        assert row.gain == pytest.approx(row.score - twin.score)
        assert row.gain_low <= row.gain_high
        # Each has the readout that is best for it.
        assert (row.pooling, row.layers) in VARIANTS
    # Three kinds of sound that mean spectra tell apart.
    assert found["sounds", "log-mel", "linear"].score > 0.6


def test_duration_tells_of_classes_cut_in_unlike_ways(tmp_path):
    """Noise of 0.5 s and of 1.0 s: only the baseline of durations says it."""
    draw = np.random.default_rng(0)
    rows = [("path", "label", "split")]
    for number in range(24):
        label, split = number % 2, SPLITS[number // 2 % 3]
        path = tmp_path / f"{number}.wav"
        length = round(8000 * (1 + label) * draw.uniform(0.9, 1.1))
        soundfile.write(path, draw.standard_normal(length) / 9, 16000)
        rows.append((path.name, "short long".split()[label], split))
    write_csv(tmp_path / "noise.csv", rows)
    task = read_task(tmp_path / "noise.csv", "noise")
    results = probe([], [task], tmp_path / "cache")
    found = {(row.system, row.probe): row.score for row in results}
    assert found["duration", "linear"] == found["duration", "k-NN"] == 1
    assert found["majority class", "linear"] == 0.5


@pytest.mark.slow
def test_gain_is_paired(models, tones, tmp_path):
    """An untrained model gains 0 over its twin, for certain."""
    folder = tmp_path / "export"
    trained = PooledEncoder(models[0])
    weights = load_weights(models[0])
    state = {
        f"encoder.{key}": value
        for key, value in trained.untrained().lobe.encoder.state_dict().items()
    }
    write_export(folder, state, weights.config, card={})
    results = probe([folder], [read_task(tones.manifest)], tmp_path / "cache")
    linear, nearest = results[-2:]
    for row in (linear, nearest):
        assert (row.gain, row.gain_low, row.gain_high) == (0, 0, 0)
    # Were they not paired, this would show.
    assert nearest.low < nearest.high


@pytest.mark.slow
def test_probe_repeats_from_its_cache(probed, models, tmp_path):
    results, tasks, cache = probed
    files = sorted(cache.iterdir())
    assert len(files) == 5
    times = [file.stat().st_mtime_ns for file in files]
    assert probe(models, tasks, cache) == results
    assert [file.stat().st_mtime_ns for file in files] == times


@pytest.mark.slow
def test_best_pooling_is_chosen_on_valid(probed, models):
    _, tasks, cache = probed
    each = [
        probe(models[:1], tasks[:1], cache, pooling, layers)
        for pooling, layers in VARIANTS
    ]
    best = probe(models[:1], tasks[:1], cache, "best", "best")
    for number, row in enumerate(best):
        same = [one[number] for one in each]
        assert row.valid_score == max(one.valid_score for one in same)
        if row.pooling is not None:
            chosen = VARIANTS.index((row.pooling, row.layers))
            assert row.score == same[chosen].score
            assert row.valid_score == same[chosen].valid_score
    assert len({row.pooling for row in each[0]}) == 2
    assert best == probe(models[:1], tasks[:1], cache)
    with pytest.raises(ValueError, match="pooling"):
        probe(models, tasks, cache, pooling="max")
    with pytest.raises(ValueError, match="no pooling 'class' of 'all'"):
        probe(models, tasks, cache, pooling="class", layers="all")


@pytest.mark.slow
def test_architectures_have_twins_of_their_own(models, tones, tmp_path):
    other = export(tmp_path / "deep", depth=3)
    tasks = [read_task(tones.manifest)]
    results = probe({"a": models[0], "deep": other}, tasks, tmp_path / "cache")
    assert [row.system for row in results[::2]][3:] == [
        "untrained (a)",
        "untrained (deep)",
        "a",
        "deep",
    ]


@pytest.mark.slow
def test_unreadable_clips_are_left_out_for_all(models, tones, tmp_path):
    with open(tones.manifest, newline="") as file:
        header, *rows = csv.reader(file)
    rows = [[str(tones.folder / row[0]), *row[1:]] for row in rows]
    bad = tmp_path / "bad.wav"
    bad.write_text("not audio")
    rows.append([str(bad), "tone", "nobody", "test"])
    path = tmp_path / "table.csv"
    path.write_text("\n".join(",".join(row) for row in [header, *rows]))
    tasks = [read_task(path, "sounds")]
    unreadable = []
    found = probe(models[:1], tasks, tmp_path / "cache", unreadable=unreadable)
    assert [path for path, _ in unreadable] == [str(bad)]
    good = [read_task(tones.manifest, "sounds")]
    assert found == probe(models[:1], good, tmp_path / "cache")
    with pytest.raises(RuntimeError, match="bad.wav"):
        probe(models[:1], tasks, tmp_path / "cache")


def test_mistakes_are_told_before_the_work(models, tones, tmp_path):
    task = read_task(tones.manifest, "sounds")
    with pytest.raises(ValueError, match="two tasks are called sounds"):
        probe(models, [task, task], tmp_path)
    with pytest.raises(ValueError, match="log-mel"):
        probe({"log-mel": models[0]}, [task], tmp_path)
    with pytest.raises(WeightsError, match="nowhere"):
        probe([models[0], "nowhere"], [task], tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.draws
def test_report(probed, tmp_path):
    results, tasks, _ = probed
    text = write_report(results, tasks, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "probe.csv",
        "probe.json",
        "probe.md",
        "probe.png",
    ]
    assert (
        (tmp_path / "probe.md").read_text() == text == markdown(results, tasks)
    )
    assert (tmp_path / "probe.png").stat().st_size > 10000
    content = json.loads((tmp_path / "probe.json").read_text())
    assert [Result(**row) for row in content["results"]] == results
    assert content["tasks"][0]["task"] == "sounds"
    with open(tmp_path / "probe.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == [r.score for r in results]
    row = results[8]
    line = next(x for x in text.splitlines() if x.startswith("| a "))
    assert f"{100 * row.score:.1f}" in line
    assert f"[{100 * row.low:.1f}, {100 * row.high:.1f}]" in line
    valid = [f"{100 * own.valid_score:.1f}" for own in results[8::12]]
    assert [cell.strip() for cell in line.split("|")[3:-1:2]] == valid
    # Two speakers in test, and three labels: few.
    assert "sounds, uar say little" in text


def results_of(task, systems):
    """Results of both probes; a system is (name, baseline, valid, test)."""
    return [
        Result(
            *(task, "accuracy", name, baseline, probe, test, 0.0, 1.0),
            *([None] * 3 if baseline else [test, 0.0, 1.0]),
            *(valid, 0.1, "mean", "last"),
        )
        for name, baseline, valid, test in systems
        for probe in ("linear", "k-NN")
    ]


def test_the_best_score_is_bold_also_that_of_a_baseline(probed):
    task = probed[1][0]
    systems = [
        ("log-mel", True, 0.6, 0.9),
        ("a", False, 0.4, 0.8),
        ("b", False, 0.5, 0.9),
    ]
    text = markdown(results_of(task.name, systems), [task])
    table = text.partition("## Linear probe")[2].splitlines()[2:7]
    bold = [line.split("|")[1].strip() for line in table if "**90.0**" in line]
    assert bold == ["log-mel", "b"] and "**80.0**" not in text


def test_report_orders_models_by_valid_and_says_which_to_take(probed):
    tasks = probed[1]
    first = [
        ("log-mel", True, 0.6, 0.5),
        ("untrained", True, 0.3, 0.9),
        ("a", False, 0.4, 0.9),
        ("b", False, 0.8, 0.7),
        ("c", False, 0.5, 0.8),
    ]
    # The mean over the tasks decides.
    second = [(*row[:2], 0.5, row[3]) for row in first]
    results = results_of("sounds", first) + results_of("uar", second)
    lines = markdown(results, tasks).splitlines()
    shown = [line.split("|")[1].strip() for line in lines if "[" in line]
    scores = ["log-mel", "untrained", "b", "c", "a"]
    found = [name for name in shown if name in scores]
    assert found == 2 * [*scores, *scores[2:]]
    assert lines[-1] == (
        "Take b: 65.0 % on valid (70.0 on test) by the linear probe, mean of "
        "2 tasks, +15.0 (-10.0) over c, +10.0 (+20.0) over log-mel."
    )
    alone = results_of("sounds", first[:3])
    assert markdown(alone, tasks[:1]).splitlines()[-1] == (
        "Take the baseline log-mel: 60.0 % on valid (50.0 on test) by the "
        "linear probe, +20.0 (-40.0) over a, +30.0 (-40.0) over untrained."
    )
