"""Which clips an epoch of training has: a part of a pass, or classes alike.

Both samplers are functions of (seed, epoch), so that a run that is resumed in
mid-epoch goes on with the same clips, and SpeechBrain can share them out to
several processes. A Brain tells them the epoch by `set_epoch`.
"""

from collections import Counter

import torch
from speechbrain.dataio.sampler import ReproducibleWeightedRandomSampler
from torch.utils.data import Sampler

from ssast_lobes.data.dataset import clip_keys
from ssast_lobes.data.manifest import split_labels


class PartSampler(Sampler):
    """Passes over a large dataset, cut into epochs of a fixed size.

    Where a pass takes days, validation, checkpoints and a schedule that
    follows a metric have to come more often. Pass n is a permutation that
    (seed, n) decides; epochs take the clips of one pass after the other, so
    that each clip comes once in each pass.

    Arguments
    ---------
    n_clips : int
        Clips of the dataset.
    clips_per_epoch : int
        Clips of an epoch.
    seed : int
        Seed of the permutations.

    Raises
    ------
    ValueError
        If there are no clips, or an epoch has none.

    Example
    -------
    >>> sampler = PartSampler(n_clips=6, clips_per_epoch=4, seed=0)
    >>> clips = []
    >>> for epoch in (1, 2, 3):
    ...     sampler.set_epoch(epoch)
    ...     clips += list(sampler)
    >>> len(sampler), sorted(clips[:6]), sorted(clips[6:])
    (4, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    """

    def __init__(self, n_clips, clips_per_epoch, seed=0):
        if n_clips < 1 or clips_per_epoch < 1:
            raise ValueError(
                "n_clips and clips_per_epoch must be at least 1, got "
                f"{n_clips} and {clips_per_epoch}"
            )
        self.n_clips = n_clips
        self.clips_per_epoch = clips_per_epoch
        self.seed = seed
        self.epoch = 1

    def set_epoch(self, epoch):
        """Choose the epoch to draw.

        Arguments
        ---------
        epoch : int
            Counted from 1.
        """
        self.epoch = epoch

    def __len__(self):
        return self.clips_per_epoch

    def __iter__(self):
        start = (self.epoch - 1) * self.clips_per_epoch
        end = start + self.clips_per_epoch
        while start < end:
            number, place = divmod(start, self.n_clips)
            until = min(self.n_clips, place + end - start)
            yield from self._pass(number)[place:until].tolist()
            start += until - place

    def _pass(self, number):
        generator = torch.Generator()
        generator.manual_seed(clip_keys([f"{self.seed}/{number}"]).item())
        return torch.randperm(self.n_clips, generator=generator)


def balanced_sampler(labels, multi_label=False, seed=0):
    """A sampler that draws rare classes as often as frequent ones.

    Clips are drawn with replacement, as many as there are. The weight of a
    clip is the sum of 1 / (clips of the class) over its labels, as in PSLA
    (Gong et al., IEEE/ACM TASLP 2021; YuanGongND/psla src/gen_weight_file.py).

    Arguments
    ---------
    labels : list of str
        Label cell of each clip, in the order of the dataset.
    multi_label : bool
        Whether a cell holds several labels, separated by semicolons.
    seed : int
        Seed of the draws.

    Returns
    -------
    speechbrain.dataio.sampler.ReproducibleWeightedRandomSampler

    Example
    -------
    >>> sampler = balanced_sampler(["dog", "dog;rain"], multi_label=True)
    >>> sampler.weights
    tensor([0.5000, 1.5000], dtype=torch.float64)
    """
    cells = [split_labels(cell) if multi_label else [cell] for cell in labels]
    counts = Counter(label for cell in cells for label in cell)
    weights = [sum(1 / counts[label] for label in cell) for cell in cells]
    return ReproducibleWeightedRandomSampler(
        weights, num_samples=len(weights), replacement=True, seed=seed
    )
