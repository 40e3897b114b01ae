"""``ssast-lobes pretrain``: run CustomData's pretraining from anywhere."""

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
        "pretrain",
        "audio",
        "pretrain an encoder on audio without labels",
        "a folder, or a CSV with a column `path`",
        "ssast-lobes pretrain recordings/ --model_size micro \\\n"
        "    --objective mspm_small_data",
    )
