"""Objectives, maskers, augmentation and features never wait for the device.

Where there is no CUDA, tensors without contents stand for those on the
device: whatever would have to know a value raises, as does a copy to or from
the host. Where there is, CUDA itself says so.
"""

import pytest
import torch
from objective_kit import PRESETS, VARIANTS, audio
from objective_kit import build as build_objective
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ssast_lobes import SpectrogramClassifier, SpectrogramEncoder
from ssast_lobes.augment.augmentation import (
    Mixup,
    NoiseAndRoll,
    SpectrogramMasking,
)
from ssast_lobes.models.features import FrontEnd
from ssast_lobes.utils.presets import build as build_preset
from ssast_lobes.utils.presets import read_preset

# Its official mask generator is a Python loop.
LOOPED = ["mspm_reference"]
OBJECTIVES = [name for name in PRESETS if name not in LOOPED]


def marked(names):
    """Variants of a preset compute as it does: they are slow tests."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in VARIANTS else [])
        for name in names
    ]


def fakes_cuda():
    """Whether tensors without contents can be on CUDA where there is none."""
    try:
        with FakeTensorMode():
            torch.arange(2, device="cuda")[None]
    except RuntimeError:
        return False
    return True


needs_fake_cuda = pytest.mark.skipif(
    not fakes_cuda(), reason="this torch fakes CUDA with its driver only"
)
WAITING = (DataDependentOutputException, DynamicOutputShapeException)


class NoCopies(TorchDispatchMode):
    """Raises where values go from the device to the host, or back."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.name() == "aten::_to_copy":
            kinds = {args[0].device.type, result.device.type}
        elif func.name() == "aten::copy_":
            kinds = {args[0].device.type, args[1].device.type}
        else:
            return result
        if len(kinds) > 1:
            raise AssertionError(f"{func} waits for the device")
        return result


def build(name):
    """Something that a step of training calls, and its arguments."""
    wav, lens = torch.randn(3, 24000), torch.rand(3)
    feats, n_frames = torch.randn(3, 160, 128), torch.randint(1, 161, (3,))
    if name == "features":
        return FrontEnd(), (wav, lens)
    if name == "mixup":
        return Mixup(), (wav, lens, torch.eye(3))
    if name == "degradation":
        preset = read_preset("degradation", "speech")
        return build_preset(preset)["degradation"], (wav, lens)
    module = MODULES[name]()
    if getattr(module, "needs_audio", False):
        return hearing(module), (feats, n_frames, *audio(module, 0, 3).values())
    return module, (feats, n_frames)


def hearing(objective):
    """An objective that takes the waveforms by their places."""

    def forward(feats, n_frames, wavs, n_samples):
        return type(objective).forward(
            objective, feats, n_frames, wavs=wavs, n_samples=n_samples
        )

    objective.forward = forward
    return objective


def without_contents(module, arguments, device):
    """The same on a device, without values: call it in `FakeTensorMode`."""

    def empty(tensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    teachers = getattr(module, "teachers", ())
    for part in [p for one in (module, *teachers) for p in one.modules()]:
        for key, own in part._parameters.items():
            if own is not None:
                gradient = own.requires_grad
                part._parameters[key] = nn.Parameter(empty(own), gradient)
        for key, own in part._buffers.items():
            if own is not None:
                part._buffers[key] = empty(own)
    return module, [empty(argument) for argument in arguments]


def classifier():
    encoder = SpectrogramEncoder(dim=32, depth=2, heads=2, drop_path=0.1)
    return SpectrogramClassifier(encoder, n_classes=3)


def objective(name):
    return lambda: build_objective(name)


MODULES = {
    "masking": lambda: SpectrogramMasking(24, 24),
    "noise": NoiseAndRoll,
    "classifier": classifier,
    **{name: objective(name) for name in OBJECTIVES},
}
NAMES = ["features", "mixup", "degradation", *MODULES]


def call(module, arguments):
    """Forward; gives what there is to minimise, or None."""
    output = module(*arguments)
    if hasattr(output, "loss"):
        return output.loss
    output = output[0] if isinstance(output, tuple) else output
    return output.sum() if output.requires_grad else None


# Draws of the Gamma distribution have no stand-in.
@needs_fake_cuda
@pytest.mark.parametrize("name", marked(n for n in NAMES if n != "mixup"))
def test_nothing_waits_for_the_device(name):
    built = build(name)
    with FakeTensorMode():
        module, arguments = without_contents(*built, "cuda")
        with NoCopies():
            call(module, arguments)


# On the CPU the front end of a teacher looks at the lengths of clips.
FEATURES_ONLY = [name for name in OBJECTIVES if name != "distillation"]


@pytest.mark.slow
@pytest.mark.parametrize("name", marked(["classifier", *FEATURES_ONLY]))
def test_no_gradient_waits_for_the_device(name, monkeypatch):
    # Without a GPU there is no backward pass on the device. On the CPU the
    # encoder looks whether there is padding, unless it is compiled.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    built = build(name)
    with FakeTensorMode():
        module, arguments = without_contents(*built, "cpu")
        call(module, arguments).backward()
        assert any(p.grad is not None for p in module.parameters())
        if name in OBJECTIVES:
            module.after_step(1, 2)


class NoLooks(TorchDispatchMode):
    """Raises where the host would read a value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name in ("aten::_local_scalar_dense", "aten::nonzero"):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def test_mixup_does_not_look():
    module, arguments = build("mixup")
    with NoLooks():
        module(*arguments)


def look(x):
    return bool((x > 0).all())


def pick(x):
    return x[x > 0]


def fetch(x):
    return x.cpu()


def send(x):
    return x + torch.tensor([1.0, 2.0], device=x.device)


@needs_fake_cuda
@pytest.mark.parametrize("wait", [look, pick, fetch, send])
def test_waiting_would_be_found(wait):
    with FakeTensorMode():
        x = torch.zeros(2, device="cuda")
        with NoCopies(), pytest.raises((*WAITING, AssertionError)):
            wait(x)
    with NoLooks(), pytest.raises(AssertionError):
        look(torch.zeros(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_is_never_waited_for(name):
    module, arguments = build(name)
    module, arguments = module.cuda(), [x.cuda() for x in arguments]
    for mode in ("default", "error"):  # at first kernels are made ready
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss = call(module, arguments)
            if loss is not None:
                loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
