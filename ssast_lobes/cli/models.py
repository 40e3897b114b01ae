"""``ssast-lobes models``: list the bundled models."""

from ssast_lobes.cli import common

_COLUMNS = ("name", "parameters", "size", "heads", "trained on")


def add_parser(commands):
    """Add the command and its options.

    Arguments
    ---------
    commands : argparse action
        See `ssast_lobes.cli.common.add_command`.
    """
    common.add_command(
        commands,
        "models",
        run,
        "list the bundled models by name",
        "List the bundled models. You can use a name wherever the package\n"
        "takes a model: as MODEL of a command, as --source of a recipe, in\n"
        "SSAST(source=...) and AudioEncoder.from_hparams(...). A name never\n"
        "changes its weights. For a folder of the same name, write ./ before\n"
        "it. `ssast-lobes classify NAME --task HEAD` uses the heads, and\n"
        "`ssast-lobes events` uses `sounds`.",
        "ssast-lobes models\n"
        "  ssast-lobes embed ssast-lobes-micro-1 recordings/ "
        "--output clips.npz",
    )


def run(options):
    """Print a line for each model.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.checkpoints.bundled import bundled_model, bundled_names

    rows = [_COLUMNS, *(_row(bundled_model(name)) for name in bundled_names())]
    common.print_columns(rows)


def _row(folder):
    """Return the cells of a model, from its files and its card."""
    import math

    from safetensors import safe_open

    from ssast_lobes.checkpoints.format import CARD_FILE, WEIGHTS_FILE
    from ssast_lobes.checkpoints.frame_heads import frame_head_names
    from ssast_lobes.checkpoints.linear_heads import head_names

    path = folder / WEIGHTS_FILE
    with safe_open(path, framework="np") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]
    _, _, data = (folder / CARD_FILE).read_text("utf-8").partition("## Data\n")
    return (
        folder.name,
        f"{sum(map(math.prod, shapes)) / 1e6:.1f} M",
        f"{path.stat().st_size / 1e6:.1f} MB",
        ", ".join([*head_names(folder), *frame_head_names(folder)]),
        data.strip().partition("\n")[0],
    )
