"""AudioMosaic: contrast two views of each clip with dropped tokens.

"AudioMosaic", ICML 2026; HanxunH/AudioMosaic, models/audiomosaic.py and
losses/ntxent.py. One view lacks time steps, the other view lacks frequencies.
The loss moves the vectors of the two views nearer to each other than to those
of all other clips.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from ssast_lobes.models.pooling import pool
from ssast_lobes.objectives.base import (
    Objective,
    ObjectiveOutput,
    make_masker,
    matching_logs,
    projection_std,
    split_tokens,
)
from ssast_lobes.objectives.projections import sizes_of
from ssast_lobes.objectives.views import Background, RandomChannel, roll
from ssast_lobes.utils.checks import ArgumentError, real, whole
from ssast_lobes.utils.distributed import (
    SharedBatchNorm,
    gather_rows,
    n_processes,
)


class AudioMosaic(Objective):
    """Tell clips apart by two augmented views with dropped tokens (NT-Xent).

    Negatives are the views of all other clips of the batch, in all processes.
    Gradients also flow through the negatives, so several processes train as one
    process on the joined batch. In evaluation the loss must depend on the clip
    alone, so the negatives are stored vectors of the last training batches.

    The released code augments the waveform. Here the spectrogram is augmented:
    by a roll along time, another clip as background, and a filter with a gain.
    The encoder gets fixed sin-cos positions, and keeps its two class tokens and
    its final norm. The last batch norm of the projector has no trained gain, as
    in SimCLR; the released one has a gain.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train.
    drop_time, drop_freq : Masker or dict
        Draw the tokens to drop from the first and the second view.
    background, channel : dict
        Arguments of `Background` and `RandomChannel`.
    temperature : float
        Divisor of the cosines.
    hidden, out : float
        Hidden and output size of the projector, as multiples of the encoder's
        token size D.
    memory : int
        Number of training vectors to store as negatives for evaluation.

    Raises
    ------
    ValueError
        If an argument is out of range, or `drop_freq` drops no token, such as
        `RowMasker` for tokens of all mel bins.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> objective = load_objective("audiomosaic_small_data")(encoder)
    >>> output = objective(torch.randn(4, 128, 128), torch.tensor([128] * 4))
    >>> sorted(output.logs)
    ['accuracy', 'accuracy_chance', 'nce', 'nce_chance', 'projection_std']
    """

    paper = "a contrast of views with dropped tokens (AudioMosaic, ICML 2026)"
    training_only = ("projector", "memory", "n_remembered")

    def __init__(
        self,
        encoder,
        *,
        drop_time,
        drop_freq,
        background,
        channel,
        temperature,
        hidden,
        out,
        memory,
    ):
        super().__init__(encoder)
        encoder.fix_positions()
        self.drop_time = make_masker(drop_time)
        self.drop_freq = make_masker(drop_freq)
        if not self.drop_freq.max_masked(encoder.grid.n_freq, 64):
            name = type(self.drop_freq).__name__
            raise ArgumentError(
                f"drop_freq: {name} drops nothing from {encoder.grid.n_freq} "
                "row of tokens: take PeriodicMasker, as in "
                "audiomosaic_small_data, or patches of fewer mel bins"
            )
        self.background = Background(**background)
        self.channel = RandomChannel(**channel)
        self.temperature = real("temperature", temperature, 0, inside=True)
        self._arguments = {
            "background": dict(background),
            "channel": dict(channel),
            "temperature": temperature,
            "hidden": real("hidden", hidden, 0, inside=True),
            "out": real("out", out, 0, inside=True),
            "memory": whole("memory", memory, 1),
        }
        hidden, out = sizes_of(encoder.dim, [hidden, out])
        self.projector = nn.Sequential(
            nn.LayerNorm(encoder.dim, eps=1e-6),
            nn.Linear(encoder.dim, hidden, bias=False),
            SharedBatchNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, out, bias=False),
            SharedBatchNorm(out, affine=False),
        )
        self.register_buffer("memory", torch.zeros(memory, out))
        self.register_buffer("n_remembered", torch.zeros((), dtype=torch.long))

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {
            "drop_time": self.drop_time.config,
            "drop_freq": self.drop_freq.config,
            **self._arguments,
        }

    def forward(
        self, feats, n_frames, mask=None, generator=None, clip_keys=None
    ):
        """Return the loss of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        mask : None
            Not used: this method draws the tokens to drop.
        generator, clip_keys
            Source of the draws; see `Objective.random_source`.

        Returns
        -------
        ObjectiveOutput
            Logs: ``nce``, the loss, and ``accuracy``, the fraction of views
            whose nearest neighbor is the other view of their clip, each with
            its chance level; and ``projection_std``, which falls towards 0 in a
            collapse.
        """
        rand = self.random_source(feats, generator, clip_keys)
        vectors = torch.cat(
            [
                self._embed(feats, n_frames, drop, rand)
                for drop in (self.drop_time, self.drop_freq)
            ]
        )
        with torch.autocast(vectors.device.type, enabled=False):
            unit = normalize(self.projector(vectors.float()))
            losses, right, n_candidates = self._compare(unit)
        loss = losses.mean()
        logs = matching_logs(loss, right.float().mean(), n_candidates)
        counted = unit.new_ones(1, len(unit))
        logs["projection_std"] = projection_std(unit[None], counted)
        return ObjectiveOutput(loss, logs)

    def _embed(self, feats, n_frames, drop, rand):
        """Return the mean of the kept tokens of a view, (B, D)."""
        view = roll(feats, n_frames, rand(1, 1)[:, 0, 0])
        # In evaluation a loss must not depend on other clips of the batch.
        if self.training:
            view = self.background(view, n_frames, rand)
        view = self.channel(view, n_frames, rand)
        n_time, max_time = self.encoder.token_lengths(n_frames, view.shape[1])
        grid = self.encoder.grid
        mask = drop.draw(rand, n_time, grid.n_freq, max_time)
        split = split_tokens(
            mask,
            grid.is_token(n_time, max_time),
            drop.max_masked(grid.n_freq, max_time),
        )
        encoded = self.encoder(view, n_frames, keep=split.keep)
        return pool(
            encoded.tokens, encoded.is_token, encoded.class_tokens, "tokens"
        )

    def _compare(self, unit):
        """Return the losses of views, hits, and the number of candidates."""
        n_clips = len(unit) // 2
        if not self.training:
            own = (unit * unit.roll(n_clips, 0)).sum(1, keepdim=True)
            place = torch.arange(len(self.memory), device=unit.device)
            others = (unit @ self.memory.T).masked_fill(
                place >= self.n_remembered, torch.finfo(unit.dtype).min
            )
            scores = torch.cat([own, others], dim=1) / self.temperature
            partner = place.new_zeros(len(unit))
            losses = cross_entropy(scores, partner, reduction="none")
            n_candidates = 1 + self.n_remembered[None]
            return losses.detach(), scores.argmax(1) == partner, n_candidates
        every, first = gather_rows(unit)
        place = torch.arange(len(unit), device=unit.device)
        scores = unit @ every.T / self.temperature
        itself = torch.arange(len(every), device=unit.device)
        scores = scores.masked_fill(
            itself == first + place[:, None], torch.finfo(scores.dtype).min
        )
        partner = first + place.roll(n_clips)
        self._remember(every.detach())
        losses = cross_entropy(scores, partner, reduction="none")
        # With this factor, the mean over processes is that over all clips.
        share = len(unit) * n_processes() / len(every)
        n_candidates = itself.new_full((1,), len(every) - 1)
        right = scores.detach().argmax(1) == partner
        return losses * share, right, n_candidates

    def _remember(self, vectors):
        """Put vectors in front of the memory, and drop the oldest."""
        size = len(self.memory)
        self.memory.copy_(torch.cat([vectors, self.memory])[:size])
        self.n_remembered.add_(len(vectors)).clamp_(max=size)
