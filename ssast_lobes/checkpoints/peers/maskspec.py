"""MaskSpec: https://github.com/WangHelin1997/MaskSpec (6fb50a1)."""

from ssast_lobes.checkpoints.peers.audiomae import AudioMAE
from ssast_lobes.checkpoints.peers.decoders import (
    MAE_NAMES,
    take_mae_decoder,
)
from ssast_lobes.checkpoints.peers.family import HEAD, VIT


class MaskSpec(AudioMAE):
    """A masked autoencoder at 32 kHz, with statistics of each mel bin.

    Unlike AudioMAE's, its sin-cos positions are in the order of the tokens. The
    official code stretches shorter clips to 1000 frames. Here, shorter clips
    keep their length.
    """

    name = "maskspec"
    title = "MaskSpec"
    paper = (
        "Chong et al., Masked Spectrogram Prediction for Self-Supervised "
        "Audio Pre-Training, ICASSP 2023"
    )
    license = "not stated apart; code Apache-2.0"
    source = "https://github.com/WangHelin1997/MaskSpec"
    names = {**VIT, **HEAD, **MAE_NAMES}
    left_out = ("decoder_pos_embed",)
    time_major = False
    features = {
        # The statistics are in the repository, not in the checkpoints.
        "statistics": "maskspec",
        "sample_rate": 32000,
        "fbank": {
            "kind": "centered",
            "fft_size": 1024,
            "window_samples": 800,
            "hop_samples": 320,
            "low_hz": 0.0,
            "high_hz": 15000.0,
            "mel_scale": "kaldi",
            "offset": 1e-5,
            "periodic": False,
            "pre_emphasis": 0.97,
        },
    }

    def build(self, ours, config, content, path, report):
        """See `Family.build`; a pretrained file has a decoder."""
        objective = take_mae_decoder(ours, "MaskedAutoencoder", report)
        if objective is not None:
            config["objective"] = objective
        super().build(ours, config, content, path, report)
