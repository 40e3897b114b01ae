"""The swaps of `recipes/Swaps` under the calls of SpeechBrain's recipes.

SpeechBrain's recipes are not installed with it. Each has a Brain here, of our
own, that makes the same calls of the same modules and hyperparameters; `KEYS`
are what the script reads next to its Brain. A test that fails here says that
the YAML does not fit that contract.
"""

import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from run_page import blocks_of
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.nnet.schedulers import update_learning_rate
from speechbrain.utils.data_pipeline import provides, takes
from torch.nn.parallel import DistributedDataParallel
from yaml_keys import CodeReader, Tree, unused

from ssast_lobes import (
    SSAST,
    FrontEnd,
    Grid,
    SpectrogramClassifier,
    SpectrogramEncoder,
    SpectrogramLobe,
)
from ssast_lobes.checkpoints.folder import (
    export_classifier,
    export_pretrained,
    label_encoder_of,
)
from ssast_lobes.objectives import MSPM

SWAPS = Path(__file__).parents[2] / "recipes" / "Swaps"
TRAIN, VALID = sb.Stage.TRAIN, sb.Stage.VALID
LETTERS = "-abcdef"

# SpeechBrain's recipes, in small --------------------------------------------


class Neighbor(sb.Brain):
    """What their Brains do alike at the ends of stages."""

    # Shared with the scripts, next to what each adds.
    KEYS = {"data_folder", "output_folder", "save_folder", "skip_prep"}
    KEYS |= {"modules", "checkpointer", "epoch_counter"}
    OPT_CLASS = "opt_class"

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Anneal, log and save after validation."""
        if stage == TRAIN:
            self.train_loss = stage_loss
            return
        stats = {"loss": stage_loss, **self.summary()}
        if stage == VALID:
            self.anneal(epoch, stats)
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch},
                train_stats={"loss": self.train_loss},
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta=stats, min_keys=[self.MIN_KEY]
            )
        self.loss = stage_loss


class TwoOptimizers:
    """The lobe has an optimizer and an annealing of its own."""

    def init_optimizers(self):
        """As IEMOCAP and SLURP do."""
        self.wav2vec2_optimizer = self.hparams.wav2vec2_opt_class(
            self.modules.wav2vec2.parameters()
        )
        self.optimizer = self.hparams.opt_class(self.hparams.model.parameters())
        for name in ("wav2vec2_optimizer", "optimizer"):
            self.checkpointer.add_recoverable(name, getattr(self, name))
        self.optimizers_dict = {
            "model": self.optimizer,
            "wav2vec2": self.wav2vec2_optimizer,
        }

    def anneal(self, epoch, stats):
        """Lower both rates where the metric does not fall."""
        _, lr = self.hparams.lr_annealing(stats[self.MIN_KEY])
        _, lobe_lr = self.hparams.lr_annealing_wav2vec2(stats[self.MIN_KEY])
        update_learning_rate(self.optimizer, lr)
        update_learning_rate(self.wav2vec2_optimizer, lobe_lr)


class Emotion(TwoOptimizers, Neighbor):
    """IEMOCAP/emotion_recognition/train_with_wav2vec2.py."""

    YAML = "iemocap_emotion.yaml"
    LOBE, FREEZE, MIN_KEY = "wav2vec2", "freeze_wav2vec2", "error_rate"
    LOADERS = ("dataloader_options", "dataloader_options")
    KEYS = Neighbor.KEYS | {
        "train_annotation",
        "valid_annotation",
        "opt_class",
    }
    KEYS |= {"test_annotation", "split_ratio", "different_speakers", "wav2vec2"}
    KEYS |= {"test_spk_id", "freeze_wav2vec2_conv", "dataloader_options"}
    KEYS |= {"freeze_wav2vec2", "seed"}
    SMALL = {"dataloader_options": {"num_workers": 0}}

    def compute_forward(self, batch, stage):
        """Waveforms to log-probabilities (B, C)."""
        wavs, lens = batch.to(self.device).sig
        pooled = self.hparams.avg_pool(self.modules.wav2vec2(wavs, lens), lens)
        scores = self.modules.output_mlp(pooled.view(pooled.shape[0], -1))
        return self.hparams.log_softmax(scores)

    def compute_objectives(self, predictions, batch, stage):
        """Loss of the batch."""
        target = batch.label.data.squeeze(1)
        if stage != TRAIN:
            self.error_metrics.append(batch.id, predictions, target)
        return self.hparams.compute_cost(predictions, target)

    def on_stage_start(self, stage, epoch=None):
        """Start the metrics."""
        self.error_metrics = self.hparams.error_stats()

    def summary(self):
        """Metrics of the stage."""
        return {"error_rate": self.error_metrics.summarize("average")}


class WordErrors:
    """Word and character errors, as recipes with text have them."""

    def on_stage_start(self, stage, epoch=None):
        """Start the metrics."""
        self.cer_metric = self.hparams.cer_computer()
        self.wer_metric = self.hparams.error_rate_computer()

    def count(self, batch, hypotheses):
        """Add a batch to the metrics."""
        words = [self.words(sequence) for sequence in hypotheses]
        target = [self.words(x.tolist()) for x in batch.tokens.data]
        for metric in (self.wer_metric, self.cer_metric):
            metric.append(batch.id, words, target)

    def words(self, sequence):
        """Token indices to words."""
        return "".join(LETTERS[i % len(LETTERS)] for i in sequence).split("f")

    def summary(self):
        """Metrics of the stage."""
        cer = self.cer_metric.summarize("error_rate")
        return {"WER": self.wer_metric.summarize("error_rate"), "CER": cer}


class Characters(WordErrors, Neighbor):
    """LibriSpeech/ASR/CTC/train_with_wav2vec.py."""

    YAML = "librispeech_ctc.yaml"
    LOBE, FREEZE, MIN_KEY = "wav2vec2", "freeze_wav2vec", "WER"
    LOADERS = ("train_dataloader_opts", "valid_dataloader_opts")
    OPT_CLASS = None
    KEYS = Neighbor.KEYS | {"train_splits", "dev_splits", "test_splits"}
    KEYS |= {"train_csv", "valid_csv", "test_csv", "sorting", "blank_index"}
    KEYS |= {"train_dataloader_opts", "valid_dataloader_opts"}
    KEYS |= {"test_dataloader_opts", "test_beam_search", "output_wer_folder"}
    SMALL = {"dnn_neurons": 16, "output_neurons": len(LETTERS)}

    def compute_forward(self, batch, stage):
        """Waveforms to log-probabilities (B, T, C)."""
        wavs, wav_lens = batch.to(self.device).sig
        if stage == TRAIN and hasattr(self.hparams, "wav_augment"):
            wavs, wav_lens = self.hparams.wav_augment(wavs, wav_lens)
        feats = self.modules.wav2vec2(wavs, wav_lens)
        logits = self.modules.ctc_lin(self.modules.enc(feats))
        p_ctc = self.hparams.log_softmax(logits)
        if stage == TRAIN:
            return p_ctc, wav_lens, None
        blank = self.hparams.blank_index
        decoded = sb.decoders.ctc_greedy_decode(p_ctc, wav_lens, blank)
        return p_ctc, wav_lens, decoded

    def compute_objectives(self, predictions, batch, stage):
        """Loss of the batch."""
        p_ctc, wav_lens, decoded = predictions
        tokens, tokens_lens = batch.tokens
        if stage == TRAIN and hasattr(self.hparams, "wav_augment"):
            augment = self.hparams.wav_augment
            both = augment.replicate_multiple_labels(tokens, tokens_lens)
            tokens, tokens_lens = both
        if stage != TRAIN:
            self.count(batch, decoded)
        return self.hparams.ctc_cost(p_ctc, tokens, wav_lens, tokens_lens)

    def init_optimizers(self):
        """Leave the lobe's optimizer out where the lobe is frozen."""
        self.wav2vec_optimizer = self.hparams.wav2vec_opt_class(
            self.modules.wav2vec2.parameters()
        )
        self.model_optimizer = self.hparams.model_opt_class(
            self.hparams.model.parameters()
        )
        self.optimizers_dict = {"model": self.model_optimizer}
        if not self.hparams.freeze_wav2vec:
            self.optimizers_dict["wav2vec"] = self.wav2vec_optimizer
        self.checkpointer.add_recoverable("wav2vec_opt", self.wav2vec_optimizer)
        self.checkpointer.add_recoverable("modelopt", self.model_optimizer)

    def anneal(self, epoch, stats):
        """Anneal on the loss."""
        _, lr = self.hparams.lr_annealing_model(stats["loss"])
        _, lobe_lr = self.hparams.lr_annealing_wav2vec(stats["loss"])
        update_learning_rate(self.model_optimizer, lr)
        update_learning_rate(self.wav2vec_optimizer, lobe_lr)


