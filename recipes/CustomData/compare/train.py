#!/usr/bin/env python3
"""Pretrain one encoder with several objectives, and probe each frozen.

> python train.py hparams/compare.yaml --audio /path/to/audio \
    --tasks "[{name: words, csv_path: /path/to/words.csv}]"

The README in the folder above shows the settings.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import speechbrain as sb
from custom_data_prepare import check_held_out, read_entry, write_held_out
from hyperpyyaml import load_hyperpyyaml
from tqdm import tqdm

from ssast_lobes.evaluation.probing import probe, write_report
from ssast_lobes.training.arguments import flag_value
from ssast_lobes.training.errors import (
    SettingsError,
    exit_on_user_error,
    yaml_errors,
)
from ssast_lobes.training.logs import read_log
from ssast_lobes.utils.files import atomic_write, write_json

PRETRAIN = Path(__file__).resolve().parent.parent / "pretrain"


def pretrain(name, settings, folder, tasks):
    """Pretrain with one objective, unless that is done.

    Arguments
    ---------
    name : str
        File of ``hparams/objective/``, unless the settings have `objective`.
    settings : dict
        Settings of ``pretrain.yaml``.
    folder : pathlib.Path
        Output folder of the run.
    tasks : list of ssast_lobes.evaluation.probing.Task
        Whose held-out clips are left out of the audio.

    Returns
    -------
    dict
        ``settings``, ``steps`` and ``clips`` (trained on), ``seconds`` by the
        clock and ``cpu_seconds``; of a run that was killed in between, since
        it was taken up again.

    Raises
    ------
    SettingsError
        If the folder holds a finished run with other settings.
    """
    done = folder / "cost.json"
    if done.is_file():
        cost = json.loads(done.read_text("utf-8"))
        if cost["settings"] != settings:
            raise SettingsError(
                f"{folder} was run with {cost['settings']}: choose another "
                "output_folder, or remove it"
            )
        return cost
    folder.mkdir(parents=True, exist_ok=True)
    overrides = {
        "objective": name,
        **settings,
        "held_out_of": write_held_out(tasks, folder / "held_out.csv"),
        "output_folder": str(folder),
    }
    command = [sys.executable, "train.py", "hparams/pretrain.yaml"]
    for key, value in overrides.items():
        command += [f"--{key}", flag_value(value)]
    start, used = time.time(), _cpu_seconds()
    subprocess.run(command, cwd=PRETRAIN, check=True)
    splits = json.loads((folder / "save/splits.json").read_text("utf-8"))
    cost = {
        "settings": settings,
        "steps": read_log(folder)[-1]["step"],
        "clips": len(splits["train"]),
        "seconds": time.time() - start,
        "cpu_seconds": _cpu_seconds() - used,
    }
    write_json(done, cost)
    return cost


def _cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cost_table(costs):
    """Return what the runs cost, as a Markdown table.

    Arguments
    ---------
    costs : dict of str to dict
        From `pretrain`, by objective.

    Returns
    -------
    str
    """
    lines = [
        "| objective | learning rate | steps | minutes | CPU minutes |",
        "|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        lines.append(
            f"| {name} | {cost['settings']['lr']:g} | {cost['steps']} "
            f"| {cost['seconds'] / 60:.1f} | {cost['cpu_seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def main(arguments):
    """Run the comparison that the command line describes.

    Returns
    -------
    list of Result
        Of the probes, see `ssast_lobes.evaluation.probing.probe`.
    """
    hparams_file, _, overrides = sb.parse_arguments(arguments)
    with (
        open(hparams_file, encoding="utf-8") as file,
        yaml_errors(hparams_file),
    ):
        hparams = load_hyperpyyaml(file, overrides)
    folder = Path(hparams["output_folder"]).resolve()
    # Bad tables show now rather than after hours.
    tasks = [read_entry(task) for task in hparams["tasks"]]
    common = {
        "audio": hparams["audio"],
        "seed": hparams["seed"],
        **hparams["pretraining"],
    }
    runs = {name: dict(common) for name in hparams["objectives"]}
    twice = sorted(runs.keys() & hparams["models"].keys())
    if twice:
        raise SettingsError(f"models: {twice[0]} is an objective, rename it")
    for name, own in hparams["own"].items():
        runs.get(name, {}).update(own)
    costs = {}
    for name, settings in tqdm(runs.items(), desc="Pretraining"):
        costs[name] = pretrain(name, settings, folder / name, tasks)
        # A run of an earlier start may not have known all tasks.
        check_held_out(tasks, folder / name)
    exports = {name: str(folder / name / "export") for name in costs}
    exports |= hparams["models"]
    results = probe(
        exports,
        tasks,
        folder / "embeddings",
        pooling=hparams["pooling"],
        layers=hparams["layers"],
    )
    text = write_report(results, tasks, folder)
    text = f"# Pretraining\n\n{cost_table(costs)}\n\n{text}"
    with atomic_write(folder / "comparison.md") as file:
        file.write(text)
    print(text)
    return results


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
