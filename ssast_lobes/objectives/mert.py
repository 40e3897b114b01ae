"""MERT on spectrograms: predict several codebooks and a note spectrum.

Li et al., "MERT: Acoustic Music Understanding Model with Large-Scale
Self-supervised Training", ICLR 2024; yizhilll/MERT.
"""

from torch import nn

from ssast_lobes.objectives.base import clip_mean, gather_tokens
from ssast_lobes.objectives.codes import Codes
from ssast_lobes.objectives.log_frequency import (
    N_BANDS,
    SAMPLE_RATE,
    LogFrequencySpectra,
)
from ssast_lobes.objectives.views import Background
from ssast_lobes.utils.checks import real


class MERT(Codes):
    """Predict codes and a constant-Q-like spectrum of masked tokens.

    Another clip of the batch is mixed into some clips as background. The codes
    and spectra to predict are those of the clip alone. A second head predicts
    the spectrum of `LogFrequencySpectra`, with a mean squared error. In
    evaluation there is no background, so the loss depends on the clip alone.

    This objective follows the idea of MERT, not its model. MERT has a
    convolutional front end on waveforms of 24 kHz, with 75 tokens a second. It
    predicts the codes of EnCodec's eight codebooks, by cosines to trained code
    vectors at a temperature of 0.1. Its spectra are raw magnitudes of a
    constant-Q transform of 336 bins. It adds a penalty on the front end, and
    mixes in pieces of other clips at full volume. Here the signal-to-noise
    ratio is drawn.

    The objective also needs the waveforms; `PretrainingLobe` passes them.

    Arguments
    ---------
    encoder, masker
        See `Codes`.
    background : dict
        Arguments of `Background`.
    spectrum_weight : float
        Weight of the error of the spectrum. The cross-entropy of each codebook
        has weight 1.
    **arguments
        The other arguments of `Codes`.

    Raises
    ------
    ValueError
        See `Codes`, or if an argument is out of range.

    Example
    -------
    >>> import torch
    >>> from ssast_lobes import SSAST, PretrainingLobe
    >>> from ssast_lobes.objectives import load_objective
    >>> lobe = SSAST(model_size="micro")
    >>> objective = load_objective("mert")(lobe.encoder)
    >>> pretrainer = PretrainingLobe(objective, lobe.features)
    >>> output = pretrainer(torch.randn(2, 16000), torch.tensor([1.0, 0.4]))
    >>> "cross_entropy" in output.logs, "spectrum" in output.logs
    (True, True)
    """

    preset = "mert"
    paper = (
        "codes and spectra of masked tokens, after Li et al., "
        '"MERT: Acoustic Music Understanding Model with Large-Scale '
        'Self-supervised Training", ICLR 2024'
    )

    def __init__(
        self, encoder, masker=None, *, background, spectrum_weight, **arguments
    ):
        super().__init__(encoder, masker, **arguments)
        # The tokenizer may need audio; the spectra always do.
        self.ids_need_audio = self.needs_audio or self.needs_place
        self.needs_audio = True
        self.sample_rate = SAMPLE_RATE
        self.background_config = dict(background)
        self.background = Background(**background)
        self.spectrum_weight = real("spectrum_weight", spectrum_weight, 0)
        self.spectra = LogFrequencySpectra(encoder.grid)
        self.spectrum_head = nn.Linear(self.head.in_features, N_BANDS)

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {
            **super().config,
            "background": self.background_config,
            "spectrum_weight": self.spectrum_weight,
        }

    def forward(
        self,
        feats,
        n_frames,
        mask=None,
        generator=None,
        clip_keys=None,
        *,
        wavs,
        n_samples,
        **place,
    ):
        """Return the loss of a batch.

        Arguments
        ---------
        feats, n_frames, mask, generator, clip_keys
            As in `Codes.forward`.
        wavs : torch.Tensor
            16 kHz mono waveforms (B, S).
        n_samples : torch.Tensor
            Valid samples (B,) int64.
        **place
            Further items that the tokenizer needs; see `Objective`.

        Returns
        -------
        ObjectiveOutput
            The logs of `Codes`, and ``spectrum``, the mean squared error. The
            chance level of ``spectrum`` is the error of predicting the mean of
            the clip.
        """
        mask, split = self.split(feats, n_frames, mask, generator, clip_keys)
        heard = feats
        if self.training:
            rand = self.random_source(feats, generator, clip_keys)
            heard = self.background(feats, n_frames, rand)
        outputs = self.outputs(heard, n_frames, mask, split)
        audio = {}
        if self.ids_need_audio:
            audio = {"wavs": wavs, "n_samples": n_samples, **place}
        ids = self.ids(feats, n_frames, split, **audio)
        output = self.losses(outputs, ids, split.weight)

        spectra = self.spectra(wavs, n_samples, n_frames, feats.shape[1])
        spectra = gather_tokens(spectra, split.ids_masked)
        errors = (self.spectrum_head(outputs).float() - spectra).square()
        spectrum = clip_mean(errors.mean(2), split.weight)
        logs = {
            **output.logs,
            "spectrum": spectrum.detach(),
            "spectrum_chance": clip_mean(
                spectra.square().mean(2), split.weight
            ),
        }
        loss = output.loss + self.spectrum_weight * spectrum
        return output._replace(loss=loss, logs=logs)
