#!/usr/bin/env python3
"""Execute ``docs/tutorial.ipynb``, and write it with its outputs.

> python docs/execute_tutorial.py

It needs the extras `docs` and `quickstart`. Files go to a temporary folder.
"""

import base64
import io
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).parent / "tutorial.ipynb"
CELL_SECONDS = 900
# A third of the bytes, and no line changes its color.
FEW_COLORS = {"colors": 256, "method": Image.Quantize.FASTOCTREE}


def execute(folder):
    """Return the notebook, executed in a folder.

    Arguments
    ---------
    folder : str or path
        Where its cells find and leave files.

    Returns
    -------
    nbformat.NotebookNode
        Without what differs from run to run, or tells of the machine:
        progress bars, warnings, and what cells tagged ``remove-output`` print.
        Pictures have few colors, for a small file.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    # Pictures go into the notebook, whatever backend scripts have here.
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    client.execute(env=environment)
    for cell in notebook.cells:
        if "remove-output" in cell.metadata.get("tags", []):
            cell.outputs = []
        elif cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr"
            ]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = smaller(output.data["image/png"])
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def smaller(picture):
    """Return a PNG with few colors, in base64 as it came.

    Arguments
    ---------
    picture : str
        PNG in base64.

    Returns
    -------
    str
    """
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    written = io.BytesIO()
    image = image.convert("RGB").quantize(**FEW_COLORS)
    image.save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(execute(folder), NOTEBOOK)
