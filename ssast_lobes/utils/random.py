"""Make seeds and draws that depend only on a position in the training.

The draws of a clip depend on the id of the clip, and the draws of a step on the
number of the step. A resumed run and a run with more processes thus draw the
same numbers.
"""

import hashlib

import torch

# Multipliers of the 64-bit mixer splitmix64 (Steele et al., OOPSLA 2014) as
# signed numbers: torch's int64 products wrap around.
_GOLDEN = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685
_BITS = (1 << 64) - 1


def clip_keys(ids):
    """Return a number for each clip, the same in every run and process.

    Arguments
    ---------
    ids : list of str
        Clip ids.

    Returns
    -------
    torch.Tensor
        Hashes (B,), int64, 0 to 2 ** 63 - 1.

    Example
    -------
    >>> clip_keys(["a", "b", "a"])
    tensor([...])
    """
    return torch.tensor([hash63(clip_id) for clip_id in ids])


def hash63(text):
    """Return a stable hash of a text.

    Arguments
    ---------
    text : str
        A text, such as the id of a clip.

    Returns
    -------
    int
        Below 2 ** 63.

    Example
    -------
    >>> hash63("a") == hash63("a") != hash63("b")
    True
    """
    # File names on Linux may hold bytes that are not UTF-8.
    text = text.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def mix_bits(keys):
    """Return 64-bit hashes of integers, on any device.

    Arguments
    ---------
    keys : torch.Tensor
        int64, any shape.

    Returns
    -------
    torch.Tensor
        int64 of the same shape.

    Example
    -------
    >>> mix_bits(torch.tensor([1, 2])).unique().numel()
    2
    """
    x = keys + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x, bits):
    """Shift int64 right without the sign; torch's own shift keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def keyed_uniform(keys, rows, columns):
    """Return uniform draws that depend only on clip key, row and column.

    The draws of a clip do not change if the clip gets more padding.

    Arguments
    ---------
    keys : torch.Tensor
        One int64 key for each clip, (B,).
    rows, columns : int
        Number of draws for each clip.

    Returns
    -------
    torch.Tensor
        float32 (B, rows, columns) in [0, 1).

    Example
    -------
    >>> a = keyed_uniform(torch.tensor([7]), 2, 3)
    >>> b = keyed_uniform(torch.tensor([7]), 2, 5)
    >>> torch.equal(a, b[:, :, :3])
    True
    """
    row = torch.arange(rows, device=keys.device)[:, None]
    column = torch.arange(columns, device=keys.device)
    place = mix_bits(keys)[:, None, None] + (row << 32) + column
    return _shift(mix_bits(place), 40).float() / (1 << 24)


class RandomSource:
    """Return uniform draws for the clips of a batch, new at each call.

    Arguments
    ---------
    n_clips : int
        Number of clips B.
    device : torch.device
        Device of the draws.
    generator : torch.Generator, optional
        Source of the draws, on that device; by default PyTorch's own.
    clip_keys : torch.Tensor, optional
        (B,) int64. If given, a draw depends only on the clip's key, the number
        of the call, and row and column.

    Example
    -------
    >>> rand = RandomSource(
    ...     2, torch.device("cpu"), clip_keys=torch.tensor([5, 5])
    ... )
    >>> first, second = rand(1, 3), rand(1, 3)
    >>> torch.equal(first[0], first[1]), torch.equal(first, second)
    (True, False)
    """

    def __init__(self, n_clips, device, generator=None, clip_keys=None):
        self.n_clips = n_clips
        self.device = device
        self.generator = generator
        self.clip_keys = clip_keys

    def __call__(self, rows, columns):
        """Return the next draws.

        Arguments
        ---------
        rows, columns : int
            Number of draws for each clip.

        Returns
        -------
        torch.Tensor
            float32 (B, rows, columns) in [0, 1).
        """
        if self.clip_keys is not None:
            drawn = keyed_uniform(self.clip_keys, rows, columns)
            self.clip_keys = mix_bits(self.clip_keys)
            return drawn
        # A compiled graph of any length takes no generator, not even None.
        own = {"generator": self.generator} if self.generator else {}
        shape = self.n_clips, rows, columns
        return torch.rand(*shape, device=self.device, **own)


def place_seed(*place):
    """Return a seed that is a function of a position in the training.

    Arguments
    ---------
    *place : int
        Numbers such as seed, epoch, step and rank.

    Returns
    -------
    int
        Below 2 ** 63.

    Example
    -------
    >>> place_seed(0, 1, 2) == place_seed(0, 1, 2) != place_seed(0, 2, 1)
    True
    """
    # Mix the numbers, so that neighbors have unrelated seeds (splitmix64).
    state = 0
    for number in place:
        state = (state ^ (number & _BITS)) * 0x9E3779B97F4A7C15 & _BITS
        state = (state ^ (state >> 29)) * 0xBF58476D1CE4E5B9 & _BITS
        state ^= state >> 32
    return state >> 1
