"""Sound event detection: scores of every class at every time step.

`FrameClassifier` turns frames into scores. `SpectrogramDetector` joins it to an
encoder. `FrameTiming` tells which part of the audio a frame covers.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ssast_lobes.models.pooling import ClipPooling
from ssast_lobes.utils.checks import flag, one_of, require, whole
from ssast_lobes.utils.lengths import length_to_mask

WEAK_POOLINGS = ("linear_softmax", "attention")


class EventScores(NamedTuple):
    """Scores of events, as logits.

    Arguments
    ---------
    frames : torch.Tensor
        Scores of frames (B, T', C), independent for each class; 0 at padding.
    clip : torch.Tensor
        Scores of clips (B, C): whether the class occurs anywhere in the clip.
    n_time : torch.Tensor
        Number of frames of each clip, (B,) int64.
    """

    frames: torch.Tensor
    clip: torch.Tensor
    n_time: torch.Tensor


class FrameClassifier(nn.Module):
    """Score every class at every time step, and in the clip as a whole.

    Arguments
    ---------
    dim : int
        Size D of a frame.
    n_classes : int
        Number of classes C.
    weak_pooling : str
        Pooling of the probabilities of the frames to the probability of the
        clip. ``"linear_softmax"`` is the mean weighted by the probabilities
        themselves (Wang et al., "A comparison of five multiple instance
        learning pooling functions for sound event detection with weak
        labeling", ICASSP 2019). ``"attention"`` is the mean weighted by learned
        scores of each class.
    hidden : int, optional
        Number of channels of a convolution over time before the scores; by
        default there is no convolution.
    context : int
        Width of the convolution in frames, odd.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> head = FrameClassifier(32, 5)
    >>> scores = head(torch.randn(2, 8, 32), torch.tensor([8, 3]))
    >>> scores.frames.shape, scores.clip.shape
    (torch.Size([2, 8, 5]), torch.Size([2, 5]))
    """

    def __init__(
        self,
        dim,
        n_classes,
        weak_pooling="linear_softmax",
        hidden=None,
        context=1,
    ):
        super().__init__()
        one_of("weak_pooling", weak_pooling, WEAK_POOLINGS)
        whole("hidden", hidden, null=True)
        whole("context", context)
        require(context % 2 == 1, "context", "an odd number", context)
        if hidden is None:
            require(context == 1, "context", "1 where hidden is null", context)
        self.weak_pooling = weak_pooling
        self.hidden = hidden
        self.context = context
        self.norm = nn.LayerNorm(dim)
        if hidden is not None:
            self.convolution = nn.Conv1d(
                dim, hidden, context, padding=context // 2
            )
        self.linear = nn.Linear(hidden or dim, n_classes)
        # With larger weights, weak labels would push down frames that start
        # with much lower scores than the rest of a clip.
        nn.init.normal_(self.linear.weight, std=0.01)
        if weak_pooling == "attention":
            self.attention = nn.Linear(hidden or dim, n_classes)

    @property
    def config(self):
        """The arguments that rebuild this head, without the sizes."""
        return {
            "weak_pooling": self.weak_pooling,
            "hidden": self.hidden,
            "context": self.context,
        }

    def forward(self, frames, n_time):
        """Return the `EventScores` of a batch.

        Arguments
        ---------
        frames : torch.Tensor
            Vectors of frames (B, T', D).
        n_time : torch.Tensor
            Number of frames of each clip without padding, (B,) int64.
        """
        is_frame = length_to_mask(n_time, frames.shape[1])[:, :, None]
        x = self.norm(frames)
        if self.hidden is not None:
            # Without the mask, the convolution would carry padding into the
            # clip.
            x = (x * is_frame).transpose(1, 2)
            x = functional.gelu(self.convolution(x)).transpose(1, 2)
        scores = self.linear(x).float() * is_frame
        # Probabilities, complements and weights are logarithms, so that the
        # gradients do not vanish if a probability is close to 0 or 1.
        yes = functional.logsigmoid(scores)
        no = functional.logsigmoid(-scores)
        weight = yes
        if self.weak_pooling == "attention":
            weight = self.attention(x).float()
        weight = weight.masked_fill(~is_frame, -math.inf)
        clip = (weight + yes).logsumexp(1) - (weight + no).logsumexp(1)
        return EventScores(scores, clip, n_time)


class SpectrogramDetector(nn.Module):
    """Encoder and frame classifier in one module: features in, scores out.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder, usually pretrained.
    n_classes : int
        Number of classes C.
    layers : str
        Layers from which frames are made: ``"last"``, ``"weighted"``, ``"all"``
        or ``"normed"``; see `ClipPooling`.
    weak_pooling, hidden, context
        See `FrameClassifier`.
    freeze_encoder : bool
        Whether to train only the head and the weighting of layers.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> grid = {"patch": (128, 2)}
    >>> encoder = SpectrogramEncoder(grid, dim=32, depth=1, heads=2)
    >>> model = SpectrogramDetector(encoder, n_classes=5)
    >>> scores = model(torch.randn(2, 50, 128), torch.tensor([50, 20]))
    >>> scores.frames.shape, scores.n_time
    (torch.Size([2, 25, 5]), tensor([25, 10]))
    """

    def __init__(
        self,
        encoder,
        n_classes,
        layers="last",
        weak_pooling="linear_softmax",
        hidden=None,
        context=1,
        freeze_encoder=False,
    ):
        super().__init__()
        self.freeze_encoder = flag("freeze_encoder", freeze_encoder)
        self.pooling = ClipPooling(encoder.depth, "mean", layers)
        size = self.pooling.output_size(encoder.dim)
        self.head = FrameClassifier(
            size, n_classes, weak_pooling, hidden, context
        )
        self.encoder = encoder
        if freeze_encoder:
            encoder.requires_grad_(False)
        if self.pooling.needs_hidden_states is True:
            # The loss does not depend on the final norm, and DDP would wait for
            # the gradient of the norm.
            encoder.norm.requires_grad_(False)

    def train(self, mode=True):
        """Switch the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()
        return self

    def forward(self, feats, n_frames=None):
        """Return the `EventScores` of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels).
        n_frames : torch.Tensor, optional
            Valid frames (B,); see `SpectrogramEncoder.forward`.
        """
        encoded = self.encoder(
            feats, n_frames, hidden_states=self.pooling.needs_hidden_states
        )
        return self.head(self.pooling.frames(encoded), encoded.n_time)


class FrameTiming:
    """Tell which part of the audio each frame (time step) covers.

    A frame covers one step around the middle of its patch. The first frame
    begins with the clip, and the last one ends with it.

    Arguments
    ---------
    grid : Grid
        The grid of patches.
    fbank : Filterbank
        The filterbank.

    Example
    -------
    >>> from ssast_lobes import Grid, KaldiFbank
    >>> timing = FrameTiming(Grid(128, (128, 4)), KaldiFbank())
    >>> timing.step, timing.n_time(16000)
    (0.04, 25)
    >>> timing.edges(3, 0.12)
    [0.0, 0.0475, 0.0875, 0.12]
    """

    def __init__(self, grid, fbank):
        rate, hop = fbank.sample_rate, fbank.hop_samples
        middle = fbank.first_center + (grid.patch[1] - 1) * hop / 2
        self.grid = grid
        self.fbank = fbank
        self.sample_rate = rate
        # Seconds between frames, and the start of the first frame.
        self.step = grid.stride[1] * hop / rate
        self.start = (middle - grid.stride[1] * hop / 2) / rate

    def n_time(self, n_samples):
        """Return the number of frames (int) of a clip."""
        return self.grid.n_time(self.fbank.frames_of(n_samples))

    def edge(self, number):
        """Return the start of frame `number`, in seconds."""
        # Remove the rounding noise of binary fractions.
        return 0.0 if number == 0 else round(self.start + number * self.step, 9)

    def edges(self, n_time, seconds):
        """Return the starts of all frames and the end of the last one.

        Arguments
        ---------
        n_time : int
            Number of frames T'.
        seconds : float
            Duration of the clip.

        Returns
        -------
        list of float
            T' + 1 times in seconds.
        """
        inner = [self.edge(number) for number in range(n_time)]
        return [*inner, seconds]

    def targets(self, events, n_samples, n_classes):
        """Return the targets of the frames of a clip.

        A frame is positive if an event covers its middle. An event that covers
        the middle of no frame marks the frame that contains the middle of the
        event.

        Arguments
        ---------
        events : list of tuple
            Onset and offset (seconds from the start of the clip) and index of
            the class; parts outside of the clip do not count.
        n_samples : int
            Length of the clip in samples.
        n_classes : int
            Number of classes C.

        Returns
        -------
        torch.Tensor
            Targets (T', C), float32, 0 or 1.

        Example
        -------
        >>> from ssast_lobes import Grid, KaldiFbank
        >>> timing = FrameTiming(Grid(128, (128, 4)), KaldiFbank())
        >>> timing.targets([(0.05, 0.14, 1)], 3200, 2).T.int().tolist()
        [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]
        """
        n_time, seconds = self.n_time(n_samples), n_samples / self.sample_rate
        target = torch.zeros(n_time, n_classes)
        for onset, offset, number in events:
            onset, offset = max(onset, 0.0), min(offset, seconds)
            if onset >= offset:
                continue
            first = math.ceil((onset - self.start) / self.step - 0.5)
            stop = math.ceil((offset - self.start) / self.step - 0.5)
            if stop <= first:
                middle = (onset + offset) / 2 - self.start
                first = math.floor(middle / self.step)
                stop = first + 1
            first = min(max(first, 0), n_time - 1)
            target[first : max(stop, first + 1), number] = 1.0
        return target
