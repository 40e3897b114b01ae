"""Heads: from encoder outputs to one vector a clip, and to class scores."""

import torch
from speechbrain.nnet.adapters import AdaptedModel, LoRA
from torch import nn
from torch.nn import functional

from ssast_lobes.checks import ArgumentError, flag, one_of, real, whole
from ssast_lobes.encoder import POOLINGS

LAYERS = ("last", "weighted", "all")


class ClipPooling(nn.Module):
    """One vector a clip, from the last layer or from all of them.

    Arguments
    ---------
    depth : int
        Number of encoder blocks L.
    pooling : str
        ``"mean"`` of the valid tokens, ``"class"`` tokens,
        ``"statistics"``: mean and standard deviation of the valid tokens, as
        x-vectors pool (Snyder et al., ICASSP 2018), or ``"dynamics"``: these
        and how much tokens change over one and two steps of time.
    layers : str
        ``"last"``: after the final norm. ``"weighted"``: the
        softmax-weighted sum of the L block outputs before it, as SUPERB
        probes do (Yang et al., Interspeech 2021). ``"all"``: what enters the
        first block and the L block outputs, pooled and put side by side.

    Raises
    ------
    ValueError
        If a name is unknown.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> encoder = SpectrogramEncoder(dim=32, depth=2, heads=2)
    >>> pooling = ClipPooling(encoder.depth, layers="weighted")
    >>> output = encoder(torch.randn(3, 50, 128), hidden_states=True)
    >>> pooling(output).shape
    torch.Size([3, 32])
    """

    def __init__(self, depth, pooling="mean", layers="last"):
        super().__init__()
        one_of("layers", layers, LAYERS)
        one_of("pooling", pooling, POOLINGS)
        self.depth = depth
        self.pooling = pooling
        self.layers = layers
        if layers == "weighted":
            self.layer_scores = nn.Parameter(torch.zeros(depth))

    @property
    def config(self):
        """The arguments that build this again."""
        return {
            "depth": self.depth,
            "pooling": self.pooling,
            "layers": self.layers,
        }

    @property
    def needs_hidden_states(self):
        """Whether the encoder must return its hidden states."""
        return self.layers != "last"

    def output_size(self, dim):
        """Size of the clip vector.

        Arguments
        ---------
        dim : int
            Token size D of the encoder.

        Returns
        -------
        int
            D, twice as much for statistics, four times for dynamics, and
            L + 1 times as much for all layers.

        Example
        -------
        >>> ClipPooling(12, "statistics", "all").output_size(192)
        4992
        """
        parts = POOLINGS[self.pooling]
        return dim * parts * (self.depth + 1 if self.layers == "all" else 1)

    def forward(self, encoded):
        """Pool an `EncoderOutput` to (B, `output_size`)."""
        if self.layers == "last":
            return encoded.clip(self.pooling)
        if self.layers == "all":
            pooled = [
                encoded.pool_tokens(tokens, classes, self.pooling)
                for tokens, classes in zip(
                    encoded.hidden_states,
                    encoded.class_hidden_states,
                    strict=True,
                )
            ]
            return torch.cat(pooled, dim=1)
        share = self.layer_scores.softmax(0)
        tokens = torch.einsum("l,lbnd->bnd", share, encoded.hidden_states[1:])
        classes = encoded.class_hidden_states[1:]
        classes = torch.einsum("l,lbnd->bnd", share, classes)
        return encoded.pool_tokens(tokens, classes, self.pooling)


class ClassificationHead(nn.Module):
    """Layer norm and a linear layer: SSAST's fine-tuning head.

    Arguments
    ---------
    dim : int
        Size of the clip vector.
    n_classes : int
        Number of classes C.
    projection : int, optional
        Size of a linear projection in place of the norm: the head of SUPERB's
        probes (Yang et al., Interspeech 2021). They project each step before
        they take the mean, which comes to the same: both are linear.
    cosine_scale : float, optional
        Scores are cosines of the vector and of each class's weights, times
        so much, as margin losses want them; linear when left out.

    Raises
    ------
    ValueError
        If `projection` or `cosine_scale` is not positive.

    Example
    -------
    >>> ClassificationHead(32, 5)(torch.zeros(2, 1, 32)).shape
    torch.Size([2, 1, 5])
    """

    def __init__(self, dim, n_classes, projection=None, cosine_scale=None):
        super().__init__()
        whole("projection", projection, null=True)
        real("cosine_scale", cosine_scale, 0, inside=True, null=True)
        self.projection = projection
        self.cosine_scale = cosine_scale
        if projection is None:
            self.norm = nn.LayerNorm(dim)
        else:
            self.projector = nn.Linear(dim, projection)
        self.linear = nn.Linear(
            projection or dim, n_classes, bias=cosine_scale is None
        )

    @property
    def config(self):
        """The arguments that build this again, next to the sizes."""
        config = {"projection": self.projection}
        if self.cosine_scale is not None:
            config["cosine_scale"] = self.cosine_scale
        return config

    def forward(self, clip):
        """Return class scores (logits) (.., C) of clip vectors (.., D)."""
        first = self.norm if self.projection is None else self.projector
        if self.cosine_scale is None:
            return self.linear(first(clip))
        weight = functional.normalize(self.linear.weight, dim=-1)
        vector = functional.normalize(first(clip), dim=-1)
        return self.cosine_scale * functional.linear(vector, weight)


