"""Checkpoints of other labs by formula, wrapped as their owners wrap them.

The formulas are those of tests/golden/README.md; `tiny` makes small ones.
"""

import argparse
import functools
import zlib

import numpy as np
import torch

BIAS_TABLE = "encoder.layers.0.self_attn.relative_attention_bias.weight"
# M2D's statistics; other values that the official code sets are left out.
KEPT = {"norm_stats": [-7.1, 4.2]}
BEATS_CONFIG = {
    "encoder_layers": 2,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 256,
    "encoder_attention_heads": 2,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "conv_bias": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": True,
    "num_buckets": 320,
    "max_distance": 800,
    "gru_rel_pos": True,
    "deep_norm": True,
    "input_patch_size": 16,
    "embed_dim": 48,
    "finetuned_model": False,
}
FAMILIES = (
    *("eat", "m2d", "atst_frame", "atst_clip", "audiomae", "maskspec"),
    *("dasheng", "asit", "audiomosaic", "beats"),
)


def draw(salt, key, shape):
    seed = zlib.crc32(f"{salt}:{key}".encode())
    draws = np.random.RandomState(seed).standard_normal(shape)
    return draws.astype(np.float32)


def weight(salt, key, shape, kind):
    """A tensor by the name of its formula."""
    if kind == "kept":
        return torch.tensor(KEPT.get(key, np.zeros(shape, np.float32)))
    if kind == "bias_table":
        key = BIAS_TABLE
    x, tenth = draw(salt, key, shape), np.float32(0.1)
    if kind in ("norm", "scale"):
        x = 1 + tenth * x
    elif kind == "matrix":
        x = x / np.sqrt(np.prod(shape[1:]))
    elif kind in ("vector", "mean"):
        x = tenth * x
    elif kind == "variance":
        x = 1 + tenth * abs(x)
    elif kind == "bn_mean":
        x = -20 + 5 * x
    elif kind == "bn_variance":
        x = 400 * (1 + tenth * abs(x))
    else:
        assert kind == "bias_table"
        x = np.float32(0.5) * x
    return torch.from_numpy(np.asarray(x, np.float32))


def kind_of(key, shape):
    """The formula of a tensor of a `tiny` checkpoint, by its name."""
    if key == "norm_stats" or key.endswith("num_batches_tracked"):
        return "kept"
    if key.endswith("running_var"):
        return "bn_variance" if key.startswith("init_bn") else "variance"
    if key.endswith("running_mean"):
        return "bn_mean" if key.startswith("init_bn") else "mean"
    if key.endswith("relative_attention_bias.weight"):
        return "bias_table"
    if key.endswith("weight_g") or key.endswith("grep_a"):
        return "scale"
    if key.endswith(("weight", "weight_v")):
        return "matrix" if len(shape) > 1 else "norm"
    return "vector"


def _blocks(dim, depth, qkv_bias=True):
    shapes = {}
    for number in range(depth):
        block = f"blocks.{number}"
        layers = {
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "mlp.fc1": (4 * dim, dim),
            "mlp.fc2": (dim, 4 * dim),
            "norm1": (dim,),
            "norm2": (dim,),
        }
        for name, shape in layers.items():
            shapes[f"{block}.{name}.weight"] = shape
            if name != "attn.qkv" or qkv_bias:
                shapes[f"{block}.{name}.bias"] = shape[:1]
    return shapes


