"""Write an exported folder as one graph: waveform in, scores out.

Front end, encoder and classifier become a ``torch.export`` program or an ONNX
file, which needs neither Python nor this package. Batch size and length stay
variable, and the result of a clip does not depend on its neighbors. An ONNX
file is only kept if ONNX Runtime reproduces the results of the model. This
module needs torch 2.9 or newer; ONNX needs the extra ``onnx`` of this package.
"""

import importlib.util
import inspect
import json
import logging
import os
import warnings
from contextlib import contextmanager

import torch
from torch import nn
from tqdm import tqdm

from ssast_lobes.inference.classifier import AudioClassifier
from ssast_lobes.inference.encoder import AudioEncoder
from ssast_lobes.models.mel_spectrogram import MelSpectrogram

INPUTS = ("wav", "lengths")

# Largest allowed difference between an ONNX file and the model.
TOLERANCE = 1e-4
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class DeploymentError(ValueError):
    """An error that says why a model cannot be deployed, and how to fix it."""


class DeployedModel(nn.Module):
    """An exported folder as one module that can be traced.

    Arguments
    ---------
    source : str or path
        Exported folder.

    Raises
    ------
    DeploymentError
        If the model's blocks scan tokens, as in SSAMBA, since no graph then
        fits all lengths. Also if the model is an event detector.
    WeightsError
        See `AudioEncoder.from_hparams`.

    Example
    -------
    >>> from ssast_lobes import FrontEnd, SpectrogramEncoder
    >>> from ssast_lobes.checkpoints.folder import export_pretrained
    >>> from ssast_lobes.objectives import MSPM
    >>> objective = MSPM(SpectrogramEncoder(dim=32, depth=1, heads=2))
    >>> folder = getfixture("tmpdir") / "export"
    >>> _ = export_pretrained(folder, objective, FrontEnd(), card={})
    >>> model = DeployedModel(folder)
    >>> clip, frames, n_time = model(
    ...     torch.randn(2, 16000), torch.tensor([16000, 8000])
    ... )
    >>> clip.shape, frames.shape, n_time.tolist()
    (torch.Size([2, 32]), torch.Size([2, 7, 32]), [7, 3])
    """

    def __init__(self, source):
        super().__init__()
        interface = AudioEncoder.from_hparams(source)
        if interface.lobe.encoder.scans:
            raise DeploymentError(
                f"{source}: its {interface.lobe.encoder.kind} blocks scan "
                "tokens one by one, which a graph cannot do for all lengths; "
                "only attention blocks can be exported"
            )
        if interface.kind == "detector":
            raise DeploymentError(
                f"{source}: a detector of events has no graph, only "
                "classifiers and pretrained models have one"
            )
        self.metadata = {
            "kind": interface.kind,
            "sample_rate": interface.sample_rate,
            "window_seconds": interface.window_seconds,
        }
        self.head = None
        if interface.kind == "classifier":
            interface = AudioClassifier.from_hparams(source)
            self.head = interface.head
            self.metadata["labels"] = interface.labels
            self.metadata["multi_label"] = interface.multi_label
        self.lobe = interface.lobe
        self.requires_grad_(False).eval()

    @property
    def outputs(self):
        """Names of the tensors that `forward` returns."""
        if self.head is None:
            return ("clip", "frames", "n_time")
        return ("scores",)

    def forward(self, wav, lengths):
        """Classify or embed a batch.

        Arguments
        ---------
        wav : torch.Tensor
            Mono waveforms (B, S), float32, at the model's rate. Padding may
            have any values.
        lengths : torch.Tensor
            Samples of each clip (B,), int64, at least 25 ms each.

        Returns
        -------
        tuple of torch.Tensor
            For a classifier, the probabilities (B, C), as from
            `AudioClassifier` for one window. For a pretrained model, the clip
            vectors (B, D or more), the frames (B, T', D), 0 at padding, and
            the number of frames of each clip (B,), int64. With reference
            padding, audio after the first `pad_frames` of a clip is dropped.
        """
        lengths = lengths.clamp(max=wav.shape[1])
        wav, max_frames = self._fill(wav)
        encoder, pooling = self.lobe.encoder, self.lobe.pooling
        # `_fill` may cut audio after the last patch or the reference padding.
        kept = lengths.clamp(max=wav.shape[1])
        feats, n_frames = self.lobe.features(wav, kept.double() / wav.shape[1])
        encoded = encoder(
            feats[:, :max_frames],
            n_frames.clamp(max=max_frames),
            hidden_states=pooling.needs_hidden_states,
        )
        clip = pooling(encoded)
        if self.head is None:
            own = self.lobe.features.fbank.frames_of(lengths)
            # Reference padding cuts longer clips, so limit their frames.
            n_time = encoder.grid.n_time(own)
            n_time = n_time.clamp(max=encoded.frames.shape[1])
            return clip, encoded.frames, n_time
        scores = self.head(clip)
        if self.metadata["multi_label"]:
            return (scores.sigmoid(),)
        return (scores.softmax(-1),)

    def _fill(self, wav):
        """Return waveforms for whole patches, and their number of frames.

        A graph has no branches, so it cannot treat a partial last patch or a
        single patch differently. Added samples come after the end of every
        clip and are masked.
        """
        fbank, grid = self.lobe.features.fbank, self.lobe.encoder.grid
        samples = wav.shape[1]
        n_frames = self.lobe.features.pad_frames
        if n_frames is None:
            n_time = grid.n_time(fbank.frames_of(samples))
            n_time = torch.sym_max(n_time, 2)
            n_frames = (n_time - 1) * grid.stride[1] + grid.patch[1]
        wanted = fbank.samples_of(n_frames)
        if isinstance(fbank, MelSpectrogram):
            # The last frames need the samples that come after them.
            wanted = torch.sym_max(wanted, samples)
        index = torch.arange(wanted, device=wav.device).clamp(max=samples - 1)
        return wav.index_select(1, index), n_frames


