"""Plot the pictures of a training run.

Each function draws one picture, writes it to a file and returns the figure. The
suffix of the file chooses the format (.png, .pdf, .svg). Figures are made
without pyplot, so the caller's backend and settings have no effect. The colors
can be distinguished with every common color blindness and in gray print: color
maps with evenly increasing lightness, and the palette of Okabe & Ito.
"""

import math
from numbers import Real
from pathlib import Path

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssast_lobes.utils.chance import CHANCE

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
_SKY, _GREY = "#56B4E9", "0.8"

# One style for all pictures, independent of the user's matplotlibrc.
_STYLE = [
    "default",
    {
        "font.size": 9.0,
        "axes.titlesize": 9.0,
        "figure.titlesize": 10.0,
        "axes.formatter.limits": (-3, 5),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "savefig.dpi": 200.0,
        "pdf.fonttype": 42,
    },
]

# Name, color, line and marker of each split.
_SPLITS = {
    "train": ("Training", _BLUE, "-", "o"),
    "valid": ("Validation", _ORANGE, "--", "s"),
    "test": ("Test", _GREEN, ":", "D"),
}
_METRIC_NAMES = {
    "lr": "Learning rate",
    "effective_rank": "Effective rank (dimensions)",
    "embedding_std": "Deviation of embeddings",
    "projection_std": "Deviation of projections",
    "uar": "UAR",
    "macro_f1": "Macro F1",
    "eer": "Equal error rate",
    "wer": "Word error rate",
    "nce": "InfoNCE",
    "mse": "MSE",
    "clip_nce": "InfoNCE of clips",
    "clip_accuracy": "Accuracy of clips",
}
_MOST_MARKERS = 40

# With more classes than this, neither names nor counts are readable.
_MOST_NAMED_CLASSES = 150
_MOST_PANELS_ACROSS = 4


def plot_reconstruction(
    spectrogram,
    mask_frames,
    reconstruction,
    path,
    title=None,
    frame_shift=0.01,
):
    """Plot a spectrogram, its visible patches and its reconstruction.

    The three panels have one color scale, that of the spectrogram. The third
    panel shows the prediction only at masked patches: elsewhere the model
    predicts nothing.

    Arguments
    ---------
    spectrogram : torch.Tensor
        Normalized log-mel features of one clip without padding, (T, M).
    mask_frames : torch.Tensor
        Boolean, True where the spectrogram was masked, (T, M).
    reconstruction : torch.Tensor
        The model's prediction on the scale of `spectrogram`, (T, M).
    path : str or Path
        File to write.
    title : str
        Line above the panels.
    frame_shift : float
        Seconds from one frame to the next.

    Returns
    -------
    matplotlib.figure.Figure
        The figure that was written.

    Raises
    ------
    ValueError
        If the three shapes differ, or are not (T, M).

    Example
    -------
    >>> tmpdir = getfixture("tmpdir")
    >>> feats = torch.randn(98, 128)
    >>> mask = torch.rand(98, 128) > 0.5
    >>> path = tmpdir / "reconstruction.png"
    >>> figure = plot_reconstruction(feats, mask, torch.zeros(98, 128), path)
    >>> path.exists()
    True
    """
    spectrogram, prediction = _array(spectrogram), _array(reconstruction)
    hidden = _array(mask_frames).astype(bool)
    shapes = {spectrogram.shape, hidden.shape, prediction.shape}
    if len(shapes) > 1 or spectrogram.ndim != 2:
        raise ValueError(
            "expected spectrogram, mask and reconstruction of one shape "
            f"(T, M), got {spectrogram.shape}, {hidden.shape} and "
            f"{prediction.shape}"
        )
    panels = {
        "Input": spectrogram,
        f"Masked ({100 * hidden.mean():.0f} %)": np.where(
            hidden, np.nan, spectrogram
        ),
        "Masked part predicted": np.where(hidden, prediction, spectrogram),
    }
    frames, mels = spectrogram.shape
    # A few extreme cells must not compress the color scale.
    low, high = np.percentile(spectrogram, [0.5, 99.5])
    with matplotlib.style.context(_STYLE):
        figure = Figure(figsize=(10, 2.8), layout="constrained")
        axes = figure.subplots(1, 3, sharex=True, sharey=True)
        for axis, (name, values) in zip(axes, panels.items(), strict=True):
            axis.set_facecolor(_GREY)
            image = axis.imshow(
                values.T,
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=low,
                vmax=high,
                extent=(0, frames * frame_shift, 0, mels),
            )
            axis.set(title=name, xlabel="Time (s)")
        axes[0].set_ylabel("Mel bin")
        bar = figure.colorbar(image, ax=axes, extend="both", pad=0.01)
        bar.set_label("Log-mel energy (normalized)")
        if title is not None:
            figure.suptitle(title, parse_math=False)
        return _save(figure, path)


