"""The command ``ssast-lobes``: everything that needs no recipe and no Python.

Whatever is wrong with the input is one line on stderr and exit code 2. Audio
that cannot be read is left out, counted, and listed at the end. Heavy imports
stand inside the commands, so that ``--help`` answers at once.
"""

import argparse
import csv
import os
import sys

_SHOWN_UNREADABLE = 20
# What `stats` computes at once: so many blocks of so many frames (30 s).
_STATS_BATCH = 8
_STATS_FRAMES = 3000

_INPUTS_HELP = (
    "audio files, folders (searched with their subfolders), or CSV files "
    "with a column `path`; of one column, it needs no name"
)

_MODEL_HELP = (
    "exported folder, Hugging Face folder, or user/repo on the hub with one "
    "of these"
)


def main(arguments=None):
    """Run the command line.

    Arguments
    ---------
    arguments : list of str, optional
        Words after ``ssast-lobes``; those of the process when left out.

    Returns
    -------
    int
        Exit code: 0, or 2 when something is wrong with the input.

    Example
    -------
    >>> main(["stats", "nowhere"])
    2
    """
    options = _parsed(_parser(), arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; nobody hears the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"\nstopped; {options.when_stopped}", file=sys.stderr)
        return 130
    except (OSError, ValueError, *_own_errors()) as error:
        print(f"ssast-lobes {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _parsed(parser, arguments):
    """The options; inputs may stand on both sides of them."""
    options, more = parser.parse_known_args(arguments)
    strange = [word for word in more if word.startswith("-")]
    if strange or (more and "inputs" not in options):
        parser.error(f"unrecognized arguments: {' '.join(strange or more)}")
    if "inputs" in options:
        options.inputs += more
    return options


def _own_errors():
    from ssast_lobes.checkpoints.format import WeightsError
    from ssast_lobes.dataio.waveforms import UnreadableAudio

    return UnreadableAudio, WeightsError


def _parser():
    parser = argparse.ArgumentParser(
        prog="ssast-lobes",
        description=(
            "Self-supervised audio spectrogram transformers: embed and "
            "classify audio with an exported folder, compare checkpoints, "
            "measure log-mel statistics, pack audio into shards, convert, "
            "average and export models, copy recipes."
        ),
        epilog="`ssast-lobes COMMAND --help` tells more and shows an example.",
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    _add_embed(commands)
    _add_classify(commands)
    _add_probe(commands)
    _add_heads(commands)
    _add_stats(commands)
    _add_shard(commands)
    _add_convert(commands)
    _add_average(commands)
    _add_export(commands)
    _add_recipes(commands)
    return parser


def _add(commands, name, run, summary, text, example):
    command = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, when_stopped="nothing was written")
    return command


def _add_embed(commands):
    command = _add(
        commands,
        "embed",
        _embed,
        "write embeddings of audio to an .npz file",
        "Write embeddings of audio to an .npz file with the arrays `ids`,\n"
        "`paths` and `embeddings`, float32:\n"
        "  clip     (files, D)\n"
        "  frames   (steps of all files, D)\n"
        "  patches  (steps of all files, bands, D)\n"
        "Frames and patches come with `lengths`, the steps of each file, and\n"
        "`step_seconds`; numpy.split(embeddings, lengths.cumsum()[:-1]) gives\n"
        "one array a file.",
        "ssast-lobes embed results/export recordings/ --output clips.npz\n"
        "  ssast-lobes embed recordings/ --output clips.npz",
    )
    _add_model(command)
    command.add_argument(
        "--output", required=True, metavar="FILE.npz", type=_named(".npz")
    )
    command.add_argument(
        "--what",
        choices=["clip", "frames", "patches"],
        default="clip",
        help="one vector a clip, a time step or a patch (default: clip)",
    )


def _add_classify(commands):
    command = _add(
        commands,
        "classify",
        _classify,
        "label audio with a fine-tuned model, or a linear head",
        "Label audio with a fine-tuned model, or with a linear head on a\n"
        "frozen encoder (see ssast-lobes heads). Long audio is classified in\n"
        "windows that overlap by half; a JSON file holds their times and\n"
        "scores too.",
        "ssast-lobes classify results/export recordings/ --output labels.csv\n"
        "  ssast-lobes classify --task keywords recordings/",
    )
    _add_model(command)
    command.add_argument(
        "--task",
        metavar="NAME",
        help="classify by the linear head of this name; the model that comes "
        "with the package has keywords, speakers, digits, emotion and events",
    )
    command.add_argument(
        "--output",
        metavar="FILE.csv|FILE.json",
        type=_named(".csv", ".json"),
        help="where to write; a table on the screen when left out",
    )
    command.add_argument(
        "--windows",
        action="store_true",
        help="table and CSV: a row for each window, not for each file",
    )
    command.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="least score of a label, multi-label models only (default: 0.5)",
    )


