"""ASiT: https://github.com/Sara-Ahmed/ASiT (1f1d63c)."""

from ssast_lobes.checkpoints.peers.family import Family


class ASiT(Family):
    """A plain vision transformer; the class token is the clip vector.

    592 frames only in the official code; shorter clips take the first steps
    of the table here. The code says 32 kHz; users of the weights, and this
    front end, give it 16 kHz.
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
    left_out = ("head_cls.", "head_recons.")
    pooling = {"pooling": "class", "layers": "last"}