def plot_training_curves(log_rows, path):
    """Plot every logged number over time, with a panel for each metric.

    A key such as ``train_loss`` or ``valid loss`` is the metric "loss" of a
    split. Train, valid and test share the panel of their metric. A key without
    a split (``lr``) has its own panel. A chance level,
    ``train_accuracy_chance``, is a thin dashed line in the panel of its metric,
    in the color of its split. Values that are missing or not finite are left
    out.

    Arguments
    ---------
    log_rows : list of dict
        One row for each log entry: ``step`` or ``epoch``, and numbers by name.
        If all rows have ``step``, it is the horizontal axis, otherwise
        ``epoch``.
    path : str or Path
        File to write.

    Returns
    -------
    matplotlib.figure.Figure
        The figure that was written.

    Raises
    ------
    ValueError
        If the rows have no number to draw, or a row lacks the axis.

    Example
    -------
    >>> tmpdir = getfixture("tmpdir")
    >>> rows = [
    ...     {"epoch": 1, "train_loss": 2.1, "valid_loss": 2.0, "lr": 1e-3},
    ...     {"epoch": 2, "train_loss": 1.2, "valid_loss": 1.5, "lr": 5e-4},
    ... ]
    >>> figure = plot_training_curves(rows, tmpdir / "curves.png")
    """
    unit = "step" if all("step" in row for row in log_rows) else "epoch"
    panels = _curves_by_metric(log_rows, unit)
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    with matplotlib.style.context(_STYLE):
        figure = Figure(
            figsize=(0.6 + 3.1 * columns, 0.4 + 2.3 * lines),
            layout="constrained",
        )
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        shown = {}
        for axis, (metric, curves) in zip(axes, panels.items(), strict=False):
            for split, points in curves.items():
                if str(split).endswith(CHANCE):
                    part = split.removesuffix(CHANCE)
                    shown["chance"] = _draw_chance(axis, part, points)
                else:
                    shown[split] = _draw_curve(axis, split, points)
            axis.set(xlabel=unit.capitalize(), ylabel=_metric_name(metric))
            axis.xaxis.get_major_locator().set_params(
                integer=True, nbins=6, min_n_ticks=1
            )
            axis.grid(alpha=0.3)
        for axis in axes[len(panels) :]:
            axis.remove()
        names = {split: look[0] for split, look in _SPLITS.items()}
        names["chance"] = "Chance"
        named = [split for split in names if split in shown]
        if named:
            figure.legend(
                [shown[split] for split in named],
                [names[split] for split in named],
                loc="outside upper center",
                ncols=len(named),
            )
        return _save(figure, path)


