"""Guard an output folder: one run at a time, and only one experiment."""

import json
import os
import pydoc
import shutil
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ruamel.yaml import YAML
from speechbrain.core import DEFAULT_LOG_CONFIG
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import setup_logging

from ssast_lobes.checkpoints.folder import check_export_folder
from ssast_lobes.checkpoints.format import CONFIG_FILE
from ssast_lobes.dataio.splits import has_begun
from ssast_lobes.training.arguments import FROM, REPLACE, plain_settings
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.training.lock import folder_lock
from ssast_lobes.training.report import log_end, quiet
from ssast_lobes.utils.files import write_json
from ssast_lobes.utils.presets import merge, read_tree, tag_of

SETTINGS_FILE = "save/settings.json"
# Settings that may change between two starts of one experiment: how it runs,
# and where its data are. The clips themselves are compared.
_FREE = {
    "allow_download",
    "audio",
    "checkpointing",
    "ckpt_interval_minutes",
    "data_folder",
    "export_folder",
    "held_out_of",
    "librispeech_folder",
    "manifest",
    "max_unreadable",
    "nonfinite_patience",
    "num_workers",
    "number_of_epochs",
    "output_folder",
    "pad_seconds",
    "require_counts",
    "shards",
    "use_tensorboard",
    "window_seconds",
}
# Packages that are not the user's code.
_PACKAGES = {"ssast_lobes", "speechbrain", "torch", *sys.stdlib_module_names}
_NO_LOG_FILE = {"handlers": {"file_handler": {"filename": os.devnull}}}


@contextmanager
def experiment(hparams_file, overrides, folder):
    """Reserve an output folder for one run of one experiment.

    Later starts must have the settings of the first start in the folder. (The
    clips are compared by `dataio.splits.write_splits`.) Inside this context,
    first prepare the data, then call SpeechBrain's
    ``create_experiment_directory``: a refused start then changes nothing. An
    export folder with other files is refused too.

    The first start copies the user's own files to ``code`` in the folder:
    presets from the command line, and modules of classes in the settings. At
    the end of the context, the result of the run is printed.

    Arguments
    ---------
    hparams_file : str
        The YAML of the recipe.
    overrides : str
        From `parse_arguments`.
    folder : str or os.PathLike
        The output folder.

    Raises
    ------
    FileExistsError
        If ``export_folder`` contains anything but an export.
    SettingsError
        If another process holds the folder, or settings of the experiment have
        changed; the message names them.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> file = folder / "train.yaml"
    >>> _ = file.write_text("lr: 0.1\\nnum_workers: 2\\n")
    >>> with experiment(file, "", folder / "out"):
    ...     (folder / "out" / "save" / "CKPT+1").mkdir(parents=True)
    >>> with experiment(file, "num_workers: 0", folder / "out"):
    ...     pass
    >>> with experiment(file, "lr: 0.2", folder / "out"):
    ...     pass
    Traceback (most recent call last):
    ...
    ssast_lobes...SettingsError: ... lr (0.1, now 0.2). Choose ...
    """
    with folder_lock(folder) if if_main_process() else nullcontext():
        run_on_main(_keep_or_compare, [hparams_file, overrides, Path(folder)])
        # Show messages even before the folder has its log file.
        setup_logging(DEFAULT_LOG_CONFIG, _NO_LOG_FILE)
        with quiet():
            yield
        if if_main_process():
            _finish(Path(folder), plain_settings(hparams_file, overrides))


def _finish(folder, settings):
    # SpeechBrain describes the machine in this file.
    if (folder / "env.log").is_file():
        os.replace(folder / "env.log", folder / "save" / "env.log")
    export = settings.get("export_folder")
    if export is not None and Path(export, CONFIG_FILE).is_file():
        log_end(folder, export)


def _keep_or_compare(hparams_file, overrides, folder):
    # Check this now, not after a long training.
    export_folder = plain_settings(hparams_file, overrides).get("export_folder")
    if export_folder is not None:
        check_export_folder(export_folder)
    # Values by their place in the YAML. References are not resolved, so moving
    # the output folder changes no setting.
    tree = merge(read_tree(hparams_file), YAML().load(overrides) or {})
    now = json.loads(json.dumps(dict(_flat("", tree)), default=str))
    path = folder / SETTINGS_FILE
    if not has_begun(folder) or not path.is_file():
        write_json(path, now)
        for file in _own_files(overrides, tree):
            (folder / "code").mkdir(exist_ok=True)
            shutil.copy(file, folder / "code")
        return
    try:
        then = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"{path} is damaged ({error}). If you know that the settings are "
            "those of its experiment, delete it; else choose another "
            "--output_folder"
        ) from error
    changed = [
        f"{key} ({then.get(key)}, now {now.get(key)})"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]
    if changed:
        raise SettingsError(
            f"{folder} holds an experiment with other settings: "
            f"{', '.join(changed)}. Choose another --output_folder, or delete "
            "that one to start anew"
        )


def _own_files(overrides, tree):
    """Return the user's own files that the settings name or come from."""
    yamls = [
        Path(line.removeprefix(FROM))
        for line in overrides.splitlines()
        if line.startswith(FROM)
    ]
    for path in yamls:
        base = str(read_tree(path).get("base"))
        if base.endswith(".yaml"):
            yamls.append(path.parent / Path(base).expanduser())
    modules = {_module(tag) for _, tag in _flat("", tree)}
    return [*yamls, *filter(None, modules)]


def _module(tag):
    """Return the user's module file with the class of a tag, or None."""
    _, _, name = str(tag).partition(":")
    found = pydoc.locate(name) if str(tag).startswith("!") else None
    module = sys.modules.get(getattr(found, "__module__", None))
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] in _PACKAGES:
        return None
    installed = {"site-packages", "dist-packages"} & {*Path(file).parts}
    return None if installed else file


def _flat(place, node):
    """Yield (place, plain value) for each value below a node."""
    tag = tag_of(node)
    if tag == REPLACE:
        yield from _flat(place, node[0])
    elif isinstance(node, dict | list):
        if tag:
            yield place, tag
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in pairs:
            if key not in _FREE:
                yield from _flat(f"{place}.{key}" if place else key, child)
    else:
        yield place, f"{tag} {node.value}".strip() if tag else node
