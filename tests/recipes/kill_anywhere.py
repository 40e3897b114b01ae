"""Kill a recipe again and again; its end must be that of a run left alone.

A script of its own, which `test_killed_anywhere.py` starts:

    python kill_anywhere.py TASK KILLS SEED WORKERS FOLDER AUDIO MANIFEST

PyTorch and the recipe are imported once; the runs are forks of this process,
each killed with SIGKILL at a moment that is drawn from SEED. A quarter of the
kills hits checkpoints half written, which the folder that they grow in proves
afterwards; others hit training steps, validations, and any moment at all from
the first line of `main` on. Where a run ends first, another folder follows.
"""

import mmap
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[0]), str(HERE.parents[1])]

import matplotlib.pyplot  # noqa: E402, F401  (here, not in each fork)
import test_recipes  # noqa: E402
from conftest import Corpus  # noqa: E402

from ssast_lobes.training.base import SpectrogramBrain  # noqa: E402

STEP, VALID = 1, 2
NAMES = {0: "between", STEP: "in a step", VALID: "in validation"}
# What a run is in now, and how many steps and validation batches it has begun.
place = mmap.mmap(-1, 3)


def watched(method, mark):
    def call(*arguments, **named):
        place[0] = mark
        place[mark] = min(place[mark] + 1, 255)
        try:
            return method(*arguments, **named)
        finally:
            place[0] = 0

    return call


SpectrogramBrain.fit_batch = watched(SpectrogramBrain.fit_batch, STEP)
SpectrogramBrain.evaluate_batch = watched(
    SpectrogramBrain.evaluate_batch, VALID
)


def start(task, corpus, folder, workers):
    """Fork a run; its output goes to a file next to its folder."""
    place[:] = bytes(3)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(f"{folder}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        flags = test_recipes.flags_of(
            task,
            corpus,
            folder,
            f"--num_workers={workers}",
            "--number_of_epochs=3",
            "--ckpt_interval_steps=1",
        )
        script = test_recipes.load_script(task)
        script.main([str(test_recipes.yaml_of(task)), *flags])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def half_written(folder):
    return set((folder / "save").glob(".partial-CKPT*"))


def ended(child, folder):
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid and status:
        raise SystemExit(Path(f"{folder}.log").read_text())
    return bool(pid)


def kill_at(kind, child, folder, draw, seconds):
    """Kill a run at a moment of this kind; None if it comes to its end."""
    begun, left = time.monotonic(), half_written(folder)
    steps, until = draw.randint(1, 3), draw.uniform(0, 0.7 * seconds)
    moments = {
        "save": lambda: place[STEP] >= steps and half_written(folder) - left,
        "valid": lambda: place[0] == VALID,
        "step": lambda: place[0] == STEP and place[STEP] >= steps,
        "any": lambda: time.monotonic() - begun >= until,
    }
    while not moments[kind]():
        if ended(child, folder):
            return None
        time.sleep(0.0005)
    time.sleep(draw.uniform(0, 0.005 if kind == "save" else 0.02))
    doing = place[0]
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        return None
    saving = half_written(folder) - left
    return "in a checkpoint write" if saving else NAMES[doing]


def results(folder):
    tested = folder / "test_predictions.csv"
    rows = test_recipes.log_of(folder)
    return rows, tested.read_text() if tested.exists() else None


def compare(folder, whole):
    if not test_recipes.same(
        test_recipes.exported(folder), test_recipes.exported(whole)
    ):
        raise SystemExit(f"{folder}: other weights than {whole}")
    if results(folder) != results(whole):
        raise SystemExit(f"{folder}: other results than {whole}")


def main(task, kills, seed, workers, folder, audio, manifest):
    """Kill as often as asked; exit with a message where something differs."""
    kills, draw, folder = int(kills), random.Random(int(seed)), Path(folder)
    corpus = Corpus(Path(audio), Path(manifest))
    begun = time.monotonic()
    whole = start(task, corpus, folder / "whole", workers)
    while not ended(whole, folder / "whole"):
        time.sleep(0.01)
    seconds = time.monotonic() - begun
    print(f"{task}, seed {seed}: a whole run takes {seconds:.1f} s")
    to_save = -(-kills // 4) if kills < 20 else 6
    kinds = ["save"] * to_save + ["valid", "step", "any"] * kills
    kinds = kinds[:kills]
    draw.shuffle(kinds)
    saves = experiment = done = 0
    while done < kills or saves < to_save:
        experiment += 1
        own = folder / f"killed{experiment}"
        killed = 0
        while True:
            child = start(task, corpus, own, workers)
            hit = None
            if done < kills or saves < to_save:
                kind = kinds[done] if done < kills else "save"
                hit = kill_at(kind, child, own, draw, seconds)
            else:
                while not ended(child, own):
                    time.sleep(0.01)
            if hit is None:
                break
            done += 1
            killed += 1
            saves += hit == "in a checkpoint write"
            print(f"kill {done}, {own.name}, wanted {kind}: {hit}", flush=True)
        compare(own, folder / "whole")
        print(f"{own.name}: killed {killed} times, ended as the whole run")
    print(f"kills: {done}, of these in a checkpoint write: {saves}")


if __name__ == "__main__":
    main(*sys.argv[1:])
