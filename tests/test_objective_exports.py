"""Exports of pretraining: what is in them, and going on from one."""

import pytest
import torch
from safetensors.torch import load_file

from ssast_lobes import FrontEnd, SpectrogramEncoder
from ssast_lobes.export import export_pretrained
from ssast_lobes.objectives import load_objective
from ssast_lobes.weights import initialise, load_weights

TRAINED = ("maskspec", "m2d", "asit", "atst_frame")


def build(name, geometry=(128, 4)):
    encoder = SpectrogramEncoder.from_size(
        "micro", geometry, dim=32, depth=2, heads=2, table_frames=100
    )
    return load_objective(name)(encoder)


def trained(name):
    """An objective whose student has gone away from its teacher."""
    torch.manual_seed(0)
    objective = build(name)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return objective


def export(objective, folder):
    export_pretrained(folder, objective, FrontEnd(), card={})
    return load_weights(folder)


@pytest.mark.parametrize("name", TRAINED)
def test_an_export_continues_without_the_teacher(name, tmp_path):
    former = trained(name)
    weights = export(former, tmp_path / "export")
    names = load_file(tmp_path / "export/model.safetensors").keys()
    assert not any("teacher" in key or "mixup" in key for key in names)

    torch.manual_seed(1)
    objective = build(name)
    report = initialise(objective.encoder, weights, objective)
    assert "pretext heads loaded" in report
    new, old = objective.state_dict(), former.exported_state()
    assert all(torch.equal(new[key], value) for key, value in old.items())
    teacher = getattr(objective, "teacher", None)
    if teacher is not None:
        student = objective.encoder.state_dict()
        own = teacher.encoder.state_dict()
        assert all(torch.equal(own[key], student[key]) for key in student)


def test_another_objective_takes_the_encoder_alone(tmp_path):
    former = trained("maskspec")
    weights = export(former, tmp_path / "export")
    objective = build("m2d")
    before = {
        key: value.clone()
        for key, value in objective.decoder.named_parameters()
    }
    report = initialise(objective.encoder, weights, objective)
    assert any("MaskedAutoencoder" in line for line in report)
    for key, value in objective.decoder.named_parameters():
        assert torch.equal(value, before[key])
    for key, value in objective.teacher.encoder.named_parameters():
        assert torch.equal(value, former.encoder.get_parameter(key))


@pytest.mark.parametrize("name", ["asit", "m2d"])
def test_other_patches_leave_the_heads_aside(name, tmp_path):
    weights = export(trained(name), tmp_path / "export")
    objective = build(name, geometry=(128, 2))
    report = initialise(objective.encoder, weights, objective)
    assert any("other patches" in line for line in report)
    output = objective(torch.randn(2, 100, 128), torch.tensor([100, 60]))
    assert output.loss.isfinite()
