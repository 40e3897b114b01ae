"""MSPM with a contrast of clips: the contrast by hand, and what stays MSPM."""

import pytest
import torch

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import load_objective

QUIET = {
    "background": {"probability": 0.0, "snr": [0.0, 0.0], "scale": 1.0},
    "channel": {"level": 0.0, "tilt": 0.0, "cosines": 1},
}


def build(**arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(
        Grid(32, (16, 8)), dim=32, depth=3, heads=2, table_frames=80
    )
    return load_objective("contrastive_mspm")(encoder, **arguments)


def batch(lengths=(80, 45, 60, 80)):
    feats = torch.zeros(len(lengths), max(lengths), 32)
    draw = torch.Generator().manual_seed(3)
    for row, length in zip(feats, lengths, strict=True):
        row[:length] = torch.randn(length, 32, generator=draw)
    return feats, torch.tensor(lengths)


@torch.no_grad()
def test_the_contrast_by_hand():
    objective, (feats, n_frames) = build(crop=[0.7, 0.7]), batch()
    seen = {}

    def listen(module, arguments, named, encoded):
        seen.update(encoded=encoded, feats=arguments[0], n=arguments[1])

    objective.encoder.register_forward_hook(listen, with_kwargs=True)
    output = objective(feats, n_frames)
    encoded, counts = seen["encoded"], seen["n"].tolist()
    # Two crops of each clip, in the order of the clips.
    assert counts == [56, 31, 42, 56] * 2

    vectors = []
    # Two thirds of three blocks.
    for tokens, valid in zip(
        encoded.hidden_states[2], encoded.valid, strict=True
    ):
        own = tokens[valid]
        deviation = (own.var(0, correction=0) + 1e-6).sqrt()
        vector = objective.projector(torch.cat([own.mean(0), deviation]))
        vectors.append(vector / vector.norm())
    losses, right = [], []
    for row, vector in enumerate(vectors):
        partner = (row + 4) % 8
        cosines = {
            other: float(vector @ vectors[other]) / 0.1
            for other in range(8)
            if other != row
        }
        total = sum(torch.tensor(list(cosines.values())).double().exp())
        losses.append(float(total.log()) - cosines[partner])
        right.append(max(cosines, key=cosines.get) == partner)
    logs = output.logs
    assert logs["clip_nce"].item() == pytest.approx(sum(losses) / 8, abs=1e-4)
    assert logs["clip_accuracy"].item() == pytest.approx(sum(right) / 8)
    total = logs["nce"] + 10 * logs["mse"] + 0.3 * logs["clip_nce"]
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-5)


@torch.no_grad()
def test_crops_of_one_clip_have_channels_of_their_own():
    constant = torch.ones(2, 80, 32), torch.tensor([80, 80])
    seen = []
    for arguments, same in ((QUIET, True), ({}, False)):
        objective = build(crop=[0.7, 0.7], **arguments)
        objective.encoder.register_forward_hook(
            lambda module, arguments, output: seen.append(arguments[0])
        )
        objective(*constant)
        first, second = seen.pop().chunk(2)
        assert torch.equal(first, second) == same


def test_in_evaluation_the_losses_are_those_of_mspm():
    objective, (feats, n_frames) = build().eval(), batch()
    plain = load_objective("mspm_small_data")(objective.encoder).eval()
    plain.load_state_dict(
        {
            key: value
            for key, value in objective.state_dict().items()
            if not key.startswith("projector.")
        }
    )
    keys = torch.arange(4)
    mask = objective.draw_mask(feats, n_frames, clip_keys=keys)
    own = objective(feats, n_frames, mask, clip_keys=keys)
    other = plain(feats, n_frames, mask, clip_keys=keys)
    assert torch.equal(own.loss, other.loss)
    assert own.logs.keys() == other.logs.keys()


def test_it_learns_to_tell_clips_apart():
    objective, (feats, n_frames) = build(), batch((80,) * 16)
    # Sounds that last: each clip has a spectrum of its own.
    draw = torch.Generator().manual_seed(0)
    feats = 0.3 * feats + torch.randn(16, 1, 32, generator=draw)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    accuracies = []
    for _ in range(80):
        output = objective(feats, n_frames, generator=generator)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        accuracies.append(output.logs["clip_accuracy"].item())
    # Chance is one in 31; backgrounds keep it from all of them.
    assert sum(accuracies[-5:]) / 5 > 0.7
    assert sum(accuracies[:3]) / 3 < 0.55


@pytest.mark.parametrize("crop", [0.7, [0.5, 1.0]])
def test_config_builds_it_again(crop):
    objective = build(crop=crop)
    again = build(**objective.config)
    assert again.config == objective.config and again.config["crop"] == crop


def test_shares_out_of_range_are_refused():
    with pytest.raises(ValueError, match="contrast_depth"):
        build(contrast_depth=1.5)
    with pytest.raises(ValueError, match="crop"):
        build(crop=[0.5, 1.5])


def test_the_projector_stays_in_the_checkpoints():
    objective = build()
    assert not any("projector" in key for key in objective.exported_state())
    assert any("projector" in key for key in objective.state_dict())
