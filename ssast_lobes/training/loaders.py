"""Loaders that skip batches in which no clip can be decoded.

`collate` drops the clips without audio, and raises if none is left. A long
training must not end because of such a batch. All processes must train on the
same number of batches, so in training another clip replaces the batch. In
evaluation, the batch is None.
"""

import torch
from torch.utils.data import BatchSampler, SequentialSampler

from ssast_lobes.dataio.dataset import collate
from ssast_lobes.dataio.samplers import RankBatchSampler
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.utils.distributed import n_processes


def loader_options(options, dataset, is_training, device, rank=None):
    """Return the options of a loader for this process and device.

    Arguments
    ---------
    options : dict
        Options of the loader in a recipe.
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
        The clips.
    is_training : bool
        Whether the loader is for training. SpeechBrain then distributes the
        clips over the processes. In evaluation, each process gets a part of the
        batches.
    device : str or torch.device
        Device that the batches are copied to.
    rank : int, optional
        Number of the process, if there are several.

    Returns
    -------
    dict

    Example
    -------
    >>> options = loader_options({"batch_size": 2}, [], False, "cpu")
    >>> sorted(options)
    ['batch_size', 'collate_fn']
    """
    if not is_training and rank is not None:
        options = rank_loading(dataset, options, rank, n_processes())
    if torch.device(device).type == "cuda":
        options = cuda_loading(options)
    skipping = SkipUndecodable(
        options.get("collate_fn", collate), dataset if is_training else None
    )
    return {**options, "collate_fn": skipping}


def rank_loading(dataset, loading, rank, n_processes):
    """Return the arguments of a loader that evaluates one process's batches.

    Arguments
    ---------
    dataset : torch.utils.data.Dataset
        All the clips.
    loading : dict
        Arguments of the loader of a single process.
    rank, n_processes : int
        Number of this process, and number of processes.

    Returns
    -------
    dict
        The same arguments with a `batch_sampler`.

    Example
    -------
    >>> rank_loading(range(5), {"batch_size": 2}, 1, 2).keys()
    dict_keys(['batch_sampler'])
    """
    loading = dict(loading)
    loading.pop("shuffle", None)
    batches = BatchSampler(
        loading.pop("sampler", None) or SequentialSampler(dataset),
        loading.pop("batch_size", 1),
        loading.pop("drop_last", False),
    )
    batches = loading.pop("batch_sampler", None) or batches
    return {
        **loading,
        "batch_sampler": RankBatchSampler(batches, rank, n_processes),
    }


def cuda_loading(loading):
    """Return the arguments of a loader whose batches go to a GPU.

    Batches wait in pinned memory, from which they are copied while the GPU
    computes. Workers live as long as the loader, and keep more batches ready.

    Arguments
    ---------
    loading : dict
        Arguments of the loader. This dict is not changed.

    Returns
    -------
    dict

    Example
    -------
    >>> cuda_loading({"num_workers": 0})
    {'pin_memory': True, 'num_workers': 0}
    >>> cuda_loading({"num_workers": 8, "prefetch_factor": 2})
    {'pin_memory': True, 'persistent_workers': True, 'prefetch_factor': 2, ...
    """
    defaults = {"pin_memory": True}
    if loading.get("num_workers", 0) > 0:
        defaults |= {"persistent_workers": True, "prefetch_factor": 4}
    return {**defaults, **loading}


class SkipUndecodable:
    """Collate examples; skip them if none can be decoded.

    Arguments
    ---------
    collate : callable
        Makes a batch of a list of examples; raises `UnreadableAudio` if none
        has audio.
    dataset : speechbrain.dataio.dataset.DynamicItemDataset, optional
        Training clips. The next one that can be decoded replaces the batch.
        Without a dataset, the batch is None.

    Example
    -------
    >>> skipping = SkipUndecodable(collate)
    >>> skipping([{"id": "a", "sig": None}]) is None
    True
    >>> skipping([{"id": "a", "sig": torch.ones(2)}]).id
    ['a']
    """

    def __init__(self, collate, dataset=None):
        self.collate = collate
        self.dataset = dataset

    def __call__(self, examples):
        """Return a batch.

        Arguments
        ---------
        examples : list of dict
            Items of a dataset.

        Returns
        -------
        speechbrain.dataio.batch.PaddedBatch or None

        Raises
        ------
        UnreadableAudio
            If no clip of the whole dataset can be decoded.
        """
        try:
            return self.collate(examples)
        except UnreadableAudio:
            if self.dataset is None:
                return None
        place = self.dataset.data_ids.index(examples[-1]["id"])
        for step in range(1, len(self.dataset)):
            example = self.dataset[(place + step) % len(self.dataset)]
            if example["sig"] is not None:
                return self.collate([example])
        raise UnreadableAudio(
            f"none of the {len(self.dataset)} training clips can be decoded"
        )
