#!/usr/bin/env python3
"""Run the blocks of a page as they are printed, from top to bottom.

> python run_page.py PAGE.md [--apart]

The current folder is where the blocks find and leave files. All ``python``
blocks are one session, as a reader types them (``--apart``: each on its own);
each ``bash`` block is a shell of its own, that stops at the first error; a
``yaml`` block is the file that its first line names, ``# folder/name.yaml``.
``text`` is not run. The first block that fails ends the page, and is named.
"""

import argparse
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

# Other languages would be printed, and nobody would notice that they don't run.
LANGUAGES = ("bash", "python", "yaml", "text")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>.*)$")


class Block(NamedTuple):
    """A fenced block of a page, and the line of its first line of code."""

    language: str
    code: str
    line: int


def blocks_of(text):
    """All fenced blocks of a page.

    Arguments
    ---------
    text : str
        Markdown.

    Returns
    -------
    list of Block

    Raises
    ------
    ValueError
        If a block is of no known language, is indented or does not end.
    """
    blocks, opened = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence is None:
            if opened:
                opened[2].append(line)
        elif opened:
            language, first, code = opened
            blocks.append(Block(language, "\n".join([*code, ""]), first))
            opened = None
        elif fence["indent"] or fence["language"] not in LANGUAGES:
            raise ValueError(
                f"line {number}: '{line}' begins no block of {LANGUAGES}"
            )
        else:
            opened = fence["language"], number + 1, []
    if opened:
        raise ValueError(f"the block of line {opened[1]} does not end")
    return blocks


def run_page(page, apart=False):
    """Run the blocks of a page in the current folder.

    Arguments
    ---------
    page : pathlib.Path
        Markdown file.
    apart : bool
        Whether Python blocks see nothing of those above.

    Returns
    -------
    str or None
        Which block failed; None if none did.
    """
    page = page.resolve()
    blocks = blocks_of(page.read_text("utf-8"))
    session = {"__name__": "__main__"}
    for number, block in enumerate(blocks, start=1):
        if block.language == "text":
            continue
        place = (
            f"{page.name}, block {number} of {len(blocks)} "
            f"({block.language}, line {block.line})"
        )
        print(f"=== {place}", flush=True)
        own = {"__name__": "__main__"} if apart else session
        failure = _RUN[block.language](block, page, own)
        if failure:
            return f"{place} failed: {failure}"
    return None


def _bash(block, page, session):
    command = ["bash", "-euo", "pipefail", "-c", block.code]
    code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    return f"exit code {code}" if code else None


def _python(block, page, session):
    # Lines of tracebacks are those of the page.
    padded = "\n" * (block.line - 1) + block.code
    try:
        exec(compile(padded, str(page), "exec"), session)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return None


def _yaml(block, page, session):
    named = re.match(r"# (\S+\.yaml)$", block.code.split("\n")[0])
    if named is None:
        return "its first line names no file, such as `# results/my.yaml`"
    path = Path(named[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.code, "utf-8")
    return None


_RUN = {"bash": _bash, "python": _python, "yaml": _yaml}


def main():
    """Run the page that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n")[2],
    )
    parser.add_argument("page", type=Path, metavar="PAGE.md")
    parser.add_argument(
        "--apart",
        action="store_true",
        help="each Python block on its own, not one session",
    )
    options = parser.parse_args()
    # As in a session of a reader, who has no folder of tests.
    sys.path[0] = ""
    failure = run_page(options.page, options.apart)
    if failure:
        print(f"=== {failure}", flush=True)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
