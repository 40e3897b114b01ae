"""Batches of which not one clip can be decoded.

`collate` drops the clips without audio, and raises when none is left. A
training of days must not end there: such a batch is replaced in training,
where all processes have to take the same steps, and left out elsewhere.
"""

from ssast_lobes.dataio.waveforms import UnreadableAudio


class SkipUndecodable:
    """A collate function that does not raise for want of audio.

    Arguments
    ---------
    collate : callable
        Makes a batch of a list of examples; raises `UnreadableAudio` if none
        has audio.
    dataset : speechbrain.dataio.dataset.DynamicItemDataset, optional
        Where to take one clip from instead: the next one that can be decoded.
        Without it, such a batch is None.

    Example
    -------
    >>> import torch
    >>> from ssast_lobes.dataio.dataset import collate
    >>> forgiving = SkipUndecodable(collate)
    >>> forgiving([{"id": "a", "sig": None}]) is None
    True
    >>> forgiving([{"id": "a", "sig": torch.ones(2)}]).id
    ['a']
    """

    def __init__(self, collate, dataset=None):
        self.collate = collate
        self.dataset = dataset

    def __call__(self, examples):
        """Make a batch.

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
            If the whole dataset holds no clip that can be decoded.
        """
        try:
            return self.collate(examples)
        except UnreadableAudio:
            if self.dataset is None:
                return None
        return self.collate([self._next_decodable(examples[-1]["id"])])

    def _next_decodable(self, clip_id):
        place = self.dataset.data_ids.index(clip_id)
        for step in range(1, len(self.dataset)):
            example = self.dataset[(place + step) % len(self.dataset)]
            if example["sig"] is not None:
                return example
        raise UnreadableAudio(
            f"none of the {len(self.dataset)} training clips can be decoded"
        )
