"""What the card of a training tells of where its weights came from."""

import sys

import pytest
import torch
from export_kit import export, make_classifier
from peer_kit import tiny, wrapped

from ssast_lobes import FrontEnd, SpectrogramEncoder
from ssast_lobes.checkpoints.folder import export_pretrained
from ssast_lobes.objectives import load_objective
from ssast_lobes.training import model_card

ROWS = {
    "corpus": "barks",
    "train": {"a": {"duration": 7200.0}},
    "test": {"b": 1},
}
YAML = "recipes/Barks/classify/hparams/barks.yaml"


def test_the_objective_and_its_paper_come_with_the_weights(tmp_path):
    encoder = SpectrogramEncoder({"n_mels": 32}, dim=32, depth=1, heads=2)
    objective, features = load_objective("m2d")(encoder), FrontEnd(n_mels=32)
    source = export_pretrained(tmp_path / "m2d", objective, features, {})
    for name in ("first", "second"):
        card = model_card(YAML, ROWS, {}, source=str(source))
        assert card["pretraining"].startswith("M2D: masked modeling duo (")
        # A classifier that begins from it, and one that begins from that.
        source = export(tmp_path / name, make_classifier(), card=card)
        text = (source / "README.md").read_text()
        assert "Niizumi et al." in text and str(tmp_path) not in text
    # Without a card the heads tell.
    (tmp_path / "m2d" / "README.md").unlink()
    again = model_card(YAML, ROWS, {}, source=str(tmp_path / "m2d"))
    assert again["pretraining"] == card["pretraining"]


def test_license_and_base_model_of_the_bundled_one():
    card = model_card(YAML, ROWS, {}, source="ssast-lobes-micro-1")
    assert card["license"] == "apache-2.0"
    assert card["base_model"] == "ssast-lobes-micro-1"
    assert card["settings"]["source"] == "ssast-lobes-micro-1 (apache-2.0)"
    assert card["pretraining"].startswith("ContrastiveMSPM: ")
    assert card["data"] == "barks: 1 training clips (2.0 hours), 1 test clips"


def test_the_license_of_a_released_file_is_passed_on(tmp_path):
    path = tmp_path / "m2d.pth"
    torch.save(wrapped("m2d", tiny("m2d")), path)
    card = model_card(YAML, ROWS, {}, source=str(path))
    # A classifier that begins from the file, and one that begins from that.
    source = export(tmp_path / "tuned", make_classifier(), card=card)
    again = model_card(YAML, ROWS, {}, source=str(source))
    for told in (card, again):
        assert told["license"] == "other"
        assert "NTT's evaluation license" in told["weights"]


@pytest.mark.parametrize("typed", [True, False])
def test_the_command_is_told_where_it_was_typed(typed, monkeypatch):
    arguments = ["train.py", YAML, "--lr=0.1", "--name=two words"]
    monkeypatch.setattr(sys, "argv", arguments if typed else ["pytest"])
    card = model_card(YAML, ROWS, {}, source=None, lr=0.1, mixup=None)
    name, _, command = card["recipe"].partition("\n\n")
    assert name == "Barks/classify/hparams/barks.yaml"
    expected = f"```\npython train.py {YAML} --lr=0.1 '--name=two words'\n```"
    assert command == (expected if typed else "")
    settings = {"source": "none: random weights", "lr": 0.1}
    assert card["settings"] == settings and "license" not in card