class Meaning(TwoOptimizers, WordErrors, Neighbor):
    """SLURP/direct/train_with_wav2vec2.py."""

    YAML = "slurp_slu.yaml"
    LOBE, FREEZE, MIN_KEY = "wav2vec2", "freeze_wav2vec2", "WER"
    LOADERS = ("dataloader_opts", "dataloader_opts")
    KEYS = Neighbor.KEYS | {"csv_train", "csv_valid", "csv_test", "sorting"}
    KEYS |= {"train_splits", "tokenizer", "pretrainer", "bos_index", "wav2vec2"}
    KEYS |= {"eos_index", "freeze_wav2vec2", "freeze_wav2vec2_conv"}
    KEYS |= {"dataloader_opts", "opt_class", "test_wer_file"}
    SMALL = {"dec_neurons": 16, "slu_beam_size": 2, "max_decode_ratio": 0.2}
    SMALL |= {"output_neurons": len(LETTERS), "emb_size": 8}

    def compute_forward(self, batch, stage):
        """Waveforms to log-probabilities of the next token (B, U, C)."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        tokens_bos, _ = batch.tokens_bos
        if stage == TRAIN and hasattr(self.hparams, "wav_augment"):
            wavs, wav_lens = self.hparams.wav_augment(wavs, wav_lens)
            tokens_bos = self.hparams.wav_augment.replicate_labels(tokens_bos)
        encoded = self.modules.wav2vec2(wavs, wav_lens)
        embedded = self.hparams.output_emb(tokens_bos)
        h, _ = self.hparams.dec(embedded, encoded, wav_lens)
        p_seq = self.hparams.log_softmax(self.hparams.seq_lin(h))
        if stage == TRAIN:
            return p_seq, wav_lens
        hyps, *_ = self.hparams.beam_searcher(encoded.detach(), wav_lens)
        return p_seq, wav_lens, hyps

    def compute_objectives(self, predictions, batch, stage):
        """Loss of the batch."""
        tokens_eos, lens = batch.tokens_eos
        if stage == TRAIN and hasattr(self.hparams, "wav_augment"):
            tokens_eos = self.hparams.wav_augment.replicate_labels(tokens_eos)
            lens = self.hparams.wav_augment.replicate_labels(lens)
        if stage != TRAIN:
            self.count(batch, predictions[2])
        return self.hparams.seq_cost(predictions[0], tokens_eos, length=lens)


class Embedding(Neighbor):
    """What Speech Commands and VoxCeleb do alike: no lengths for the model."""

    LOBE, FREEZE, MIN_KEY = "embedding_model", "freeze", "ErrorRate"
    LOADERS = ("dataloader_options", "dataloader_options")
    KEYS = Neighbor.KEYS | {"train_annotation", "valid_annotation"}
    KEYS |= {"prepare_noise_data", "prepare_rir_data", "dataloader_options"}
    KEYS |= {"opt_class"}
    SMALL = {"num_workers": 0}

    def compute_forward(self, batch, stage):
        """Waveforms to scores (B, 1, C)."""
        wavs, lens = batch.to(self.device).sig
        if stage == TRAIN and hasattr(self.hparams, "wav_augment"):
            wavs, lens = self.hparams.wav_augment(wavs, lens)
        feats = self.modules.compute_features(wavs)
        feats = self.modules.mean_var_norm(feats, lens)
        outputs = self.modules.classifier(self.modules.embedding_model(feats))
        if "softmax" in self.modules.keys():
            outputs = self.modules.softmax(outputs)
        return outputs, lens

    def compute_objectives(self, predictions, batch, stage):
        """Loss of the batch."""
        outputs, lens = predictions
        target, _ = batch.label
        if stage == TRAIN and hasattr(self.hparams, "wav_augment"):
            target = self.hparams.wav_augment.replicate_labels(target)
        loss = self.hparams.compute_cost(outputs, target, lens)
        if stage == TRAIN and hasattr(
            self.hparams.lr_annealing, "on_batch_end"
        ):
            self.hparams.lr_annealing.on_batch_end(self.optimizer)
        if stage != TRAIN:
            self.error_metrics.append(batch.id, outputs, target, lens)
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Start the metrics."""
        self.error_metrics = self.hparams.error_stats()

    def anneal(self, epoch, stats):
        """Anneal by the epoch."""
        _, lr = self.hparams.lr_annealing(epoch)
        update_learning_rate(self.optimizer, lr)

    def summary(self):
        """Metrics of the stage."""
        return {"ErrorRate": self.error_metrics.summarize("average")}


