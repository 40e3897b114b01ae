"""Make padded batches of manifest rows: read, crop, label.

Everything here is picklable, so that loader workers may be forked or spawned.
Nothing uses global random state: a crop is a function of seed, epoch and clip.
Audio that fails to decode becomes None, is listed in a file, and is left out of
its batch.
"""

import functools

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_utils import batch_pad_right

from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.dataio.tables import ManifestError, split_labels
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.utils.checks import ArgumentError, flag, real, whole
from ssast_lobes.utils.files import append_row
from ssast_lobes.utils.random import hash63


class ClipReader:
    """Read clips, whole or cropped; only the crop is read from disk.

    Arguments
    ---------
    crop_seconds : float, optional
        Length of the crop; by default clips are read whole. Shorter clips are
        always read whole.
    sample_rate : int
        Sampling rate of the result in Hz.
    seed : int
        Seed of the random crops.
    random_crop : bool
        True: crop at a position that changes in each epoch, a pure function
        of (seed, epoch, clip id). False: crop the center of the clip.
    unreadable_file : str or os.PathLike, optional
        CSV to which path and reason are appended when a clip fails to decode.

    Example
    -------
    >>> import numpy, soundfile
    >>> path = str(getfixture("tmpdir").join("a.wav"))
    >>> soundfile.write(path, numpy.linspace(0, 0.5, 48000), 16000)
    >>> reader = ClipReader(crop_seconds=1.0, random_crop=True)
    >>> first = reader(path, 3.0, "a")
    >>> first.shape
    torch.Size([16000])
    >>> reader.epoch = 1
    >>> torch.equal(reader(path, 3.0, "a"), first)
    False
    """

    def __init__(
        self,
        crop_seconds=None,
        sample_rate=16000,
        seed=0,
        random_crop=False,
        unreadable_file=None,
    ):
        if random_crop and crop_seconds is None:
            raise ArgumentError("random_crop needs crop_seconds")
        self.crop_seconds = real(
            "crop_seconds", crop_seconds, 0, inside=True, null=True
        )
        self.sample_rate = whole("sample_rate", sample_rate)
        self.seed = whole("seed", seed, 0)
        self.random_crop = flag("random_crop", random_crop)
        self.unreadable_file = unreadable_file
        # Shared memory: loader workers outlive an epoch, and must see the next.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self):
        """Epoch (int) that random crops are drawn for; set it each epoch."""
        return self._epoch.item()

    @epoch.setter
    def epoch(self, epoch):
        self._epoch.fill_(epoch)

    def __deepcopy__(self, memo):
        # SpeechBrain copies the pipeline of a filtered or sorted dataset;
        # the copy has to follow the same epoch.
        return self

    def __call__(self, path, duration, clip_id):
        """Read one clip.

        Arguments
        ---------
        path : str
            The file.
        duration : float
            Length of the clip in seconds.
        clip_id : str
            Id of the clip in the manifest.

        Returns
        -------
        torch.Tensor or None
            Waveform (samples,), float32; None if the file fails to decode.
        """
        start, seconds = self.crop(duration, clip_id)
        try:
            return read_audio(path, self.sample_rate, start, seconds)
        except UnreadableAudio as error:
            if self.unreadable_file is not None:
                reason = error.reason(path)
                append_row(self.unreadable_file, (path, reason))
            return None

    def crop(self, duration, clip_id):
        """Return start and length of the crop of a clip.

        Arguments
        ---------
        duration, clip_id
            Length in seconds and id of the clip.

        Returns
        -------
        start : float
            Start of the crop in seconds.
        seconds : float or None
            Length of the crop; None for the whole clip.
        """
        if self.crop_seconds is None or duration <= self.crop_seconds:
            return 0.0, None
        spare = duration - self.crop_seconds
        return self._place(clip_id) * spare, self.crop_seconds

    def crop_start(self, duration, clip_id):
        """Return the start of the crop of a clip, () int64 in samples."""
        start, _ = self.crop(duration, clip_id)
        return torch.tensor(round(start * self.sample_rate))

    def _place(self, clip_id):
        """Return where in the clip to crop, 0 (start) to 1 (end)."""
        if not self.random_crop:
            return 0.5
        return hash63(f"{self.seed}/{self.epoch}/{clip_id}") / 2**63


