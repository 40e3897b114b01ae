#!/usr/bin/env python3
"""Compare detectors of sound events, and windows of a classifier.

> python compare.py --clips clips.csv --backgrounds backgrounds.csv --work W

Soundscapes are made of clips and backgrounds by `recipes/Soundscapes`: train,
valid and test are made of clips of their own. Valid chooses everything of a
method, and test measures once:

- `classify`: windows of ``ssast-lobes classify --task events``, the baseline:
  window and hop, and the threshold, median filter, shortest event and longest
  gap of each class.
- `frozen`: a frame head on all layers of the frozen bundled model.
- `frozen, sebbs`: the same scores, but events from change points.
- `untrained`: the same on the same encoder with random weights.
- `finetuned`, `scratch`: the recipe, from the bundled model and from nothing.
- `scratch, long`: from nothing with three times the epochs.

Each row goes to `events.json` as soon as it is there; a rerun skips what is
there. `--export FOLDER` writes the frozen head of the first seed next to a copy
of the bundled model.
"""

import argparse
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ssast_lobes import SSAST, bundled_model, event_cross_entropy
from ssast_lobes.checkpoints.frame_heads import FrameHead, write_frame_head
from ssast_lobes.dataio.audio import read_audio
from ssast_lobes.dataio.event_tables import join_events, read_event_table
from ssast_lobes.dataio.tables import SPLITS
from ssast_lobes.evaluation.event_tuning import evaluate_events, tune_rules
from ssast_lobes.inference import AudioClassifier
from ssast_lobes.models.event_head import FrameClassifier
from ssast_lobes.models.pooling import ClipPooling
from ssast_lobes.utils.files import write_json
from ssast_lobes.utils.metrics import average_precision

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "Soundscapes"
SEEDS = (1, 2, 3)
WINDOWS = ((0.5, 0.25), (1.0, 0.5), (2.0, 0.5))  # and hops, in seconds
# Chosen on valid, by the precision of frames: a linear head (0.49) was ahead of
# one with 128 hidden units (0.44), and all layers of the last one (0.29).
EPOCHS, BATCH, RATE = 12, 16, 0.003
RECIPE_FLAGS = ["--lr=0.001", "--batch_size=16", "--layers=all"]
BUNDLED = "ssast-lobes-micro-1"
# Method, source and epochs.
TRAINED = (
    ("finetuned", BUNDLED, 8),
    ("scratch", None, 8),
    ("scratch, long", None, 24),
)


class Data:
    """Soundscapes with their true events."""

    def __init__(self, folder):
        self.rows = {part: [] for part in SPLITS}
        for row in read_event_table(folder / "events.csv"):
            self.rows[row["split"]].append(row)
        labels = {e.label for row in self.rows["train"] for e in row["events"]}
        self.labels = sorted(labels)

    def truth(self, part):
        """Return the events of each clip."""
        rows = self.rows[part]
        return {row["id"]: join_events(row["events"]) for row in rows}

    def seconds(self, part, rate=16000):
        """Return the duration of each clip."""
        return {
            row["id"]: len(read_audio(row["path"], rate)) / rate
            for row in self.rows[part]
        }