def _add_probe(commands):
    command = _add(
        commands,
        "probe",
        _probe,
        "choose a checkpoint: linear and k-NN probes of frozen encoders",
        "Measure how much a linear and a k-nearest-neighbour classifier read\n"
        "off frozen encoders, beside three baselines: the most frequent\n"
        "class, log-mel statistics, and the encoder before training. Features\n"
        "are standardised on train, settings are chosen on valid, scores are\n"
        "of test, with 95 % intervals bootstrapped over speakers. The output\n"
        "folder gets probe.md, probe.csv, probe.json, probe.png and the\n"
        "embeddings, which the next run finds again.\n\n"
        "Each --data is a CSV with a path, a label and a split (train, valid\n"
        "or test) a row. What differs from the options below may stand behind\n"
        "it: NAME=FILE.csv,label=COLUMN,split=COLUMN,group=COLUMN,\n"
        "metric=accuracy|uar",
        "ssast-lobes probe results/a/export results/b/export\n"
        "    --data words=words.csv --data emotion=acted.csv,metric=uar\n"
        "    --output results/probe",
    )
    command.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help=f"{_MODEL_HELP}; or official .pth file; NAME=MODEL gives it a "
        "name for the tables",
    )
    command.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="[NAME=]FILE.csv[,...]",
        help="a task; may be given several times",
    )
    command.add_argument("--output", required=True, metavar="FOLDER")
    command.add_argument(
        "--label-column",
        default="label",
        metavar="COLUMN",
        help="class (default: label)",
    )
    command.add_argument(
        "--split-column",
        default="split",
        metavar="COLUMN",
        help="train, valid or test (default: split)",
    )
    command.add_argument(
        "--group-column",
        metavar="COLUMN",
        help="what clips have in common that the intervals draw together "
        "(default: speaker where there is such a column, else each clip)",
    )
    command.add_argument(
        "--metric",
        choices=["accuracy", "uar"],
        default="accuracy",
        help="uar: unweighted average recall, for classes of unequal size "
        "(default: accuracy)",
    )
    command.add_argument(
        "--pooling",
        choices=["mean", "class", "statistics", "dynamics", "best"],
        default="mean",
        help="a clip is the mean of its tokens, the class tokens, mean and "
        "deviation of its tokens, these and how they change from step to "
        "step, or what is best on valid (default: mean)",
    )
    command.add_argument(
        "--layers",
        choices=["last", "all-mean", "all", "best"],
        default="last",
        help="tokens of the last layer, the mean of all layers, all layers "
        "side by side (statistics, dynamics), or what is best on valid "
        "(default: last)",
    )
    command.add_argument(
        "--cache",
        metavar="FOLDER",
        help="where embeddings are kept (default: embeddings/ in the output)",
    )
    _add_computing(command)
    command.set_defaults(
        when_stopped="no report was written. The embeddings made so far are "
        "kept: the same command goes on from there"
    )


def _add_heads(commands):
    command = _add(
        commands,
        "heads",
        _heads,
        "give an encoder linear heads, in a small copy",
        "Write a copy of an encoder in half precision, with a linear\n"
        "classifier for each task. The encoder stays frozen; the penalty is\n"
        "chosen on valid, the heads trained on train and valid, and measured\n"
        "once on test. `ssast-lobes classify FOLDER\n"
        "--task NAME` uses them. Each --data is a task as of ssast-lobes\n"
        "probe.",
        "ssast-lobes heads results/export --data words=words.csv\n"
        "    --data emotion=acted.csv,metric=uar --output results/with_heads",
    )
    command.add_argument(
        "model", metavar="MODEL", help="exported folder of the encoder"
    )
    command.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="[NAME=]FILE.csv[,...]",
        help="a task; may be given several times",
    )
    command.add_argument("--output", required=True, metavar="FOLDER")
    command.add_argument(
        "--pooling",
        choices=["mean", "class", "statistics", "dynamics", "best"],
        default="best",
        help="a clip is the mean of its tokens, the class tokens, mean and "
        "deviation of its tokens, these and how they change from step to "
        "step (default: best, for each head what is best "
        "on valid). Where the two name one way, embed gives it; else the "
        "mean of the last layer",
    )
    command.add_argument(
        "--layers",
        choices=["last", "all-mean", "all", "best"],
        default="best",
        help="tokens of the last layer, the mean of all layers, or all layers "
        "side by side (default: best)",
    )
    command.add_argument(
        "--licences",
        metavar="FILE.md",
        help="licences of the audio it was trained on, for the model card",
    )
    command.add_argument(
        "--cache",
        metavar="FOLDER",
        help="where embeddings are kept for another run (default: nowhere)",
    )
    _add_computing(command)