def plot_confusion_matrix(matrix, labels, path):
    """Plot a confusion matrix: colors by row, counts in the cells.

    The color is the fraction of the row's clips, so that rare and frequent
    classes can be compared. Cells without clips stay empty, and the row of a
    class that never occurs is gray. The picture grows with the number of
    classes: with more than about 35 classes, it is larger than a page. With
    more than 150 classes, it has colors only.

    Arguments
    ---------
    matrix : torch.Tensor
        Counts, (C, C); rows are the truth, columns the prediction.
    labels : list of str
        Names of the C classes.
    path : str or Path
        File to write.

    Returns
    -------
    matplotlib.figure.Figure
        The figure that was written.

    Raises
    ------
    ValueError
        If the matrix is not (C, C) for C labels, or holds no clips.

    Example
    -------
    >>> tmpdir = getfixture("tmpdir")
    >>> figure = plot_confusion_matrix(
    ...     [[18, 2], [5, 15]], ["no", "yes"], tmpdir / "confusion.png"
    ... )
    """
    counts = _array(matrix)
    n_classes = len(labels)
    if counts.shape != (n_classes, n_classes):
        raise ValueError(
            f"expected a matrix ({n_classes}, {n_classes}) for {n_classes} "
            f"labels, got {counts.shape}"
        )
    if not counts.any():
        raise ValueError("the confusion matrix holds no clips")
    cell, font = _cell_size(n_classes, digits=len(f"{counts.max():.0f}"))
    side = cell * n_classes
    clips = counts.sum(axis=1)
    # A class that never occurs gives 0 / 0 = NaN, drawn in gray.
    with np.errstate(invalid="ignore"):
        percent = 100 * counts / clips[:, None]
    with matplotlib.style.context([*_STYLE, {"font.size": max(9.0, side)}]):
        # The axes have a fixed size; saving adds space for long labels.
        figure = Figure(figsize=(side, side))
        axis = figure.add_axes((0, 0, 1, 1), facecolor=_GREY)
        image = axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        axis.set(xlabel="Predicted class", ylabel="True class")
        if n_classes <= _MOST_NAMED_CLASSES:
            _write_counts(axis, counts, percent, font)
            _name_classes(axis, labels, cell)
        bar_axis = figure.add_axes((1 + 0.2 / side, 0, 0.18 / side, 1))
        bar = figure.colorbar(image, cax=bar_axis)
        bar.set_label("Part of true class (%)")
        recall = np.nanmean(percent.diagonal())
        axis.set_title(
            f"Accuracy {100 * counts.trace() / counts.sum():.1f} %, "
            f"UAR {recall:.1f} %, {counts.sum():.0f} clips",
            fontsize="medium",
        )
        return _save(figure, path, bbox_inches="tight", pad_inches=0.08)