class Commands(Embedding):
    """Google-speech-commands/train.py."""

    YAML = "speech_commands.yaml"
    KEYS = Embedding.KEYS | {"number_of_commands", "percentage_unknown"}
    KEYS |= {"percentage_silence", "validation_percentage", "test_annotation"}
    KEYS |= {"testing_percentage"}


class Speaker(Embedding):
    """VoxCeleb/SpeakerRec/train_speaker_embeddings.py."""

    YAML = "voxceleb_speaker.yaml"
    KEYS = Embedding.KEYS | {"verification_file", "split_ratio", "sample_rate"}
    KEYS |= {"sentence_len", "random_chunk"}
    SMALL = Embedding.SMALL | {"out_n_neurons": 4}


VERIFICATION_KEYS = (
    "data_folder save_folder output_folder train_data enrol_data test_data "
    "n_train_snts train_dataloader_opts enrol_dataloader_opts "
    "test_dataloader_opts score_norm cohort_size verification_file "
    "split_ratio skip_prep pretrainer compute_features mean_var_norm "
    "embedding_model"
).split()

BRAINS = [Emotion, Characters, Meaning, Commands, Speaker]
# They give the lobe the lengths of the clips.
SEQUENCES = [Emotion, Characters, Meaning]
CLIPS = [Commands, Speaker]
EACH = pytest.mark.parametrize("brain", BRAINS, ids=lambda b: b.YAML[:-5])
SOURCES = ("scratch", "export")


