"""Exported folders: the models that trainings write.

A folder contains the weights (`model.safetensors`), the configuration of the
model, the labels and a model card. `ssast_lobes.inference` reads the
configuration from `config.json` and executes nothing. SpeechBrain's
``from_hparams`` reads it from `hyperparams.yaml`. The files refer to each other
by name only, so that the folder can be moved or published on a model hub. The
folder appears only when it is complete.
"""

import shutil

from safetensors import SafetensorError
from safetensors.torch import save_file
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.logger import get_logger

from ssast_lobes.checkpoints.format import (
    CARD_FILE,
    CONFIG_FILE,
    EXPORT_FILES,
    FRAME_HEADS_FOLDER,
    HEADS_FOLDER,
    HYPERPARAMS_FILE,
    LABELS_FILE,
    PROJECTIONS_FOLDER,
    WEIGHTS_FILE,
    Weights,
    WeightsError,
    check_weights,
    exported_state,
    read_json,
    version_of,
    window_seconds,
)
from ssast_lobes.checkpoints.hyperparams import hyperparams_text
from ssast_lobes.checkpoints.model_card import model_card_text
from ssast_lobes.models.pooling import ClipPooling
from ssast_lobes.utils.files import atomic_replace_dir, resolved, write_json

logger = get_logger(__name__)


def export_pretrained(folder, objective, features, card, least_window=0.0):
    """Write a pretrained encoder and its objective to a folder.

    Arguments
    ---------
    folder : str or path
        Folder to write. An older export there is replaced, with its heads and
        projections; other files stay.
    objective : Objective
        The objective, which owns the encoder; not wrapped for distributed
        training.
    features : FrontEnd
        The front end of the training.
    card : dict
        Entries of the model card: ``"recipe"`` and ``"data"`` (text),
        ``"settings"`` and ``"metrics"`` (dicts of plain values), and further
        texts or dicts.
    least_window : float
        Shortest window, in seconds, into which interfaces cut longer audio.
        Pass at least the duration of the longest training clip. A longer
        position table gives a longer window.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder contains files, but no export.

    Example
    -------
    >>> from ssast_lobes import FrontEnd, SpectrogramEncoder
    >>> from ssast_lobes.objectives import MSPM
    >>> objective = MSPM(SpectrogramEncoder(dim=32, depth=1, heads=2))
    >>> folder = getfixture("tmpdir") / "export"
    >>> written = export_pretrained(folder, objective, FrontEnd(), card={})
    >>> sorted(path.name for path in written.iterdir())
    ['README.md', 'config.json', 'hyperparams.yaml', 'model.safetensors']
    """
    encoder = objective.encoder
    # `card` may describe the pretraining of the initial weights. Replace that
    # entry, and keep the new one at the top.
    own = {"pretraining": objective_text(type(objective))}
    if "teachers" in objective.config:
        teachers = ", ".join(objective.config["teachers"])
        own["pretraining"] += f"; taught by {teachers}"
    card = {**own, **card, **own}
    state = exported_state(objective)
    config = {
        "kind": "pretrained",
        "encoder": encoder.config,
        "features": features.config,
        "pooling": ClipPooling(encoder.depth).config,
        "objective": {"name": type(objective).__name__, **objective.config},
    }
    return write_export(folder, state, config, card, least_window=least_window)


def objective_text(cls):
    """Return the name of an objective and its paper, for a model card.

    Arguments
    ---------
    cls : type
        The class of the objective. It need not have the attribute `paper`.

    Returns
    -------
    str

    Example
    -------
    >>> from ssast_lobes.objectives import M2D
    >>> objective_text(M2D)
    'M2D: masked modeling duo (Niizumi et al., "Masked Modeling Duo: ...'
    """
    name = cls.__name__
    if not cls.__module__.startswith("ssast_lobes."):
        name = f"{cls.__module__}.{name}"
    paper = getattr(cls, "paper", None)
    return name if paper is None else f"{name}: {paper}"


