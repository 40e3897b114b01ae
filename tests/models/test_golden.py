"""Parity with the official SSAST and SSAMBA code: all of tests/golden/.

The weights and inputs are made by formula (tests/golden/README.md); another
folder of golden files can be named by the environment variable SSAST_GOLDEN.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from ssast_lobes import SpectrogramClassifier, SpectrogramEncoder
from ssast_lobes.checkpoints.official import from_official, to_official
from ssast_lobes.checkpoints.warm_start import initialize
from ssast_lobes.models.patches import Grid
from ssast_lobes.objectives import MSPM, MSPMReference
from ssast_lobes.objectives.maskers import ClusterMasker

FOLDER = Path(
    os.environ.get("SSAST_GOLDEN", Path(__file__).parents[1] / "golden")
)
MAMBA_FILES = sorted(FOLDER.glob("ssamba_*.npz"))
FILES = sorted(set(FOLDER.glob("*.npz")) - set(MAMBA_FILES))
TOLERANCE = 1e-4
DEPTH = 12
SIZES = {"tiny": 192, "small": 384, "base": 768}


def draw(salt, key, shape):
    seed = zlib.crc32(f"{salt}:{key}".encode())
    draws = np.random.RandomState(seed).standard_normal(shape)
    return draws.astype(np.float32)


def weight(salt, key, shape):
    x = draw(salt, key, shape)
    norms = ("norm1.weight", "norm2.weight", "norm.weight", "mlp_head.0.weight")
    if key.endswith(norms):
        return torch.from_numpy(1 + np.float32(0.1) * x)
    if key.endswith("weight") and len(shape) >= 2:
        return torch.from_numpy(
            (x / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        )
    return torch.from_numpy(np.float32(0.1) * x)


def mamba_weight(salt, key, shape):
    if key.endswith("_log"):
        states = np.log(np.arange(1, shape[1] + 1, dtype=np.float32))
        x = states + np.float32(0.1) * draw(salt, key, shape)
        return torch.from_numpy(x.astype(np.float32))
    if key.endswith(("mixer.D", "mixer.D_b", "norm_f.weight")):
        return torch.from_numpy(1 + np.float32(0.1) * draw(salt, key, shape))
    if "dt_proj" in key and key.endswith("bias"):
        return torch.from_numpy(-4 + np.float32(0.5) * draw(salt, key, shape))
    return weight(salt, key, shape)


def official_shapes(dim, patch):
    shapes = {
        "mask_embed": (1, 1, dim),
        "v.cls_token": (1, 1, dim),
        "v.dist_token": (1, 1, dim),
        "v.pos_embed": (1, 514, dim),
        "v.patch_embed.proj.weight": (dim, 1, *patch),
        "v.patch_embed.proj.bias": (dim,),
        "v.norm.weight": (dim,),
        "v.norm.bias": (dim,),
    }
    for number in range(DEPTH):
        block = f"v.blocks.{number}"
        linears = {
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "mlp.fc1": (4 * dim, dim),
            "mlp.fc2": (dim, 4 * dim),
        }
        for name, shape in linears.items():
            shapes[f"{block}.{name}.weight"] = shape
            shapes[f"{block}.{name}.bias"] = shape[:1]
        for name in ("norm1", "norm2"):
            shapes[f"{block}.{name}.weight"] = (dim,)
            shapes[f"{block}.{name}.bias"] = (dim,)
    return {**shapes, **head_shapes(dim, ("v.head", "v.head_dist"))}


def head_shapes(dim, unused):
    layers = dict.fromkeys(unused, (1000, dim))
    for name in ("cpredlayer", "gpredlayer"):
        layers[f"{name}.0"], layers[f"{name}.2"] = (dim, dim), (256, dim)
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    return shapes | {f"{name}.bias": s[:1] for name, s in layers.items()}


def official_mamba_shapes(dim, depth):
    channels, rank, state = 2 * dim, -(-dim // 16), 16
    shapes = {
        "mask_embed": (1, 1, dim),
        "v.cls_token": (1, 1, dim),
        "v.pos_embed": (1, 513, dim),
        "v.patch_embed.proj.weight": (dim, 1, 16, 16),
        "v.patch_embed.proj.bias": (dim,),
        "v.norm_f.weight": (dim,),
        "v.norm_f.bias": (dim,),
    }
    for number in range(depth):
        layer = f"v.layers.{number}"
        mixer = f"{layer}.mixer"
        shapes[f"{layer}.norm.weight"] = shapes[f"{layer}.norm.bias"] = (dim,)
        shapes[f"{mixer}.in_proj.weight"] = (2 * channels, dim)
        shapes[f"{mixer}.out_proj.weight"] = (dim, channels)
        for end in ("", "_b"):
            shapes[f"{mixer}.A{end}_log"] = (channels, state)
            shapes[f"{mixer}.D{end}"] = (channels,)
            shapes[f"{mixer}.conv1d{end}.weight"] = (channels, 1, 4)
            shapes[f"{mixer}.conv1d{end}.bias"] = (channels,)
            rows = rank + 2 * state
            shapes[f"{mixer}.x_proj{end}.weight"] = (rows, channels)
            shapes[f"{mixer}.dt_proj{end}.weight"] = (channels, rank)
            shapes[f"{mixer}.dt_proj{end}.bias"] = (channels,)
    return {**shapes, **head_shapes(dim, ("v.head",))}


class Case:
    """One golden file with the checkpoint it was made with."""

    def __init__(self, path):
        self.data = np.load(path)
        self.meta = json.loads(str(self.data["meta"]))
        self.salt = self.meta["salt"]
        self.dim = SIZES[self.meta["model_size"]]
        self.patch = (self.meta["fshape"], self.meta["tshape"])
        shapes = official_shapes(self.dim, self.patch)
        state = {
            f"module.{key}": weight(self.salt, key, shape)
            for key, shape in shapes.items()
        }
        state["module.p_input_fdim"] = torch.tensor(self.meta["input_fdim"])
        state["module.p_input_tdim"] = torch.tensor(self.meta["input_tdim"])
        self.weights = from_official(state)

    def encoder(self, stride=None):
        grid = Grid(128, self.patch, stride, keep_partial=False)
        size = SpectrogramEncoder.from_size(self.meta["model_size"]).config
        return SpectrogramEncoder(**{**size, "grid": grid})

    def input(self, name, frames):
        prefix = f"{self.meta['model_size']}-{self.meta['geometry']}"
        shape = (self.meta["pretrain_batch"], frames, 128)
        noise = draw(self.salt, f"input:{prefix}-{name}", shape)
        return torch.from_numpy(np.float32(0.5) * noise)

    def close(self, ours, name):
        theirs = torch.from_numpy(self.data[name])
        torch.testing.assert_close(
            ours.reshape(theirs.shape), theirs, atol=TOLERANCE, rtol=TOLERANCE
        )


def parameters(files):
    """The larger ones show the same, and take up to ten times as long."""
    for path in files:
        marks = [] if "tiny" in path.stem else [pytest.mark.slow]
        yield pytest.param(path, id=path.stem, marks=marks)


@pytest.fixture(scope="module", params=list(parameters(FILES)))
def case(request):
    torch.set_grad_enabled(False)
    yield Case(request.param)
    torch.set_grad_enabled(True)


def test_golden_files_are_there():
    assert FILES, f"no golden files in {FOLDER}"


def test_golden_pretraining(case):
    feats = case.input("pretrain", case.meta["input_tdim"])
    checksum = feats.double().sum().item()
    assert checksum == pytest.approx(
        float(case.data["pretrain_input_checksum"]), abs=1e-6
    )
    index = torch.from_numpy(case.data["mask_index"].astype(np.int64))
    mask = torch.zeros(len(feats), 512, dtype=torch.bool)
    mask = mask.scatter(1, index, True)

    encoder = case.encoder()
    reference = MSPMReference(encoder, case.meta["n_mask"]).eval()
    initialize(encoder, case.weights, reference)
    on_grid = mask.unflatten(1, (encoder.grid.n_freq, -1))
    output = reference(feats, mask=on_grid)
    case.close(output.logs["accuracy"], "mpc_accuracy")
    case.close(output.logs["nce"], "mpc_nce")
    case.close(output.logs["mse"], "mpg_mse")
    joint = case.data["mpc_nce"] + 10 * case.data["mpg_mse"]
    assert output.loss.item() == pytest.approx(float(joint), abs=10 * TOLERANCE)

    encoded = encoder(feats, None, on_grid, reference.mask_embedding)
    every = torch.cat([encoded.class_tokens, encoded.tokens], dim=1)
    case.close(every[:, ::16], "masked_encoder_output")

    # Clips of one length: the default objective gives the same two losses.
    ours = MSPM(encoder, ClusterMasker(count=case.meta["n_mask"])).eval()
    initialize(encoder, case.weights, ours)
    frames = torch.full((len(feats),), feats.shape[1])
    output = ours(feats, frames, on_grid)
    case.close(output.logs["nce"], "mpc_nce")
    case.close(output.logs["mse"], "mpg_mse")


def test_golden_finetuning(case):
    for number, settings in enumerate(case.meta["finetune_cases"]):
        stride = (settings["fstride"], settings["tstride"])
        feats = case.input(f"ft{number}", settings["input_tdim"])
        encoder = case.encoder(stride)
        initialize(encoder, case.weights)
        encoder.eval()
        encoded = encoder(feats, hidden_states=True)
        assert encoded.tokens.shape[1] + 2 == settings["tokens"]

        steps = encoder.grid.n_time(settings["input_tdim"])
        bands = encoder.grid.n_freq
        patches = encoder.positions(bands, torch.tensor([steps]), steps)
        table = torch.cat([encoder.class_positions[None], patches], dim=1)
        every = max(1, table.shape[1] // 32)
        case.close(table[:, ::every], f"ft{number}_pos_embed")

        states = [encoded.class_hidden_states, encoded.hidden_states]
        means = torch.cat(states, dim=2)[1:].mean(2)
        case.close(means, f"ft{number}_layer_mean")

        for pooling, name in (("mean", "avgtok"), ("class", "cls")):
            model = SpectrogramClassifier(encoder, 35, pooling).eval()
            for layer, key in ((model.head.norm, 0), (model.head.linear, 1)):
                for part in ("weight", "bias"):
                    value = getattr(layer, part)
                    official = f"mlp_head.{key}.{part}"
                    value.data = weight(case.salt, official, value.shape)
            case.close(model(feats), f"ft{number}_logits_{name}")


@pytest.mark.parametrize("path", parameters(MAMBA_FILES))
@torch.no_grad()
def test_golden_ssamba(path):
    data = np.load(path)
    meta = json.loads(str(data["meta"]))
    salt, dim = meta["salt"], meta["embed_dim"]
    shapes = official_mamba_shapes(dim, meta["depth"])
    assert len(shapes) + 2 == 451
    state = {
        f"module.{key}": mamba_weight(salt, key, shape)
        for key, shape in shapes.items()
    }
    state["module.p_input_fdim"] = torch.tensor(meta["input_fdim"])
    state["module.p_input_tdim"] = torch.tensor(meta["input_tdim"])
    weights = from_official(state)
    assert len(weights.report) == 2  # v.head
    back = to_official(weights)
    assert state.keys() - back.keys() == {
        "module.v.head.weight",
        "module.v.head.bias",
    }
    assert all(torch.equal(value, state[key]) for key, value in back.items())

    prefix = f"ssamba-{meta['model_size']}"
    noise = draw(salt, f"input:{prefix}-pretrain", (1, 1024, 128))
    feats = torch.from_numpy(np.float32(0.5) * noise)
    checksum = feats.double().sum().item()
    assert checksum == pytest.approx(
        float(data["pretrain_input_checksum"]), abs=1e-6
    )
    encoder = SpectrogramEncoder(**weights.config["encoder"])
    size = f"ssamba_{meta['model_size']}_reference"
    assert encoder.config == SpectrogramEncoder.from_size(size).config
    reference = MSPMReference(encoder, meta["n_mask"]).eval()
    report = initialize(encoder, weights, reference)
    assert "pretext heads loaded" in report
    mask = torch.zeros(1, 512, dtype=torch.bool)
    mask[0, torch.from_numpy(data["mask_index"][0].astype(np.int64))] = True
    mask = mask.unflatten(1, (8, 64))

    def close(ours, name):
        theirs = torch.from_numpy(data[name])
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)

    output = reference(feats, mask=mask)
    close(output.logs["accuracy"], "mpc_accuracy")
    close(output.logs["nce"], "mpc_nce")
    close(output.logs["mse"], "mpg_mse")
    encoded = encoder(feats)
    close(encoded.clip("mean"), "avgtok")
    close(encoded.clip("class"), "cls")
    # Counted as full, the clip takes the path of padded ones.
    counted = encoder(feats, torch.tensor([1024]))
    torch.testing.assert_close(counted.tokens, encoded.tokens)