# Building small runs ------------------------------------------------------


def clip(number, samples):
    """A tone with noise, its own for each number, (samples,)."""
    draw = torch.Generator().manual_seed(number)
    time = torch.arange(samples) / 16000
    tone = torch.sin(2 * torch.pi * (200 + 150 * number) * time)
    return 0.1 * tone + 0.01 * torch.randn(samples, generator=draw)


def dataset(numbers):
    """Clips of 0.3 to 0.5 s with all that the recipes take next to them."""
    items = {
        f"clip{number}": {
            "number": number,
            "samples": 8000 - 800 * (number % 5),
            "tokens": torch.tensor([1 + number % 4, 5, 1 + number % 2]),
        }
        for number in numbers
    }
    data = DynamicItemDataset(items)

    @takes("number", "samples", "tokens")
    @provides("sig", "label", "tokens_bos", "tokens_eos")
    def pipeline(number, samples, tokens):
        yield clip(number, samples)
        yield torch.tensor([number % 4])
        edge = torch.tensor([0])
        yield torch.cat([edge, tokens])
        yield torch.cat([tokens, edge])

    data.add_dynamic_item(pipeline)
    data.set_output_keys(
        ["id", "sig", "label", "tokens", "tokens_bos", "tokens_eos"]
    )
    return data