def load_script(path):
    """Return a script of the recipe as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def measure(data, scores, timing, kind="median"):
    """Choose rules on valid, and measure once on test.

    Returns
    -------
    found : dict of str to dict
        Means over classes, of valid and test.
    rules : dict
        By class.
    """
    valid, rules = choose(data, scores["valid"], timing, kind)
    return {"valid": valid, "test": apply(data, scores, rules, timing)}, rules


def choose(data, scores, timing, kind="median"):
    """Return the metrics of valid, and the rules chosen on it."""
    rules = tune_rules(
        scores,
        data.truth("valid"),
        data.seconds("valid"),
        data.labels,
        timing,
        kind,
    )
    return apply(data, {"valid": scores}, rules, timing, "valid"), rules


def apply(data, scores, rules, timing, part="test"):
    """Return the metrics of a part by rules."""
    truth, seconds = data.truth(part), data.seconds(part)
    metrics, _ = evaluate_events(scores[part], truth, seconds, rules, timing)
    return {name: of["mean"] for name, of in metrics.items()}


def classify(data, timing):
    """Return the best windows of the bundled classifier, and its metrics."""
    best = None
    for window, hop in WINDOWS:
        scores = window_scores(data, "valid", window, hop, timing)
        valid, rules = choose(data, scores, timing)
        print(window, hop, valid, flush=True)
        if best is None or valid["event_f1"] > best[0]["event_f1"]:
            best = valid, rules, (window, hop)
    valid, rules, windows = best
    scores = {"test": window_scores(data, "test", *windows, timing)}
    test = apply(data, scores, rules, timing)
    return {"valid": valid, "test": test, "window, hop": windows}


def window_scores(data, part, window, hop, timing):
    """Return the scores of windows, at each frame of each clip."""
    classifier = AudioClassifier.from_hparams(
        task="events", window_seconds=window, hop_seconds=hop
    )
    return {
        row["id"]: _window_scores(classifier, row, data.labels, timing)
        for row in tqdm(data.rows[part], f"{window} s", delay=2)
    }


def _window_scores(classifier, row, labels, timing):
    """Return at each frame the mean of the windows over it."""
    result = classifier.classify_file(row["path"])
    n_time = timing.n_time(round(result.seconds * 16000))
    edges = np.array(timing.edges(n_time, result.seconds))
    middles = (edges[1:] + edges[:-1]) / 2
    total, count = np.zeros((n_time, len(labels))), np.zeros((n_time, 1))
    for part in result.windows:
        inside = (part.start <= middles) & (middles < part.end)
        total[inside] += [part.scores[label] for label in labels]
        count[inside] += 1
    return (total / count.clip(min=1)).astype(np.float32)


def frames_of(lobe, data, part):
    """Return the frames of all layers of each clip, float16."""
    pooling = ClipPooling(lobe.encoder.depth, "mean", "all")
    found = {}
    for row in tqdm(data.rows[part], f"Encoding {part}", delay=2):
        wav = read_audio(row["path"])[None]
        with torch.inference_mode():
            encoded = lobe.extract_features(wav, hidden_states=True)
            found[row["id"]] = pooling.frames(encoded)[0].half().clone()
    return found


def frozen(data, frames, timing, seed):
    """Train a frame head on frames; return it, its scores and precision."""
    torch.manual_seed(seed)
    dim = next(iter(frames["train"].values())).shape[1]
    head = FrameClassifier(dim, len(data.labels))
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=0.01)
    ids = list(frames["train"])
    steps = EPOCHS * -(-len(ids) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    targets = {
        part: _targets(data, frames[part], timing, part)
        for part in ("train", "valid")
    }
    best = None
    for _ in tqdm(range(EPOCHS), f"Head {seed}", delay=2):
        order = torch.randperm(len(ids)).tolist()
        for chosen in torch.tensor(order).split(BATCH):
            clips = [ids[n] for n in chosen.tolist()]
            x = torch.stack([frames["train"][clip] for clip in clips]).float()
            y = torch.stack([targets["train"][clip] for clip in clips])
            scores = head(x, torch.full((len(x),), x.shape[1]))
            strong = torch.ones(len(x), dtype=torch.bool)
            loss = event_cross_entropy(scores, y, y.amax(1), strong)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        valid = _scores(head, frames["valid"])
        precision = average_precision(
            np.concatenate(list(valid.values())),
            torch.cat(list(targets["valid"].values())),
        )
        value = precision.nanmean().item()
        if best is None or value > best[0]:
            state = {k: v.clone() for k, v in head.state_dict().items()}
            best = value, state
    head.load_state_dict(best[1])
    scores = {part: _scores(head, frames[part]) for part in ("valid", "test")}
    return head, scores, {"frame_mAP": best[0]}


def _targets(data, frames, timing, part):
    number = {label: n for n, label in enumerate(data.labels)}
    found = {}
    for row in data.rows[part]:
        events = [(a, b, number[label]) for a, b, label in row["events"]]
        n_samples = len(read_audio(row["path"]))
        target = timing.targets(events, n_samples, len(number))
        found[row["id"]] = target[: len(frames[row["id"]])]
    return found


def _scores(head, frames):
    with torch.inference_mode():
        return {
            clip: head(x.float()[None], torch.tensor([len(x)]))
            .frames[0]
            .sigmoid()
            .numpy()
            for clip, x in frames.items()
        }


def train_recipe(folder, table, source, epochs, seed):
    """Run the recipe; return what it has measured."""
    script = load_script(RECIPE / "detect" / "train.py")
    size = [f"--source={source}"] if source else ["--model_size=micro"]
    stats = script.main(
        [str(RECIPE / "detect" / "hparams" / "soundscapes.yaml")]
        + [f"--manifest={table}", f"--output_folder={folder}"]
        + [f"--seed={seed}", f"--number_of_epochs={epochs}"]
        + ["--num_workers=0", "--device=cpu", *size]
        + ["--geometry=[128, 4]", "--noprogressbar", *RECIPE_FLAGS]
    )
    return {"test": stats}


def _rounded(text):
    return round(float(text), 4)


def main():
    """Fill in the missing rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--clips", required=True)
    parser.add_argument("--backgrounds", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs=3, default=(800, 150, 150))
    parser.add_argument("--export", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(RECIPE))
    scapes = options.work / "soundscapes"
    if not (scapes / "events.csv").is_file():
        make = load_script(RECIPE / "soundscapes_prepare.py").make_soundscapes
        make(options.clips, scapes, options.backgrounds, options.counts)
    data, path = Data(scapes), Path(__file__).with_name("events.json")
    rows = json.loads(path.read_text()) if path.is_file() else []
    done = {(row["method"], row["seed"]) for row in rows}

    def add(method, seed, found):
        plain = json.loads(json.dumps(found), parse_float=_rounded)
        rows.append({"method": method, "seed": seed, **plain})
        write_json(path, rows)
        print(rows[-1])

    lobe = SSAST(source=bundled_model(), freeze=True)
    if ("classify", 1) not in done:
        add("classify", 1, classify(data, lobe.timing))

    def add_frozen(kinds):
        wanted = {(m, seed) for m in kinds for seed in SEEDS} - done
        if options.export:
            wanted |= {("frozen", 1)} & {(m, 1) for m in kinds}
        if not wanted:
            return
        frames = {part: frames_of(lobe, data, part) for part in SPLITS}
        for seed in sorted({seed for _, seed in wanted}):
            head, scores, more = frozen(data, frames, lobe.timing, seed)
            for method, kind in kinds.items():
                if (method, seed) not in wanted:
                    continue
                found, rules = measure(data, scores, lobe.timing, kind)
                if (method, seed) not in done:
                    add(method, seed, {**found, **more})
                if options.export and (method, seed) == ("frozen", 1):
                    export(options.export, head, rules, data.labels)

    def add_trained(method, source, epochs, seed):
        if (method, seed) not in done:
            folder = options.work / f"{method.replace(', ', '_')}_{seed}"
            table = scapes / "events.csv"
            found = train_recipe(folder, table, source, epochs, seed)
            add(method, seed, found)

    add_frozen({"frozen": "median", "frozen, sebbs": "sebbs"})
    torch.manual_seed(0)
    for module in lobe.encoder.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    add_frozen({"untrained": "median"})
    for seed in SEEDS:
        for trained in TRAINED:
            add_trained(*trained, seed)


def export(folder, head, rules, labels):
    """Write a head next to a copy of the bundled model."""
    if not folder.exists():
        shutil.copytree(bundled_model(), folder)
    depth = json.loads((folder / "config.json").read_text())["encoder"]["depth"]
    config = {
        "pooling": ClipPooling(depth, "mean", "all").config,
        "head": head.config,
        "labels": labels,
        "rules": {
            label: {k: round(v, 6) for k, v in rule._asdict().items()}
            for label, rule in rules.items()
        },
    }
    state = {f"head.{key}": value for key, value in head.state_dict().items()}
    print(write_frame_head(folder, "sounds", FrameHead(state, config)))


if __name__ == "__main__":
    main()
