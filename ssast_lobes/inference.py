"""Pretrained interfaces: exported folders put to use on audio of any kind.

`AudioEncoder` gives embeddings of clips, frames and patches, `AudioClassifier`
labels and scores, `SpeakerVerifier` the likeness of two voices. They read
`config.json` and `model.safetensors` and execute nothing. Without a folder
they take the model that comes with the package.

Audio is converted to mono at the model's rate. What is longer than the window
that the export names is cut into windows that overlap by half, the last one
as long as what is left; they start on the grid of patches, so that their
frames fit together. Audio shorter than one analysis window of the
filterbank (25 ms) is an error. No result depends on its neighbours in a
batch. All results are on the CPU, in float32.

Waveforms that stand in memory are read as files are: integers are scaled by
the range of their type (see `ssast_lobes.data.audio.to_float`), and samples
that are NaN, infinite or absurdly loud are an error.
"""

import csv
import itertools
import json
import os
from typing import NamedTuple

import torch
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from ssast_lobes.data.audio import (
    UnreadableAudio,
    audio_info,
    check_samples,
    read_audio,
    to_float,
)
from ssast_lobes.data.manifest import written_whole
from ssast_lobes.features import sample_counts
from ssast_lobes.heads import (
    ClassificationHead,
    ClipPooling,
    head_arguments,
)
from ssast_lobes.linear_heads import head_names, read_head, shipped_model
from ssast_lobes.lobe import OUTPUTS, lobe_of
from ssast_lobes.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    WeightsError,
    load_strictly,
    load_weights,
    naming,
)
from ssast_lobes.windows import Windowing, count_windows

# A whole number of samples at every rate in common use, and longer than what
# the resampler looks at around a sample.
_MARGIN_SECONDS = 0.04
# Long files are read in blocks of about this length.
_BLOCK_SECONDS = 60


