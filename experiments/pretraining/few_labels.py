#!/usr/bin/env python3
"""Compare frozen models that get few labels, on train and valid.

> python few_labels.py objectives.yaml --data DATA --work WORK \
    --models bundled=ssast-lobes-micro-1

The dynamics of all layers are read by a linear classifier, with five and ten
labels for each class, which four draws take from the part to fit on. A model
that has projections is read with each of them too. As in `probe`, the part that
is scored chooses the penalty, and the test parts are not read. The scores are
written to ``few_labels.json``, next to the YAML.

`--wheel` adds Google's `speech_embedding`, for which `benchmarks` has to be on
PYTHONPATH; see `benchmarks/speech_embedding.py`.
"""

import argparse
from collections import Counter
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import yaml
from compare import CHOSEN_ON, PENALTIES, decode, folds, tasks_of

from ssast_lobes.checkpoints.bundled import resolve_name
from ssast_lobes.checkpoints.projections import (
    projection_names,
    read_projection,
)
from ssast_lobes.evaluation.probing import logistic_regression
from ssast_lobes.evaluation.probing.comparison import readouts_of
from ssast_lobes.evaluation.probing.embeddings import (
    PROJECTED,
    PooledEncoder,
    Readout,
    cached_vectors,
)
from ssast_lobes.evaluation.probing.tasks import SCORES, split_name
from ssast_lobes.utils.files import write_json

LABELS, DRAWS = (5, 10), 4


def scores_of_draws(task, x, y, count):
    """Return the score of each draw of some labels, the mean over folds."""
    metric, found = SCORES[task.metric], []
    for seed in range(DRAWS):
        own = []
        for fit, scored in folds(task):
            shuffled = np.random.default_rng(seed).permutation(fit)
            drawn = [
                [clip for clip in shuffled if y[clip] == label][:count]
                for label in range(len(task.labels))
            ]
            drawn = np.concatenate(drawn)
            own.append(
                logistic_regression(
                    *(x[drawn], y[drawn], x[scored], y[scored], x[scored]),
                    penalties=PENALTIES,
                    metric=metric,
                ).valid_score
            )
        found.append(round(mean(own), 4))
    return found


def main():
    """Write the scores of each model, readout and task."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("yaml", type=Path, help="the tasks")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--models", nargs="+", metavar="NAME=SOURCE", required=True
    )
    parser.add_argument("--wheel", help="of openWakeWord 0.4.0")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = yaml.safe_load(options.yaml.read_text("utf-8"))
    audio = options.work.resolve() / "audio"
    decode(options.data.resolve(), audio, plan["audio"])
    tasks, sources, projected = tasks_of(plan, audio), {}, {}
    for name, folder in map(split_name, options.models):
        sources[name] = PooledEncoder(folder)
        place = resolve_name(folder)
        for projection in projection_names(place):
            found = read_projection(place, projection)
            projected[name, projection] = found
    first = next(iter(sources.values()))
    sources["untrained"] = first.untrained(seed=1)
    if options.wheel:
        from speech_embedding import SpeechEmbedding

        sources["speech_embedding"] = SpeechEmbedding(options.wheel)
    results = []
    for name, source in sources.items():
        for task in tasks:
            clips = Counter(row["label"] for row in task.rows["train"])
            if min(clips.values()) < max(LABELS):
                continue
            paths = [path for split in CHOSEN_ON for path in task.paths(split)]
            vectors = cached_vectors(
                source, name, paths, audio.parent / "vectors", unreadable=[]
            )
            vectors = torch.stack([vectors[path] for path in paths])
            y = torch.cat([task.targets(split) for split in CHOSEN_ON])
            [plain] = readouts_of(vectors, [PROJECTED])
            readouts = {None: plain} | {
                own: Readout(*PROJECTED, projection)
                for (model, own), projection in projected.items()
                if model == name
            }
            for own, readout in readouts.items():
                x = readout(vectors)
                scores = {
                    str(count): scores_of_draws(task, x, y, count)
                    for count in LABELS
                }
                result = {"model": name, "projection": own, "task": task.name}
                results.append({**result, "scores": scores})
                print(results[-1], flush=True)
    write_json(options.yaml.resolve().with_name("few_labels.json"), results)


if __name__ == "__main__":
    main()
