"""Plots: what the pictures show, and that their text can be read."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from ssast_lobes.utils.plots import (
    plot_comparison,
    plot_confusion_matrix,
    plot_reconstruction,
    plot_training_curves,
)

pytestmark = pytest.mark.draws


def confusion(n_classes, clips=40):
    """A matrix as a fair classifier makes it: a diagonal and its neighbors."""
    matrix = torch.diag(torch.full((n_classes,), clips))
    for offset in (1, -1, 2):
        if abs(offset) < n_classes:
            neighbors = torch.full((n_classes - abs(offset),), clips // 5)
            matrix += torch.diag(neighbors, offset)
    return matrix


def names(n_classes):
    return [f"class_{number:03d}" for number in range(n_classes)]


def drawn(figure):
    """Draw the figure, so that its texts are where they belong."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    return renderer


def boxes(texts, renderer):
    """Extents of the visible texts in pixels."""
    return [
        text.get_window_extent(renderer)
        for text in texts
        if text.get_visible() and text.get_text()
    ]


def axis_texts(figure):
    """Every text outside the axes: ticks, labels, titles, legend."""
    yield from figure.texts
    for legend in figure.legends:
        yield from legend.get_texts()
    for axis in figure.axes:
        yield from (axis.title, axis.xaxis.label, axis.yaxis.label)
        for side in (axis.xaxis, axis.yaxis):
            low, high = sorted(side.get_view_interval())
            yield side.get_offset_text()
            for tick in side.get_major_ticks():
                if low <= tick.get_loc() <= high:
                    yield from (tick.label1, tick.label2)


def assert_no_overlap(extents):
    for first, second in itertools.combinations(extents, 2):
        width = min(first.x1, second.x1) - max(first.x0, second.x0)
        height = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(width, height) <= 0, (first, second)


@pytest.fixture
def clip():
    generator = torch.Generator().manual_seed(0)
    spectrogram = torch.randn(60, 128, generator=generator)
    mask = torch.zeros(60, 128, dtype=torch.bool)
    mask[16:32, :64] = True
    return spectrogram, mask, torch.randn(60, 128, generator=generator)


def test_reconstruction_shows_the_prediction_only_where_hidden(clip, tmp_path):
    spectrogram, mask, prediction = clip
    path = tmp_path / "new folder" / "picture.png"
    figure = plot_reconstruction(*clip, path, title="a_$1.wav")
    assert imread(path).shape[:2] == (560, 2000)
    images = [axis.images[0] for axis in figure.axes[:3]]
    shown = [np.ma.filled(i.get_array(), np.nan).T for i in images]
    assert np.allclose(shown[0], spectrogram)
    assert np.array_equal(np.isnan(shown[1]), mask)
    assert np.allclose(shown[2], torch.where(mask, prediction, spectrogram))
    assert len({image.get_clim() for image in images}) == 1
    assert images[0].get_extent() == [0, pytest.approx(0.6), 0, 128]
    assert_no_overlap(boxes(axis_texts(figure), drawn(figure)))


def test_reconstruction_takes_any_device_and_type(clip, tmp_path):
    spectrogram, mask, prediction = clip
    figure = plot_reconstruction(
        spectrogram.bfloat16(),
        mask.numpy(),
        prediction.requires_grad_(),
        tmp_path / "picture.pdf",
    )
    assert (tmp_path / "picture.pdf").read_bytes()[:5] == b"%PDF-"
    assert figure.axes[2].get_xlabel() == "Time (s)"


def test_reconstruction_of_other_shapes_raises(clip, tmp_path):
    spectrogram, mask, prediction = clip
    with pytest.raises(ValueError, match=r"\(60, 128\), \(59, 128\)"):
        plot_reconstruction(spectrogram, mask[1:], prediction, tmp_path / "a")


def test_training_curves_share_a_panel_a_metric(tmp_path):
    rows = [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "valid loss": 2 / epoch,
            "valid_mAP": 0.1 * epoch if epoch != 3 else float("nan"),
            "lr": np.float32(1e-5 * epoch),
            "note": "text",
        }
        for epoch in range(1, 6)
    ]
    rows.append({"epoch": 5, "test_loss": 0.5})
    path = tmp_path / "curves.svg"
    figure = plot_training_curves(rows, path)
    assert "<svg" in path.read_text(encoding="utf-8")
    panels = {axis.get_ylabel(): axis for axis in figure.axes}
    assert list(panels) == ["Loss", "mAP", "Learning rate"]
    loss = [line.get_ydata()[0] for line in panels["Loss"].lines]
    assert loss == [1, 2, 0.5]
    assert panels["mAP"].lines[0].get_xdata().tolist() == [1, 2, 4, 5]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["Training", "Validation", "Test"]
    assert all(axis.get_xlabel() == "Epoch" for axis in figure.axes)


