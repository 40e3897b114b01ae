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


def contrast_by_hand(rows, projector):
    """Mean InfoNCE of (tokens, valid) rows, two halves of views; accuracy."""
    vectors = []
    for tokens, valid in rows:
        own = tokens[valid]
        deviation = (own.var(0, correction=0) + 1e-6).sqrt()
        vector = projector(torch.cat([own.mean(0), deviation]))
        vectors.append(vector / vector.norm())
    losses, right = [], []
    for row, vector in enumerate(vectors):
        partner = (row + len(rows) // 2) % len(rows)
        cosines = {
            other: float(vector @ vectors[other]) / 0.1
            for other in range(len(rows))
            if other != row
        }
        total = sum(torch.tensor(list(cosines.values())).double().exp())
        losses.append(float(total.log()) - cosines[partner])
        right.append(max(cosines, key=cosines.get) == partner)
    return sum(losses) / len(rows), sum(right) / len(rows)


def listening(objective):
    """What the encoder is given and gives, once it is called."""
    seen = {}

    def listen(module, arguments, named, encoded):
        feats, n_frames, mask, _ = arguments
        seen.update(encoded=encoded, feats=feats, n=n_frames, mask=mask)

    objective.encoder.register_forward_hook(listen, with_kwargs=True)
    return seen


@torch.no_grad()
def test_the_contrasts_by_hand():
    objective = build(crop=[0.7, 0.7])
    feats, n_frames = batch((80, 45, 60, 80, 70, 55))
    pairs = torch.tensor([False, True, False, True, True, False])
    seen = listening(objective)
    output = objective(feats, n_frames, positive_pairs=pairs)
    encoded, counts = seen["encoded"], seen["n"].tolist()
    # Two crops of each clip, or its halves, in the order of the clips.
    assert counts == [56, 22, 42, 40, 35, 38] * 2

    total = output.logs["nce"] + 10 * output.logs["mse"]
    for name, chosen, weight, projector in (
        ("clip", ~pairs, 0.3, objective.projector),
        ("pair", pairs, 0.5, objective.pair_projector),
    ):
        chosen = chosen.repeat(2)
        # Two thirds of three blocks.
        rows = zip(
            encoded.hidden_states[2][chosen],
            encoded.is_token[chosen],
            strict=True,
        )
        loss, accuracy = contrast_by_hand(list(rows), projector)
        nce = output.logs[f"{name}_nce"]
        assert nce.item() == pytest.approx(loss, abs=1e-4)
        assert output.logs[f"{name}_accuracy"].item() == pytest.approx(accuracy)
        # Three clips give six crops: five others to choose from.
        chances = (
            output.logs[f"{name}_nce_chance"].exp(),
            1 / output.logs[f"{name}_accuracy_chance"],
        )
        assert torch.stack(chances).tolist() == pytest.approx([5, 5])
        total += weight * nce
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-5)


@torch.no_grad()
def test_takes_are_the_halves_of_a_clip_and_hide_nothing():
    objective, (feats, n_frames) = build(**QUIET), batch((80, 45))
    seen = listening(objective)
    objective(feats, n_frames, positive_pairs=torch.tensor([False, True]))
    halves = seen["feats"][[1, 3]]
    assert torch.equal(halves[:, :22], feats[1, :44].view(2, 22, 32))
    assert (halves[:, 22:] == 0).all()
    hidden = seen["mask"].flatten(1).sum(1).tolist()
    assert hidden[1] == hidden[3] == 0 and min(hidden[0], hidden[2]) > 0


@torch.no_grad()
def test_crops_of_one_clip_have_channels_of_their_own():
    constant = torch.ones(2, 80, 32), torch.tensor([80, 80])
    for arguments, same in ((QUIET, True), ({}, False)):
        objective = build(crop=[0.7, 0.7], **arguments)
        seen = listening(objective)
        objective(*constant)
        first, second = seen["feats"].chunk(2)
        assert torch.equal(first, second) == same


@pytest.mark.parametrize("pairs", [None, [True], [False], [True, False]])
def test_few_clips_of_a_kind_have_a_loss_and_all_gradients(pairs):
    objective, (feats, n_frames) = build(), batch((80, 45)[: len(pairs or "1")])
    if pairs is not None:
        pairs = torch.tensor(pairs)
    output = objective(feats, n_frames, positive_pairs=pairs)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    for parameter in objective.parameters():
        if parameter.requires_grad:
            assert torch.isfinite(parameter.grad).all()


def test_in_evaluation_the_losses_are_those_of_mspm():
    objective, (feats, n_frames) = build().eval(), batch()
    plain = load_objective("mspm_small_data")(objective.encoder).eval()
    plain.load_state_dict(
        {
            key: value
            for key, value in objective.state_dict().items()
            if "projector." not in key
        }
    )
    keys = torch.arange(4)
    mask = objective.draw_mask(feats, n_frames, clip_keys=keys)
    own = objective(feats, n_frames, mask, clip_keys=keys)
    other = plain(feats, n_frames, mask, clip_keys=keys)
    assert torch.equal(own.loss, other.loss)
    assert own.logs.keys() == other.logs.keys()


def learning(objective, feats, n_frames, steps, **own):
    """Logs of training steps."""
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    logs = []
    for _ in range(steps):
        output = objective(feats, n_frames, generator=generator, **own)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        logs.append(output.logs)
    return logs


def mean_of(logs, name):
    return sum(each[name].item() for each in logs) / len(logs)


def test_it_learns_to_tell_clips_apart():
    feats, n_frames = batch((80,) * 16)
    # Sounds that last: each clip has a spectrum of its own.
    draw = torch.Generator().manual_seed(0)
    feats = 0.3 * feats + torch.randn(16, 1, 32, generator=draw)
    logs = learning(build(), feats, n_frames, steps=80)
    # Chance is one in 31; backgrounds keep it from all of them.
    assert mean_of(logs[-5:], "clip_accuracy") > 0.7
    assert mean_of(logs[:3], "clip_accuracy") < 0.55


@pytest.mark.slow
def test_it_learns_what_two_takes_have_in_common():
    draw = torch.Generator().manual_seed(0)
    # What is said: when it is loud. Who says it, far stronger: a spectrum.
    content = torch.randn(16, 40, 1, generator=draw).repeat(1, 2, 1)
    voices = 3 * torch.randn(16, 2, 1, 32, generator=draw)
    feats = content + voices.expand(16, 2, 40, 32).reshape(16, 80, 32)
    pairs, n_frames = torch.ones(16, dtype=torch.bool), torch.full((16,), 80)
    logs = learning(
        build(**QUIET), feats, n_frames, steps=150, positive_pairs=pairs
    )
    assert mean_of(logs[-5:], "pair_accuracy") > 0.9
    assert mean_of(logs[:3], "pair_accuracy") < 0.4


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
