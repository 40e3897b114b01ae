"""Cut long clips into chunks as the official code of a model does."""

import torch

from ssast_lobes.models.encoder import EncoderOutput
from ssast_lobes.utils.checks import one_of, whole

RULES = ("join", "zeros", "mean", "mean_of_long")


class Chunks:
    """Encode the chunks of a clip separately, each with positions from 0.

    Chunks replace interpolated positions in a lobe that follows the official
    code of M2D, ATST or Dasheng. The tokens of the chunks are joined in time. A
    chunk of the full length drops the frames at its end that do not fill a
    patch.

    Arguments
    ---------
    frames : int
        Number of frames of a chunk; the last chunk of a clip may be shorter.
    rule : str
        ``"join"``: pool the tokens of all chunks. ``"zeros"``: the same, but
        the last of several chunks is padded with zeros, which attention does
        not mask. ``"mean"``: average the clip vectors of the chunks, with equal
        weights. ``"mean_of_long"``: the variant of ATST-Clip. It drops each
        chunk after the first that is audio in at most half of its frames. It
        divides the sum of a chunk's tokens by the number of tokens from the
        start of the chunk to the end of the clip.

    Raises
    ------
    ValueError
        If `frames` is not positive, or the rule is unknown.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> chunks = Chunks(frames=64, rule="join")
    >>> feats = torch.randn(2, 100, 128)
    >>> joined = chunks.joined(encoder, feats, torch.tensor([100, 40]))
    >>> joined.patches.shape, joined.n_time.tolist()
    (torch.Size([2, 8, 7, 32]), [7, 3])
    """

    def __init__(self, frames, rule):
        self.frames = whole("frames of chunks", frames)
        self.rule = one_of("rule of chunks", rule, RULES)

    def whole_patches(self, grid):
        """Return the frames of a chunk that fill patches of a `Grid`."""
        return self.frames // grid.patch[1] * grid.patch[1]

    def joined(self, encoder, feats, n_frames, hidden_states=False):
        """Encode a batch and join the tokens of the chunks.

        Arguments
        ---------
        encoder : SpectrogramEncoder
            The encoder.
        feats, n_frames, hidden_states
            See `SpectrogramEncoder.forward`.

        Returns
        -------
        EncoderOutput
            Outputs of the whole clips. Class tokens are the mean over the
            chunks of a clip.
        """
        pieces = self._encode(encoder, feats, n_frames, hidden_states)
        outputs, alive = zip(*pieces, strict=True)
        n_freq = outputs[0].n_freq
        weights = torch.stack(alive).to(outputs[0].tokens.dtype)
        weights = weights / weights.sum(0)

        def joined(tensors, dim):
            return torch.cat(
                [x.unflatten(dim, (n_freq, -1)) for x in tensors], dim + 1
            ).flatten(dim, dim + 1)

        def mean(tensors):
            return torch.einsum(
                "kb,k...bcd->...bcd", weights, torch.stack(tensors)
            )

        kept = hidden_states or None
        return EncoderOutput(
            tokens=joined([x.tokens for x in outputs], 1),
            is_token=joined([x.is_token for x in outputs], 1),
            class_tokens=mean([x.class_tokens for x in outputs]),
            n_freq=n_freq,
            hidden_states=kept
            and joined([x.hidden_states for x in outputs], 2),
            class_hidden_states=kept
            and mean([x.class_hidden_states for x in outputs]),
        )

    def clips(self, encoder, feats, n_frames, pooling):
        """Encode a batch and pool it to one vector for each clip.

        Arguments
        ---------
        encoder, feats, n_frames
            See `joined`.
        pooling : ClipPooling
            The pooling of tokens.

        Returns
        -------
        torch.Tensor
            Clip vectors (B, size).
        """
        states = pooling.needs_hidden_states
        if self.rule in ("join", "zeros"):
            return pooling(self.joined(encoder, feats, n_frames, states))
        total = count = 0
        pieces = self._encode(encoder, feats, n_frames, states)
        for number, (output, counts) in enumerate(pieces):
            if self.rule == "mean_of_long":
                left = (n_frames - number * self.frames).clamp(min=0)
                if number > 0:
                    counts = counts & (left > self.frames // 2)
                # The official code divides the sum of a chunk's tokens by the
                # number of tokens from the start of the chunk to the end of the
                # clip.
                n_time = encoder.grid.n_time(left)
                max_time = encoder.grid.n_time(feats.shape[1])
                is_token = encoder.grid.is_token(n_time, max_time)
                output = output._replace(is_token=is_token)
            vectors = pooling(output)
            counts = counts[:, None].to(vectors.dtype)
            total, count = total + counts * vectors, count + counts
        return total / count

    def _encode(self, encoder, feats, n_frames, hidden_states):
        """Yield the output of each chunk, and a mask (B,) of clips with it."""
        grid = encoder.grid
        whole_patches = self.whole_patches(grid)
        least = 1 if grid.keep_partial else grid.patch[1]
        several = n_frames > self.frames
        for start in range(0, feats.shape[1], self.frames):
            left = (n_frames - start).clamp(min=0)
            alive = left >= least
            if start == 0:
                alive = torch.ones_like(alive)
            elif feats.shape[1] - start < least:
                return
            piece = feats[:, start : start + self.frames][:, :whole_patches]
            max_time, seen = grid.n_time(piece.shape[1]), left
            if self.rule == "zeros" and feats.shape[1] > self.frames:
                missing = whole_patches - piece.shape[1]
                piece = torch.nn.functional.pad(piece, (0, 0, 0, missing))
                seen = torch.where(several, whole_patches, left)
            seen = seen.clamp(max=piece.shape[1])
            output = encoder(piece, seen, hidden_states=hidden_states)
            n_time = grid.n_time(left).clamp(max=max_time) * alive
            is_token = grid.is_token(n_time, max_time)
            yield _cut(output, is_token, max_time), alive


def _cut(output, is_token, max_time):
    """Return an output with `max_time` time steps, 0 at padding."""
    states, shown = output.hidden_states, is_token[:, :, None]

    def cut(x, dim):
        x = x.unflatten(dim, (output.n_freq, -1))
        return x.narrow(dim + 1, 0, max_time).flatten(dim, dim + 1) * shown

    return output._replace(
        tokens=cut(output.tokens, 1),
        is_token=is_token,
        hidden_states=None if states is None else cut(states, 2),
    )
