"""Rows of the tables that `experiments/` fills; see `tables.py`."""

from statistics import mean, stdev

TRANSFER = "experiments/transfer"
# Of each task its file in `clips/`, and the column that names the parts.
CLIPS = {
    "keywords": ("speech_commands", "split"),
    "speakers": ("speech_commands", "split_spkid"),
    "digits": ("fsdd", "split"),
    "emotion": ("emodb", "split"),
    "events": ("esc10", "split"),
}
SYSTEMS = {
    ("log-mel", "linear"): "log-mel statistics, linear",
    ("MFCC", "linear"): "MFCC statistics, linear",
    ("untrained", "linear"): "untrained, frozen, linear",
    ("untrained", "k-NN"): "untrained, frozen, k-NN",
    ("pretrained", "linear"): "pretrained, frozen, linear",
    ("pretrained", "k-NN"): "pretrained, frozen, k-NN",
    ("scratch", "trained"): "from scratch",
    ("pretrained", "fine-tuned"): "fine-tuned from pretrained",
}
GOOGLE = {("speech_embedding", "linear"): "Google's `speech_embedding`, linear"}
# Those that the README shows.
SHORT = {
    ("MFCC", "linear"): "MFCC statistics, linear",
    **GOOGLE,
    ("untrained", "linear"): "untrained encoder, frozen, linear",
    ("pretrained", "linear"): "bundled model, frozen, linear",
    ("scratch", "trained"): "from scratch",
    ("pretrained", "fine-tuned"): "bundled model, fine-tuned",
}
ABLATION = {
    "untrained (joint)": "patches, untrained",
    "joint": "patches, joint",
    "discriminative": "patches, discriminative alone",
    "generative": "patches, generative alone",
    "untrained (joint_frame)": "frames, untrained",
    "joint_frame": "frames, joint",
}
DETECTORS = {
    "classify": "windows of `classify` (0.5 s, tuned)",
    "frozen": "frozen bundled model, frame head",
    "frozen, sebbs": "the same scores, change points",
    "untrained": "frozen untrained encoder, frame head",
    "finetuned": "fine-tuned",
    "scratch": "from scratch",
    "scratch, long": "from scratch, three times as long",
}
# Those that the page about events shows.
SHORT_DETECTORS = {
    "classify": "a classifier on windows, with window, threshold, filter and "
    "durations chosen as well",
    "frozen": "a linear frame head on the frozen bundled model",
    "finetuned": "the bundled model, fine-tuned",
    "scratch": "the same network from scratch",
}


def header(report):
    """Return the first row: the tasks, in the report's order."""
    uar = {"accuracy": "", "uar": " (UAR)"}
    tasks = [task["name"] + uar[task["metric"]] for task in report["tasks"]]
    return ["test score, %", *tasks]


def score(row):
    """Return a mean in percent, with the deviation over seeds if it has one."""
    spread = "" if row["sd"] is None else f" ± {100 * row['sd']:.1f}"
    return f"{100 * row['mean']:.1f}{spread}"


def scores(report, systems, bold=True):
    """Return a row a system; the best score of a task is bold."""
    found = {(s["system"], s["how"], s["task"]): s for s in report["scores"]}
    columns = []
    for task in report["tasks"]:
        column = [found[(*system, task["name"])] for system in systems]
        best = max(one["mean"] for one in column)
        marks = ["**" * (bold and one["mean"] == best) for one in column]
        columns.append(
            [
                f"{mark}{score(one)}{mark}"
                for mark, one in zip(marks, column, strict=True)
            ]
        )
    return [list(row) for row in zip(systems.values(), *columns, strict=True)]


def gains(report):
    """Return the gains of both ways to use the encoder over their baselines."""
    found = {
        (g["how"], g["task"]): g
        for g in report["gains"]
        if g["system"] == "pretrained"
    }
    names = [task["name"] for task in report["tasks"]]

    def errors(how):
        rows = [found[how, name] for name in names]
        return [
            f"{100 * row['error_reduction']:+.0f} "
            f"[{100 * row['interval'][0]:+.0f}, "
            f"{100 * row['interval'][1]:+.0f}]"
            for row in rows
        ]

    relative = [found["fine-tuned", name]["relative_gain"] for name in names]
    return [
        ["relative gain over scratch", *(f"{100 * x:+.1f}" for x in relative)],
        [
            "error reduction over scratch [95 % paired bootstrap]",
            *errors("fine-tuned"),
        ],
        ["frozen: error reduction over untrained [same]", *errors("linear")],
    ]


