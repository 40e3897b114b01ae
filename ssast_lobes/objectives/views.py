"""Views of clips, for objectives that compare several views of one clip.

The views come from random crops, random resizing of the mel and time axes,
random channels, and mixing with other clips. All modules work on a whole batch
on its own device, and never wait for the device. They draw from a given
`RandomSource`, and respect each clip's own length. Padding stays 0.
"""

import math

import torch
from torch import nn

from ssast_lobes.utils.checks import real, reals, require, whole
from ssast_lobes.utils.lengths import length_to_mask

# This is the parameter of the kernel in PyTorch's bicubic resizing.
_CUBIC = -0.75


def draw_whole(draw, choices):
    """Turn a uniform draw into a whole number below `choices`.

    Arguments
    ---------
    draw : torch.Tensor
        float32 in [0, 1), as `RandomSource` returns it.
    choices : int or torch.Tensor
        Number of whole numbers to choose from.

    Returns
    -------
    torch.Tensor
        int64, from 0 to `choices` - 1.

    Example
    -------
    >>> draw_whole(torch.tensor([0.0, 0.5, 0.99]), 4)
    tensor([0, 2, 3])
    """
    # In float32 the largest draw times `choices` may round up to `choices`.
    return (draw.double() * choices).floor().long()


class RandomCrop(nn.Module):
    """Crop each clip to a random segment.

    Arguments
    ---------
    fraction : float or tuple of float
        Length of the segment as a fraction of the clip's own frames; at least
        one frame. With two numbers, the fraction of each clip is drawn
        uniformly between them.

    Raises
    ------
    ValueError
        If a fraction is not above 0 and at most 1, or the least is above the
        greatest.

    Example
    -------
    >>> from ssast_lobes.utils.random import RandomSource
    >>> feats, n_frames = torch.randn(2, 100, 128), torch.tensor([100, 40])
    >>> crop = RandomCrop(0.6)
    >>> crops, n_frames = crop(feats, n_frames, RandomSource(2, feats.device))
    >>> crops.shape, n_frames.tolist()
    (torch.Size([2, 60, 128]), [60, 24])
    """

    def __init__(self, fraction):
        super().__init__()
        least, greatest = (
            fraction if isinstance(fraction, (list, tuple)) else [fraction] * 2
        )
        right = real("crop", least, 0, 1) <= real("crop", greatest, 0, 1)
        words = "a fraction above 0, or a range of them"
        require(right and least > 0, "crop", words, fraction)
        self.fraction = fraction
        self._least, self._greatest = least, greatest

    def forward(self, feats, n_frames, rand):
        """Crop each clip to a random segment.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        rand : RandomSource
            Source of the draws.

        Returns
        -------
        crops : torch.Tensor
            (B, round(f * T), n_mels), where f is the greatest fraction; 0 at
            padding.
        n_frames : torch.Tensor
            Valid frames of the crops, (B,) int64.
        """
        first, counts = self.draw(n_frames, rand)
        return cut(feats, first, counts, self.longest(feats)), counts

    def draw(self, n_frames, rand):
        """Draw where to cut.

        Arguments
        ---------
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        rand : RandomSource
            Source of the draws.

        Returns
        -------
        first, counts : torch.Tensor
            First frame and number of frames of each segment, (B,) int64.
        """
        fraction = self._least
        if self._least < self._greatest:
            reach = self._greatest - self._least
            fraction = self._least + reach * rand(1, 1)[:, 0, 0].double()
        counts = (fraction * n_frames.double()).round().long().clamp(min=1)
        first = draw_whole(rand(1, 1)[:, 0], (n_frames - counts + 1)[:, None])
        return first[:, 0], counts

    def longest(self, feats):
        """Return the number of frames of the longest possible segment."""
        return max(1, round(self._greatest * feats.shape[1]))


def cut(feats, first, counts, longest):
    """Return a segment of each clip.

    Arguments
    ---------
    feats : torch.Tensor
        (B, T, n_mels).
    first, counts : torch.Tensor
        First frame and number of frames of each segment, (B,) int64.
    longest : int
        Frames of the result, at least the greatest of the counts.

    Returns
    -------
    torch.Tensor
        (B, longest, n_mels), 0 beyond each segment.

    Example
    -------
    >>> feats = torch.arange(6.0).view(1, 6, 1)
    >>> cut(feats, torch.tensor([2]), torch.tensor([3]), 4)[0, :, 0]
    tensor([2., 3., 4., 0.])
    """
    places = first[:, None] + torch.arange(longest, device=feats.device)
    places = places.clamp(max=feats.shape[1] - 1)[:, :, None]
    stretches = feats.gather(1, places.expand(-1, -1, feats.shape[2]))
    return stretches * length_to_mask(counts, longest)[:, :, None]


