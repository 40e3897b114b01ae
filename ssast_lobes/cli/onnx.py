"""``ssast-lobes onnx``: write a model as one graph."""

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
        "onnx",
        run,
        "write a model as one graph: ONNX or torch.export",
        "Write front end, encoder and classifier as one graph that needs\n"
        "neither Python nor this package. Inputs: `wav` (clips, samples),\n"
        "float32 mono, and `lengths` (clips,), int64, the samples of each\n"
        "clip. Outputs: `scores` (clips, labels), the probabilities; for a\n"
        "pretrained model `clip`, `frames` and `n_time`. The graph takes any\n"
        "number of clips of any length. The file's metadata has labels and\n"
        "sampling rate. Before it writes an ONNX file, the command compares\n"
        "it with the model in ONNX Runtime.",
        "ssast-lobes onnx results/export --output model.onnx",
    )
    command.add_argument("model", metavar="MODEL", help=common.MODEL_HELP)
    command.add_argument(
        "--output",
        metavar="FILE.onnx",
        type=common.file_name(".onnx"),
        help="ONNX file to write; needs pip install 'ssast_lobes[onnx]'",
    )
    command.add_argument(
        "--program",
        metavar="FILE.pt2",
        type=common.file_name(".pt2"),
        help="torch.export program to write",
    )
    command.set_defaults(when_stopped="no file was written in part")


def run(options):
    """Write a model as an ONNX file, as a program, or as both.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed options of the command.
    """
    from ssast_lobes.inference.deployment import write_onnx, write_program

    if not options.output and not options.program:
        raise ValueError(
            "say what to write: --output FILE.onnx, --program FILE.pt2"
        )
    for path in (options.output, options.program):
        common.make_parent(path)
    if options.output:
        difference = write_onnx(options.model, options.output)
        print(
            f"{options.output} written; ONNX Runtime gives the model's results "
            f"to {difference:.1g}"
        )
    if options.program:
        write_program(options.model, options.program)
        print(f"{options.program} written")