def five_tasks(report, *clips):
    """Return clips, classes, scores and gains with all labels."""
    of_file = dict(zip(CLIP_FILES, clips, strict=True))
    counts, speakers = [], []
    for task in report["tasks"]:
        file, split = CLIPS[task["name"]]
        rows = of_file[file]
        parts = ("train", "valid", "test")
        counts.append(
            " / ".join(
                str(sum(row[split] == part for row in rows)) for part in parts
            )
        )
        train, test = (
            {row["speaker"] for row in rows if row[split] == part}
            for part in ("train", "test")
        )
        test -= {"none"}  # of silence
        known = ", all of train too" if test <= train else ""
        speakers.append(f"{len(test)}{known}")
    return [
        header(report),
        ["clips, train / valid / test", *counts],
        ["classes", *(task["classes"] for task in report["tasks"])],
        ["speakers in test (events: recordings)", *speakers],
        *scores(report, GOOGLE | SYSTEMS),
        *gains(report),
    ]


def few_labels(report):
    """Return training clips, scores and gains with few labels."""
    clips = [
        task["classes"] * task["labels_per_class"] for task in report["tasks"]
    ]
    return [
        header(report),
        ["training clips", *clips],
        *scores(report, SYSTEMS),
        *gains(report),
    ]


def fewer_labels(*reports):
    """Return scores of linear classifiers of two to ten labels per class."""
    rows = [["test score, %, of a linear classifier", *header(reports[0])[1:]]]
    for report in reports:
        labels = f"{report['tasks'][0]['labels_per_class']} labels"
        systems = {
            ("MFCC", "linear"): f"{labels}: MFCC statistics",
            ("untrained", "linear"): f"{labels}: untrained",
            ("pretrained", "linear"): f"{labels}: pretrained",
        }
        found = {score["system"] for score in report["scores"]}
        if "speech_embedding" in found:
            systems = {
                ("pretrained", "linear"): f"{labels}: pretrained, or projected",
                ("speech_embedding", "linear"): f"{labels}: `speech_embedding`",
            }
        rows += scores(report, systems, bold=False)
    return rows


def ablation(report):
    """Return scores of losses and geometries, and their mean over tasks."""
    systems = {(name, "linear"): label for name, label in ABLATION.items()}
    means = [
        mean(
            row["mean"]
            for row in report["scores"]
            if (row["system"], row["how"]) == system
        )
        for system in systems
    ]
    rows = scores(report, systems, bold=False)
    return [
        [*header(report), "mean"],
        *(
            [*row, f"{100 * own:.1f}"]
            for row, own in zip(rows, means, strict=True)
        ),
    ]


def events(rows):
    """Return the scores of detectors: the mean over seeds, and the range."""
    table = [["method", "event F1", "segment F1", "PSDS 1"]]
    for method, label in DETECTORS.items():
        own = [row["test"] for row in rows if row["method"] == method]
        if not own:
            continue
        cells = [
            f"{100 * mean(one[key] for one in own):.1f}"
            for key in ("event_f1", "segment_f1", "psds1")
        ]
        if len(own) > 1:
            f1 = [100 * one["event_f1"] for one in own]
            cells[0] += f" ({min(f1):.1f} to {max(f1):.1f})"
        table.append([label, *cells])
    return table


def clip_vectors(report, probe):
    """Return scores of the bundled model, read by two kinds of vectors."""
    table = [["read by", "from", *header(report)[1:]]]
    for how, reader in (
        ("linear", "a linear probe"),
        ("k-NN", "nearest neighbors"),
    ):
        [own] = scores(report, {("pretrained", how): reader}, bold=False)
        found = {
            row["task"]: row["score"]
            for row in probe["results"]
            if (row["system"], row["probe"]) == ("bundled", how)
        }
        means = [f"{100 * found[t['name']]:.1f}" for t in report["tasks"]]
        table.append([reader, "`clip`", *own[1:]])
        table.append(["", "the mean of `frames`", *means])
    return table


def event_f1(rows):
    """Return the event-based F1 of the detectors that a user may choose."""
    table = [["detector", "event F1"]]
    for method, label in SHORT_DETECTORS.items():
        own = [
            row["test"]["event_f1"] for row in rows if row["method"] == method
        ]
        table.append([label, f"{100 * mean(own):.1f}"])
    return table