def roll(feats, n_frames, offset):
    """Rotate clips along time, each within its own length.

    Arguments
    ---------
    feats : torch.Tensor
        (B, T, n_mels).
    n_frames : torch.Tensor
        Valid frames (B,) int64.
    offset : torch.Tensor
        Rotation as a fraction of the clip's length, (B,) from 0 to 1.

    Returns
    -------
    torch.Tensor
        (B, T, n_mels), with unchanged padding.

    Example
    -------
    >>> feats = torch.tensor([[[1.0], [2.0], [3.0], [0.0]]])
    >>> roll(feats, torch.tensor([3]), torch.tensor([0.4])).flatten()
    tensor([2., 3., 1., 0.])
    """
    time = torch.arange(feats.shape[1], device=feats.device)
    counts = n_frames.clamp(min=1)[:, None]
    turned = (time + (offset[:, None] * counts).long()) % counts
    place = torch.where(time < counts, turned, time)
    return feats.gather(1, place[:, :, None].expand_as(feats))


class RandomResizedCrop(nn.Module):
    """Resize a random part of each spectrogram to the size of the whole.

    It comes from BYOL-A (Niizumi et al., IJCNN 2021), and ATST makes its views
    with it. Along an axis, a part of random size is cut at a random position
    and resized with cubic convolution. An empty canvas around the clip allows
    parts longer than the clip. The clip is then shrunk, with zeros around it.

    Arguments
    ---------
    freq_scale : tuple of float
        Least and greatest size of the part, as a fraction of the mel axis.
        Above 1, the part is the whole axis.
    time_scale : tuple of float, optional
        The same for the time axis, as a fraction of the clip's own frames. By
        default the time axis stays unchanged.
    time_canvas : float
        Length of the canvas as a multiple of the clip's. The clip is in the
        middle of the canvas.

    Example
    -------
    >>> from ssast_lobes.utils.random import RandomSource
    >>> feats, n_frames = torch.randn(2, 100, 128), torch.tensor([100, 40])
    >>> resize = RandomResizedCrop((0.6, 1.5), (0.6, 1.5), time_canvas=1.5)
    >>> resize(feats, n_frames, RandomSource(2, feats.device)).shape
    torch.Size([2, 100, 128])
    """

    def __init__(self, freq_scale, time_scale=None, time_canvas=1.0):
        super().__init__()
        self.freq_scale = tuple(reals("freq_scale", freq_scale, 0))
        if time_scale is not None:
            time_scale = tuple(reals("time_scale", time_scale, 0))
        self.time_scale = time_scale
        self.time_canvas = real("time_canvas", time_canvas, 1)

    def forward(self, feats, n_frames, rand):
        """Resize a random part of each clip.

        Arguments
        ---------
        feats : torch.Tensor
            (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        rand : RandomSource
            Source of the draws.

        Returns
        -------
        torch.Tensor
            (B, T, n_mels), 0 at padding.
        """
        mels = torch.full_like(n_frames, feats.shape[2])
        size, first = _draw_part(rand, mels, mels, self.freq_scale)
        feats = resize_part(feats.transpose(1, 2), mels, mels, size, first)
        feats = feats.transpose(1, 2)
        if self.time_scale is None:
            return feats
        canvas = (self.time_canvas * n_frames.double()).floor().long()
        size, first = _draw_part(rand, n_frames, canvas, self.time_scale)
        return resize_part(feats, n_frames, canvas, size, first)


def _draw_part(rand, sizes, canvas, scale):
    """Draw size and first position of a part of each canvas, both (B,)."""
    draws = rand(1, 2)[:, 0]
    factor = scale[0] + draws[:, 0].double() * (scale[1] - scale[0])
    size = (factor * sizes).floor().long().clamp(min=1).minimum(canvas)
    return size, draw_whole(draws[:, 1], canvas - size + 1)


