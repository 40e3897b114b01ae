#!/usr/bin/env python3
"""Recognize read English speech by CTC: LibriSpeech.

> python train.py hparams/ctc.yaml --data_folder /path/to/LibriSpeech

The README in the folder above shows the settings.
"""

import functools
import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from librispeech_prepare import prepare_librispeech
from speechbrain.utils.distributed import if_main_process, run_on_main

from ssast_lobes import training
from ssast_lobes.checkpoints.folder import export_encoder
from ssast_lobes.dataio.dataset import make_dataset
from ssast_lobes.dataio.splits import read_splits


class CTCBrain(training.RecognitionBrain):
    """Trains a recognizer, and reads words off its best path."""

    def compute_forward(self, batch, stage):
        """Return log-probabilities (B, T', U), and relative lengths (B,)."""
        batch = batch.to(self.device, non_blocking=True)
        feats, n_frames = self.modules.features(*batch.sig)
        for augment in self.augment if stage == sb.Stage.TRAIN else ():
            feats = augment(feats, n_frames)
        log_probs, n_time = self.network("model", stage)(feats, n_frames)
        return log_probs, n_time / log_probs.shape[1]

    def compute_objectives(self, output, batch, stage):
        """Return the loss; keep the words where they are evaluated."""
        log_probs, lens = output
        tokens, token_lens = batch.tokens
        loss = self.compute_cost(log_probs, tokens, lens, token_lens)
        self.accumulate({"loss": loss}, len(batch.id))
        if stage != sb.Stage.TRAIN:
            pieces = self.decode(log_probs, lens)
            words = self.tokenizer(pieces, task="decode_from_list")
            self.keep_words(words, batch)
        return loss


def dataio_prepare(hparams):
    """Return the rows, the tokenizer of train, and a dataset of each part."""
    rows = read_splits(hparams["splits_file"], hparams["shards"])
    tokenizer = training.load_tokenizer(hparams["tokenizer"])
    encode = functools.partial(tokens_of, tokenizer)
    parts = {}
    for name in ("train", "valid", *hparams["test_parts"]):
        part = make_dataset(rows[name], hparams["reader"])
        part.add_dynamic_item(encode, takes="label", provides="tokens")
        part.set_output_keys(["id", "sig", "label", "tokens"])
        parts[name] = part
    return rows, tokenizer, parts


def tokens_of(tokenizer, words):
    """Return the indices of the pieces of a transcript, (pieces,) int64."""
    return torch.tensor(tokenizer.sp.encode_as_ids(words))


def main(arguments):
    """Prepare the data, train, test, export."""
    hparams_file, run_opts, overrides = training.parse_arguments(arguments)
    sb.utils.distributed.ddp_init_group(run_opts)
    with training.yaml_errors(hparams_file), open(hparams_file) as file:
        hparams = load_hyperpyyaml(file, overrides)
    folder = hparams["output_folder"]

    with training.experiment(hparams_file, overrides, folder):
        run_on_main(
            prepare_librispeech,
            kwargs={
                "data_folder": hparams["data_folder"],
                "output_folder": folder,
                "train_parts": hparams["train_parts"],
                "valid_parts": hparams["valid_parts"],
                "test_parts": hparams["test_parts"],
                "allow_download": hparams["allow_download"],
                "require_counts": hparams["require_counts"],
                "max_unreadable": hparams["max_unreadable"],
            },
        )
        sb.create_experiment_directory(folder, hparams_file, overrides)
        training.log_source(hparams["lobe"])
        rows, tokenizer, parts = dataio_prepare(hparams)
        train, valid = parts.pop("train"), parts.pop("valid")

        brain = CTCBrain(
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
            tokenizer=tokenizer,
            compute_cost=hparams["compute_cost"],
            decode=hparams["decode"],
            augment=hparams["augment"],
            head_lr_scale=hparams["head_lr_scale"],
            layer_decay=hparams["layer_decay"],
            schedule=hparams["schedule"],
            train_logger=hparams["train_logger"],
            readers=[hparams["reader"]],
            n_files=sum(map(len, [train, valid, *parts.values()])),
        )
        brain.fit(
            hparams["epoch_counter"],
            train,
            valid,
            train_loader_kwargs=hparams["clip_order"](
                hparams["train_dataloader_opts"], train
            ),
            valid_loader_kwargs=hparams["valid_dataloader_opts"],
        )
        brain.test(parts, test_loader_kwargs=hparams["valid_dataloader_opts"])
        if if_main_process():
            card = training.model_card(
                hparams_file,
                rows,
                brain.test_stats,
                source=hparams["source"],
                vocabulary_size=hparams["vocabulary_size"],
                batch_size=hparams["batch_size"],
                lr=hparams["lr"],
                seed=hparams["seed"],
            )
            lobe, export = hparams["lobe"], hparams["export_folder"]
            window = training.export_window(lobe, train)
            export_encoder(export, lobe.encoder, lobe.features, card, window)
        training.write_result(folder, rows, parts, brain.result())
    return brain.test_stats


if __name__ == "__main__":
    with training.exit_on_user_error():
        main(sys.argv[1:])
