"""Google's `speech_embedding`, as a baseline of probes.

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

from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.evaluation.probing.embeddings import LogMelStatistics
from ssast_lobes.models.pooling import pool

MODELS = "openwakeword/resources/models/{}.onnx"
# A vector is computed from 76 frames of 10 ms, every 8 frames: see
# `openwakeword.utils.AudioFeatures`.
FRAMES, HOP = 76, 8
# Silence of half a second at both ends lets the context reach beyond a short
# clip. Without it, or with half of it, the mean of cross-validated scores was
# lower, on train and valid.
PAD = 8000


class SpeechEmbedding(LogMelStatistics):
    """Read clips as the dynamics of their vectors, like our encoders.

    Arguments
    ---------
    wheel : str or os.PathLike
        The wheel of openWakeWord 0.4.0.
    """

    def __init__(self, wheel):
        import onnxruntime

        with zipfile.ZipFile(wheel) as files:
            self.mel, self.embed = (
                onnxruntime.InferenceSession(files.read(MODELS.format(name)))
                for name in ("melspectrogram", "embedding_model")
            )
        self.wheel = Path(wheel)

    @property
    def key(self):
        """Names all that the vectors depend on."""
        return f"{self.wheel.stem}-{PAD}"

    def _statistics(self, path):
        """Return the vector (384,) of a file."""
        wav = functional.pad(read_audio(path), (PAD, PAD))
        # The model takes the numbers of 16-bit audio.
        [mel] = self.mel.run(None, {"input": 32767 * wav[None].numpy()})
        mel = mel.reshape(-1, mel.shape[-1]) / 10 + 2
        windows = np.lib.stride_tricks.sliding_window_view(mel, FRAMES, 0)
        windows = windows[::HOP].transpose(0, 2, 1)[..., None]
        [vectors] = self.embed.run(None, {"input_1": windows})
        tokens = torch.from_numpy(vectors).flatten(1)[None]
        is_token = torch.ones(tokens.shape[:2], dtype=torch.bool)
        return pool(tokens, is_token, None, "dynamics", 1)[0]
