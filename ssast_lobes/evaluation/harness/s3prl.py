"""Provide exported folders as an upstream of s3prl.

s3prl is the toolkit of Yang et al., "SUPERB: Speech processing Universal
PERformance Benchmark", Interspeech 2021. It finds upstreams by their names in
``s3prl.hub``: register this one by ``s3prl.hub.ssast_lobes = UpstreamExpert``.
"""

import torch
from torch.nn.utils.rnn import pad_sequence

from ssast_lobes.evaluation.harness.windowed_model import WindowedModel
from ssast_lobes.utils.lengths import length_to_mask

SAMPLE_RATE = 16000


class UpstreamExpert(WindowedModel):
    """An upstream with the hidden states of all layers.

    The vector of a time step is the mean over frequency, so that the vectors of
    patch models are in order of time too. s3prl expects as many steps as the
    samples of a clip divided by the downsample rate, rounded up. If the model
    returns fewer steps, the last step is repeated.

    Arguments
    ---------
    ckpt : str or path
        Exported folder. s3prl passes the value of ``--upstream_ckpt``.
    model_config, **others
        s3prl passes them. They are not used.

    Raises
    ------
    ValueError
        If no folder is given, or the model needs another sampling rate than 16
        kHz.
    WeightsError
        See `AudioEncoder.from_hparams`.

    Example
    -------
    >>> UpstreamExpert()
    Traceback (most recent call last):
    ...
    ValueError: no model given: pass an exported folder with --upstream_ckpt
    """

    def __init__(self, ckpt=None, model_config=None, **others):
        if not ckpt:
            raise ValueError(
                "no model given: pass an exported folder with --upstream_ckpt"
            )
        super().__init__(ckpt)
        if self.sample_rate != SAMPLE_RATE:
            raise ValueError(
                f"{ckpt}: takes audio at {self.sample_rate} Hz, s3prl gives "
                f"{SAMPLE_RATE} Hz: HEAR and X-ARES ask a model for its rate"
            )
        # s3prl disables gradients itself if it does not train the model.
        self.lobe.freeze = False
        self.lobe.encoder.requires_grad_(True)

    def get_downsample_rates(self, key=None):
        """Return the samples between time steps, the same for all layers."""
        return self.samples_per_step

    def forward(self, wavs):
        """Represent a batch.

        Arguments
        ---------
        wavs : list of torch.Tensor
            Mono waveforms (samples,) at 16 kHz, of any lengths.

        Returns
        -------
        dict
            ``"hidden_states"``: L + 1 tensors (B, T, D), the input of the first
            block and the output of each block. ``"last_hidden_state"``: (B, T,
            D), after the final norm. T is the number of samples of the longest
            clip divided by the downsample rate, rounded up. Padding is 0.

        Raises
        ------
        ValueError
            See `WindowedModel.clip`.
        """
        wav = pad_sequence(wavs, batch_first=True)
        lengths = torch.tensor([len(clip) for clip in wavs], device=wav.device)
        last, states = self.layers(wav, lengths)
        states = torch.cat([states, last[None]])
        *states, last = self._in_full(states, lengths, wav.shape[1])
        return {"hidden_states": states, "last_hidden_state": last}

    def _in_full(self, states, lengths, longest):
        """Repeat each clip's last step up to the number that s3prl expects."""
        rate = self.samples_per_step
        time = torch.arange(-(-longest // rate), device=states.device)
        place = torch.minimum(time, self.n_time(lengths)[:, None] - 1)
        size = (*states.shape[:2], len(time), states.shape[3])
        states = states.gather(2, place[..., None].expand(size))
        expected = -(-lengths // rate)
        return states * length_to_mask(expected, len(time))[..., None]
