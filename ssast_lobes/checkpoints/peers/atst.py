"""ATST: https://github.com/Audio-WestlakeU/audiossl (ec3a14d)."""

from ssast_lobes.checkpoints.peers.family import VIT, Family

# Settings of torchaudio's MelSpectrogram and AmplitudeToDB. -79.6482 dB becomes
# -1, and 50.6842 dB becomes 1.
FEATURES = {
    "statistics": {"mean": -14.482, "std": 32.5831},
    "fbank": {
        "kind": "centered",
        "fft_size": 1024,
        "window_samples": 1024,
        "hop_samples": 160,
        "low_hz": 60.0,
        "high_hz": 7800.0,
        "mel_scale": "htk",
        "top_db": 80.0,
    },
}

# BYOL's projector comes from the teacher, like the encoder. Only the student
# has a predictor.
_HEADS = {
    "model.teacher.projector.": "objective.projector.",
    "model.student.predictor.": "objective.predictor.",
}
_LAYERS = {
    "0.": "fc1.",
    "1.weight": "norm.scale",
    "1.bias": "norm.offset",
    "1.running_mean": "norm.running_mean",
    "1.running_var": "norm.running_variance",
    "3.": "fc2.",
}


class _ATST(Family):
    """The layout that ATST-Frame and ATST-Clip share.

    Patches are 64 mel bins x 4 frames. Queries, keys and values have no bias.
    """

    paper = (
        "Li, Shao and Li, Self-supervised Audio Teacher-Student Transformer "
        "for Both Clip-level and Frame-level Tasks, TASLP 2024"
    )
    license = "CC BY 4.0"
    license_id = "cc-by-4.0"
    source = "https://github.com/Audio-WestlakeU/audiossl"
    # The official code uses the teacher.
    prefixes = ("model.teacher.encoder.", "module.", "backbone.")
    names = {
        **VIT,
        "patch_embed.patch_embed.": "encoder.patch_embedding.",
        **{
            theirs + layer: ours + name
            for theirs, ours in _HEADS.items()
            for layer, name in _LAYERS.items()
        },
    }
    left_out = (
        "model.student.encoder.",
        "model.student.projector.",
        *(f"{name}1.num_batches_tracked" for name in _HEADS),
        # Older files store projector and predictor in two entries: drop both.
        "projector.",
        "predictor.",
        "head.",
    )
    n_mels = 64
    features = FEATURES
    frames = 0
    objective = ""

    def build(self, ours, config, content, path, report):
        """See `Family.build`; `table_frames` is the training length."""
        heads = {key: ours.pop(key) for key in list(ours) if "objective" in key}
        super().build(ours, config, content, path, report)
        encoder = config["encoder"]
        encoder["table_frames"] = self.frames
        if "objective.predictor.fc2.weight" not in heads:
            return
        out, hidden = heads["objective.predictor.fc2.weight"].shape
        ours.update(heads)
        config["objective"] = {
            "name": self.objective,
            "hidden": hidden / encoder["dim"],
            "out": out / encoder["dim"],
        }
        report.append(f"pretext heads: of sizes {hidden} and {out}")


class ATSTFrame(_ATST):
    """The layout of ATST-Frame, without class token.

    A clip vector concatenates, over all blocks, the mean of the normalized
    tokens. Clips over 1001 frames are cut into chunks, and the vectors of the
    chunks are averaged.
    """

    name = "atst_frame"
    title = "ATST-Frame"
    marks = ("patch_embed.patch_embed.weight", "norm_frame.weight")
    names = {
        **_ATST.names,
        "norm_frame.": "encoder.norm.",
        "mask_embed": "objective.mask_embedding",
    }
    encoder = {"n_class_tokens": 0, "crop": "start", "qkv_bias": False}
    pooling = {"pooling": "mean", "layers": "normed"}
    frames = 1001
    objective = "ATSTFrame"
    chunks = {"frames": 1001, "rule": "mean"}

    def build(self, ours, config, content, path, report):
        """See `_ATST.build`; also flatten the mask embedding."""
        key = "objective.mask_embedding"
        ours[key] = ours[key].flatten()
        super().build(ours, config, content, path, report)


class ATSTClip(_ATST):
    """The layout of ATST-Clip, with one class token.

    A clip vector concatenates the class tokens of all blocks, then the means of
    the tokens of all blocks. The model was trained on clips of 6 s. Clips over
    601 frames are cut into chunks. A chunk after the first counts only if more
    than half of it is audio.
    """

    name = "atst_clip"
    title = "ATST-Clip"
    paper = (
        "Li and Li, ATST: Audio Representation Learning with Teacher-Student "
        "Transformer, Interspeech 2022"
    )
    marks = ("patch_embed.patch_embed.weight", "cls_token", "norm.weight")
    left_out = ("mask_embed", *_ATST.left_out)
    encoder = {"n_class_tokens": 1, "crop": "start", "qkv_bias": False}
    pooling = {"pooling": "class_mean", "layers": "normed"}
    frames = 601
    objective = "ATSTClip"
    chunks = {"frames": 601, "rule": "mean_of_long"}
