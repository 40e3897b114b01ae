"""Define modules and hooks by which SpeechBrain loads an export."""

import torch
from speechbrain.utils.fetching import FetchConfig, FetchSource, LocalStrategy
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import nn

from ssast_lobes.checkpoints.format import Weights, WeightsError, load_strictly
from ssast_lobes.checkpoints.tensors import read_state
from ssast_lobes.inference.windows import Windowing
from ssast_lobes.lobes.spectrogram import SpectrogramLobe
from ssast_lobes.utils.lengths import sample_counts


class PassThrough(nn.Module):
    """Return the first argument.

    It replaces features and normalization of SpeechBrain's `EncoderClassifier`,
    since `WindowedLobe` takes the waveform.

    Example
    -------
    >>> PassThrough()("wav", "wav_lens")
    'wav'
    """

    def forward(self, x, *_):
        """Return `x`."""
        return x


class WindowClassifier(nn.Module):
    """Return the log-probabilities of clip vectors, as `AudioClassifier` does.

    If a clip has several windows, its probabilities are the mean over the
    windows, weighted by duration.

    Arguments
    ---------
    head : ClassificationHead
        Returns the scores (logits) of a vector.
    multi_label : bool
        Whether labels are independent. Otherwise, probabilities sum to 1.

    Example
    -------
    >>> from ssast_lobes import ClassificationHead
    >>> classifier = WindowClassifier(ClassificationHead(32, 5), False)
    >>> classifier(torch.randn(2, 1, 32)).exp().sum(-1).round(decimals=4)
    tensor([[1.],
            [1.]], grad_fn=<RoundBackward1>)
    """

    def __init__(self, head, multi_label):
        super().__init__()
        self.head = head
        self.log = nn.LogSigmoid() if multi_label else nn.LogSoftmax(dim=-1)

    def forward(self, clip):
        """Classify clip vectors.

        Arguments
        ---------
        clip : torch.Tensor
            (B, 1, D), from `WindowedLobe`.

        Returns
        -------
        torch.Tensor
            (B, 1, C).
        """
        if not hasattr(clip, "windows"):
            return self.log(self.head(clip))
        vectors, weights = clip.windows
        logs = self.log(self.head(vectors)) + weights.log()[..., None]
        return logs.logsumexp(1, keepdim=True)


class ExportPretrainer(Pretrainer):
    """SpeechBrain's Pretrainer, with `paths` relative to the source.

    If an entry of `paths` is only a file name, the parent searches the working
    folder. If a loadable has no entry, the parent searches the source for
    ``<loadable>.ckpt``. This class searches the source for the files of
    `paths`. The source is that of ``from_hparams``: a folder, a URL or a model
    hub.

    Arguments
    ---------
    **arguments
        See ``speechbrain.utils.parameter_transfer.Pretrainer``. `paths` maps
        each loadable to a file name.

    Example
    -------
    >>> layer = torch.nn.Linear(1, 1)
    >>> folder = getfixture("tmpdir")
    >>> torch.save(layer.state_dict(), folder / "layer.pt")
    >>> pretrainer = ExportPretrainer(
    ...     loadables={"model": layer}, paths={"model": "layer.pt"}
    ... )
    >>> pretrainer.collect_files(default_source=folder)["model"].name
    'layer.pt'
    """

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.files = dict(self.paths)

    def collect_files(
        self,
        default_source=None,
        local_strategy=LocalStrategy.SYMLINK,
        fetch_config=FetchConfig(),  # noqa: B008, a frozen dataclass
    ):
        """Fetch the files; see the parent for arguments and result."""
        for name, file in self.files.items():
            if isinstance(default_source, FetchSource):
                kind, folder = default_source
                self.paths[name] = FetchSource(kind, f"{folder}/{file}")
            else:
                self.paths[name] = f"{default_source}/{file}"
        return super().collect_files(
            default_source, local_strategy, fetch_config
        )


