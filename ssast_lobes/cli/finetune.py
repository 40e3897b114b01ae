"""``ssast-lobes finetune``: run CustomData's classifier from anywhere."""

from ssast_lobes.cli.recipe_run import add_training


def add_parser(commands):
    """Add the command and its options.

    Arguments
    ---------
    commands : argparse action
        See `ssast_lobes.cli.common.add_command`.
    """
    add_training(
        commands,
        "finetune",
        "manifest",
        "fine-tune a classifier on labeled audio",
        "a CSV with columns path, label and split, or a folder with one folder "
        "for each class",
        "ssast-lobes finetune labels.csv --source results/pretrain/export",
    )
