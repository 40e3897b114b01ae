"""Speech recognition: tokens, words and learning."""

import functools
import itertools
import math
from types import SimpleNamespace

import brain_kit as kit
import pytest
import torch
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.nnet.losses import ctc_loss
from speechbrain.tokenizers.SentencePiece import SentencePiece

from ssast_lobes import FrontEnd, SpectrogramEncoder, collate
from ssast_lobes.models.heads import SpectrogramRecognizer
from ssast_lobes.training import RecognitionBrain, load_tokenizer
from ssast_lobes.training.errors import SettingsError

BLANK = 2
TEXTS = ["ONE TWO", "TWO'S COMPANY", "THREE'S A CROWD", "ONE TWO THREE"]
# Of nine words: right; one replaced; two too many, and a word of no pieces;
# two not heard.
HEARD = {
    "THE CAT SAT": ["THE", "CAT", "SAT"],
    "THE DOG RAN": ["THE", "FOG", "RAN"],
    "NO": ["NO", "", "NO", "NO"],
    "IT RAINS": [],
}


@pytest.fixture
def tokenizer(tmp_path):
    """As the YAML of the recipe has it, but for its size."""
    (tmp_path / "transcripts.txt").write_text("\n".join([*TEXTS, ""]))
    return functools.partial(
        SentencePiece,
        model_dir=str(tmp_path / "tokenizer"),
        vocab_size=18,
        text_file=str(tmp_path / "transcripts.txt"),
    )


def test_tokenizer_writes_what_it_reads(tokenizer, tmp_path):
    own = load_tokenizer(tokenizer)
    numbers = [own.sp.encode_as_ids(text) for text in TEXTS]
    assert max(map(max, numbers)) < own.sp.vocab_size() == 18
    words = own(numbers, task="decode_from_list")
    assert words == [text.split() for text in TEXTS]
    # A run that is resumed has the pieces that it began with.
    (tmp_path / "transcripts.txt").write_text("OTHER TEXTS\n")
    again = load_tokenizer(tokenizer)
    assert [again.sp.encode_as_ids(text) for text in TEXTS] == numbers


@pytest.mark.parametrize(
    ("size", "told"),
    [(500, "too high .500.. .* to a value <= "), (3, "3 vs 17"), (1.5, "int")],
)
def test_size_that_the_transcripts_do_not_give(size, told, tokenizer, tmp_path):
    with pytest.raises(SettingsError, match=f"^vocabulary_size .*{told}"):
        load_tokenizer(functools.partial(tokenizer, vocab_size=size))
    assert not list(tmp_path.glob("tokenizer/*.model"))


def test_tokens_of_a_batch_are_padded_by_themselves():
    tokens = [torch.tensor([3, 1, 2]), torch.tensor([5])]
    batch = collate(
        [
            {"id": f"{n}", "sig": torch.ones(4 + n), "tokens": own}
            for n, own in enumerate(tokens)
        ],
        pad_seconds=0.5,
        padded_keys=["sig", "tokens"],
    )
    assert batch.sig.data.shape == (2, 8000)
    assert batch.tokens.data.tolist() == [[3, 1, 2], [5, 0, 0]]
    assert (batch.tokens.lengths * 3).round().tolist() == [3, 1]


def test_no_pieces_are_no_words(tokenizer):
    silent = load_tokenizer(tokenizer)([[]], task="decode_from_list")
    kept = {}
    brain = SimpleNamespace(keep=kept.update)
    batch = SimpleNamespace(id=["a"], label=["ONE TWO"])
    RecognitionBrain.keep_words(brain, silent, batch)
    assert kept == {"ids": ["a"], "heard": [[]], "said": [["ONE", "TWO"]]}


class DictatedBrain(RecognitionBrain):
    """Hears what `HEARD` tells."""

    def compute_forward(self, batch, stage):
        return None

    def compute_objectives(self, output, batch, stage):
        loss = torch.zeros(())
        self.accumulate({"loss": loss}, len(batch.id))
        self.keep_words([HEARD[text] for text in batch.label], batch)
        return loss


def test_word_error_rate(tones, tmp_path):
    rows = kit.corpus_rows(tones.manifest)
    clips = list(rows["valid"].items())[: len(HEARD)]
    valid = {
        clip: {**row, "label": text}
        for (clip, row), text in zip(clips, HEARD, strict=True)
    }
    run = kit.build("classify", rows, tmp_path)
    run.brain = DictatedBrain(
        modules={},
        opt_class=None,
        hparams=vars(run.brain.hparams),
        run_opts={"device": "cpu", "noprogressbar": True},
        schedule=run.brain.schedule,
        train_logger=run.brain.train_logger,
        n_files=100,
    )
    assert kit.validate(run, valid, batch_size=3)["wer"] == pytest.approx(5 / 9)


def test_outputs_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    grid = {"n_mels": 32, "patch": (16, 4)}
    encoder = SpectrogramEncoder(grid, dim=32, depth=2, heads=2)
    model = SpectrogramRecognizer(encoder, n_units=5).eval()
    feats, n_frames = torch.randn(2, 80, 32), torch.tensor([80, 30])
    feats[1, 30:] = 0
    with torch.no_grad():
        together, n_time = model(feats, n_frames)
        alone, own = model(feats[1:, :30], n_frames[1:])
    assert n_time[1] == own[0] == 8
    assert torch.allclose(together[1, :8], alone[0], atol=1e-5)
    assert torch.allclose(together.exp().sum(-1), torch.ones(2, 20))


def test_tones_are_learned():
    torch.manual_seed(0)
    time = torch.arange(3200) / 16000
    tones = [torch.sin(2 * math.pi * hertz * time) for hertz in (400, 1500)]
    words = [*itertools.product(range(2), repeat=3)]
    wav = torch.stack(
        [torch.cat([0.3 * tones[unit] for unit in word]) for word in words]
    )
    targets, whole = torch.tensor(words), torch.ones(len(words))
    features = FrontEnd(n_mels=32)
    grid = {"n_mels": 32, "patch": (32, 4)}
    encoder = SpectrogramEncoder(grid, dim=32, depth=1, heads=2)
    model = SpectrogramRecognizer(encoder, n_units=BLANK + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    feats, n_frames = features(wav, whole)
    for _ in range(150):
        log_probs, n_time = model(feats, n_frames)
        lens = n_time / log_probs.shape[1]
        loss = ctc_loss(log_probs, targets, lens, whole, BLANK)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    heard = ctc_greedy_decode(model(feats, n_frames)[0], lens, BLANK)
    assert heard == targets.tolist()
