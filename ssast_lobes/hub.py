"""Exported folders on a model hub: put there with a model card, and fetched.

An exported folder is a complete repository: weights, what builds the model,
labels and model card. `fetch` stands behind every ``source`` of this package,
so that ``user/repo`` may be given wherever a folder may. Which hub is asked
(``HF_ENDPOINT``), where files are cached (``HF_HOME``) and as whom
(``hf auth login``) is as for all of ``huggingface_hub``.
"""

import os
import re
from pathlib import Path

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    errors,
    snapshot_download,
)

from ssast_lobes.export import (
    CARD_FILE,
    EXPORT_FILES,
    LABELS_FILE,
    USE_HEADING,
    check_weights,
    front_matter,
    use_section,
)
from ssast_lobes.huggingface import (
    INDEX_ENDING,
    PICKLED_FILE,
    PREPROCESSOR_FILE,
)
from ssast_lobes.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    WeightsError,
    load_weights,
    naming,
)

_REPOSITORY = re.compile(
    r"(?P<name>[a-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.I | re.A
)
_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n\s*", re.M | re.S)
_USE_SECTION = re.compile(rf"^{USE_HEADING}\n.*?(?=^## |\Z)", re.M | re.S)


class HubError(WeightsError):
    """A hub does not give or take a model; the message says why."""


def fetch(source):
    """Fetch what `load_weights` reads of a repository, once.

    Arguments
    ---------
    source : str
        ``user/repo``, or ``user/repo@revision`` with a branch, tag or commit.

    Returns
    -------
    pathlib.Path
        Its folder in the cache. Without network, what was fetched before.

    Raises
    ------
    HubError
        If there is no such repository or revision, no leave to read it, no
        network, or no place for it in the cache.
    WeightsError
        If `source` is no name of a repository at all.

    Example
    -------
    >>> fetch("nowhere")
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: nowhere: no such file or folder
    """
    found = _REPOSITORY.fullmatch(os.fspath(source))
    if found is None:
        raise WeightsError(f"{source}: no such file or folder")
    try:
        for weights in (WEIGHTS_FILE, PICKLED_FILE):
            folder = snapshot_download(
                found["name"],
                revision=found["revision"],
                allow_patterns=[
                    CONFIG_FILE,
                    PREPROCESSOR_FILE,
                    weights,
                    weights + INDEX_ENDING,
                    weights.replace(".", "-*-of-*."),
                ],
            )
            # Many repositories hold both, and one is enough.
            if any(Path(folder).glob(f"{weights}*")):
                break
    except Exception as error:
        raise HubError(
            f"{source}: no such file or folder, nor in the cache of the hub; "
            f"{_reason(error, found['name'], 'read')}"
        ) from error
    return Path(folder)


def _reason(error, name, action, endpoint=None):
    """What an error of a client that was to read or write means, a line."""
    hub = endpoint or constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError):
        # Not in the cache either; the cause is what the hub, or its lack, said.
        error = error.__cause__ or error
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: ask for access at {hub}/{name}, and log in"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{hub} shows no repository {name}: check the name, and log in "
            "with `hf auth login` if it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub}/{name} has no such revision"
    response = getattr(error, "response", None)
    if response is not None and response.status_code in (401, 403):
        return (
            f"{hub} does not let you {action} {name}: log in with "
            f"`hf auth login`, with a token that may {action} there"
        )
    if response is not None:
        return f"{hub} answers: {_first_line(error)}"
    if isinstance(error, errors.HFValidationError):
        return f"{name} is no name of a repository ({_first_line(error)})"
    if _is_local(error):
        return (
            f"a file of this machine fails ({_first_line(error)}); the cache "
            f"is {constants.HF_HUB_CACHE}, HF_HOME names another"
        )
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, so {hub} is not asked"
    return f"{hub} cannot be reached ({_first_line(error)})"


