"""EAT: https://github.com/cwx-worst-one/EAT (06c1c34)."""

import re

from ssast_lobes.checkpoints.peers.family import HEAD, Family

_LAYER = re.compile(r"(layers\.\d+)\.0\.")
_IMAGE = "modality_encoders.IMAGE."


class EAT(Family):
    """A transformer with post-norm blocks and a norm before the first block.

    SSLAM has the same graph. The class token has no position. The position
    table has 768 steps of 16 frames. A clip uses the first steps. As in the
    official code, the student's tensors are used. The files may be those of
    fairseq or of Hugging Face.
    """

    name = "eat"
    title = "EAT (or SSLAM, which has its layout)"
    paper = (
        "Chen et al., EAT: Self-Supervised Pre-Training with Efficient Audio "
        "Transformer, IJCAI 2024; Alex et al., SSLAM, ICLR 2025"
    )
    license = "MIT"
    license_id = "mit"
    source = "https://huggingface.co/worstchan"
    marks = ("extra_tokens", "local_encoder.proj.weight")
    prefixes = ("model.", _IMAGE)
    names = {
        "blocks.": "encoder.blocks.",
        "local_encoder.proj.": "encoder.patch_embedding.",
        "extra_tokens": "encoder.class_tokens",
        "fixed_positional_encoder.positions": "positions",
        "context_encoder.norm.": "encoder.first_norm.",
        "pre_norm.": "encoder.first_norm.",
        "decoder.blocks.": "objective.decoder.layers.",
        "decoder.proj.": "objective.head.",
        **HEAD,
    }
    left_out = ("_ema",)
    position_rows = 0
    encoder = {
        "blocks": "attention_post_norm",
        "n_class_tokens": 1,
        "norms": ["first"],
        "crop": "start",
    }
    features = {"statistics": {"mean": -4.268, "std": 4.569}}
    pooling = {"pooling": "class", "layers": "last"}
    sizes = {768: 12, 1024: 24}

    def build(self, ours, config, content, path, report):
        """See `Family.build`; `table_frames` is the training length."""
        objective = self.take_decoder(ours, report)
        if objective is not None:
            config["objective"] = objective
        super().build(ours, config, content, path, report)
        encoder = config["encoder"]
        encoder["table_frames"] = min(1024, encoder["table_frames"])
        if config["kind"] == "classifier":
            report.append(
                "a head is there: a pretrained file of Hugging Face may hold "
                "one that was never trained"
            )

    def take_decoder(self, ours, report):
        """Convert the decoder; return the objective's config, or None."""
        found = {key: ours.pop(key) for key in list(ours) if "objective" in key}
        if "objective.head.weight" not in found:
            return None
        for key, value in found.items():
            # The convolution is module 0 of a block. Kernels are (time, bands).
            name = _LAYER.sub(r"\1.", key)
            ours[name] = value.transpose(2, 3) if value.dim() == 4 else value
        depth = sum(value.dim() == 4 for value in found.values())
        report.append(f"pretext heads: a decoder of {depth} convolutions")
        return {"name": "EAT"}