def load_modules(modules, path):
    """Load the tensors of an export strictly, as a hook of the Pretrainer.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        ``encoder``, ``pooling`` and, if there is one, ``head``.
    path : str or path
        The safetensors file. Tensors of an objective are ignored.

    Raises
    ------
    WeightsError
        If the file is missing or damaged, or its tensors do not fit the
        modules.

    Example
    -------
    >>> from safetensors.torch import save_file
    >>> modules = torch.nn.ModuleDict({"encoder": torch.nn.Linear(1, 1)})
    >>> path = getfixture("tmpdir") / "model.safetensors"
    >>> save_file({"encoder.weight": torch.ones(1, 1)}, path)
    >>> load_modules(modules, path)
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: ...: encoder: missing bias
    """
    weights = Weights(read_state(path), {})
    known = {*modules, "objective"}
    surplus = [key for key in weights.state if key.split(".")[0] not in known]
    if surplus:
        raise WeightsError(f"{path}: unexpected {', '.join(surplus)}")
    for name, module in modules.items():
        load_strictly(module, weights.part(name), f"{path}: {name}")


def load_labels(label_encoder, path):
    """Load the labels of an export strictly, as a hook of the Pretrainer.

    Arguments
    ---------
    label_encoder : speechbrain.dataio.encoder.CategoricalEncoder
        The encoder to load into.
    path : str or path
        The file.

    Raises
    ------
    WeightsError
        If the file is missing or damaged.

    Example
    -------
    >>> from speechbrain.dataio.encoder import CategoricalEncoder
    >>> load_labels(CategoricalEncoder(), "nowhere.txt")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: nowhere.txt: missing or damaged (...)
    """
    try:
        label_encoder.load(path)
    except (OSError, ValueError, SyntaxError, KeyError) as error:
        raise WeightsError(f"{path}: missing or damaged ({error})") from error
    label_encoder.expect_len(len(label_encoder))


class WindowedLobe(SpectrogramLobe):
    """Return clip vectors of audio of any length.

    This is the `embedding_model` of an exported folder. If a clip has several
    windows, its vector is the mean of the window vectors, weighted by duration.
    The probabilities of the clip are the mean of the probabilities of the
    windows, which the mean vector does not determine. But SpeechBrain passes
    only one tensor to its classifier (``self.mods.classifier(emb)`` in
    `EncoderClassifier`). So the returned tensor has an attribute `windows` for
    `WindowClassifier`: vectors (B, W, D) and weights (B, W). A tensor computed
    from the returned tensor has no `windows`.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder.
    features : FrontEnd
        The front end.
    pooling : ClipPooling
        The pooling to a clip vector.
    window_seconds : float
        Length of a window.

    Example
    -------
    >>> from ssast_lobes import ClipPooling, FrontEnd, SpectrogramEncoder
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> lobe = WindowedLobe(encoder, FrontEnd(), ClipPooling(1), 1.0)
    >>> clip = lobe(torch.randn(2, 40000), torch.tensor([1.0, 0.3]))
    >>> clip.shape, clip.windows[0].shape
    (torch.Size([2, 1, 32]), torch.Size([2, 5, 32]))
    """

    def __init__(self, encoder, features, pooling, window_seconds):
        super().__init__(encoder, features, "clip", pooling)
        self.windowing = Windowing(
            self.features.fbank, encoder.grid, window_seconds
        )

    def forward(self, wav, wav_lens=None):
        """Represent a batch of waveforms; see the parent for arguments.

        Returns
        -------
        torch.Tensor
            (B, 1, `clip_size`).
        """
        if self.windowing.count(wav.shape[-1]) == 1:
            return super().forward(wav, wav_lens)
        lengths = sample_counts(wav, wav_lens)
        vectors, weights = self.windowing.clips(self, wav, lengths)
        clip = torch.einsum("bw,bwd->bd", weights, vectors)[:, None]
        clip.windows = vectors, weights
        return clip
