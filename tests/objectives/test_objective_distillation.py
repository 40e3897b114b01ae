"""Distillation: targets by hand, times, padding, cache, and what is kept."""

import json

import pytest
import torch
from objective_kit import build_with, teacher
from torch import nn
from torch.nn.functional import cosine_similarity, layer_norm

from ssast_lobes import (
    FrontEnd,
    Grid,
    PretrainingLobe,
    SpectrogramEncoder,
    SpectrogramLobe,
    Teacher,
    load_teachers,
)
from ssast_lobes.checkpoints.folder import export_encoder, export_pretrained
from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.warm_start import initialize
from ssast_lobes.objectives import load_objective
from ssast_lobes.utils.checks import ArgumentError
from ssast_lobes.utils.metrics import effective_rank

LENGTHS = torch.tensor([16000, 9000, 12345, 16000])


class Local(nn.Module):
    """A lobe of another kind: sound and loudness of each piece of a clip."""

    def __init__(self, hop=320, hidden_states=False, as_tuple=False):
        super().__init__()
        self.hop = hop
        self.mix = nn.Linear(4, 6)
        self.hidden_states = hidden_states
        self.as_tuple = as_tuple

    def forward(self, wav, wav_lens):
        """Return (B, T, 6), or (3, B, T, 6)."""
        pieces = wav[:, : wav.shape[1] // self.hop * self.hop]
        pieces = pieces.unflatten(1, (-1, self.hop))
        # Padding would count, as in lobes with a norm over time.
        mean = wav.mean(1, keepdim=True)
        parts = [x.mean(2) for x in (pieces.abs(), pieces.square(), pieces)]
        x = self.mix(torch.stack([*parts, parts[0] * 0 + mean], dim=2))
        x = torch.stack([x, 2 * x, x.tanh()]) if self.hidden_states else x
        return (x,) if self.as_tuple else x


def build(teachers=None, **arguments):
    torch.manual_seed(0)
    teachers = [teacher()] if teachers is None else teachers
    return build_with("distillation", teachers=teachers, **arguments)


def waves(lengths=LENGTHS, seed=3, padding=0.0):
    draw = torch.Generator().manual_seed(seed)
    most = int(max(lengths))
    wavs = 0.1 * torch.randn(len(lengths), most, generator=draw)
    is_sample = torch.arange(most) < torch.as_tensor(lengths)[:, None]
    return torch.where(is_sample, wavs, padding)


def loss_of(objective, wavs, lengths=LENGTHS):
    pretrainer = PretrainingLobe(objective, FrontEnd())
    return pretrainer(wavs, lengths / wavs.shape[1])


def targets_of(objective, wavs, lengths=LENGTHS):
    feats, n_frames = FrontEnd()(wavs, lengths / wavs.shape[1])
    grid, most = objective.encoder.grid, feats.shape[1]
    n_time = grid.n_time(n_frames)
    is_step = torch.arange(grid.n_time(most)) < n_time[:, None]
    return objective.targets(wavs, lengths, is_step), is_step


def changed(one, other):
    return {k for k in one if not torch.equal(one[k], other[k])}


# What is compared ---------------------------------------------------------


def test_targets_and_loss_by_hand():
    """A teacher of the student's patches: its steps are the student's."""
    objective = build([teacher(patch=(16, 16), depth=5)], pairs=2)
    assert objective.layers == [[(1, 2), (2, 5)]]
    wavs = waves()
    lobe = objective.teachers[0].lobe
    states = lobe.extract_features(wavs, LENGTHS / 16000, True).hidden_states
    feats, n_frames = FrontEnd()(wavs, LENGTHS / 16000)
    encoded = objective.encoder(feats, n_frames, hidden_states=True)
    loss, cosines = 0, []
    first = encoded.hidden_states[1].unflatten(1, (8, -1)).mean(1)
    for head, own, layer in zip(
        objective.heads[0], (first, encoded.frames), (2, 5), strict=True
    ):
        target = states[layer].unflatten(1, (8, -1)).mean(1)
        target = layer_norm(target, target.shape[2:])
        for row, count in enumerate(encoded.n_time.tolist()):
            given, wanted = head(own[row, :count]), target[row, :count]
            cosine = cosine_similarity(given, wanted, dim=1)
            term = (1 + (-cosine).exp()).log().mean()
            loss += ((given - wanted).abs().mean() + term) / len(wavs)
            cosines.append(cosine.mean())
    output = loss_of(objective, wavs)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    mean = torch.stack(cosines).mean().item()
    assert output.logs["cosine"].item() == pytest.approx(mean, abs=1e-6)


# Finer, about as long, and coarser than the student's step of 160 ms.
@pytest.mark.parametrize("hop", [160, 2560, 8000])
def test_a_click_is_heard_at_its_time(hop):
    objective = build([Teacher(Local(hop))])
    length = torch.tensor([32000])
    (quiet,), _ = targets_of(objective, waves(length), length)
    for second in (0.5, 0.9, 1.3):
        wavs, click = waves(length), int(second * 16000)
        wavs[:, click : click + 100] += 3
        (targets,), _ = targets_of(objective, wavs, length)
        step = int((targets - quiet)[-1, 0].norm(dim=1).argmax())
        middle = objective.timing.start + 0.16 * (step + 0.5)
        # Half a step of the student, and half of the teacher's.
        assert abs(middle - second) < 0.09 + hop / 32000


TEACHERS = {
    "other patches": lambda: teacher(patch=(64, 4)),
    "other mel bins": lambda: other_features(n_mels=64),
    "centered frames every 20 ms": lambda: other_features(
        n_mels=64, fbank={"kind": "centered", "hop_samples": 320}
    ),
    "overlapping patches": lambda: overlapping(),
    "mamba": lambda: teacher(blocks="mamba"),
    "one output": lambda: Teacher(Local()),
    "hidden states": lambda: Teacher(Local(hidden_states=True)),
    "a tuple": lambda: Teacher(Local(as_tuple=True)),
}


def other_features(**arguments):
    features = FrontEnd(**arguments)
    grid = Grid(features.fbank.n_mels, (16, 8))
    encoder = SpectrogramEncoder(grid, dim=24, depth=2, heads=2)
    return Teacher(SpectrogramLobe(encoder, features))


def overlapping():
    grid = Grid(128, (16, 16), (10, 10))
    return Teacher(
        SpectrogramLobe(SpectrogramEncoder(grid, dim=24, depth=2, heads=2))
    )


@pytest.mark.parametrize("name", TEACHERS)
def test_any_teacher_teaches_and_a_clip_is_alone(name):
    torch.manual_seed(2)
    objective = build([TEACHERS[name]()]).eval()
    wavs = waves()
    (targets,), is_step = targets_of(objective, wavs)
    # Only a last partial step may hear nothing.
    heard = targets.any(3).all(0)
    assert (heard | ~is_step).sum() >= heard.numel() - 4 and heard[:, 0].all()
    (noisy,), _ = targets_of(objective, waves(padding=9.0))
    for row, count in enumerate(LENGTHS.tolist()):
        own = wavs[row : row + 1, :count]
        (alone,), steps = targets_of(objective, own, LENGTHS[row : row + 1])
        for batch in (targets, noisy):
            part = batch[:, row, : steps.shape[1]]
            assert (part - alone[:, 0]).abs().max() < 2e-5
    output = loss_of(objective, wavs)
    output.loss.backward()
    for key, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key


def test_the_loss_of_a_clip_does_not_depend_on_its_neighbors():
    objective = build([teacher(), Teacher(Local())]).eval()
    wavs = waves()
    alone = [
        loss_of(objective, wavs[[row], :count], torch.tensor([count])).loss
        for row, count in enumerate(LENGTHS.tolist())
    ]
    whole = loss_of(objective, waves(padding=5.0)).loss.item()
    assert whole == pytest.approx(sum(alone).item() / 4, rel=1e-5)


@pytest.mark.parametrize("blocks", ["mamba", "mamba_reference"])
def test_a_mamba_student_learns(blocks):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=32, depth=2, blocks=blocks)
    objective = load_objective("distillation")(encoder, teachers=[teacher()])
    loss_of(objective, waves()).loss.backward()
    for key, parameter in objective.named_parameters():
        assert parameter.grad.any() or not parameter.requires_grad, key


