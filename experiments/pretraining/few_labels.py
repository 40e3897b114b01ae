#!/usr/bin/env python3
"""Compare frozen models that get few labels, on train and valid.

> python few_labels.py objectives.yaml --data DATA --work WORK \
    --models bundled=ssast-lobes-micro-1

The models are read as in `compare.py`, with five and ten labels for each class,
which four draws take from the part to fit on. A model with projections is read
with each of them too. The penalty is always 1, and the test parts are not read.
The scores are written to ``few_labels.json``, next to the YAML.

`--wheel` adds Google's `speech_embedding`, for which `benchmarks` has to be on
PYTHONPATH; see `benchmarks/speech_embedding.py`.
"""

import argparse
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from compare import Comparison, folds

from ssast_lobes.evaluation.probing import logistic_regression
from ssast_lobes.evaluation.probing.comparison import SCORES
from ssast_lobes.evaluation.probing.embeddings import (
    PooledEncoder,
    cached_vectors,
)
from ssast_lobes.evaluation.probing.tasks import split_name
from ssast_lobes.utils.files import write_json

LABELS, DRAWS, PENALTY = (5, 10), 4, 1.0
SPLITS = ("train", "valid")


def few_labels_score(task, x, y, count):
    """Return the mean score over draws of some labels for each class."""
    metric, found = SCORES[task.metric], []
    for fit, scored in folds(task):
        for seed in range(DRAWS):
            shuffled = np.random.default_rng(seed).permutation(fit)
            drawn = [
                [clip for clip in shuffled if y[clip] == label][:count]
                for label in range(len(task.labels))
            ]
            drawn = np.concatenate(drawn).astype(int)
            predicted = logistic_regression(
                *(x[drawn], y[drawn], x[scored], y[scored], x[scored]),
                penalties=(PENALTY,),
                metric=metric,
            ).predictions
            found.append(metric(y[scored], predicted))
    return mean(found)


def main():
    """Write the scores of each model, readout and task."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("yaml", type=Path, help="the tasks")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="+", metavar="NAME=SOURCE")
    parser.add_argument("--wheel", help="of openWakeWord 0.4.0")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, work = options.data.resolve(), options.work.resolve()
    tasks = Comparison(options.yaml.resolve(), data, work).tasks
    sources = dict(map(split_name, options.models))
    sources = {name: PooledEncoder(source) for name, source in sources.items()}
    first = next(iter(sources.values()))
    sources["untrained"] = first.untrained(seed=1)
    if options.wheel:
        from speech_embedding import SpeechEmbedding

        sources["speech_embedding"] = SpeechEmbedding(options.wheel)
    results = []
    for name, source in sources.items():
        for task in tasks:
            paths = [path for split in SPLITS for path in task.paths(split)]
            vectors = cached_vectors(
                source, name, paths, work / "vectors", unreadable=[]
            )
            vectors = torch.stack([vectors[path] for path in paths])
            y = torch.cat([task.targets(split) for split in SPLITS])
            for readout in source.readouts([("dynamics", "all")]):
                x, projection = readout(vectors), readout.projection
                scores = {
                    str(count): round(few_labels_score(task, x, y, count), 4)
                    for count in LABELS
                }
                result = {
                    "model": name,
                    "projection": projection and projection.name,
                    "task": task.name,
                    "scores": scores,
                }
                print(result, flush=True)
                results.append(result)
    write_json(options.yaml.resolve().with_name("few_labels.json"), results)


if __name__ == "__main__":
    main()
