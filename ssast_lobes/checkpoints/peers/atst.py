"""ATST: https://github.com/Audio-WestlakeU/audiossl (ec3a14d)."""

from ssast_lobes.checkpoints.peers.family import VIT, Family

# torchaudio's MelSpectrogram and AmplitudeToDB; -79.6482 dB and 50.6842 dB
# become -1 and 1.
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


class _ATST(Family):
    """What both have: frames of 64 mel bins x 4, attention without bias."""

    paper = (
        "Li, Shao and Li, Self-supervised Audio Teacher-Student Transformer "
        "for Both Clip-level and Frame-level Tasks, TASLP 2024"
    )
    license = "CC BY 4.0"
    license_id = "cc-by-4.0"
    source = "https://github.com/Audio-WestlakeU/audiossl"
    # The teacher is what the official code uses.
    prefixes = ("model.teacher.encoder.", "module.", "backbone.")
    names = {**VIT, "patch_embed.patch_embed.": "encoder.patch_embedding."}
    left_out = (
        "model.student.",
        "model.teacher.",
        "mask_embed",
        "projector.",
        "predictor.",
        "head.",
    )
    n_mels = 64
    features = FEATURES
    frames = 0

    def build(self, ours, config, content, path, report):
        """See `Family.build`; the table is longer than the clips were."""
        super().build(ours, config, content, path, report)
        config["encoder"]["table_frames"] = self.frames


class ATSTFrame(_ATST):
    """No class token; a clip is the mean of every block, normed.

    Clips over 1001 frames are cut into chunks, whose vectors are averaged.
    """

    name = "atst_frame"
    title = "ATST-Frame"
    marks = ("patch_embed.patch_embed.weight", "norm_frame.weight")
    names = {**_ATST.names, "norm_frame.": "encoder.norm."}
    encoder = {"n_class_tokens": 0, "crop": "start", "qkv_bias": False}
    pooling = {"pooling": "mean", "layers": "normed"}
    frames = 1001
    chunks = {"frames": 1001, "rule": "mean"}


class ATSTClip(_ATST):
    """One class token; a clip is the class tokens, then the means.

    Trained on 6 s. Clips over 601 frames are cut into chunks; a further chunk
    counts if more than half of it is audio.
    """

    name = "atst_clip"
    title = "ATST-Clip"
    paper = (
        "Li and Li, ATST: Audio Representation Learning with Teacher-Student "
        "Transformer, Interspeech 2022"
    )
    marks = ("patch_embed.patch_embed.weight", "cls_token", "norm.weight")
    encoder = {"n_class_tokens": 1, "crop": "start", "qkv_bias": False}
    pooling = {"pooling": "class_mean", "layers": "normed"}
    frames = 601
    chunks = {"frames": 601, "rule": "mean_of_long"}