def _add_stats(commands):
    command = _add(
        commands,
        "stats",
        _stats,
        "measure mean and standard deviation of log-mel energies",
        "Measure mean and standard deviation of the log-mel energies of your\n"
        "audio, as YAML to paste as a recipe's `statistics`. Each clip's mean\n"
        "is removed first; files over 30 s are read in parts, which lose\n"
        "their own mean instead (the filterbank removes that of each frame\n"
        "anyway). Files that a CSV calls valid or test, in any column whose\n"
        "name starts with `split`, are left out.",
        "ssast-lobes stats train.csv --output stats.yaml",
    )
    command.add_argument(
        "inputs", nargs="+", metavar="INPUT", help=_INPUTS_HELP
    )
    command.add_argument(
        "--output",
        metavar="FILE.yaml",
        type=_named(".yaml", ".yml"),
        help="where to write; the screen when left out",
    )
    command.add_argument(
        "--n-mels", type=_positive, default=128, help="mel bins (default: 128)"
    )
    command.add_argument(
        "--sample-rate",
        type=_positive,
        default=16000,
        help="rate in Hz that audio is converted to (default: 16000)",
    )


def _add_shard(commands):
    command = _add(
        commands,
        "shard",
        _shard,
        "pack audio into few large files that are fast to read",
        "Pack audio, that of valid and test too, into shards: tars in\n"
        "WebDataset's form, 16-bit mono. FOLDER/manifest.csv has the columns\n"
        "of the input, and stands where any manifest does; recipes of\n"
        "datasets take the folder as --shards. Samples beyond full scale are\n"
        "cut off, and counted. The number of workers changes no byte; a\n"
        "command that was stopped goes on when it is given again.",
        "ssast-lobes shard clips.csv shards/ --workers 8",
    )
    command.add_argument(
        "input",
        metavar="INPUT",
        help="a CSV with a column `path`, or a folder of audio",
    )
    command.add_argument("folder", metavar="FOLDER", help="where to write")
    command.add_argument(
        "--codec",
        choices=["flac", "int16"],
        default="flac",
        help="int16 takes twice the room, and less time to read (default: "
        "flac)",
    )
    command.add_argument(
        "--sample-rate",
        type=_positive,
        default=16000,
        help="rate in Hz that audio is converted to (default: 16000)",
    )
    command.add_argument(
        "--megabytes",
        type=_positive,
        default=512,
        help="largest size of a shard (default: 512)",
    )
    command.add_argument(
        "--max-unreadable",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="largest share of unreadable files that is let pass (default: "
        "0.01)",
    )
    command.add_argument(
        "--workers",
        type=_positive,
        help="processes that decode and encode (default: one for each core)",
    )
    command.set_defaults(
        when_stopped="the shards made so far are kept: the same command goes "
        "on from there"
    )


def _add_convert(commands):
    command = _add(
        commands,
        "convert",
        _convert,
        "exported folders from and to official and Hugging Face models",
        "Make an exported folder of an official SSAST or AST checkpoint, or\n"
        "of a Hugging Face folder with an ASTModel or an\n"
        "ASTForAudioClassification. Or the other way round: an official\n"
        "checkpoint, if DEST ends in .pth, or a Hugging Face folder, with\n"
        "--to huggingface. Says what was left aside.",
        "ssast-lobes convert SSAST-Tiny-Patch-400.pth models/ssast_tiny\n"
        "  ssast-lobes convert models/ssast_tiny models/for_transformers \\\n"
        "      --to huggingface",
    )
    command.add_argument(
        "source",
        metavar="SOURCE",
        help=f"{_MODEL_HELP}; or official .pth file",
    )
    command.add_argument(
        "dest", metavar="DEST", help="a folder to write, or a .pth file"
    )
    command.add_argument(
        "--to",
        choices=["export", "official", "huggingface"],
        help="what to write (default: official if DEST ends in .pth, else "
        "export)",
    )
    command.add_argument(
        "--pad-frames",
        type=_positive,
        metavar="N",
        help="reference padding: pad or cut every clip to so many frames "
        "(10 ms each) of which all count as audio, as the official recipes "
        "do (AST: 1024); to Hugging Face, which always does so: to how many "
        "(default: those of the export, else the length of its pretraining)",
    )
    command.add_argument(
        "--stride",
        type=_stride,
        metavar="MELS,FRAMES",
        help="patch stride of a fine-tuned checkpoint, such as 10,10; needed "
        "only where its size allows for several",
    )
    command.add_argument(
        "--statistics",
        metavar="NAME|FILE.yaml",
        help="normalisation the model was trained with: audioset, esc50, "
        "speechcommands, or a file from `ssast-lobes stats` (default: "
        "audioset)",
    )
    command.add_argument(
        "--labels",
        metavar="FILE.txt",
        help="labels of a fine-tuned checkpoint, a line each, in the order of "
        "its classes; numbers when left out",
    )
    command.add_argument(
        "--multi-label",
        action="store_true",
        help="a clip may have several of the labels (as in AudioSet)",
    )
    command.add_argument(
        "--pooling",
        choices=["mean", "class"],
        help="what the head of a fine-tuned checkpoint sees: the mean of all "
        "tokens (SSAST's recipes) or the class tokens (AST) (default: mean)",
    )