def noises(folder):
    """Write a noise and a room response; their CSV files, by YAML key."""
    rng = np.random.default_rng(0)
    sounds = {
        "noise": 0.1 * rng.standard_normal(8000),
        "rir": np.exp(-np.arange(400) / 40) * rng.standard_normal(400),
    }
    tables = {f"{name}_annotation": folder / f"{name}.csv" for name in sounds}
    if not folder.exists():
        folder.mkdir(parents=True)
        for (name, sound), table in zip(
            sounds.items(), tables.values(), strict=True
        ):
            path, seconds = folder / f"{name}.wav", len(sound) / 16000
            soundfile.write(path, sound, 16000)
            table.write_text(
                "ID,duration,wav,wav_format,wav_opts\n"
                f"{name},{seconds},{path},wav,\n"
            )
    return {key: str(table) for key, table in tables.items()}


def hparams_of(yaml, folder, **overrides):
    overrides |= {"output_folder": str(folder), "data_folder": str(folder)}
    with open(SWAPS / yaml, encoding="utf-8") as file:
        return load_hyperpyyaml(file, overrides)


def build(brain, folder, source=None, freeze=False, seed=1, epochs=1, **opts):
    """The Brain of a recipe, as the script builds it from the swap's YAML."""
    small = {**brain.SMALL, "model_size": "micro", "seed": seed}
    if source is not None:
        small |= {"source": str(source)}
    if brain in CLIPS:
        small |= noises(folder.parent / "noises")
    small |= {brain.FREEZE: freeze, "batch_size": 2, "number_of_epochs": epochs}
    hparams = hparams_of(brain.YAML, folder, **small)
    if brain.KEYS >= {"freeze_wav2vec2_conv"}:
        hparams["wav2vec2"] = hparams["wav2vec2"].to(device=None)
        assert freeze or not hparams["freeze_wav2vec2_conv"]
    return brain(
        modules=hparams["modules"],
        opt_class=hparams.get(brain.OPT_CLASS),
        hparams=hparams,
        run_opts={"device": "cpu", "noprogressbar": True, **opts},
        checkpointer=hparams["checkpointer"],
    )


def fit(brain, clips=4):
    hparams = vars(brain.hparams)
    train, valid = (hparams[name] for name in brain.LOADERS)
    brain.fit(
        brain.hparams.epoch_counter,
        dataset(range(clips)),
        dataset(range(3)),
        train_loader_kwargs=dict(train),
        valid_loader_kwargs=dict(valid),
    )
    return brain


def lobe_of(brain):
    """The lobe of a Brain, not wrapped."""
    return vars(brain.hparams)["modules"][brain.LOBE]


def others_of(brain):
    """Parameters of a Brain without those of the lobe."""
    lobe = {id(parameter) for parameter in lobe_of(brain).parameters()}
    return [p for p in brain.modules.parameters() if id(p) not in lobe]


def predict(brain, *waves):
    """What the Brain predicts for a padded batch, in evaluation."""
    examples = [
        {"id": str(row), "sig": wave, "tokens_bos": torch.tensor([0, 3, 1])}
        for row, wave in enumerate(waves)
    ]
    brain.modules.eval()
    brain.on_stage_start(VALID)
    batch = sb.dataio.batch.PaddedBatch(examples)
    with torch.no_grad():
        out = brain.compute_forward(batch, VALID)
    return out[0] if isinstance(out, tuple) else out


def copy_of(module):
    state = module.state_dict().items()
    return {key: value.detach().clone() for key, value in state}