def head_arguments(config):
    """Arguments of the `ClassificationHead` that an export's config describes.

    Arguments
    ---------
    config : dict
        Content of a classifier's ``config.json``.

    Returns
    -------
    dict

    Example
    -------
    >>> head_arguments({"encoder": {"dim": 32}, "labels": ["cat", "dog"]})
    {'dim': 32, 'n_classes': 2}
    """
    # Other people's exports have none: the mean of the last layer.
    pooling = ClipPooling(**config.get("pooling", {"depth": 1}))
    return {
        "dim": pooling.output_size(config["encoder"]["dim"]),
        "n_classes": len(config["labels"]),
        # Former exports do not have it.
        **config.get("head", {}),
    }


class SpectrogramClassifier(nn.Module):
    """Encoder, pooling and head in one module: features in, scores out.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder, usually pretrained.
    n_classes : int
        Number of classes C.
    pooling : str
        See `ClipPooling`.
    layers : str
        See `ClipPooling`.
    projection : int, optional
        See `ClassificationHead`.
    cosine_scale : float, optional
        See `ClassificationHead`.
    freeze_encoder : bool
        Train the pooling and the head only.
    frozen_blocks : int
        Keep the patch projection, the positions and the first blocks as they
        are.
    lora_rank : int
        Over 0: freeze the encoder and train low-rank adapters of this rank
        in all its attention and MLP layers, or in the input and output
        projections of Mamba's mixers (SpeechBrain's `LoRA`).

    Raises
    ------
    ValueError
        If there are fewer blocks than are to be frozen, or two ways of
        freezing are asked for.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> encoder = SpectrogramEncoder(dim=32, depth=2, heads=2)
    >>> model = SpectrogramClassifier(encoder, n_classes=5)
    >>> model(torch.randn(3, 50, 128), torch.tensor([50, 20, 9])).shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        encoder,
        n_classes,
        pooling="mean",
        layers="last",
        projection=None,
        cosine_scale=None,
        freeze_encoder=False,
        frozen_blocks=0,
        lora_rank=0,
    ):
        super().__init__()
        flag("freeze_encoder", freeze_encoder)
        whole("frozen_blocks", frozen_blocks, 0, encoder.depth)
        whole("lora_rank", lora_rank, 0)
        if sum([freeze_encoder, frozen_blocks > 0, lora_rank > 0]) > 1:
            raise ArgumentError(
                "choose one of freeze_encoder, frozen_blocks and lora_rank"
            )
        self.pooling = ClipPooling(encoder.depth, pooling, layers)
        size = self.pooling.output_size(encoder.dim)
        self.head = ClassificationHead(
            size, n_classes, projection, cosine_scale
        )
        self.freeze_encoder = freeze_encoder
        self.encoder = encoder
        if freeze_encoder:
            encoder.requires_grad_(False)
        elif lora_rank > 0:
            self.encoder = AdaptedModel(
                encoder,
                LoRA,
                target_layers=encoder.adaptable_layers,
                adapter_kwargs={"rank": lora_rank},
            )
        elif frozen_blocks > 0:
            _freeze_first(encoder, frozen_blocks)
        if self.pooling.needs_hidden_states:
            # Not on the way to the loss; DDP would wait for its gradient.
            encoder.norm.requires_grad_(False)

    def train(self, mode=True):
        """Switch the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()
        return self

    def forward(self, feats, n_frames=None):
        """Class scores of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalised log-mel (B, T, n_mels).
        n_frames : torch.Tensor, optional
            Valid frames (B,); see `SpectrogramEncoder.forward`.

        Returns
        -------
        torch.Tensor
            Logits (B, C).
        """
        return self.head(self.embed(feats, n_frames))

    def embed(self, feats, n_frames=None):
        """Clip vectors of a batch; arguments as in `forward`."""
        encoded = self.encoder(
            feats, n_frames, hidden_states=self.pooling.needs_hidden_states
        )
        return self.pooling(encoded)

    def merged_encoder_state(self):
        """The encoder's tensors with adapters folded into the layers.

        Returns
        -------
        dict of str to torch.Tensor
            Fits a plain `SpectrogramEncoder`.
        """
        if not isinstance(self.encoder, AdaptedModel):
            return self.encoder.state_dict()
        plain = self.encoder.adapted_model
        adapters = {
            name: module
            for name, module in plain.named_modules()
            if isinstance(module, LoRA)
        }
        state = {}
        for key, value in plain.state_dict().items():
            layer, _, rest = key.rpartition(".pretrained_module.")
            if layer:
                value = value + _lora_change(adapters[layer], rest)
                key = f"{layer}.{rest}"
            if ".adapter_" not in key:
                state[key] = value
        return state


def _freeze_first(encoder, count):
    for part in (encoder.patch_embedding, encoder.positions):
        part.requires_grad_(False)
    encoder.class_tokens.requires_grad_(False)
    encoder.class_positions.requires_grad_(False)
    for block in encoder.blocks[:count]:
        block.requires_grad_(False)


def _lora_change(adapter, tensor_name):
    if tensor_name != "weight":
        return 0.0
    up, down = adapter.adapter_up_proj.weight, adapter.adapter_down_proj.weight
    return adapter.scaling * (up @ down).detach()
