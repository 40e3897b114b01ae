"""Frame scores: padding never counts, and a frame's time is its own."""

import pytest
import torch

from ssast_lobes import (
    FrameClassifier,
    Grid,
    KaldiFbank,
    SpectrogramDetector,
    SpectrogramEncoder,
)
from ssast_lobes.models.event_head import WEAK_POOLINGS, FrameTiming
from ssast_lobes.models.mel_spectrogram import MelSpectrogram
from ssast_lobes.models.pooling import ClipPooling


@pytest.mark.parametrize("weak_pooling", WEAK_POOLINGS)
@pytest.mark.parametrize("hidden, context", [(None, 1), (8, 5)])
def test_padding_never_counts(weak_pooling, hidden, context):
    torch.manual_seed(0)
    head = FrameClassifier(6, 3, weak_pooling, hidden, context)
    frames = torch.randn(2, 9, 6)
    counts = torch.tensor([9, 4])
    both = head(frames, counts)
    alone = head(frames[1:, :4], counts[1:])
    assert torch.allclose(both.frames[1, :4], alone.frames[0], atol=1e-6)
    assert torch.allclose(both.clip[1], alone.clip[0], atol=1e-6)
    assert (both.frames[1, 4:] == 0).all()


def test_linear_softmax_by_hand():
    head = FrameClassifier(1, 1)
    with torch.no_grad():
        head.norm.weight.zero_()
        head.linear.bias.copy_(torch.logit(torch.tensor([0.5])))
    clip = head(torch.zeros(1, 3, 1), torch.tensor([3])).clip
    assert clip.sigmoid().item() == pytest.approx(0.5)
    scores = torch.logit(torch.tensor([[[0.5], [0.25], [0.9]]]))
    head.norm = torch.nn.Identity()
    with torch.no_grad():
        head.linear.weight.fill_(1)
        head.linear.bias.zero_()
    clip = head(scores, torch.tensor([2])).clip
    # (0.5 ** 2 + 0.25 ** 2) / (0.5 + 0.25), without the third frame.
    assert clip.sigmoid().item() == pytest.approx(0.3125 / 0.75)


def test_weak_labels_alone_teach_the_frames():
    torch.manual_seed(0)
    frames = torch.randn(8, 20, 4)
    frames[:4, 5:9, 0] += 8
    labels = torch.tensor([1.0] * 4 + [0.0] * 4)[:, None]
    head = FrameClassifier(4, 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits
    for _ in range(60):
        loss = loss_of(head(frames, torch.full((8,), 20)).clip, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = head(frames, torch.full((8,), 20)).frames.sigmoid()[:4, :, 0]
    assert found[:, 5:9].mean() > 0.8 > 0.3 > found[:, 9:].mean()


@pytest.mark.parametrize("layers", ["last", "weighted", "all"])
@pytest.mark.parametrize("blocks", ["attention", "mamba"])
def test_any_encoder_and_layers(layers, blocks):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        {"n_mels": 32, "patch": (16, 16)},
        dim=32,
        depth=2,
        **({"heads": 2} if blocks == "attention" else {}),
        blocks=blocks,
    )
    model = SpectrogramDetector(encoder, 3, layers, freeze_encoder=True)
    feats, counts = torch.randn(2, 64, 32), torch.tensor([64, 40])
    scores = model.eval()(feats, counts)
    alone = model(feats[1:, :40], counts[1:])
    assert scores.frames.shape == (2, 4, 3)
    assert scores.n_time.tolist() == [4, 3]
    assert torch.allclose(scores.frames[1, :3], alone.frames[0], atol=1e-5)
    scores.clip.sum().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert not any(name.startswith("encoder") for name in trained)
    assert ("pooling.layer_scores" in trained) == (layers == "weighted")


def test_frames_of_layers_are_means_over_frequency():
    encoder = SpectrogramEncoder(
        {"n_mels": 32, "patch": (16, 16)}, dim=32, depth=2, heads=2
    )
    out = encoder(torch.randn(1, 48, 32), hidden_states=True)
    frames = ClipPooling(2, layers="all").frames(out)
    states = out.hidden_states.unflatten(2, (2, 3)).mean(2)
    assert torch.equal(frames[0], torch.cat([*states[:, 0]], dim=-1))


def test_frames_of_a_centered_spectrogram_begin_earlier():
    """Its first frame has the first sample in its middle."""
    grid = Grid(80, (16, 16))
    centered = FrameTiming(grid, MelSpectrogram(n_mels=80))
    kaldi = FrameTiming(grid, KaldiFbank(n_mels=80))
    assert (kaldi.start, kaldi.step) == (0.0075, 0.16)
    assert (centered.start, centered.step) == (-0.005, 0.16)


@pytest.mark.parametrize(
    "patch, stride, step",
    [((16, 16), None, 0.16), ((64, 4), None, 0.04), ((128, 2), None, 0.02)]
    + [((16, 16), (10, 10), 0.1)],
)
def test_an_event_marks_the_frames_it_covers(patch, stride, step):
    timing = FrameTiming(Grid(128, patch, stride), KaldiFbank())
    assert timing.step == pytest.approx(step)
    target = timing.targets([(0.5, 1.5, 0)], 32000, 1)[:, 0]
    edges = timing.edges(len(target), 2.0)
    on = target.nonzero()[:, 0]
    assert edges[on[0]] == pytest.approx(0.5, abs=step / 2 + 1e-6)
    assert edges[on[-1] + 1] == pytest.approx(1.5, abs=step / 2 + 1e-6)
    assert len(on) == on[-1] - on[0] + 1
    # A click between two middles is not lost, nor one outside of the clip in.
    clicks = [(0.701, 0.702, 0), (-1.0, -0.5, 0), (2.0, 3.0, 0)]
    assert timing.targets(clicks, 32000, 1).sum() == 1