def _layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _beats(cfg):
    dim, patch = cfg["encoder_embed_dim"], cfg["embed_dim"]
    heads = cfg["encoder_attention_heads"]
    shapes = {
        "patch_embedding.weight": (patch, 1, 16, 16),
        **_layer("layer_norm", patch),
        **_layer("post_extract_proj", dim, patch),
        "encoder.pos_conv.0.bias": (dim,),
        "encoder.pos_conv.0.weight_g": (1, 1, 128),
        "encoder.pos_conv.0.weight_v": (dim, dim // 16, 128),
        **_layer("encoder.layer_norm", dim),
    }
    for number in range(cfg["encoder_layers"]):
        layer = f"encoder.layers.{number}."
        attention = f"{layer}self_attn."
        for name in "qkv":
            shapes |= _layer(f"{attention}{name}_proj", dim, dim)
        shapes |= _layer(f"{attention}out_proj", dim, dim)
        shapes |= _layer(f"{attention}grep_linear", 8, dim // heads)
        shapes[f"{attention}grep_a"] = (1, heads, 1, 1)
        shapes[f"{attention}relative_attention_bias.weight"] = (
            cfg["num_buckets"],
            heads,
        )
        shapes |= _layer(f"{layer}self_attn_layer_norm", dim)
        shapes |= _layer(f"{layer}fc1", cfg["encoder_ffn_embed_dim"], dim)
        shapes |= _layer(f"{layer}fc2", dim, cfg["encoder_ffn_embed_dim"])
        shapes |= _layer(f"{layer}final_layer_norm", dim)
    return shapes


def tiny_shapes(family, dim=64, depth=2):
    """Names and shapes of a small model, as its official class has them."""
    if family == "beats":
        return _beats(BEATS_CONFIG)
    if family == "eat":
        image = "modality_encoders.IMAGE."
        return {
            **_layer(f"{image}local_encoder.proj", dim, 1, 16, 16),
            f"{image}extra_tokens": (1, 1, dim),
            f"{image}fixed_positional_encoder.positions": (1, 8 * 96, dim),
            **_layer(f"{image}context_encoder.norm", dim),
            **_blocks(dim, depth),
        }
    if family.startswith("atst"):
        norm = "norm_frame" if family == "atst_frame" else "norm"
        shapes = {
            **_layer("patch_embed.patch_embed", dim, 256),
            "mask_embed": (1, 1, dim),
            "pos_embed": (1, 251, dim),
            **_layer(norm, dim),
            **_blocks(dim, depth, qkv_bias=False),
        }
        own = family == "atst_clip"
        return {**shapes, **({"cls_token": (1, 1, dim)} if own else {})}
    if family == "dasheng":
        return {
            "time_pos_embed": (1, dim, 1, 252),
            "freq_pos_embed": (1, dim, 1, 1),
            "front_end.0.spectrogram.window": (512,),
            "front_end.0.mel_scale.fb": (257, 64),
            **_layer("init_bn.1", 64),
            "init_bn.1.running_mean": (64,),
            "init_bn.1.running_var": (64,),
            "init_bn.1.num_batches_tracked": (),
            **_layer("patch_embed.proj", dim, 1, 64, 4),
            **_layer("norm", dim),
            **_blocks(dim, depth),
        }
    rows = {"m2d": 5 * 38, "asit": 37 * 8, "maskspec": 62 * 8}
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 1 + rows.get(family, 512), dim),
        **_layer("patch_embed.proj", dim, 1, 16, 16),
        **_blocks(dim, depth),
    }
    if family == "m2d":
        shapes["norm_stats"] = (2,)
    if family == "audiomosaic":
        shapes |= _layer("patch_embed.norm", dim) | _layer("norm_pre", dim)
        return {
            **shapes,
            **_layer("fc_norm", dim),
            "projector.0.weight": (9, 9),
        }
    return {**shapes, **_layer("norm", dim)}


def tiny(family, salt="tiny", **sizes):
    """The state of a small model, every tensor by formula."""
    return _by_formula(salt, tiny_shapes(family, **sizes))


def finetuned(family, state, n_classes=3):
    """The state of a fine-tuned model from that of a pretrained one."""
    norm = {"maskspec": "norm.", "audiomae": "norm."}.get(family, "projector.")
    state = {k: v for k, v in state.items() if not k.startswith(norm)}
    dim = state["blocks.0.norm1.bias"].shape[0]
    head = _layer("head", n_classes, dim) | _layer("fc_norm", dim)
    for key, shape in head.items():
        state.setdefault(key, weight("head", key, shape, kind_of(key, shape)))
    return state


def mae_decoder(family, dim=64, width=32, depth=1):
    """A decoder as published; of AudioMAE in name only."""
    outputs = dim if family == "m2d" else 256
    shapes = {
        "mask_token": (1, 1, width),
        "decoder_pos_embed": (1, 5, width),
        **_layer("decoder_embed", width, dim),
        **{f"decoder_{k}": v for k, v in _blocks(width, depth).items()},
        **_layer("decoder_norm", width),
        **_layer("decoder_pred", outputs, width),
    }
    return _by_formula("decoder", shapes)


@functools.cache
def byol_head(name, dim):
    """The projector or predictor of ATST as published, 4096 and 256 of 768."""
    hidden, out = round(dim * 16 / 3), round(dim / 3)
    start = f"model.{'teacher' if name == 'projector' else 'student'}.{name}"
    before = dim if name == "projector" else out
    shapes = {
        f"{start}.0.weight": (hidden, before),
        **_layer(f"{start}.1", hidden),
        f"{start}.1.running_mean": (hidden,),
        f"{start}.1.running_var": (hidden,),
        f"{start}.1.num_batches_tracked": (),
        f"{start}.3.weight": (out, hidden),
    }
    return _by_formula("decoder", shapes)


