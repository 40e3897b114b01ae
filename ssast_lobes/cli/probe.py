"""``ssast-lobes probe``: compare frozen encoders."""

import os

from ssast_lobes.cli import common


def add_parser(commands):
    """Add the command and its options.

    Arguments
    ---------
    commands : argparse action
        See `ssast_lobes.cli.common.add_command`.
    """
    command = common.add_command(
        commands,
        "probe",
        run,
        "compare checkpoints: linear and k-NN probes of frozen encoders",
        "Compare frozen encoders by a linear and a k-nearest-neighbor\n"
        "classifier, with four baselines: the most frequent class, the\n"
        "duration of the clip, log-mel statistics, and the untrained encoder.\n"
        "Features are standardized on train, and settings are chosen on\n"
        "valid. Scores are those of test, with 95 % intervals bootstrapped\n"
        "over groups, such as speakers. The command writes probe.md,\n"
        "probe.csv, probe.json, probe.png and the embeddings to the output\n"
        "folder. The next run reuses the embeddings.\n\n"
        "Each --data is a CSV whose rows have path, label and split (train,\n"
        "valid or test). Options for this task alone may follow it:\n"
        "NAME=FILE.csv,label=COLUMN,split=COLUMN,group=COLUMN,\n"
        "metric=accuracy|uar",
        "ssast-lobes probe results/a/export results/b/export\n"
        "    --data words=words.csv --data emotion=acted.csv,metric=uar\n"
        "    --output results/probe",
    )
    command.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help=f"{common.MODEL_HELP}; or official .pth file; NAME=MODEL sets "
        "its name in the tables",
    )
    common.add_tasks(command)
    command.add_argument(
        "--label-column",
        default="label",
        metavar="COLUMN",
        help="column of the class (default: label)",
    )
    command.add_argument(
        "--split-column",
        default="split",
        metavar="COLUMN",
        help="column of train, valid or test (default: split)",
    )
    command.add_argument(
        "--group-column",
        metavar="COLUMN",
        help="column of a clip's group, such as its speaker; intervals "
        "resample groups (default: speaker or group if there is such a column, "
        "else each clip)",
    )
    command.add_argument(
        "--metric",
        choices=["accuracy", "uar"],
        default="accuracy",
        help="uar: unweighted average recall, for classes of unequal size "
        "(default: accuracy)",
    )
    command.add_argument(
        "--pooling",
        choices=["mean", "class", "statistics", "dynamics", "best"],
        default="best",
        help="vector of a clip: mean of the tokens; class tokens; statistics: "
        "mean and deviation; dynamics: also their change from step to step; "
        "best: the best on valid (default)",
    )
    command.add_argument(
        "--layers",
        choices=["last", "all-mean", "all", "best"],
        default="best",
        help="tokens of the last layer, of the mean of all layers, or of all "
        "layers, concatenated (statistics, dynamics); best: the best on valid "
        "(default)",
    )
    command.add_argument(
        "--cache",
        metavar="FOLDER",
        help="folder of the embeddings (default: embeddings/ in the output)",
    )
    common.add_computing(command)
    command.set_defaults(
        when_stopped="no report was written. The embeddings made so far are "
        "kept: the same command resumes from there"
    )


def run(options):
    """Probe models on tasks, and write the report.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.evaluation.probing import parse_task, probe, write_report

    common.check_device(options.device)
    tasks = [
        parse_task(
            text,
            label=options.label_column,
            split=options.split_column,
            group=options.group_column,
            metric=options.metric,
        )
        for text in options.data
    ]
    models = name_models(options.models)
    report = os.path.join(options.output, "probe.csv")
    common.make_parent(report)
    unreadable = []
    results = probe(
        models,
        tasks,
        options.cache or os.path.join(options.output, "embeddings"),
        options.pooling,
        options.layers,
        options.device,
        options.batch_size,
        unreadable,
    )
    n_files = len({path for task in tasks for path in task.paths()})
    common.report_unreadable(unreadable, n_files, report)
    missing = {path for path, _ in unreadable}
    tasks = [task.without(missing) for task in tasks]
    text = write_report(results, tasks, options.output)
    print(f"{len(results)} results in {options.output}\n\n{text}", end="")


def name_models(words):
    """Name models by the word before the equals sign, or by their paths.

    Arguments
    ---------
    words : list of str
        Each is ``[NAME=]MODEL``. See `short_names` for a model without a name.

    Returns
    -------
    dict of str to str
        Sources by name.

    Raises
    ------
    ValueError
        If two models get the same name.

    Example
    -------
    >>> name_models(["best=runs/b.pth", "runs/a/export"])
    {'best': 'runs/b.pth', 'a/export': 'runs/a/export'}
    """
    from ssast_lobes.evaluation.probing import short_names
    from ssast_lobes.evaluation.probing.tasks import split_name

    pairs = [split_name(word) for word in words]
    short = short_names([source for _, source in pairs])
    models = {}
    for (name, source), own in zip(pairs, short, strict=True):
        if (name or own) in models:
            raise ValueError(f"two models are called {name or own}: rename one")
        models[name or own] = source
    return models
