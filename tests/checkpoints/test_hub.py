"""Exported folders on a hub: whole there, read from there by their name.

The client runs in a process of its own, since it looks at its environment
when it is imported, against a hub on loopback.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import soundfile
import torch
import yaml
from fake_hub import TOKEN, FakeHub
from safetensors.torch import load_file, save_file

from ssast_lobes import FrontEnd, SpectrogramClassifier, SpectrogramEncoder
from ssast_lobes.checkpoints.folder import (
    export_classifier,
    export_pretrained,
    label_encoder_of,
)
from ssast_lobes.checkpoints.format import EXPORT_FILES, HubError, WeightsError
from ssast_lobes.checkpoints.huggingface_export import to_huggingface
from ssast_lobes.checkpoints.linear_heads import LinearHead, write_head
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.model_card import hub_card
from ssast_lobes.checkpoints.push import push_to_hub
from ssast_lobes.cli import main
from ssast_lobes.inference import AudioClassifier, AudioEncoder
from ssast_lobes.objectives import MSPM

CARD = {
    "data": "900 barks",
    "metrics": {"loss": 0.5, "accuracy": 0.9, "uar": 0.8},
}


def make_encoder():
    return SpectrogramEncoder(dim=64, depth=1, heads=1, table_frames=128)


def export(folder, name="class"):
    model = SpectrogramClassifier(make_encoder(), 2, pooling=name).eval()
    labels = label_encoder_of(["bark", "meow"])
    return export_classifier(folder, model, FrontEnd(), labels, False, CARD)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Exports of both kinds, a Hugging Face folder, and a wav."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    export(folder / "export")
    objective = MSPM(make_encoder())
    export_pretrained(folder / "pretrained", objective, FrontEnd(), card={})
    head = LinearHead(torch.ones(2, 64), torch.zeros(2), ["bark", "meow"])
    write_head(folder / "pretrained", "pets", head)
    to_huggingface(load_weights(folder / "export"), folder / "theirs")
    soundfile.write(folder / "audio.wav", torch.randn(9000).numpy() / 9, 16000)
    return folder


def as_client(code, folder, endpoint, token=TOKEN):
    """Run code in a process that knows the hub; what it puts in `found`."""
    program = f"found = {{}}\n{textwrap.dedent(code)}\nimport json, sys\n"
    program += "json.dump(found, open('found.json', 'w'))\n"
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": token,
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


PUSH = """
import io
import logging
import re

from huggingface_hub import hf_hub_download, scan_cache_dir
from ssast_lobes import SSAST
from ssast_lobes.checkpoints.push import push_to_hub
from ssast_lobes.inference import AudioClassifier, AudioEncoder, SpeakerVerifier

