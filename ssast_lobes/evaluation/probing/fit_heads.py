"""Fit linear heads to a frozen encoder, as probes do, and save them.

`train_heads` writes a small copy of the encoder. The copy has half precision,
no pretext heads, and a linear layer for each task. It may also have projections
of clip vectors, which help heads of few labels.
"""

import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from ssast_lobes.checkpoints.bundled import resolve_name
from ssast_lobes.checkpoints.folder import check_export_folder, write_export
from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.linear_heads import LinearHead, write_head
from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.model_card import read_card
from ssast_lobes.checkpoints.projections import (
    read_projection,
    write_projection,
)
from ssast_lobes.dataio.audio import audio_info
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.evaluation.probing.classifiers import (
    linear_weights,
    logistic_regression,
)
from ssast_lobes.evaluation.probing.comparison import best_fit, variants_of
from ssast_lobes.evaluation.probing.discriminants import (
    fit_projection,
    read_recordings,
)
from ssast_lobes.evaluation.probing.embeddings import (
    PROJECTED,
    VARIANTS,
    PooledEncoder,
    Readout,
    cached_vectors,
)
from ssast_lobes.evaluation.probing.tasks import (
    SCORES,
    split_options,
    table_name,
)
from ssast_lobes.models.pooling import ClipPooling
from ssast_lobes.utils.chance import CHANCE
from ssast_lobes.utils.files import resolved

# Names of layers in `ClipPooling`. "weighted" has equal weights until trained.
_KINDS = {"last": "last", "all-mean": "weighted", "all": "all"}


class HeadScores(NamedTuple):
    """Describe how well a head works.

    Arguments
    ---------
    valid : float
        Score on valid of a head trained on train only, 0 to 1.
    test : float
        Score on test of the final head, 0 to 1.
    vectors : str
        Pooling, layers and projection of the clip vectors.
    """

    valid: float
    test: float
    vectors: str


def train_heads(
    model,
    tasks,
    folder,
    licenses=None,
    cache_folder=None,
    device="cpu",
    batch_size=16,
    pooling="best",
    layers="best",
    projections=(),
):
    """Write a copy of an encoder with linear heads, in half precision.

    The penalty of each head is chosen on the validation split, as in `probe`.
    Then the head is trained on train and valid together, and tested once. Heads
    are trained on the encoder in half precision.

    Arguments
    ---------
    model : str or path
        Exported folder of any kind, or the name of a bundled model. If the
        model is a classifier, only its encoder is used.
    tasks : list of Task
        From `read_task`. The heads get the names of the tasks.
    folder : str or path
        Folder to write to. An older export there is replaced, with its heads.
    licenses : str, optional
        Markdown for the model card: the licenses of the training audio.
    cache_folder : str or path, optional
        Folder that keeps the vectors of the clips for another run.
    device : str
        Device that computes the encoder.
    batch_size : int
        Windows of audio computed at once.
    pooling, layers : str
        How clips become vectors, as in `probe`. ``"best"`` chooses for each
        head. `ssast-lobes embed`, which uses no head, then writes the mean of
        the tokens of the last layer.
    projections : list of str
        Projections that each head tries, next to the plain vectors, and that
        the copy gets. Each is the name of a projection of the model, or a table
        to fit one on, ``[NAME=]CSV[,label=COLUMN][,split=COLUMN]``, of
        recordings whose contents repeat, in other voices or rooms.

    Returns
    -------
    dict of str to HeadScores
        Scores of each head by the name of its task.

    Raises
    ------
    FileExistsError
        If the folder contains anything but an export.
    UnreadableAudio
        If a clip cannot be read.
    ManifestError
        If the table of a projection is bad, or has recordings that are valid or
        test in a task.
    ValueError
        If there is no task, two tasks or projections have the same name, or the
        projected vectors are not among the choices.
    WeightsError
        If the model does not load, lacks a projection, or is `folder` itself.
    """
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"each task needs a name of its own, got {names}")
    folder, model = resolved(folder), resolve_name(model)
    if folder == resolved(model):
        raise WeightsError(f"{folder}: choose another folder for the copy")
    check_export_folder(folder)
    weights = load_weights(model)
    variants = variants_of(pooling, layers)
    if projections and PROJECTED not in variants:
        raise ValueError(
            "projections are of the dynamics of all layers: choose these, or "
            "best"
        )
    projected, tables = _projections(projections, model, weights, tasks)
    clip_pooling = _clip_pooling(weights.config, variants)
    card = read_card(resolved(model))
    # The copy does not get the heads and projections of the model.
    card = {
        title: card[title]
        for title in card
        if not {"head", "heads", "projections"} & set(title.lower().split())
    }
    if licenses is not None:
        card["licenses_of_the_training_audio"] = licenses.strip()
    with tempfile.TemporaryDirectory() as scratch:
        rounded = Path(scratch) / folder.name
        _write_encoder(rounded, weights, clip_pooling, card)
        encoder = PooledEncoder(rounded, device, batch_size)
        encoder.check_variants(variants)
        cache = cache_folder or Path(scratch) / "embeddings"
        for name, contents in tables.items():
            projected[name] = fit_projection(name, contents, encoder, cache)
        readouts = {
            ", ".join(variant): Readout(*variant) for variant in variants
        }
        for name, projection in projected.items():
            vectors = ", ".join([*PROJECTED, f"projection {name}"])
            readouts[vectors] = Readout(*PROJECTED, projection)
        trained = {
            task.name: _head(task, encoder, readouts, cache) for task in tasks
        }
    metrics = {}
    for task in tasks:
        name = f"{task.name} ({task.metric})"
        score = trained[task.name][1].test
        metrics |= {name: score, name + CHANCE: _chance(task)}
    card["linear_heads_on_test"] = metrics
    card["vectors_of_the_heads"] = {
        name: scores.vectors for name, (_, scores) in trained.items()
    }
    if projected:
        card["projections"] = {
            name: f"{len(p.weight)} linear discriminants of {p.contents} "
            f"contents in {p.recordings} recordings"
            for name, p in projected.items()
        }
    _write_encoder(folder, weights, clip_pooling, card)
    for name, (head, _) in trained.items():
        write_head(folder, name, head)
    for name, projection in projected.items():
        write_projection(folder, name, projection)
    return {name: scores for name, (_, scores) in trained.items()}


