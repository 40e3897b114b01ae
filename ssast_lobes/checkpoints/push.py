"""Push exported folders to a model hub."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from speechbrain.utils.logger import get_logger

from ssast_lobes.checkpoints.format import (
    CARD_FILE,
    EXPORT_FILES,
    FRAME_HEADS_FOLDER,
    HEADS_FOLDER,
    LABELS_FILE,
    PROJECTIONS_FOLDER,
    HubError,
    WeightsError,
    check_weights,
    error_context,
)
from ssast_lobes.checkpoints.hub import hub_refusal
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.model_card import hub_card

logger = get_logger(__name__)


def push_to_hub(
    folder,
    repo_id,
    license=None,
    datasets=(),
    tags=(),
    private=False,
    message="Upload an exported folder",
    token=None,
    endpoint=None,
):
    """Push an exported folder to a model hub, in one commit.

    A missing repository is created. The published model card states the
    license, data sets and tags. Its section ``Use`` explains how to load the
    model from the hub. A title that is the name of the folder becomes the name
    of the repository. The rest of the card is published unchanged, including
    names of data files. The card in the folder does not change.

    Arguments
    ---------
    folder : str or path
        The exported folder. Files that an export did not write, such as heads,
        are not uploaded.
    repo_id : str
        ``user/repo``.
    license : str, optional
        Identifier of the weights' license, such as ``"cc-by-4.0"``; needed
        unless the card's front matter states one.
    datasets : list of str
        Names, on the hub, of the data sets that the model was trained on.
    tags : list of str
        Tags in addition to those of the export.
    private : bool
        Whether a new repository is visible to its owner only.
    message : str
        Message of the commit.
    token : str, optional
        Access token; by default that of ``hf auth login``.
    endpoint : str, optional
        Address of the hub; by default ``HF_ENDPOINT``.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    HubError
        If there is no license, or the hub refuses the upload.
    WeightsError
        If the folder is not a complete export.

    Example
    -------
    >>> push_to_hub("nowhere", "me/barks", license="cc-by-4.0")
    Traceback (most recent call last):
    ...
    ssast_lobes...WeightsError: nowhere: not an exported folder
    """
    folder = Path(folder).expanduser()
    kind = _check_export(folder)
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    # The title of a card is the folder's name, unless the export has its own.
    own, name = f"\n# {folder.resolve().name}\n", repo_id.rpartition("/")[2]
    text = text.replace(own, f"\n# {name}\n", 1)
    card = hub_card(text, kind, repo_id, license, datasets, tags)
    contents = {
        name: folder / name
        for name in EXPORT_FILES
        if (folder / name).is_file()
    }
    contents[CARD_FILE] = card.encode("utf-8")
    for name in (HEADS_FOLDER, FRAME_HEADS_FOLDER, PROJECTIONS_FOLDER):
        if (folder / name).is_dir():
            logger.warning(f"{folder / name} is not pushed: {name} are local")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        # `upload_folder` would upload the card of the folder, without changes.
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(*content) for content in contents.items()],
            commit_message=message,
        )
    except Exception as error:
        reason = hub_refusal(error, repo_id, "write", api.endpoint)
        raise HubError(f"{folder} was not pushed: {reason}") from error
    return commit.commit_url


def _check_export(folder):
    """Return the kind of a complete exported folder, or raise."""
    config = {}
    if folder.is_dir():
        weights = load_weights(folder)
        config = weights.config
    if "format_version" not in config:
        raise WeightsError(f"{folder}: not an exported folder")
    with error_context(folder):
        check_weights(weights)
        wanted = set(EXPORT_FILES)
        if config["kind"] == "pretrained":
            wanted.remove(LABELS_FILE)
        missing = [
            name for name in sorted(wanted) if not (folder / name).is_file()
        ]
        if missing:
            raise WeightsError(f"{', '.join(missing)} missing: export it again")
    return config["kind"]
