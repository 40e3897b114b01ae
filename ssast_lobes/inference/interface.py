"""Define the base class of the interfaces: files, windows and batches."""

import itertools
import os
from typing import NamedTuple

import torch
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from ssast_lobes.checkpoints.bundled import resolve_name
from ssast_lobes.checkpoints.format import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    WeightsError,
    error_context,
)
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.dataio.waveforms import (
    UnreadableAudio,
    check_samples,
    to_float,
)
from ssast_lobes.inference.audio import read_blocks, require_length
from ssast_lobes.inference.windows import Windowing
from ssast_lobes.lobes.spectrogram import lobe_of
from ssast_lobes.utils.lengths import sample_counts

# Long files are read in blocks of about this length.
_BLOCK_SECONDS = 60


class Window(NamedTuple):
    """A piece of a clip, in samples, with its waveform or an error."""

    clip: int
    start: int = 0
    length: int = 0
    wav: torch.Tensor = None
    error: UnreadableAudio = None


class Interface:
    """The base class of interfaces, which run a lobe on windows of audio.

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
        source = resolve_name(source)
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
            with error_context(os.path.join(source, WEIGHTS_FILE)):
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
        self._hop_samples = grid.stride[1] * self.fbank.hop_samples
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
            A folder that a recipe or ``ssast-lobes convert`` has written; a
            folder of Hugging Face's AST; a repository on the hub that contains
            such a folder, as ``user/repo`` or ``user/repo@revision``; or a name
            that ``ssast-lobes models`` lists. By default the bundled model.
        device : str
            Device to compute on, such as ``"cpu"`` or ``"cuda"``.
        batch_size : int
            Windows computed at once, which limits the memory needed.
        precision : str
            ``"fp32"``, ``"bf16"`` or ``"fp16"`` for the network; features are
            always float32.

        Returns
        -------
        The interface.

        Raises
        ------
        WeightsError
            If the folder is not an export, or an export of another kind. Also
            if its weights are missing, damaged or do not fit its configuration.
        """
        return cls(source, device, batch_size, precision)

    def _file_windows(self, paths, progress):
        """Yield the windows of files, one file after another."""
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
                yield Window(clip, error=error)

    def _batch_windows(self, wavs, wav_lens):
        """Yield the windows of a padded batch, one clip after another."""
        wavs = to_float(wavs).detach()
        if wavs.dim() not in (1, 2):
            raise ValueError(
                "wavs must be mono, (batch, samples) or (samples,), got "
                f"{tuple(wavs.shape)}"
            )
        wavs = wavs if wavs.dim() == 2 else wavs[None]
        if wav_lens is not None:
            # On the CPU, a wrong length raises an error at once.
            wav_lens = torch.as_tensor(wav_lens).cpu()
        lengths = sample_counts(wavs, wav_lens).tolist()
        batch = f"the batch of {wavs.shape[0]} clips x {wavs.shape[1]} samples"
        for clip, (wav, length) in enumerate(zip(wavs, lengths, strict=True)):
            require_length(f"clip {clip} of {batch}", length, self.fbank)
            check_samples(f"clip {clip} of the batch", wav[:length])
            yield from self._cut(clip, 0, wav[:length])

    def _cut(self, clip, offset, wav):
        for start, piece in self._windowing.cut(wav):
            yield Window(clip, offset + start, len(piece), piece)

    def _clips(self, windows, finish):
        """Yield the number, windows and results of one clip after another."""
        done = self._batches(iter(windows), finish)
        for clip, pairs in itertools.groupby(done, lambda pair: pair[0].clip):
            yield clip, *zip(*pairs, strict=True)

    def _batches(self, windows, finish):
        while batch := list(itertools.islice(windows, self.batch_size)):
            wavs = [window.wav for window in batch if window.error is None]
            results = iter(self._compute(wavs, finish) if wavs else [])
            for window in batch:
                # Drop the waveform, since the waveforms of many windows would
                # fill the memory.
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
        # Copy the results outside of inference mode, so that they can be used
        # to train a head.
        return [result.float().cpu().clone() for result in results]

    def _spans(self, windows):
        """Return starts and ends of windows in samples, to the clip's end."""
        full = self._windowing.samples
        ends = [window.start + full for window in windows[:-1]]
        ends.append(windows[-1].start + windows[-1].length)
        starts = [window.start for window in windows]
        return list(zip(starts, ends, strict=True))

    def _average(self, windows, results):
        """Average results, weighted by the duration of the windows."""
        if len(results) == 1:
            return results[0]
        length = torch.tensor([windows[-1].start + windows[-1].length])
        [weights] = self._windowing.weights(length, len(results))
        return torch.einsum("w,w...->...", weights, torch.stack(results))

    def _files(self, paths, finish, unreadable, progress):
        """Yield path, windows and results of files; list unreadable files."""
        paths = [os.fspath(path) for path in paths]
        clips = self._clips(self._file_windows(paths, progress), finish)
        for clip, windows, results in clips:
            error = next((w.error for w in windows if w.error), None)
            if error is None:
                yield paths[clip], windows, results
            elif unreadable is None:
                raise error
            else:
                unreadable.append((paths[clip], error.reason(paths[clip])))
