#!/usr/bin/env python3
"""Pretrain, fine-tune, compare and export on synthetic words.

The script makes a corpus of spoken commands and pretrains a small SSAST on its
unlabeled part. It fine-tunes on a few labeled clips, with and without the
pretrained weights, classifies a file from the exported folder, and reads the
bundled model on the same clips. It prints one table. This takes ten to twenty
minutes on two CPU cores. A rerun resumes.

> python quickstart.py
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path

# Threads that wait sleep: by default they spin, and next to another job most
# of the processor time goes there. PyTorch reads it when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from hyperpyyaml import load_hyperpyyaml
from synthetic_commands_prepare import prepare_synthetic_commands
from tqdm import tqdm

from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.dataio.tables import read_manifest
from ssast_lobes.evaluation.probing import logistic_regression, read_task
from ssast_lobes.evaluation.probing.comparison import best_fit
from ssast_lobes.evaluation.probing.embeddings import Readout
from ssast_lobes.inference import AudioClassifier, AudioEncoder
from ssast_lobes.models.features import KaldiFbank
from ssast_lobes.utils.plots import plot_comparison

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "CustomData"
SPLITS = ("train", "valid", "test")
BUNDLED = "bundled model"


def main():
    """Run the steps, timed, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "hparams",
        nargs="?",
        default=str(HERE / "hparams" / "quickstart.yaml"),
        help="sizes and settings (default: %(default)s)",
    )
    parser.add_argument(
        "--output_folder",
        help="where everything goes (default: results/quickstart)",
    )
    parser.add_argument(
        "--objective",
        metavar="NAME",
        help="pretrain with another file of hparams/objective/, such as "
        "m2d_small_data (give an output folder of its own)",
    )
    arguments = parser.parse_args()
    with open(arguments.hparams, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file)
    if arguments.objective:
        hparams["pretrain"]["objective"] = arguments.objective
    folder = Path(arguments.output_folder or hparams["output_folder"])
    folder = folder.absolute()
    started = time.time()

    say("1/6 A corpus of spoken commands, made with eSpeak NG")
    manifests = prepare_synthetic_commands(
        folder / "corpus", **hparams["corpus"]
    )

    say("2/6 Pretraining on its unlabelled part")
    export = pretrain(manifests["unlabelled"], folder, hparams["pretrain"])

    say("3/6 Fine-tuning on the labelled part, from scratch and pretrained")
    scores = {"from scratch": [], "pretrained": []}
    for seed in hparams["fine_tuning_seeds"]:
        for name, source in (("from scratch", None), ("pretrained", export)):
            run = folder / name.replace(" ", "_") / str(seed)
            scores[name].append(
                classify(
                    manifests["labelled"],
                    run,
                    {**hparams["classify"], "seed": seed},
                    source,
                )
            )

    say("4/6 A logistic regression on the mean log-mel")
    log_mel = log_mel_accuracy(manifests["labelled"])

    say("5/6 A logistic regression on the bundled model, frozen")
    bundled = bundled_accuracy(manifests["labelled"])

    say("6/6 The result")
    report(folder, scores, {"mean log-mel": log_mel, BUNDLED: bundled})
    demonstrate(folder, manifests["labelled"], hparams["fine_tuning_seeds"][0])
    minutes = (time.time() - started) / 60
    print(f"\nAll of it took {minutes:.1f} minutes. Everything is in {folder}")


def say(line):
    """Print a heading among the progress bars."""
    print(f"\n=== {line}", flush=True)


def run_recipe(task, yaml, options):
    """Run ``train.py`` of a CustomData task in this process.

    Arguments
    ---------
    task : str
        ``"pretrain"`` or ``"classify"``.
    yaml : str
        Name of the hyperparameter file.
    options : dict
        Overrides, as on the command line.

    Returns
    -------
    object
        What its ``main`` returns.
    """
    words = [
        f"--{key}={'null' if value is None else value}"
        for key, value in options.items()
    ]
    script = RECIPES / task / "train.py"
    shown = " ".join([str(script.relative_to(HERE.parent.parent)), *words])
    print(f"> python {shown}\n", flush=True)
    sys.path.insert(0, str(script.parent))
    spec = importlib.util.spec_from_file_location(f"{task}_train", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(script.parent))
    return module.main([str(script.parent / "hparams" / yaml), *words])


