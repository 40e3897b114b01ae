"""Pooling of tokens into one vector for each clip."""

import torch
from torch import nn

from ssast_lobes.utils.checks import one_of, whole

# Number of vectors of size D in each way of pooling; None means one for each
# band.
POOLINGS = {
    "mean": 1,
    "class": 1,
    "statistics": 2,
    "dynamics": 4,
    "tokens": 1,
    "class_mean": 2,
    "bands": None,
}

# Time differences, in tokens, over which dynamics compare tokens.
_STEPS = (1, 2)

# Value added to the variances of tokens.
_LEAST_VARIANCE = 1e-6

# Layers from which a clip vector is made.
READOUTS = ("last", "weighted", "all", "normed")


def pool(tokens, is_token, class_tokens, pooling, n_freq=None):
    """Pool tokens to one vector for each clip.

    Arguments
    ---------
    tokens : torch.Tensor
        (B, N, D), 0 at padding.
    is_token : torch.Tensor
        Boolean (B, N).
    class_tokens : torch.Tensor or None
        (B, C, D), with C from 0 to 2; None if `pooling` needs no class tokens.
    pooling : str
        ``"mean"``: mean of the valid tokens. ``"class"``: mean of the class
        tokens. ``"statistics"``: mean and standard deviation of the valid
        tokens. ``"dynamics"``: mean, standard deviation, and the root mean
        squares of the changes of tokens over one time step and over two time
        steps (0.001 if the clip is too short). ``"tokens"``: mean of all patch
        and class tokens, as in AudioMosaic. ``"class_mean"``: mean of the class
        tokens, then mean of the valid tokens, as in ATST-Clip. ``"bands"``:
        mean over time of each frequency, concatenated, as in M2D.
    n_freq : int, optional
        F', with N = F' * T'. It is needed for ``"bands"`` and for
        ``"dynamics"``, which compares tokens of the same frequency.

    Returns
    -------
    torch.Tensor
        (B, 2 D) for statistics and class_mean, (B, 4 D) for dynamics,
        (B, F' * D) for bands, otherwise (B, D).

    Raises
    ------
    ValueError
        If `pooling` is unknown, or if it needs class tokens or `n_freq`, but
        they are missing.

    Example
    -------
    >>> tokens = torch.tensor([[[2.0], [4.0], [0.0]]])
    >>> is_token = torch.tensor([[True, True, False]])
    >>> pool(tokens, is_token, torch.zeros(1, 2, 1), "mean").item()
    3.0
    >>> pool(
    ...     tokens, is_token, torch.zeros(1, 2, 1), "dynamics", 1
    ... ).round().tolist()
    [[3.0, 1.0, 2.0, 0.0]]
    """
    if pooling not in POOLINGS:
        raise ValueError(
            f"pooling must be one of {', '.join(POOLINGS)}, got '{pooling}'"
        )
    # Other ways of pooling work without class tokens.
    if pooling in ("class", "class_mean") and class_tokens.shape[1] == 0:
        raise ValueError(
            f"pooling '{pooling}': this encoder has no class tokens, take the "
            "mean"
        )
    if pooling == "class":
        return class_tokens.mean(1)
    if pooling in ("dynamics", "bands") and n_freq is None:
        raise ValueError(
            f"pooling '{pooling}' needs n_freq. If tokens were dropped there "
            "is no grid: choose pooling 'statistics'"
        )
    count = is_token.sum(1, keepdim=True).clamp(min=1)
    total = tokens.sum(1)
    if pooling == "tokens":
        both = total + class_tokens.sum(1)
        return both / (count + class_tokens.shape[1])
    if pooling == "bands":
        bands = tokens.unflatten(1, (n_freq, -1)).sum(2).flatten(1)
        return bands * n_freq / count
    mean = total / count
    if pooling == "mean":
        return mean
    if pooling == "class_mean":
        return torch.cat([class_tokens.mean(1), mean], dim=1)
    # Squares of small differences need float32, also under bf16.
    away = (tokens - mean[:, None]).float() * is_token[:, :, None]
    variance = away.square().sum(1) / count
    variances = [variance]
    if pooling == "dynamics":
        on_grid = away.unflatten(1, (n_freq, -1))
        is_token = is_token.unflatten(1, (n_freq, -1))
        for step in _STEPS:
            both = is_token[:, :, step:] & is_token[:, :, :-step]
            change = on_grid[:, :, step:] - on_grid[:, :, :-step]
            squares = (change * both[..., None]).square().sum((1, 2))
            variances.append(squares / both.sum((1, 2)).clamp(min=1)[:, None])
    # The variance of a single token is 0, and the root of 0 has no gradient.
    deviations = [(part + _LEAST_VARIANCE).sqrt() for part in variances]
    return torch.cat([mean, *(d.to(mean.dtype) for d in deviations)], dim=1)


