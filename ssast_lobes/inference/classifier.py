"""Classify files and batches with an exported classifier."""

from typing import NamedTuple

import torch

from ssast_lobes.checkpoints.format import WeightsError, load_strictly
from ssast_lobes.checkpoints.linear_heads import head_names, read_head
from ssast_lobes.inference.interface import Interface
from ssast_lobes.inference.windows import Windowing
from ssast_lobes.models.heads import ClassificationHead, head_arguments
from ssast_lobes.models.pooling import ClipPooling

_SHOWN_LABELS = 3


def _best(scores):
    """Return a short text of the best labels and their scores."""
    ranked = sorted(scores, key=scores.get, reverse=True)
    shown = [f"{name} {scores[name]:.2f}" for name in ranked[:_SHOWN_LABELS]]
    return ", ".join(shown + ["..."] * (len(ranked) > _SHOWN_LABELS))


class WindowScores(NamedTuple):
    """Scores of one window of a clip.

    Arguments
    ---------
    start, end : float
        Start and end of the window, in seconds.
    labels : list of str
        See `Classification`.
    scores : dict of str to float
        See `Classification`.
    """

    start: float
    end: float
    labels: list
    scores: dict

    def __repr__(self):
        return f"<{self.start:.2f} to {self.end:.2f} s: {_best(self.scores)}>"


class Classification(NamedTuple):
    """The labels and scores of one clip.

    Arguments
    ---------
    path : str or None
        The file, or None for a waveform.
    labels : list of str
        For single-label models, the best label. For multi-label models, the
        labels whose score reaches the threshold, best first, or none.
    scores : dict of str to float
        Probability of each label, in the order of the classes. For single-label
        models, the probabilities sum to 1. See `AudioClassifier` for the mean
        over windows.
    windows : list of WindowScores
        Scores of each window of the clip.
    """

    path: str
    labels: list
    scores: dict
    windows: list

    def __repr__(self):
        count = len(self.windows)
        return (
            f"<{self.path or 'a clip'}, {self.seconds:.2f} s in {count} "
            f"window{'s' * (count > 1)}: {_best(self.scores)}>"
        )

    @property
    def label(self):
        """The best label, or None if no label reaches the threshold."""
        return self.labels[0] if self.labels else None

    @property
    def seconds(self):
        """Duration of the clip in seconds."""
        return self.windows[-1].end

    def as_dict(self):
        """Return plain values, for JSON."""
        parts = [window._asdict() for window in self.windows]
        return {**self._asdict(), "windows": parts}

    def rows(self, windows=False):
        """Return flat rows for a CSV: one, or one for each window.

        Arguments
        ---------
        windows : bool
            Whether to return a row for each window.

        Returns
        -------
        list of dict
            ``path``, ``start`` and ``end`` (seconds), ``labels`` separated by
            semicolons, ``score`` of the best label, and ``score:<label>``.
        """
        whole = WindowScores(0.0, self.seconds, self.labels, self.scores)
        return [
            {
                "path": self.path,
                "start": part.start,
                "end": part.end,
                "labels": ";".join(part.labels),
                "score": max(part.scores.values()),
                **{f"score:{name}": x for name, x in part.scores.items()},
            }
            for part in (self.windows if windows else [whole])
        ]