def same(state, other):
    return state.keys() == other.keys() and all(
        torch.equal(value, other[key]) for key, value in state.items()
    )


def tiny_encoder():
    torch.manual_seed(5)
    grid = Grid(128, (128, 2))
    return SpectrogramEncoder(grid, dim=32, depth=2, heads=2, table_frames=64)


def export_to(folder, brain=None):
    """An exported folder; a classifier of weighted layers for clip outputs."""
    features = FrontEnd({"mean": -5.0, "std": 3.0})
    if brain not in CLIPS:
        return export_pretrained(folder, MSPM(tiny_encoder()), features, {})
    model = SpectrogramClassifier(tiny_encoder(), 2, layers="weighted")
    labels = label_encoder_of(["a", "b"])
    return export_classifier(folder, model, features, labels, False, {})


@pytest.fixture
def source(request, brain, tmp_path):
    if request.param == "scratch":
        return None
    return export_to(tmp_path / "export", brain)


FROM_BOTH = pytest.mark.parametrize("source", SOURCES, indirect=True)


# Keys ---------------------------------------------------------------------


@EACH
def test_keys_are_those_that_the_script_needs(brain, tmp_path):
    yaml = SWAPS / brain.YAML
    hparams = hparams_of(brain.YAML, tmp_path, model_size="micro")
    assert brain.KEYS <= hparams.keys()
    kinds = [kind for kind in brain.__mro__ if kind.__module__ == __name__]
    sources = [textwrap.dedent(inspect.getsource(kind)) for kind in kinds]
    read = set().union(*(CodeReader(source).paths for source in sources))
    read |= {(key,) for key in brain.KEYS} | {("modules",)}
    tree = Tree(yaml)
    assert unused(yaml, [(tree, read)]) + tree.problems + tree.dangling() == []


def test_all_swaps_are_tried():
    names = {path.name for path in SWAPS.glob("*.yaml")}
    others = {"voxceleb_verification.yaml", "pretraining.yaml"}
    assert names == {b.YAML for b in BRAINS} | others
    shown = (SWAPS / "README.md").read_text("utf-8")
    assert all(name in shown for name in names)


# Training -----------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [pytest.param("scratch", marks=pytest.mark.slow), "export"],
    indirect=True,
)
@EACH
def test_trains_saves_and_resumes(brain, source, tmp_path):
    first = build(brain, tmp_path / "run", source)
    lobe, before = lobe_of(first), copy_of(lobe_of(first))
    dim = 128 if source is None else 32
    assert lobe.output_size == dim
    assert any(p.shape[-1] == dim for p in others_of(first))
    if source is not None:
        theirs = SpectrogramLobe.from_export(source, lobe.output)
        assert same(copy_of(theirs.encoder), copy_of(lobe.encoder))
        assert lobe.features.config == theirs.features.config
    fit(first)
    assert np.isfinite([first.train_loss, first.loss]).all()
    assert not same(before, copy_of(lobe))

    again = build(brain, tmp_path / "run", source, seed=2)
    again.on_evaluate_start(min_key=brain.MIN_KEY)
    assert same(copy_of(lobe), copy_of(lobe_of(again)))
    torch.manual_seed(0)
    expected = predict(first, clip(1, 8000), clip(2, 4000))
    torch.manual_seed(0)
    assert torch.equal(predict(again, clip(1, 8000), clip(2, 4000)), expected)

    longer = build(brain, tmp_path / "run", source, seed=3, epochs=2)
    fit(longer)
    assert longer.hparams.epoch_counter.current == 2
    # Both epochs are in the optimizer's memory: two steps each.
    for optimizer in longer.optimizers_dict.values():
        steps = [int(state["step"]) for state in optimizer.state.values()]
        assert steps and set(steps) == {4}


