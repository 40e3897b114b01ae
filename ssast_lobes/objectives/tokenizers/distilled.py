"""Codes of a trained tokenizer, as in BEATs' later iterations."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ssast_lobes.models.encoders import make_encoder
from ssast_lobes.objectives.tokenizers.codes import (
    CodeUsage,
    refuse_other_front_end,
)
from ssast_lobes.objectives.tokenizers.quantizer import Quantizer
from ssast_lobes.utils.checks import ArgumentError


class VectorQuantizerTokenizer(nn.Module):
    """Assign codes to tokens by an export of `VectorQuantizer`.

    Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers", ICML
    2023. The tokenizer's own encoder sees all tokens, and each token gets the
    code most similar to its output. This encoder and the encoder to train get
    the same log-mel, so another front end is an error.

    Arguments
    ---------
    grid : Grid
        Grid of the encoder to train.
    folder : str or os.PathLike
        Folder of the export.

    Raises
    ------
    ValueError
        If the folder is no such export, or an export with another grid. Also if
        the codes have collapsed: the last hundred batches of the training used
        fewer than a tenth of the codes.

    Example
    -------
    >>> from ssast_lobes import Grid
    >>> VectorQuantizerTokenizer(Grid(), "nowhere")
    Traceback (most recent call last):
    ...
    ssast_lobes...ArgumentError: tokenizer: nowhere is no export of ...
    """

    needs_audio = False
    needs_place = False
    n_books = 1

    def __init__(self, grid, folder):
        super().__init__()
        self.grid, self.folder = grid, str(folder)
        config, state = read_quantizer(folder)
        numbers = config["objective"]
        self.encoder = make_encoder(config["encoder"])
        if self.encoder.grid != grid:
            raise ArgumentError(
                f"tokenizer: the grid of {folder} is "
                f"{self.encoder.grid.config}, that of the encoder "
                f"{grid.config}"
            )
        self.front_end = config["features"]
        self.n_codes = numbers["n_codes"]
        self.sizes = [self.n_codes]
        self.quantizer = Quantizer(
            self.encoder.dim,
            self.n_codes,
            numbers["dim"],
            numbers["code_momentum"],
        )
        usage = CodeUsage(1, self.n_codes)
        for module, start in (
            (self.encoder, "encoder."),
            (self.quantizer, "objective.quantizer."),
            (usage, "objective.usage."),
        ):
            module.load_state_dict(
                {
                    key.removeprefix(start): value
                    for key, value in state.items()
                    if key.startswith(start)
                }
            )
        if usage.is_collapsed():
            raise ArgumentError(
                f"tokenizer: the codes of {folder} have collapsed: "
                f"{usage.told()}; train it longer, on more audio, or with "
                "fewer codes"
            )
        self.requires_grad_(False)
        self.eval()

    @property
    def config(self):
        """The arguments, without the grid, that rebuild this."""
        return {"name": "VectorQuantizerTokenizer", "folder": self.folder}

    def check_front_end(self, features):
        """Raise if the front end is not that of the tokenizer's encoder."""
        refuse_other_front_end(
            self.folder,
            self.front_end,
            "the front end of the pretraining",
            features.config,
        )

    def train(self, mode=True):
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, feats, n_frames=None, **audio):
        """Return the code of each token.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels).
        n_frames : torch.Tensor, optional
            Valid frames (B,); by default all.
        **audio
            Not used.

        Returns
        -------
        torch.Tensor
            Ids (B, N, 1) int64 in [0, n_codes), frequency-major as the tokens
            of the encoder. Values at padding are arbitrary.
        """
        with torch.autocast(feats.device.type, enabled=False):
            tokens = self.encoder(feats.float(), n_frames).tokens
            return self.quantizer(tokens)[1][:, :, None]


def read_quantizer(folder):
    """Read an export of the objective `VectorQuantizer`.

    Arguments
    ---------
    folder : str or os.PathLike

    Returns
    -------
    config : dict
        Configuration of the export.
    state : dict of str to torch.Tensor

    Raises
    ------
    ValueError
        If the folder is no such export.

    Example
    -------
    >>> read_quantizer("nowhere")
    Traceback (most recent call last):
    ...
    ssast_lobes...ArgumentError: tokenizer: nowhere is no export of ...
    """
    try:
        config = json.loads(Path(folder, "config.json").read_text("utf-8"))
        state = load_file(Path(folder, "model.safetensors"))
        name = config["objective"]["name"]
        if name != "VectorQuantizer":
            raise ValueError(f"it is one of {name}")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ArgumentError(
            f"tokenizer: {folder} is no export of the objective "
            f"vector_quantizer: {error}"
        ) from error
    return config, state