def _add_average(commands):
    command = _add(
        commands,
        "average",
        _average,
        "the mean of pretrained models that were trained on from one",
        "Make an exported folder with the mean of the weights of several\n"
        "pretrainings. They are of one size, geometry and objective, and\n"
        'were trained on from one model, each on other audio: a "model\n'
        'soup" (Wortsman et al., ICML 2022). Probe it and each of them.\n'
        "The first gives the settings of the objective, and the window.",
        "ssast-lobes average words/export real_audio/export mean_of_two",
    )
    command.add_argument(
        "sources", nargs="+", metavar="FOLDER", help="exported pretrainings"
    )
    command.add_argument("dest", metavar="OUTPUT", help="a new folder")


def _add_export(commands):
    command = _add(
        commands,
        "export",
        _export,
        "write a model as one graph: ONNX, or torch.export",
        "Write front end, encoder and classifier as one graph that needs\n"
        "neither Python nor this package. Inputs: `wav` (clips, samples),\n"
        "float32 mono, and `lengths` (clips,), int64, the samples of each\n"
        "clip. Outputs: `scores` (clips, labels), the probabilities; of a\n"
        "pretrained model `clip`, `frames` and `steps`. Any number of clips\n"
        "of any length; labels and sampling rate are in the file's metadata.\n"
        "An ONNX file is compared with the model in ONNX Runtime first.",
        "ssast-lobes export results/export --onnx model.onnx",
    )
    command.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    command.add_argument(
        "--onnx",
        metavar="FILE.onnx",
        type=_named(".onnx"),
        help="write ONNX; needs pip install 'ssast_lobes[onnx]'",
    )
    command.add_argument(
        "--pt2",
        metavar="FILE.pt2",
        type=_named(".pt2"),
        help="write a program of torch.export",
    )
    command.set_defaults(when_stopped="no file is left in part")


def _add_recipes(commands):
    command = _add(
        commands,
        "recipes",
        _recipes,
        "list the recipes, or copy one to run and change it",
        "List the recipes, or copy one, with all that it needs, into a\n"
        "folder: FOLDER/recipes/NAME, and next to it FOLDER/hparams with the\n"
        "presets, to read and to copy. Several recipes may go into\n"
        "one folder. Files of yours are never overwritten.",
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


def _add_model(command):
    command.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"{_MODEL_HELP}; the one that comes with the package when left "
        "out",
    )
    command.add_argument(
        "inputs", nargs="+", metavar="INPUT", help=_INPUTS_HELP
    )
    _add_computing(command)
    command.add_argument(
        "--precision",
        choices=["fp32", "bf16", "fp16"],
        default="fp32",
        help="of the network (default: fp32)",
    )


def _add_computing(command):
    command.add_argument(
        "--device", default="cpu", help="such as cpu or cuda (default: cpu)"
    )
    command.add_argument(
        "--batch-size",
        type=_positive,
        default=16,
        help="windows computed at once (default: 16)",
    )


def _named(*extensions):
    """An argument type: a file name that ends in one of some extensions."""

    def check(name):
        if os.path.splitext(name)[1].lower() not in extensions:
            raise argparse.ArgumentTypeError(
                f"'{name}' should end in {' or '.join(extensions)}"
            )
        return name

    return check


def _positive(text):
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no positive number")
    return number


def _stride(text):
    try:
        bins, frames = map(_positive, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not of the form MELS,FRAMES, such as 10,10"
        ) from error
    return bins, frames


def _rows(inputs):
    """A row with path and id for each audio file of the inputs, once."""
    rows = {}
    for row in _all_rows(inputs):
        rows.setdefault(row["path"], row)
    return list(rows.values())


def _training_rows(inputs):
    """The rows whose file is held out by none of the inputs."""
    from ssast_lobes.dataio.held_out import without_held_out

    found = list(_all_rows(inputs))
    rows = without_held_out(found)
    left_out = len({row["path"] for row in found}) - len(rows)
    if not rows:
        raise ValueError(
            f"all {left_out} files are valid or test; to measure them, give "
            "their folder, not the CSV"
        )
    if left_out:
        print(f"{_files(left_out)} left out: valid or test", file=sys.stderr)
    return rows


def _all_rows(inputs):
    """The rows of one input after another."""
    from ssast_lobes.dataio.scan import folder_rows
    from ssast_lobes.dataio.tables import read_manifest

    for name in map(os.path.expanduser, inputs):
        if os.path.isdir(name):
            found = folder_rows(name)
        elif not os.path.isfile(name):
            raise FileNotFoundError(f"{name}: no such file or folder")
        elif name.lower().endswith(".csv"):
            found = read_manifest(name)
        else:
            found = [{"id": name, "path": os.path.abspath(name)}]
        yield from found


