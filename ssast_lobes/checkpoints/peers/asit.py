"""ASiT: https://github.com/Sara-Ahmed/ASiT (1f1d63c)."""

from ssast_lobes.checkpoints.peers.family import VIT, Family

_OUT = "objective.decoder.6."


class ASiT(Family):
    """A plain vision transformer; the class token is the clip vector.

    The official code accepts only clips of 592 frames. Here, shorter clips use
    the first steps of the table. The official code states 32 kHz, but users of
    the weights pass audio at 16 kHz. This front end also expects 16 kHz.
    """

    name = "asit"
    title = "ASiT"
    paper = (
        "Atito et al., ASiT: Local-Global Audio Spectrogram vIsion "
        "Transformer, TASLP 2024"
    )
    license = "none stated"
    source = "https://github.com/Sara-Ahmed/ASiT"
    prefixes = ("module.", "backbone.")
    names = {
        **VIT,
        "head_cls.mlp.": "objective.projector.",
        "head_cls.cls_layer.weight_v": "objective.class_prototypes.weight",
        "head_cls.data_layer.weight_v": "objective.patch_prototypes.weight",
        "head_recons.mlp.": "objective.decoder.",
        "head_recons.convTrans.": _OUT,
    }
    # The gains of the prototypes are fixed to 1.
    left_out = ("head_cls.cls_layer.weight_g", "head_cls.data_layer.weight_g")
    pooling = {"pooling": "class", "layers": "last"}

    def build(self, ours, config, content, path, report):
        """See `Family.build`; pretext heads are read, but have no centers."""
        heads = {key: ours.pop(key) for key in list(ours) if "objective" in key}
        super().build(ours, config, content, path, report)
        if _OUT + "weight" not in heads:
            return
        # A transposed convolution on patches that do not overlap is a linear
        # layer. Its kernel is (frames, bins), and all pixels share one bias.
        kernel = heads[_OUT + "weight"][:, 0].transpose(1, 2)
        heads[_OUT + "weight"] = kernel.flatten(1).t()
        pixels = kernel[0].numel()
        heads[_OUT + "bias"] = heads[_OUT + "bias"].repeat(pixels)
        ours.update(heads)
        config["objective"] = {"name": "ASiT"}
        report.append("pretext heads: prototypes, and a decoder of pixels")