def _is_local(error):
    """Whether it is Python's own error of a file, not of a connection."""
    # The errors of HTTP clients and sockets are kinds of OSError, too.
    own = isinstance(error, OSError) and type(error).__module__ == "builtins"
    return own and not isinstance(error, (ConnectionError, TimeoutError))


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
    """Put an exported folder on a model hub, in one commit.

    The repository is made if there is none. The model card goes there with
    licence, data sets and tags, and tells how to load the model by its name
    there; the card in the folder stays as it is. The section ``Use`` is
    written anew, the rest of the card is yours: whatever the export has put
    there, such as the name of a data file, is published.

    Arguments
    ---------
    folder : str or path
        The exported folder. Other files in it stay at home.
    repo_id : str
        ``user/repo``.
    license : str, optional
        Identifier of the weights' licence, such as ``"cc-by-4.0"``; needed
        unless the card's front matter has one.
    datasets : list of str
        Names on the hub of the data sets it was trained on.
    tags : list of str
        Tags beside those of the export.
    private : bool
        Show a new repository to its owner only.
    message : str
        Message of the commit.
    token : str, optional
        Access token; that of ``hf auth login`` when left out.
    endpoint : str, optional
        Address of the hub; ``HF_ENDPOINT`` when left out.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    HubError
        If no licence is named, or the hub does not take it.
    WeightsError
        If the folder is no whole export.

    Example
    -------
    >>> push_to_hub("nowhere", "me/barks", license="cc-by-4.0")
    Traceback (most recent call last):
    ...
    ssast_lobes.weights.WeightsError: nowhere: not an exported folder
    """
    folder = Path(folder).expanduser()
    kind = _check_export(folder)
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    # An export is called after its folder unless it was given a name.
    own, name = f"\n# {folder.resolve().name}\n", repo_id.rpartition("/")[2]
    text = text.replace(own, f"\n# {name}\n", 1)
    card = hub_card(text, kind, repo_id, license, datasets, tags)
    contents = {
        name: folder / name
        for name in EXPORT_FILES
        if (folder / name).is_file()
    }
    contents[CARD_FILE] = card.encode("utf-8")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(*content) for content in contents.items()],
            commit_message=message,
        )
    except Exception as error:
        reason = _reason(error, repo_id, "write", api.endpoint)
        raise HubError(f"{folder} was not pushed: {reason}") from error
    return commit.commit_url


def _check_export(folder):
    """The kind of a whole exported folder; raise if it is none."""
    config = {}
    if folder.is_dir():
        weights = load_weights(folder)
        config = weights.config
    if "format_version" not in config:
        raise WeightsError(f"{folder}: not an exported folder")
    with naming(folder):
        check_weights(weights)
        wanted = set(EXPORT_FILES)
        if config["kind"] != "classifier":
            wanted.remove(LABELS_FILE)
        missing = [
            name for name in sorted(wanted) if not (folder / name).is_file()
        ]
        if missing:
            raise WeightsError(f"{', '.join(missing)} missing: export it again")
    return config["kind"]


def hub_card(text, kind, repo_id, license=None, datasets=(), tags=()):
    """The model card of an export, as it stands on a hub.

    Arguments
    ---------
    text : str
        The card in the exported folder.
    kind : str
        ``"pretrained"`` or ``"classifier"``.
    repo_id, license, datasets, tags
        See `push_to_hub`.

    Returns
    -------
    str
        The card: front matter completed, section ``Use`` as on the hub.

    Raises
    ------
    HubError
        If no licence is named, or the front matter is damaged.

    Example
    -------
    >>> text = "---\\ntags: [audio]\\n---\\n\\n# export\\n"
    >>> print(hub_card(text, "classifier", "me/barks", license="mit"))
    ---
    license: mit
    tags:
    - audio
    ---
    <BLANKLINE>
    # export
    <BLANKLINE>
    """
    head = _FRONT_MATTER.match(text)
    try:
        data = dict(yaml.safe_load(head[1])) if head else {}
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise HubError(
            f"{CARD_FILE}: the front matter is damaged ({error})"
        ) from error
    former = data.pop("license", None)
    if not (license or former):
        raise HubError(
            f"{CARD_FILE} names no licence: give one, such as "
            "license='cc-by-4.0'; the data the model was trained on may limit "
            "the choice"
        )
    data = {"license": license or former, **data}
    if datasets:
        data["datasets"] = list(datasets)
    if tags:
        data["tags"] = list(dict.fromkeys([*data.get("tags", []), *tags]))
    body = text[head.end() :] if head else text
    place = (
        f"`{repo_id}` is fetched from the hub and kept; "
        f"`{repo_id}@REVISION` is a version of it."
    )
    section = use_section(kind, repo_id, place)
    body = _USE_SECTION.sub(lambda _: section, body)
    return front_matter(data) + body