def repeat_long(rows, crop_seconds):
    """Repeat the rows of long clips, so that crops can cover them.

    Arguments
    ---------
    rows : dict
        Clip id -> row with `duration` (seconds).
    crop_seconds : float
        Length of a crop.

    Returns
    -------
    dict
        Rows by id. The number of rows of a clip is its duration divided by
        `crop_seconds`, rounded, and at least 1. Each row has its own id, for
        which `ClipReader` draws another position.

    Example
    -------
    >>> rows = {"a": {"duration": 1.0}, "b": {"duration": 5.1}}
    >>> list(repeat_long(rows, crop_seconds=2.0))
    ['a', 'b', 'b#2', 'b#3']
    """
    repeated = {}
    for clip_id, row in rows.items():
        repeated[clip_id] = row
        for number in range(2, round(row["duration"] / crop_seconds) + 1):
            repeated[f"{clip_id}#{number}"] = row
    # A clip may have the id of another one's repetition.
    return repeated | rows


def make_dataset(rows, reader, label_encoder=None, multi_label=False):
    """Make a dataset of clips, with labels and targets if there are any.

    Arguments
    ---------
    rows : dict
        Clip id -> row with `path` and `duration` (seconds). Optional keys are
        `label` and `speaker` (str), and `takes` ("1", "2" or "").
    reader : ClipReader
        Reads clips. Any other callable (path, duration, id) -> waveform
        (samples,) can replace it.
    label_encoder : speechbrain.dataio.encoder.CategoricalEncoder, optional
        Class index of each label; without it there are no targets.
    multi_label : bool
        Whether a label cell holds several labels, separated by semicolons.

    Returns
    -------
    speechbrain.dataio.dataset.DynamicItemDataset
        With items `id`, `sig` (samples,), `label` and `speaker` if all rows
        have them, and `target`: class index () int64 or, if `multi_label`,
        multi-hot (classes,) float32. If a row has `takes`, there is
        `positive_pairs` () bool: True if the halves of the clip are two takes
        of the same content. If there are no targets, and the reader has
        `crop_start`, there is `crop_starts` () int64, in samples.

    Raises
    ------
    ManifestError
        If there are no rows, the encoder does not know a label, or a clip with
        takes is longer than a crop.

    Example
    -------
    >>> import numpy, soundfile
    >>> path = str(getfixture("tmpdir").join("a.wav"))
    >>> soundfile.write(path, numpy.zeros(800), 16000)
    >>> rows = {"a": {"path": path, "duration": 0.05}}
    >>> item = make_dataset(rows, ClipReader())[0]
    >>> item["id"], item["sig"].shape
    ('a', torch.Size([800]))
    """
    if not rows:
        raise ManifestError("a dataset needs at least one row")
    # Several tables may differ in their columns.
    texts = {"label", "speaker"}.intersection(*rows.values())
    data = {
        clip_id: {key: row[key] for key in ("path", "duration", *texts)}
        for clip_id, row in rows.items()
    }
    has_pairs = any(row.get("takes") for row in rows.values())
    if has_pairs:
        longest = getattr(reader, "crop_seconds", None)
        for clip_id, row in rows.items():
            data[clip_id]["is_pair"] = _is_pair(clip_id, row, longest)
    dataset = DynamicItemDataset(data)
    dataset.add_dynamic_item(reader, ["path", "duration", "id"], "sig")
    output_keys = ["id", "sig", *sorted(texts)]
    if label_encoder is None and hasattr(reader, "crop_start"):
        keys = ["duration", "id"]
        dataset.add_dynamic_item(reader.crop_start, keys, "crop_starts")
        output_keys.append("crop_starts")
    if has_pairs:
        dataset.add_dynamic_item(torch.tensor, "is_pair", "positive_pairs")
        output_keys.append("positive_pairs")
    if label_encoder is not None:
        classes = dict(label_encoder.lab2ind)
        _check_labels(data, classes, multi_label)
        encode = _multi_hot if multi_label else _class_index
        dataset.add_dynamic_item(
            functools.partial(encode, classes), "label", "target"
        )
        output_keys.append("target")
    dataset.set_output_keys(output_keys)
    return dataset


