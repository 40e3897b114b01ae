"""``ssast-lobes heads``: fit linear heads to a frozen encoder."""

import shlex
from pathlib import Path

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
        "heads",
        run,
        "write a small copy of an encoder with linear heads",
        "Write a copy of an encoder in half precision, with a linear\n"
        "classifier for each task. The encoder stays frozen. The command\n"
        "chooses the penalty on valid, fits the heads to train and valid, and\n"
        "tests them once. `ssast-lobes classify FOLDER --task NAME` uses\n"
        "them. Each --data is a task as in `ssast-lobes probe`.",
        "ssast-lobes heads results/export --data words=words.csv\n"
        "    --data emotion=acted.csv,metric=uar --output results/with_heads",
    )
    command.add_argument("model", metavar="MODEL", help=common.MODEL_HELP)
    common.add_tasks(command)
    command.add_argument(
        "--pooling",
        choices=["mean", "class", "statistics", "dynamics", "best"],
        default="best",
        help="vector of a clip: mean of the tokens; class tokens; statistics: "
        "mean and deviation; dynamics: also their change from step to step; "
        "best: chosen on valid for each head (default). Unless --pooling or "
        "--layers is best, `ssast-lobes embed` then pools in the same way; "
        "else it writes the mean of the last layer",
    )
    command.add_argument(
        "--layers",
        choices=["last", "all-mean", "all", "best"],
        default="best",
        help="tokens of the last layer, of the mean of all layers, or of all "
        "layers, concatenated (default: best)",
    )
    command.add_argument(
        "--projection",
        action="append",
        default=[],
        metavar="NAME or [NAME=]FILE.csv[,...]",
        help="a projection of MODEL (the bundled model has `words`), or a "
        "table to fit one on by linear discriminant analysis: recordings "
        "whose label repeats in other voices or rooms. Each head tries it; "
        "it helps heads of few labels",
    )
    command.add_argument(
        "--licenses",
        metavar="FILE.md",
        help="licenses of the training audio, for the model card",
    )
    command.add_argument(
        "--cache",
        metavar="FOLDER",
        help="folder that keeps embeddings for another run (default: none)",
    )
    common.add_computing(command)


def run(options):
    """Write a copy of an encoder with linear heads.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.evaluation.probing import parse_task, train_heads

    common.check_device(options.device)
    tasks = [parse_task(text) for text in options.data]
    licenses = options.licenses
    if licenses is not None:
        licenses = Path(licenses).read_text("utf-8")
    scores = train_heads(
        options.model,
        tasks,
        options.output,
        licenses,
        options.cache,
        options.device,
        options.batch_size,
        options.pooling,
        options.layers,
        options.projection,
    )
    for task in tasks:
        own = scores[task.name]
        print(
            f"{task.name}: {task.metric} {100 * own.valid:.1f} % on valid "
            f"(trained on train alone), {100 * own.test:.1f} % on test; "
            f"vectors: {own.vectors}"
        )
    print(f"written to {options.output}: {', '.join(scores)}")
    print(
        f"next: ssast-lobes classify {shlex.quote(str(options.output))} AUDIO "
        f"--task {shlex.quote(tasks[0].name)}"
    )