def test_what_a_teacher_has_not_heard_does_not_count():
    """The lobe has no frame of 300 samples; our encoders complete a patch."""
    lengths = torch.tensor([300, 250])
    objective = build([Teacher(Local())])
    output = loss_of(objective, waves(lengths), lengths)
    output.loss.backward()
    assert output.loss == 0
    objective = build([teacher(), Teacher(Local())])
    both = loss_of(objective, waves(lengths), lengths)
    both.loss.backward()
    for one in objective.parameters():
        assert one.grad is None or one.grad.isfinite().all()
    alone = loss_of(build([teacher()]), waves(lengths), lengths)
    assert both.logs["cosine_2"] == 0 < alone.loss.item() < 5


def test_bf16_autocast_trains_and_stays_near():
    objective = build([teacher(), Teacher(Local())])
    exact = loss_of(objective, waves()).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        output = loss_of(objective, waves())
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(exact, rel=0.01)
    assert all(p.grad.isfinite().all() for p in objective.heads.parameters())


def test_several_teachers_are_told_apart():
    output = loss_of(build([teacher(), Teacher(Local())]), waves())
    one, two = output.logs["cosine_1"], output.logs["cosine_2"]
    # Three pairs of the first, one of the second.
    assert output.logs["cosine"].item() == pytest.approx(
        (3 * one + two).item() / 4, abs=1e-6
    )
    alone = loss_of(build([teacher()]), waves()).logs
    assert "cosine_1" not in alone