def export_classifier(
    folder,
    model,
    features,
    label_encoder,
    multi_label,
    card,
    least_window=0.0,
):
    """Write a fine-tuned classifier to a folder, with its adapters merged.

    Arguments
    ---------
    folder : str or path
        Folder to write. An older export there is replaced, with its heads and
        projections; other files stay.
    model : SpectrogramClassifier
        The classifier; not wrapped for distributed training.
    features : FrontEnd
        The front end of the training.
    label_encoder : speechbrain.dataio.encoder.CategoricalEncoder
        Label of each class index.
    multi_label : bool
        Whether a clip may have several labels. Scores then use a sigmoid
        instead of a softmax.
    card : dict
        Entries of the model card; see `export_pretrained`.
    least_window : float
        Shortest window in seconds; see `export_pretrained`.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder contains files, but no export.
    WeightsError
        If the numbers of classes and of labels differ.

    Example
    -------
    >>> from ssast_lobes import (
    ...     FrontEnd,
    ...     SpectrogramClassifier,
    ...     SpectrogramEncoder,
    ... )
    >>> from ssast_lobes.inference import AudioClassifier
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> model = SpectrogramClassifier(encoder, n_classes=2)
    >>> labels = label_encoder_of(["cat", "dog"])
    >>> folder = getfixture("tmpdir") / "export"
    >>> written = export_classifier(
    ...     folder, model, FrontEnd(), labels, multi_label=False, card={}
    ... )
    >>> AudioClassifier.from_hparams(written).labels
    ['cat', 'dog']
    """
    state = _state_of(model, model.merged_encoder_state())
    config = {
        "kind": "classifier",
        "encoder": model.encoder.config,
        "features": features.config,
        "pooling": model.pooling.config,
        "head": model.head.config,
        "labels": _labels_of(label_encoder),
        "multi_label": bool(multi_label),
    }
    return write_export(
        folder, state, config, card, label_encoder, least_window
    )


def export_detector(
    folder, model, features, label_encoder, rules, card, least_window=0.0
):
    """Write a detector of sound events to a folder.

    Arguments
    ---------
    folder : str or path
        Folder to write. An older export there is replaced, with its heads and
        projections; other files stay.
    model : SpectrogramDetector
        The detector; not wrapped for distributed training.
    features : FrontEnd
        The front end of the training.
    label_encoder : speechbrain.dataio.encoder.CategoricalEncoder
        Label of each class index.
    rules : dict of str to dict
        For each class, the arguments of the
        `ssast_lobes.inference.events.EventRule` or `ChangePointRule` that turns
        its scores into events.
    card : dict
        Entries of the model card; see `export_pretrained`.
    least_window : float
        Shortest window in seconds; see `export_pretrained`.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder contains files, but no export.

    Example
    -------
    >>> from ssast_lobes import (
    ...     FrontEnd,
    ...     SpectrogramDetector,
    ...     SpectrogramEncoder,
    ... )
    >>> from ssast_lobes.inference import EventDetector
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> model = SpectrogramDetector(encoder, n_classes=2)
    >>> labels = label_encoder_of(["cat", "dog"])
    >>> rules = {"cat": {"threshold": 0.4}, "dog": {"threshold": 0.6}}
    >>> folder = getfixture("tmpdir") / "export"
    >>> written = export_detector(
    ...     folder, model, FrontEnd(), labels, rules, card={}
    ... )
    >>> EventDetector.from_hparams(written).rules["dog"].threshold
    0.6
    """
    state = _state_of(model, model.encoder.state_dict())
    config = {
        "kind": "detector",
        "encoder": model.encoder.config,
        "features": features.config,
        "pooling": model.pooling.config,
        "head": model.head.config,
        "labels": _labels_of(label_encoder),
        "rules": rules,
    }
    return write_export(
        folder, state, config, card, label_encoder, least_window
    )


def _state_of(model, encoder_state):
    """Return the tensors of a model with a pooling and a head."""
    parts = {
        "encoder": encoder_state,
        "pooling": model.pooling.state_dict(),
        "head": model.head.state_dict(),
    }
    return {
        f"{part}.{key}": value
        for part, tensors in parts.items()
        for key, value in tensors.items()
    }


def _labels_of(label_encoder):
    first = label_encoder.starting_index
    numbers = range(first, first + len(label_encoder))
    return [str(label_encoder.ind2lab[number]) for number in numbers]


def export_encoder(folder, encoder, features, card, least_window=0.0):
    """Write only an encoder to a folder, after any kind of training.

    Arguments
    ---------
    folder : str or path
        Folder to write. An older export there is replaced, with its heads and
        projections; other files stay.
    encoder : SpectrogramEncoder
        The encoder.
    features : FrontEnd
        The front end of the training.
    card : dict
        Entries of the model card; see `export_pretrained`.
    least_window : float
        Shortest window in seconds; see `export_pretrained`.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder contains files, but no export.

    Example
    -------
    >>> from ssast_lobes import FrontEnd, SpectrogramEncoder
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> folder = getfixture("tmpdir") / "export"
    >>> written = export_encoder(folder, encoder, FrontEnd(), card={})
    >>> (written / "model.safetensors").is_file()
    True
    """
    state = encoder.state_dict()
    config = {
        "kind": "pretrained",
        "encoder": encoder.config,
        "features": features.config,
        "pooling": ClipPooling(encoder.depth).config,
    }
    return write_export(
        folder,
        {f"encoder.{key}": value for key, value in state.items()},
        config,
        card,
        least_window=least_window,
    )


