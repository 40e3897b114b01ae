"""Detect sound events in files, batches and streams."""

import itertools
import os
from typing import NamedTuple

import numpy as np

from ssast_lobes.checkpoints.format import (
    Weights,
    WeightsError,
    load_strictly,
    make_head,
)
from ssast_lobes.checkpoints.frame_heads import (
    frame_head_names,
    read_frame_head,
)
from ssast_lobes.inference.events import (
    ScoreMerger,
    make_tracker,
    read_rules,
)
from ssast_lobes.inference.interface import Interface, Window
from ssast_lobes.inference.streaming import cut_stream


class Detection(NamedTuple):
    """The events of one recording.

    Arguments
    ---------
    path : str or None
        The file, or None for a waveform.
    events : list of DetectedEvent
        In order of time.
    seconds : float
        Duration of the recording.
    """

    path: str
    events: list
    seconds: float

    def __repr__(self):
        count = len(self.events)
        shown = ", ".join(
            f"{event.label} {event.onset:.2f}-{event.offset:.2f}"
            for event in self.events[:3]
        )
        return (
            f"<{self.path or 'a clip'}, {self.seconds:.2f} s, {count} "
            f"event{'s' * (count != 1)}{': ' * (count > 0)}{shown}"
            f"{', ...' * (count > 3)}>"
        )