# Learning -----------------------------------------------------------------


def tones():
    """Eight clips of a drifting tone each, of two lengths."""
    time = torch.arange(12800) / 16000
    pitch = torch.linspace(200, 3000, 8)[:, None]
    drift = torch.tensor([1.0, 0.0] * 4)[:, None]
    wavs = 0.2 * (6.2832 * pitch * time * (1 + drift * time)).sin()
    lengths = torch.tensor([12800, 9000] * 4)
    wavs = wavs + 0.01 * waves([12800] * 8)
    return wavs * (torch.arange(12800) < lengths[:, None]), lengths


def optimize(objective, steps, optimizer=None):
    if optimizer is None:
        optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    history = []
    for _ in range(steps):
        output = loss_of(objective, *tones())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append({"loss": output.loss.detach(), **output.logs})
    return history


def test_it_learns_and_does_not_collapse(tmp_path):
    teachers = load_teachers("ssast-lobes-micro-1")
    # The cache saves the time of hearing the same clips again.
    objective = build(teachers, cache=tmp_path)
    history = optimize(objective, 50)
    first, last = history[0], history[-1]
    print({name: (first[name].item(), x.item()) for name, x in last.items()})
    assert last["loss"] < 0.7 * first["loss"]
    # The best constant has the cosine of the targets with their mean. The
    # student learns it first, and its outputs spread less for a while.
    constant = (1 - last["target_std"].square()).sqrt()
    assert last["cosine"] > constant
    assert last["projection_std"] > 0.3
    wavs, lengths = tones()
    with torch.no_grad():
        feats, n_frames = FrontEnd()(wavs, lengths / wavs.shape[1])
        clips = objective.encoder(feats, n_frames).clip()
    assert effective_rank(clips - clips.mean(0)) > 2


@pytest.mark.parametrize("cached", [False, True])
def test_a_resumed_run_equals_one_that_was_not_stopped(cached, tmp_path):
    def start(number):
        cache = {"cache": tmp_path / number} if cached else {}
        objective = build(**cache)
        return objective, torch.optim.AdamW(objective.parameters(), lr=2e-3)

    whole, optimizer = start("one")
    optimize(whole, 4, optimizer)
    first, optimizer = start("two")
    optimize(first, 2, optimizer)
    second, resumed = start("two")
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    optimize(second, 2, resumed)
    assert not changed(second.state_dict(), whole.state_dict())


# Teachers -----------------------------------------------------------------


def test_teachers_are_no_part_of_the_model():
    objective = build([teacher(), Teacher(Local())]).train()
    before = [
        {key: x.clone() for key, x in one.state_dict().items()}
        for one in objective.teachers
    ]
    optimize(objective, 2)
    for one, former in zip(objective.teachers, before, strict=True):
        assert not changed(one.state_dict(), former)
        assert not any(module.training for module in one.train().modules())
        assert not any(p.requires_grad for p in one.parameters())
    expected = {"encoder", "heads"}
    parts = (objective.state_dict(), dict(objective.named_parameters()))
    assert all({k.split(".")[0] for k in part} == expected for part in parts)
    exported = objective.exported_state()
    assert {key.split(".")[0] for key in exported} == {"encoder"}
    objective.double()
    assert objective.teachers[1].lobe.mix.weight.dtype == torch.float64


def test_an_export_names_its_teachers_and_is_trained_on(tmp_path):
    lobe = teacher().lobe
    source = export_encoder(
        tmp_path / "home/me/big/export", lobe.encoder, lobe.features, card={}
    )
    objective = build(load_teachers(str(source)))
    optimize(objective, 1)
    folder = export_pretrained(
        tmp_path / "small", objective, FrontEnd(), card={}
    )
    card = (folder / "README.md").read_text()
    assert "DistilHuBERT, ICASSP 2022); taught by big/export\n" in card
    weights = load_weights(folder)
    config = json.loads(json.dumps(weights.config["objective"]))
    assert config.pop("name") == "Distillation"
    config["teachers"] = load_teachers(config["teachers"])
    again = type(objective)(
        SpectrogramEncoder(**objective.encoder.config), **config
    )
    assert again.config == objective.config
    initialize(again.encoder, weights, again)
    state = objective.encoder.state_dict()
    assert not changed(again.encoder.state_dict(), state)
    # Encoders of a distilled model teach in turn.
    assert load_teachers(folder)[0].dim == 32