@pytest.mark.parametrize("n_metrics", [1, 2, 4, 7])
def test_training_curves_have_no_overlapping_text(n_metrics, tmp_path):
    rows = [
        {"epoch": step // 500, "step": step}
        | {f"train_metric_{i}": 10.0 ** -(i + 1) for i in range(n_metrics)}
        for step in range(0, 400_000, 1000)
    ]
    figure = plot_training_curves(rows, tmp_path / "curves.png")
    assert len(figure.axes) == n_metrics
    assert figure.axes[0].get_xlabel() == "Step"
    assert_no_overlap(boxes(axis_texts(figure), drawn(figure)))


def test_training_curves_of_nothing_raise(tmp_path):
    with pytest.raises(ValueError, match="no numbers"):
        plot_training_curves([], tmp_path / "a.png")
    with pytest.raises(ValueError, match="neither step nor epoch"):
        plot_training_curves([{"loss": 1.0}], tmp_path / "a.png")


@pytest.mark.parametrize(
    "n_classes",
    [2, 12, *(pytest.param(n, marks=pytest.mark.slow) for n in (35, 110))],
)
def test_confusion_matrix_can_be_read(n_classes, tmp_path):
    matrix = confusion(n_classes)
    path = tmp_path / "confusion.png"
    figure = plot_confusion_matrix(matrix, names(n_classes), path)
    axis = figure.axes[0]
    renderer = drawn(figure)
    assert_no_overlap(boxes(axis_texts(figure), renderer))
    # Each count stands inside its cell, at a size that prints.
    assert len(axis.texts) == (matrix > 0).sum()
    cell = axis.get_window_extent().width / n_classes
    for extent in boxes(axis.texts, renderer):
        assert max(extent.width, extent.height) < cell
    assert min(text.get_fontsize() for text in axis.texts) >= 5
    assert imread(path).shape[0] < 5000


def test_confusion_matrix_colors_rows_and_writes_counts(tmp_path):
    matrix = [[30, 10, 0], [0, 0, 0], [1, 0, 3]]
    figure = plot_confusion_matrix(
        matrix, ["a", "$b", "c_"], tmp_path / "m.pdf"
    )
    axis = figure.axes[0]
    shares = np.ma.filled(axis.images[0].get_array(), np.nan)
    expected = [[75, 25, 0], [np.nan] * 3, [25, 0, 75]]
    assert np.array_equal(shares, expected, equal_nan=True)
    counts = {text.get_position(): text.get_text() for text in axis.texts}
    assert counts == {(0, 0): "30", (1, 0): "10", (0, 2): "1", (2, 2): "3"}
    # 33 of 44 clips; the class that never occurs does not count.
    assert axis.get_title() == "Accuracy 75.0 %, UAR 75.0 %, 44 clips"
    assert axis.get_ylabel() == "True class"


@pytest.mark.slow
def test_confusion_matrix_of_a_thousand_classes_stays_a_picture(tmp_path):
    path = tmp_path / "confusion.png"
    figure = plot_confusion_matrix(confusion(1000), names(1000), path)
    assert not figure.axes[0].texts
    assert imread(path).shape[0] < 5000


def test_confusion_matrix_that_cannot_be_drawn_raises(tmp_path):
    with pytest.raises(ValueError, match=r"\(3, 3\) for 3 labels"):
        plot_confusion_matrix(torch.ones(2, 2), names(3), tmp_path / "a.png")
    with pytest.raises(ValueError, match="no clips"):
        plot_confusion_matrix(torch.zeros(2, 2), names(2), tmp_path / "a.png")


def test_comparison_draws_percentages_with_error_bars(tmp_path):
    rows = [
        ("baseline", 0.713, None),
        ("scratch", 0.6, 0.02),
        ("best", 1.0, 0.0),
    ]
    path = tmp_path / "comparison.png"
    figure = plot_comparison(rows, path, label="Test accuracy (%)")
    axis = figure.axes[0]
    widths = [bar.get_width() for bar in axis.patches]
    assert widths == pytest.approx([71.3, 60, 100])
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["71.3", "60.0 ± 2.0", "100.0"]
    # One error bar, from 58 to 62.
    (bar,) = axis.collections
    assert bar.get_segments()[0][:, 0].tolist() == pytest.approx([58, 62])
    texts = [*axis_texts(figure), *axis.texts]
    assert_no_overlap(boxes(texts, drawn(figure)))
    assert path.exists()


def test_comparison_of_percentages_or_nothing_raises(tmp_path):
    with pytest.raises(
        ValueError, match="scratch: 61.0 is not between 0 and 1"
    ):
        plot_comparison([("scratch", 61.0, 2.0)], tmp_path / "a.png")
    with pytest.raises(ValueError, match="no rows"):
        plot_comparison([], tmp_path / "a.png")


@pytest.mark.slow
def test_the_callers_matplotlib_is_left_alone(tmp_path):
    program = """
import sys
import matplotlib
matplotlib.rcParams["font.size"] = 33
before = dict(matplotlib.rcParams.copy())
from ssast_lobes.utils.plots import plot_comparison
plot_comparison([("a", 0.5, 0.1)], sys.argv[1])
assert dict(matplotlib.rcParams.copy()) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    path = tmp_path / "comparison.png"
    subprocess.run([sys.executable, "-c", program, path], check=True)
    plot_comparison([("a", 0.5, 0.1)], tmp_path / "own.png")
    assert np.array_equal(imread(path), imread(tmp_path / "own.png"))


def test_chance_is_a_dashed_line_in_the_panel_of_its_metric(tmp_path):
    rows = [
        {"epoch": e, "valid_nce": 4 - e, "valid_nce_chance": 4.1, "lr": 0.1}
        for e in (1, 2)
    ]
    figure = plot_training_curves(rows, tmp_path / "curves.png")
    panels = {axis.get_ylabel(): axis for axis in figure.axes}
    assert panels.keys() == {"InfoNCE", "Learning rate"}
    curve, chance = panels["InfoNCE"].lines
    assert list(curve.get_ydata()) == [3, 2]
    assert list(chance.get_ydata()) == [4.1, 4.1]
    assert chance.get_linestyle() == "--"
    assert chance.get_color() == curve.get_color()
    [legend] = figure.legends
    assert [t.get_text() for t in legend.texts] == ["Validation", "Chance"]