def export_program(source):
    """Trace an exported folder with ``torch.export``.

    Arguments
    ---------
    source : str or path
        Exported folder.

    Returns
    -------
    torch.export.ExportedProgram
        Inputs and outputs are those of `DeployedModel.forward`, for any batch
        size and clip length, on the CPU.

    Raises
    ------
    DeploymentError
        If this torch is too old, or `DeployedModel` does not support the model.
    WeightsError
        See `AudioEncoder.from_hparams`.
    """
    return _trace(DeployedModel(source), source)


def _trace(model, source):
    option = "prefer_deferred_runtime_asserts_over_guards"
    if option not in inspect.signature(torch.export.export).parameters:
        raise DeploymentError(
            f"torch {torch.__version__} cannot export models that take audio "
            "of any length: use torch 2.9 or newer"
        )
    rate = model.metadata["sample_rate"]
    example = (torch.zeros(2, rate), torch.tensor([rate, rate // 2]))
    batch = torch.export.Dim("batch")
    shortest = model.lobe.features.fbank.least_samples
    samples = torch.export.Dim("samples", min=shortest)
    try:
        return torch.export.export(
            model,
            example,
            dynamic_shapes={
                "wav": {0: batch, 1: samples},
                "lengths": {0: batch},
            },
            strict=False,
            **{option: True},
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise DeploymentError(
            f"{source}: torch.export cannot trace this model ({reason})"
        ) from error


def write_program(source, path):
    """Write an exported folder as a ``.pt2`` file of ``torch.export``.

    Arguments
    ---------
    source : str or path
        Exported folder.
    path : str or path
        The file to write, which appears when complete. Call
        ``torch.export.load(path).module()`` like a `DeployedModel`. The extra
        file ``metadata.json`` contains the labels and the sampling rate.

    Raises
    ------
    DeploymentError, WeightsError
        See `export_program`.
    """
    model = DeployedModel(source)
    with _progress("Tracing", "Writing") as step:
        program = _trace(model, source)
        step()
        with _whole(path) as partial:
            extra = {"metadata.json": json.dumps(model.metadata)}
            torch.export.save(program, partial, extra_files=extra)


def write_onnx(source, path):
    """Write an exported folder as an ONNX file, checked with ONNX Runtime.

    Inputs and outputs are those of `DeployedModel.forward`. The inputs are
    called ``wav`` and ``lengths``. The outputs are called ``scores``, or
    ``clip``, ``frames`` and ``n_time``. The file's metadata states the kind of
    the export, the sampling rate, the window and the labels, each as JSON.

    Arguments
    ---------
    source : str or path
        Exported folder.
    path : str or path
        The file to write, which appears when complete.

    Returns
    -------
    float
        Largest difference between ONNX Runtime and the model, at most 1e-4. It
        is measured on noise of several lengths, in batches of one and two.

    Raises
    ------
    DeploymentError
        If a package of the extra ``onnx`` is missing, this torch is too old,
        `DeployedModel` does not support the model, or ONNX Runtime gives other
        results.
    WeightsError
        See `AudioEncoder.from_hparams`.
    """
    missing = [x for x in _ONNX_PACKAGES if not importlib.util.find_spec(x)]
    if missing:
        raise DeploymentError(
            f"{', '.join(missing)} missing: pip install 'ssast_lobes[onnx]'"
        )
    model = DeployedModel(source)
    with _progress("Tracing", "Translating", "Checking") as step:
        program = _trace(model, source)
        step()
        with _quiet():
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                input_names=INPUTS,
                output_names=model.outputs,
                dynamic_shapes={
                    "wav": {0: "batch", 1: "samples"},
                    "lengths": {0: "batch"},
                },
                verbose=False,
            )
        onnx_program.model.metadata_props.update(
            {key: json.dumps(value) for key, value in model.metadata.items()}
        )
        step()
        with _whole(path) as partial:
            onnx_program.save(partial, external_data=False)
            difference = _compare(model, partial)
            if not difference <= TOLERANCE:
                raise DeploymentError(
                    f"{source}: ONNX Runtime differs from the model by "
                    f"{difference:.2g}, more than {TOLERANCE:g}"
                )
    return difference


def _compare(model, path):
    """Return the largest difference of an ONNX file from its model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for lengths in _lengths_to_compare(model):
        shape = (len(lengths), max(lengths))
        wav = 0.1 * torch.randn(shape, generator=generator)
        lengths = torch.tensor(lengths)
        with torch.inference_mode():
            expected = model(wav, lengths)
        inputs = (wav.numpy(), lengths.numpy())
        results = session.run(None, dict(zip(INPUTS, inputs, strict=True)))
        for result, wanted in zip(results, expected, strict=True):
            gap = (torch.from_numpy(result) - wanted).abs().max().item()
            # Comparisons with NaN are never true, so count NaN as an infinite
            # difference.
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def _lengths_to_compare(model):
    """Return sample counts of test batches, also beyond any padding."""
    rate, features = model.metadata["sample_rate"], model.lobe.features
    batches = [[rate // 4], [rate, rate // 3], [5 * rate // 2]]
    if features.pad_frames is not None:
        padded = features.pad_frames * features.fbank.hop_samples
        batches.append([padded + rate, rate // 3])
    return batches


@contextmanager
def _progress(*steps):
    """Show a progress bar of named steps; yield a function to end a step."""
    names = iter(steps[1:])
    with tqdm(desc=steps[0], total=len(steps), unit="step", leave=False) as bar:

        def end():
            bar.update()
            bar.set_description(next(names))

        yield end


@contextmanager
def _quiet():
    """Hide the exporter's warnings about torchvision and deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _whole(path):
    """Yield a temporary name to write to; rename the file at the end."""
    path = os.path.abspath(os.fspath(path))
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    # torch.export and ONNX check the suffix of the name.
    partial = os.path.join(folder, f".{os.getpid()}.partial.{name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
