"""Embed files and batches with an exported folder."""

import torch
from torch.nn.utils.rnn import pad_sequence

from ssast_lobes.inference.interface import Interface
from ssast_lobes.lobes.spectrogram import OUTPUTS


class AudioEncoder(Interface):
    """Embed audio with an exported folder of any kind.

    If a clip has several windows, its vector is the mean over the windows,
    weighted by duration. Frames and patches of several windows are joined in
    time order. Where two windows overlap, each time step comes from the window
    whose center is nearer. Clip vectors use the pooling of the export, such as
    its class tokens or layer weights: they are the input of its classifier.
    Frames and patches always come from the last layer.

    Example
    -------
    >>> from ssast_lobes import FrontEnd, SpectrogramEncoder
    >>> from ssast_lobes.checkpoints.folder import export_pretrained
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
        """Size of the vector of a clip: D or more, depending on the pooling."""
        return self.lobe.clip_size

    @property
    def step_seconds(self):
        """Seconds between frames (time steps)."""
        return self._hop_samples / self.sample_rate

    def n_time(self, n_samples):
        """Return the number of frames (time steps) of a clip.

        Arguments
        ---------
        n_samples : int
            Length of the clip in samples.

        Returns
        -------
        int
            Number of frames T', without padding.
        """
        grid = self.lobe.encoder.grid
        return grid.n_time(self.fbank.frames_of(n_samples))

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
            (`clip_size`,), (T', D) in time order, or (F', T', D).

        Raises
        ------
        UnreadableAudio
            If the file cannot be read, or contains less than 25 ms of audio.
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
            Collects (path, reason) of unreadable files, which are skipped.
            Without a list, the first such file is an error.

        Yields
        ------
        path : str
            The file.
        embedding : torch.Tensor
            See `encode_file`.
        """
        yield from self._encode(paths, output, unreadable, "Embedding")

    def encode_batch(self, wavs, wav_lens=None, output="clip"):
        """Embed a batch of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor or numpy.ndarray
            Mono waveforms at the model's rate, (B, S) or (S,).
        wav_lens : torch.Tensor, optional
            Relative lengths (B,). By default all clips are full.
        output : str
            ``"clip"``, ``"frames"`` or ``"patches"``.

        Returns
        -------
        torch.Tensor
            (B, `clip_size`), (B, T', D) or (B, F', T', D), 0 at padding.

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
        finish, merge = self._finish_and_merge(output)
        clips = [merge(*rest) for _, *rest in self._clips(windows, finish)]
        clips = pad_sequence(clips, batch_first=True)
        return clips.transpose(1, 2) if output == "patches" else clips

    def _encode(self, paths, output, unreadable, progress):
        finish, merge = self._finish_and_merge(output)
        files = self._files(paths, finish, unreadable, progress)
        for path, windows, results in files:
            clip = merge(windows, results)
            yield path, clip.transpose(0, 1) if output == "patches" else clip

    def _finish_and_merge(self, output):
        """Return the functions that finish and merge windows."""
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {OUTPUTS}, got '{output}'")
        if output == "clip":
            return self.lobe.pooling, self._average
        return getattr(self, f"_{output}"), self._stitch

    def _frames(self, encoded):
        n_time = encoded.n_time.tolist()
        return [x[:n] for x, n in zip(encoded.frames, n_time, strict=True)]

    def _patches(self, encoded):
        n_time = encoded.n_time.tolist()
        patches = encoded.patches.transpose(1, 2)
        return [x[:n] for x, n in zip(patches, n_time, strict=True)]

    def _stitch(self, windows, results):
        """Join results over time; cut each overlap in its middle."""
        # With reference padding, a window has more frames than its audio.
        results = [
            result[: self.n_time(window.length)]
            for window, result in zip(windows, results, strict=True)
        ]
        starts = [window.start // self._hop_samples for window in windows]
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
