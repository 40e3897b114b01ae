"""Choose the clips of an epoch, and distribute them over processes.

The samplers of training are functions of (seed, epoch). A run that is resumed
within an epoch thus continues with the same clips, and SpeechBrain can
distribute them over several processes. A Brain sets the epoch by `set_epoch`.
"""

import itertools
import math
from collections import Counter

import torch
from speechbrain.dataio.sampler import ReproducibleWeightedRandomSampler
from torch.utils.data import Sampler

from ssast_lobes.dataio.tables import split_labels
from ssast_lobes.utils.checks import ArgumentError, flag, real, whole
from ssast_lobes.utils.distributed import n_processes
from ssast_lobes.utils.random import clip_keys


class PartSampler(Sampler):
    """Cut passes over a large dataset into epochs of a fixed size.

    If a pass takes days, validation, checkpoints and schedules that follow a
    metric are needed more often. Pass n is a permutation that depends on
    (seed, n), so each clip occurs once in each pass. The passes follow one
    another, and are cut into epochs.

    Arguments
    ---------
    n_clips : int
        Number of clips in the dataset.
    clips_per_epoch : int
        Number of clips in an epoch.
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


class LengthBuckets(Sampler):
    """Make batches of clips of similar length, which need little padding.

    The clips of a sampler are taken in stretches of several batches. Each
    stretch is sorted by length and cut into batches, which are shuffled. The
    clips of a batch thus change with the epoch, unless one stretch holds the
    whole epoch. The sampler decides how often each clip occurs. In each step,
    all processes have clips of similar length, so none waits for another.

    Arguments
    ---------
    sampler : torch.utils.data.Sampler
        Indices of the clips of an epoch, in random order.
    seconds : list of float
        Length of each clip.
    batch_size : int
        Number of clips in a batch.
    n_batches : int
        Number of batches in a stretch, in each process. With 1 and a single
        process, the clips of a batch are those of the sampler.
    seed : int
        Seed of the order of the batches.
    n_processes : int
        Number of processes that share the batches.

    Example
    -------
    >>> clips = PartSampler(n_clips=6, clips_per_epoch=6)
    >>> buckets = LengthBuckets(clips, [3, 1, 2, 1, 3, 2], 2, n_batches=3)
    >>> sorted(sorted(batch) for batch in buckets)
    [[0, 4], [1, 3], [2, 5]]
    """

    def __init__(
        self, sampler, seconds, batch_size, n_batches, seed=0, n_processes=1
    ):
        self.sampler = sampler
        self.seconds = seconds
        self.batch_size = batch_size
        self.n_batches = n_batches
        self.seed = seed
        self.n_processes = n_processes
        self.epoch = 1

    def set_epoch(self, epoch):
        """Choose the epoch to draw.

        Arguments
        ---------
        epoch : int
            Counted from 1.
        """
        self.epoch = epoch
        self.sampler.set_epoch(epoch)

    def __len__(self):
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self):
        clips = iter(self.sampler)
        size = self.n_batches * self.n_processes * self.batch_size
        for number in itertools.count():
            stretch = list(itertools.islice(clips, size))
            if not stretch:
                return
            stretch.sort(key=self.seconds.__getitem__)
            yield from self._shuffled(stretch, number)

    def _shuffled(self, stretch, number):
        """Cut a sorted stretch into batches, and shuffle the steps."""
        batches = _cut(stretch, self.batch_size)
        steps = _cut(batches, self.n_processes)
        generator = torch.Generator()
        place = f"{self.seed}/{self.epoch}/{number}"
        generator.manual_seed(clip_keys([place]).item())
        order = torch.randperm(len(steps), generator=generator).tolist()
        # The incomplete step is last: earlier it would shift the others.
        order.sort(key=lambda step: len(steps[step]) < self.n_processes)
        return [batch for step in order for batch in steps[step]]


def _cut(items, size):
    """Cut a list into pieces of `size` items; the last may be shorter."""
    starts = range(0, len(items), size)
    return [items[start : start + size] for start in starts]


def balanced_sampler(labels, multi_label=False, seed=0):
    """Return a sampler that draws rare classes as often as frequent ones.

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