def collate(
    examples, pad_seconds=None, sample_rate=16000, padded_keys=("sig",)
):
    """Batch examples; drop those without audio.

    Arguments
    ---------
    examples : list of dict
        Items of a dataset from `make_dataset`.
    pad_seconds : float, optional
        Pad each batch to a multiple of this duration. Each new length needs
        another compilation, so few lengths are better.
    sample_rate : int
        Sampling rate of the audio in Hz.
    padded_keys : sequence of str
        Items whose lengths differ: the audio, and perhaps tokens (length,).

    Returns
    -------
    speechbrain.dataio.batch.PaddedBatch
        `padded_keys` are padded with zeros: data (B, samples) and relative
        lengths (B,). Targets are stacked: (B,) or (B, classes). Texts are
        lists.

    Raises
    ------
    UnreadableAudio
        If no example of the batch has audio.

    Example
    -------
    >>> batch = collate(
    ...     [
    ...         {"id": "a", "sig": torch.ones(4)},
    ...         {"id": "b", "sig": None},
    ...         {"id": "c", "sig": torch.ones(2)},
    ...     ]
    ... )
    >>> batch.id, batch.sig.lengths
    (['a', 'c'], tensor([1.0000, 0.5000]))
    """
    decoded = [example for example in examples if example["sig"] is not None]
    if not decoded:
        clips = ", ".join(example["id"] for example in examples[:5])
        raise UnreadableAudio(
            f"{clips}: none of the {len(examples)} clips of a batch can be "
            "decoded"
        )
    pad_to = 1 if pad_seconds is None else round(pad_seconds * sample_rate)
    return PaddedBatch(
        decoded,
        padded_keys=list(padded_keys),
        padding_func=_pad,
        padding_kwargs={"pad_to": pad_to},
    )


def _pad(clips, pad_to):
    """Pad clips (samples,) to a batch; return their relative lengths too."""
    padded, lengths = batch_pad_right(clips)
    longest = padded.shape[1]
    missing = -longest % pad_to
    if missing == 0 or not padded.is_floating_point():
        return padded, lengths
    padded = torch.nn.functional.pad(padded, (0, missing))
    return padded, lengths * (longest / padded.shape[1])


def _is_pair(clip_id, row, longest):
    takes = row.get("takes") or "1"
    if takes not in ("1", "2"):
        raise ManifestError(
            f"{clip_id}: takes must be 1, or 2 for a clip of two halves, "
            f'got "{takes}"'
        )
    if takes == "2" and longest is not None and row["duration"] > longest:
        raise ManifestError(
            f"{clip_id}: two takes in {row['duration']:g} s, of which a crop "
            f"of {longest:g} s (crop_seconds) would lose a part"
        )
    return takes == "2"


def _class_index(classes, label):
    return torch.tensor(classes[label])


def _multi_hot(classes, cell):
    target = torch.zeros(len(classes))
    target[[classes[label] for label in split_labels(cell)]] = 1.0
    return target


def _check_labels(data, classes, multi_label):
    """Raise if labels are unknown: now, not in the middle of an epoch."""
    unknown = {}
    for clip_id, row in data.items():
        label = row["label"]
        for name in split_labels(label) if multi_label else [label]:
            if name not in classes:
                unknown.setdefault(name, []).append(clip_id)
    if unknown:
        shown = [
            f'"{name}" ({len(clips)} clips, first {clips[0]})'
            for name, clips in list(unknown.items())[:20]
        ]
        raise ManifestError(
            f"{len(unknown)} labels are unknown to the label encoder (none of "
            f"its {len(classes)} classes): {', '.join(shown)}"
        )
