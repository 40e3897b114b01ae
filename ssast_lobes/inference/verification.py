"""Verify speakers with an exported encoder."""

import os
from typing import NamedTuple

import torch

from ssast_lobes.inference.encoder import AudioEncoder


class Verification(NamedTuple):
    """The similarity of two files.

    Arguments
    ---------
    path_a, path_b : str
        The files.
    score : float
        Cosine of their clip embeddings, -1 to 1.
    same_speaker : bool or None
        Whether the score reaches the threshold; None without a threshold.
    """

    path_a: str
    path_b: str
    score: float
    same_speaker: bool

    def as_dict(self):
        """Return plain values, for JSON."""
        return self._asdict()

    def rows(self, windows=False):
        """Return the row for a CSV, in a list; `windows` has no effect."""
        return [self._asdict()]


class SpeakerVerifier(AudioEncoder):
    """Verify whether two files contain the same speaker, by a cosine.

    The score is the cosine of two clip embeddings. This works best with the
    export of a speaker classifier. Scores of different models are not
    comparable, so no threshold suits all models. Choose one on your own pairs,
    for example where the rates of false acceptances and false rejections are
    equal (`ssast_lobes.utils.metrics.equal_error_rate`).

    Example
    -------
    >>> import soundfile
    >>> from ssast_lobes import FrontEnd, SpectrogramEncoder
    >>> from ssast_lobes.checkpoints.folder import export_pretrained
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
            Lowest score that counts as the same speaker.

        Returns
        -------
        Verification

        Raises
        ------
        UnreadableAudio
            If a file cannot be read, or contains less than 25 ms of audio.
        """
        pair = [self.encode_file(path) for path in (path_a, path_b)]
        score = torch.cosine_similarity(*pair, dim=0).item()
        same = None if threshold is None else score >= threshold
        return Verification(os.fspath(path_a), os.fspath(path_b), score, same)
