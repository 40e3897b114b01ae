"""An s3prl upstream, for exported folders.

Yang et al., "SUPERB: Speech processing Universal PERformance Benchmark",
Interspeech 2021. s3prl looks upstreams up by their names in ``s3prl.hub``:
``s3prl.hub.ssast_lobes = UpstreamExpert`` makes this one known.
"""

import torch
from torch.nn.utils.rnn import pad_sequence

from ssast_lobes.evaluation.harness.windowed_model import WindowedModel
from ssast_lobes.utils.lengths import length_to_mask

SAMPLE_RATE = 16000


class UpstreamExpert(WindowedModel):
    """An upstream with the hidden states of all layers.

    Time runs in order for patch models too: a time step is the mean over
    frequency. s3prl counts the steps of a clip as its samples over the
    downsample rate, rounded up, which may be more than the last analysis
    window reaches: the last step is repeated there.

    Arguments
    ---------
    ckpt : str or path
        Exported folder; s3prl passes what follows ``--upstream_ckpt``.
    model_config, **others
        s3prl passes them; not needed.

    Raises
    ------
    ValueError
        If no folder is given, or the model is not for audio at 16 kHz.
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
        # s3prl decides whether to train it, and disables gradients if not.
        self.lobe.freeze = False
        self.lobe.encoder.requires_grad_(True)

    def get_downsample_rates(self, key=None):
        """Return the samples between time steps, equal for all layers."""
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
            ``"hidden_states"``: L + 1 tensors (B, T, D), what enters the
            first block and the output of each; ``"last_hidden_state"``
            (B, T, D), after the final norm. T is the longest clip's samples
            over the downsample rate, rounded up; 0 behind a shorter clip's
            own.

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
        """Repeat each clip's last step up to where s3prl expects one."""
        rate = self.samples_per_step
        time = torch.arange(-(-longest // rate), device=states.device)
        place = torch.minimum(time, self.n_time(lengths)[:, None] - 1)
        size = (*states.shape[:2], len(time), states.shape[3])
        states = states.gather(2, place[..., None].expand(size))
        expected = -(-lengths // rate)
        return states * length_to_mask(expected, len(time))[..., None]
