"""MSPM with a contrast of clips: the contrast by hand, and what stays MSPM."""

import pytest
import torch

from ssast_lobes import Grid, SpectrogramEncoder
from ssast_lobes.objectives import load_objective

CHANNEL = {"level": 0.4, "tilt": 0.2, "cosines": 4}
WARPED = {
    "share": 0.5,
    "freq_scale": [0.7, 1.0],
    "time_scale": [0.7, 1.0],
    "depth": 1.0,
    "weight": 0.5,
}
STILL = {**WARPED, "freq_scale": [1.0, 1.0], "time_scale": [1.0, 1.0]}
QUIET = {
    "background": {"probability": 0.0, "snr": [0.0, 0.0], "scale": 1.0},
    "channel": {"level": 0.0, "tilt": 0.0, "cosines": 1},
    "warped": STILL,
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


@torch.no_grad()
def test_the_contrasts_by_hand():
    objective = build(crop=[0.7, 0.7])
    feats, n_frames = batch((80, 45, 60, 80, 70, 55))
    seen = {}

    def listen(module, arguments, named, encoded):
        seen.update(encoded=encoded, feats=arguments[0], n=arguments[1])

    objective.encoder.register_forward_hook(listen, with_kwargs=True)
    output = objective(feats, n_frames)
    encoded, counts = seen["encoded"], seen["n"].tolist()
    # Two crops of the clips of each part, which are drawn.
    assert sorted(counts) == sorted([56, 31, 42, 56, 49, 38] * 2)
    assert counts[:3] == counts[3:6] and counts[6:9] == counts[9:]
    assert counts[:3] + counts[6:9] != [56, 31, 42, 56, 49, 38]

    total = output.logs["nce"] + 10 * output.logs["mse"]
    # Two thirds of three blocks, and the last.
    for name, part, block, weight, projector in (
        ("clip", slice(6), 2, 0.3, objective.projector),
        ("warped", slice(6, 12), 3, 0.5, objective.warped_projector),
    ):
        rows = zip(
            encoded.hidden_states[block][part],
            encoded.valid[part],
            strict=True,
        )
        loss, accuracy = contrast_by_hand(list(rows), projector)
        nce = output.logs[f"{name}_nce"]
        assert nce.item() == pytest.approx(loss, abs=1e-4)
        assert output.logs[f"{name}_accuracy"].item() == pytest.approx(accuracy)
        total += weight * nce
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-5)


@torch.no_grad()
def test_crops_of_one_clip_differ_as_they_are_told_to():
    # The same at all times, so that crops are alike; a ramp over mel.
    ramp = torch.linspace(0, 1, 32).expand(4, 80, 32)
    objectives = {
        "nothing": build(crop=[0.7, 0.7], **QUIET),
        "channel": build(
            crop=[0.7, 0.7], **QUIET | {"channel": CHANNEL, "warped": STILL}
        ),
        "warped": build(crop=[0.7, 0.7], **QUIET | {"warped": WARPED}),
    }
    same = {}
    for name, objective in objectives.items():
        seen = []
        objective.encoder.register_forward_hook(
            lambda module, arguments, output, seen=seen: seen.append(
                arguments[0]
            )
        )
        objective(ramp, torch.full((4,), 80))
        first, second, third, fourth = seen[0].chunk(4)
        same[name] = torch.equal(first, second), torch.equal(third, fourth)
    assert same == {
        "nothing": (True, True),
        "channel": (False, False),
        "warped": (True, False),
    }


@pytest.mark.parametrize("clips", [1, 2, 3])
def test_a_batch_too_small_to_compare_has_a_loss(clips):
    objective = build()
    feats, n_frames = batch((80, 60, 45)[:clips])
    output = objective(feats, n_frames)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(
        torch.isfinite(parameter.grad).all()
        for parameter in objective.parameters()
        if parameter.requires_grad
    )


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


def learning(objective, spectra, noise, steps):
    """Accuracies of both contrasts over steps on sounds that last."""
    feats, n_frames = batch((80,) * 16)
    feats = noise * feats + spectra[:, None]
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    accuracies = []
    for _ in range(steps):
        output = objective(feats, n_frames, generator=generator)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        accuracies.append(
            [output.logs[f"{part}_accuracy"] for part in ("clip", "warped")]
        )
    return torch.tensor(accuracies).T


def test_it_learns_to_tell_clips_apart():
    draw = torch.Generator().manual_seed(0)
    spectra = torch.randn(16, 32, generator=draw)
    clip, _ = learning(build(), spectra, noise=0.3, steps=120)
    # Chance is one in 15; backgrounds keep it from all of them.
    assert clip[:3].mean() < 0.7
    assert clip[-10:].mean() > 0.8


def test_it_learns_to_know_warped_clips_again():
    draw = torch.Generator().manual_seed(0)
    # Smooth: a shift by some bands leaves them alike.
    waves = torch.arange(1, 9)[:, None] * torch.linspace(0, torch.pi, 32)
    spectra = torch.randn(16, 8, generator=draw) @ torch.cos(waves)
    objective = build(background=QUIET["background"])
    _, warped = learning(objective, spectra, noise=1.0, steps=120)
    assert warped[:5].mean() < 0.7
    assert warped[-20:].mean() > 0.85


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
    with pytest.raises(ValueError, match="share of warped"):
        build(warped={**WARPED, "share": 50})


def test_the_projector_stays_in_the_checkpoints():
    objective = build()
    assert not any("projector" in key for key in objective.exported_state())
    assert any("projector" in key for key in objective.state_dict())