@functools.cache
def asit_heads(dim):
    """Prototypes and decoder of ASiT as published, sizes over 768."""
    hidden, pixels = round(dim * 8 / 3), round(dim / 6)
    shapes = {
        **_layer("head_cls.mlp.0", hidden, dim),
        **_layer("head_cls.mlp.2", hidden, hidden),
        **_layer("head_cls.mlp.4", 256, hidden),
        **_layer("head_recons.mlp.0", dim, dim),
        **_layer("head_recons.mlp.2", dim, dim),
        **_layer("head_recons.mlp.4", pixels, dim),
        "head_recons.convTrans.weight": (pixels, 1, 16, 16),
        "head_recons.convTrans.bias": (1,),
    }
    for name, ratio in (("cls", 32), ("data", 4)):
        layer, count = f"head_cls.{name}_layer", round(dim * ratio / 3)
        shapes[f"{layer}.weight_g"] = (count, 1)
        shapes[f"{layer}.weight_v"] = (count, 256)
    return _by_formula("decoder", shapes)


def _by_formula(salt, shapes):
    return {
        key: weight(salt, key, shape, kind_of(key, shape))
        for key, shape in shapes.items()
    }


def wrapped(family, state, variant=0):
    """A state dict in a file's other contents, as the owner publishes it."""
    settings = argparse.Namespace(lr=1e-4, mask=[1, 2], name=family)
    training = {"args": settings, "epoch": 32, "optimizer": {"state": {}}}
    other = torch.ones(3)
    decoder = mae_decoder(family)
    if family == "eat" and variant == 1:
        # Hugging Face's names.
        image = "modality_encoders.IMAGE."
        names = {
            key: key.replace(image, "").replace(
                "context_encoder.norm", "pre_norm"
            )
            for key in state
        }
        return {f"model.{names[key]}": value for key, value in state.items()}
    if family == "eat":
        image = "modality_encoders.IMAGE.decoder."
        dim = state["blocks.0.norm1.bias"].shape[0]
        shapes = _layer(f"{image}blocks.0.0", dim, dim // 16, 3, 3)
        shapes |= _layer(f"{image}proj", dim, dim)
        extra = _by_formula("decoder", shapes)
        extra["_ema"] = {"blocks.0.norm1.weight": other}
        return {"model": {**state, **extra}, "cfg": {"seed": 1}, **training}
    if family == "m2d" and variant == 1:
        start = "module.ar.runtime.backbone."
        return {start + key: value for key, value in state.items()}
    if family == "m2d":
        teacher = {
            "target_blocks.0.norm1.bias": other,
            "target_norm.bias": other,
        }
        return {"model": {**state, **decoder, **teacher}, **training}
    if family == "atst_clip" and variant == 1 or family == "asit":
        start = "module.backbone." if family == "atst_clip" else "backbone."
        teacher = {start + key: value for key, value in state.items()}
        if family == "asit":
            teacher |= asit_heads(state["blocks.0.norm1.bias"].shape[0])
        student = {"module.backbone.cls_token": other}
        return {"student": student, "teacher": teacher, **training}
    if family.startswith("atst"):
        start = "model.teacher.encoder."
        dim = state["blocks.0.norm1.bias"].shape[0]
        other_entries = {
            "model.student.encoder.pos_embed": other,
            "model.student.projector.0.weight": other,
            **byol_head("projector", dim),
            **byol_head("predictor", dim),
        }
        teacher = {start + key: value for key, value in state.items()}
        return {
            "state_dict": {**other_entries, **teacher},
            "hyper_parameters": {"lr": 1},
        }
    if family in ("audiomae", "maskspec"):
        extra = {} if "head.weight" in state else decoder
        return {
            "model": {**state, **extra},
            "scaler": {"scale": 1.0},
            **training,
        }
    if family == "dasheng":
        dim = state["freq_pos_embed"].shape[1]
        depth = len([k for k in state if k.endswith("attn.qkv.weight")])
        config = {"embed_dim": dim, "depth": depth, "num_heads": dim // 64}
        return {"model": state, "config": config}
    if family == "beats":
        n_layers = len([k for k in state if k.endswith("q_proj.weight")])
        config = dict(BEATS_CONFIG)
        if n_layers == 12:
            config.update(encoder_layers=12, encoder_embed_dim=768)
            config.update(encoder_ffn_embed_dim=3072, embed_dim=512)
            config.update(encoder_attention_heads=12)
        return {"cfg": config, "model": state}
    assert family == "audiomosaic"
    return {f"module._orig_mod.{key}": value for key, value in state.items()}
