"""The shared converter: unwrap a file, rename and check its tensors."""

import re

import torch

from ssast_lobes.checkpoints.format import (
    Weights,
    WeightsError,
    check_weights,
    renamed,
    window_seconds,
)
from ssast_lobes.models.features import FrontEnd

# Entries that may contain the state dict.
_CONTAINERS = ("model", "state_dict", "teacher")

# Names of timm's vision transformer and our names, one to one.
VIT = {
    "blocks.": "encoder.blocks.",
    "norm.": "encoder.norm.",
    "patch_embed.proj.": "encoder.patch_embedding.",
    "cls_token": "encoder.class_tokens",
    "pos_embed": "positions",
}

# Decoders of masked autoencoders.
MAE_DECODER = ("decoder_", "mask_token")

# Tensors of a fine-tuned masked autoencoder: the norm of the clip vector, and
# the classifier.
HEAD = {"fc_norm.": "head.norm.", "head.": "head.linear."}

# The front end of SSAST, which several families share.
AUDIOSET = {"statistics": {"mean": -4.2677393, "std": 4.5689974}}


def unwrap(content):
    """Return the tensors of a checkpoint and the names of other entries.

    Arguments
    ---------
    content : object
        The result of ``torch.load``.

    Returns
    -------
    state : dict
        Tensors by name; empty if there are none.
    other_keys : list of str
        Names of the other entries of the file.

    Example
    -------
    >>> unwrap({"model": {"pos_embed": 0}, "epoch": 7})
    ({'pos_embed': 0}, ['epoch'])
    """
    if not isinstance(content, dict):
        return {}, []
    for name in _CONTAINERS:
        if isinstance(content.get(name), dict):
            other_keys = [str(key) for key in content if key != name]
            return {str(k): v for k, v in content[name].items()}, other_keys
    return {str(key): value for key, value in content.items()}, []