def resize_part(x, sizes, canvas, size, first):
    """Resize a part of each clip's canvas to the clip's own size.

    This is cubic convolution along dimension 1, as in
    ``interpolate(mode="bicubic", align_corners=True)`` of the part.

    Arguments
    ---------
    x : torch.Tensor
        (B, L, C).
    sizes : torch.Tensor
        Length of each clip along L, (B,) int64.
    canvas : torch.Tensor
        Length of each clip's canvas, (B,) int64. The clip is in the middle of
        the canvas, with zeros around it.
    size, first : torch.Tensor
        Length of the part, and its start on the canvas, (B,) int64.

    Returns
    -------
    torch.Tensor
        (B, L, C), 0 beyond each clip's own size.

    Example
    -------
    >>> x, whole = torch.arange(4.0)[None, :, None], torch.tensor([4])
    >>> size, first = torch.tensor([2]), torch.tensor([1])
    >>> part = resize_part(x, whole, whole, size, first)
    >>> [round(value, 2) for value in part.flatten().tolist()]
    [1.0, 1.31, 1.69, 2.0]
    """
    sizes, canvas, size, first = (
        each[:, None] for each in (sizes, canvas, size, first)
    )
    out = torch.arange(x.shape[1], device=x.device)
    place = out * ((size - 1) / (sizes - 1).clamp(min=1).double())
    left = place.floor()
    fraction = (place - left).to(x.dtype)
    margin = torch.div(canvas - sizes, 2, rounding_mode="floor")
    resized = torch.zeros_like(x)
    for tap in range(-1, 3):
        # Taps beyond the part repeat its edge.
        within = (left.long() + tap).clamp(min=0).minimum(size - 1)
        source = first + within - margin
        weight = _cubic(fraction - tap)
        weight = weight * ((source >= 0) & (source < sizes) & (out < sizes))
        source = source.clamp(0, x.shape[1] - 1)[:, :, None].expand_as(x)
        resized = resized + weight[:, :, None] * x.gather(1, source)
    return resized


def _cubic(distance):
    """Return the weight of a neighbor at a distance below 2 (Keys, 1981)."""
    x = distance.abs()
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x - 4
    return torch.where(x <= 1, near, _CUBIC * far)