class AudioClassifier(Interface):
    """Classify audio by the export of a classifier, or by a linear head.

    The probabilities of single-label models sum to 1. The probabilities of
    multi-label models are independent for each label. If a clip has several
    windows, its probabilities are the mean over the windows, weighted by
    duration. For a linear head, the scores are averaged before the softmax
    instead.

    `fitted_seconds` is the length of the longest clips that the classifier is
    meant for. For a linear head, this is the longest clip that the head was
    fitted or tested on. For other classifiers, this is the window of the model.

    Example
    -------
    >>> from ssast_lobes import (
    ...     FrontEnd,
    ...     SpectrogramClassifier,
    ...     SpectrogramEncoder,
    ... )
    >>> from ssast_lobes.checkpoints.folder import (
    ...     export_classifier,
    ...     label_encoder_of,
    ... )
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> folder = getfixture("tmpdir") / "export"
    >>> _ = export_classifier(
    ...     folder,
    ...     SpectrogramClassifier(encoder, n_classes=2),
    ...     FrontEnd(),
    ...     label_encoder_of(["cat", "dog"]),
    ...     multi_label=False,
    ...     card={},
    ... )
    >>> classifier = AudioClassifier.from_hparams(folder)
    >>> [result] = classifier.classify_batch(torch.randn(1, 16000))
    >>> result.label in ("cat", "dog"), round(sum(result.scores.values()), 4)
    (True, 1.0)
    """

    def __init__(
        self,
        source=None,
        device="cpu",
        batch_size=16,
        precision="fp32",
        task=None,
        window_seconds=None,
        hop_seconds=None,
    ):
        self.task = task
        super().__init__(source, device, batch_size, precision)
        self._set_windows(window_seconds, hop_seconds)

    @classmethod
    def from_hparams(
        cls,
        source=None,
        device="cpu",
        batch_size=16,
        precision="fp32",
        task=None,
        window_seconds=None,
        hop_seconds=None,
    ):
        """Load an exported folder.

        Arguments
        ---------
        source, device, batch_size, precision
            See `AudioEncoder.from_hparams`.
        task : str, optional
            Name of a linear head of the folder, on its frozen encoder; see
            `ssast_lobes.checkpoints.linear_heads.head_names`. A pretrained
            export with one head needs no name.
        window_seconds : float, optional
            Length of the windows that longer audio is cut into. By default
            `fitted_seconds`, but at most the window of the model.
        hop_seconds : float, optional
            Time between the starts of two windows, rounded down to whole
            patches. By default half a window.

        Returns
        -------
        AudioClassifier

        Raises
        ------
        ValueError
            If the window is shorter than a patch or longer than the window of
            the model, or the hop is longer than the window.
        WeightsError
            See `AudioEncoder.from_hparams`. Also if the folder has no head with
            this name.
        """
        return cls(
            *(source, device, batch_size, precision, task),
            *(window_seconds, hop_seconds),
        )

    def _set_windows(self, window, hop):
        """Set the windows of the classifier."""
        shortest = max(self.fbank.least_samples, self._hop_samples)
        shortest, longest = shortest / self.sample_rate, self.window_seconds
        if window is None:
            window = min(max(self.fitted_seconds, shortest), longest)
        if not shortest <= window <= longest:
            raise ValueError(
                f"a window of {window:g} s: this model takes {shortest:g} to "
                f"{longest:g} s at once"
            )
        if hop is not None and not 0 < hop <= window:
            raise ValueError(
                f"a hop of {hop:g} s: it should be within the window, 0 to "
                f"{window:g} s"
            )
        grid = self.lobe.encoder.grid
        self._windowing = Windowing(self.fbank, grid, window, hop)
        self.window_seconds = window

    def _build(self, weights):
        self.fitted_seconds = weights.config["window_seconds"]
        kind = weights.config["kind"]
        if self.task is None and kind not in ("classifier", "detector"):
            self.task = self._only_head()
        if self.task is not None:
            self._build_linear(weights)
            return
        if kind == "detector":
            raise WeightsError(
                "a detector of events gives no labels of clips: use "
                "EventDetector, or `ssast-lobes events`"
            )
        super()._build(weights)
        self.labels = list(weights.config["labels"])
        self.multi_label = weights.config["multi_label"]
        self.head = ClassificationHead(**head_arguments(weights.config))
        load_strictly(self.head, weights.part("head"), "head")
        self.head.to(self.device).eval()

    def _only_head(self):
        """Return the name of the linear head of a pretrained model."""
        tasks = head_names(self.source)
        if not tasks:
            raise WeightsError(
                "the export of a pretrained model has no classes: fine-tune "
                "it first, or use AudioEncoder"
            )
        if len(tasks) > 1:
            raise WeightsError(
                "the model has heads for several tasks: choose one by task=, "
                f"or --task: {', '.join(tasks)}"
            )
        return tasks[0]

    def _build_linear(self, weights):
        """Build a linear head on the frozen encoder."""
        head = read_head(self.source, self.task)
        self.fitted_seconds = head.seconds or self.fitted_seconds
        super()._build(weights)
        pooling = ClipPooling(
            self.lobe.encoder.depth, head.pooling, head.layers
        )
        self.lobe.pooling = pooling.to(self.device)
        self.labels, self.multi_label = list(head.labels), False
        self.head = torch.nn.Linear(self.lobe.clip_size, len(self.labels))
        state = {"weight": head.weight, "bias": head.bias}
        load_strictly(self.head, state, f"head {self.task}")
        self.head.requires_grad_(False).to(self.device)

    def classify_file(self, path, threshold=0.5):
        """Classify one file.

        Arguments
        ---------
        path : str or path
            Audio of any rate, channel count, format and length.
        threshold : float
            Lowest score of the labels that a multi-label model returns.
            Single-label models ignore the threshold.

        Returns
        -------
        Classification

        Raises
        ------
        UnreadableAudio
            If the file cannot be read, or contains less than 25 ms of audio.
        """
        files = self._files([path], self._probabilities, None, None)
        [(path, windows, results)] = files
        return self._classification(path, windows, results, threshold)

    def classify_files(self, paths, threshold=0.5, unreadable=None):
        """Classify many files, with a progress bar.

        Arguments
        ---------
        paths : list of str or path
            Audio files.
        threshold : float
            See `classify_file`.
        unreadable : list, optional
            Collects (path, reason) of unreadable files, which are skipped.
            Without a list, the first such file is an error.

        Returns
        -------
        list of Classification
            In the order of the paths.
        """
        files = self._files(
            paths, self._probabilities, unreadable, "Classifying"
        )
        return [self._classification(*file, threshold) for file in files]

    def classify_batch(self, wavs, wav_lens=None, threshold=0.5):
        """Classify a batch of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor or numpy.ndarray
            Mono waveforms at the model's rate, (B, S) or (S,).
        wav_lens : torch.Tensor, optional
            Relative lengths (B,). By default all clips are full.
        threshold : float
            See `classify_file`.

        Returns
        -------
        list of Classification
            One for each clip, with `path` None.

        Raises
        ------
        UnreadableAudio
            If a clip is shorter than 25 ms, or has NaN, infinite or
            absurdly loud samples.
        ValueError
            If `wavs` have another shape or type, or `wav_lens` are not
            relative; see `ssast_lobes.utils.lengths.sample_counts`.
        """
        clips = self._clips(
            self._batch_windows(wavs, wav_lens), self._probabilities
        )
        return [
            self._classification(None, windows, results, threshold)
            for _, windows, results in clips
        ]

    def _probabilities(self, encoded):
        scores = self.head(self.lobe.pooling(encoded)).float()
        if self.task is not None:
            # A linear head was trained on mean vectors of whole clips. The
            # scores of a mean vector are the mean of the windows' scores, so
            # the softmax comes after the mean.
            return scores
        return scores.sigmoid() if self.multi_label else scores.softmax(-1)

    def _classification(self, path, windows, results, threshold):
        parts = [
            WindowScores(
                start / self.sample_rate,
                end / self.sample_rate,
                *self._decide(result, threshold),
            )
            for (start, end), result in zip(
                self._spans(windows), results, strict=True
            )
        ]
        whole = self._decide(self._average(windows, results), threshold)
        return Classification(path, *whole, parts)

    def _decide(self, probabilities, threshold):
        """Return labels, best first, and scores by label."""
        if self.task is not None:
            probabilities = probabilities.softmax(-1)
        scores = dict(zip(self.labels, probabilities.tolist(), strict=True))
        ranked = sorted(scores, key=scores.get, reverse=True)
        if not self.multi_label:
            return ranked[:1], scores
        return [name for name in ranked if scores[name] >= threshold], scores
