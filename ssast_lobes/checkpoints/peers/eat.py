"""EAT: https://github.com/cwx-worst-one/EAT (06c1c34); SSLAM has its graph."""

from ssast_lobes.checkpoints.peers.family import HEAD, Family

_IMAGE = "modality_encoders.IMAGE."


class EAT(Family):
    """Post-norm blocks, and a norm before the first instead of the last.

    The class token has no position. The table is long: clips take its first
    steps, up to 768 of 16 frames. The official code computes with the student's
    tensors, and so do these. fairseq's files and Hugging Face's are read.
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
        **HEAD,
    }
    left_out = ("decoder.", "_ema")
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
        """See `Family.build`; trained on 10 s, however long the table."""
        super().build(ours, config, content, path, report)
        encoder = config["encoder"]
        encoder["table_frames"] = min(1024, encoder["table_frames"])
        if config["kind"] == "classifier":
            report.append(
                "a head is there: a pretrained file of Hugging Face may hold "
                "one that was never trained"
            )
