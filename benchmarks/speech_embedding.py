"""Google's `speech_embedding`, to stand next to our models in tables.

It is the model of Lin et al., "Training Keyword Spotters with Limited and
Synthesized Speech Data" (ICASSP 2020), trained on millions of clips, and
licensed under Apache 2.0. The wheel of openWakeWord 0.4.0 contains it as ONNX:

> pip download openwakeword==0.4.0 --no-deps
> pip install onnxruntime
> cd experiments/transfer
> PYTHONPATH=../../benchmarks python train.py hparams/five_tasks.yaml ... \
    --baselines '{speech_embedding: !new:speech_embedding.SpeechEmbedding
    {wheel: openwakeword-0.4.0-py3-none-any.whl}}'
"""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.models.pooling import pool

MODELS = "openwakeword/resources/models/{}.onnx"
# A vector is computed from 76 frames of 10 ms, every 8 frames: see
# `openwakeword.utils.AudioFeatures`. The first frame needs 32 ms.
FRAMES, HOP = 76, 8
# Silence at both ends lets the context reach beyond a short clip. Of 0, 0.25
# and 0.5 s, 0.5 had the highest score on valid.
PAD_SECONDS = 0.5


class SpeechEmbedding:
    """Read clips as the dynamics of their vectors, like our encoders.

    Arguments
    ---------
    wheel : str or os.PathLike
        The wheel of openWakeWord 0.4.0.
    pad_seconds : float
        Silence that is added at both ends.
    """

    def __init__(self, wheel, pad_seconds=PAD_SECONDS):
        import onnxruntime

        with zipfile.ZipFile(wheel) as files:
            self.mel, self.embed = (
                onnxruntime.InferenceSession(files.read(MODELS.format(name)))
                for name in ("melspectrogram", "embedding_model")
            )
        self.pad = round(pad_seconds * 16000)
        self.key = f"{Path(wheel).stem}-{self.pad}"

    def vectors(self, paths, name, unreadable):
        """Return vectors (1, 384) of files, see `PooledEncoder.vectors`."""
        for path in tqdm(paths, f"Embedding, {name}", unit="file"):
            try:
                yield path, self.dynamics(read_audio(path))[None]
            except UnreadableAudio as error:
                reason = str(error).removeprefix(f"{path}: ")
                unreadable.append((path, reason))

    def dynamics(self, wav):
        """Return the vector (384,) of a waveform (T,) at 16 kHz."""
        least = (FRAMES + 3) * 160
        short = max(0, least - len(wav) - 2 * self.pad)
        wav = functional.pad(wav, (self.pad + short // 2, self.pad + short))
        # The model takes the numbers of 16-bit audio.
        [mel] = self.mel.run(None, {"input": 32767 * wav[None].numpy()})
        mel = mel.reshape(-1, mel.shape[-1]) / 10 + 2
        windows = np.lib.stride_tricks.sliding_window_view(mel, FRAMES, 0)
        windows = windows[::HOP].transpose(0, 2, 1)[..., None]
        [vectors] = self.embed.run(None, {"input_1": windows})
        tokens = torch.from_numpy(vectors).flatten(1)[None]
        is_token = torch.ones(tokens.shape[:2], dtype=torch.bool)
        return pool(tokens, is_token, None, "dynamics", 1)[0]
