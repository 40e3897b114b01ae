"""M2D: https://github.com/nttcslab/m2d (f0c4128)."""

import re

from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.peers.decoders import (
    MAE_NAMES,
    take_mae_decoder,
)
from ssast_lobes.checkpoints.peers.family import VIT, Family

_FOLDER = re.compile(r"-(\d+)x(\d+)p(\d+)x(\d+)(p32k)?(?=-|$)")
_BN = "module.head.norm."
_EPS = 1e-5


class M2D(Family):
    """A vision transformer; clip vectors join the means of bands over time.

    The folder name of a released checkpoint states the number of frames and
    the sampling rate. Clips longer than those of the training are cut into
    chunks of that length, and the tokens of the chunks are joined.
    """

    name = "m2d"
    title = "M2D"
    paper = (
        "Niizumi et al., Masked Modeling Duo: Towards a Universal Audio "
        "Pre-training Framework, TASLP 2024"
    )
    license = "NTT's evaluation license"
    license_id = "other"
    source = "https://github.com/nttcslab/m2d/releases"
    marks = ("norm_stats", "cls_token", "patch_embed.proj.weight")
    prefixes = ("module.ar.runtime.backbone.", "backbone.")
    names = {
        **VIT,
        **MAE_NAMES,
        "norm_stats": "norm_stats",
        "module.head.mlp.mlp.0.": "head.linear.",
        _BN: "head.bn.",
    }
    left_out = (
        "decoder_pos_embed",
        # Other parts of a fine-tuned model, such as its front end.
        "module.ar.",
        "target_blocks.",
        "target_norm.",
        "offline_predictor.",
        "audio_proj.",
        "text_proj.",
        "logit_scale",
    )
    n_mels = 80
    keep_partial = True
    time_major = False
    features = {}

    def build(self, ours, config, content, path, report):
        """See `Family.build`; the folder name states the geometry."""
        statistics = ours.pop("norm_stats", None)
        if statistics is None:
            report.append("norm_stats are not in the file: -7.1 and 4.2 taken")
            mean, std = -7.1, 4.2
        else:
            mean, std = statistics.tolist()
        batch_norm = {
            key: ours.pop(key) for key in list(ours) if "head.bn." in key
        }
        if batch_norm:
            # The batch norm has no scale or offset: fold it into the linear
            # layer.
            mean_of, variance = (
                batch_norm[f"head.bn.running_{part}"]
                for part in ("mean", "var")
            )
            weight = ours["head.linear.weight"] / (variance + _EPS).sqrt()
            ours["head.linear.weight"] = weight
            ours["head.linear.bias"] = (
                ours["head.linear.bias"] - weight @ mean_of
            )
        objective = take_mae_decoder(ours, "M2D", report)
        if objective is not None:
            config["objective"] = objective
        super().build(ours, config, content, path, report)
        encoder = config["encoder"]
        grid, steps = encoder["grid"], encoder["table"][1]
        found = _FOLDER.search(path.absolute().parent.name)
        frames, wide = encoder["table_frames"], False
        if found is None:
            report.append(
                "the name of the folder tells no geometry, as "
                f"m2d_vit_base-80x{frames}p16x16-... does: 16 kHz and "
                f"{frames} frames taken"
            )
        else:
            mels, frames, bins, width = map(int, found.groups()[:4])
            wide = found[5] is not None
            told = [mels, [bins, width], frames // width]
            if told != [grid["n_mels"], grid["patch"], steps]:
                raise WeightsError(
                    f"the folder is called {path.absolute().parent.name}, but "
                    f"the tensors are of {grid['patch']} patches and {steps} "
                    "steps"
                )
        rate = 32000 if wide else 16000
        # The official code divides by std, not by 2 std.
        config["features"] = {
            "n_mels": self.n_mels,
            "sample_rate": rate,
            "statistics": {"mean": mean, "std": std / 2},
            "fbank": {
                "kind": "centered",
                "fft_size": rate // 40,
                "window_samples": rate // 40,
                "hop_samples": rate // 100,
                "low_hz": 50.0,
                "high_hz": rate / 2,
                "mel_scale": "slaney",
            },
        }
        encoder["table_frames"] = steps * grid["patch"][1]
        config["chunks"] = {"frames": frames, "rule": "join"}
        config["pooling"].update(pooling="bands", n_freq=encoder["table"][0])