def plot_comparison(rows, path, label="Accuracy (%)"):
    """Plot bars that compare systems by one number, with error bars.

    Arguments
    ---------
    rows : list of tuple
        ``(name, mean, spread)`` of each system, drawn from top to bottom.
        Mean and spread are fractions between 0 and 1, drawn as percentages.
        With a spread of None or 0 (a single run), there is no error bar.
    path : str or Path
        File to write.
    label : str
        Name of the number. It should also say what the spread is.

    Returns
    -------
    matplotlib.figure.Figure
        The figure that was written.

    Raises
    ------
    ValueError
        If there are no rows, or a mean is not within 0 to 1.

    Example
    -------
    >>> tmpdir = getfixture("tmpdir")
    >>> rows = [("from scratch", 0.61, 0.02), ("pretrained", 0.74, 0.01)]
    >>> figure = plot_comparison(rows, tmpdir / "comparison.png")
    """
    if not rows:
        raise ValueError("no rows to compare")
    for name, mean, _ in rows:
        if not 0 <= mean <= 1:
            raise ValueError(f"{name}: {mean} is not between 0 and 1")
    names, means, spreads = zip(*rows, strict=True)
    means = 100 * np.array(means, dtype=float)
    spreads = 100 * np.array([spread or 0 for spread in spreads], dtype=float)
    with matplotlib.style.context(_STYLE):
        # The axes have a fixed size; saving adds space for long names.
        figure = Figure(figsize=(3.6, 0.36 * len(rows)))
        axis = figure.add_axes((0, 0, 1, 1))
        places = np.arange(len(rows))
        axis.barh(places, means, height=0.66, color=_SKY)
        for place, mean, spread in zip(places, means, spreads, strict=True):
            text = f"{mean:.1f}"
            if spread:
                axis.errorbar(
                    mean, place, xerr=spread, color="black", capsize=3
                )
                text = f"{text} ± {spread:.1f}"
            axis.annotate(
                text,
                (mean + spread, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        axis.set_yticks(places, names, parse_math=False)
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(0, 1.04 * (means + spreads).max() or 1)
        axis.set_xticks([tick for tick in axis.get_xticks() if tick <= 100])
        axis.set_xlabel(label)
        return _save(figure, path, bbox_inches="tight", pad_inches=0.08)


def plot_intervals(panels, path, grey=()):
    """Plot scores with intervals: systems are rows, and tasks are panels.

    Arguments
    ---------
    panels : dict
        Title -> system -> series -> ``(score, low, high)``, all fractions
        between 0 and 1, drawn as percentages. Systems are drawn from top to
        bottom, in the order of the first panel. At most three series are
        possible.
    path : str or Path
        File to write.
    grey : collection of str
        Systems on a gray background, such as baselines.

    Returns
    -------
    matplotlib.figure.Figure
        The figure that was written.

    Raises
    ------
    ValueError
        If there are no panels.

    Example
    -------
    >>> tmpdir = getfixture("tmpdir")
    >>> systems = {
    ...     "untrained": {"linear": (0.3, 0.2, 0.4)},
    ...     "pretrained": {"linear": (0.6, 0.5, 0.7)},
    ... }
    >>> path = tmpdir / "intervals.png"
    >>> figure = plot_intervals({"words": systems}, path, grey=["untrained"])
    """
    if not panels:
        raise ValueError("no panels to draw")
    systems = list(next(iter(panels.values())))
    columns = min(len(panels), _MOST_PANELS_ACROSS)
    rows = -(-len(panels) // columns)
    height = max(1.6, 0.3 * len(systems) + 0.9)
    with matplotlib.style.context(_STYLE):
        figure = Figure(
            figsize=(1.4 + 2.6 * columns, rows * height + 0.3),
            layout="constrained",
        )
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, (title, scores) in zip(
            axes.flat, panels.items(), strict=False
        ):
            handles = _draw_intervals(axis, systems, scores)
            for place, name in enumerate(systems):
                if name in grey:
                    axis.axhspan(
                        place - 0.5, place + 0.5, color="0.94", zorder=0
                    )
            axis.set_title(title, parse_math=False)
        axes[0, 0].set_yticks(range(len(systems)), systems, parse_math=False)
        axes[0, 0].set_ylim(len(systems) - 0.5, -0.5)
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=len(handles),
        )
        return _save(figure, path)


def _array(values):
    """Return a tensor or an array as float64 on the CPU."""
    return torch.as_tensor(values).detach().cpu().double().numpy()


def _save(figure, path, **options):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, **options)
    return figure


def _curves_by_metric(log_rows, unit):
    """Return the points (x, y) by metric and split, in nested dicts."""
    panels = {}
    for row in log_rows:
        if unit not in row:
            raise ValueError(f"a log row has neither step nor epoch: {row}")
        for key, value in row.items():
            if key in ("step", "epoch") or not _is_number(value):
                continue
            split, metric = _split_and_metric(key)
            if metric.endswith(CHANCE):
                metric = metric.removesuffix(CHANCE)
                split = f"{split}{CHANCE}"
            curves = panels.setdefault(metric, {})
            curves.setdefault(split, []).append((row[unit], float(value)))
    if not panels:
        raise ValueError("the log rows hold no numbers to draw")
    return panels


def _is_number(value):
    return isinstance(value, Real) and math.isfinite(value)


def _split_and_metric(key):
    """Split a key: ``valid_loss`` or ``valid loss`` is (valid, loss)."""
    for split in _SPLITS:
        if key.startswith((f"{split}_", f"{split} ", f"{split}/")):
            return split, key[len(split) + 1 :]
    return None, key


def _draw_curve(axis, split, points):
    """Draw one curve and return its handle for the legend."""
    _, color, line, marker = _SPLITS.get(split, ("", "black", "-", "o"))
    steps, values = zip(*points, strict=True)
    # Markers distinguish the curves if there is space, otherwise line styles.
    if len(points) <= _MOST_MARKERS:
        style = {"marker": marker, "markersize": 3.5}
    else:
        style = {"linestyle": line}
    return axis.plot(steps, values, color=color, linewidth=1.2, **style)[0]


def _draw_chance(axis, split, points):
    """Draw a chance level, and return a gray handle for the legend."""
    steps, values = zip(*points, strict=True)
    look = {"linewidth": 0.9, "linestyle": "--"}
    # A single epoch is one point, which a line would not show.
    marker = "_" if len(points) == 1 else None
    # Batches of train and valid may differ in size, and so in chance level.
    color = _SPLITS.get(split, ("", "black"))[1]
    axis.plot(steps, values, color=color, marker=marker, **look)
    return Line2D([], [], color="0.4", **look)


def _draw_intervals(axis, systems, scores):
    """Draw the intervals of one panel; return the legend handle by series."""
    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    handles = {}
    for number, name in enumerate(names):
        places = np.arange(len(systems)) + 0.26 * (
            number - (len(names) - 1) / 2
        )
        points = np.array([scores[system][name] for system in systems])
        score, low, high = 100 * points.T
        # A test score need not lie between the percentiles of its bootstrap.
        ends = np.clip([score - low, high - score], 0, None)
        _, color, _, marker = list(_SPLITS.values())[number]
        handles[name] = axis.errorbar(
            score,
            places,
            xerr=ends,
            color=color,
            linestyle="none",
            marker=marker,
            markersize=4,
            linewidth=1.2,
        )
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="0.85", linewidth=0.5)
    axis.set_axisbelow(True)
    return handles


