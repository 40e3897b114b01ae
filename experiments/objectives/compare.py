#!/usr/bin/env python3
"""Compare pretrainings that get equal CPU time.

> python compare.py objectives.yaml --data DATA --work WORK

Each row of the YAML is a pretraining. The script measures its time per step,
trains for as many steps as fit into `minutes` of one core, and reads the frozen
encoder with a linear classifier on all its layers. Scores are those of valid;
if valid has few speakers or recordings, they are cross-validated on train and
valid. The script writes each score to a JSON next to the YAML, and a rerun
skips the rows that are there. WORK has the audio as wav, the runs and the
exports.

`--seeds 2 3 --best 4` runs more seeds of the four rows with the highest mean
score. `--test` reads the test parts, once all is chosen.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import soundfile
import torch
import yaml
from sklearn.model_selection import GroupKFold
from tqdm import tqdm

from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.evaluation.probing import (
    logistic_regression,
    probe,
    read_task,
)
from ssast_lobes.evaluation.probing.comparison import SCORES
from ssast_lobes.evaluation.probing.embeddings import (
    LogMelStatistics,
    MFCCStatistics,
    PooledEncoder,
    cached_vectors,
    pooled,
)
from ssast_lobes.training.arguments import flag_value
from ssast_lobes.utils.files import write_json

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parents[1] / "recipes/CustomData/pretrain"
TASKS = {
    "keywords": {"csv_path": "speech_commands"},
    "speakers": {
        "csv_path": "speech_commands",
        "label": "speaker",
        "split": "split_spkid",
    },
    "digits": {"csv_path": "fsdd"},
    "emotion": {"csv_path": "emodb", "metric": "uar"},
    "events": {"csv_path": "esc10"},
}
PENALTIES = (1.0, 0.1, 0.01)
# With fewer speakers or recordings in valid, scores are cross-validated.
LEAST_GROUPS = 30
# The time of a step is the difference of the last two of three runs, so that
# the start and the end of a run do not count. The first fills the caches.
TIMED_STEPS = (4, 4, 36)


def decode(data, folder, names):
    """Write the audio of the sets as wav, which costs less time to read."""
    for name in names:
        table = folder / name / "manifest.csv"
        if table.is_file():
            continue
        with open(data / name / "manifest.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in tqdm(rows, f"Decoding {name}"):
            wav = read_audio(data / name / row["path"])
            row["path"] = str(Path(row["path"]).with_suffix(".wav"))
            path = folder / name / row["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wav.numpy(), 16000, subtype="PCM_16")
        with open(table, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def pretrain(folder, settings):
    """Run the recipe with one thread; return its CPU seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, RECIPE / "train.py"]
    command += [RECIPE / "hparams/pretrain.yaml", "--noprogressbar"]
    command += ["--device=cpu", f"--output_folder={folder}"]
    command += [f"--{key}={flag_value(v)}" for key, v in settings.items()]
    with open(folder / "stdout.txt", "w", encoding="utf-8") as log:
        run = subprocess.Popen(
            list(map(str, command)),
            cwd=folder.parents[1],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        _, status, used = os.wait4(run.pid, 0)
    if status:
        raise SystemExit(f"{folder}: the run failed, see {log.name}")
    return used.ru_utime + used.ru_stime


def steps_in(seconds, folder, settings):
    """Return how many steps fit into so many CPU seconds."""
    # Runs that an earlier comparison left would resume, which takes less time.
    for left in folder.glob("timing_*"):
        shutil.rmtree(left)
    _, few, many = (
        pretrain(
            folder / f"timing_{number}",
            {**settings, "optimizer_step_limit": steps, "number_of_epochs": 1},
        )
        for number, steps in enumerate(TIMED_STEPS)
    )
    step = (many - few) / (TIMED_STEPS[2] - TIMED_STEPS[1])
    return round(seconds / step)


def folds(task):
    """Return pairs of indices to fit on and to score, into train + valid."""
    train, valid = (task.rows[split] for split in ("train", "valid"))
    rows = train + valid
    if len({row["group"] for row in valid}) >= LEAST_GROUPS:
        return [(np.arange(len(train)), np.arange(len(train), len(rows)))]
    groups = [row["group"] for row in rows]
    n_folds = len(set(groups)) if len(set(groups)) < 8 else 5
    return list(GroupKFold(n_folds).split(rows, groups=groups))


def cross_validated(task, vectors):
    """Return the score of a linear classifier.

    As in `probe`, the part that is scored chooses the penalty.
    """
    rows = task.rows["train"] + task.rows["valid"]
    x = torch.stack([vectors[row["path"]] for row in rows])
    y = torch.cat([task.targets(split) for split in ("train", "valid")])
    metric, truth, predicted = SCORES[task.metric], [], []
    for fit, scored in folds(task):
        found = logistic_regression(
            *(x[fit], y[fit], x[scored], y[scored], x[scored]),
            penalties=PENALTIES,
            metric=metric,
        )
        truth.append(y[scored])
        predicted.append(found.predictions)
    return metric(torch.cat(truth), torch.cat(predicted))


class Comparison:
    """The rows of a YAML, and what is known of them."""

    def __init__(self, path, data, work):
        text = path.read_text("utf-8").replace("HERE", str(path.parent))
        self.plan = yaml.safe_load(text)
        self.results_file = path.with_suffix(".json")
        self.work = work
        self.results = []
        if self.results_file.is_file():
            self.results = json.loads(self.results_file.read_text("utf-8"))
        self.audio = work / "audio"
        decode(data, self.audio, self.plan["audio"])
        self.tasks = [
            read_task(
                self.audio / task["csv_path"] / "manifest.csv",
                name,
                **{k: v for k, v in task.items() if k != "csv_path"},
            )
            for name, task in TASKS.items()
        ]
        for command in self.plan["before"]:
            if not (work / command["output"]).exists():
                subprocess.run(command["run"], cwd=work, check=True, shell=True)

    def export(self, row, seed):
        """Return the folder of the model of a row."""
        return self.work / f"{row}_{seed}" / "run" / "export"

    def settings(self, row, seed):
        """Return the settings of the pretraining of a row."""
        sets = [f"{self.audio / s}/manifest.csv" for s in self.plan["audio"]]
        own = self.plan["rows"][row] or {}
        common = {"objective": row, "audio": sets, "seed": seed}
        return {**common, **self.plan["settings"], **own}

    def known(self, row, seed):
        """Return the result of a row, None where there is none."""
        found = [
            result
            for result in self.results
            if (result["row"], result["seed"]) == (row, seed)
        ]
        return found[0] if found else None

    def add(self, result):
        """Append a result, and write all."""
        self.results.append(result)
        write_json(self.results_file, self.results)
        print(json.dumps(result), flush=True)

    def run(self, row, seed):
        """Pretrain a row and score it, unless that is done."""
        if self.known(row, seed):
            return
        folder = self.work / f"{row}_{seed}"
        settings = self.settings(row, seed)
        steps_file = self.work / f"{row}_1" / "steps.json"
        if not steps_file.is_file():
            seconds = 60 * self.plan["minutes"]
            write_json(steps_file, steps_in(seconds, folder, settings))
        steps = json.loads(steps_file.read_text("utf-8"))
        settings["optimizer_step_limit"] = steps
        pretrain(folder / "run", settings)
        found = self.scores(PooledEncoder(self.export(row, seed)), row)
        result = {"row": row, "seed": seed, "steps": steps}
        self.add({**result, "scores": found})

    def scores(self, source, name):
        """Return the score of each task, by its name."""
        found = {}
        for task in self.tasks:
            paths = task.paths("train") + task.paths("valid")
            cache = self.work / "vectors"
            vectors = cached_vectors(source, name, paths, cache, unreadable=[])
            stacked = torch.stack(list(vectors.values()))
            if isinstance(source, PooledEncoder):
                stacked = pooled(stacked, "dynamics", "all")
            vectors = dict(zip(vectors, stacked.flatten(1), strict=True))
            found[task.name] = round(cross_validated(task, vectors), 4)
        return found

    def add_baselines(self):
        """Score statistics of features, models, and untrained encoders."""
        trained = next(result for result in self.results if "steps" in result)
        encoder = PooledEncoder(self.export(trained["row"], trained["seed"]))
        sources = [("log-mel", 0, LogMelStatistics)]
        sources += [("MFCC", 0, MFCCStatistics)]
        sources += [
            (name, 0, partial(PooledEncoder, source))
            for name, source in self.plan["models"].items()
        ]
        sources += [
            ("untrained", seed, partial(encoder.untrained, seed))
            for seed in (1, 2, 3)
        ]
        for name, seed, opened in sources:
            if not self.known(name, seed):
                found = self.scores(opened(), name)
                self.add({"row": name, "seed": seed, "scores": found})

    def best(self, count):
        """Return the rows with the highest mean score of the first seed."""
        first = [self.known(row, 1) for row in self.plan["rows"]]
        if None in first:
            raise SystemExit("--best: not all rows have a first seed yet")
        first.sort(key=lambda r: mean(r["scores"].values()), reverse=True)
        return [result["row"] for result in first[:count]]

    def test(self):
        """Add the scores of the test parts where they are missing."""
        models = dict(self.plan["models"])
        for result in self.results:
            if "steps" in result:
                name = f"{result['row']}_{result['seed']}"
                models[name] = self.export(result["row"], result["seed"])
        found = probe(
            models,
            self.tasks,
            self.work / "vectors",
            pooling="dynamics",
            layers="all",
        )
        for result in self.results:
            names = {result["row"], f"{result['row']}_{result['seed']}"}
            result["test"] = {
                r.task: round(r.score, 4)
                for r in found
                if r.system in names and r.probe == "linear"
            }
        write_json(self.results_file, self.results)


def main():
    """Fill in the missing rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("yaml", type=Path, help="the rows")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", help="these only")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--best", type=int, help="of the first seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--test", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, work = options.data.resolve(), options.work.resolve()
    comparison = Comparison(options.yaml.resolve(), data, work)
    rows = options.rows or list(comparison.plan["rows"])
    if options.best:
        rows = comparison.best(options.best)
    jobs = [(row, seed) for seed in options.seeds for row in rows]
    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(lambda job: comparison.run(*job), jobs))
    comparison.add_baselines()
    if options.test:
        comparison.test()


if __name__ == "__main__":
    main()
