"""BEATs: https://github.com/microsoft/unilm/tree/master/beats (768a3c8)."""

import torch

from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.peers.family import Family

_BLOCK = {
    "self_attn.q_proj.": "attn.query.",
    "self_attn.k_proj.": "attn.key.",
    "self_attn.v_proj.": "attn.value.",
    "self_attn.out_proj.": "attn.proj.",
    "self_attn.grep_linear.": "attn.gate.",
    "self_attn.grep_a": "attn.gate_scale",
    "self_attn_layer_norm.": "norm1.",
    "fc1.": "mlp.fc1.",
    "fc2.": "mlp.fc2.",
    "final_layer_norm.": "norm2.",
    "self_attn.relative_attention_bias.weight": "distance_bias",
}
_LAYERS = "encoder.layers."

# Settings of the released graph. Other values would need another encoder.
_GRAPH = {
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "conv_bias": False,
    "activation_fn": "gelu",
}


class BEATs(Family):
    """The layout of BEATs, which has its own encoder with DeepNorm.

    BEATs has no position table and no class token. Our encoder stores three
    parts in another form, which computes the same: queries, keys and values are
    one layer, the weight norm of the convolution is multiplied out, and the
    bias that all blocks share is stored once.
    """

    name = "beats"
    title = "BEATs"
    paper = (
        "Chen et al., BEATs: Audio Pre-Training with Acoustic Tokenizers, "
        "ICML 2023"
    )
    license = "MIT"
    license_id = "mit"
    source = "https://github.com/microsoft/unilm/tree/master/beats"
    marks = ("encoder.pos_conv.0.weight_v", "post_extract_proj.weight")
    names = {
        "patch_embedding.": "encoder.patch_embedding.",
        "layer_norm.": "encoder.patch_norm.",
        "post_extract_proj.": "encoder.projection.",
        "encoder.pos_conv.0.": "encoder.convolution.",
        "encoder.layer_norm.": "encoder.first_norm.",
        _LAYERS: "layers.",
        "predictor.": "head.linear.",
    }
    features = {
        "statistics": {"mean": 15.41663, "std": 6.55582},
        "fbank": {"kind": "kaldi", "window": "povey", "gain": 32768.0},
    }

    def build(self, ours, config, content, path, report):
        """See `Family.build`, of which only `complete_head` is used."""
        given = content["cfg"]
        for name, value in _GRAPH.items():
            if given[name] != value:
                raise WeightsError(f"cfg: {name} is {given[name]}, not {value}")
        tables = []
        for key in [key for key in ours if key.startswith("layers.")]:
            number, rest = key.removeprefix("layers.").split(".", 1)
            start = next((s for s in _BLOCK if rest.startswith(s)), None)
            if start is None:
                raise WeightsError(f"unexpected {_LAYERS}{number}.{rest}")
            value, name = ours.pop(key), _BLOCK[start] + rest[len(start) :]
            if name == "distance_bias":
                tables.append(value)
            else:
                ours[f"encoder.blocks.{number}.{name}"] = value
        if any(not torch.equal(table, tables[0]) for table in tables):
            raise WeightsError(
                "relative_attention_bias differs from layer to layer"
            )
        ours["encoder.distance_bias"] = tables[0].clone()
        for number in range(given["encoder_layers"]):
            block = f"encoder.blocks.{number}.attn."
            for part in ("weight", "bias"):
                ours[f"{block}qkv.{part}"] = torch.cat(
                    [
                        ours.pop(f"{block}{name}.{part}")
                        for name in ("query", "key", "value")
                    ]
                )
            ours[f"{block}gate_scale"] = ours[f"{block}gate_scale"].flatten()
        direction = ours.pop("encoder.convolution.weight_v").double()
        size = ours.pop("encoder.convolution.weight_g").double()
        norm = direction.square().sum((0, 1), keepdim=True).sqrt()
        ours["encoder.convolution.weight"] = (size * direction / norm).float()
        kernel = ours["encoder.patch_embedding.weight"]
        patch = list(kernel.shape[:1:-1])
        kernel = kernel[:, 0].transpose(1, 2).flatten(1)
        ours["encoder.patch_embedding.weight"] = kernel.contiguous()
        grid = {"n_mels": self.n_mels, "patch": patch, "stride": patch}
        grid["keep_partial"] = False
        dim = given["encoder_embed_dim"]
        ratio = given["encoder_ffn_embed_dim"] / dim
        config["encoder"] = {
            "grid": grid,
            "dim": dim,
            "depth": given["encoder_layers"],
            "heads": given["encoder_attention_heads"],
            "mlp_ratio": int(ratio) if ratio.is_integer() else ratio,
            # The number of frames of 10 s.
            "table_frames": 998,
            "patch_dim": given["embed_dim"],
            "kernel": given["conv_pos"],
            "groups": given["conv_pos_groups"],
            "buckets": given["num_buckets"],
            "max_distance": given["max_distance"],
            "blocks": "beats",
        }
        config["features"] = {"n_mels": self.n_mels, **self.features}
        config["pooling"] = {
            "depth": given["encoder_layers"],
            **self.pooling,
        }
        report.append(
            "the same in another form: queries, keys and values in one layer, "
            "weight norm multiplied out, the shared bias once"
        )
        self.complete_head(ours, config, report)