def label_encoder_of(labels):
    """Return SpeechBrain's label encoder for labels in the order of classes.

    Arguments
    ---------
    labels : list of str
        Label of each class.

    Returns
    -------
    speechbrain.dataio.encoder.CategoricalEncoder

    Raises
    ------
    ValueError
        If there are duplicate labels.

    Example
    -------
    >>> label_encoder_of(["dog", "cat"]).encode_label("cat")
    1
    """
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"labels must be unique, duplicates: {twice}")
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(labels)
    encoder.expect_len(len(labels))
    return encoder


def check_export_folder(folder):
    """Raise unless an export may be written to a folder.

    A training calls this function before it starts, so that the export at its
    end cannot fail.

    Arguments
    ---------
    folder : str or path
        A new or empty folder, or one with an older export, which would be
        replaced.

    Raises
    ------
    FileExistsError
        If the folder contains files, but no export.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> check_export_folder(folder)
    >>> folder.join("thesis.txt").write("mine")
    >>> check_export_folder(folder)
    Traceback (most recent call last):
    ...
    FileExistsError: ... exists and is not an exported folder; ...
    """
    folder = resolved(folder)
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    # Models of other libraries have files of the same names.
    try:
        is_ours = "format_version" in read_json(folder / CONFIG_FILE)
    except WeightsError:
        is_ours = False
    if not is_ours or not (folder / WEIGHTS_FILE).is_file():
        raise FileExistsError(
            f"{folder} exists and is not an exported folder; choose another "
            "name or remove it"
        )


def write_export(
    folder,
    state,
    config,
    card,
    label_encoder=None,
    least_window=0.0,
    half=False,
):
    """Write tensors and their configuration as an exported folder.

    Arguments
    ---------
    folder : str or path
        Folder to write. An older export there is replaced, with its heads and
        projections; other files stay.
    state : dict of str to torch.Tensor
        Keys start with ``encoder.``, ``objective.``, ``pooling.``, ``head.``.
    config : dict
        The entries ``kind``, ``encoder``, ``features`` and ``pooling``. A
        classifier or a detector also needs the entries ``head`` and ``labels``,
        and ``multi_label`` or ``rules``.
    card : dict
        Entries of the model card; see `export_pretrained`.
    label_encoder : speechbrain.dataio.encoder.CategoricalEncoder, optional
        Labels of a classifier or a detector.
    least_window : float
        Shortest window in seconds; see `export_pretrained`.
    half : bool
        Whether to store the tensors in half precision (float16), which halves
        the file. They are read as float32.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder contains files, but no export.
    WeightsError
        If the tensors do not fit the configuration, or the folder cannot be
        written, for example because the disk is full. An older export then
        stays unchanged.

    Example
    -------
    >>> write_export(
    ...     getfixture("tmpdir") / "export",
    ...     state={},
    ...     config={"encoder": {}, "pooling": {"depth": 12}},
    ...     card={},
    ... )
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: encoder: missing class_tokens, ...
    """
    folder = resolved(folder)
    check_weights(Weights(state, config))
    seconds = window_seconds(config["encoder"], config["features"])
    if "pad_frames" not in config["features"]:
        seconds = max(seconds, least_window)
    config = {
        "format_version": version_of(config),
        "window_seconds": seconds,
        **config,
    }
    n_parameters = sum(
        value.numel()
        for key, value in state.items()
        if not key.startswith("objective.")
    )
    state = {
        key: value.detach().cpu().contiguous().clone()
        for key, value in state.items()
    }
    if half:
        state = {
            key: value.half() if value.is_floating_point() else value
            for key, value in state.items()
        }
    # Heads and projections of an older encoder would be wrong for the new one,
    # so remove them.
    folders = (HEADS_FOLDER, FRAME_HEADS_FOLDER, PROJECTIONS_FOLDER)
    replaced = (*EXPORT_FILES, *folders)
    for name in folders:
        if (folder / name).is_dir():
            logger.warning(
                f"{folder / name} is removed: it belongs to the older weights"
            )
    with atomic_replace_dir(folder, replaced, check_export_folder) as partial:
        try:
            save_file(state, partial / WEIGHTS_FILE, {"format": "pt"})
            write_json(partial / CONFIG_FILE, config)
            # safetensors makes the file readable for its owner only; follow the
            # umask.
            shutil.copymode(partial / CONFIG_FILE, partial / WEIGHTS_FILE)
            text = hyperparams_text(config)
            (partial / HYPERPARAMS_FILE).write_text(text, "utf-8")
            text = model_card_text(folder, config, card, n_parameters)
            (partial / CARD_FILE).write_text(text, "utf-8")
            if label_encoder is not None:
                label_encoder.save(partial / LABELS_FILE)
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"{folder}: the export cannot be written ({error}); make room "
                "there and try again"
            ) from error
    logger.info(f"Exported to {folder}")
    return folder