class Family:
    """The layout of one lab's released files.

    A new family is a derived class that sets these attributes, and overrides
    methods where it differs.
    """

    # The name for ``--family``, and the name in messages.
    name = title = ""
    paper = license = source = ""
    # Identifier of the license on the hub.
    license_id = None
    # Keys that together identify this family; empty if it has no keys of its
    # own.
    marks = ()
    # Prefixes to remove from the keys, repeatedly.
    prefixes = ()
    names = VIT
    # Prefixes of keys that are dropped and reported.
    left_out = ()
    n_mels = 128
    keep_partial = False
    # True if time is the first axis of kernels and of the order of patches.
    time_major = True
    # Number of rows of the position table before the rows of patches.
    position_rows = 1
    # Arguments of encoder, front end and pooling for all files of the family.
    encoder = {"n_class_tokens": 1, "crop": "start"}
    features = AUDIOSET
    pooling = {"pooling": "mean", "layers": "last"}
    # Settings to cut long clips into chunks; see `ssast_lobes.lobes.chunks`.
    chunks = None
    # Token size and number of blocks of the released models.
    sizes = {384: 12, 768: 12}
    head_size = 64

    def fits(self, state):
        """Return whether the keys of a state dict identify this family."""
        keys = {self.short(key) for key in state}
        return bool(self.marks) and set(self.marks) <= keys

    def short(self, key):
        """Return a key without prefixes."""
        for prefix in self.prefixes:
            if key.startswith(prefix):
                return self.short(key[len(prefix) :])
        return key

    def translate(self, content, path):
        """Translate a checkpoint of this family.

        Arguments
        ---------
        content : object
            The result of ``torch.load``.
        path : pathlib.Path
            The file.

        Returns
        -------
        Weights
            With the configuration of an exported folder.

        Raises
        ------
        WeightsError
            If a tensor is missing, unknown or of the wrong shape.
        """
        state, other_keys = unwrap(content)
        report = [f"{self.title}; license of the weights: {self.license}"]
        if other_keys:
            report.append(f"left out of the file: {', '.join(other_keys)}")
        ours = self.rename(state, report)
        config = {"kind": "pretrained", "family": self.name}
        try:
            self.build(ours, config, content, path, report)
            config["features"] = FrontEnd(**config["features"]).config
            config["window_seconds"] = window_seconds(
                config["encoder"], config["features"]
            )
            # safetensors needs contiguous tensors.
            ours = {key: value.contiguous() for key, value in ours.items()}
            weights = Weights(ours, config, report)
            check_weights(weights)
        except WeightsError:
            raise
        except KeyError as error:
            raise WeightsError(
                f"not a checkpoint of {self.title}: {error.args[0]} missing"
            ) from error
        except (
            *(ArithmeticError, AttributeError, IndexError, RuntimeError),
            *(TypeError, ValueError),
        ) as error:
            raise WeightsError(
                f"not a checkpoint of {self.title}, or damaged ({error})"
            ) from error
        return weights

    def rename(self, state, report):
        """Return the tensors by our names; report what is dropped."""
        ours, left_out, unknown = {}, {}, []
        for key, value in state.items():
            short = self.short(key)
            start = next(
                (s for s in self.left_out if short.startswith(s)), None
            )
            name = renamed(short, self.names)
            if start is not None:
                left_out[start] = left_out.get(start, 0) + 1
            elif name is None or not isinstance(value, torch.Tensor):
                unknown.append(key)
            elif name in ours:
                raise WeightsError(f"{short} occurs twice")
            else:
                ours[name] = (
                    value.float() if value.is_floating_point() else value
                )
        if unknown:
            raise WeightsError(
                f"not a checkpoint of {self.title}: unexpected "
                f"{', '.join(unknown)}"
            )
        report += [f"left out: {start}* ({n})" for start, n in left_out.items()]
        return ours

    def build(self, ours, config, content, path, report):
        """Convert the tensors to our shapes, and complete the configuration.

        Arguments
        ---------
        ours : dict of str to torch.Tensor
            Tensors by our names, which are changed in place.
        config : dict
            Configuration of an exported folder, which is completed in place.
        content, path
            See `translate`.
        report : list of str
            Gets a line for each change.
        """
        kernel = ours["encoder.patch_embedding.weight"]
        if kernel.dim() == 4:
            kernel = (
                kernel[:, 0].transpose(1, 2)
                if self.time_major
                else kernel[:, 0]
            )
            patch = list(kernel.shape[1:])
        else:
            patch = [self.n_mels, kernel.shape[1] // self.n_mels]
        ours["encoder.patch_embedding.weight"] = kernel.flatten(1).contiguous()
        self.place_positions(ours, self.n_mels // patch[0])
        grid = {"n_mels": self.n_mels, "patch": patch, "stride": patch}
        grid["keep_partial"] = self.keep_partial
        steps = ours["encoder.positions.table"].shape[1]
        config["encoder"] = {
            "grid": grid,
            **self.size_of(ours),
            "table_frames": steps * patch[1],
            "table": list(ours["encoder.positions.table"].shape[:2]),
            "blocks": "attention",
            **self.encoder,
        }
        config["features"] = {"n_mels": self.n_mels, **self.features}
        config["pooling"] = {
            "depth": config["encoder"]["depth"],
            **self.pooling,
        }
        if self.chunks is not None:
            config["chunks"] = dict(self.chunks)
        self.complete_head(ours, config, report)

    def size_of(self, ours):
        """Return the sizes of the encoder; raise if blocks are missing."""
        numbers = [re.match(r"encoder\.blocks\.(\d+)\.", key) for key in ours]
        depth = 1 + max((int(m[1]) for m in numbers if m), default=-1)
        hidden, dim = ours["encoder.blocks.0.mlp.fc1.weight"].shape
        wanted = self.sizes.get(dim, depth)
        if depth != wanted:
            raise WeightsError(
                f"{depth} blocks of size {dim}: {self.title} has {wanted}"
            )
        if dim % self.head_size:
            raise WeightsError(
                f"tokens of size {dim}, not a multiple of the heads' "
                f"{self.head_size}"
            )
        return {
            "dim": dim,
            "depth": depth,
            "heads": dim // self.head_size,
            "mlp_ratio": hidden / dim if hidden % dim else hidden // dim,
        }

    def place_positions(self, ours, n_freq):
        """Split the position rows into our table and our class positions."""
        rows = ours.pop("positions")[0]
        dim, first = rows.shape[1], self.position_rows
        n_classes = self.encoder["n_class_tokens"]
        if n_classes:
            ours["encoder.class_tokens"] = ours["encoder.class_tokens"][
                0
            ].clone()
        else:
            ours["encoder.class_tokens"] = rows.new_zeros(0, dim)
        # A class token without a row gets a position of zeros.
        own = rows.new_zeros(n_classes, dim)
        own[:first] = rows[:first][:n_classes]
        ours["encoder.class_positions"] = own
        rows = rows[first:]
        if len(rows) % n_freq:
            raise WeightsError(
                f"the table has {len(rows)} patch positions, not a multiple "
                f"of the {n_freq} bands of {self.title}"
            )
        if self.time_major:
            table = rows.unflatten(0, (-1, n_freq)).transpose(0, 1)
        else:
            table = rows.unflatten(0, (n_freq, -1))
        ours["encoder.positions.table"] = table.contiguous()

    def complete_head(self, ours, config, report):
        """Configure the head, if the checkpoint is fine-tuned."""
        if "head.linear.weight" not in ours:
            norm = [ours.pop(key) for key in list(ours) if "head.norm" in key]
            if norm:
                report.append(
                    "left out: a norm of clip vectors without classes"
                )
            return
        n_classes = len(ours["head.linear.weight"])
        config.update(kind="classifier", multi_label=False)
        config["labels"] = [str(number) for number in range(n_classes)]
        config["head"] = {"projection": None, "norm_eps": 1e-6}
        if "head.norm.weight" not in ours:
            config["head"]["norm_eps"] = None

    @property
    def card(self):
        """The entries for the model card of an export."""
        text = f"Weights of {self.title}: {self.license}; {self.source}."
        if self.license_id == "other":
            text += " Do not pass this folder on."
        card = {"weights": text, "paper": f"{self.paper}."}
        if self.license_id is not None:
            card["license"] = self.license_id
        return card

    def at_length(self, weights, frames):
        """Adapt weights to another length, as the official code does.

        Most families need no change.

        Arguments
        ---------
        weights : Weights
            The result of `translate`, which is changed in place.
        frames : int
            Length to which all clips are padded.
        """
