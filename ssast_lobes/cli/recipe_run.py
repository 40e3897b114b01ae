"""Run the training scripts of CustomData from any folder."""

import argparse
import os
import subprocess
import sys

from ssast_lobes.cli.common import add_command
from ssast_lobes.cli.recipe_files import recipes_folder

# Name of the folder, and also of the YAML, that each command uses.
_RECIPES = {"pretrain": "pretrain", "finetune": "classify"}


def script_and_yaml(command):
    """Return the script that a command runs, and its YAML.

    Arguments
    ---------
    command : str
        ``"pretrain"`` or ``"finetune"``.

    Returns
    -------
    list of str

    Example
    -------
    >>> [os.path.basename(path) for path in script_and_yaml("finetune")]
    ['train.py', 'classify.yaml']
    """
    name = _RECIPES[command]
    folder = recipes_folder() / "CustomData" / name
    return [str(folder / "train.py"), str(folder / "hparams" / f"{name}.yaml")]


def pretrain(audio, output_folder, *options, **settings):
    """Pretrain an encoder on audio: run ``CustomData/pretrain/train.py``.

    The script runs in its own process, and prints its progress. To resume a
    stopped run, call this again with the same arguments.

    Arguments
    ---------
    audio : str, path or list
        A folder, a CSV with a column ``path``, or a list of these.
    output_folder : str or path
        Folder for logs, checkpoints and the export.
    *options : str
        Options of SpeechBrain's command line, such as ``"--noprogressbar"``.
    **settings
        Keys of ``CustomData/pretrain/hparams/pretrain.yaml``, such as
        ``model_size="micro"`` or ``masker={"ratio": 0.5}``.

    Returns
    -------
    str
        The exported folder, a source for `SSAST` and `finetune`.

    Raises
    ------
    FileNotFoundError
        If there is no such audio.
    RuntimeError
        If the script fails; it prints why.

    Example
    -------
    >>> pretrain("nowhere", "run", model_size="micro")
    Traceback (most recent call last):
    ...
    FileNotFoundError: nowhere: no such file or folder
    """
    return _train("pretrain", "audio", audio, output_folder, options, settings)


def finetune(manifest, output_folder, *options, **settings):
    """Fine-tune a classifier: run ``CustomData/classify/train.py``.

    Arguments
    ---------
    manifest : str or path
        A CSV with columns ``path``, ``label`` and ``split``, or a folder of
        class folders.
    output_folder : str or path
        Folder for logs, checkpoints, results and the export.
    *options : str
        See `pretrain`.
    **settings
        Keys of ``CustomData/classify/hparams/classify.yaml``, such as
        ``source="run/export"``.

    Returns
    -------
    str
        The exported folder, a source for
        `ssast_lobes.inference.AudioClassifier`.

    Raises
    ------
    FileNotFoundError
        If there is no such table or folder.
    RuntimeError
        If the script fails; it prints why.
    """
    return _train(
        "finetune", "manifest", manifest, output_folder, options, settings
    )


def _train(command, data_key, data, output_folder, options, settings):
    from ssast_lobes.training.arguments import flag_value

    is_list = isinstance(data, list)
    data = [*map(os.fspath, data)] if is_list else os.fspath(data)
    for path in data if is_list else [data]:
        if not os.path.exists(os.path.expanduser(path)):
            raise FileNotFoundError(f"{path}: no such file or folder")
    settings = {
        data_key: data,
        "output_folder": os.fspath(output_folder),
        **settings,
    }
    script, hparams_file = script_and_yaml(command)
    words = [f"--{key}={flag_value(value)}" for key, value in settings.items()]
    done = subprocess.run(
        [sys.executable, script, hparams_file, *options, *words]
    )
    if done.returncode:
        raise RuntimeError(f"{script} failed; its message is above")
    default = os.path.join(output_folder, "export")
    return settings.get("export_folder", default)


def add_training(commands, name, key, summary, data_help, example):
    """Add a command that runs a script of CustomData.

    Arguments
    ---------
    commands, name, summary, example
        See `ssast_lobes.cli.common.add_command`.
    key : str
        Key of the YAML for the data.
    data_help : str
        Description of the data for the help.
    """
    script, hparams_file = script_and_yaml(name)
    command = add_command(
        commands,
        name,
        run_training,
        summary,
        f"Run the script of a recipe, unchanged:\n  {script} \\\n"
        f"    {hparams_file}\nThe data come first. Every key of the YAML is an "
        "option, such as --output_folder FOLDER\n(default: "
        f"results/{_RECIPES[name]}, followed by presets and seed: "
        "_m2d_seed2),\nand so is every option of SpeechBrain, such as --device "
        "cuda. The same command resumes.",
        example,
    )
    command.add_argument(key, metavar=key.upper(), help=data_help)
    command.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="--KEY VALUE",
        help="settings of the YAML, and options of SpeechBrain",
    )
    command.set_defaults(
        when_stopped="the same command resumes at the last checkpoint",
        data_key=key,
    )


def run_training(options):
    """Run a script of CustomData.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.

    Returns
    -------
    int
        The exit code of the script.
    """
    data = getattr(options, options.data_key)
    words = [f"--{options.data_key}", data, *options.words]
    return subprocess.call(
        [sys.executable, *script_and_yaml(options.command), *words]
    )