class ClipOrder:
    """Choose the clips of a training epoch, and their order.

    Arguments
    ---------
    seed : int
        Seed of the order.
    passes_per_epoch : int
        Number of passes in an epoch, if passes are too short for validation
        after each pass. All passes of an epoch have the same crops. At the
        border of two passes, a batch may contain a clip twice.
    clips_per_epoch : int, optional
        Cut the passes over a large corpus into epochs of this many clips.
    balanced : bool
        Draw rare classes as often as frequent ones, see `balanced_sampler`.
    multi_label : bool
        Whether a label cell holds several labels.
    length_buckets : int, optional
        Number of batches that are sorted by length; see `LengthBuckets`.
    crop_seconds : float
        Length of a crop. Clips are sorted by length; longer clips count as this
        long.

    Raises
    ------
    ValueError
        If a number is out of range, or two settings exclude each other.

    Example
    -------
    >>> opts = {"batch_size": 4, "shuffle": True}
    >>> ClipOrder(seed=0)(opts, range(9)) == opts
    True
    >>> opts = ClipOrder(seed=0, passes_per_epoch=2)(opts, range(9))
    >>> opts["shuffle"], len(opts["sampler"])
    (False, 18)
    """

    def __init__(
        self,
        seed,
        passes_per_epoch=1,
        clips_per_epoch=None,
        balanced=False,
        multi_label=False,
        length_buckets=None,
        crop_seconds=math.inf,
    ):
        self.seed = whole("seed", seed, 0)
        self.passes_per_epoch = whole("passes_per_epoch", passes_per_epoch)
        self.clips_per_epoch = whole(
            "clips_per_epoch", clips_per_epoch, null=True
        )
        self.balanced = flag("balanced", balanced)
        self.multi_label = flag("multi_label", multi_label)
        self.length_buckets = whole("length_buckets", length_buckets, null=True)
        if crop_seconds != math.inf:
            real("crop_seconds", crop_seconds, 0, inside=True)
        self.crop_seconds = crop_seconds
        sizes = passes_per_epoch > 1, clips_per_epoch is not None, balanced
        if sum(sizes) > 1:
            raise ArgumentError(
                "passes_per_epoch, clips_per_epoch and balanced each define "
                "an epoch: leave all but one at their defaults"
            )

    def n_epochs(self, passes, n_clips):
        """Return the number of epochs of a training.

        Arguments
        ---------
        passes : int
            Passes over the corpus if `clips_per_epoch` is set; else epochs.
        n_clips : int
            Number of clips in the corpus.

        Returns
        -------
        int

        Example
        -------
        >>> ClipOrder(seed=0, clips_per_epoch=40).n_epochs(2, 100)
        5
        """
        if self.clips_per_epoch is None or self.clips_per_epoch >= n_clips:
            return passes
        return math.ceil(passes * n_clips / self.clips_per_epoch)

    def __call__(self, opts, dataset):
        """Return the options of a loader that draws clips in this order.

        Arguments
        ---------
        opts : dict
            With ``batch_size`` and ``shuffle``.
        dataset : speechbrain.dataio.dataset.DynamicItemDataset
            Training clips, with their ``duration`` and ``label``.

        Returns
        -------
        dict
        """
        sampler = self._sampler(dataset)
        if self.length_buckets is not None:
            n_clips = len(dataset)
            opts = {k: v for k, v in opts.items() if k != "shuffle"}
            clips = (dataset.data[clip_id] for clip_id in dataset.data_ids)
            batches = LengthBuckets(
                sampler or PartSampler(n_clips, n_clips, self.seed),
                [min(self.crop_seconds, clip["duration"]) for clip in clips],
                opts.pop("batch_size"),
                self.length_buckets,
                self.seed,
                n_processes(),
            )
            return {**opts, "batch_sampler": batches}
        if sampler is not None:
            return {**opts, "shuffle": False, "sampler": sampler}
        return opts

    def _sampler(self, dataset):
        """Return the sampler; None if each clip is drawn once."""
        n_clips = len(dataset)
        if self.balanced:
            labels = [dataset.data[key]["label"] for key in dataset.data_ids]
            return balanced_sampler(labels, self.multi_label, self.seed)
        if self.passes_per_epoch > 1:
            size = self.passes_per_epoch * n_clips
            return PartSampler(n_clips, size, self.seed)
        if self.clips_per_epoch is not None and self.clips_per_epoch < n_clips:
            return PartSampler(n_clips, self.clips_per_epoch, self.seed)
        return None


class RankBatchSampler(Sampler):
    """Choose the batches that one of n processes evaluates: every n-th.

    No batch is repeated to give each process the same number, so each clip
    counts once. Batches keep their clips. Each clip thus has exactly the same
    result as with a single process, bit by bit.

    Arguments
    ---------
    batches : torch.utils.data.Sampler
        Batches of indices, as for a single process.
    rank : int
        Number of this process.
    n_processes : int
        Number of processes that share the batches.

    Example
    -------
    >>> batches = [[0, 1], [2, 3], [4]]
    >>> [list(RankBatchSampler(batches, rank, 2)) for rank in (0, 1)]
    [[[0, 1], [4]], [[2, 3]]]
    """

    def __init__(self, batches, rank, n_processes):
        self.batches = batches
        self.rank = rank
        self.n_processes = n_processes

    def __len__(self):
        return len(range(self.rank, len(self.batches), self.n_processes))

    def __iter__(self):
        return itertools.islice(self.batches, self.rank, None, self.n_processes)
