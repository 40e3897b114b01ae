"""``ssast-lobes recipes``: list and copy the recipes."""

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
        "recipes",
        run,
        "list the recipes, or copy one to run and change",
        "List the recipes, or copy one, with everything that it needs, to\n"
        "FOLDER/recipes/NAME. The presets are copied to FOLDER/hparams. You\n"
        "may copy several recipes to one folder. The command never overwrites\n"
        "your own files.",
        "ssast-lobes recipes CustomData experiments\n"
        "  cd experiments/recipes/CustomData/pretrain\n"
        "  python train.py hparams/pretrain.yaml --audio recordings/",
    )
    command.add_argument(
        "name", nargs="?", metavar="NAME", help="the recipe to copy"
    )
    command.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="where to copy it"
    )
    command.set_defaults(
        when_stopped="the same command completes the copy, if it had begun"
    )


def run(options):
    """List the recipes, or copy one.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.cli.recipe_files import (
        copy_recipe,
        list_recipes,
        recipes_folder,
    )

    if options.name is None:
        recipes = list_recipes()
        width = max(len(recipe.name) for recipe in recipes)
        for recipe in recipes:
            print(f"{recipe.name:<{width}}  {recipe.title}".rstrip())
        print(
            f"\nThey are in {recipes_folder()}\n"
            "`ssast-lobes recipes NAME FOLDER` copies one, to run and change it"
        )
        return
    if options.folder is None:
        raise ValueError(
            f"say where to copy it: ssast-lobes recipes {options.name} FOLDER"
        )
    copy, *others = copy_recipe(options.name, options.folder)
    print(f"{options.name} is in {copy}, with the YAMLs that it includes")
    if others:
        names = ", ".join(path.name for path in others)
        print(f"Next to it, because it uses their scripts: {names}")
    print(f"How to run it: {copy / 'README.md'}")