class ClipPooling(nn.Module):
    """Pool one vector for each clip, from the last layer or from all.

    Arguments
    ---------
    depth : int
        Number of encoder blocks L.
    pooling : str
        ``"mean"``: mean of the valid tokens. ``"class"``: mean of the class
        tokens. ``"statistics"``: mean and standard deviation of the valid
        tokens, as in x-vectors (Snyder et al., ICASSP 2018). ``"dynamics"``:
        mean, standard deviation, and changes of tokens over one and over two
        time steps. `pool` explains ``"tokens"``, ``"class_mean"`` and
        ``"bands"``.
    layers : str
        ``"last"``: tokens after the final norm. ``"weighted"``: the
        softmax-weighted sum of the L block outputs before the final norm, as in
        SUPERB's probes (Yang et al., Interspeech 2021). ``"all"``: the input of
        the first block and the L block outputs, pooled and concatenated.
        ``"normed"``: the L block outputs after the final norm, pooled and
        concatenated, as in ATST. With class_mean, the L class vectors come
        before the L means.
    n_freq : int, optional
        F' of the encoder; needed for ``"bands"``.

    Raises
    ------
    ValueError
        If `pooling` or `layers` is unknown, or if ``"bands"`` lacks `n_freq`.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> encoder = SpectrogramEncoder(dim=32, depth=2, heads=2)
    >>> pooling = ClipPooling(encoder.depth, layers="weighted")
    >>> output = encoder(torch.randn(3, 50, 128), hidden_states=True)
    >>> pooling(output).shape
    torch.Size([3, 32])
    """

    def __init__(self, depth, pooling="mean", layers="last", n_freq=None):
        super().__init__()
        one_of("layers", layers, READOUTS)
        one_of("pooling", pooling, POOLINGS)
        self.n_freq = whole("n_freq", n_freq, null=pooling != "bands")
        self.depth = depth
        self.pooling = pooling
        self.layers = layers
        if layers == "weighted":
            self.layer_scores = nn.Parameter(torch.zeros(depth))

    @property
    def config(self):
        """The arguments that rebuild this pooling."""
        config = {
            "depth": self.depth,
            "pooling": self.pooling,
            "layers": self.layers,
        }
        if self.pooling == "bands":
            config["n_freq"] = self.n_freq
        return config

    @property
    def needs_hidden_states(self):
        """The argument `hidden_states` of the encoder: a bool or "normed"."""
        return "normed" if self.layers == "normed" else self.layers != "last"

    def output_size(self, dim):
        """Return the size of the clip vector.

        Arguments
        ---------
        dim : int
            Token size D of the encoder.

        Returns
        -------
        int
            D times the number of vectors of the pooling and the number of
            layers. The pooling gives 2 vectors for statistics and class_mean, 4
            for dynamics, F' for bands, otherwise 1. There are L + 1 layers for
            ``"all"``, L for ``"normed"``, otherwise 1.

        Example
        -------
        >>> ClipPooling(12, "statistics", "all").output_size(192)
        4992
        """
        parts = POOLINGS[self.pooling] or self.n_freq
        layers = {"all": self.depth + 1, "normed": self.depth}
        return dim * parts * layers.get(self.layers, 1)

    def forward(self, encoded):
        """Pool an `EncoderOutput` to (B, `output_size`)."""
        if self.layers == "last":
            return encoded.clip(self.pooling)
        if self.layers in ("all", "normed"):
            pooled = [
                encoded.pool_tokens(tokens, classes, self.pooling)
                for tokens, classes in zip(
                    encoded.hidden_states,
                    encoded.class_hidden_states,
                    strict=True,
                )
            ]
            if self.layers == "all":
                return torch.cat(pooled, dim=1)
            # Leave out the input of the first block. Concatenate the first
            # vectors of all layers, then their second vectors.
            dim = encoded.tokens.shape[-1]
            stack = torch.stack(pooled[1:], dim=1).unflatten(2, (-1, dim))
            return stack.transpose(1, 2).flatten(1)
        weights = self.layer_scores.softmax(0)
        tokens = torch.einsum("l,lbnd->bnd", weights, encoded.hidden_states[1:])
        classes = encoded.class_hidden_states[1:]
        classes = torch.einsum("l,lbnd->bnd", weights, classes)
        return encoded.pool_tokens(tokens, classes, self.pooling)

    def frames(self, encoded):
        """Return vectors of time steps, from the same layers as clip vectors.

        Arguments
        ---------
        encoded : EncoderOutput
            The encoder's output, with hidden states if `needs_hidden_states`.

        Returns
        -------
        torch.Tensor
            Means over frequency, 0 at padding: (B, T', (L + 1) D) for ``"all"``
            layers, (B, T', L D) for ``"normed"`` layers, otherwise (B, T', D).
        """
        if self.layers == "last":
            return encoded.frames
        states = encoded.hidden_states
        frames = states.unflatten(2, (encoded.n_freq, -1)).mean(2)
        if self.layers in ("all", "normed"):
            frames = frames if self.layers == "all" else frames[1:]
            return frames.permute(1, 2, 0, 3).flatten(2)
        weights = self.layer_scores.softmax(0)
        return torch.einsum("l,lbtd->btd", weights, frames[1:])
