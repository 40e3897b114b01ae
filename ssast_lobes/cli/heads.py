"""``ssast-lobes heads``: linear heads on a frozen encoder."""

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
        "classifier for each task. The encoder stays frozen; the penalty is\n"
        "chosen on valid; the heads are trained on train and valid, and\n"
        "measured once on test. `ssast-lobes classify FOLDER --task NAME`\n"
        "uses them. Each --data is a task as in `ssast-lobes probe`.",
        "ssast-lobes heads results/export --data words=words.csv\n"
        "    --data emotion=acted.csv,metric=uar --output results/with_heads",
    )
    command.add_argument("model", metavar="MODEL", help=common.MODEL_HELP)
    common.add_tasks(command)
    command.add_argument(
        "--pooling",
        choices=["mean", "class", "statistics", "dynamics", "best"],
        default="best",
        help="a clip is the mean of its tokens, the class tokens, mean and "
        "deviation of its tokens, these and how they change from step to "
        "step (default: best, chosen for each head on "
        "valid). If pooling and layers name one way, `ssast-lobes embed` "
        "pools so too; else it gives the mean of the last layer",
    )
    command.add_argument(
        "--layers",
        choices=["last", "all-mean", "all", "best"],
        default="best",
        help="tokens of the last layer, the mean of all layers, or all layers "
        "side by side (default: best)",
    )
    command.add_argument(
        "--licenses",
        metavar="FILE.md",
        help="licenses of the audio it was trained on, for the model card",
    )
    command.add_argument(
        "--cache",
        metavar="FOLDER",
        help="where embeddings are kept for another run (default: nowhere)",
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
    )
    for task in tasks:
        valid, test = (100 * score for score in scores[task.name])
        print(
            f"{task.name}: {task.metric} {valid:.1f} % on valid (trained on "
            f"train alone), {test:.1f} % on test"
        )
    print(f"written to {options.output}: {', '.join(scores)}")