def told(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except Exception as error:
        return [type(error).__name__, str(error)]

said = io.StringIO()
logging.getLogger("ssast_lobes").addHandler(logging.StreamHandler(said))
found["commit"] = push_to_hub(
    "export",
    "me/barks",
    license="cc-by-4.0",
    datasets=["me/kennel"],
    tags=["dogs"],
)
push_to_hub("pretrained", "me/ear", license="mit", private=True)
found["warnings"] = said.getvalue()
classifier = AudioClassifier.from_hparams("me/barks")
found["scores"] = classifier.classify_file("audio.wav").scores
revision = found["commit"].rpartition("/")[2]
pinned = AudioClassifier.from_hparams(f"me/barks@{revision}")
found["pinned"] = pinned.classify_file("audio.wav").scores
ear = AudioEncoder.from_hparams("me/ear")
found["clip"] = ear.encode_file("audio.wav").tolist()
verifier = SpeakerVerifier.from_hparams("me/ear@main")
found["likeness"] = verifier.verify_files("audio.wav", "audio.wav").score
found["lobe"] = SSAST(source="me/barks", output="clip").output_size
found["cards"] = {}
for repo in ("me/barks", "me/ear"):
    with open(hf_hub_download(repo, "README.md")) as file:
        blocks = re.findall(r"```python\\n(.*?)```", file.read(), re.S)
    known = {}
    for block in blocks:
        exec(block, known)
    found["cards"][repo] = [blocks, sorted(known)]
found["theirs"] = AudioClassifier.from_hparams("they/ast").labels
older = AudioClassifier.from_hparams("they/older-ast")
found["older"] = older.classify_file("audio.wav").scores
files = scan_cache_dir().repos
found["files"] = {
    repo.repo_id: sorted(
        file.file_name for version in repo.revisions for file in version.files
    )
    for repo in files
    if repo.repo_id.startswith("they/")
}
found["errors"] = {
    "no repository": told(AudioClassifier.from_hparams, "me/none"),
    "no revision": told(AudioClassifier.from_hparams, "me/barks@v9"),
    "no export": told(AudioClassifier.from_hparams, "they/novel"),
    "no classes": told(AudioClassifier.from_hparams, "me/ear"),
    "unknown token": told(AudioClassifier.from_hparams, "they/401"),
    "forbidden": told(AudioClassifier.from_hparams, "they/403"),
    "token": told(push_to_hub, "export", "me/x", license="mit", token="hf_x"),
    "name": told(push_to_hub, "export", "me/x/y", license="mit"),
    "away": told(
        push_to_hub,
        "export",
        "me/x",
        license="mit",
        endpoint="http://127.0.0.1:9",
    ),
}
"""


def pickled(folder):
    """The weights of a folder as transformers wrote them until 2023."""
    content = io.BytesIO()
    torch.save(load_file(folder / "model.safetensors"), content)
    return content.getvalue()


@pytest.fixture(scope="module")
def session(place):
    """What a client found that pushes and loads, and the hub after it."""
    with FakeHub() as hub:
        theirs = {x.name: x.read_bytes() for x in (place / "theirs").iterdir()}
        bins = {**theirs, "pytorch_model.bin": pickled(place / "theirs")}
        hub.add("they/ast", bins)
        del bins["model.safetensors"]
        hub.add("they/older-ast", bins)
        hub.add("they/novel", {"README.md": b"Call me Ishmael."})
        hub.closed.update({"they/401": 401, "they/403": 403})
        yield as_client(PUSH, place, hub.address), hub


def test_a_pushed_folder_is_whole(place, session):
    found, hub = session
    [(sha, files)] = hub.commits["me/barks"]
    assert found["commit"] == f"{hub.address}/me/barks/commit/{sha}"
    assert sorted(files) == sorted(EXPORT_FILES)
    for name in EXPORT_FILES:
        if name != "README.md":
            assert files[name] == (place / "export" / name).read_bytes()
    [(_, files)] = hub.commits["me/ear"]
    assert sorted(files) == sorted({*EXPORT_FILES} - {"label_encoder.txt"})
    assert hub.private == {"me/barks": False, "me/ear": True}


def test_interfaces_and_lobe_load_by_name(place, session):
    found, _ = session
    local = AudioClassifier.from_hparams(place / "export")
    wanted = local.classify_file(place / "audio.wav").scores
    assert found["scores"] == found["pinned"] == pytest.approx(wanted)
    ear = AudioEncoder.from_hparams(place / "pretrained")
    clip = ear.encode_file(place / "audio.wav").tolist()
    assert found["clip"] == pytest.approx(clip)
    assert found["likeness"] == pytest.approx(1)
    assert found["lobe"] == 64
    assert found["theirs"] == ["bark", "meow"]
    theirs = AudioClassifier.from_hparams(place / "theirs")
    wanted = theirs.classify_file(place / "audio.wav").scores
    assert found["older"] == pytest.approx(wanted)
    plain = ["config.json", "preprocessor_config.json"]
    assert found["files"]["they/ast"] == sorted([*plain, "model.safetensors"])
    assert found["files"]["they/older-ast"] == [*plain, "pytorch_model.bin"]


ERRORS = {
    "no repository": r"^me/none: no such file or folder, nor .*; "
    r"http://127\S+ shows no repository me/none: check the name",
    "no revision": r"^me/barks@v9: .* has no such revision$",
    "no export": r"^they/novel: .* not an exported folder, config.json and "
    "model.safetensors missing$",
    "no classes": "^me/ear/model.safetensors: .* has no classes",
    "unknown token": r"^they/401: .* does not let you read they/401: log in",
    "forbidden": r"^they/403: .* does not let you read they/403: log in",
    "token": r"^export was not pushed: .*: log in with `hf auth login`",
    "name": r"^export was not pushed: me/x/y is no name of a repository",
    "away": r"^export was not pushed: http://127.0.0.1:9 cannot be reached",
}


def test_heads_that_are_not_pushed_are_told(session):
    warnings = session[0]["warnings"]
    assert "pretrained/heads is not pushed: heads are local" in warnings


@pytest.mark.parametrize("case", ERRORS)
def test_one_clear_error(session, case):
    kind, message = session[0]["errors"][case]
    assert kind in ("HubError", "WeightsError")
    assert re.search(ERRORS[case], message)
    assert "\n" not in message


def test_the_card_on_the_hub_runs_as_printed(session):
    for repo, made in (
        ("me/barks", {"result", "label"}),
        ("me/ear", {"clip", "frames"}),
    ):
        blocks, known = session[0]["cards"][repo]
        assert len(blocks) == 2 and all(repo in block for block in blocks)
        assert made <= set(known)


@pytest.mark.slow
def test_what_was_fetched_is_there_without_network(place, session):
    found, _ = session
    code = (
        PUSH.partition("found[")[0]
        + """
classifier = AudioClassifier.from_hparams("me/barks")
found["scores"] = classifier.classify_file("audio.wav").scores
found["other"] = told(AudioClassifier.from_hparams, "me/other")
"""
    )
    away = as_client(code, place, "http://127.0.0.1:9")
    assert away["scores"] == found["scores"]
    kind, message = away["other"]
    assert kind == "HubError"
    assert "http://127.0.0.1:9 cannot be reached" in message


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_told(session, tmp_path):
    (tmp_path / "home").write_text("no folder")
    code = """
from ssast_lobes.checkpoints.hub import fetch
from ssast_lobes.checkpoints.format import HubError
try:
    fetch("they/ast")
except HubError as error:
    found["error"] = str(error)
"""
    error = as_client(code, tmp_path, session[1].address)["error"]
    assert "cannot be reached" not in error
    assert "Not a directory: '" in error and "hub" in error
    assert error.endswith("HF_HOME names another") and "\n" not in error


def test_offline_nothing_is_asked(place, capsys):
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        load_weights("me/none")
    wav = str(place / "audio.wav")
    assert main(["classify", "me/none", wav]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ssast-lobes classify: me/none: no such file")
    assert error.count("\n") == 1


def test_front_matter_and_use_on_the_hub(place):
    text = (place / "export" / "README.md").read_text("utf-8")
    text += "\n## Thanks\n\nTo all dogs.\n"
    card = hub_card(
        text, "classifier", "me/barks", "mit", ["d"], ["audio", "x"]
    )
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "mit",
        "library_name": "speechbrain",
        "pipeline_tag": "audio-classification",
        "tags": ["audio", "self-supervised", "ssast_lobes", "x"],
        "metrics": ["accuracy", "uar"],
        "datasets": ["d"],
    }
    assert 'from_hparams(source="me/barks")' in body
    assert '"export"' not in body and "next to the folder" not in body
    assert "900 barks" in body and body.endswith("## Thanks\n\nTo all dogs.\n")
    # What stands in the front matter counts; what is given counts more.
    again = hub_card(card, "classifier", "me/woof")
    assert yaml.safe_load(again.split("---\n")[1]) == yaml.safe_load(head)
    assert "license: apache-2.0" in hub_card(
        card, "classifier", "a/b", "apache-2.0"
    )


def test_a_card_without_license_or_sense_is_refused(place, tmp_path):
    with pytest.raises(HubError, match="names no license: give one"):
        push_to_hub(place / "export", "me/barks")
    with pytest.raises(HubError, match="names no license"):
        hub_card("# My own\n", "classifier", "me/barks")
    card = hub_card("# My own\n", "classifier", "me/barks", "mit")
    assert card == "---\nlicense: mit\n---\n# My own\n"
    for damaged in ("---\n{\n---\n# x\n", "---\n- a\n---\n# x\n"):
        with pytest.raises(HubError, match="front matter is damaged"):
            hub_card(damaged, "classifier", "me/barks", "mit")


def test_only_a_whole_export_is_pushed(place, tmp_path):
    folder = tmp_path / "export"

    def refused(message, source=folder):
        with pytest.raises(WeightsError, match=message):
            push_to_hub(source, "me/barks", license="mit")

    refused("nowhere: not an exported folder", tmp_path / "nowhere")
    refused("theirs: not an exported folder", place / "theirs")
    for name in EXPORT_FILES[2:]:
        shutil.copytree(place / "export", folder)
        (folder / name).unlink()
        refused(f"export: {re.escape(name)} missing: export it again")
        shutil.rmtree(folder)
    shutil.copytree(place / "export", folder)
    state = load_file(folder / "model.safetensors")
    del state["head.linear.bias"]
    save_file(state, folder / "model.safetensors")
    refused("export: head: missing linear.bias")