@FROM_BOTH
@EACH
def test_frozen(brain, source, tmp_path):
    run = build(brain, tmp_path / "run", source, freeze=True)
    before = copy_of(lobe_of(run))
    heads = [parameter.detach().clone() for parameter in others_of(run)]
    fit(run)
    run.modules.train()
    assert not any(module.training for module in lobe_of(run).modules())
    assert same(before, copy_of(lobe_of(run)))
    assert all(p.grad is None for p in lobe_of(run).parameters())
    changed = [
        not torch.equal(a, b)
        for a, b in zip(heads, others_of(run), strict=True)
    ]
    assert any(changed)


@EACH
def test_bf16(brain, tmp_path):
    source = export_to(tmp_path / "export", brain)
    run = fit(build(brain, tmp_path / "run", source, precision="bf16"))
    assert np.isfinite([run.train_loss, run.loss]).all()


# Lengths ------------------------------------------------------------------


@pytest.mark.parametrize("brain", SEQUENCES)
def test_padding_is_no_audio(brain, tmp_path):
    run = build(brain, tmp_path / "run", export_to(tmp_path / "export"))
    if brain is Emotion:
        run.hparams.avg_pool.eps = 0.0  # the noise that it adds
    long, short = clip(1, 8000), clip(2, 4000)
    alone = predict(run, short)[0]
    own = predict(run, long, short)[1]
    if brain is Characters:
        assert (len(own), len(alone)) == (24, 12)
        own = own[:12]
    torch.testing.assert_close(own, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("brain", CLIPS)
def test_padding_counts_as_audio_where_no_lengths_are_given(brain, tmp_path):
    source = export_to(tmp_path / "export", brain)
    run = build(brain, tmp_path / "run", source)
    long, short = clip(1, 8000), clip(2, 4000)
    own = predict(run, long, short)[1]
    silent = torch.nn.functional.pad(short, (0, 4000))
    torch.testing.assert_close(own, predict(run, silent)[0])
    assert (own - predict(run, short)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("patch", [(128, 2), (16, 16)])
def test_their_rounding_of_lengths_is_at_most_one_step_off(patch):
    """They take round(share * T') steps for a clip, we count its own."""
    grid, fbank = Grid(128, patch), FrontEnd().fbank
    samples = torch.arange(1600, 160000)
    own = grid.n_time(fbank.frames_of(samples))
    for longest in (16000, 48123, 159999):
        some = samples <= longest
        whole = grid.n_time(fbank.frames_of(longest))
        theirs = torch.round(samples / longest * whole)
        assert (theirs - own)[some].abs().max() <= 1


def test_frame_models_give_ctc_enough_steps(tmp_path):
    """Speech has some 15 characters a second."""
    rates = {}
    for geometry in ("frame", "patch"):
        hparams = hparams_of(
            Characters.YAML, tmp_path, model_size="micro", geometry=geometry
        )
        steps = hparams["wav2vec2"](torch.randn(1, 10 * 16000)).shape[1]
        rates[geometry] = steps / 10
    assert rates["frame"] == pytest.approx(50, abs=0.2)
    assert rates["patch"] == pytest.approx(6.3, abs=0.1)


# Verification -------------------------------------------------------------


def test_verification_loads_what_was_trained(tmp_path):
    source = export_to(tmp_path / "export", Speaker)
    run = fit(build(Speaker, tmp_path / "run", source))
    [checkpoint] = (tmp_path / "run" / "save").glob("CKPT*")
    hparams = hparams_of(
        "voxceleb_verification.yaml",
        tmp_path / "verification",
        pretrain_path=str(checkpoint),
        source=str(source),
    )
    assert hparams.keys() >= set(VERIFICATION_KEYS)
    Path(hparams["save_folder"]).mkdir(parents=True)  # the data are there
    hparams["pretrainer"].collect_files()
    hparams["pretrainer"].load_collected()
    model = hparams["embedding_model"].eval()
    assert same(copy_of(model), copy_of(lobe_of(run)))
    wavs = torch.stack([clip(1, 8000), clip(2, 8000)])
    wavs[1, 4000:] = 0
    lens = torch.tensor([1.0, 0.5])
    feats = hparams["mean_var_norm"](hparams["compute_features"](wavs), lens)
    with torch.no_grad():
        embeddings = model(feats, lens).squeeze(1)
        alone = model(wavs[1:, :4000]).squeeze(1)
    assert embeddings.shape == (2, 32)
    torch.testing.assert_close(embeddings[1:], alone, atol=1e-5, rtol=0)


# Pretraining --------------------------------------------------------------


@pytest.mark.slow
def test_pretraining_in_a_plain_brain(tmp_path, monkeypatch):
    """The page shows the YAML and a script of 40 lines, which trains."""
    page = SWAPS.parents[1] / "docs" / "speechbrain_recipes.md"
    blocks = blocks_of(page.read_text("utf-8"))
    [settings] = [b.code for b in blocks if b.language == "yaml"]
    assert settings == (SWAPS / "pretraining.yaml").read_text("utf-8")
    python = [b.code for b in blocks if b.language == "python"]
    [audio] = [code for code in python if "chirp" in code]
    [script] = [code for code in python if "(sb.Brain)" in code]
    assert len(script.splitlines()) <= 40

    monkeypatch.chdir(tmp_path)
    Path("pretraining.yaml").write_text(settings)
    before = copy_of(load_hyperpyyaml(settings)["model"])
    session = {}
    exec(audio, session)
    exec(script, session)
    log = Path("results/pretraining/train_log.txt").read_text()
    losses = [float(loss) for loss in re.findall(r"loss: (\S+)", log)]
    assert len(losses) == 5 and losses[-1] < 0.8 * losses[0]
    trained = session["hparams"]["objective"]
    after = copy_of(session["hparams"]["model"])
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    parameters = [f"objective.{key}" for key, _ in trained.named_parameters()]
    assert set(moved) == set(parameters)
    lobe = SSAST(source="pretrained")
    assert same(copy_of(lobe.encoder), copy_of(trained.encoder))


# Two processes ------------------------------------------------------------

DISTRIBUTED = """
import os, sys
from pathlib import Path
import torch
from speechbrain.utils.distributed import ddp_init_group
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/recipes"]
import test_swaps as kit

ddp_init_group({"distributed_backend": "gloo"})
folder, rank = Path(sys.argv[2]), int(os.environ["RANK"])
for brain in kit.BRAINS:
    kit.distributed(brain, folder / brain.__name__, rank)
torch.distributed.destroy_process_group()
"""


def distributed(brain, folder, rank):
    """What one of two processes does with a swap."""
    opts = {"distributed_backend": "gloo"}
    source = folder / "export"
    run = fit(build(brain, folder / "run", source, **opts), clips=8)
    assert run.optimizer_step == 2
    for module in run.modules.values():
        trained = any(p.requires_grad for p in module.parameters())
        assert isinstance(module, DistributedDataParallel) == trained
    state = copy_of(lobe_of(run))
    torch.save(state, folder / f"{rank}.pt")
    again = build(brain, folder / "run", source, seed=2, **opts)
    again.on_evaluate_start(min_key=brain.MIN_KEY)
    assert same(state, copy_of(lobe_of(again)))
    still = build(brain, folder / "still", source, freeze=True, **opts)
    before = copy_of(lobe_of(still))
    fit(still, clips=8)
    assert not isinstance(still.modules[brain.LOBE], DistributedDataParallel)
    assert same(before, copy_of(lobe_of(still)))


@pytest.mark.slow
def test_two_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED)
    for brain in BRAINS:
        export_to(tmp_path / brain.__name__ / "export", brain)
        noises(tmp_path / brain.__name__ / "noises")
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        + ["--nproc_per_node=2", script, Path(__file__).parents[1], tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "SB_DISABLE_QUIRKS": "allow_tf32"},
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for brain in BRAINS:
        folder = tmp_path / brain.__name__
        both = [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
        assert same(*both)