def _projections(projections, model, weights, tasks):
    """Return projections of the model by name, and tables to fit others on."""
    held_out = [
        p for task in tasks for s in ("valid", "test") for p in task.paths(s)
    ]
    encoder = weights.config["encoder"]
    size = ClipPooling(encoder["depth"], *PROJECTED).output_size(encoder["dim"])
    known, tables = {}, {}
    for text in projections:
        name, csv_path, columns = split_options(text, ("label", "split"))
        if name is None and not csv_path.lower().endswith(".csv"):
            name = csv_path
            known[name] = read_projection(resolved(model), name)
            if known[name].weight.shape[1] != size:
                raise WeightsError(
                    f"{model}: the projection '{name}' is of another encoder"
                )
        else:
            name = name or table_name(csv_path)
            tables[name] = read_recordings(
                csv_path, **columns, held_out=held_out
            )
    if len(known.keys() | tables.keys()) < len(projections):
        raise ValueError("each projection needs a name of its own")
    return known, tables


def _write_encoder(folder, weights, clip_pooling, card):
    """Write only the encoder, in half precision."""
    config = weights.config
    kept = ("encoder", "features", "window_seconds", "chunks")
    plain = {
        "kind": "pretrained",
        **{key: config[key] for key in kept if key in config},
        "pooling": clip_pooling.config,
    }
    state = {
        key: value
        for key, value in weights.state.items()
        if key.startswith("encoder.")
    }
    for key, value in clip_pooling.state_dict().items():
        state[f"pooling.{key}"] = value
    write_export(folder, state, plain, card, half=True)


def _clip_pooling(config, variants):
    """Return the pooling of the only variant, else the mean of the tokens."""
    [(pooling, layers)] = variants if len(variants) == 1 else VARIANTS[:1]
    return ClipPooling(config["encoder"]["depth"], pooling, _KINDS[layers])


def _chance(task):
    """Return the best test score of a constant answer."""
    counts = torch.bincount(task.targets("test"))
    if task.metric == "uar":
        return 1 / int((counts > 0).sum())
    return int(counts.max()) / int(counts.sum())


def _head(task, encoder, readouts, cache_folder):
    """Return the head of a task, and its scores."""
    unreadable = []
    vectors = cached_vectors(
        encoder, task.name, task.paths(), cache_folder, unreadable
    )
    if unreadable:
        raise UnreadableAudio("{}: {}".format(*unreadable[0]))
    x = task.stacked(vectors)
    y = {split: task.targets(split) for split in task.rows}
    fit, readout = best_fit(
        logistic_regression, x, y, task, list(readouts.values())
    )
    x = {split: readout(part) for split, part in x.items()}
    weight, bias = linear_weights(
        torch.cat([x["train"], x["valid"]]),
        torch.cat([y["train"], y["valid"]]),
        len(task.labels),
        fit.setting,
    )
    scores = x["test"].double() @ weight.T + bias
    score = SCORES[task.metric](y["test"], scores.argmax(1))
    pooling, layers, projection = readout
    if projection is not None:
        # A linear layer of a linear projection is one linear layer.
        bias = bias + weight @ projection.bias.double()
        weight = weight @ projection.weight.double()
    # Resampling to the model's rate may add a sample, so round up to 10 ms.
    longest = max(audio_info(path).seconds for path in task.paths())
    seconds = math.ceil(100 * longest) / 100
    plain = task.labels, pooling, _KINDS[layers], seconds
    vectors = next(name for name, one in readouts.items() if one is readout)
    head = LinearHead(weight, bias, *plain)
    return head, HeadScores(fit.valid_score, score, vectors)
