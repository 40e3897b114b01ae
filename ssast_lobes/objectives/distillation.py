"""Distillation: predict the layers of frozen teachers.

Several teachers and sparse pairs of layers follow USAD (Chang et al., "USAD:
Universal Speech and Audio Representation via Distillation", 2025). The loss, L1
and the log-sigmoid of the cosine, follows DistilHuBERT (Chang et al., ICASSP
2022). Neither paper has published training code for several teachers.
"""

import json
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, logsigmoid, pad

from ssast_lobes.models.event_head import FrameTiming
from ssast_lobes.models.features import KaldiFbank
from ssast_lobes.objectives.base import (
    Objective,
    ObjectiveOutput,
    clip_mean,
    projection_std,
)
from ssast_lobes.objectives.target_cache import TargetCache
from ssast_lobes.objectives.teacher_targets import layer_pairs, resampled
from ssast_lobes.utils.checks import ArgumentError, real, whole


class Distillation(Objective):
    """Match layers of the encoder to layers of frozen teachers.

    The student has L_S blocks, a teacher L_T layers. Of K pairs, pair k
    compares the student's block k L_S / K with the teacher's layer k L_T / K,
    both rounded down, through a linear head of its own. Pairs with a layer 0
    are dropped. For the student's last block, the output after the final norm
    is used. The loss compares frames, which are means of the tokens over
    frequency. So student and teachers may differ in patches, mel bins and time
    steps. Targets are resampled to the student's steps: by the mean over a step
    if the teacher's steps are finer, by linear interpolation if they are
    coarser. Then layer norm without weights is applied to them.

    Teachers get the crop as the recipe reads it, without augmentation. The
    student sees all tokens of the crop. Teachers are no part of the module's
    state: checkpoints and exports contain only their names.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The student.
    teachers : callable or list of Teacher
        The teachers, see `ssast_lobes.load_teachers`, or a function that
        returns them.
    pairs : int
        K.
    cosine_weight : float
        Weight of the cosine term, next to L1 with weight 1.
    features : FrontEnd, optional
        Front end of the student, which determines the times of its tokens; by
        default that of SSAST.
    cache : str or os.PathLike, optional
        Folder to cache the targets in; see `TargetCache`. Teachers then get
        clips one by one.
    crop_seconds : float, optional
        Cache only clips shorter than this, since crops of longer clips differ
        in each epoch. In evaluation, and if None, all clips are cached.

    Raises
    ------
    ValueError
        If there is no teacher, a teacher needs another sampling rate, or an
        argument is out of range.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder, load_teachers
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=2, heads=2)
    >>> objective = load_objective("distillation")(
    ...     encoder, teachers=load_teachers("ssast-lobes-micro-1")
    ... )
    >>> objective.layers  # of the student and of the only teacher
    [[(1, 3), (1, 4), (2, 6)]]
    >>> from ssast_lobes import FrontEnd, PretrainingLobe
    >>> pretrainer = PretrainingLobe(objective, FrontEnd())
    >>> output = pretrainer(torch.randn(2, 16000), torch.tensor([1.0, 0.4]))
    >>> sorted(output.logs)
    ['cosine', 'l1', 'projection_std', 'target_std']
    """

    paper = (
        "layer-to-layer distillation of frozen teachers (Chang et al., USAD, "
        "2025; loss of DistilHuBERT, ICASSP 2022)"
    )
    training_only = ("heads",)
    needs_audio = True

    def __init__(
        self,
        encoder,
        *,
        teachers,
        pairs,
        cosine_weight,
        features=None,
        cache=None,
        crop_seconds=None,
    ):
        super().__init__(encoder)
        self.pairs = whole("pairs", pairs)
        self.cosine_weight = real("cosine_weight", cosine_weight, 0)
        fbank = KaldiFbank() if features is None else features.fbank
        self.timing = FrameTiming(encoder.grid, fbank)
        # The tuple hides teachers from the optimizer, DDP, checkpoints and
        # exports.
        self.teachers = tuple(teachers() if callable(teachers) else teachers)
        if not self.teachers:
            raise ArgumentError("distillation needs at least one teacher")
        for teacher in self.teachers:
            if teacher.sample_rate != fbank.sample_rate:
                raise ArgumentError(
                    f"the teacher {teacher.name} takes audio at "
                    f"{teacher.sample_rate} Hz, the student at "
                    f"{fbank.sample_rate} Hz: it was not trained on resampled "
                    "audio. Choose another teacher"
                )
        self.layers = [
            layer_pairs(self.pairs, encoder.depth, teacher.depth)
            for teacher in self.teachers
        ]
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Linear(encoder.dim, teacher.dim) for _ in found)
            for teacher, found in zip(self.teachers, self.layers, strict=True)
        )
        self.cache = None
        self.crop_seconds = real(
            "crop_seconds", crop_seconds, 0, inside=True, null=True
        )
        if cache is not None:
            maker = {
                "teachers": [t.fingerprint() for t in self.teachers],
                "layers": self.layers,
                "grid": encoder.grid.config,
                "times": [self.timing.start, self.timing.step],
            }
            self.cache = TargetCache(cache, json.dumps(maker))

    @property
    def config(self):
        """The arguments that rebuild this, with teachers by name."""
        return {
            "teachers": [teacher.name for teacher in self.teachers],
            "pairs": self.pairs,
            "cosine_weight": self.cosine_weight,
        }

    def _apply(self, fn, recurse=True):
        # The tuple hides teachers, so move them to the device here.
        for teacher in self.teachers:
            teacher._apply(fn)
        return super()._apply(fn, recurse)

    def forward(
        self,
        feats,
        n_frames,
        mask=None,
        generator=None,
        clip_keys=None,
        *,
        wavs,
        n_samples,
        crop_starts=None,
    ):
        """Return the loss of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        mask, generator, clip_keys, crop_starts
            Not used: nothing is drawn.
        wavs : torch.Tensor
            Waveforms (B, S) of the same clips, any padding.
        n_samples : torch.Tensor
            Length of each clip, (B,) int64.

        Returns
        -------
        ObjectiveOutput
            Logs: ``l1`` and ``cosine``, means over pairs and teachers. With
            several teachers also ``cosine_1``, ``cosine_2`` and so on.
            ``target_std`` and ``projection_std`` are those of each teacher's
            last pair, averaged over teachers. They fall towards 0 if all frames
            are alike.
        """
        encoded = self.encoder(feats, n_frames, hidden_states=True)
        grid = (encoded.n_freq, -1)
        is_step = encoded.is_token.unflatten(1, grid)[:, 0]
        targets = self.targets(wavs, n_samples, is_step)

        frames = {
            layer: encoded.hidden_states[layer].unflatten(1, grid).mean(1)
            for found in self.layers
            for layer, _ in found
        }
        frames[self.encoder.depth] = encoded.frames
        loss, logs = 0, {"l1": [], "cosine": []}
        spread = {"target_std": [], "projection_std": []}
        for number, states in enumerate(targets):
            weight = (is_step & states[0].any(2)).float()
            cosines = []
            for head, (layer, _), target in zip(
                self.heads[number],
                self.layers[number],
                states,
                strict=True,
            ):
                output = head(frames[layer]).float()
                l1 = clip_mean((output - target).abs().mean(2), weight)
                cosine = cosine_similarity(output, target, dim=2)
                term = clip_mean(-logsigmoid(cosine), weight)
                loss = loss + l1 + self.cosine_weight * term
                logs["l1"].append(l1.detach())
                cosines.append(clip_mean(cosine.detach(), weight))
            logs["cosine"] += cosines
            if len(targets) > 1:
                logs[f"cosine_{number + 1}"] = cosines
            spread["target_std"].append(projection_std(target, weight))
            spread["projection_std"].append(projection_std(output, weight))
        logs |= spread
        means = {name: torch.stack(all_).mean() for name, all_ in logs.items()}
        return ObjectiveOutput(loss, means)

    @torch.no_grad()
    @torch.compiler.disable
    def targets(self, wavs, n_samples, is_step):
        """Return the targets of a batch, at the student's steps.

        Arguments
        ---------
        wavs, n_samples
            As in `forward`.
        is_step : torch.Tensor
            Boolean (B, T'), True at the steps of each clip.

        Returns
        -------
        list of torch.Tensor
            (pairs, B, T', D) for each teacher, 0 at steps without audio.
        """
        max_time = is_step.shape[1]
        if self.cache is None:
            return self._resampled(wavs, n_samples, max_time)
        most = float("inf")
        if self.training and self.crop_seconds is not None:
            most = round(self.crop_seconds * self.timing.sample_rate)
        clips = []
        for wav, count, n_time in zip(
            wavs, n_samples.tolist(), is_step.sum(1).tolist(), strict=True
        ):
            made = self.cache.get(
                wav[None, :count],
                partial(
                    self._resampled,
                    n_samples=n_samples.new_tensor([count]),
                    max_time=n_time,
                ),
                keep=count < most,
            )
            clips.append([pad(x, (0, 0, 0, max_time - n_time)) for x in made])
        return [
            torch.cat(parts, dim=1).float()
            for parts in zip(*clips, strict=True)
        ]

    def _resampled(self, wavs, n_samples, max_time):
        """Return targets of `max_time` steps; see `targets`."""
        return [
            resampled(
                teacher(wavs, n_samples, [layer for _, layer in pairs]),
                self.timing,
                max_time,
            )
            for teacher, pairs in zip(self.teachers, self.layers, strict=True)
        ]
