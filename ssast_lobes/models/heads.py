"""Heads, and models of an encoder and a head.

`ClassificationHead` turns clip vectors into class scores.
`SpectrogramClassifier` classifies clips. `SpectrogramRecognizer` returns scores
of units at each time step (CTC).
"""

from speechbrain.nnet.adapters import AdaptedModel, LoRA
from torch import nn
from torch.nn import functional

from ssast_lobes.models.pooling import ClipPooling
from ssast_lobes.utils.checks import ArgumentError, flag, real, whole

# Epsilon of SSAST's head, which is PyTorch's default.
NORM_EPS = 1e-5


class ClassificationHead(nn.Module):
    """Layer norm and a linear layer: SSAST's fine-tuning head.

    Arguments
    ---------
    dim : int
        Size of the clip vector.
    n_classes : int
        Number of classes C.
    projection : int, optional
        Size of a linear projection in place of the norm, as in SUPERB's probes
        (Yang et al., Interspeech 2021). SUPERB projects each token and then
        takes the mean. The result is the same, since projection and mean are
        linear.
    cosine_scale : float, optional
        If given, the score of a class is this factor times the cosine between
        the clip vector and the weights of the class, as margin losses need it.
        By default scores are linear.
    norm_eps : float, optional
        Epsilon of the norm; None removes the norm.

    Raises
    ------
    ValueError
        If `projection` or `cosine_scale` is not positive.

    Example
    -------
    >>> import torch
    >>> ClassificationHead(32, 5)(torch.zeros(2, 1, 32)).shape
    torch.Size([2, 1, 5])
    """

    def __init__(
        self,
        dim,
        n_classes,
        projection=None,
        cosine_scale=None,
        norm_eps=NORM_EPS,
    ):
        super().__init__()
        self.norm_eps = real("norm_eps", norm_eps, 0, null=True)
        whole("projection", projection, null=True)
        real("cosine_scale", cosine_scale, 0, inside=True, null=True)
        self.projection = projection
        self.cosine_scale = cosine_scale
        if projection is None and norm_eps is None:
            self.norm = nn.Identity()
        elif projection is None:
            self.norm = nn.LayerNorm(dim, eps=norm_eps)
        else:
            self.projector = nn.Linear(dim, projection)
        self.linear = nn.Linear(
            projection or dim, n_classes, bias=cosine_scale is None
        )

    @property
    def config(self):
        """The arguments that rebuild this head, without the sizes."""
        config = {"projection": self.projection}
        if self.cosine_scale is not None:
            config["cosine_scale"] = self.cosine_scale
        if self.norm_eps != NORM_EPS:
            config["norm_eps"] = self.norm_eps
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
    """Return the arguments of a head from the configuration of an export.

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
    # An export without this entry uses the mean of the last layer.
    pooling = ClipPooling(**config.get("pooling", {"depth": 1}))
    return {
        "dim": pooling.output_size(config["encoder"]["dim"]),
        "n_classes": len(config["labels"]),
        # Older exports do not have this entry.
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
        How tokens become a clip vector; see `ClipPooling`.
    layers : str
        Layers from which the clip vector is made; see `ClipPooling`.
    projection : int, optional
        Size of a linear projection in the head; see `ClassificationHead`.
    cosine_scale : float, optional
        Factor of scores that are cosines; see `ClassificationHead`.
    freeze_encoder : bool
        Whether to train only the pooling and the head.
    frozen_blocks : int
        Number of blocks to freeze, counted from the first. Everything before
        the blocks is frozen with them, such as the patch projection and the
        positions.
    lora_rank : int
        If not 0, freeze the encoder and train low-rank adapters of this rank
        (SpeechBrain's `LoRA`). The adapters are in all attention and MLP
        layers, or in the input and output projections of Mamba's mixers.

    Raises
    ------
    ValueError
        If the encoder has fewer than `frozen_blocks` blocks, or more than one
        of `freeze_encoder`, `frozen_blocks` and `lora_rank` is set.

    Example
    -------
    >>> import torch
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
        n_freq = encoder.grid.n_freq
        self.pooling = ClipPooling(encoder.depth, pooling, layers, n_freq)
        size = self.pooling.output_size(encoder.dim)
        self.head = ClassificationHead(
            size, n_classes, projection, cosine_scale
        )
        self.freeze_encoder = freeze_encoder
        self.frozen_blocks = frozen_blocks
        self.lora_rank = lora_rank
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
        if self.pooling.needs_hidden_states is True:
            # The loss does not depend on the final norm, and DDP would wait for
            # the gradient of the norm.
            encoder.norm.requires_grad_(False)

    def train(self, mode=True):
        """Switch the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()
        return self

    def forward(self, feats, n_frames=None):
        """Return the class scores of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels).
        n_frames : torch.Tensor, optional
            Valid frames (B,); see `SpectrogramEncoder.forward`.

        Returns
        -------
        torch.Tensor
            Logits (B, C).
        """
        return self.head(self.embed(feats, n_frames))

    def embed(self, feats, n_frames=None):
        """Return the clip vectors of a batch; see `forward` for arguments."""
        encoded = self.encoder(
            feats, n_frames, hidden_states=self.pooling.needs_hidden_states
        )
        return self.pooling(encoded)

    def merged_encoder_state(self):
        """Return the encoder's tensors, with adapters merged into the layers.

        Returns
        -------
        dict of str to torch.Tensor
            State dict of a plain `SpectrogramEncoder`.
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
    for name, parameter in encoder.named_parameters():
        # Everything before the blocks is frozen, too.
        if not name.startswith(("blocks.", "norm.")):
            parameter.requires_grad_(False)
    for block in encoder.blocks[:count]:
        block.requires_grad_(False)


def _lora_change(adapter, tensor_name):
    if tensor_name != "weight":
        return 0.0
    up, down = adapter.adapter_up_proj.weight, adapter.adapter_down_proj.weight
    return adapter.scaling * (up @ down).detach()


class SpectrogramRecognizer(nn.Module):
    """Encoder and head: features in, scores of units at each time step out.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder, usually pretrained.
    n_units : int
        Number of units U, including the blank.

    Example
    -------
    >>> import torch
    >>> from ssast_lobes import SpectrogramEncoder
    >>> grid = {"patch": (128, 2)}
    >>> encoder = SpectrogramEncoder(grid, dim=32, depth=1, heads=2)
    >>> model = SpectrogramRecognizer(encoder, n_units=7)
    >>> scores, n_time = model(torch.randn(2, 50, 128), torch.tensor([50, 20]))
    >>> scores.shape, n_time
    (torch.Size([2, 25, 7]), tensor([25, 10]))
    """

    def __init__(self, encoder, n_units):
        super().__init__()
        self.encoder = encoder
        self.head = ClassificationHead(encoder.dim, n_units)

    def forward(self, feats, n_frames=None):
        """Return the scores of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels).
        n_frames : torch.Tensor, optional
            Valid frames (B,); see `SpectrogramEncoder.forward`.

        Returns
        -------
        log_probabilities : torch.Tensor
            Scores (B, T', U), float32.
        n_time : torch.Tensor
            Number of patches along time of each clip, (B,) int64.
        """
        encoded = self.encoder(feats, n_frames)
        scores = self.head(encoded.frames)
        return scores.float().log_softmax(-1), encoded.n_time