class EventDetector(Interface):
    """Find sound events in audio, with onset and offset.

    Long audio is cut into windows that overlap by half. The scores of the
    windows are joined before the search for events, so an event may be longer
    than a window, and borders of windows do not cut events. A file of any
    length needs the memory of a few windows, except with `ChangePointRule`.

    `labels` are the classes. `rules` maps each class to the rule that turns its
    scores into events. You may change the rules; see
    `ssast_lobes.inference.events.EventRule`.

    Example
    -------
    >>> import torch
    >>> from ssast_lobes import (
    ...     FrontEnd,
    ...     SpectrogramDetector,
    ...     SpectrogramEncoder,
    ... )
    >>> from ssast_lobes.checkpoints.folder import (
    ...     export_detector,
    ...     label_encoder_of,
    ... )
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> folder = getfixture("tmpdir") / "export"
    >>> _ = export_detector(
    ...     folder,
    ...     SpectrogramDetector(encoder, n_classes=1),
    ...     FrontEnd(),
    ...     label_encoder_of(["dog"]),
    ...     rules={"dog": {"threshold": 0.0}},
    ...     card={},
    ... )
    >>> detector = EventDetector.from_hparams(folder)
    >>> [clip] = detector.detect_batch(torch.randn(1, 400000))
    >>> [(event.label, event.onset, event.offset) for event in clip.events]
    [('dog', 0.0, 25.0)]
    """

    def __init__(
        self,
        source=None,
        device="cpu",
        batch_size=16,
        precision="fp32",
        task=None,
    ):
        self.task = task
        super().__init__(source, device, batch_size, precision)

    @classmethod
    def from_hparams(
        cls,
        source=None,
        device="cpu",
        batch_size=16,
        precision="fp32",
        task=None,
    ):
        """Load an exported folder.

        Arguments
        ---------
        source, device, batch_size, precision
            See `AudioEncoder.from_hparams`.
        task : str, optional
            Name of an event head on the frozen encoder of the folder; see
            `ssast_lobes.checkpoints.frame_heads.frame_head_names`. The name is
            needed only if the folder contains several heads.

        Returns
        -------
        EventDetector

        Raises
        ------
        WeightsError
            See `AudioEncoder.from_hparams`. Also if the folder has no head with
            this name, or if the rules need `sebbs` and it is not installed.
        """
        return cls(source, device, batch_size, precision, task)

    def _build(self, weights):
        config = weights.config
        if config["kind"] != "detector" or self.task is not None:
            weights = self._with_head(weights)
            config = weights.config
        super()._build(weights)
        self.labels = list(config["labels"])
        self.head = make_head(config)
        load_strictly(self.head, weights.part("head"), "head")
        self.head.requires_grad_(False).to(self.device).eval()
        self.rules = read_rules(self.labels, config["rules"])
        self.timing = self.lobe.timing
        try:
            make_tracker(self.rules, self.timing)
        except ImportError as error:
            raise WeightsError(str(error)) from error

    def _with_head(self, weights):
        """Return the weights of an encoder with an event head."""
        if self.task is None and not frame_head_names(self.source):
            raise WeightsError(
                f"the export of a {weights.config['kind']} model finds no "
                "events: train a detector (see recipes/Soundscapes)"
            )
        head = read_frame_head(self.source, self.task)
        encoder = {
            f"encoder.{k}": v for k, v in weights.part("encoder").items()
        }
        config = {**weights.config, **head.config, "kind": "detector"}
        return Weights({**encoder, **head.state}, config)

    def detect_file(self, path):
        """Find the events of one file.

        Arguments
        ---------
        path : str or path
            Audio of any rate, channel count, format and length.

        Returns
        -------
        Detection

        Raises
        ------
        UnreadableAudio
            If the file cannot be read, or contains less than 25 ms of audio.
        """
        [detection] = self._detections([path], None, None)
        return detection

    def detect_files(self, paths, unreadable=None):
        """Find the events of many files, with a progress bar.

        Arguments
        ---------
        paths : list of str or path
            Audio files.
        unreadable : list, optional
            Collects (path, reason) of unreadable files, which are skipped.
            Without a list, the first such file is an error.

        Yields
        ------
        Detection
            In the order of the paths.
        """
        yield from self._detections(paths, unreadable, "Detecting")

    def detect_batch(self, wavs, wav_lens=None):
        """Find the events of a batch of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor or numpy.ndarray
            Mono waveforms at the model's rate, (B, S) or (S,).
        wav_lens : torch.Tensor, optional
            Relative lengths (B,). By default all clips are full.

        Returns
        -------
        list of Detection
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
        windows = self._batch_windows(wavs, wav_lens)
        clips = self._by_clip(windows)
        return [self._detection(None, pairs) for _, pairs in clips]

    def detect_stream(self, pieces):
        """Find the events of a stream; yield each as soon as it is final.

        The events are the same as those of a file with this audio.

        Arguments
        ---------
        pieces : iterable of torch.Tensor or numpy.ndarray
            Parts of one waveform at the model's rate; see
            `ssast_lobes.inference.streaming.cut_stream`.

        Yields
        ------
        DetectedEvent
            The events of each class are in order of time.

        Raises
        ------
        ValueError, UnreadableAudio
            See `cut_stream`.
        """
        cut = cut_stream(pieces, self._windowing.reach, self._windowing.hop)
        windows = (
            Window(0, start, len(wav), wav)
            for start, wav in cut
            if len(wav) >= self.fbank.least_samples
        )
        pairs = (
            (window, self._compute([window.wav], self._probabilities)[0])
            for window in windows
        )
        yield from self._events(pairs, [])

    def clip_scores(self, wav):
        """Return the scores of a waveform, for pictures.

        Arguments
        ---------
        wav : torch.Tensor or numpy.ndarray
            Mono waveform (S,) at the model's rate.

        Returns
        -------
        numpy.ndarray
            Probabilities (T', C), before any rule is applied.

        Raises
        ------
        UnreadableAudio, ValueError
            See `detect_batch`.
        """
        _, pairs = next(self._by_clip(self._batch_windows(wav, None)))
        return np.concatenate([scores for scores, _ in self._merged(pairs)])

    def _probabilities(self, encoded):
        frames = self.lobe.pooling.frames(encoded)
        scores = self.head(frames, encoded.n_time)
        counts = encoded.n_time.tolist()
        probabilities = scores.frames.sigmoid()
        return [x[:n] for x, n in zip(probabilities, counts, strict=True)]

    def _by_clip(self, windows):
        done = self._batches(iter(windows), self._probabilities)
        return itertools.groupby(done, lambda pair: pair[0].clip)

    def _detections(self, paths, unreadable, progress):
        paths = [os.fspath(path) for path in paths]
        windows = self._file_windows(paths, progress)
        for clip, pairs in self._by_clip(windows):
            errors, path = [], paths[clip]
            detection = self._detection(path, _without_errors(pairs, errors))
            if not errors:
                yield detection
            elif unreadable is None:
                raise errors[0]
            else:
                unreadable.append((path, errors[0].reason(path)))

    def _detection(self, path, pairs):
        spans = []
        events = sorted(self._events(pairs, spans))
        return Detection(path, events, spans[-1] if spans else 0.0)

    def _events(self, pairs, spans):
        """Yield the events of one clip; collect the ends of its windows."""
        tracker = make_tracker(self.rules, self.timing)
        for scores, window in self._merged(pairs):
            spans.append((window.start + window.length) / self.sample_rate)
            yield from tracker.add(scores)
        if spans:
            yield from tracker.finish(spans[-1])

    def _merged(self, pairs):
        """Yield the newly final scores (frames, C), and the last window."""
        merger, window = ScoreMerger(), None
        for window, scores in pairs:
            # With reference padding, a window has more frames than its audio.
            scores = scores[: self.timing.n_time(window.length)].numpy()
            yield merger.add(window.start // self._hop_samples, scores), window
        if window is not None:
            yield merger.finish(), window


def _without_errors(pairs, errors):
    """Yield pairs up to the first window that could not be read."""
    for window, scores in pairs:
        if window.error is not None:
            errors.append(window.error)
            return
        yield window, scores