def pretrain(manifest, folder, settings):
    """Pretrain on unlabelled audio; return the exported folder."""
    export = folder / "pretrained_export"
    options = {
        **settings,
        "audio": manifest,
        "output_folder": folder / "pretrain",
        "export_folder": export,
    }
    run_recipe("pretrain", "pretrain.yaml", options)
    return export


def classify(manifest, folder, settings, source):
    """Fine-tune, from scratch if `source` is None; return test accuracy."""
    options = {**settings, "manifest": manifest, "output_folder": folder}
    if source is not None:
        # The source brings its own size and geometry.
        for key in ("model_size", "geometry"):
            options.pop(key, None)
        options["source"] = source
    return run_recipe("classify", "classify.yaml", options)["accuracy"]


def log_mel_accuracy(manifest):
    """Return the accuracy of a logistic regression on the mean log-mel."""
    rows = read_manifest(manifest, needs=("path", "label", "split"))
    fbank = KaldiFbank()
    classes = sorted({row["label"] for row in rows})
    x = {split: [] for split in SPLITS}
    y = {split: [] for split in SPLITS}
    for row in tqdm(rows, "Log-mel of the labelled clips"):
        feats, _ = fbank(read_audio(row["path"])[None])
        x[row["split"]].append(feats[0].mean(0))
        y[row["split"]].append(classes.index(row["label"]))
    x = {split: torch.stack(vectors) for split, vectors in x.items()}
    y = {split: torch.tensor(numbers) for split, numbers in y.items()}
    predicted, *_ = logistic_regression(
        x["train"], y["train"], x["valid"], y["valid"], x["test"]
    )
    return (predicted == y["test"]).double().mean().item()


def bundled_accuracy(manifest):
    """Return the same of the model that comes with the package, frozen.

    It has met other corpora, real ones too; its row says what a
    ready model gives on 200 labelled clips, not what pretraining here gives.
    """
    task = read_task(manifest, "commands")
    # Pooled as the model itself does: on so few clips a choice is a toss.
    clips = AudioEncoder.from_hparams().encode_files(task.paths())
    x = task.stacked({path: clip[None] for path, clip in clips})
    y = {split: task.targets(split) for split in SPLITS}
    fit, _ = best_fit(logistic_regression, x, y, task, [Readout()])
    return (fit.predictions == y["test"]).double().mean().item()


def report(folder, scores, fixed):
    """Print the table; write it as JSON and as a picture.

    What is `fixed` does not depend on a seed.
    """
    rows = [(name, value, None) for name, value in fixed.items()]
    for name, values in scores.items():
        spread = statistics.stdev(values) if len(values) > 1 else None
        rows.append((name, statistics.mean(values), spread))
    print(f"{'test accuracy (%)':<22}{'mean':>8}{'sd':>8}   seeds")
    for name, mean, spread in rows:
        values = scores.get(name, [mean])
        each = "  ".join(f"{100 * value:.1f}" for value in values)
        sd = "-" if spread is None else f"{100 * spread:.1f}"
        print(f"{name:<22}{100 * mean:>8.1f}{sd:>8}   {each}")
    table = {name: [mean, spread] for name, mean, spread in rows}
    gain = table["pretrained"][0] - table["from scratch"][0]
    word = "gains" if gain > 0 else "LOSES"
    print(
        f"Pretraining {word} {abs(100 * gain):.1f} points over training from "
        "scratch."
    )
    plot_comparison(
        rows,
        folder / "comparison.png",
        label="Test accuracy (%), mean and sd over seeds",
    )
    (folder / "result.json").write_text(json.dumps(table, indent=2))


def demonstrate(folder, manifest, seed):
    """Classify one test file with the exported folder and the bundled model."""
    export = folder / "pretrained" / str(seed) / "export"
    rows = read_manifest(manifest, needs=("path", "label", "split"))
    row = next(row for row in rows if row["split"] == "test")
    result = AudioClassifier.from_hparams(export).classify_file(row["path"])
    print(
        f"\n{row['path']}\nsays '{row['label']}', and the model recognizes "
        f"'{result.label}' ({100 * result.scores[result.label]:.0f} %)"
    )
    print(f"The exported folder: {export}")
    bundled = AudioClassifier.from_hparams(task="keywords")
    print(
        "The bundled model, which was not trained on this corpus, recognizes "
        f"'{bundled.classify_file(row['path']).label}': "
        "ssast-lobes classify --task keywords FILE"
    )


if __name__ == "__main__":
    main()