class LogMixup(nn.Module):
    """Mix each clip with one of the clips seen before.

    This is BYOL-A's log-mixup-exp. The exponentials of the normalized log-mels
    are averaged, as in the released code, which does not undo the scale of the
    normalization. After the end of a remembered clip, nothing is mixed in. In
    evaluation nothing is mixed or remembered.

    The memory is first in, first out. Checkpoints contain it, so it is float16
    to stay small. All processes mix from the memory of the first process,
    because DDP sends the buffers of the first process to the others. So a
    checkpoint of the first process resumes all processes.

    Arguments
    ---------
    ratio : float
        Greatest weight of the remembered clip. The weight is drawn uniformly
        from 0 to `ratio`.
    memory : int
        Number of clips to remember.
    frames : int
        Frames to remember of each clip.
    n_mels : int
        Mel bins.

    Example
    -------
    >>> from ssast_lobes.utils.random import RandomSource
    >>> mixup = LogMixup(ratio=0.4, memory=8, frames=100, n_mels=128)
    >>> feats, n_frames = torch.randn(2, 100, 128), torch.tensor([100, 40])
    >>> rand = RandomSource(2, feats.device)
    >>> torch.equal(mixup(feats, n_frames, rand), feats)
    True
    >>> mixup.remember(feats, n_frames)
    >>> torch.equal(mixup(feats, n_frames, rand), feats)
    False
    """

    def __init__(self, ratio, memory, frames, n_mels):
        super().__init__()
        self.ratio = real("mixup", ratio, 0, 1)
        whole("memory", memory)
        clips = torch.zeros(memory, frames, n_mels, dtype=torch.float16)
        self.register_buffer("clips", clips)
        self.register_buffer("n_frames", torch.zeros(memory, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, feats, n_frames, rand):
        """Mix each clip with a remembered clip.

        Arguments
        ---------
        feats : torch.Tensor
            (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        rand : RandomSource
            Source of the draws.

        Returns
        -------
        torch.Tensor
            (B, T, n_mels), with unchanged padding.
        """
        if not self.training:
            return feats
        draws = rand(1, 2)[:, 0]
        chosen = draw_whole(draws[:, 0], self.seen.clamp(max=len(self.clips)))
        other = _fit(self.clips[chosen].to(feats.dtype), feats.shape[1])
        present = self.n_frames[chosen].minimum(n_frames)
        present = length_to_mask(present, feats.shape[1])[:, :, None]
        ratio = self.ratio * draws[:, 1, None, None] * present
        return torch.logaddexp(
            feats + torch.log1p(-ratio), other + torch.log(ratio)
        )

    @torch.no_grad()
    def remember(self, feats, n_frames):
        """Put clips into the memory, where they replace the oldest.

        Arguments
        ---------
        feats : torch.Tensor
            (B, T, n_mels); longer clips are cut at the end.
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        """
        if not self.training:
            return
        size, frames, _ = self.clips.shape
        feats, n_frames = feats[-size:], n_frames[-size:]
        slots = torch.arange(len(feats), device=feats.device) + self.seen
        slots = slots % size
        kept = _fit(feats, frames).to(self.clips.dtype)
        self.clips.index_copy_(0, slots, kept)
        self.n_frames.index_copy_(0, slots, n_frames.clamp(max=frames))
        self.seen += len(feats)


class Background(nn.Module):
    """Add another clip of the batch to some of the clips, as background.

    The powers of the two clips are added, as those of two simultaneous sounds.
    The level of the background is set by the mean log-mel of both clips. After
    the end of a shorter background, nothing is added.

    Arguments
    ---------
    probability : float
        Fraction of the clips that get a background.
    snr : tuple of float
        Least and greatest signal-to-noise ratio in dB, drawn uniformly: the
        level of the clip above that of the background.
    scale : float
        Nats of log-mel in one unit of the normalized features: 2 * std of
        `SpectrogramNorm`.

    Example
    -------
    >>> from ssast_lobes.utils.random import RandomSource
    >>> feats, n_frames = torch.zeros(2, 9, 4), torch.tensor([9, 5])
    >>> background = Background(probability=1.0, snr=(0.0, 0.0), scale=1.0)
    >>> mixed = background(feats, n_frames, RandomSource(2, feats.device))
    >>> mixed[1, 3:7, 0].round(decimals=2)
    tensor([0.6900, 0.6900, 0.0000, 0.0000])
    """

    def __init__(self, probability, snr, scale):
        super().__init__()
        self.probability = real("background probability", probability, 0, 1)
        self.snr = tuple(reals("background snr", snr))
        self.scale = real("background scale", scale, 0, inside=True)

    def forward(self, feats, n_frames, rand):
        """Add a background to some of the clips.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels), 0 at padding.
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        rand : RandomSource
            Source of the draws.

        Returns
        -------
        torch.Tensor
            (B, T, n_mels), with unchanged padding.
        """
        draws = rand(1, 3)[:, 0]
        # The partner is the previous clip in a random order. A clip alone in
        # its batch has no partner.
        order = draws[:, 0].argsort()
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        decibels = self.snr[0] + draws[:, 1] * (self.snr[1] - self.snr[0])
        below = decibels * (math.log(10) / 10) / self.scale
        n_values = n_frames.clamp(min=1) * feats.shape[2]
        level = feats.sum((1, 2)) / n_values
        shift = level - level[partner] - below
        chosen = (draws[:, 2] < self.probability) & (len(feats) > 1)
        counts = n_frames.minimum(n_frames[partner]) * chosen
        present = length_to_mask(counts, feats.shape[1])[:, :, None]
        other = feats[partner] + shift[:, None, None].to(feats.dtype)
        both = torch.logaddexp(feats * self.scale, other * self.scale)
        return torch.where(present, both / self.scale, feats)


class RandomChannel(nn.Module):
    """Change the level of each clip at random, and filter it at random.

    A linear filter multiplies the spectrum, so it adds an offset to the
    log-mel. Here the offset is a sum of cosines over the mel axis. The greatest
    amplitude of the k-th cosine is 1 / k of that of the first. The offset is
    the same at all frames, as for the filter of a room or a microphone.

    Arguments
    ---------
    level : float
        Greatest offset up or down, in units of the normalized features.
    tilt : float
        Greatest amplitude of the first cosine in the same units. The first
        cosine spans half a period.
    cosines : int
        Number of cosines.

    Example
    -------
    >>> from ssast_lobes.utils.random import RandomSource
    >>> feats, n_frames = torch.zeros(2, 9, 128), torch.tensor([9, 5])
    >>> channel = RandomChannel(level=0.4, tilt=0.2, cosines=4)
    >>> other = channel(feats, n_frames, RandomSource(2, feats.device))
    >>> bool((other[1, 0] == other[1, 4]).all()), other[1, 5:].abs().max()
    (True, tensor(0.))
    """

    def __init__(self, level, tilt, cosines):
        super().__init__()
        self.level = real("channel level", level, 0)
        self.tilt = real("channel tilt", tilt, 0)
        self.cosines = whole("channel cosines", cosines, 0)

    def forward(self, feats, n_frames, rand):
        """Filter each clip; see `Background.forward`."""
        draws = 2 * rand(1, 1 + self.cosines)[:, 0] - 1
        n_mels = feats.shape[2]
        number = torch.arange(1, self.cosines + 1, device=feats.device)
        place = (torch.arange(n_mels, device=feats.device) + 0.5) / n_mels
        waves = torch.cos(math.pi * number[:, None] * place) / number[:, None]
        # This is no matrix product, because autocast would round it to bf16.
        tilt = (draws[:, 1:, None] * waves).sum(1)
        response = self.level * draws[:, :1] + self.tilt * tilt
        is_frame = length_to_mask(n_frames, feats.shape[1])[:, :, None]
        return feats + is_frame * response[:, None].to(feats.dtype)


def _fit(feats, frames):
    """Cut (B, T, n_mels) to a number of frames, or pad it with zeros."""
    missing = max(0, frames - feats.shape[1])
    return nn.functional.pad(feats[:, :frames], (0, 0, 0, missing))
