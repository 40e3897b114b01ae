"""AudioMAE: https://github.com/facebookresearch/AudioMAE (bd60e29)."""

from ssast_lobes.checkpoints.peers.family import (
    HEAD,
    MAE_DECODER,
    VIT,
    Family,
)


class AudioMAE(Family):
    """A masked autoencoder, pretrained or fine-tuned.

    Its position table was computed for a grid of 8 x 64, but the tokens are in
    the order of a grid of 64 x 8. Row n belongs to token n, but is not the
    sin-cos vector of that token's position, so the table must be read from the
    file. The official code accepts only clips of 1024 frames. Here, shorter
    clips use the first steps of the table.
    """

    name = "audiomae"
    title = "AudioMAE"
    paper = "Huang et al., Masked Autoencoders that Listen, NeurIPS 2022"
    license = "not stated apart; code CC BY-NC 4.0 (the README says CC BY 4.0)"
    source = "https://github.com/facebookresearch/AudioMAE"
    names = {**VIT, **HEAD}
    left_out = MAE_DECODER

    def build(self, ours, config, content, path, report):
        """See `Family.build`; in a classifier the norm follows the pooling."""
        super().build(ours, config, content, path, report)
        if config["kind"] == "classifier":
            config["encoder"]["norms"] = []