def read_blocks(path, sample_rate, length, hop):
    """Read a file of any length in blocks that may overlap.

    Arguments
    ---------
    path : str or path
        The file.
    sample_rate : int
        Sampling rate of the blocks in Hz.
    length : int
        Length of a block in samples; the last one may be shorter.
    hop : int
        Samples from the start of a block to that of the next.

    Yields
    ------
    start : int
        First sample of the block.
    wav : torch.Tensor
        Waveform (samples,), equal to that part of the whole file.

    Raises
    ------
    UnreadableAudio
        See `ssast_lobes.data.audio.read_audio`.

    Example
    -------
    >>> import numpy, soundfile
    >>> path = str(getfixture("tmpdir") / "a.wav")
    >>> soundfile.write(path, numpy.zeros(25000), 8000)
    >>> blocks = read_blocks(path, 16000, length=20000, hop=16000)
    >>> [(start, len(wav)) for start, wav in blocks]
    [(0, 20000), (16000, 20000), (32000, 18000)]
    """
    info = audio_info(path)
    total = -(-info.frames * sample_rate // info.sample_rate)
    count = count_windows(total, length, hop)
    if count == 1:
        yield 0, read_audio(path, sample_rate)
        return
    margin = round(_MARGIN_SECONDS * sample_rate)
    for start in range(0, count * hop, hop):
        first = max(0, (start // margin - 1) * margin)
        seconds = (start + length + margin - first) / sample_rate
        if start == (count - 1) * hop:
            seconds = None
        wav = read_audio(path, sample_rate, first / sample_rate, seconds)
        yield start, wav[start - first :][:length]


def require_length(name, n_samples, fbank):
    """Raise if a clip is too short for a single frame.

    Arguments
    ---------
    name : str
        What to call the clip in the error.
    n_samples : int
        Its length in samples.
    fbank : KaldiFbank
        Whose analysis window it has to fill.

    Raises
    ------
    UnreadableAudio
        If it does not.

    Example
    -------
    >>> from ssast_lobes import KaldiFbank
    >>> require_length("a.wav", 200, KaldiFbank())
    Traceback (most recent call last):
    ...
    ssast_lobes.data.audio.UnreadableAudio: a.wav: 12.5 ms of audio, ...
    """
    if n_samples < fbank.window_samples:
        raise UnreadableAudio(
            f"{name}: {1000 * n_samples / fbank.sample_rate:.3g} ms of audio, "
            f"at least {1000 * fbank.window_samples / fbank.sample_rate:.3g} "
            "ms are needed"
        )


class _Window(NamedTuple):
    """A piece of a clip, in samples; its waveform, or what went wrong."""

    clip: int
    start: int = 0
    length: int = 0
    wav: torch.Tensor = None
    error: UnreadableAudio = None


class _Interface:
    """What all interfaces share: the lobe, and audio in windows through it.

    Arguments
    ---------
    source, device, batch_size, precision
        See `from_hparams`.
    """

    def __init__(
        self, source=None, device="cpu", batch_size=16, precision="fp32"
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        source = shipped_model() if source is None else source
        self.source = source
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.precision = AMPConfig.from_name(precision).dtype
        weights = load_weights(source)
        if "kind" not in weights.config:
            raise WeightsError(
                f"{source}: not an exported folder; make one of it with "
                f"`ssast-lobes convert {source} FOLDER`"
            )
        try:
            with naming(os.path.join(source, WEIGHTS_FILE)):
                self._build(weights)
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{os.path.join(source, CONFIG_FILE)}: damaged ({error!r})"
            ) from error

    def _build(self, weights):
        self.lobe = lobe_of(weights, freeze=True).to(self.device)
        self.fbank = self.lobe.features.fbank
        self.sample_rate = self.fbank.sample_rate
        grid = self.lobe.encoder.grid
        self._samples_per_step = grid.stride[1] * self.fbank.hop_samples
        self.kind = weights.config["kind"]
        self.window_seconds = weights.config["window_seconds"]
        self._windowing = Windowing(self.fbank, grid, self.window_seconds)

    @classmethod
    def from_hparams(
        cls, source=None, device="cpu", batch_size=16, precision="fp32"
    ):
        """Load an exported folder.

        Arguments
        ---------
        source : str or path, optional
            The folder, written by a recipe or by ``ssast-lobes convert``, or
            one of Hugging Face's AST; or a repository on the hub that holds
            such a folder, ``user/repo`` or ``user/repo@revision``. The model
            that comes with the package when left out.
        device : str
            Where to compute, such as ``"cpu"`` or ``"cuda"``.
        batch_size : int
            Windows computed at once; bounds the memory needed.
        precision : str
            ``"fp32"``, ``"bf16"`` or ``"fp16"``: of the network, never of
            the features.

        Returns
        -------
        The interface.

        Raises
        ------
        WeightsError
            If the folder is not an export, its weights are missing, damaged
            or not those of its configuration, or it is of another kind.
        """
        return cls(source, device, batch_size, precision)

    def _file_windows(self, paths, progress):
        """The windows of files, one after another."""
        hop = self._windowing.hop
        per_block = -(-_BLOCK_SECONDS * self.sample_rate // hop)
        per_block = max(self.batch_size, per_block)
        length = (per_block - 1) * hop + self._windowing.reach
        bar = tqdm(paths, progress, unit="file", disable=progress is None)
        for clip, path in enumerate(bar):
            blocks = read_blocks(
                path, self.sample_rate, length, per_block * hop
            )
            try:
                for start, wav in blocks:
                    require_length(path, start + len(wav), self.fbank)
                    yield from self._cut(clip, start, wav)
            except UnreadableAudio as error:
                yield _Window(clip, error=error)

    def _batch_windows(self, wavs, wav_lens):
        """The windows of a padded batch, one clip after another."""
        wavs = to_float(wavs).detach()
        if wavs.dim() not in (1, 2):
            raise ValueError(
                "wavs must be mono, (batch, samples) or (samples,), got "
                f"{tuple(wavs.shape)}"
            )
        wavs = wavs.reshape(-1, wavs.shape[-1])
        if wav_lens is not None:
            # Here a wrong length is an error at once, on a GPU too.
            wav_lens = torch.as_tensor(wav_lens).cpu()
        lengths = sample_counts(wavs, wav_lens).tolist()
        batch = f"the batch of {wavs.shape[0]} clips x {wavs.shape[1]} samples"
        for clip, (wav, length) in enumerate(zip(wavs, lengths, strict=True)):
            require_length(f"clip {clip} of {batch}", length, self.fbank)
            check_samples(f"clip {clip} of the batch", wav[:length])
            yield from self._cut(clip, 0, wav[:length])

    def _cut(self, clip, offset, wav):
        for start, piece in self._windowing.cut(wav):
            yield _Window(clip, offset + start, len(piece), piece)

    def _clips(self, windows, finish):
        """Run windows through the model; yield what belongs to one clip.

        `finish` makes a list of one result a window from an `EncoderOutput`.
        Yields the number of the clip, its windows and their results.
        """
        done = self._batches(iter(windows), finish)
        for clip, pairs in itertools.groupby(done, lambda pair: pair[0].clip):
            yield clip, *zip(*pairs, strict=True)

    def _batches(self, windows, finish):
        while batch := list(itertools.islice(windows, self.batch_size)):
            wavs = [window.wav for window in batch if window.error is None]
            results = iter(self._compute(wavs, finish) if wavs else [])
            for window in batch:
                # Without the waveform, which is not to pile up.
                result = None if window.error else next(results)
                yield window._replace(wav=None), result

    def _compute(self, wavs, finish):
        wav = pad_sequence(wavs, batch_first=True).to(self.device)
        lengths = torch.tensor([len(wav) for wav in wavs], device=self.device)
        with (
            torch.inference_mode(),
            TorchAutocast(self.device.type, dtype=self.precision),
        ):
            encoded = self.lobe.extract_features(wav, lengths / wav.shape[1])
            results = finish(encoded)
        # A copy made out here may be used in training, as a head's input.
        return [result.float().cpu().clone() for result in results]

    def _spans(self, windows):
        """Start and end of the windows in samples; the last ends the clip."""
        full = self._windowing.samples
        ends = [window.start + full for window in windows[:-1]]
        ends.append(windows[-1].start + windows[-1].length)
        starts = [window.start for window in windows]
        return list(zip(starts, ends, strict=True))

    def _average(self, windows, results):
        """Mean of the results, weighted by the duration of the windows."""
        if len(results) == 1:
            return results[0]
        length = torch.tensor([windows[-1].start + windows[-1].length])
        [share] = self._windowing.shares(length, len(results))
        return torch.einsum("w,w...->...", share, torch.stack(results))

    def _files(self, paths, finish, unreadable, progress):
        """Yield path, windows and results of each readable file."""
        paths = [os.fspath(path) for path in paths]
        windows = self._file_windows(paths, progress)
        for clip, windows, results in self._clips(windows, finish):  # noqa: B020
            error = next((w.error for w in windows if w.error), None)
            if error is None:
                yield paths[clip], windows, results
            elif unreadable is None:
                raise error
            else:
                reason = str(error).removeprefix(f"{paths[clip]}: ")
                unreadable.append((paths[clip], reason))


class AudioEncoder(_Interface):
    """Embeddings of audio from an exported folder of any kind.

    A clip of several windows is the mean of its windows, weighted by their
    durations. Frames and patches of several windows are put together in time
    order: where two windows overlap, each step comes from the window whose
    centre is nearer. Clip vectors are what the classifier of the export sees
    (class tokens or layer weighting included); frames and patches are always
    those of the last layer.

    Example
    -------
    >>> from ssast_lobes import FrontEnd, SpectrogramEncoder
    >>> from ssast_lobes.export import export_pretrained
    >>> from ssast_lobes.objectives import MSPM
    >>> objective = MSPM(SpectrogramEncoder(dim=32, depth=1, heads=2))
    >>> folder = getfixture("tmpdir") / "export"
    >>> _ = export_pretrained(folder, objective, FrontEnd(), card={})
    >>> encoder = AudioEncoder.from_hparams(folder)
    >>> encoder.encode_batch(torch.randn(2, 16000)).shape
    torch.Size([2, 32])
    >>> encoder.encode_batch(torch.randn(1, 480000), output="frames").shape
    torch.Size([1, 188, 32])
    """

    @property
    def output_size(self):
        """D, the size of the vectors of frames and patches."""
        return self.lobe.encoder.dim

    @property
    def clip_size(self):
        """Size of a clip's vector: D, or more as the pooling has it."""
        return self.lobe.clip_size

    @property
    def step_seconds(self):
        """Seconds from one frame (time step) to the next."""
        return self._samples_per_step / self.sample_rate

    def n_steps(self, n_samples):
        """Frames (time steps) of a clip.

        Arguments
        ---------
        n_samples : int
            Length of the clip in samples.

        Returns
        -------
        int
            T', without padding.
        """
        grid = self.lobe.encoder.grid
        return grid.n_steps(self.fbank.frames_of(n_samples))

    def encode_file(self, path, output="clip"):
        """Embed one file.

        Arguments
        ---------
        path : str or path
            Audio of any rate, channel count, format and length.
        output : str
            ``"clip"``, ``"frames"`` or ``"patches"``.

        Returns
        -------
        torch.Tensor
            (D,), (T', D) in time order, or (F', T', D).

        Raises
        ------
        UnreadableAudio
            If the file gives no audio, or less than 25 ms.
        """
        [(_, embedding)] = self._encode([path], output, None, None)
        return embedding

    def encode_files(self, paths, output="clip", unreadable=None):
        """Embed many files, with a progress bar.

        Arguments
        ---------
        paths : list of str or path
            Audio files.
        output : str
            See `encode_file`.
        unreadable : list, optional
            Takes (path, reason) of the files that give no audio, which are
            left out then; the first is an error when there is no list.

        Yields
        ------
        path : str
            The file.
        embedding : torch.Tensor
            As of `encode_file`.
        """
        yield from self._encode(paths, output, unreadable, "Embedding")

    def encode_batch(self, wavs, wav_lens=None, output="clip"):
        """Embed a batch of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor or numpy.ndarray
            Mono waveforms at the model's rate, (B, S) or (S,).
        wav_lens : torch.Tensor, optional
            Relative lengths (B,); all clips are full when left out.
        output : str
            ``"clip"``, ``"frames"`` or ``"patches"``.

        Returns
        -------
        torch.Tensor
            (B, D), (B, T', D) or (B, F', T', D), 0 at padding.

        Raises
        ------
        UnreadableAudio
            If a clip is shorter than 25 ms, or holds NaN, infinite or
            absurdly loud samples.
        ValueError
            If `wavs` have another shape or type, or `wav_lens` are not
            relative; see `ssast_lobes.features.sample_counts`.
        """
        windows = self._batch_windows(wavs, wav_lens)
        finish, merge = self._recipe(output)
        clips = [merge(*rest) for _, *rest in self._clips(windows, finish)]
        clips = pad_sequence(clips, batch_first=True)
        return clips.transpose(1, 2) if output == "patches" else clips

    def _encode(self, paths, output, unreadable, progress):
        finish, merge = self._recipe(output)
        files = self._files(paths, finish, unreadable, progress)
        for path, windows, results in files:
            clip = merge(windows, results)
            yield path, clip.transpose(0, 1) if output == "patches" else clip

    def _recipe(self, output):
        """How windows are finished and merged; time comes first."""
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {OUTPUTS}, got '{output}'")
        if output == "clip":
            return self.lobe.pooling, self._average
        return getattr(self, f"_{output}"), self._stitch

    def _frames(self, encoded):
        steps = encoded.n_steps.tolist()
        return [x[:n] for x, n in zip(encoded.frames, steps, strict=True)]

    def _patches(self, encoded):
        steps = encoded.n_steps.tolist()
        patches = encoded.patches.transpose(1, 2)
        return [x[:n] for x, n in zip(patches, steps, strict=True)]

    def _stitch(self, windows, results):
        """Join results over time, cutting in the middle of each overlap."""
        # Under reference padding a window gives more steps than it has audio.
        results = [
            result[: self.n_steps(window.length)]
            for window, result in zip(windows, results, strict=True)
        ]
        starts = [window.start // self._samples_per_step for window in windows]
        ends = [
            start + len(result)
            for start, result in zip(starts, results, strict=True)
        ]
        cuts = [
            (start + end) // 2
            for start, end in zip(starts[1:], ends[:-1], strict=True)
        ]
        first, last = [0, *cuts], [*cuts, ends[-1]]
        return torch.cat(
            [
                result[begin - start : end - start]
                for result, start, begin, end in zip(
                    results, starts, first, last, strict=True
                )
            ]
        )


class WindowScores(NamedTuple):
    """Scores of a part of a clip.

    Arguments
    ---------
    start, end : float
        The part, in seconds.
    labels : list of str
        See `Classification`.
    scores : dict of str to float
        See `Classification`.
    """

    start: float
    end: float
    labels: list
    scores: dict


class Classification(NamedTuple):
    """What the classifier says of one clip.

    Arguments
    ---------
    path : str or None
        The file, if it was one.
    labels : list of str
        Single-label: the best one. Multi-label: those whose score reaches
        the threshold, best first, perhaps none.
    scores : dict of str to float
        Probability of each label, in the order of the classes. They sum to 1
        if there is one label a clip.
    windows : list of WindowScores
        The parts of the clip; `scores` is their mean weighted by duration.
    """

    path: str
    labels: list
    scores: dict
    windows: list

    @property
    def label(self):
        """The best label, None where no label reaches the threshold."""
        return self.labels[0] if self.labels else None

    @property
    def seconds(self):
        """Duration of the clip."""
        return self.windows[-1].end

    def as_dict(self):
        """Plain values, for JSON."""
        parts = [window._asdict() for window in self.windows]
        return {**self._asdict(), "windows": parts}

    def rows(self, windows=False):
        """Flat rows, for CSV: one, or one for each window.

        Arguments
        ---------
        windows : bool
            A row for each window.

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


class AudioClassifier(_Interface):
    """Labels of audio from the export of a classifier, or from a linear head.

    Single-label models give probabilities that sum to 1, multi-label models
    a probability for each label by itself. The probabilities of a clip of
    several windows are the mean of its windows, weighted by their durations.

    Example
    -------
    >>> from ssast_lobes import (
    ...     FrontEnd,
    ...     SpectrogramClassifier,
    ...     SpectrogramEncoder,
    ... )
    >>> from ssast_lobes.export import export_classifier, label_encoder_of
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
            As of `AudioEncoder.from_hparams`.
        task : str, optional
            Classify by a linear head of the folder on its frozen encoder, see
            `ssast_lobes.linear_heads.head_names`.

        Returns
        -------
        AudioClassifier

        Raises
        ------
        WeightsError
            As of `AudioEncoder.from_hparams`, or if there is no such head.
        """
        return cls(source, device, batch_size, precision, task)

    def _build(self, weights):
        if self.task is not None:
            self._build_linear(weights)
            return
        if weights.config["kind"] != "classifier":
            tasks = head_names(self.source)
            also = ""
            if tasks:
                names = ", ".join(tasks)
                also = f", or choose a task: {names} (task=..., or --task)"
            raise WeightsError(
                "the export of a pretrained model has no classes: fine-tune "
                f"it first, or use AudioEncoder{also}"
            )
        super()._build(weights)
        self.labels = list(weights.config["labels"])
        self.multi_label = weights.config["multi_label"]
        self.head = ClassificationHead(**head_arguments(weights.config))
        load_strictly(self.head, weights.part("head"), "head")
        self.head.to(self.device).eval()

    def _build_linear(self, weights):
        """A linear head on the frozen encoder."""
        head = read_head(self.source, self.task)
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
            Least score of a label; multi-label models only.

        Returns
        -------
        Classification

        Raises
        ------
        UnreadableAudio
            If the file gives no audio, or less than 25 ms.
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
            Takes (path, reason) of the files that give no audio, which are
            left out then; the first is an error when there is no list.

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
            Relative lengths (B,); all clips are full when left out.
        threshold : float
            See `classify_file`.

        Returns
        -------
        list of Classification
            One a clip, with `path` None.

        Raises
        ------
        UnreadableAudio
            If a clip is shorter than 25 ms, or holds NaN, infinite or
            absurdly loud samples.
        ValueError
            If `wavs` have another shape or type, or `wav_lens` are not
            relative; see `ssast_lobes.features.sample_counts`.
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
            # A linear head has learnt the mean vectors of whole clips, whose
            # scores are the mean of the windows' scores: softmax comes last.
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
        """Labels, best first, and scores by label."""
        if self.task is not None:
            probabilities = probabilities.softmax(-1)
        scores = dict(zip(self.labels, probabilities.tolist(), strict=True))
        ranked = sorted(scores, key=scores.get, reverse=True)
        if not self.multi_label:
            return ranked[:1], scores
        return [name for name in ranked if scores[name] >= threshold], scores


class Verification(NamedTuple):
    """How alike two files sound.

    Arguments
    ---------
    path_a, path_b : str
        The files.
    score : float
        WarmupCosine of their clip embeddings, -1 to 1.
    same_speaker : bool or None
        Whether the score reaches the threshold; None without a threshold.
    """

    path_a: str
    path_b: str
    score: float
    same_speaker: bool

    def as_dict(self):
        """Plain values, for JSON."""
        return self._asdict()

    def rows(self, windows=False):
        """The flat row, for CSV, in a list; there are no windows."""
        return [self._asdict()]


class SpeakerVerifier(AudioEncoder):
    """Whether two files are of one speaker, by the cosine of their clips.

    Best with the export of a speaker classifier. Scores of different models
    are not comparable, so there is no threshold that suits all: choose one on
    pairs of your own, for example where false acceptances equal false
    rejections (`ssast_lobes.metrics.equal_error_rate`).

    Example
    -------
    >>> import soundfile
    >>> from ssast_lobes import FrontEnd, SpectrogramEncoder
    >>> from ssast_lobes.export import export_pretrained
    >>> from ssast_lobes.objectives import MSPM
    >>> objective = MSPM(SpectrogramEncoder(dim=32, depth=1, heads=2))
    >>> folder = getfixture("tmpdir")
    >>> _ = export_pretrained(folder / "export", objective, FrontEnd(), {})
    >>> path = str(folder / "a.wav")
    >>> soundfile.write(path, torch.randn(16000).numpy() / 9, 16000)
    >>> verifier = SpeakerVerifier.from_hparams(folder / "export")
    >>> result = verifier.verify_files(path, path, threshold=0.9)
    >>> round(result.score, 4), result.same_speaker
    (1.0, True)
    """

    def verify_files(self, path_a, path_b, threshold=None):
        """Compare two files.

        Arguments
        ---------
        path_a, path_b : str or path
            Audio of any rate, channel count, format and length.
        threshold : float, optional
            Least score that counts as one speaker.

        Returns
        -------
        Verification

        Raises
        ------
        UnreadableAudio
            If a file gives no audio, or less than 25 ms.
        """
        pair = [self.encode_file(path) for path in (path_a, path_b)]
        score = torch.cosine_similarity(*pair, dim=0).item()
        same = None if threshold is None else score >= threshold
        return Verification(os.fspath(path_a), os.fspath(path_b), score, same)


def write_results(results, path, windows=False):
    """Write results of the interfaces to a file, whole or not at all.

    Arguments
    ---------
    results : list of Classification or list of Verification
        The results.
    path : str or path
        ``.json``: everything, windows with their times included. ``.csv``: a
        row for each clip; see `Classification.rows`.
    windows : bool
        In a CSV, a row for each window instead.

    Raises
    ------
    ValueError
        If the name ends in neither.

    Example
    -------
    >>> path = getfixture("tmpdir") / "results.csv"
    >>> write_results([Verification("a.wav", "b.wav", 0.5, True)], path)
    >>> print(path.read_text("utf-8"))
    path_a,path_b,score,same_speaker
    a.wav,b.wav,0.5,True
    <BLANKLINE>
    """
    path = os.fspath(path)
    kind = os.path.splitext(path)[1].lower()
    if kind not in (".csv", ".json"):
        raise ValueError(f"{path}: results are written as .csv or .json")
    with written_whole(path) as file:
        if kind == ".json":
            records = [_rounded(result.as_dict()) for result in results]
            json.dump(records, file, indent=2, ensure_ascii=False)
            file.write("\n")
        else:
            rows = [
                _rounded(row)
                for result in results
                for row in result.rows(windows)
            ]
            writer = csv.DictWriter(
                file, rows[0] if rows else [], lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(rows)


def _rounded(value):
    """The same with six significant digits, all that float32 has."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
