"""Exports of pretraining: what is in them, and resuming from one."""

import pytest
import torch
from safetensors.torch import load_file

from ssast_lobes import FrontEnd, SpectrogramEncoder, objectives
from ssast_lobes.checkpoints.folder import export_pretrained
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.warm_start import initialize
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.block_maskers import InverseBlockMasker, SpanMasker
from ssast_lobes.objectives.maskers import ClusterMasker, RandomMasker

TRAINED = ("maskspec", "m2d", "asit", "atst_frame", "beats", "best_rq")
TRAINED += ("sslam", "jepa", "audiomosaic_small_data")


MASKING = ("mspm", "contrastive_mspm", "maskspec", "mae_ast", "m2d")
MASKING += ("eat", "sslam", "jepa", "atst_frame", "beats", "best_rq")
MASKERS = {
    "clusters": ClusterMasker(ratio=0.4, cluster_sizes=[2, 6]),
    "random": RandomMasker(count=9),
    "blocks": InverseBlockMasker(ratio=0.6, block_size=3),
    "spans": SpanMasker(ratio=0.3, span=4),
}


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
    report = initialize(objective.encoder, weights, objective)
    heads = {key for key in former.exported_state() if "encoder." not in key}
    # AudioMosaic's projector is not exported, and fits no other projector.
    assert bool(heads) == (name != "audiomosaic_small_data")
    assert ("pretext heads loaded" in report) == bool(heads)
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
    report = initialize(objective.encoder, weights, objective)
    assert any("MaskedAutoencoder" in line for line in report)
    for key, value in objective.decoder.named_parameters():
        assert torch.equal(value, before[key])
    for key, value in objective.teacher.encoder.named_parameters():
        assert torch.equal(value, former.encoder.get_parameter(key))


@pytest.mark.parametrize("name", ["asit", "m2d"])
def test_other_patches_leave_the_heads_aside(name, tmp_path):
    weights = export(trained(name), tmp_path / "export")
    objective = build(name, geometry=(128, 2))
    report = initialize(objective.encoder, weights, objective)
    assert any("other patches" in line for line in report)
    output = objective(torch.randn(2, 100, 128), torch.tensor([100, 60]))
    assert output.loss.isfinite()


@pytest.mark.parametrize("chosen", MASKERS)
@pytest.mark.parametrize("name", MASKING)
def test_an_export_brings_its_masker(name, chosen, tmp_path):
    masker = MASKERS[chosen]
    former = load_objective(name)(build(name).encoder, masker=masker)
    config = export(former, tmp_path / "export").config["objective"]
    assert config["masker"] == masker.config
    kind = getattr(objectives, config.pop("name"))
    again = kind(former.encoder, **config)
    assert again.config == former.config
    feats, n_frames = torch.randn(2, 100, 128), torch.tensor([100, 60])
    keys = torch.tensor([5, 6])
    masks = [
        one.draw_mask(feats, n_frames, clip_keys=keys)
        for one in (former, again)
    ]
    assert torch.equal(*masks)
    assert former(feats, n_frames).loss.isfinite()


# The ratio of contrastive_mspm is ours; a class has one default.
@pytest.mark.parametrize(
    "name", sorted({*MASKING} - {"contrastive_mspm", "best_rq"})
)
def test_the_published_masker_is_the_default(name):
    preset, encoder = load_objective(name), build(name).encoder
    assert preset(encoder, masker=None).config == preset(encoder).config


def test_a_masker_of_ones_own_must_be_passed_again():
    class Own(RandomMasker):
        pass

    former = load_objective("m2d")(build("m2d").encoder, masker=Own(count=9))
    with pytest.raises(ValueError, match="'Own'.*Pass a masker of your own"):
        objectives.M2D(former.encoder, **former.config)
    again = {**former.config, "masker": Own(count=9)}
    assert objectives.M2D(former.encoder, **again).config == former.config
