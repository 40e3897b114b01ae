"""``ssast-lobes embed``: write vectors of clips, time steps or patches."""

import os
import tempfile

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
        "embed",
        run,
        "write embeddings of audio to an .npz file",
        "Write embeddings of audio to an .npz file with the arrays `ids`,\n"
        "`paths` and `embeddings`, float32:\n"
        "  clip     (files, D)\n"
        "  frames   (time steps of all files, D)\n"
        "  patches  (time steps of all files, n_freq, D)\n"
        "For frames and patches, the file also has `step_seconds`, and\n"
        "`lengths`, the time steps of each file;\n"
        "numpy.split(embeddings, lengths.cumsum()[:-1])\n"
        "returns one array for each file.",
        "ssast-lobes embed results/export recordings/ --output clips.npz\n"
        "  ssast-lobes embed recordings/ --output clips.npz",
    )
    common.add_model(command)
    command.add_argument(
        "--output",
        required=True,
        metavar="FILE.npz",
        type=common.file_name(".npz"),
    )
    command.add_argument(
        "--what",
        choices=["clip", "frames", "patches"],
        default="clip",
        help="one vector for each clip, time step or patch (default: clip)",
    )


def run(options):
    """Write embeddings of the inputs to an .npz file.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    import numpy as np

    from ssast_lobes.inference import AudioEncoder
    from ssast_lobes.utils.files import atomic_write

    common.find_model(options)
    id_of = common.read_ids(options.inputs)
    common.make_parent(options.output)
    encoder = common.load_model(AudioEncoder, options)
    unreadable, paths, lengths, shape = [], [], [], None
    folder = os.path.dirname(os.path.abspath(options.output))
    # Frames of many hours do not fit into memory, so write each clip
    # immediately.
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
        common.report_unreadable(unreadable, len(id_of), options.output)
        others = {"ids": [id_of[path] for path in paths], "paths": paths}
        if options.what != "clip":
            others["lengths"] = lengths
            others["step_seconds"] = encoder.step_seconds
        raw.flush()
        embeddings = np.memmap(
            raw, np.float32, "r", shape=(sum(lengths), *shape)
        )
        arrays = {"embeddings": embeddings, **others}
        with atomic_write(options.output, "wb") as file:
            np.savez(file, **arrays)
    print(f"{common.count_files(len(paths))} embedded in {options.output}")
    for name, array in arrays.items():
        print(f"  {name:<12}  {np.shape(array)}")
