"""Samplers: passes in parts, classes alike, shared out to processes."""

from collections import Counter

import pytest
from speechbrain.dataio.sampler import DistributedSamplerWrapper

from ssast_lobes.dataio.samplers import PartSampler, balanced_sampler


def epochs_of(sampler, epochs):
    """Clips of some epochs, each drawn on its own."""
    drawn = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
    return drawn


@pytest.mark.parametrize("clips_per_epoch", [1, 4, 7, 10, 23])
def test_parts_make_whole_passes(clips_per_epoch):
    sampler = PartSampler(10, clips_per_epoch, seed=3)
    count = 3 * 10 * clips_per_epoch
    epochs = epochs_of(sampler, range(1, 3 * 10 + 1))
    assert {len(epoch) for epoch in epochs} == {len(sampler)}
    clips = sum(epochs, [])
    passes = [clips[start : start + 10] for start in range(0, count, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == len(passes)


def test_an_epoch_is_a_function_of_its_number_and_the_seed():
    sampler = PartSampler(1000, 300, seed=1)
    in_order = epochs_of(sampler, [1, 2, 3, 4, 5])
    assert epochs_of(PartSampler(1000, 300, seed=1), [4, 2]) == [
        in_order[3],
        in_order[1],
    ]
    assert epochs_of(PartSampler(1000, 300, seed=2), [1]) != in_order[:1]


def test_no_epoch_without_clips():
    with pytest.raises(ValueError, match="at least 1, got 10 and 0"):
        PartSampler(10, 0)


def test_rare_classes_come_as_often_as_frequent_ones():
    labels = ["music"] * 8000 + ["dog"] * 400 + ["rain"] * 100
    sampler = balanced_sampler(labels, seed=1)
    (clips,) = epochs_of(sampler, [1])
    counts = Counter(labels[clip] for clip in clips)
    assert len(clips) == len(labels)
    # Three standard deviations of a third of 8,500 draws are 130.
    assert all(abs(count - 8500 / 3) < 130 for count in counts.values())


def test_a_clip_of_several_classes_has_the_weight_of_each():
    labels = ["a", "a;b", "a; b; c", "a"]
    sampler = balanced_sampler(labels, multi_label=True)
    expected = [1 / 4, 1 / 4 + 1 / 2, 1 / 4 + 1 / 2 + 1, 1 / 4]
    assert sampler.weights.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["parts", "balanced"])
def test_processes_share_an_epoch(kind):
    def sampler():
        if kind == "parts":
            return PartSampler(50, 20, seed=5)
        return balanced_sampler(["a", "b"] * 10, seed=5)

    (alone,) = epochs_of(sampler(), [2])
    parts = []
    for rank in range(2):
        wrapper = DistributedSamplerWrapper(
            sampler(), num_replicas=2, rank=rank, shuffle=False
        )
        parts += epochs_of(wrapper, [2])
    assert [len(part) for part in parts] == [10, 10]
    assert alone[0::2] == parts[0]
    assert alone[1::2] == parts[1]
