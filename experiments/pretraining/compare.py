#!/usr/bin/env python3
"""Compare pretrainings that get equal CPU time.

> python compare.py objectives.yaml --data DATA --work WORK

Each row of the YAML is a pretraining. The script measures its time per step,
trains for as many steps as fit into `minutes` of one core, and reads the frozen
encoder with a linear classifier on all its layers. A row of `averages` is the
mean of the weights of other rows. Scores are those of valid; if valid has few
speakers or recordings, they are cross-validated on train and valid. The script
writes each score to a JSON next to the YAML, and a picture of all; a rerun
skips the rows that are there. WORK has the audio as wav, the runs and the
exports.

`--seeds 2 3 --best 4` runs more seeds of the four rows with the highest mean
score. With `--test` the script also scores these seeds, and the baselines, on
the test parts. It belongs to the end, when all is chosen.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

import numpy as np
import soundfile
import torch
import yaml
from sklearn.model_selection import GroupKFold
from tqdm import tqdm

from ssast_lobes.checkpoints.averaging import export_mean
from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.evaluation.probing import (
    logistic_regression,
    read_task,
)
from ssast_lobes.evaluation.probing.embeddings import (
    LogMelStatistics,
    MFCCStatistics,
    PooledEncoder,
    cached_vectors,
    pooled,
)
from ssast_lobes.evaluation.probing.tasks import SCORES
from ssast_lobes.training.arguments import flag_value
from ssast_lobes.utils.files import write_csv, write_json
from ssast_lobes.utils.plots import plot_intervals

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parents[1] / "recipes/CustomData/pretrain"
PENALTIES = (1.0, 0.1, 0.01)
CHOSEN_ON = ("train", "valid")
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
        write_csv(table, [rows[0], *(row.values() for row in rows)])


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
            {**settings, "optimizer_step_limit": steps},
        )
        for number, steps in enumerate(TIMED_STEPS)
    )
    step = (many - few) / (TIMED_STEPS[2] - TIMED_STEPS[1])
    return max(1, round(seconds / step))


def folds(task):
    """Return pairs of indices to fit on and to score, into train + valid."""
    train, valid = (task.rows[split] for split in CHOSEN_ON)
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
    paths = [path for split in CHOSEN_ON for path in task.paths(split)]
    x = torch.stack([vectors[path] for path in paths])
    y = torch.cat([task.targets(split) for split in CHOSEN_ON])
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


def tested(task, vectors):
    """Return the score on test of a linear classifier chosen on valid."""
    x = task.stacked(vectors)
    y = {split: task.targets(split) for split in x}
    metric = SCORES[task.metric]
    found = logistic_regression(
        *(x["train"], y["train"], x["valid"], y["valid"], x["test"]),
        metric=metric,
    )
    return metric(y["test"], found.predictions)


def tasks_of(plan, audio):
    """Return the tasks that a YAML names."""
    return [
        read_task(audio / task.pop("set") / "manifest.csv", **task)
        for task in plan["tasks"]
    ]


class Comparison:
    """The rows of a YAML, and what is known of them."""

    def __init__(self, path, data, work):
        text = path.read_text("utf-8").replace("HERE", str(path.parent))
        text = text.replace("WORK", str(work))
        self.plan = yaml.safe_load(text)
        self.tried = self.plan["rows"].keys() | self.plan["averages"].keys()
        self.results_file = path.with_suffix(".json")
        self.work = work
        self.results = []
        if self.results_file.is_file():
            self.results = json.loads(self.results_file.read_text("utf-8"))
        self.audio = work / "audio"
        decode(data, self.audio, self.plan["audio"])
        self.tasks = tasks_of(self.plan, self.audio)
        for command in self.plan["before"]:
            if not (work / command["output"]).exists():
                subprocess.run(command["run"], cwd=work, check=True, shell=True)

    def export(self, row, seed):
        """Return the folder of the model of a row."""
        return self.work / f"{row}_{seed}" / "run" / "export"

    def settings(self, row, seed):
        """Return the settings of the pretraining of a row."""
        own = dict(self.plan["rows"][row] or {})
        names = [*self.plan["audio"], *own.pop("more_audio", ())]
        sets = [f"{self.audio / name}/manifest.csv" for name in names]
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

    def add_averages(self, seed):
        """Score the means of rows that have this seed."""
        for name, rows in self.plan["averages"].items():
            ready = all(self.known(row, seed) for row in rows)
            if ready and not self.known(name, seed):
                sources = [self.export(row, seed) for row in rows]
                export_mean(self.export(name, seed), sources)
                found = self.scores(name, seed)
                self.add({"row": name, "seed": seed, "scores": found})

    def add(self, result):
        """Append a result, and write all."""
        self.results.append(result)
        write_json(self.results_file, self.results)
        print(json.dumps(result), flush=True)

    def steps(self, row, folder, settings):
        """Return how many steps a row takes, the same for all its seeds."""
        for result in self.results:
            if result["row"] == row:
                return result["steps"]
        file = folder / "steps.json"
        if not file.is_file():
            seconds = 60 * self.plan["minutes"]
            write_json(file, steps_in(seconds, folder, settings))
        return json.loads(file.read_text("utf-8"))

    def run(self, row, seed):
        """Pretrain a row and score it, unless that is done."""
        if self.known(row, seed):
            return
        folder = self.work / f"{row}_{seed}"
        settings = self.settings(row, seed)
        steps = self.steps(row, folder, settings)
        settings["optimizer_step_limit"] = steps
        pretrain(folder / "run", settings)
        result = {"row": row, "seed": seed, "steps": steps}
        self.add({**result, "scores": self.scores(row, seed)})

    def source(self, row, seed):
        """Return what computes the vectors of a row."""
        if row in self.tried:
            return PooledEncoder(self.export(row, seed))
        if row in self.plan["models"]:
            return PooledEncoder(self.plan["models"][row])
        if row == "untrained":
            # It has the architecture and the statistics of the first row.
            exports = (self.export(r["row"], r["seed"]) for r in self.results)
            first = next(folder for folder in exports if folder.exists())
            return PooledEncoder(first).untrained(seed)
        return {"log-mel": LogMelStatistics, "MFCC": MFCCStatistics}[row]()

    def scores(self, row, seed, score=cross_validated, splits=CHOSEN_ON):
        """Return the score of each task, by its name."""
        found, source = {}, self.source(row, seed)
        cache = self.work / "vectors"
        for task in self.tasks:
            paths = [path for split in splits for path in task.paths(split)]
            vectors = cached_vectors(source, row, paths, cache, unreadable=[])
            stacked = torch.stack(list(vectors.values()))
            if isinstance(source, PooledEncoder):
                stacked = pooled(stacked, "dynamics", "all")
            vectors = dict(zip(vectors, stacked.flatten(1), strict=True))
            found[task.name] = round(score(task, vectors), 4)
        return found

    def add_baselines(self):
        """Score statistics of features, models, and untrained encoders."""
        names = ["log-mel", "MFCC", *self.plan["models"]]
        for row, seed in [
            *((name, 0) for name in names),
            *(("untrained", seed) for seed in (1, 2, 3)),
        ]:
            if not self.known(row, seed):
                found = self.scores(row, seed)
                self.add({"row": row, "seed": seed, "scores": found})

    def best(self, count):
        """Return the rows with the highest mean score of the first seed."""
        first = [self.known(row, 1) for row in self.plan["rows"]]
        if None in first:
            raise SystemExit("--best: not all rows have a first seed yet")
        first.sort(key=lambda r: mean(r["scores"].values()), reverse=True)
        return [result["row"] for result in first[:count]]

    def test(self, jobs):
        """Test these rows and the baselines, unless that is done."""
        splits = (*CHOSEN_ON, "test")
        for result in self.results:
            job = result["row"], result["seed"]
            asked = job in jobs or job[0] not in self.tried
            if asked and "test" not in result:
                result["test"] = self.scores(*job, tested, splits)
                write_json(self.results_file, self.results)

    def draw(self):
        """Draw the means of the scores and their ranges over seeds."""
        by_row = {}
        for result in self.results:
            scores = {"mean": mean(result["scores"].values())}
            scores |= result["scores"]
            by_row.setdefault(result["row"], []).append(scores)
        ordered = sorted(
            by_row.items(),
            key=lambda item: -mean(scores["mean"] for scores in item[1]),
        )
        panels = {}
        for row, found in ordered:
            for title in found[0]:
                own = [scores[title] for scores in found]
                point = {"linear probe": (mean(own), min(own), max(own))}
                panels.setdefault(title, {})[row] = point
        picture = self.results_file.with_suffix(".png")
        plot_intervals(panels, picture, by_row.keys() - self.tried)


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
    parser.add_argument("--test", action="store_true", help="once")
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
    for seed in options.seeds:
        comparison.add_averages(seed)
    comparison.add_baselines()
    if options.test:
        comparison.test(jobs)
    comparison.draw()


if __name__ == "__main__":
    main()
