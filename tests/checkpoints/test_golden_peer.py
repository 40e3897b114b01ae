"""Parity with the official codes of other labs: tests/golden/peers/.

Weights, inputs and waveforms are made by formula (tests/golden/README.md);
another folder, with a folder `peers`, can be named by SSAST_GOLDEN. Each test
takes what a file holds, and the last one asserts that no array was left out.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from peer_kit import draw, weight, wrapped
from torchaudio.compliance import kaldi

from ssast_lobes import FrontEnd
from ssast_lobes.checkpoints.convert import _peer_config
from ssast_lobes.checkpoints.format import Weights
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.peers import FAMILIES, from_peer
from ssast_lobes.lobes.spectrogram import lobe_of
from ssast_lobes.models.encoders import make_encoder
from ssast_lobes.models.heads import ClassificationHead, head_arguments
from ssast_lobes.models.patches import sincos_positions
from ssast_lobes.objectives import load_objective

FOLDER = Path(
    os.environ.get("SSAST_GOLDEN", Path(__file__).parents[1] / "golden")
)
FILES = sorted((FOLDER / "peers").glob("*.npz"))
TOKENS, LOG_MEL, DECIBELS = 2e-5, 1e-4, 1e-3
# Blocks of the quick tests.
FIRST = 1

pytestmark = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


class Case:
    """One golden file, and the checkpoint it was made with."""

    def __init__(self, path, depth=None):
        self.path = path
        self.data = dict(np.load(path))
        self.meta = json.loads(str(self.data.pop("meta")))
        self.salt = self.meta["salt"]
        name = path.stem
        self.family = max(
            (family for family in FAMILIES if name.startswith(family)), key=len
        )
        # The folder of the released file tells the geometry of M2D.
        self.folder = self.meta["checkpoint"].get("folder", "released")
        self.depth = depth
        # The largest difference of each array that was compared.
        self.checked = {}
        self.inputs = [self.input(case) for case in self.meta["cases"]]

    def state(self, finetuned=False):
        listed = dict(self.meta["state"])
        if finetuned:
            listed |= self.meta["finetuned_state"]
            if "fc_norm.weight" in self.meta["finetuned_state"]:
                listed = {
                    key: value
                    for key, value in listed.items()
                    if not key.startswith("norm.")
                }
            listed = {
                key: value
                for key, value in listed.items()
                if not key.startswith("projector.")
            }
        return {
            key: self.weight(key, tuple(shape), kind)
            for key, (shape, kind) in listed.items()
        }

    def weight(self, key, shape, kind):
        numbers = [int(part) for part in key.split(".") if part.isdigit()]
        is_block = ".layers." in key or key.startswith("blocks.")
        if self.depth and is_block and numbers[0] >= self.depth:
            # Nothing computes with it in a quick test.
            if kind != "bias_table":
                return torch.zeros(shape)
        return weight(self.salt, key, shape, kind)

    def input(self, case):
        shape = (case["batch"], case["frames"], self.meta["geometry"]["mels"])
        x = 0.5 * draw(self.salt, "input:" + case["name"], shape)
        return torch.from_numpy(x.astype(np.float32))

    def wave(self, seconds=2):
        rate = self.meta["front_end"]["wave"]["rate"]
        t = np.arange(seconds * rate, dtype=np.float64) / rate
        noise = draw_double(self.salt, "wave", len(t))
        sweep = 2 * np.pi * (100 * t + 0.5 * (7000 - 100) / seconds * t**2)
        wave = 0.3 * np.sin(sweep) + 0.05 * noise + 0.01
        return torch.from_numpy(wave.astype(np.float32))[None]

    def close(self, name, got, tolerance=TOKENS):
        """Compare with an array, if the file has it."""
        if name not in self.data:
            return
        wanted = torch.from_numpy(self.data[name])
        assert got.shape == wanted.shape, name
        self.checked[name] = float((got - wanted).abs().max())
        assert self.checked[name] <= tolerance, name

    def by_order(self, x, n_freq):
        """Patch tokens (.., N, D) in the official order."""
        if "time-major" not in self.meta["geometry"]["token_order"]:
            return x
        return x.unflatten(-2, (n_freq, -1)).transpose(-3, -2).flatten(-3, -2)

    def states(self, output):
        """All hidden states, class tokens first, in the official order."""
        patches = self.by_order(output.hidden_states, output.n_freq)
        return torch.cat([output.class_hidden_states, patches], dim=2)

    def tokens(self, output):
        patches = self.by_order(output.tokens, output.n_freq)
        return torch.cat([output.class_tokens, patches], dim=1)


def draw_double(salt, key, shape):
    seed = zlib.crc32(f"{salt}:{key}".encode())
    return np.random.RandomState(seed).standard_normal(shape)


def encoder_of(weights):
    # Drawing values takes longer than all the rest.
    with torch.device("meta"):
        encoder = make_encoder(weights.config["encoder"])
    encoder.load_state_dict(weights.part("encoder"), assign=True)
    return encoder.eval()


def with_padding(weights, frames):
    """As ``ssast-lobes convert --pad-frames`` makes it."""
    options = {"pad_frames": frames, "labels": None, "multi_label": False}
    weights = Weights(dict(weights.state), dict(weights.config), [])
    weights.config["encoder"] = dict(weights.config["encoder"])
    config = _peer_config(weights, options)
    return Weights(weights.state, config)


def loaded(case, tmp_path, state, variant=0):
    """Write a file as its owner publishes it, and read it."""
    folder = tmp_path / case.folder
    folder.mkdir(exist_ok=True)
    torch.save(wrapped(case.family, state, variant), folder / "weights.pth")
    shared = not FAMILIES[case.family].marks
    family = case.family if shared else None
    weights = load_weights(folder / "weights.pth", family=family)
    (folder / "weights.pth").unlink()
    return weights


@torch.no_grad()
def test_golden_peer_first_blocks(path):
    """Patches, positions, norms before the blocks, and the first blocks."""
    case = Case(path, FIRST)
    content = wrapped(case.family, case.state())
    file = Path(case.folder) / "weights.pth"
    weights = from_peer(content, file, case.family)
    encoder = encoder_of(weights)
    encoder.blocks = encoder.blocks[:FIRST]
    for number, feats in enumerate(case.inputs):
        name = f"case{number}_"
        if name + "first_mean" not in case.data:
            continue
        # The first clip alone, and what the file has of it.
        for array in ("first_mean", "first_tokens"):
            case.data[name + array] = case.data[name + array][:1]
        states = case.states(encoder(feats[:1], hidden_states=True))
        case.close(name + "first_mean", states[0].mean(1))
        case.close(name + "first_tokens", states[0][:, ::32])
        wanted = torch.from_numpy(case.data[name + "layer_mean"][:FIRST, :1])
        assert (states[1:].mean(2) - wanted).abs().max() <= TOKENS
    assert case.checked


def test_golden_peer_features(path):
    check_features(path)


@torch.no_grad()
def check_features(path):
    """Compare the front end, and return the `Case`."""
    case = Case(path, FIRST)
    family = FAMILIES[case.family]
    if case.family in ("dasheng", "m2d"):
        # Their statistics are in the checkpoint.
        content = wrapped(case.family, case.state())
        weights = from_peer(content, Path(case.folder) / "x", case.family)
        features = weights.config["features"]
    else:
        features = {"n_mels": family.n_mels, **family.features}
    front = FrontEnd(**features)
    wave = case.wave()
    assert abs(wave.double().sum() - float(case.data["wave_sum"][0])) < 1e-4
    raw, _ = front.fbank(wave)
    normalized = front.norm(raw)[0, ::8]
    raw = raw[0, ::8]
    case.close("lms_raw", raw, LOG_MEL)
    case.close("mel_db", raw, DECIBELS)
    case.close("mel_raw", (raw + 4.5) / 5, LOG_MEL)
    for name in ("fbank", "lms", "mel"):
        case.close(f"{name}_normalised", normalized, LOG_MEL)
    if "mel_bank" in case.data:
        case.close("mel_bank", front.fbank.mel_filters.t(), 1e-6)
    if "fbank_raw" in case.data:
        # float32 tells quiet bins to 3e-4 of each other on two machines, so
        # the official function may be as far from the golden numbers here.
        here = kaldi_here(case, wave)
        wanted = torch.from_numpy(case.data["fbank_raw"])
        rounding = (here[::8] - wanted).abs().max()
        assert rounding < 1e-3
        case.close("fbank_raw", raw, LOG_MEL + rounding)
        assert (raw - here[::8]).abs().max() < LOG_MEL + rounding
    return case


def kaldi_here(case, wave):
    """Features by the function that the official code calls."""
    settings = {"num_mel_bins": 128, "dither": 0.0, "frame_shift": 10}
    settings["sample_frequency"] = 16000
    if case.family == "beats":
        return kaldi.fbank(wave * 2**15, **settings)
    settings |= {"htk_compat": True, "use_energy": False}
    wave = wave - wave.mean()
    return kaldi.fbank(wave, window_type="hanning", **settings)


@pytest.mark.slow
def test_golden_peer_everything(path, tmp_path):
    """All arrays of a file, from a file as the owner publishes it."""
    case = check_everything(path, tmp_path)
    # Front ends have a test of their own.
    others = ("fbank_", "lms_", "mel_", "wave_sum", "frame_")
    left = [
        name
        for name in case.data.keys() - case.checked.keys()
        if not name.startswith(others) and not name.endswith("_input_sum")
    ]
    assert not left


@torch.no_grad()
def check_everything(path, tmp_path):
    """Compare all arrays but those of the front end; return the `Case`."""
    case = Case(path)
    weights = loaded(
        case, tmp_path, case.state(), variant=path.stem.endswith("small")
    )
    encoder = encoder_of(weights)
    lobe = lobe_of(weights, "clip").eval()
    check_cases(case, encoder, lobe)
    check_waves(case, weights, lobe)
    if "finetuned_state" in case.meta:
        check_finetuned(case, tmp_path)
    if case.family == "beats":
        check_beats(case, encoder, lobe)
    if case.family == "audiomosaic":
        check_projector(case, encoder, lobe)
    if "official_positions" in case.data:
        check_tables(case)
    return case


def check_cases(case, encoder, lobe):
    for number, feats in enumerate(case.inputs):
        name, given = f"case{number}_", case.meta["cases"][number]
        wanted_sum = float(case.data[name + "input_sum"][0])
        assert abs(feats.double().sum() - wanted_sum) < 1e-2
        if case.family == "audiomosaic" and number == 1:
            continue
        lengths = torch.tensor(given.get("lengths", [given["frames"]] * 2))
        padded = bool((lengths < given["frames"]).any())
        n_frames = lengths if padded else None
        mlp = []
        hooks = [
            block.mlp.register_forward_hook(
                lambda _, __, y, outputs=mlp: outputs.append(y)
            )
            for block in encoder.blocks
        ]
        output = encoder(feats, n_frames, hidden_states=True)
        for hook in hooks:
            hook.remove()
        tokens, states = case.tokens(output), case.states(output)
        if padded:
            # What the official code gives at padding is nobody's.
            classes = torch.ones(2, encoder.n_class_tokens, dtype=torch.bool)
            real = torch.cat([classes, output.is_token], 1)[:, ::16, None]
            wanted = torch.from_numpy(case.data[name + "tokens"]) * real
            case.data[name + "tokens"] = wanted.numpy()
        case.close(name + "tokens", tokens[:, ::16])
        case.close(name + "first_mean", states[0].mean(1))
        case.close(name + "first_tokens", states[0][:, ::32])
        case.close(name + "layer_mean", states[1:].mean(2))
        case.close(name + "ffn_mean", torch.stack(mlp).mean(2))
        case.close(name + "class", output.class_tokens[:, :1].flatten(1))
        case.close(name + "mean", output.clip("mean"))
        # By band, lowest first, at each time.
        frames = output.patches.transpose(1, 2).flatten(2)
        case.close(name + "frames", frames[:, ::8])
        normed = encoder(feats, n_frames, hidden_states="normed")
        contextual = case.states(normed)[-3:].mean(0)
        case.close(name + "contextual", contextual[:, ::32])
        if case.family not in ("audiomae", "maskspec"):
            # Their clip vector is that of the fine-tuned graph.
            states = lobe.pooling.needs_hidden_states
            pooled = lobe.pooling(normed if states else output)
            case.close(name + "clip", pooled)


def check_waves(case, weights, lobe):
    wave = case.wave()
    finetuned = case.family in ("audiomae", "maskspec")
    if not finetuned:
        case.close("wave_clip", lobe(wave)[:, 0])
    output = lobe.extract_features(wave)
    tolerance = TOKENS
    if case.family == "beats":
        here = lobe.features.norm(kaldi_here(case, wave)[None])
        rounded = case.tokens(lobe.encoder(here))[:, ::8]
        wanted = torch.from_numpy(case.data["wave_tokens"])
        tolerance = max(TOKENS, float((rounded - wanted).abs().max()))
        assert tolerance < 1e-4
    case.close("wave_tokens", case.tokens(output)[:, ::8], tolerance)
    bands = output.patches.transpose(1, 2).flatten(2)
    every = 16 if case.family == "atst_frame" else 8
    case.close("wave_frames", bands[:, ::every])
    for frames in (592, 1024):
        name = f"wave_clip_padded{frames}"
        if name in case.data and not finetuned:
            there = lobe_of(with_padding(weights, frames), "clip").eval()
            case.close(name, there(wave)[:, 0])
    if "wave_clip_rounded" in case.data:
        frames = -(-lobe.features.fbank.frames_of(wave.shape[1]) // 16) * 16
        there = lobe_of(with_padding(weights, frames), "clip").eval()
        case.close("wave_clip_rounded", there(wave)[:, 0])
    if "long_wave_clip" in case.data:
        long = case.wave(8 if case.family in ("m2d", "atst_clip") else 12)
        case.close("long_wave_clip", lobe(long)[:, 0])
        joined = lobe.extract_features(long)
        case.close("long_wave_tokens", case.tokens(joined)[:, ::64])
    if case.family == "audiomosaic":
        there = with_padding(weights, 512)
        encoder = encoder_of(there)
        positions = case.by_order(
            encoder.positions.table.detach().flatten(0, 1), 8
        )
        rows = torch.cat([encoder.class_positions, positions])
        case.close("case1_positions", rows[::8])
        output = encoder(case.inputs[1])
        case.close("case1_tokens", case.tokens(output)[:, ::16])
        case.close("case1_clip", lobe.pooling(output))


def check_finetuned(case, tmp_path):
    weights = loaded(case, tmp_path, case.state(finetuned=True))
    assert weights.config["kind"] == "classifier"
    head = ClassificationHead(**head_arguments(weights.config))
    head.load_state_dict(weights.part("head"))
    lobe = lobe_of(weights, "clip")
    pooled = lobe.pooling(lobe.encoder(case.inputs[0]))
    case.close("case0_logits", head(pooled))
    if case.family != "audiomosaic":
        case.close("case0_clip", head.norm(pooled))
        there = lobe_of(with_padding(weights, 1024), "clip").eval()
        case.close("wave_clip_padded1024", head.norm(there(case.wave())[:, 0]))


def check_beats(case, encoder, lobe):
    bias = encoder._bias(torch.arange(512)[None])[0, :, 0, ::32]
    case.close("bias_0", bias)
    # The official code spreads the mask of samples over tokens by proportion,
    # so that a time may be audio in its lower bands only.
    wave = case.wave().repeat(2, 1)
    wave[1, 19200:] = 0
    feats, _ = lobe.features(wave)
    valid = torch.from_numpy(case.data.pop("padded_valid")) > 0
    n_time = valid.shape[1] // 8
    place = torch.arange(valid.shape[1])
    # The official order is that of time.
    index = place % 8 * n_time + place // 8
    keep = index.expand(2, -1), valid
    output = encoder(feats, keep=keep)
    real = valid[:, ::8, None]
    wanted = torch.from_numpy(case.data["padded_tokens"]) * real
    case.data["padded_tokens"] = wanted.numpy()
    # float32 rounds the official features here by more than there.
    here = torch.stack([kaldi_here(case, clip[None]) for clip in wave])
    there = encoder(lobe.features.norm(here), keep=keep)
    rounding = float((there.tokens[:, ::8] - wanted).abs().max())
    assert rounding < 1e-4
    case.close("padded_tokens", output.tokens[:, ::8], max(TOKENS, rounding))
    case.close("padded_clip", output.clip())


def check_projector(case, encoder, lobe):
    """Ours has no gain after its last norm; all else is the same."""
    pooled = lobe.pooling(encoder(case.inputs[0]))
    ours = load_objective("audiomosaic")(encoder).projector.eval()
    names = {
        "fc_norm.": "0.",
        "projector.0.": "1.",
        "projector.1.weight": "2.scale",
        "projector.1.bias": "2.offset",
        "projector.1.running_mean": "2.running_mean",
        "projector.1.running_var": "2.running_variance",
        "projector.3.": "4.",
        "projector.4.running_mean": "5.running_mean",
        "projector.4.running_var": "5.running_variance",
    }
    state = case.state()
    ours.load_state_dict(
        {
            key.replace(theirs, name): value
            for theirs, name in names.items()
            for key, value in state.items()
            if key.startswith(theirs)
        }
    )
    gain, offset = (state[f"projector.4.{x}"] for x in ("weight", "bias"))
    case.close("case0_z", ours(pooled) * gain + offset)


def check_tables(case):
    """What is stored as fixed positions; we read, and never compute it."""
    dim = case.meta["geometry"]["dim"]
    if case.family == "eat":
        rows = sincos_positions(8, 768, dim).transpose(0, 1).flatten(0, 1)
        case.close("official_positions", rows[::192], 1e-4)
        return
    if case.family in ("audiomae", "audiomosaic"):
        # The grid the wrong way round.
        rows = sincos_positions(64, 8, dim).transpose(0, 1).flatten(0, 1)
    else:
        mels, (bins, frames) = (
            case.meta["geometry"]["mels"],
            case.meta["geometry"]["patch"],
        )
        steps = case.meta["geometry"]["training_frames"] // frames
        rows = sincos_positions(steps, mels // bins, dim)
        rows = rows.transpose(0, 1).flatten(0, 1)
    rows = torch.cat([torch.zeros(1, dim), rows])
    case.close("official_positions", rows[::16], 2e-5)
