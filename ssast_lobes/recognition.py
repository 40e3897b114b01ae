"""Speech recognition by CTC: a score of every unit at every time step.

Graves et al., "Connectionist temporal classification", ICML 2006. The steps are
the encoder's ``frames``, so that a frame model (50 steps a second) has more of
them than there are units in the words; a patch model has 6.
"""

from torch import nn

from ssast_lobes.heads import ClassificationHead


class SpectrogramRecognizer(nn.Module):
    """Encoder and head: features in, scores of units at each step out.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder, usually pretrained.
    n_units : int
        Number of units U, the blank among them.

    Example
    -------
    >>> import torch
    >>> from ssast_lobes import SpectrogramEncoder
    >>> grid = {"patch": (128, 2)}
    >>> encoder = SpectrogramEncoder(grid, dim=32, depth=1, heads=2)
    >>> model = SpectrogramRecognizer(encoder, n_units=7)
    >>> scores, n_steps = model(torch.randn(2, 50, 128), torch.tensor([50, 20]))
    >>> scores.shape, n_steps
    (torch.Size([2, 25, 7]), tensor([25, 10]))
    """

    def __init__(self, encoder, n_units):
        super().__init__()
        self.encoder = encoder
        self.head = ClassificationHead(encoder.dim, n_units)

    def forward(self, feats, n_frames=None):
        """Return scores of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalised log-mel (B, T, n_mels).
        n_frames : torch.Tensor, optional
            Valid frames (B,); see `SpectrogramEncoder.forward`.

        Returns
        -------
        log_probabilities : torch.Tensor
            (B, T', U), float32.
        n_steps : torch.Tensor
            Valid steps of each clip, (B,) int64.
        """
        encoded = self.encoder(feats, n_frames)
        scores = self.head(encoded.frames)
        return scores.float().log_softmax(-1), encoded.n_steps