def scores_of_rows(results, part, title):
    """Return the scores of each row, the mean over its seeds."""
    tasks = list(results[0][part])
    table = []
    for name in dict.fromkeys(result["row"] for result in results):
        own = [result for result in results if result["row"] == name]
        found = [mean(one[part][task] for one in own) for task in tasks]
        means = [mean(one[part].values()) for one in own]
        spread = f" ± {100 * stdev(means):.1f}" if len(own) > 1 else ""
        steps = str(own[0].get("steps", ""))
        table.append([name, str(len(own)), steps, spread, *found, mean(found)])
    # The best first, and what is no row of the YAML last.
    table.sort(key=lambda row: (not row[2], -row[-1]))
    rows = []
    for name, seeds, steps, spread, *values in table:
        *cells, last = [f"{100 * value:.1f}" for value in values]
        name = f"`{name}`" if steps else name
        rows.append([name, seeds, steps, *cells, last + spread])
    return [[title, "seeds", "steps", *tasks, "mean"], *rows]


def equal_time(results):
    """Return scores on valid."""
    return scores_of_rows(results, "scores", "valid score, %")


def continued(results):
    """Return scores of continuations of the bundled model on valid."""
    # The untrained encoders and the baselines are in the table of objectives.
    left_out = ("untrained", "log-mel", "MFCC")
    kept = [result for result in results if result["row"] not in left_out]
    return scores_of_rows(kept, "scores", "valid score, %")


def equal_time_test(results):
    """Return scores on test, of the seeds that chose nothing."""
    tested = [result for result in results if "test" in result]
    return scores_of_rows(tested, "test", "test score, %")


def projection(results):
    """Return scores with few labels, and their deviation over draws."""
    tasks = ("keywords", "digits", "emotion", "events")
    counts = list(results[0]["scores"])
    found = {
        (one["model"], one["projection"], one["task"]): one["scores"]
        for one in results
    }
    rows = dict.fromkeys((model, name) for model, name, _ in found)
    return [
        [
            "labels for each class",
            *(f"{t}, {c}" for t in tasks for c in counts),
        ],
        *(
            [
                f"`{model}`"
                if name is None
                else f"`{model}`, projection `{name}`"
            ]
            + [
                f"{100 * mean(found[model, name, task][count]):.1f} ± "
                f"{100 * stdev(found[model, name, task][count]):.1f}"
                for task in tasks
                for count in counts
            ]
            for model, name in rows
        ),
    ]


def results(report):
    """Return the scores that the README shows."""
    tasks = [
        f"{task['name']} ({task['classes']}"
        f"{', UAR' if task['metric'] == 'uar' else ''})"
        for task in report["tasks"]
    ]
    return [["test score, % (classes)", *tasks], *scores(report, SHORT)]


CLIP_FILES = sorted({file for file, _ in CLIPS.values()})
TABLES = {
    "results": (results, f"{TRANSFER}/five_tasks.json"),
    "five_tasks": (
        five_tasks,
        f"{TRANSFER}/five_tasks.json",
        *(f"{TRANSFER}/clips/{name}.csv" for name in CLIP_FILES),
    ),
    "clip_vectors": (
        clip_vectors,
        f"{TRANSFER}/five_tasks.json",
        f"{TRANSFER}/mean_of_frames.json",
    ),
    "few_labels": (few_labels, f"{TRANSFER}/few_labels.json"),
    "fewer_labels": (
        fewer_labels,
        f"{TRANSFER}/fewer_labels_2.json",
        f"{TRANSFER}/fewer_labels_5.json",
        f"{TRANSFER}/fewer_labels_words_5.json",
        f"{TRANSFER}/fewer_labels_words_10.json",
    ),
    "continued": (continued, "experiments/pretraining/continued.json"),
    "ablation": (ablation, f"{TRANSFER}/ablation.json"),
    "events": (events, "experiments/events/events.json"),
    "event_f1": (event_f1, "experiments/events/events.json"),
    "projection": (projection, "experiments/pretraining/few_labels.json"),
    "equal_time": (equal_time, "experiments/pretraining/objectives.json"),
    "equal_time_test": (
        equal_time_test,
        "experiments/pretraining/objectives.json",
    ),
}