def _make_folder_of(output):
    """Find out before the work, not after it, that a file has no place."""
    if output is not None:
        folder = os.path.dirname(os.path.abspath(output))
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder}: not allowed to write there")


def _check_device(name):
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no device '{name}' here ({reason})") from error


def _find_model(options):
    """Tell the model from the inputs: the first word that is no audio."""
    from ssast_lobes.checkpoints.format import CONFIG_FILE
    from ssast_lobes.dataio.scan import find_audio
    from ssast_lobes.dataio.tables import ManifestError

    first, *others = [
        word for word in (options.model, *options.inputs) if word is not None
    ]
    path, is_model = os.path.expanduser(first), bool(others)
    if os.path.isfile(path):
        is_model = path.endswith(".pth")
    elif os.path.isdir(path):
        is_model = os.path.isfile(os.path.join(path, CONFIG_FILE))
        try:
            is_model = is_model or not find_audio(path)
        except ManifestError:
            is_model = True
    options.model = first if is_model else None
    options.inputs = others if is_model else [first, *others]
    if not options.inputs:
        raise ValueError(
            f"{first} holds no audio and is a model: name audio too (of a "
            "folder of shards its manifest.csv)"
        )


def _load(interface, options, **more):
    """An interface as the options of `_add_model` want it."""
    _check_device(options.device)
    return interface.from_hparams(
        options.model,
        options.device,
        options.batch_size,
        options.precision,
        **more,
    )


