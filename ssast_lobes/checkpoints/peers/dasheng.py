"""Dasheng: https://github.com/XiaoMi/dasheng (711a6da)."""

import torch

from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.peers.family import Family

# Epsilon that the batch norm adds to the variances.
_EPS = 1e-5
_BN = "front_end.bn."


class Dasheng(Family):
    """The layout of Dasheng, without class token.

    A position is the sum of a time vector and a frequency vector. The batch
    norm of the front end is folded into the statistics of each mel bin.
    Decibels are clipped relative to a maximum: that of the batch in the
    official code, that of the clip in this front end. Clips over 1008 frames
    are cut into chunks. The last chunk is padded with zeros, which attention
    does not mask.
    """

    name = "dasheng"
    title = "Dasheng"
    paper = (
        "Dinkel et al., Scaling up masked audio encoder learning for general "
        "audio classification, Interspeech 2024"
    )
    license = "Apache-2.0"
    license_id = "apache-2.0"
    source = "https://zenodo.org/records/11511780"
    marks = ("time_pos_embed", "freq_pos_embed")
    names = {
        "blocks.": "encoder.blocks.",
        "norm.": "encoder.norm.",
        "patch_embed.proj.": "encoder.patch_embedding.",
        "time_pos_embed": "time",
        "freq_pos_embed": "frequency",
        "init_bn.1.": _BN,
    }
    # The window and mel filters equal those of our front end.
    left_out = ("front_end.", "init_bn.1.num_batches_tracked")
    n_mels = 64
    time_major = False
    position_rows = 0
    encoder = {"n_class_tokens": 0, "crop": "start"}
    features = {
        "fbank": {
            "kind": "centered",
            "fft_size": 512,
            "window_samples": 512,
            "hop_samples": 160,
            "low_hz": 0.0,
            "high_hz": 8000.0,
            "mel_scale": "htk",
            "top_db": 120.0,
        }
    }
    chunks = {"frames": 1008, "rule": "zeros"}
    sizes = {768: 12, 1280: 32, 1536: 40}

    def build(self, ours, config, content, path, report):
        """See `Family.build`; the file's config states the number of heads."""
        time, frequency = ours.pop("time"), ours.pop("frequency")
        norm = {
            part: ours.pop(_BN + part).double()
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        shapes = {"freq_pos_embed": (frequency, (1, time.shape[1], 1, 1))}
        shapes["time_pos_embed"] = (
            time,
            (1, frequency.shape[1], 1, time.shape[-1]),
        )
        for part, value in norm.items():
            shapes[f"init_bn.1.{part}"] = (value, (self.n_mels,))
        for key, (value, shape) in shapes.items():
            if value.shape != shape:
                raise WeightsError(
                    f"{key} is {tuple(value.shape)}, not {shape}"
                )
        # There is only one band, so the sum is (1, D, 1, steps).
        ours["positions"] = (time + frequency)[:, :, 0].transpose(1, 2)
        # Choose mean and std so that (x - mean) / (2 std) is the batch norm.
        scale = norm["weight"] / (norm["running_var"] + _EPS).sqrt()
        if not scale.all():
            raise WeightsError("init_bn.1.weight is 0 for a mel bin")
        mean = norm["running_mean"] - norm["bias"] / scale
        super().build(ours, config, content, path, report)
        config["features"]["statistics"] = {
            "mean": mean.tolist(),
            "std": (0.5 / scale).tolist(),
        }
        given = content.get("config") or {}
        encoder = config["encoder"]
        if isinstance(given, dict) and given:
            self._check(given, encoder)
            encoder["heads"] = given["num_heads"]
        elif encoder["dim"] == 1280:
            encoder["heads"] = 16

    def _check(self, given, encoder):
        names = {"embed_dim": "dim", "depth": "depth"}
        for theirs, ours in names.items():
            if given[theirs] != encoder[ours]:
                raise WeightsError(
                    f"config: {theirs} is {given[theirs]}, the tensors have "
                    f"{encoder[ours]}"
                )
        if torch.is_tensor(given["num_heads"]):
            raise WeightsError("config: num_heads is no number")
