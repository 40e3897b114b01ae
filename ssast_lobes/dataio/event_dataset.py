"""Make datasets of clips with events: crops and frame targets."""

import functools

import torch

from ssast_lobes.dataio.dataset import make_dataset
from ssast_lobes.dataio.event_tables import row_events
from ssast_lobes.dataio.tables import raise_problems


def make_event_dataset(rows, reader, label_encoder, timing):
    """Make a dataset of clips with frame targets.

    Arguments
    ---------
    rows : dict
        Clip id -> row with `path`, `duration` (seconds) and `events`, from
        `dataio.splits.read_splits`.
    reader : ClipReader
        Reads crops. Clips with only weak labels must not be cropped, since the
        crop may not contain the labeled event.
    label_encoder : speechbrain.dataio.encoder.CategoricalEncoder
        The classes.
    timing : FrameTiming
        Frame timing of the model.

    Returns
    -------
    speechbrain.dataio.dataset.DynamicItemDataset
        With items `id`, `sig` (samples,), `label`, `frame_target` (T', C)
        float32, `target` (C,) and `is_strong` () bool. `target` is 1 for
        classes that occur anywhere in the crop. `is_strong` tells whether the
        frame targets are known.

    Raises
    ------
    ManifestError
        If there are no rows, a class is unknown, or a weakly labeled clip is
        longer than a crop.

    Example
    -------
    >>> import numpy, soundfile
    >>> from ssast_lobes import ClipReader, Grid, KaldiFbank
    >>> from ssast_lobes.models.event_head import FrameTiming
    >>> from ssast_lobes.checkpoints.folder import label_encoder_of
    >>> path = str(getfixture("tmp_path") / "a.wav")
    >>> soundfile.write(path, numpy.zeros(3200), 16000)
    >>> row = {"path": path, "duration": 0.2, "label": "dog"}
    >>> row["events"] = '[[0.05, 0.14, "dog"]]'
    >>> timing = FrameTiming(Grid(128, (128, 4)), KaldiFbank())
    >>> labels = label_encoder_of(["dog"])
    >>> dataset = make_event_dataset({"a": row}, ClipReader(), labels, timing)
    >>> dataset[0]["frame_target"].T
    tensor([[0., 1., 1., 0., 0.]])
    """
    dataset = make_dataset(rows, reader, label_encoder, multi_label=True)
    classes = dict(label_encoder.lab2ind)
    longest, problems = reader.crop_seconds or float("inf"), []
    for clip, row in rows.items():
        events = row_events(row)
        is_strong = all(event.onset is not None for event in events)
        if not is_strong and row["duration"] > longest:
            problems.append(
                f"{clip}: labels without times for {row['duration']:g} s, of "
                f"which a crop of {longest:g} s (crop_seconds) may lack them"
            )
        dataset.data[clip]["events"] = [
            (event.onset, event.offset, classes[event.label])
            for event in events
        ]
        dataset.data[clip]["strong"] = is_strong
    raise_problems("events", problems)
    dataset.pipeline.add_static_keys(["events", "strong"])
    dataset.add_dynamic_item(
        functools.partial(_targets, reader, timing, len(classes)),
        ["sig", "events", "strong", "duration", "id"],
        ["frame_target", "target"],
    )
    dataset.add_dynamic_item(torch.tensor, "strong", "is_strong")
    dataset.set_output_keys(
        ["id", "sig", "label", "frame_target", "target", "is_strong"]
    )
    return dataset


def _targets(reader, timing, n_classes, sig, events, strong, duration, clip):
    if sig is None:
        yield None
        yield None
        return
    start = reader.crop(duration, clip)[0]
    shifted = []
    if strong:
        shifted = [(a - start, b - start, n) for a, b, n in events]
    frames = timing.targets(shifted, len(sig), n_classes)
    yield frames
    target = frames.amax(0)
    if not strong:
        target[[number for _, _, number in events]] = 1.0
    yield target