def _report(unreadable, n_files, output):
    """List the unreadable files, on stderr and next to the output."""
    listed = f"{output}.unreadable.csv"
    if output is not None and os.path.exists(listed):
        os.remove(listed)  # of an earlier run
    if not unreadable:
        return
    print(
        f"{len(unreadable)} of {n_files} files could not be read:",
        file=sys.stderr,
    )
    for path, reason in unreadable[:_SHOWN_UNREADABLE]:
        print(f"  {path}: {reason}", file=sys.stderr)
    if len(unreadable) > _SHOWN_UNREADABLE:
        print("  ...", file=sys.stderr)
    _tell_need(unreadable)
    if output is not None:
        with open(
            listed, "w", encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            csv.writer(file).writerows([("path", "reason"), *unreadable])
        print(f"all are listed in {listed}", file=sys.stderr)
    if len(unreadable) == n_files:
        raise ValueError("none of the files could be read")


def _tell_need(unreadable):
    """Say which unreadable files need an extra, if any do."""
    from ssast_lobes.dataio.codec import files_in_need

    need = files_in_need(unreadable)
    if need:
        print(need, file=sys.stderr)


def _embed(options):
    import tempfile

    from ssast_lobes.inference import AudioEncoder

    _find_model(options)
    rows = _rows(options.inputs)
    _make_folder_of(options.output)
    encoder = _load(AudioEncoder, options)
    id_of = {row["path"]: row["id"] for row in rows}
    unreadable, paths, lengths, shape = [], [], [], None
    folder = os.path.dirname(os.path.abspath(options.output))
    # Embeddings go to disk at once: frames of many hours outgrow the memory.
    with tempfile.TemporaryFile(dir=folder) as raw:
        for path, embedding in encoder.encode_files(
            list(id_of), options.what, unreadable
        ):
            if options.what == "clip":
                embedding = embedding[None]
            elif options.what == "patches":
                embedding = embedding.transpose(0, 1)
            embedding.contiguous().numpy().tofile(raw)
            paths.append(path)
            lengths.append(len(embedding))
            shape = embedding.shape[1:]
        _report(unreadable, len(rows), options.output)
        extra = {}
        if options.what != "clip":
            extra = {"lengths": lengths, "step_seconds": encoder.step_seconds}
        ids = [id_of[path] for path in paths]
        raw.flush()
        _save_arrays(
            options.output,
            raw,
            (sum(lengths), *shape),
            ids=ids,
            paths=paths,
            **extra,
        )
    print(f"{_files(len(paths))} embedded in {options.output}")


def _save_arrays(output, raw, shape, **others):
    """Write an .npz whole or not at all, the embeddings from a file."""
    import numpy as np

    from ssast_lobes.utils.files import atomic_write

    embeddings = np.memmap(raw, np.float32, "r", shape=shape)
    with atomic_write(output, "wb") as file:
        np.savez(file, embeddings=embeddings, **others)


def _classify(options):
    from ssast_lobes.inference import AudioClassifier, write_results

    _find_model(options)
    rows = _rows(options.inputs)
    _make_folder_of(options.output)
    classifier = _load(AudioClassifier, options, task=options.task)
    unreadable = []
    results = classifier.classify_files(
        [row["path"] for row in rows], options.threshold, unreadable
    )
    _report(unreadable, len(rows), options.output)
    if options.output is None:
        _print_table(results, options.windows)
        return
    write_results(results, options.output, options.windows)
    print(f"{_files(len(results))} classified in {options.output}")


def _files(count):
    return f"{count} file" if count == 1 else f"{count} files"


def _print_table(results, windows):
    lines = [("labels", "score", "start", "end", "path")]
    for result in results:
        for row in result.rows(windows):
            numbers = (f"{row['score']:.4f}", f"{row['start']:.2f}")
            numbers += (f"{row['end']:.2f}",)
            # A screen takes no names that are not UTF-8.
            path = row["path"].encode("utf-8", "backslashreplace").decode()
            lines.append((row["labels"] or "-", *numbers, path))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for labels, *numbers, path in lines:
        cells = [labels.ljust(widths[0])]
        cells += [
            number.rjust(width)
            for number, width in zip(numbers, widths[1:-1], strict=True)
        ]
        print("  ".join([*cells, path]))


def _probe(options):
    from ssast_lobes.evaluation.probing import parse_task, probe, write_report

    _check_device(options.device)
    tasks = [
        parse_task(
            text,
            label=options.label_column,
            split=options.split_column,
            group=options.group_column,
            metric=options.metric,
        )
        for text in options.data
    ]
    models = _named_models(options.models)
    report = os.path.join(options.output, "probe.csv")
    _make_folder_of(report)
    unreadable = []
    results = probe(
        models,
        tasks,
        options.cache or os.path.join(options.output, "embeddings"),
        options.pooling,
        options.layers,
        options.device,
        options.batch_size,
        unreadable,
    )
    n_files = len({path for task in tasks for path in task.paths()})
    _report(unreadable, n_files, report)
    missing = {path for path, _ in unreadable}
    tasks = [task.without(missing) for task in tasks]
    print(write_report(results, tasks, options.output))
    print(f"{len(results)} results in {options.output}")


def _heads(options):
    from pathlib import Path

    from ssast_lobes.evaluation.probing import parse_task, train_heads

    _check_device(options.device)
    tasks = [parse_task(text) for text in options.data]
    licences = None
    if options.licences is not None:
        licences = Path(options.licences).read_text("utf-8")
    scores = train_heads(
        options.model,
        tasks,
        options.output,
        licences,
        options.cache,
        options.device,
        options.batch_size,
        options.pooling,
        options.layers,
    )
    for task in tasks:
        score = 100 * scores[task.name]
        print(f"{task.name}: {score:.1f} % {task.metric} on test")
    print(f"written to {options.output}: {', '.join(scores)}")


def _named_models(words):
    """Models by name: what stands before a =, or what tells them apart."""
    from ssast_lobes.evaluation.probing import short_names
    from ssast_lobes.evaluation.probing.tasks import split_name

    pairs = [split_name(word) for word in words]
    short = short_names([source for _, source in pairs])
    models = {}
    for (name, source), own in zip(pairs, short, strict=True):
        if (name or own) in models:
            raise ValueError(f"two models are called {name or own}: rename one")
        models[name or own] = source
    return models


def _stats(options):
    from ssast_lobes.models.features import KaldiFbank
    from ssast_lobes.models.normalization import RunningStatistics
    from ssast_lobes.utils.files import atomic_write

    rows = _training_rows(options.inputs)
    _make_folder_of(options.output)
    fbank = KaldiFbank(options.sample_rate, options.n_mels)
    statistics, unreadable = RunningStatistics(), []
    for wav, wav_lens in _stats_batches(rows, fbank, unreadable):
        statistics.update(*fbank(wav, wav_lens))
    _report(unreadable, len(rows), options.output)
    hop = fbank.hop_samples / fbank.sample_rate
    hours = statistics.count / fbank.n_mels * hop / 3600
    text = (
        f"# Log-mel statistics of {len(rows) - len(unreadable)} files, "
        f"{hours:.2f} hours.\n"
        f"mean: {statistics.mean:.7f}\n"
        f"std: {statistics.std:.7f}\n"
    )
    if options.output is None:
        print(text, end="")
        return
    with atomic_write(options.output) as file:
        file.write(text)
    print(text + f"# {options.output}")


def _stats_batches(rows, fbank, unreadable):
    """Padded batches (B, S) and relative lengths of parts of all files.

    Parts of a file overlap so that each of its frames is in one of them. Of
    a long file that breaks off, what came before counts.
    """
    from torch.nn.utils.rnn import pad_sequence
    from tqdm import tqdm

    from ssast_lobes.dataio.waveforms import UnreadableAudio
    from ssast_lobes.inference.audio import read_blocks, require_length

    hop = _STATS_FRAMES * fbank.hop_samples
    length = hop - fbank.hop_samples + fbank.window_samples
    parts = []

    def batch():
        import torch

        lengths = torch.tensor([len(part) for part in parts])
        wav = pad_sequence(parts, batch_first=True)
        parts.clear()
        return wav, lengths / wav.shape[1]

    for row in tqdm(rows, "Measuring", unit="file"):
        try:
            for start, wav in read_blocks(
                row["path"], fbank.sample_rate, length, hop
            ):
                require_length(row["path"], start + len(wav), fbank)
                parts.append(wav)
                if len(parts) == _STATS_BATCH:
                    yield batch()
        except UnreadableAudio as error:
            reason = str(error).removeprefix(f"{row['path']}: ")
            unreadable.append((row["path"], reason))
    if parts:
        yield batch()


def _shard(options):
    from ssast_lobes.dataio.shards import pack

    packed = pack(
        list(_all_rows([options.input])),
        options.folder,
        options.codec,
        options.sample_rate,
        options.megabytes * 2**20,
        options.max_unreadable,
        options.workers,
    )
    if packed.unreadable:
        print(
            f"{len(packed.unreadable)} files could not be read, and are "
            f"listed in {os.path.join(options.folder, 'unreadable.csv')}",
            file=sys.stderr,
        )
        _tell_need(packed.unreadable)
    if packed.clipped:
        print(
            f"{packed.clipped} clips had samples beyond full scale, which "
            "were cut off: column `clipped` of the manifest",
            file=sys.stderr,
        )
    print(
        f"clips: {packed.clips}, hours: {packed.hours:.2f}, shards: "
        f"{packed.shards}, manifest: {packed.manifest}"
    )


def _convert(options):
    from tqdm import tqdm

    from ssast_lobes.checkpoints.loading import load_weights

    with tqdm(desc="Reading", total=3, unit="step", leave=False) as bar:
        weights = load_weights(options.source, options.stride)
        convert = _conversion(weights, options)
        convert(weights, options, bar)
        bar.update()
    for line in weights.report:
        print(line)
    print(f"{len(weights.state)} tensors converted to {options.dest}")


def _step(bar, name):
    """Show that a step is done, and what the next one is."""
    bar.update()
    bar.set_description(name)


def _conversion(weights, options):
    """What to do with the weights, by where they come from and go to."""
    is_pth = options.dest.endswith(".pth")
    target = options.to or ("official" if is_pth else "export")
    if is_pth != (target == "official"):
        kind = "a folder" if is_pth else "a file that ends in .pth"
        raise ValueError(f"--to {target} writes {kind}, {options.dest} is none")
    if "kind" not in weights.config:
        if target != "export":
            raise ValueError(
                f"{options.source} is no exported folder: make one of it "
                f"first, then convert that --to {target}"
            )
        return _to_export
    if target == "official":
        return _to_official
    exported = "format_version" in weights.config
    if target == "export" and exported:
        raise ValueError(
            f"{options.source} is an exported folder already; to make an "
            "official checkpoint of it, let DEST end in .pth; for Hugging "
            "Face, add --to huggingface"
        )
    if target == "huggingface" and not exported:
        raise ValueError(f"{options.source} is a Hugging Face folder already")
    return _to_huggingface if exported else _from_huggingface


def _refuse(options, names, source):
    """Raise where one of some options is given: it would have no effect."""
    given = [
        "--" + name.replace("_", "-")
        for name in names
        if getattr(options, name) not in (None, False)
    ]
    if given:
        raise ValueError(
            f"{options.source} is {source}: {', '.join(given)} would have no "
            "effect, leave it out"
        )


def _what_is(weights):
    exported = "format_version" in weights.config
    return "an exported folder" if exported else "a Hugging Face folder"


def _to_official(weights, options, bar):
    import torch

    from ssast_lobes.checkpoints.official import to_official
    from ssast_lobes.utils.files import atomic_write

    names = ("stride", "statistics", "labels", "multi_label", "pooling")
    _refuse(options, (*names, "pad_frames"), _what_is(weights))
    _step(bar, "Translating")
    state = to_official(weights)
    _step(bar, "Writing")
    _make_folder_of(options.dest)
    with atomic_write(options.dest, "wb") as file:
        torch.save(state, file)


def _to_huggingface(weights, options, bar):
    from ssast_lobes.checkpoints.huggingface import to_huggingface

    names = ("stride", "statistics", "labels", "multi_label", "pooling")
    _refuse(options, names, _what_is(weights))
    _step(bar, "Translating and writing")
    weights.report += to_huggingface(weights, options.dest, options.pad_frames)
    bar.update()


def _from_huggingface(weights, options, bar):
    from ssast_lobes.checkpoints.folder import label_encoder_of, write_export

    names = ("stride", "statistics", "labels", "pooling", "pad_frames")
    labels = weights.config.get("labels")
    if labels is None:
        names += ("multi_label",)
    _refuse(options, names, _what_is(weights))
    if options.multi_label:
        weights.config["multi_label"] = True
    card = {
        "origin": f"`{os.path.basename(options.source)}`, a Hugging Face "
        "model, by `ssast-lobes convert`."
    }
    label_encoder = None if labels is None else label_encoder_of(labels)
    _step(bar, "Writing")
    write_export(
        options.dest, weights.state, weights.config, card, label_encoder
    )
    bar.update()


def _to_export(weights, options, bar):
    from ssast_lobes.checkpoints.folder import label_encoder_of, write_export
    from ssast_lobes.models.features import FrontEnd

    _step(bar, "Checking")
    encoder = dict(weights.config["encoder"])
    if options.pad_frames is not None:
        # As the official code, which drops a part of a patch.
        encoder["grid"] = {**encoder["grid"], "keep_partial": False}
    features = FrontEnd(
        _statistics(options.statistics or "audioset"),
        n_mels=encoder["grid"]["n_mels"],
        pad_frames=options.pad_frames,
    )
    config = {
        "kind": "pretrained",
        "encoder": encoder,
        "features": features.config,
        "pooling": {
            "depth": encoder["depth"],
            "pooling": "mean",
            "layers": "last",
        },
    }
    labels = None
    if weights.part("head"):
        n_classes = len(weights.state["head.linear.weight"])
        labels = _labels(options.labels, n_classes, weights.report)
        config["kind"] = "classifier"
        config["pooling"]["pooling"] = options.pooling or "mean"
        config["head"] = {"projection": None}
        config["labels"] = labels
        config["multi_label"] = options.multi_label
    else:
        names = ("labels", "multi_label", "pooling")
        _refuse(options, names, "a checkpoint without classes")
        config["objective"] = _objective(weights)
    card = {
        "origin": f"`{os.path.basename(options.source)}`, an official "
        "checkpoint, by `ssast-lobes convert`."
    }
    label_encoder = None if labels is None else label_encoder_of(labels)
    _step(bar, "Writing")
    write_export(options.dest, weights.state, config, card, label_encoder)


def _average(options):
    from ssast_lobes.checkpoints.averaging import export_mean
    from ssast_lobes.utils.files import resolved

    # One of the models, where OUTPUT was forgotten.
    if (resolved(options.dest) / "config.json").exists():
        raise ValueError(
            f"OUTPUT comes last, and {options.dest} is an exported folder: "
            "name a new one, or remove it"
        )
    export_mean(options.dest, options.sources)
    print(f"the mean of {len(options.sources)} models is in {options.dest}")


def _statistics(name):
    """Name of a preset, or the numbers of a YAML file."""
    if not os.path.isfile(name):
        return name
    import yaml

    with open(name, encoding="utf-8") as file:
        numbers = yaml.safe_load(file)
    try:
        return {key: float(numbers[key]) for key in ("mean", "std")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: expected the two numbers mean and std"
        ) from error


def _labels(path, n_classes, report):
    """Labels of a file; numbers without one."""
    if path is None:
        report.append(f"no labels given: {n_classes} classes named by numbers")
        return [str(number) for number in range(n_classes)]
    with open(path, encoding="utf-8-sig") as file:
        labels = [line.strip() for line in file if line.strip()]
    if len(labels) != n_classes:
        raise ValueError(
            f"{path} holds {len(labels)} labels, the checkpoint {n_classes} "
            "classes"
        )
    return labels


def _objective(weights):
    """Configuration of the objective whose heads a checkpoint holds."""
    heads = {key.split(".")[0] for key in weights.part("objective")}
    tasks = {
        frozenset({"discriminator"}): "discriminative",
        frozenset({"generator_head"}): "generative",
        frozenset({"discriminator", "generator_head"}): "joint",
    }
    task = tasks.get(frozenset(heads - {"mask_embedding"}))
    return {"name": "MSPM", "task": task} if task else None


def _export(options):
    from ssast_lobes.inference.deployment import write_onnx, write_program

    if not options.onnx and not options.pt2:
        raise ValueError("say what to write: --onnx FILE.onnx, --pt2 FILE.pt2")
    for output in (options.onnx, options.pt2):
        _make_folder_of(output)
    if options.onnx:
        difference = write_onnx(options.model, options.onnx)
        print(
            f"{options.onnx} written; ONNX Runtime gives the model's results "
            f"to {difference:.1g}"
        )
    if options.pt2:
        write_program(options.model, options.pt2)
        print(f"{options.pt2} written")


def _recipes(options):
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
        print(f"Beside it, because it uses their scripts: {names}")
    print(f"How to run it: {copy / 'README.md'}")


if __name__ == "__main__":
    sys.exit(main())