class Rate(Local):
    sample_rate = 8000


@pytest.mark.parametrize(
    "sources, message",
    [
        (None, "teachers must be exported folders or lobes.*--teachers"),
        ([], "teachers must be exported folders or lobes"),
        (["nowhere/to"], "teachers: nowhere/to: no such file"),
        (nn.Linear(2, 2), "the teacher Linear does not take lobe.wav, wav_l"),
        (
            SpectrogramLobe(
                SpectrogramEncoder(dim=8, depth=1, heads=1), output="clip"
            ),
            None,
        ),
        (Local(hop=16000), r"output of the teacher Local must be frames"),
        (Rate(), "Rate takes audio at 8000 Hz, the student at 16000 Hz"),
    ],
)
def test_teachers_that_cannot_be_are_told(sources, message):
    if message is None:
        # Our own lobes have layers, whatever they put out.
        assert build(load_teachers(sources)).layers == [[(2, 1)]]
        return
    with pytest.raises((ArgumentError, WeightsError), match=message) as info:
        build(load_teachers(sources))
    assert "\n" not in str(info.value)


def test_no_teacher_is_refused():
    with pytest.raises(ArgumentError, match="at least one teacher"):
        build([])


def test_a_student_of_another_rate_is_refused():
    with pytest.raises(ArgumentError, match="16000 Hz, the student at 8000"):
        build(features=FrontEnd(sample_rate=8000))


# Cache --------------------------------------------------------------------


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


class Counted(Local):
    calls = 0

    def forward(self, wav, wav_lens):
        """Count the clips that are heard."""
        Counted.calls += len(wav)
        return super().forward(wav, wav_lens)


def test_cached_targets_are_those_of_teachers(tmp_path):
    lobes = [Teacher(Counted()), teacher()]
    plain, cached = build(lobes), build(lobes, cache=tmp_path)
    Counted.calls = 0
    expected, _ = targets_of(plain, waves())
    assert Counted.calls == 4
    for calls in (8, 8):
        found, _ = targets_of(cached, waves(padding=9.0))
        assert Counted.calls == calls
        for one, other in zip(found, expected, strict=True):
            # float16 has 11 bits.
            assert ((one - other).abs() <= 2**-11 * other.abs() + 2e-5).all()
    assert len(files(tmp_path)) == 4
    # A damaged file is made again, the same to the last bit.
    whole = files(tmp_path)[0].read_bytes()
    files(tmp_path)[0].write_bytes(whole[:50])
    targets_of(cached, waves())
    assert Counted.calls == 9
    assert files(tmp_path)[0].read_bytes() == whole


def test_crops_are_not_kept_and_other_weights_have_other_files(tmp_path):
    objective = build(cache=tmp_path, crop_seconds=1.0)
    targets_of(objective, waves())
    assert len(files(tmp_path)) == 2
    # In validation crops stay where they are.
    targets_of(objective.eval(), waves())
    assert len(files(tmp_path)) == 4
    louder = Teacher(SpectrogramLobe(teacher().lobe.encoder, FrontEnd("esc50")))
    others = [teacher(seed=8)], [louder]
    for other in (*({"teachers": one} for one in others), {"pairs": 3}):
        before = len(files(tmp_path))
        other = build(**other, cache=tmp_path)
        targets_of(other, waves())
        assert len(files(tmp_path)) == before + 4


# A lobe of SpeechBrain's ---------------------------------------------------


@pytest.mark.slow
def test_a_wav2vec_lobe_teaches(tmp_path):
    transformers = pytest.importorskip("transformers")
    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2

    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    source, save_path = str(tmp_path), str(tmp_path)
    lobe = Wav2Vec2(source, save_path, output_all_hiddens=True)
    objective = build(load_teachers(lobe))
    assert objective.layers == [[(1, 1), (1, 2), (2, 3)]]
    wavs = waves()
    (targets,), _ = targets_of(objective, wavs)
    (alone,), steps = targets_of(objective, wavs[1:2, :9000], LENGTHS[1:2])
    part = targets[:, 1, : steps.shape[1]]
    assert (part - alone[:, 0]).abs().max() < 1e-4
    assert loss_of(objective, wavs).loss.isfinite()


class Fixed(Local):
    """It pads clips to 30 s, as Whisper does."""

    def forward(self, wav, wav_lens):
        wav = nn.functional.pad(wav, (0, 30 * 16000 - wav.shape[1]))
        return super().forward(wav, wav_lens)


def test_a_teacher_that_pads_clips_to_one_length_is_refused():
    with pytest.raises(
        ArgumentError, match="Fixed returns 1500 frames for cli"
    ):
        Teacher(Fixed())