def _metric_name(metric):
    if metric in _METRIC_NAMES:
        return _METRIC_NAMES[metric]
    words = metric.replace("_", " ")
    return words if words != words.lower() else words.capitalize()


def _cell_size(n_classes, digits):
    """Return the side of a cell in inches, and its text size in points."""
    if n_classes > _MOST_NAMED_CLASSES:
        return 16.0 / n_classes, None
    # A digit is about 0.64 of the font size wide; 5 points can be read.
    narrowest = 5.0 * 0.64 * (digits + 0.6) / 72
    cell = max(min(0.6, 8.0 / n_classes), 0.15, 2.4 / n_classes, narrowest)
    return cell, min(9.0, 72 * cell / (0.64 * (digits + 0.6)))


def _write_counts(axis, counts, percent, font):
    for true, predicted in zip(*counts.nonzero(), strict=True):
        text = axis.text(
            predicted,
            true,
            f"{counts[true, predicted]:.0f}",
            ha="center",
            va="center",
            fontsize=font,
            color="white" if percent[true, predicted] > 65 else "black",
        )
        # The text is always inside the axes; measuring thousands is slow.
        text.set_in_layout(False)


def _name_classes(axis, labels, cell):
    """Name every class on both axes, vertically if there is no space."""
    size = min(9.0, 72 * cell * 0.8)
    longest = max(len(label) for label in labels)
    upright = 0.6 * size * longest > 72 * cell
    places = np.arange(len(labels))
    options = {"fontsize": size, "parse_math": False}
    axis.set_yticks(places, labels, **options)
    axis.set_xticks(places, labels, rotation=90 if upright else 0, **options)
    # Faint lines between the cells lead the eye to the labels.
    axis.set_xticks(places[1:] - 0.5, minor=True)
    axis.set_yticks(places[1:] - 0.5, minor=True)
    axis.grid(which="minor", color="0.9", linewidth=0.4)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(True)
