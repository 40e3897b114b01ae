"""Decoders of released checkpoints, to continue the pretraining."""

import re

import torch

# Names of a masked autoencoder's decoder and prediction layer, and our names.
MAE_NAMES = {
    "decoder_embed.": "objective.decoder.embedding.",
    "mask_token": "objective.decoder.mask_embedding",
    "decoder_blocks.": "objective.decoder.blocks.",
    "decoder_norm.": "objective.decoder.norm.",
    "decoder_pred.": "objective.head.",
}
_BLOCK = re.compile(r"objective\.decoder\.blocks\.(\d+)\.(.*)")


def take_mae_decoder(ours, name, report):
    """Convert a decoder with sin-cos positions, if there is one.

    The first half of the decoder's position vectors encodes time, the second
    half frequency. Our position vectors have the opposite order, so the halves
    of every vector in the decoder are swapped. Nothing else depends on the
    order of the halves.

    Arguments
    ---------
    ours : dict of str to torch.Tensor
        Tensors by our names, which are changed in place.
    name : str
        Class of the objective.
    report : list of str
        Gets a line for each change.

    Returns
    -------
    dict or None
        Configuration of the objective; None without a decoder.
    """
    state = {key: ours.pop(key) for key in list(ours) if _is_decoder(key)}
    mask = state.get("objective.decoder.mask_embedding")
    found = [match for key in state if (match := _BLOCK.match(key))]
    if mask is None or not found:
        if state:
            report.append("left out: a decoder that is not whole")
        return None
    state["objective.decoder.mask_embedding"] = mask.flatten()
    dim, depth = mask.numel(), 1 + max(int(match[1]) for match in found)
    order = torch.arange(dim).roll(dim // 2)
    for key, value in state.items():
        part = (match := _BLOCK.match(key)) and match[2]
        reads = part in ("attn.qkv.weight", "mlp.fc1.weight")
        if reads or key == "objective.head.weight":
            state[key] = value[:, order]
        elif part not in ("attn.qkv.bias", "mlp.fc1.bias") and not (
            key == "objective.head.bias"
        ):
            state[key] = value[order]
    ours.update(state)
    width = len(state["objective.decoder.embedding.bias"])
    report.append(f"pretext heads: a decoder of {depth} blocks of size {width}")
    return {"name": name}


def _is_decoder(key):
    return key.startswith(tuple(MAE_NAMES.values()))
