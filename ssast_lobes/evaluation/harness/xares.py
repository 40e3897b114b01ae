"""Provide exported folders as encoders of X-ARES.

The framework is that of Zhang et al., "X-ARES: A Comprehensive Framework for
Assessing Audio Encoder Performance", Interspeech 2025. Its runner takes a
Python file with exactly one name that ends in ``Encoder``. The runner builds
this class without arguments, and stores embeddings under the name of the class.
So write a file and a class for each model.
"""

from ssast_lobes.evaluation.harness.windowed_model import WindowedModel


class XaresEncoder(WindowedModel):
    """The base class of an encoder for X-ARES.

    Derive a class and set its `source`. X-ARES pads the clips of a batch with
    zeros and does not pass their lengths. So padding counts as audio, as for
    every encoder of X-ARES.

    Arguments
    ---------
    source : str or path, optional
        Exported folder; by default the `source` of the class.

    Raises
    ------
    ValueError
        If there is no `source`.
    WeightsError
        See `AudioEncoder.from_hparams`.

    Example
    -------
    >>> class TinyEncoder(XaresEncoder):
    ...     source = "results/tiny/export"
    >>> TinyEncoder()
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: results/tiny/export: no such ...
    """

    source = None

    def __init__(self, source=None):
        source = source or self.source
        if source is None:
            raise ValueError(
                f"{type(self).__name__} has no model: derive a class from "
                "XaresEncoder and set its source to an exported folder"
            )
        super().__init__(source)
        self.eval()

    @property
    def sampling_rate(self):
        """Rate of the audio in Hz."""
        return self.sample_rate

    @property
    def output_dim(self):
        """D, the size of a vector."""
        return self.output_size

    @property
    def hop_size_in_ms(self):
        """Milliseconds between vectors."""
        return 1000 * self.samples_per_step / self.sample_rate

    def forward(self, audio):
        """Return one vector for each time step.

        Arguments
        ---------
        audio : torch.Tensor
            Mono waveforms (B, S), or (S,), at `sampling_rate`.

        Returns
        -------
        torch.Tensor
            (B, T', D), the mean over frequency.

        Raises
        ------
        ValueError
            See `WindowedModel.clip`.
        """
        return self.frames(audio[None] if audio.dim() == 1 else audio)
